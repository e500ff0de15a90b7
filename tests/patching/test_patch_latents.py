"""SAE latents that are patched, against their definition, closed forms and a plain loop of hooks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from prompts import BERT, CAUSAL, random_pairs, transformer
from sae_kinds import ACTIVATIONS, random_sae
from torch import Tensor, nn

from mlinterp.patching.attribution_latents import latent_slopes
from mlinterp.patching.latents import LatentPatcher
from mlinterp.patching.metrics import MetricRegistry
from mlinterp.patching.patcher import Edit, Patch, Patcher
from mlinterp.patching.places import place_of
from mlinterp.sae.config import SAEConfig
from mlinterp.sae.kinds import build
from mlinterp.sae.model import SAE
from mlinterp.subjects.base import IGNORED, Address, Batch, Examples
from mlinterp.subjects.hooked import HookedSubject
from mlinterp.subjects.huggingface import HuggingFaceSubject
from mlinterp.subjects.pairs import Pairs, tokenise

LOGIT_DIFF = MetricRegistry().get("logit_diff")
UNEQUAL = (6, 9, 7)
SITES = ["blocks.1.resid_pre", "blocks.1.resid_post", "blocks.1.mlp_out", "blocks.0.attn_z"]


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, HuggingFaceSubject]:
    root = tmp_path_factory.mktemp("project")
    return {name: transformer(root, fields) for name, fields in {"gpt2": CAUSAL["gpt2"], "llama": CAUSAL["llama"], "bert": BERT}.items()}


@pytest.fixture(scope="module")
def subject(subjects: dict[str, HuggingFaceSubject]) -> HuggingFaceSubject:
    return subjects["gpt2"]


def some_sae(site: str = SITES[0], activation: str = "topk", d_in: int = 16, **changes: Any) -> SAE:
    """A random SAE with an input scale, so that latents are not in the model's units."""
    return random_sae(activation=activation, d_in=d_in, d_sae=40, dtype=torch.float32, site=site, **changes)


def patcher_on(subject: HookedSubject, sae: SAE, pairs: Pairs | None = None, **options: Any) -> LatentPatcher:
    found = pairs or tokenise(random_pairs(subject.vocab, UNEQUAL), subject)
    return LatentPatcher(sae, subject, found, place_of(subject, sae.config.site, "sae_latent"), LOGIT_DIFF, **options)


def by_hand(patcher: LatentPatcher, sae: SAE, patch: Patch, ablation: str = "resample") -> float:
    """The definition: one whole forward pass of one unpadded prompt, in which the SAE reads, a latent is set, and its error is put back."""
    subject, pairs, row = patcher.subject, patcher.pairs, patch.pair
    base, source = (pairs.clean, pairs.corrupted) if patcher.direction == "noise" else (pairs.corrupted, pairs.clean)
    site = sae.config.site

    def run(examples: Examples, at: int, tap: Any) -> Tensor:
        tokens = examples.inputs[at][examples.mask[at]][None]
        outputs = subject.forward(Batch(("one",), tokens, tokens, torch.ones_like(tokens, dtype=torch.bool)), tap, [site])
        assert outputs is not None
        return outputs.logits[:, -1].float()

    def codes(examples: Examples, at: int) -> Tensor:
        """What the latents say of one prompt, at the columns of the pairs' batches; NaN where it has none."""
        found = torch.full((examples.mask.shape[1], sae.config.d_sae), torch.nan)

        def keep(_address: Address, h: Tensor) -> Tensor:
            found[examples.mask[at]] = sae.encode(h[0])
            return h

        run(examples, at, keep)
        return found

    others = torch.stack([codes(source, at) for at in range(len(pairs))])
    there = {"resample": others[row], "zero": torch.zeros_like(others[row]), "mean": others.nanmean(dim=0)}[ablation]

    def put(_address: Address, h: Tensor) -> Tensor:
        acts = sae.encode(h[0])
        error, changed, first = h[0] - sae.decode(acts), acts.clone(), int(base.mask[row].int().argmax())
        for _, column, unit in patch.edits:
            for at in [column] if column is not None else pairs.shared[row].nonzero()[:, 0].tolist():
                units = slice(None) if unit is None else unit
                changed[at - first, units] = there[at, units]
        return (sae.decode(changed) + error)[None].to(h.dtype)

    with torch.no_grad():
        logits = run(base, row, put)
        return float(patcher.metric.measure(logits, logits, pairs.answer[[row]], pairs.wrong[[row]])[0])


