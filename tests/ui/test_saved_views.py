"""Saved views of sweeps and of confidence, as MLflow's own UI shows them: read wrongly, a view would show the page's defaults."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from mlinterp.tracking import links, views
from mlinterp.tracking.life import RunLife


@pytest.fixture(scope="module")
def swept(investigation):
    """An experiment of its own with a sweep over k and seed, one of whose cells another run contains."""
    store, workspace = investigation.session.store, investigation.session.workspace
    experiment = store.experiment_id("swept")

    def run(name, metrics, params, **tags):
        marked = {"mlinterp.type": "sae_fit", **{f"mlinterp.{key}": value for key, value in tags.items()}}
        with RunLife(store, experiment, name, marked, workspace) as life:
            life.recorder.params(params)
            life.recorder.metrics(metrics, 0)
        return life.run_id

    cells = [
        run(
            f"k={k} seed={seed}",
            {"sae/l0": float(k), "sae/fvu": 1 / k + seed / 100},
            {"spec.variables.k": k, "spec.seed": seed},
            kind="cell",
        )
        for k in (2, 4, 8)
        for seed in (0, 1)
    ]
    sweep = run("sae_fit · maze", {}, {"spec.matrix.k": [2, 4, 8], "spec.matrix.seed": [0, 1]}, kind="sweep")
    for cell in cells[1:]:
        store.client.set_tag(cell, "mlflow.parentRunId", sweep)
    views.mark_parts(store, sweep, cells)
    views.mark_headlines(store, sweep, ["sae/l0", "sae/fvu"])
    views.write_views(store, experiment)
    return experiment, sweep


def names(tab):
    return tab.locator("[col-id='attributes.`Run Name`'] a").all_inner_texts()


def test_the_view_of_a_sweep_draws_every_cell_from_setting_to_outcome(tab, server, swept):
    experiment, sweep = swept
    tab.goto(f"{server}/{links.view(experiment, f'mlinterp-sweep-{sweep[:12]}', 'CHART')}")
    tab.get_by_text("Parallel Coordinates").first.wait_for()
    tab.get_by_text("spec.variables.k vs. sae/fvu").first.wait_for()
    for axis in ("spec.seed", "sae/l0"):
        tab.locator("svg text, .axis-title, .js-plotly-plot text").filter(has_text=axis).first.wait_for(state="attached")
    points = tab.locator(".js-plotly-plot").filter(has_text="sae/fvu").last.locator(".point")
    points.last.wait_for(state="attached")
    assert points.count() == 6


def test_the_table_of_a_sweep_holds_its_cells_alone_with_settings_before_outcomes(tab, server, swept):
    experiment, sweep = swept
    tab.set_viewport_size({"width": 1900, "height": 900})
    tab.goto(f"{server}/{links.view(experiment, f'mlinterp-sweep-{sweep[:12]}', 'TABLE')}")
    tab.get_by_role("link", name="k=2 seed=1").wait_for()
    assert names(tab) == [f"k={k} seed={seed}" for k in (2, 4, 8) for seed in (1, 0)]  # the highest fvu first, and no parent among them
    left = [
        tab.locator(f".ag-header-cell[col-id='{column}']").bounding_box()["x"]
        for column in ("params.`spec.variables.k`", "params.`spec.seed`", "metrics.`sae/l0`", "metrics.`sae/fvu`")
    ]
    assert all(one < other for one, other in pairwise(left))


def test_the_view_of_confidence_draws_children_beside_their_parents(tab, server, investigation):
    views.write_views(investigation.session.store, investigation.experiment_id)
    tab.goto(f"{server}/{links.view(investigation.experiment_id, 'mlinterp-confidence', 'CHART')}")
    for hypothesis in ("h001", "h002", "h003"):
        tab.get_by_role("link", name=re.compile(f"^{hypothesis} ")).first.wait_for()
    charts = tab.locator(".js-plotly-plot")
    charts.nth(1).wait_for()
    charts.first.locator(".point").nth(2).wait_for(state="attached")
    assert charts.first.locator(".point").count() == 3
