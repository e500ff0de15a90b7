"""The type `attribution_patching`: estimates that say that they are, beside exact patches and nulls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from prompts import CAUSAL, random_pairs, transformer

from mlinterp.errors import SpecError
from mlinterp.experiments.base import Context
from mlinterp.experiments.catalog import find, typed_variables
from mlinterp.reports.plots import draw_all
from mlinterp.result import ExperimentResult
from mlinterp.spec import Spec
from mlinterp.subjects.huggingface import HuggingFaceSubject


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> HuggingFaceSubject:
    return transformer(tmp_path_factory.mktemp("project"), {**CAUSAL["gpt2"], "initializer_range": 0.1})


@pytest.fixture(scope="module")
def pairs(subject: HuggingFaceSubject) -> list[dict[str, Any]]:
    return [pair.model_dump(exclude_none=True) for pair in random_pairs(subject.vocab, (7,) * 6)]


def run(subject: HuggingFaceSubject, kind: str = "attribution_patching", **variables: Any) -> ExperimentResult:
    """Check and run the experiment as a spec would."""
    spec = Spec.model_validate({"type": kind, "subject": "toy", "variables": {"n_bootstrap": 200, **variables}})
    typed, experiment = typed_variables(spec), find(kind)
    assert experiment.check is not None
    experiment.check(spec, typed, ())
    return experiment.run(Context(spec, typed, Path(), lambda: subject))


def test_estimates_stand_beside_exact_patches_of_a_random_sample(subject, pairs):
    result = run(subject, pairs=pairs, component="attn_head", check_exact=8)
    exact = {row["place"]: row for row in run(subject, "activation_patching", pairs=pairs, component="attn_head").tables["patches"].rows}
    rows, checked = result.tables["patches"].rows, result.tables["agreement"].rows
    assert result.mode == "observational"
    assert [row["place"] for row in rows] == [*exact]
    assert len(checked) == 8
    by_words = {f"layer {row['layer']} head {row['head']}": row for row in rows}
    for row in checked:
        place = by_words[row["place"]]
        assert row["estimated"] == pytest.approx(place["effect"])
        assert row["exact"] == pytest.approx(exact[place["place"]]["effect"], abs=1e-5)
        assert row["miss"] == pytest.approx(row["estimated"] - row["exact"])
    assert result.metrics["agreement/correlation"] > 0.95
    assert result.metrics["agreement/largest_miss"] == pytest.approx(max(abs(row["miss"]) for row in checked))
    judged = result.estimates["agreement/correlation"]
    assert judged.mode == "interventional"
    assert judged.low is not None
    assert judged.low < judged.value
    assert {row["metric"] for row in result.tables["estimates"].rows} >= {"agreement/correlation", "top/adjusted_effect"}


def test_estimates_stand_beside_nulls_with_intervals_and_read_as_estimates(subject, pairs):
    """The default component too, whose estimates are not all zero."""
    result = run(subject, pairs=pairs, layers=[0, 2], check_exact=0)
    assert sum(abs(row["effect"]) > 1e-3 for row in result.tables["patches"].rows) >= 4
    for row in result.tables["patches"].rows:
        assert row["adjusted"] == pytest.approx(row["effect"] - row["null"])
        assert isinstance(row["untrained"], float)
    assert "agreement" not in result.tables
    assert "joint" not in result.tables
    described = result.tables["patches"].description
    assert described is not None
    assert described.startswith("Estimates (observational: no activation is replaced)")
    assert all(figure.title.endswith("(gradient estimate)") for figure in result.figures)
    assert {"adjusted_by_position", "largest"} <= set(draw_all(result))


def test_integrated_gradients_report_how_complete_they_are(subject, pairs):
    result = run(subject, pairs=pairs, method="integrated", ig_steps=6, layers=[0, 1], check_exact=4, untrained=False)
    rows = result.tables["completeness"].rows
    assert result.mode == "interventional"
    assert [row["layer"] for row in rows] == [0, 1]
    assert rows[0]["exact"] == pytest.approx(1.0, abs=1e-4)
    assert result.metrics["completeness/largest_error"] == max(abs(row["error"]) for row in rows) < 0.05
    assert "agreement" in draw_all(result)


def test_too_few_steps_and_poor_agreement_are_warned_of(tmp_path):
    """A model with large weights bends within one step."""
    subject = transformer(tmp_path, {**CAUSAL["llama"], "initializer_range": 0.9})
    pairs = [pair.model_dump(exclude_none=True) for pair in random_pairs(subject.vocab, (7,) * 3)]
    result = run(subject, pairs=pairs, method="integrated", ig_steps=1, metric="l2", untrained=False)
    assert any("ig_steps are too few" in text for text in result.diagnostics.warnings)
    assert any("estimates agree poorly with exact patches" in text for text in result.diagnostics.warnings)


def test_places_at_which_the_runs_do_not_differ_are_no_evidence_of_agreement(subject, pairs):
    """Tokens 2 and 4 differ: no stream does before them, and the first block's input nowhere else."""
    result = run(subject, pairs=pairs, layers=[0], check_exact=100, untrained=False)
    assert [row["place"].split()[3] for row in result.tables["agreement"].rows] == ["2", "4"]
    assert len(result.tables["patches"].rows) == 7


@pytest.mark.parametrize("metric", ["kl", "l2", "cosine"])
def test_a_metric_that_has_no_slope_at_the_clean_run_is_refused(subject, pairs, metric):
    with pytest.raises(
        SpecError, match=f"variables.metric: {metric} is largest at the clean run.*; method: integrated, direction: denoise"
    ):
        run(subject, pairs=pairs, metric=metric, direction="noise")


def test_an_unknown_component_is_refused_with_the_nearest_name(subject, pairs):
    with pytest.raises(SpecError, match=r"unknown component 'atn_head'; .*did you mean 'attn_head'"):
        run(subject, pairs=pairs, component="atn_head")