def patches_of(patcher: LatentPatcher, every: int = 7) -> list[Patch]:
    """Some latents at all positions and at single ones, some together, and all at once."""
    latents, layer = patcher.steps.latents.tolist()[::every], next(iter(patcher.places.sites))
    found = [Patch(row, (Edit(layer, column, latent),)) for row in range(3) for latent in latents for column in (None, 4)]
    found += [Patch(row, tuple(Edit(layer, None, latent) for latent in latents[:3])) for row in range(3)]
    return [*found, *(Patch(row, (Edit(layer),)) for row in range(3))]


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_patches_equal_a_plain_loop_of_hooks_that_encode_and_decode(subjects, name, site):
    if name == "bert" and site == "blocks.0.attn_z":
        return
    sae = some_sae(site)
    patcher = patcher_on(subjects[name], sae)
    patches = patches_of(patcher)
    found = patcher.metrics(patches)
    assert patcher.replayed == (name != "bert")
    assert found == pytest.approx([by_hand(patcher, sae, patch) for patch in patches], abs=1e-5, rel=1e-5)
    assert np.ptp(found - patcher.m_base[[patch.pair for patch in patches]]) > 1e-3


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_architecture_is_patched_in_the_model_s_own_units(subject, activation):
    sae = some_sae(activation=activation)
    patcher = patcher_on(subject, sae)
    assert float(sae.scale) != 1.0
    patches = patches_of(patcher, every=19)
    assert patcher.metrics(patches) == pytest.approx([by_hand(patcher, sae, patch) for patch in patches], abs=1e-5, rel=1e-5)


@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_zero_and_mean_stand_in_the_place_of_a_latent_s_activation(subject, ablation):
    sae = some_sae()
    patcher = patcher_on(subject, sae, direction="noise", ablation=ablation)
    patches = patches_of(patcher)
    expected = [by_hand(patcher, sae, patch, ablation) for patch in patches]
    assert patcher.metrics(patches) == pytest.approx(expected, abs=1e-5, rel=1e-5)


def test_a_latent_that_says_the_same_in_both_runs_changes_exactly_nothing_and_is_not_run(subject):
    patcher = patcher_on(subject, some_sae())
    still = [(row, latent) for row in range(3) for latent in range(40) if not moves(patcher, row, latent)]
    forward = subject.model.forward
    subject.model.forward = None
    try:
        found = patcher.metrics([Patch(row, (Edit(1, None, latent),)) for row, latent in still])
    finally:
        subject.model.forward = forward
    assert len(still) > 5
    assert np.array_equal(found, patcher.m_base[[row for row, _ in still]])


def moves(patcher: LatentPatcher, row: int, latent: int) -> bool:
    at = (patcher.steps.latents == latent).nonzero()[:, 0].tolist()
    return bool(at) and bool(patcher.steps.amounts[row, :, at[0]].any())


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_a_latent_s_own_activation_in_its_place_changes_exactly_nothing(subjects, name):
    patcher = patcher_on(subjects[name], some_sae())
    patcher.source[1] = patcher.base[1].clone()
    patches = patches_of(patcher)
    assert np.array_equal(patcher.metrics(patches), patcher.m_base[[patch.pair for patch in patches]])


def test_zero_ablation_of_a_latent_that_is_not_active_changes_exactly_nothing(subject):
    patcher = patcher_on(subject, some_sae(), direction="noise", ablation="zero", latents=range(40))
    silent = [(row, latent) for row in range(3) for latent in range(40) if not bool(patcher.steps.base[row, :, latent].any())]
    found = patcher.metrics([Patch(row, (Edit(1, None, latent),)) for row, latent in silent])
    assert silent
    assert np.array_equal(found, patcher.m_base[[row for row, _ in silent]])


