"""Attribution patching: exact where the model is linear, true gradients elsewhere, and whole where they are integrated."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from prompts import CAUSAL, random_pairs, transformer
from sae_kinds import random_sae
from torch import Tensor, nn

from mlinterp.errors import SpecError
from mlinterp.patching import attribution
from mlinterp.patching.attribution import Slopes, slopes
from mlinterp.patching.attribution_latents import latent_slopes
from mlinterp.patching.latents import LatentPatcher
from mlinterp.patching.metrics import Metric, MetricRegistry
from mlinterp.patching.patcher import Edit, Patch, Patcher
from mlinterp.patching.places import COMPONENTS, place_of, places
from mlinterp.subjects.base import Examples
from mlinterp.subjects.hooked import HookedSubject
from mlinterp.subjects.huggingface import HuggingFaceSubject
from mlinterp.subjects.pairs import Pairs, answer_columns, tokenise

LOGIT_DIFF = MetricRegistry().get("logit_diff")
UNEQUAL = (6, 9, 7)
QUICK = ("gpt2", "llama", "gemma2", "gpt_neox parallel")
EVERY = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CAUSAL]


@pytest.fixture(scope="module")
def doubles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, HuggingFaceSubject]:
    root = tmp_path_factory.mktemp("doubles")
    found = {name: transformer(root, fields) for name, fields in CAUSAL.items()}
    for subject in found.values():
        subject.model.double()
    return found


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> HuggingFaceSubject:
    return transformer(tmp_path_factory.mktemp("project"), CAUSAL["llama"])


class Linear(nn.Module):
    """Two blocks that mix positions and features, and nothing that is not linear."""

    def __init__(self, vocab: int, length: int, d: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embed = nn.Embedding(vocab, d)
        self.mixes = nn.ParameterList([nn.Parameter(torch.randn(length, length, generator=generator)) for _ in range(2)])
        self.blocks = nn.ModuleList([nn.Linear(d, d) for _ in range(2)])
        self.head = nn.Linear(d, vocab)
        for parameter in self.parameters():
            parameter.data = 0.4 * torch.randn(parameter.shape, generator=generator)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens)
        for mix, block in zip(self.mixes, self.blocks, strict=True):
            h = h + block(mix.tril() @ h)
        return torch.as_tensor(self.head(h))


@pytest.fixture(scope="module")
def linear() -> HookedSubject:
    tokens = torch.zeros(1, 6, dtype=torch.long)
    examples = Examples(("one",), tokens, tokens, torch.ones_like(tokens, dtype=torch.bool))
    sites = {
        f"blocks.{n}.{name}": (f"blocks.{n}", side) for n in range(2) for name, side in (("resid_pre", "input"), ("mlp_out", "output"))
    }
    return HookedSubject("linear", Linear(11, 6, 5), sites, examples)  # type: ignore[arg-type]


@pytest.mark.parametrize("ig_steps", [0, 3])
@pytest.mark.parametrize(("direction", "ablation"), [("denoise", "resample"), ("noise", "resample"), ("noise", "zero"), ("noise", "mean")])
@pytest.mark.parametrize("component", ["resid_pre", "mlp_out"])
def test_attribution_equals_activation_patching_in_a_linear_network(linear, component, direction, ablation, ig_steps):
    pairs = tokenise(random_pairs(11, (6, 6, 6)), linear)
    where = places(linear, component)
    exact, found = (
        Patcher(linear, pairs, where, LOGIT_DIFF, direction, ablation=ablation),
        slopes(linear, pairs, where, LOGIT_DIFF, direction, ig_steps=ig_steps, ablation=ablation, batch_size=2),
    )
    effects = found.effects()
    assert found.m_base == pytest.approx(exact.m_base, abs=1e-6)
    assert found.m_source == pytest.approx(exact.m_source, abs=1e-6)
    for layer in where.sites:
        patches = [Patch(row, (Edit(layer, column),)) for row in range(3) for column in range(6)]
        changes = exact.metrics(patches) - np.repeat(exact.m_base, 6)
        assert np.ptp(changes) > 0.05
        assert effects[layer][:, :, 0].ravel() == pytest.approx(changes, abs=2e-6)


@pytest.mark.parametrize("ig_steps", [0, 3])
@pytest.mark.parametrize("ablation", ["resample", "zero", "mean"])
def test_attribution_of_latents_equals_their_patches_in_a_linear_network(linear, ablation, ig_steps):
    pairs = tokenise(random_pairs(11, (6, 6, 6)), linear)
    sae = random_sae(activation="relu-l1", d_in=5, d_sae=12, dtype=torch.float32, site="blocks.1.resid_pre")
    where = place_of(linear, sae.config.site, "sae_latent")
    exact = LatentPatcher(sae, linear, pairs, where, LOGIT_DIFF, "noise", ablation=ablation)
    found = latent_slopes(sae, linear, pairs, where, LOGIT_DIFF, "noise", ablation=ablation, ig_steps=ig_steps, batch_size=2)
    latents = exact.steps.latents.tolist()
    assert found.steps.latents.tolist() == latents
    patches = [Patch(row, (Edit(1, column, latent),)) for row in range(3) for column in range(6) for latent in latents]
    changes = exact.metrics(patches) - np.repeat(exact.m_base, 6 * len(latents))
    assert np.ptp(changes) > 0.05
    assert found.effects()[1].ravel() == pytest.approx(changes, abs=2e-6)


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("name", EVERY)
def test_slopes_are_finite_differences_of_the_whole_model_in_float64(doubles, name, component):
    subject = doubles[name]
    if (name, component) == ("gpt_neox parallel", "resid_mid"):
        return
    pairs = tokenise(random_pairs(subject.vocab, UNEQUAL), subject)
    where = places(subject, component)
    found = slopes(subject, pairs, where, LOGIT_DIFF)
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(found.steps[1].flatten(2).shape, generator=generator, dtype=torch.float64)

    def moved(amount: float) -> np.ndarray:
        outputs = subject.forward(pairs.corrupted, lambda _address, h: h + amount * direction, [where.sites[1]])
        assert outputs is not None
        logits = outputs.logits[torch.arange(3), answer_columns(pairs.corrupted)]
        return np.asarray((logits[torch.arange(3), pairs.answer] - logits[torch.arange(3), pairs.wrong]).numpy())

    # RMSNorm computes in float32 whatever it is given, so smaller differences would be rounding.
    step, tolerance = (1e-6, 1e-6) if name.startswith("gpt") else (1e-3, 1e-2)
    expected = (moved(step) - moved(-step)) / (2 * step)
    slope = (found.slopes[1].flatten(2) * direction).sum(dim=(1, 2)).numpy()
    assert slope == pytest.approx(expected, rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("name", ["logit_diff", "kl"])
def test_integrated_gradients_add_up_to_what_patching_a_whole_layer_does(tmp_path, name):
    subject = transformer(tmp_path, {**CAUSAL["llama"], "initializer_range": 0.1})
    metric = MetricRegistry().get(name)
    pairs = tokenise(random_pairs(subject.vocab, UNEQUAL), subject)
    where = places(subject, "resid_pre", [0, 2])
    found = slopes(subject, pairs, where, metric, ig_steps=16)
    exact = Patcher(subject, pairs, where, metric)
    scale = np.abs(found.m_source - found.m_base).max()
    for layer, effects in found.effects().items():
        changes = exact.metrics([Patch(row, (Edit(layer),)) for row in range(3)]) - exact.m_base
        assert found.whole[layer] == pytest.approx(changes, abs=1e-5)
        assert effects.sum(axis=(1, 2)) == pytest.approx(found.whole[layer], abs=0.02 * scale)
    assert found.whole[0] == pytest.approx(found.m_source - found.m_base, abs=1e-5)


@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_ablations_are_estimated_alike_for_every_batch_size_and_padding(subject, ablation):
    declared, where = random_pairs(subject.vocab, UNEQUAL), places(subject, "mlp_out")
    right, left = (tokenise(declared, subject, align) for align in ("start", "end"))
    whole, single = (slopes(subject, right, where, LOGIT_DIFF, "noise", ablation=ablation, batch_size=size).effects() for size in (3, 1))
    for layer in where.sites:
        assert single[layer] == pytest.approx(whole[layer], rel=1e-5, abs=1e-5)
        if ablation == "zero":  # means are over what is aligned, which differs
            padded = slopes(subject, left, where, LOGIT_DIFF, "noise", ablation=ablation).effects()
            assert padded[layer][left.shared] == pytest.approx(whole[layer][right.shared], rel=1e-5, abs=1e-5)


def test_attribution_is_the_same_every_time_and_for_every_batch_size_and_padding(subject):
    """No number depends on a random direction, and none is shrunk by the size of an activation."""
    pairs = tokenise(random_pairs(subject.vocab, UNEQUAL), subject)
    where = places(subject, "attn_head")
    whole, again, single = (slopes(subject, pairs, where, LOGIT_DIFF, batch_size=size).effects() for size in (3, 3, 1))
    for layer in where.sites:
        assert np.array_equal(whole[layer], again[layer])
        assert single[layer] == pytest.approx(whole[layer], rel=1e-5, abs=1e-5)
    alone = tokenise(random_pairs(subject.vocab, UNEQUAL)[:1], subject)
    unpadded = slopes(subject, alone, where, LOGIT_DIFF).effects()
    assert unpadded[1][0] == pytest.approx(whole[1][0, :6], rel=1e-5, abs=1e-5)


def test_two_forward_passes_and_one_backward_pass_give_every_place(subject, monkeypatch):
    passes: list[str] = []
    forward, grad = subject.forward, torch.autograd.grad
    monkeypatch.setattr(subject, "forward", lambda *args: passes.append("forward") or forward(*args))
    monkeypatch.setattr(attribution.torch.autograd, "grad", lambda *args: passes.append("backward") or grad(*args))
    where = places(subject, "mlp_neuron")
    passes.clear()
    found = slopes(subject, tokenise(random_pairs(subject.vocab, UNEQUAL), subject), where, LOGIT_DIFF)
    assert passes == ["forward", "forward", "backward"]
    assert {effects.shape for effects in found.effects().values()} == {(3, 9, 24)}


@pytest.mark.parametrize("component", ["attn_head", "mlp_neuron"])
def test_random_effects_are_repeatable_and_bounded_by_what_a_step_of_that_length_can_do(subject, component):
    found = slopes(subject, tokenise(random_pairs(subject.vocab, UNEQUAL), subject), places(subject, component), LOGIT_DIFF)
    drawn, again, other = (found.random_effects(torch.Generator().manual_seed(seed))[1] for seed in (3, 3, 4))
    assert np.array_equal(drawn, again)
    assert not np.array_equal(drawn, other)
    lengths, steepest = found.steps[1].norm(dim=3).numpy(), found.slopes[1].norm(dim=3).numpy().max(axis=2, keepdims=True)
    assert bool((np.abs(drawn) <= lengths * steepest * 1.0001).all())
    assert np.abs(drawn[0, :2]).max() == 0.0
    assert np.abs(drawn[0, 2:6]).min() > 0.0


def test_a_batch_that_does_not_fit_in_memory_is_halved(subject, monkeypatch):
    pairs = tokenise(random_pairs(subject.vocab, UNEQUAL), subject)
    where = places(subject, "resid_pre")
    expected, forward = slopes(subject, pairs, where, LOGIT_DIFF).effects(), subject.forward
    sizes: list[int] = []

    def small(batch, *args):
        sizes.append(len(batch))
        if len(batch) > 1:
            raise torch.OutOfMemoryError("no room")
        return forward(batch, *args)

    monkeypatch.setattr(subject, "forward", small)
    found = slopes(subject, pairs, where, LOGIT_DIFF).effects()
    assert sizes[:2] == [3, 1]
    assert found[1] == pytest.approx(expected[1], abs=1e-5)


def test_a_metric_without_a_gradient_is_refused_by_name(subject):
    steps = Metric("right", lambda x, _clean, answer, _wrong: (x.argmax(dim=1) == answer).float(), "whether it is right", "")
    with pytest.raises(SpecError, match="right has no gradient; a metric made of differentiable steps"):
        slopes(subject, tokenise(random_pairs(subject.vocab, UNEQUAL), subject), places(subject, "resid_pre"), steps)


def test_bfloat16_attributions_are_those_of_float32_as_far_as_it_counts(tmp_path):
    found: list[Slopes] = []
    for dtype in ("float32", "bfloat16"):
        subject = transformer(tmp_path, CAUSAL["llama"], dtype=dtype)
        pairs: Pairs = tokenise(random_pairs(subject.vocab, (7,) * 8), subject)
        found.append(slopes(subject, pairs, places(subject, "attn_out"), LOGIT_DIFF))
    wide, narrow = (each.effects()[1].ravel() for each in found)
    assert np.corrcoef(wide, narrow)[0, 1] > 0.98


def test_hooks_are_gone_afterwards(subject):
    def hooks() -> int:
        return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in subject.model.modules())

    before = hooks()
    slopes(subject, tokenise(random_pairs(subject.vocab, UNEQUAL), subject), places(subject, "resid_mid"), LOGIT_DIFF, ig_steps=1)
    assert hooks() == before
