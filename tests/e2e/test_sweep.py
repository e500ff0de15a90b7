"""Sweeps: a run for each cell, what their parent says of them, and which cells a failure takes along."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import workbench

import mlinterp
from mlinterp.errors import ExperimentError
from mlinterp.execution import gather
from mlinterp.execution.summary import RunSummary
from mlinterp.hypotheses.judging import judge
from mlinterp.result import Estimate, ExperimentResult
from mlinterp.spec import Expectation, Spec
from mlinterp.stats import mean_t_interval
from mlinterp.tracking import names, views


def fit_sweep(bench, **matrix):
    spec = workbench.step("sae", bench.runs, steps=25)
    for key in {"d_sae", *matrix} & set(spec["variables"]):
        del spec["variables"][key]
    return {**spec, "matrix": matrix}


def files(folder: Path, pattern: str) -> set[str]:
    return {path.stem for path in folder.glob(pattern)}


@pytest.fixture(scope="module")
def by_size(bench):
    """A sweep of two sizes with three seeds."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("MLINTERP_THREADS", "1")
        return mlinterp.run_spec(bench.write("sweep", fit_sweep(bench, seed=[0, 1, 2], d_sae=[16, 32])))


def of_size(summary, d_sae, metric="sae/fvu"):
    return [child.result.metrics[metric] for child in summary.children if child.result.variables["d_sae"] == d_sae]


def test_a_sweep_has_a_run_for_each_cell_and_means_with_intervals_over_seeds(bench, by_size):
    assert [child.status for child in by_size.children] == ["FINISHED"] * 6
    parents = {bench.store.client.get_run(child.run_id).data.tags["mlflow.parentRunId"] for child in by_size.children}
    assert parents == {by_size.run_id}
    rows = [row for row in by_size.result.tables["summary"].rows if row["metric"] == "sae/fvu"]
    wide = by_size.result.tables["settings"].rows
    assert [row["d_sae"] for row in rows] == [row["d_sae"] for row in wide] == [16, 32]
    for row, beside in zip(rows, wide, strict=True):
        fvu = of_size(by_size, row["d_sae"])
        half = 4.302652729911275 * np.std(fvu, ddof=1) / np.sqrt(3)  # t quantile, 97.5 %, 2 degrees of freedom
        assert (row["n_seeds"], row["interval"]) == (3, "Student t over seeds")
        assert row["mean"] == pytest.approx(np.mean(fvu))
        assert (row["low"], row["high"]) == (pytest.approx(np.mean(fvu) - half), pytest.approx(np.mean(fvu) + half))
        assert [beside[f"sae/fvu{end}"] for end in ("", " low", " high")] == [row["mean"], row["low"], row["high"]]


def test_a_sweep_of_several_settings_carries_each_of_them_under_its_name(bench, by_size):
    found = by_size.result.estimates["d_sae_16/sae.fvu"]
    random = [1 - value for value in of_size(by_size, 16, "control/random_dictionary_fve")]
    assert (found.df, found.n, found.unit) == (2, 3, "seed")
    assert found.null_value == pytest.approx(np.mean(random))
    assert "sae/fvu" not in by_size.result.metrics
    logged = bench.store.client.get_run(by_size.run_id).data.metrics
    assert logged["d_sae_32/sae.fvu"] == pytest.approx(np.mean(of_size(by_size, 32)))
    (judged,) = judge([Expectation(metric="d_sae_16.sae.fvu", op="<", value=5.0)], by_size.result)
    assert judged.side == "inside"
    assert judged.estimate == found


def test_a_sweep_draws_its_metrics_over_what_was_swept_its_frontiers_and_every_cell(bench, by_size):
    drawn = files(bench.artifacts(by_size.run_id) / "figures", "*.png")
    assert {"by_sae_fvu", "by_substitution_ce_loss_recovered", "frontier_sae_fvu", "parallel"} <= drawn
    by = {figure.name: figure for figure in by_size.result.figures}
    assert (by["by_sae_fvu"].kind, by["by_sae_fvu"].x, by["by_sae_fvu"].low) == ("line", "d_sae", "sae/fvu low")
    assert (by["frontier_sae_fvu"].x, by["frontier_sae_fvu"].y) == ("sae/l0", ["sae/fvu"])
    assert [by["parallel"].x, *by["parallel"].y][:2] == ["seed", "d_sae"]
    assert by["parallel"].y[-1] == "sae/fvu"
    report = (bench.artifacts(by_size.run_id) / "report.md").read_text()
    assert "d_sae_16" in report.replace("\\", "")