class Readout(nn.Module):
    """Position by position, the logits are a linear readout of an embedding."""

    def __init__(self, embed: Tensor, readout: Tensor) -> None:
        super().__init__()
        self.embed, self.stream = nn.Embedding.from_pretrained(embed), nn.Identity()
        self.head = nn.Linear(*readout.T.shape, bias=False)
        self.head.weight.data = readout.clone()

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.as_tensor(self.head(self.stream(self.embed(tokens))))


def hand_made() -> tuple[HookedSubject, SAE, Tensor, Tensor]:
    """A readout whose stream has four features along an orthonormal dictionary (and a fifth direction that the SAE does not know)."""
    basis = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(0)))[0]
    acts = torch.tensor([[1.0, 0.0, 2.0, 0.0], [0.0, 3.0, 2.0, 0.0], [0.5, 0.0, 0.0, 0.0]])
    weights = torch.tensor([[0.25, -0.5, 0.125, 1.0], [0.0, 0.0, 0.0, 0.0]])
    embed = acts @ basis[:4] + 0.7 * basis[4]
    readout = weights @ basis[:4] + torch.tensor([[1.0], [3.0]]) * basis[4]
    tokens = torch.zeros(1, 2, dtype=torch.long)
    examples = Examples(("one",), tokens, torch.full_like(tokens, IGNORED), torch.ones_like(tokens, dtype=torch.bool))
    subject = HookedSubject("readout", Readout(embed, readout), {"blocks.0.resid_pre": ("stream", "output")}, examples)
    sae = build(SAEConfig(d_in=5, d_sae=4, activation="relu-l1", site="blocks.0.resid_pre")).requires_grad_(False)
    sae.W_dec.copy_(basis[:4])
    sae.W_enc.copy_(basis[:4].T)
    sae.scale.fill_(2.5)
    subject.model.double()
    return subject, sae.double(), acts, weights


@pytest.mark.parametrize(("ablation", "put"), [("resample", [0.0, 3.0, 2.0, 0.0]), ("zero", [0.0] * 4), ("mean", [0.25, 1.5, 1.0, 0.0])])
def test_effects_in_a_linear_readout_are_those_of_its_closed_form(ablation, put):
    """Latent j of weight w_j that goes from a_j to b_j moves the logit difference by w_j (b_j - a_j)."""
    subject, sae, acts, weights = hand_made()
    declared = [
        {"clean": [1, 0], "corrupted": [0, 1], "answer": 0, "wrong": 1},
        {"clean": [1, 0], "corrupted": [0, 2], "answer": 0, "wrong": 1},
    ]
    pairs = tokenise([random_pairs(3, (5,))[0].model_copy(update=each) for each in declared], subject)
    patcher = patcher_on(subject, sae, pairs, direction="noise", ablation=ablation, latents=range(4))
    expected = (torch.tensor(put) - acts[0]) * weights[0]
    found = patcher.metrics([Patch(0, (Edit(0, 1, latent),)) for latent in range(4)]) - patcher.m_base[0]
    assert found == pytest.approx(expected.numpy(), abs=1e-6)
    together = patcher.metrics([Patch(0, (Edit(0, 1, 0), Edit(0, 1, 2)))]) - patcher.m_base[0]
    assert together == pytest.approx([float(expected[0] + expected[2])], abs=1e-6)
    estimated = latent_slopes(sae, subject, pairs, patcher.places, LOGIT_DIFF, "noise", ablation=ablation, latents=range(4)).effects()[0]
    assert estimated[0, 1] == pytest.approx(found, abs=1e-6)


@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_other_components_take_zero_or_the_mean_over_the_other_prompts(subject, ablation):
    pairs = tokenise(random_pairs(subject.vocab, UNEQUAL), subject)
    where = place_of(subject, "blocks.1.mlp_out", "mlp_out")
    patcher, plain = (Patcher(subject, pairs, where, LOGIT_DIFF, "noise", ablation=each) for each in (ablation, "resample"))
    recorded: dict[str, Tensor] = {}
    subject.forward(pairs.corrupted, lambda address, h: recorded.setdefault(address.site, h.clone()), ["blocks.1.mlp_out"])
    other = recorded["blocks.1.mlp_out"]
    for column in range(9):
        has = pairs.corrupted.mask[:, column]
        expected = other[has, column].mean(dim=0) if ablation == "mean" else torch.zeros(16)
        assert torch.allclose(patcher.source[1][0, column], expected, atol=1e-6)
    assert not torch.equal(patcher.source[1], plain.source[1])
    assert np.abs(patcher.metrics([Patch(row, (Edit(1, 1),)) for row in range(3)]) - patcher.m_base).min() > 1e-4, (
        "before the prompts differ"
    )


