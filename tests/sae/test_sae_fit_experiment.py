import json
import math
import subprocess
import sys

import jsonschema
import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tiny import TinySubject

from mlinterp.errors import ExperimentError, SpecError, VerificationError
from mlinterp.experiments.base import Context, ResolvedInput
from mlinterp.experiments.sae_fit import EXPERIMENT, SAEFitVariables
from mlinterp.io.manifest import content_digest
from mlinterp.io.schemas import schema
from mlinterp.progress import Silent
from mlinterp.sae.files.checkpoint import load_sae
from mlinterp.sae.selection import choose_rows, split_by_example
from mlinterp.spec import Spec
from mlinterp.tracing.capture import capture
from mlinterp.tracing.dataset import TraceDataset
from mlinterp.tracing.selection import select_addresses

SMALL = {"site": "z_b", "activation": "topk", "k": 2, "d_sae": 12, "steps": 150, "batch_size": 32, "lr": 1e-2, "checkpoint_every": 40}


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    folder, subject = tmp_path_factory.mktemp("trace"), TinySubject()
    capture(
        subject,
        subject.examples("test", 40),
        select_addresses(subject, ["z_a", "z_b"], "latent"),
        folder,
        Silent(),
        header={"run_id": "r", "seed": 0},
        batch_size=8,
        predictions=True,
        on_nonfinite="error",
        shard_bytes=2**30,
        inline=False,
    )
    return folder


def run(traced, workdir, variables=None, *, seed=0, subject="tiny"):
    spec = Spec(type="sae_fit", subject=subject, variables={**SMALL, **(variables or {})}, seed=seed)
    inputs = {"trace": ResolvedInput("@trace", traced, "d")}
    return EXPERIMENT.run(Context(spec, SAEFitVariables.model_validate(spec.variables), workdir, TinySubject, inputs))