def test_a_sweep_and_its_cells_say_what_its_saved_view_needs(bench, by_size):
    run = bench.store.client.get_run(by_size.run_id)
    assert run.data.tags["mlinterp.headlines"].split(",")[-1] == "sae/fvu"
    view = next(view for view in views.project_views(bench.store, run.info.experiment_id) if view.key.endswith(by_size.run_id[:12]))
    found = bench.store.client.search_runs([run.info.experiment_id], view.search)
    assert {cell.info.run_id for cell in found} == {child.run_id for child in by_size.children}
    assert view.charts[0]["selectedParams"] == ["spec.variables.d_sae", "spec.seed"]


def test_a_sweep_of_seeds_alone_carries_its_means_under_their_own_names(bench, by_size):
    spec = fit_sweep(bench, seed=[0, 1, 2])
    summary = mlinterp.run_spec(bench.write("seeds", {**spec, "variables": {**spec["variables"], "d_sae": 16}}))
    assert all(child.reused for child in summary.children)
    assert summary.result.metrics["sae/fvu"] == pytest.approx(np.mean(of_size(by_size, 16)))
    assert summary.result.estimates["sae/fvu"].df == 2
    assert [figure.name for figure in summary.result.figures] == ["parallel"]
    tags = bench.store.client.get_run(summary.children[0].run_id).data.tags
    assert set(tags["mlinterp.part_of"].split(",")) == {by_size.run_id, summary.run_id}  # a cell of both
    with (bench.artifacts(summary.run_id) / "tables" / "estimates.csv").open() as lines:
        row = next(row for row in csv.DictReader(lines) if row["metric"] == "sae/fvu")
    assert (row["n"], row["interval"]) == ("3", "Student t over seeds")


def test_a_failing_cell_leaves_the_others_alone(bench):
    summary = mlinterp.run_spec(bench.write("half", {**fit_sweep(bench, site=["z_L", "z_Q"]), "seed": 5}))
    assert summary.status == "FINISHED"
    assert [child.status for child in summary.children] == ["FINISHED", "FAILED"]
    assert summary.n_failed == 1
    assert summary.result is not None
    assert summary.result.metrics["sweep/n_failed"] == 1
    cells = summary.result.tables["cells"].rows
    assert cells[0]["error"] is None
    assert "unknown site of this trace 'z_Q'" in str(cells[1]["error"])
    failed = [run for run in bench.all_runs() if run.data.tags.get("mlinterp.label") == "site=z_Q"]
    assert [(run.info.status, "z_Q" in run.data.tags["mlinterp.error"]) for run in failed] == [("FAILED", True)]


def test_a_sweep_whose_cells_all_fail_has_failed(bench):
    spec = {**fit_sweep(bench, site=["z_P", "z_Q"]), "seed": 6}
    with pytest.raises(ExperimentError, match=r"all 2 cells failed; the first: .*z_P"):
        mlinterp.run_spec(bench.write("none", spec))
    assert {run.info.status for run in bench.all_runs()} == {"FINISHED", "FAILED"}


# ---- the gathering itself, over cells made by hand


def cell(label: str, metrics: dict[str, float], *, intervals: bool = False) -> RunSummary:
    estimates = {name: Estimate(value=value, low=value - 1, high=value + 1, n=9, interval="its own") for name, value in metrics.items()}
    result = ExperimentResult(experiment_type="sae_fit", metrics=metrics, estimates=estimates if intervals else {})
    return RunSummary(label, label, "FINISHED", "", Path(), result=result, label=label)


def gathered(matrix: dict[str, list[Any]], measure: Any, expect: tuple[dict[str, Any], ...] = (), **options: Any) -> ExperimentResult:
    """Return the result of a sweep whose cells measured what `measure(cell)` says; None is a cell that failed."""
    spec = Spec.model_validate({"type": "sae_fit", "inputs": {"trace": "latest"}, "matrix": matrix, "expect": list(expect)})
    cells = [values for values, _ in spec.cells()]
    found = [measure(values) for values in cells]
    runs = [
        cell(str(i), each, **options) if each else RunSummary("", str(i), "FAILED", "", Path(), label=str(i))
        for i, each in enumerate(found)
    ]
    return gather.sweep_result(spec, cells, runs)[0]


def test_one_seed_has_the_interval_of_its_own_run():
    result = gathered({"k": [2, 4]}, lambda values: {"sae/fvu": 1 / values["k"]}, intervals=True)
    assert result.estimates["k_2/sae.fvu"].interval == "its own"
    rows = result.tables["settings"].rows
    assert [(row["setting"], row["seeds"], row["sae/fvu"], row["sae/fvu low"]) for row in rows] == [
        ("k_2", 1, 0.5, -0.5),
        ("k_4", 1, 0.25, -0.75),
    ]


