"""The tuned lens: it starts as the logit lens, learns a known translator, never ends worse, and resumes to the same bits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from watched import ARCHITECTURES, language_model, watch, write_texts

from mlinterp.errors import EnvironmentFault, SpecError, VerificationError
from mlinterp.progress import Silent
from mlinterp.readouts.reading import readout_of, states_of
from mlinterp.readouts.tuned_lens import Translators, TunedLensFit, load, save, translated
from mlinterp.subjects.hooked import HookedSubject
from mlinterp.subjects.huggingface import HuggingFaceSubject
from mlinterp.trainer import fit

SHORT = {"steps": 60, "lr": 0.01, "validation_examples": 16, "test_examples": 16}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def gpt2(root: Path) -> HuggingFaceSubject:
    return language_model(root, ARCHITECTURES["gpt2"])


def module(subject: HuggingFaceSubject, **settings: float) -> TunedLensFit:
    chosen = {"steps": 20, "lr": 0.01, "batch_size": 4, "seed": 0, **settings}
    return TunedLensFit(subject, readout_of(subject), subject.examples("train", 50), **chosen)  # type: ignore[arg-type]


def test_it_starts_as_the_logit_lens_to_the_bit(gpt2: HuggingFaceSubject) -> None:
    readout, start = readout_of(gpt2), module(gpt2).translators
    states, logits = states_of(gpt2, gpt2.examples("test", 2).take([0, 1]), readout.sites)
    with torch.no_grad():
        for site, stream in states.items():
            assert torch.equal(translated(readout, start)(site, stream), readout.logits(stream))
        assert torch.equal(translated(readout, start)(readout.sites[-1], states[readout.sites[-1]]), logits)


def test_the_loss_is_the_mean_kl_of_all_layers_and_its_gradient_reaches_the_translators_alone(gpt2: HuggingFaceSubject) -> None:
    fresh = module(gpt2)
    batch = fresh._batch(0)
    readout = readout_of(gpt2)
    states, logits = states_of(gpt2, batch, readout.sites)
    final = logits.log_softmax(-1)
    with torch.no_grad():
        by_hand = [(final.exp() * (final - readout.logits(states[site]).log_softmax(-1))).sum(-1).mean() for site in readout.sites[:-1]]
    before = gpt2.digest()
    assert float(fresh.inner_step(0)["loss"]) == pytest.approx(float(torch.stack(by_hand).mean()), rel=1e-5)
    assert gpt2.digest() == before
    assert bool((fresh.bias != 0).any())


def test_a_layer_that_is_a_known_affine_map_away_is_translated_back(gpt2: HuggingFaceSubject) -> None:
    """h = x - b is read as x by the translator A = 0, b: the bias of the map is found again."""
    shift = torch.linspace(-1, 1, 16)
    exact = Translators(("blocks.0.resid_post",), torch.zeros(1, 16, 16), shift[None])
    stream = torch.randn(3, 16)
    torch.testing.assert_close(exact("blocks.0.resid_post", stream - shift), stream)
    scale = Translators(("blocks.0.resid_post",), torch.eye(16)[None], torch.zeros(1, 16))
    torch.testing.assert_close(scale("blocks.0.resid_post", stream / 2), stream)
    assert scale("blocks.1.resid_post", stream) is stream


def test_the_fit_beats_the_logit_lens_on_held_out_text_and_says_by_how_much(gpt2: HuggingFaceSubject, tmp_path: Path) -> None:
    result = watch("tuned_lens", gpt2, tmp_path, SHORT)
    rows = result.tables["layers"].rows
    assert [row["layer"] for row in rows] == ["embedding", "blocks.0", "blocks.1"]
    for row in rows:
        assert row["kept"]
        assert row["gain"] == pytest.approx(row["logit_lens_kl"] - row["tuned_kl"])
        assert row["gain_low"] > 0
        estimate = result.estimates[f"kl/{row['layer']}"]
        assert (estimate.null, estimate.null_value) == ("the logit lens", row["logit_lens_kl"])
    assert result.metrics["lens/n_worse"] == 0
    assert result.mode == "observational"
    plain = watch("logit_lens", gpt2, tmp_path / "plain", {"examples": {"n": 16}})
    assert [row["logit_lens_kl"] for row in rows] == pytest.approx([row["kl"] for row in plain.tables["layers"].rows[:-1]])


def test_translators_that_do_not_help_on_the_validation_split_are_put_back(gpt2: HuggingFaceSubject, tmp_path: Path) -> None:
    result = watch("tuned_lens", gpt2, tmp_path, {**SHORT, "steps": 3, "lr": 10.0})
    translators = load(tmp_path, gpt2, readout_of(gpt2))
    kept = [row["kept"] for row in result.tables["layers"].rows]
    assert not all(kept)
    for row, matrix, bias in zip(result.tables["layers"].rows, translators.matrix, translators.bias, strict=True):
        assert bool(matrix.any() or bias.any()) == row["kept"]
        if not row["kept"]:
            assert row["tuned_kl"] == row["logit_lens_kl"]
            assert row["gain"] == 0


def test_a_fit_that_was_stopped_goes_on_to_the_same_bits(gpt2: HuggingFaceSubject, tmp_path: Path) -> None:
    whole, first, second = module(gpt2), module(gpt2), module(gpt2)
    fit(whole, tmp_path / "whole", Silent(), chunk=5, checkpoint_every=10)

    class Stopped(Exception):
        pass

    step = first.inner_step

    def breaking(number: int) -> object:
        if number == 13:
            raise Stopped
        return step(number)

    first.inner_step = breaking  # type: ignore[assignment, method-assign]
    with pytest.raises(Stopped):
        fit(first, tmp_path / "stopped", Silent(), chunk=5, checkpoint_every=10)
    fit(second, tmp_path / "stopped", Silent(), chunk=5, checkpoint_every=10)
    assert torch.equal(whole.matrix, second.matrix)
    assert torch.equal(whole.bias, second.bias)
    assert bool(whole.matrix.any())
    with pytest.raises(VerificationError, match="belongs to another fit"):
        fit(module(gpt2, lr=0.02), tmp_path / "stopped", Silent(), chunk=5, checkpoint_every=10)


def test_a_batch_that_does_not_fit_in_memory_is_refused_with_its_size(gpt2: HuggingFaceSubject, tmp_path: Path) -> None:
    def full(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if len(args[0]) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")

    handle = gpt2.model.transformer.h[1].register_forward_pre_hook(full)
    try:
        with pytest.raises(EnvironmentFault, match="not even one batch of 4 examples fits in memory"):
            module(gpt2).inner_step(0)
        assert float(module(gpt2, batch_size=3).inner_step(0)["loss"]) > 0
    finally:
        handle.remove()


def test_the_same_seed_gives_the_same_lens_and_another_seed_another(gpt2: HuggingFaceSubject, tmp_path: Path) -> None:
    few = {**SHORT, "steps": 5}
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        watch("tuned_lens", gpt2, tmp_path / name, few, seed=seed)
    files = {name: (tmp_path / name / "tuned_lens.safetensors").read_bytes() for name in ("one", "again", "other")}
    assert files["one"] == files["again"] != files["other"]
    scores = json.loads((tmp_path / "one" / "tuned_lens.json").read_text())
    assert scores["variables"]["steps"] == 5
    assert len(scores["layers"]) == 3


def test_the_logit_lens_reads_through_a_tuned_lens_among_its_inputs(root: Path, gpt2: HuggingFaceSubject, tmp_path: Path) -> None:
    tuned = watch("tuned_lens", gpt2, tmp_path / "fit", SHORT)
    result = watch("logit_lens", gpt2, tmp_path / "read", {"examples": {"n": 16}}, {"tuned_lens": tmp_path / "fit"})
    for row, expected in zip(result.tables["layers"].rows, tuned.tables["layers"].rows, strict=False):
        assert row["kl"] == pytest.approx(expected["tuned_kl"])
    other = language_model(root, {**ARCHITECTURES["gpt2"], "n_layer": 2})
    with pytest.raises(VerificationError, match="belongs to another model than 'toy'"):
        watch("logit_lens", other, tmp_path / "wrong", {}, {"tuned_lens": tmp_path / "fit"})


def test_a_subject_that_holds_nothing_out_is_refused(gpt2: HuggingFaceSubject, tmp_path: Path) -> None:
    examples = gpt2.examples("train", 6)
    points = {name: gpt2.points[name] for name in gpt2.points if name.endswith(("resid_pre", "resid_post"))}
    alike = HookedSubject(
        "alike",
        gpt2.model,
        {**points, "unembed": ("lm_head", "output"), "final_norm": ("transformer.ln_f", "output")},
        examples,
        call=lambda batch: gpt2.model(input_ids=batch.inputs).logits,
    )
    with pytest.raises(SpecError, match=r"'alike' holds out nothing to judge a fit by: '.*' is in its train split and in another"):
        watch("tuned_lens", alike, tmp_path, SHORT)


def test_bfloat16_models_are_translated_in_float32(root: Path, tmp_path: Path) -> None:
    subject = language_model(root, ARCHITECTURES["llama"], "bfloat16")
    result = watch("tuned_lens", subject, tmp_path, {**SHORT, "steps": 20})
    assert result.metrics["lens/n_worse"] == 0
    assert np.isfinite(list(result.metrics.values())).all()
    translators = load(tmp_path, subject, readout_of(subject))
    assert translators.matrix.dtype == torch.float32
    assert save(translators, subject, tmp_path / "again") == ["tuned_lens.safetensors", "tuned_lens.safetensors.sha256"]
