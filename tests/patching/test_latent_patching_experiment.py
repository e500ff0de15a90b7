"""`sae_latent` and `ablation` in the experiments: what a spec gives and gets, closed forms, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from prompts import CAUSAL, random_pairs, transformer
from sae_kinds import random_sae
from torch import Tensor, nn

from mlinterp.errors import ExperimentError, SpecError
from mlinterp.experiments.base import Context, ResolvedInput
from mlinterp.experiments.catalog import find, typed_variables
from mlinterp.patching.metrics import BUILT_IN
from mlinterp.reports.plots import draw_all
from mlinterp.result import ExperimentResult
from mlinterp.sae.files.checkpoint import save_sae
from mlinterp.sae.model import SAE
from mlinterp.spec import Spec
from mlinterp.subjects.base import IGNORED, Examples, Subject
from mlinterp.subjects.hooked import HookedSubject
from mlinterp.subjects.huggingface import HuggingFaceSubject

SITE = "blocks.1.resid_pre"


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> HuggingFaceSubject:
    return transformer(tmp_path_factory.mktemp("project"), CAUSAL["gpt2"])


@pytest.fixture(scope="module")
def pairs(subject: HuggingFaceSubject) -> list[dict[str, Any]]:
    return [pair.model_dump(exclude_none=True) for pair in random_pairs(subject.vocab, (8,) * 6)]


@pytest.fixture
def sae(tmp_path: Path) -> Path:
    return saved(tmp_path)


def saved(folder: Path, made: SAE | None = None, **fields: Any) -> Path:
    save_sae(made or random_sae(d_in=16, d_sae=40, dtype=torch.float32, **{"site": SITE, **fields}), folder)
    return folder


def run(subject: Subject, sae: Path | None, kind: str = "activation_patching", **variables: Any) -> ExperimentResult:
    """Check and run the experiment as a spec would."""
    fields = {"n_bootstrap": 200, "metric": "l2", **({} if sae is None else {"component": "sae_latent"}), **variables}
    spec = Spec.model_validate({"type": kind, "subject": "toy", "variables": fields})
    typed, experiment = typed_variables(spec), find(kind)
    assert experiment.check is not None
    inputs = {} if sae is None else {"sae": ResolvedInput("@sae", sae, "0" * 64)}
    experiment.check(spec, typed, inputs)
    return experiment.run(Context(spec, typed, Path(), lambda: subject, inputs))


def test_latents_that_move_have_a_row_beside_nulls_neighbours_and_the_untrained_model(subject, pairs, sae):
    result = run(subject, sae, pairs=pairs)
    rows = result.tables["patches"].rows
    assert result.metrics["latents/asked"] == 40
    assert result.metrics["latents/patched"] == len(rows) > 10
    silent = 40 - len(rows)
    assert any(f"{silent} of 40 latents move at no patched position" in text for text in result.diagnostics.warnings)
    for row in rows:
        assert (row["layer"], row["place"]) == (1, f"L1.u{row['latent']}")
        assert row["adjusted"] == pytest.approx(row["effect"] - row["null"])
        assert row["adjusted_low"] <= row["adjusted"] <= row["adjusted_high"]
        assert isinstance(row["untrained"], float)
    mean = np.mean([row["effect"] for row in rows])
    assert np.mean([row["others"] for row in rows]) == pytest.approx(mean, abs=0.3 * np.ptp([row["effect"] for row in rows]))
    joint = {row["places"]: row for row in result.tables["joint"].rows}
    assert joint.keys() == {"top5", "all"}
    assert joint["all"]["n_places"] == len(rows)
    assert f"effect/{rows[0]['place']}" in result.metrics
    described = result.tables["patches"].description
    assert described is not None
    assert "the clean run's activation put in the place of a latent's activation in the corrupted run, the SAE's error kept" in described
    assert [figure.name for figure in result.figures] == ["largest"]
    assert draw_all(result)["largest"].startswith(b"\x89PNG")


def test_latents_by_position_are_mapped_with_tokens_on_the_axis(subject, pairs, sae):
    result = run(subject, sae, pairs=pairs[:2], positions="each", latents=list(range(20)), untrained=False)
    cells, shown = result.tables["patches"].rows, result.tables["latents"].rows
    assert result.metrics["latents/asked"] == 20
    assert {row["latent"] for row in cells} <= set(range(20))
    assert len({row["position"] for row in shown}) == 6, "positions 2 to 7: the prompts differ at 2"
    assert {row["adjusted"] for row in shown} > {0.0}
    (figure,) = [figure for figure in result.figures if figure.kind == "heatmap"]
    assert (figure.x, figure.series, figure.x_label) == ("position", "latent", "position and token")
    assert all(data.startswith(b"\x89PNG") for data in draw_all(result).values())


@pytest.mark.parametrize("metric", [metric.name for metric in BUILT_IN])
def test_removing_a_latent_that_matters_has_an_effect_that_no_default_metric_hides(subject, pairs, sae, metric):
    """Every metric compares the damaged run with the clean one, never a run with itself."""
    result = run(subject, sae, pairs=pairs, metric=metric, direction="noise", ablation="zero", untrained=False)
    effects = [abs(row["effect"]) for row in result.tables["patches"].rows]
    assert max(effects) > 0.01
    assert all(np.isfinite(effects))


@pytest.mark.parametrize("ablation", ["zero", "mean"])
@pytest.mark.parametrize("kind", ["activation_patching", "attribution_patching"])
def test_an_ablation_is_named_wherever_its_numbers_are_read(subject, pairs, sae, ablation, kind):
    result = run(subject, sae, kind, pairs=pairs, metric="logit_diff", direction="noise", ablation=ablation, untrained=False)
    put = {"zero": "zero", "mean": "the mean activation of the corrupted runs at its position"}[ablation]
    assert any(text.startswith(f"ablation: {ablation}: {put} put in the place") for text in result.diagnostics.warnings)
    assert all(f"sae_latent ({SITE}) by {ablation} ablation" in figure.title for figure in result.figures if figure.name == "largest")
    described = result.tables["patches"].description
    assert described is not None
    assert f"{put} put in the place" in described


def test_components_without_an_sae_are_ablated_too(subject, pairs):
    zero, mean, resample = (
        run(subject, None, pairs=pairs, component="mlp_out", direction="noise", ablation=ablation, untrained=False)
        for ablation in ("zero", "mean", "resample")
    )
    first = {name: result.tables["patches"].rows[0]["effect"] for name, result in (("zero", zero), ("mean", mean), ("none", resample))}
    assert first["none"] == 0.0, "position 0 is the same in both prompts"
    assert abs(first["zero"]) > 1e-4
    assert abs(first["mean"]) > 1e-4
    assert "by mean ablation" in mean.figures[0].title


@pytest.mark.parametrize("ablation", ["resample", "zero", "mean"])
def test_estimates_of_latents_stand_beside_exact_patches(subject, pairs, sae, ablation):
    exact, estimated = (
        run(subject, sae, kind, pairs=pairs, metric="logit_diff", direction="noise", ablation=ablation, untrained=False)
        for kind in ("activation_patching", "attribution_patching")
    )
    assert [row["place"] for row in estimated.tables["patches"].rows] == [row["place"] for row in exact.tables["patches"].rows]
    by_words = {f"layer 1 latent {row['latent']}": row["effect"] for row in exact.tables["patches"].rows}
    for row in estimated.tables["agreement"].rows:
        assert row["exact"] == pytest.approx(by_words[row["place"]], abs=1e-5)
    assert estimated.metrics["agreement/correlation"] > 0.5


def test_integrated_estimates_of_latents_are_complete(subject, pairs, sae):
    result = run(subject, sae, "attribution_patching", pairs=pairs, metric="logit_diff", method="integrated", ig_steps=24, check_exact=3)
    assert result.metrics["completeness/largest_error"] < 0.05
    assert {"untrained", "others"} <= set(result.tables["patches"].rows[0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "transcoder", "d_out": 16}, "inputs.sae: a transcoder cannot be patched latent by latent; an autoencoder"),
        ({"kind": "crosscoder", "sites": ["a", "b"]}, "inputs.sae: a crosscoder cannot be patched latent by latent"),
        ({"site": ""}, "inputs.sae: the SAE does not say which hook point it was fitted on"),
        ({"site": "blocks.1.resid_prr"}, "inputs.sae: the SAE was fitted on blocks.1.resid_prr: .*did you mean 'blocks.1.resid_pre'"),
        ({"d_in": 8}, "inputs.sae: blocks.1.resid_pre is 16 wide, the SAE 8"),
    ],
)
def test_an_sae_whose_latents_are_no_places_of_the_subject_is_refused_by_name(subject, pairs, tmp_path, fields, message):
    made = random_sae(**{"d_in": 16, "d_sae": 40, "dtype": torch.float32, "site": SITE, **fields})
    with pytest.raises(SpecError, match=message):
        run(subject, saved(tmp_path, made), pairs=pairs)


class Twice(nn.Module):
    """Calls one module two times."""

    def __init__(self) -> None:
        super().__init__()
        self.stream = nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.as_tensor(self.stream(self.stream(nn.functional.one_hot(tokens, 16).float())))


def test_an_sae_of_a_site_that_is_passed_more_than_once_is_refused_by_name(sae):
    tokens = torch.zeros(1, 8, dtype=torch.long)
    examples = Examples(("one",), tokens, torch.full_like(tokens, IGNORED), torch.ones_like(tokens, dtype=torch.bool))
    subject = HookedSubject("twice", Twice(), {SITE: ("stream", "output")}, examples)
    short = [{"clean": [1, 2], "corrupted": [3, 2]}]
    with pytest.raises(SpecError, match=r"inputs\.sae: the SAE was fitted on blocks\.1\.resid_pre: .* is evaluated more than once"):
        run(subject, sae, pairs=short)


@pytest.mark.parametrize(("positions", "labels"), [("answer", {None}), ([3, 5], {"3", "5"})])
def test_positions_are_chosen_as_for_every_component(subject, pairs, sae, positions, labels):
    rows = run(subject, sae, pairs=pairs, positions=positions, untrained=False).tables["patches"].rows
    assert {row.get("position") and row["position"].split()[0] for row in rows} == labels
    assert any(row["effect"] for row in rows)


def test_an_sae_of_other_weights_is_refused(subject, pairs, sae):
    (sae / "sae_metrics.json").write_text(json.dumps({"subject_sha256": "ab" * 32}))
    with pytest.raises(SpecError, match=r"inputs\.sae: the SAE was fitted on subject abababababab, 'toy' as given here is"):
        run(subject, sae, pairs=pairs)


def test_an_sae_and_its_component_go_together(subject, pairs, sae):
    with pytest.raises(SpecError, match=r"inputs\.sae: sae_latent needs an SAE"):
        run(subject, None, pairs=pairs, component="sae_latent")
    with pytest.raises(
        SpecError, match=r"inputs\.sae: an SAE is of no use to component: resid_pre; component: sae_latent, or leave it out"
    ):
        run(subject, sae, pairs=pairs, component="resid_pre")
    with pytest.raises(SpecError, match=r"unknown component 'sae_latnt'; .*did you mean 'sae_latent'"):
        run(subject, sae, pairs=pairs, component="sae_latnt")
    with pytest.raises(SpecError, match=r"variables\.latents: unknown latent '40'; allowed: 0 to 39"):
        run(subject, sae, pairs=pairs, latents=[3, 40])


def test_latents_that_say_nothing_are_refused_where_there_is_nothing_to_patch(subject, pairs, sae):
    moving = {row["latent"] for row in run(subject, sae, pairs=pairs, untrained=False).tables["patches"].rows}
    dead = next(latent for latent in range(40) if latent not in moving)
    with pytest.raises(ExperimentError, match="no latent takes another activation at a patched position of any pair"):
        run(subject, sae, pairs=pairs, latents=[dead])


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"layers": [1]}, "layers are not chosen with component: sae_latent: its SAE says where it reads"),
        ({"component": "resid_pre", "latents": [1]}, "latents are patched with component: sae_latent"),
        ({"latents": [1, 1]}, r"latents \[1, 1\] must name each once"),
        ({"ablation": "zero"}, "ablation zero damages the clean run: it goes with direction: noise"),
        ({"ablation": "mean", "direction": "denoise"}, "ablation mean damages the clean run: it goes with direction: noise"),
    ],
)
def test_contradictory_variables_are_refused_before_anything_runs(subject, pairs, sae, variables, message):
    with pytest.raises(SpecError, match=message):
        run(subject, sae, pairs=pairs, **variables)