@pytest.fixture(scope="module")
def done(traced, tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    return run(traced, folder), folder


def test_everything_promised_is_written_and_reads_back(done, traced):
    result, folder = done
    assert {"sae.pt", "sae.safetensors", "cfg.json", "sae_metrics.json"} <= set(result.files)
    assert all((folder / name).is_file() for name in result.files)
    sae = load_sae(folder)
    assert (sae.config.site, sae.config.d_in, sae.config.d_sae, sae.config.seed) == ("z_b", 4, 12, 0)
    assert torch.load(folder / "sae.pt", weights_only=True)["trace_sha256"] == TraceDataset.load(traced).sha256


def test_sae_metrics_follow_the_published_schema_with_finite_numbers(done):
    result, folder = done
    text = (folder / "sae_metrics.json").read_text()
    payload = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in the file"))
    jsonschema.validate(payload, schema("sae_metrics"))
    assert payload["fve"]["val"] == result.metrics["sae/explained_variance"]
    assert payload["controls"]["pca_fve_at_k"] == result.metrics["control/pca_fve"]
    assert payload["recon_substitution"]["kl"] == result.metrics["substitution/kl_div_with_sae"]
    assert [feature["id"] for feature in payload["features"]] == list(range(12))
    assert payload["alive"] == sum(feature["firing_rate"] > 0 for feature in payload["features"])
    assert payload["n_train"] + payload["n_val"] == 40 * 5 * 2


def test_metrics_are_those_of_held_out_examples_written_out(done, traced):
    result, folder = done
    trace, sae = TraceDataset.load(traced), load_sae(folder).double()
    rows = choose_rows(trace.meta, site="z_b")
    held_out = split_by_example(rows.meta, 0.2, 0).validation
    h = trace.rows(held_out).astype(np.float64)
    acts = sae.encode(torch.from_numpy(h))
    error = ((h - sae.decode(acts).numpy()) ** 2).sum()
    assert result.metrics["sae/fvu"] == pytest.approx(error / ((h - h.mean(axis=0)) ** 2).sum(), rel=1e-9)
    assert result.metrics["sae/l0"] == pytest.approx(float((acts != 0).sum(dim=1).double().mean()))
    assert result.aggregates.n_samples == len(held_out)
    latents = result.tables["latents"].rows
    np.testing.assert_allclose([row["density"] for row in latents], (acts != 0).double().mean(dim=0))
    best = held_out[int(acts[:, 3].argmax())]
    place = trace.meta.iloc[best]
    if float(acts[:, 3].max()) > 0:
        assert f"«{place['token_in']}»" in latents[3]["context_1"]


def test_names_are_those_that_runs_are_compared_by(done):
    result, _ = done
    assert {
        "sae/fvu",
        "sae/explained_variance",
        "sae/mse",
        "sae/l0",
        "sae/cossim",
        "sae/l2_ratio",
        "sae/frac_dead",
        "control/pca_fve",
        "control/random_dictionary_fve",
        "substitution/ce_loss_clean",
        "substitution/ce_loss_with_sae",
        "substitution/ce_loss_ablated",
        "substitution/ce_loss_recovered",
        "substitution/kl_div_with_sae",
    } <= set(result.metrics)
    assert all(math.isfinite(value) for value in result.metrics.values())
    assert {figure.name for figure in result.figures} == {"controls", "density"}
    for figure in result.figures:
        assert {figure.x, *figure.y} <= set(result.tables[figure.table].columns)
    assert result.mode == "observational"
    assert result.tables["substitution"].description.startswith("Interventional")
    assert result.model_file in result.files


def test_the_same_spec_twice_gives_the_same_files(done, traced, tmp_path):
    _, folder = done
    again = run(traced, tmp_path)
    for name in again.files:
        if not name.endswith(".sha256"):
            assert content_digest(folder / name) == content_digest(tmp_path / name), name


def test_a_fit_killed_on_the_way_ends_with_the_same_file(done, traced, tmp_path, monkeypatch):
    from mlinterp.sae.fitting.module import SAEModule

    original = SAEModule.inner_step

    def dies(self, step):
        if step == 97:
            raise RuntimeError("killed")
        return original(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(SAEModule, "inner_step", dies)
        with pytest.raises(RuntimeError, match="killed"):
            run(traced, tmp_path)
    assert list((tmp_path / "checkpoints").glob("*.safetensors"))
    run(traced, tmp_path)
    assert (tmp_path / "sae.pt").read_bytes() == (done[1] / "sae.pt").read_bytes()


def test_without_a_subject_behaviour_is_not_measured_and_tokens_are_numbers(traced, tmp_path):
    result = run(traced, tmp_path, {"n_top_contexts": 1}, subject=None)
    assert not any(name.startswith("substitution/") for name in result.metrics)
    assert "no subject is named" in result.diagnostics.warnings[0]
    assert json.loads((tmp_path / "sae_metrics.json").read_text())["recon_substitution"] is None


def test_substitution_and_controls_can_be_left_out(traced, tmp_path):
    result = run(traced, tmp_path, {"evaluate": {"substitution": False}, "controls": False, "n_top_contexts": 0})
    assert set(result.tables) == {"estimates", "latents", "reconstruction"}
    assert not result.diagnostics.warnings
    jsonschema.validate(json.loads((tmp_path / "sae_metrics.json").read_text()), schema("sae_metrics"))


def test_further_control_ks_are_scored(traced, tmp_path):
    result = run(traced, tmp_path, {"control_ks": [4], "evaluate": {"substitution": False}})
    scores = {row["dictionary"]: row["explained_variance"] for row in result.tables["controls"].rows}
    assert scores["PCA 4"] == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize(("activation", "own"), [("relu-l1", {"l1": 0.5}), ("batchtopk", {"k": 2}), ("jumprelu", {"target_l0": 2.0})])
def test_every_architecture_runs_through(traced, tmp_path, activation, own):
    result = run(traced, tmp_path, {"activation": activation, "k": None, **own, "steps": 40, "expansion": 2, "d_sae": None})
    assert load_sae(tmp_path).config.activation == activation
    assert load_sae(tmp_path).config.d_sae == 8
    assert 0 <= result.metrics["sae/l0"] <= 8


def test_a_trace_of_other_weights_is_refused(traced, tmp_path):
    spec = Spec(type="sae_fit", subject="tiny", variables=SMALL)
    inputs = {"trace": ResolvedInput("@trace", traced, "d")}
    context = Context(spec, SAEFitVariables.model_validate(SMALL), tmp_path, lambda: TinySubject(seed=1), inputs)
    with pytest.raises(VerificationError, match="other weights than subject 'tiny'"):
        EXPERIMENT.run(context)


def test_what_a_spec_gets_wrong_is_named():
    for wrong, message in (
        ({"d_sae": 8, "expansion": 2}, "give one"),
        ({"steps": 8, "epochs": 2.0}, "give one"),
        ({"l1": 0.1}, "topk has no 'l1'"),
        ({"k": 9, "d_sae": 8}, "k is 9, above d_sae 8"),
        ({"control_ks": [0]}, "must be positive"),
        ({"activation": "tpok"}, "Input should be"),
        ({"val_fraction": 1.0}, "less than 1"),
        ({"layers": 3}, "Extra inputs"),
    ):
        with pytest.raises(ValidationError, match=message):
            SAEFitVariables.model_validate(wrong)


def test_defaults_are_those_that_the_descriptions_name():
    variables = SAEFitVariables.model_validate({})
    config = variables.sae_config(64, "z", 0)
    assert (config.d_sae, config.k) == (512, 32)
    settings = variables.fit_config(2**14, 1000)
    assert (settings.steps, settings.warmup_steps, settings.lr) == (4000, 200, 2e-4)
    assert SAEFitVariables.model_validate({"epochs": 2.5}).fit_config(512, 10_000).steps == 25
    with pytest.raises(SpecError, match="k is 32, this SAE has 16 latents"):
        variables.sae_config(2, "z", 0)


def test_every_variable_says_what_it_is():
    assert all(field.description for field in SAEFitVariables.model_fields.values())
    Spec.model_validate({"type": EXPERIMENT.type, **EXPERIMENT.example})
    SAEFitVariables.model_validate(EXPERIMENT.example["variables"])


def test_one_example_is_too_few(tmp_path):
    subject = TinySubject()
    capture(
        subject,
        subject.examples("test", 1),
        select_addresses(subject, ["z_b"], "latent"),
        tmp_path,
        Silent(),
        header={},
        batch_size=8,
        predictions=True,
        on_nonfinite="error",
        shard_bytes=2**30,
        inline=False,
    )
    with pytest.raises(ExperimentError, match="one example only"):
        run(tmp_path, tmp_path / "work")


class WithoutValidation(TinySubject):
    """One whose data leave nothing for validation."""

    def examples(self, split, n, seed=0, **selection):
        return super().examples(split, 0 if split == "validation" else n, seed, **selection)


def test_a_split_without_examples_is_refused_before_anything_is_fitted(traced, tmp_path):
    spec = Spec(type="sae_fit", subject="tiny", variables={**SMALL, "steps": 10**6})
    inputs = {"trace": ResolvedInput("@trace", traced, "d")}
    context = Context(spec, SAEFitVariables.model_validate(spec.variables), tmp_path, WithoutValidation, inputs)
    says = r"variables\.evaluate\.split: 'tiny' has no validation examples; a split that has some, or evaluate\.substitution: false"
    with pytest.raises(SpecError, match=says):
        EXPERIMENT.run(context)


def test_the_catalog_can_be_listed_without_torch():
    code = "import sys, mlinterp.experiments.sae_fit; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