def test_a_setting_whose_every_cell_failed_does_not_rename_the_others():
    result = gathered({"k": [2, 4], "seed": [0, 1]}, lambda values: {"sae/fvu": 0.1 * values["seed"]} if values["k"] == 2 else None)
    assert "k_2/sae.fvu" in result.metrics
    assert result.metrics["sweep/n_failed"] == 2
    assert [row["setting"] for row in result.tables["settings"].rows] == ["k_2"]


def test_a_seed_that_failed_is_left_out_of_the_mean():
    result = gathered({"seed": [0, 1, 2]}, lambda values: {"sae/fvu": float(values["seed"])} if values["seed"] != 1 else None)
    assert (result.metrics["sae/fvu"], result.estimates["sae/fvu"].n) == (1.0, 2)
    expected = mean_t_interval([0.0, 2.0])
    assert (result.estimates["sae/fvu"].low, result.estimates["sae/fvu"].high) == pytest.approx(expected[1:])


def test_many_settings_carry_their_main_metrics_only_and_what_was_predicted():
    wanted = {"metric": "k_7/m.9", "op": ">", "value": 0.0}
    result = gathered(
        {"k": list(range(1, 41))}, lambda values: {"sae/fvu": 1.0, "sae/l0": 2.0} | {f"m/{i}": 1.0 for i in range(20)}, (wanted,)
    )
    carried = {name for name in result.metrics if not name.startswith("sweep/")}
    assert carried == {f"k_{k}/sae.{name}" for k in range(1, 41) for name in ("fvu", "l0")} | {"k_7/m.9"}
    assert len(result.tables["summary"].rows) == 40 * 22
    huge = gathered({"k": list(range(1, 501))}, lambda values: {"sae/fvu": 1.0})
    assert set(huge.metrics) == {"sweep/n_cells", "sweep/n_failed"}


def test_the_names_of_settings_are_keys_that_mlflow_takes_and_never_two_alike():
    values = ["a/b", "a_b", "ä b", "x" * 300, [1, "q"], {"deep": 1}, None, True, 1.5, "..", "$(rm)"]
    result = gathered({"variables.options": values, "k": [1, 2]}, lambda _: {"sae/fvu": 1.0})
    carried = [name for name in result.metrics if not name.startswith("sweep/")]
    assert len(carried) == 2 * len(values)
    assert all(names.key(name) == name for name in carried)


def test_two_numbers_are_drawn_as_lines_and_as_a_map_and_several_keys_as_one_series():
    result = gathered({"k": [1, 2, 4], "d_sae": [8, 16, 32]}, lambda values: {"sae/fvu": values["k"] / values["d_sae"], "sae/l0": 1.0})
    assert [figure.name for figure in result.figures] == ["by_sae_fvu", "map_sae_fvu", "frontier_sae_fvu", "parallel"]
    assert (result.figures[1].kind, result.figures[1].x, result.figures[1].series) == ("heatmap", "k", "d_sae")
    matrix = {"activation": ["topk", "batchtopk"], "k": [1, 2], "d_sae": [8, 16]}
    several = gathered(matrix, lambda values: {"sae/fvu": values["k"] / values["d_sae"]})
    line = several.figures[0]
    assert (line.x, line.series) == ("k", "activation, d_sae")
    assert several.tables["settings"].rows[0][line.series] == "activation topk, d_sae 8"
    assert not any(figure.kind == "heatmap" for figure in several.figures)


def test_settings_that_double_are_drawn_on_a_logarithmic_axis_and_names_as_bars():
    assert gathered({"k": [1, 2, 4, 8, 16]}, lambda values: {"sae/fvu": 1 / values["k"]}).figures[0].log_x
    bars = gathered({"activation": ["topk", "batchtopk"]}, lambda values: {"sae/fvu": float(len(values["activation"]))}).figures[0]
    assert (bars.kind, bars.log_x) == ("bar", False)


def test_a_study_carries_what_was_predicted_about_a_step_beside_its_first_metrics():
    metrics = {f"m/{i}": float(i) for i in range(30)}
    spec = Spec.model_validate(
        {
            "type": "study",
            "subject": "s",
            "steps": [{"name": "fit", "type": "sae_fit", "inputs": {"trace": "latest"}}],
            "expect": [{"metric": "fit/m.29", "op": ">", "value": 0.0}],
        }
    )
    result = gather.study_result(spec, [cell("fit", {**metrics, "sae/fvu": 0.5}, intervals=True)])
    assert set(result.metrics) == {f"fit/m.{i}" for i in (*range(gather.HEADLINES), 29)} | {"fit/sae.fvu"}
    assert set(result.estimates) == set(result.metrics)