def test_padding_on_either_side_and_the_size_of_batches_change_no_number(subject):
    declared, sae = random_pairs(subject.vocab, UNEQUAL), some_sae(activation="relu-l1")
    found = []
    for align, size in ((None, 256), ("end", 256), (None, 1)):
        patcher = patcher_on(subject, sae, tokenise(declared, subject, align), batch_size=size, latents=range(40))
        found.append(patcher.metrics([Patch(row, (Edit(1, None, latent),)) for row in range(3) for latent in range(40)]))
    assert found[1] == pytest.approx(found[0], abs=1e-5)
    assert found[2] == pytest.approx(found[0], abs=1e-5)


def test_random_directions_take_steps_of_the_same_length_and_are_the_same_again(subject):
    patcher = patcher_on(subject, some_sae())
    one, again, other = (patcher.moved(torch.Generator().manual_seed(seed)).activations for seed in (0, 0, 1))
    assert torch.equal(one.directions, again.directions)
    assert not torch.allclose(one.directions, other.directions)
    assert torch.allclose(one.directions.norm(dim=1), patcher.steps.directions.norm(dim=1), rtol=1e-5)
    patches = patches_of(patcher)
    assert np.abs(patcher.metrics(patches, one) - patcher.metrics(patches)).max() > 1e-3


@pytest.mark.parametrize("ablation", ["resample", "zero", "mean"])
def test_latents_are_estimated_by_the_slope_along_their_directions(tmp_path, ablation):
    """In float64, the estimate is the derivative of the exact effect: steps a thousandth as long have that effect to a millionth."""
    subject = transformer(tmp_path, CAUSAL["gpt2"])
    subject.model.double()
    sae = some_sae(activation="relu-l1").double()
    pairs = tokenise(random_pairs(subject.vocab, UNEQUAL), subject)
    where = place_of(subject, "blocks.1.resid_pre", "sae_latent")
    found = latent_slopes(sae, subject, pairs, where, LOGIT_DIFF, "noise", ablation=ablation)
    patcher = patcher_on(subject, sae, pairs, direction="noise", ablation=ablation)
    assert torch.equal(found.steps.latents, patcher.steps.latents)
    patcher.source[1] = patcher.base[1] + 1e-3 * (patcher.source[1] - patcher.base[1])
    latents = patcher.steps.latents.tolist()
    patches = [Patch(row, (Edit(1, 4, latent),)) for row in range(3) for latent in latents]
    slope = 1e3 * (patcher.metrics(patches).reshape(3, -1) - patcher.m_base[:, None])
    assert slope == pytest.approx(found.effects()[1][:, 4], abs=5e-3)
    assert np.abs(found.effects()[1]).max() > 0.05


def test_integrated_gradients_of_latents_add_up_to_what_all_of_them_do_together(subject):
    sae = some_sae(activation="relu-l1")
    pairs = tokenise(random_pairs(subject.vocab, UNEQUAL), subject)
    patcher = patcher_on(subject, sae, pairs)
    found = latent_slopes(sae, subject, pairs, patcher.places, LOGIT_DIFF, ig_steps=24)
    together = patcher.metrics([Patch(row, (Edit(1),)) for row in range(3)]) - patcher.m_base
    assert found.whole[1] == pytest.approx(together, abs=1e-5)
    assert found.effects()[1].sum(axis=(1, 2)) == pytest.approx(together, abs=0.03)


def test_bfloat16_models_are_patched_with_steps_summed_in_float32(tmp_path):
    subject = transformer(tmp_path, CAUSAL["llama"], dtype="bfloat16")
    sae = some_sae(activation="relu-l1")
    patcher = patcher_on(subject, sae)
    assert patcher.replayed
    assert patcher.steps.base.dtype == torch.float32
    patches = patches_of(patcher)
    assert patcher.metrics(patches) == pytest.approx([by_hand(patcher, sae, patch) for patch in patches], abs=5e-2)
