from __future__ import annotations

import json
import zlib
from base64 import b64decode
from pathlib import Path

import pytest

from mlinterp.tracking import links, notes, views
from mlinterp.tracking.life import RunLife
from mlinterp.tracking.view_format import decode, encode

FACE = "?workflowType=machine_learning"


@pytest.fixture
def run(store, experiment, tmp_path):
    def make(name, tags=None, inputs=(), metrics=None, note=None):
        with RunLife(store, experiment, name, {"mlinterp.type": "x", **(tags or {})}, tmp_path) as life:
            for role, upstream in inputs:
                life.recorder.input(role, f"@{role}", "ab" * 32, upstream)
            life.recorder.metrics(metrics or {}, 0)
            if note:
                life.recorder.note(note)
        return life.run_id

    return make


def note(store, run_id):
    return store.client.get_run(run_id).data.tags["mlflow.note.content"]


def test_a_finished_run_links_to_what_it_rests_on_and_is_linked_from_there(store, experiment, run):
    trace = run("trace [1]", {"mlinterp.hypothesis": "h_1"}, note="**My trace**\n\nKept as it is.")
    sae = run("sae", {"mlinterp.upstream": trace}, inputs=[("trace", trace)])
    above, below = note(store, trace), note(store, sae)
    assert above.startswith("**My trace**\n\nKept as it is.\n\n#### Lineage")
    assert "- hypothesis: h\\_1" in above
    assert f"- used by: [sae](#/experiments/{experiment}/runs/{sae}{FACE})" in above
    assert below.startswith("**sae**\n")
    assert f"- rests on trace: [trace \\[1\\]](#/experiments/{experiment}/runs/{trace}{FACE})" in below


def test_two_runs_with_equal_content_each_keep_their_own_lineage(store, run):
    first, second = run("first"), run("second")
    run("a", {"mlinterp.upstream": first}, inputs=[("trace", first)])
    text = note(store, run("b", {"mlinterp.upstream": second}, inputs=[("trace", second)]))
    assert f"rests on trace: [second](#/experiments/1/runs/{second}" in text
    assert first not in text


def test_rewriting_a_note_changes_only_its_lineage(store, run):
    trace = run("trace", note="**T**\n\nprose")
    for number in range(3):
        run(f"sae {number}", {"mlinterp.upstream": trace})
    text = note(store, trace)
    assert text.count("#### Lineage") == 1
    assert text.startswith("**T**\n\nprose\n\n")
    assert text.count("used by") == 3
    assert notes.lineage_markdown(store, store.client.get_run(trace)) in text


def test_a_run_knows_its_study_and_the_study_its_steps(store, run):
    study = run("study")
    step = run("step", {"mlflow.parentRunId": study})
    assert f"contains: [step](#/experiments/1/runs/{step}" in note(store, study)
    assert f"part of: [study](#/experiments/1/runs/{study}" in note(store, step)


def test_a_study_that_still_runs_is_linked_without_a_status_that_is_soon_wrong(store, experiment, run):
    study = store.client.create_run(experiment, run_name="study").info.run_id
    step = run("step", {"mlflow.parentRunId": study})
    assert f"part of: [study](#/experiments/1/runs/{study}" in note(store, step)
    assert "(running)" not in note(store, step)


def test_an_upstream_run_that_is_gone_is_said_to_be_gone(store, run):
    assert "(gone)" in note(store, run("sae", {"mlinterp.upstream": "f" * 32}))


def test_many_links_stay_within_what_mlflow_keeps(store, run, monkeypatch):
    trace = run("t" * 200, note="**T**\n" + "x" * 7000)
    for number in range(notes.MOST + 3):
        run(f"{'s' * 200}{number}", {"mlinterp.upstream": trace})
    text = note(store, trace)
    assert len(text) <= 8000
    assert "3 more" in text


def test_the_lineage_is_an_artifact_too(store, run):
    run_id = run("trace")
    assert "#### Lineage" in Path(store.client.download_artifacts(run_id, "lineage.md")).read_text()


@pytest.mark.parametrize(
    "address",
    [links.run("1", "a" * 32), links.experiment("1"), links.view("1", "k", "CHART"), links.model_version("a b", 2)],
)
def test_every_link_opens_the_face_of_model_training(address):
    assert "workflowType=machine_learning" in address
    assert address.startswith("#/")
    assert links.absolute("http://h:1/", address) == f"http://h:1/{address}"


def saved(store, experiment, key):
    return store.client.get_experiment(experiment).tags[f"mlflow.sharedViewState.{key}"]


def test_saved_views_are_in_the_layout_that_mlflow_reads(store, experiment, run):
    run("i", {"mlinterp.mode": "interventional"}, metrics={"effect/ablate": 0.5, "control/ablate": 0.1, "adjusted/ablate": 0.4})
    views.write_views(store, experiment)
    kept = json.loads(saved(store, experiment, "mlinterp-effects"))
    assert set(kept) == {"name", "createdAt", "updatedAt", "state"}
    mark, packed = kept["state"][:8], kept["state"][8:]
    assert mark == "deflate;"
    state = json.loads(zlib.decompress(b64decode(packed)))
    assert state["searchFilter"] == "tags.`mlinterp.mode` = 'interventional'"
    assert state["selectedColumns"][-3:] == ["metrics.`effect/ablate`", "metrics.`control/ablate`", "metrics.`adjusted/ablate`"]
    scatter = state["compareRunCharts"][0]
    assert (scatter["type"], scatter["xaxis"]["key"], scatter["yaxis"]["key"]) == ("SCATTER", "top/control_effect", "top/effect")
    assert [chart["metricKey"] for chart in state["compareRunCharts"][2:]] == ["effect/ablate", "control/ablate"]
    assert state["groupBy"]["groupByKeys"] == [{"mode": "tag", "groupByData": "mlinterp.type"}]
    sections = {section["uuid"] for section in state["compareRunSections"]}
    assert {chart["metricSectionId"] for chart in state["compareRunCharts"]} <= sections


def test_every_view_of_a_project_round_trips_and_fits_a_tag(store, experiment, run):
    run("i", {"mlinterp.mode": "interventional"}, metrics={f"effect/intervention_{i}": 0.5 for i in range(40)})
    made = views.project_views(store, experiment)
    assert [view.name for view in made] == [
        "All runs, flat",
        "Hypotheses",
        "Confidence in hypotheses",
        "Runs by hypothesis",
        "SAEs: L0 against CE recovered",
        "Promotions of SAEs",
        "Effects beside controls",
    ]
    for view in made:
        text = encode(view)
        assert len(text) <= 20_000
        assert decode(text) == (view.name, view.state())
        assert len({chart["uuid"] for chart in view.state()["compareRunCharts"]}) == len(view.charts)
    assert made[3].state()["groupBy"]["groupByKeys"] == [{"mode": "tag", "groupByData": "mlinterp.hypothesis"}]


def test_a_view_that_a_person_has_changed_stays_and_ours_is_brought_up_to_date(store, experiment, run):
    views.write_views(store, experiment)
    before = decode(saved(store, experiment, "mlinterp-effects"))[1]
    tag = "mlflow.sharedViewState.mlinterp-saes"
    theirs = json.dumps({**json.loads(saved(store, experiment, "mlinterp-saes")), "updatedAt": 1})
    store.client.set_experiment_tag(experiment, tag, theirs)
    run("i", {"mlinterp.mode": "interventional"}, metrics={"effect/ablate": 0.5})
    views.write_views(store, experiment)
    assert store.client.get_experiment(experiment).tags[tag] == theirs
    assert decode(saved(store, experiment, "mlinterp-effects"))[1] != before


def found_by(store, experiment, key):
    """Return the names of the runs that a saved view's filter finds."""
    state = decode(saved(store, experiment, key))[1]
    return {run.info.run_name for run in store.client.search_runs([experiment], state["searchFilter"])}


def test_hypotheses_and_promotions_are_in_their_own_views_and_in_no_other(store, experiment, run):
    page = run("h001", {"mlinterp.kind": "hypothesis", "mlinterp.hypothesis": "h001", "mlinterp.claim": "x"}, metrics={views._NOW: 0.5})
    run("h002", {"mlinterp.kind": "hypothesis", "mlflow.parentRunId": page})
    run("fit", {"mlinterp.kind": "sae_fit", "mlinterp.produces": "sae", "mlinterp.hypothesis": "h001"})
    run("promoted", {"mlinterp.kind": "promotion"})
    views.write_views(store, experiment)
    assert found_by(store, experiment, "mlinterp-promotions") == {"promoted"}
    for key in ("mlinterp-ledger", "mlinterp-confidence"):
        assert found_by(store, experiment, key) == {"h001", "h002"}
    for key in ("mlinterp-runs", "mlinterp-hypotheses", "mlinterp-saes"):
        assert found_by(store, experiment, key) == {"fit"}


def test_confidence_is_drawn_as_it_stands_and_as_it_came_to_be_on_a_linear_scale(store, experiment):
    views.write_views(store, experiment)
    for key, is_flat in (("mlinterp-ledger", False), ("mlinterp-confidence", True)):
        state = decode(saved(store, experiment, key))[1]
        assert [(chart["type"], chart["metricKey"]) for chart in state["compareRunCharts"]] == [("BAR", views._NOW), ("LINE", views._NOW)]
        assert state["compareRunCharts"][1]["scaleType"] == "linear"
        assert {"tags.`mlinterp.claim`", "tags.`mlinterp.status`", f"metrics.`{views._NOW}`"} <= set(state["selectedColumns"])
        assert ("orderByKey" in state) == is_flat  # only in the order of creation are children folded below their parents
        assert state["groupBy"] is None


def test_the_columns_of_a_view_stand_in_the_order_given_after_the_name(store, experiment):
    views.write_views(store, experiment)
    state = decode(saved(store, experiment, "mlinterp-hypotheses"))[1]
    assert state["columnOrder"][1] == "attributes.`Run Name`"
    assert state["columnOrder"][2:-2] == state["selectedColumns"]
    wanted = ["tags.`mlinterp.hypothesis`", "tags.`mlinterp.verdict`", "tags.`mlinterp.standing`"]
    assert state["selectedColumns"][:3] == wanted
    assert set(state["selectedColumns"]) <= set(state["columnWidths"])


@pytest.fixture
def sweep(store, run):
    def make(name, cells, matrix):
        run_id = run(name, {"mlinterp.kind": "sweep"})
        for key, values in matrix.items():
            store.client.log_param(run_id, f"spec.matrix.{key}", json.dumps(values))
        views.mark_parts(store, run_id, cells)
        views.mark_headlines(store, run_id, ["sae/l0", "sae/fvu"])
        return run_id

    return make


def test_a_sweep_has_a_view_of_its_cells_with_parallel_coordinates_from_settings_to_metrics(store, experiment, run, sweep):
    cells = [run(f"cell {i}", {"mlinterp.kind": "sae_fit"}) for i in range(3)]
    first = sweep("first", cells, {"activation": ["topk", "relu-l1"], "variables.k": [2, 4], "seed": [0, 1]})
    second = sweep("second", cells[:1], {"seed": [0, 1]})
    views.write_views(store, experiment)
    key = f"mlinterp-sweep-{first[:12]}"
    name, state = decode(saved(store, experiment, key))
    assert name == "Sweep: first (activation, seed, k)"
    assert found_by(store, experiment, key) == {"cell 0", "cell 1", "cell 2"}
    assert found_by(store, experiment, f"mlinterp-sweep-{second[:12]}") == {"cell 0"}  # a run that was there already is in both
    parallel, *over = state["compareRunCharts"]
    assert parallel["selectedParams"] == ["spec.variables.activation", "spec.seed", "spec.variables.k"]
    assert parallel["selectedMetrics"] == ["sae/l0", "sae/fvu"]
    assert [chart["xaxis"] for chart in over] == [{"key": "spec.variables.k", "type": "PARAM"}] * 2
    assert state["orderByKey"] == "metrics.`sae/fvu`"


def test_only_the_newest_sweeps_keep_a_view_and_one_that_a_person_has_changed_stays(store, experiment, sweep):
    runs = [sweep(f"sweep {i}", [], {"seed": [0, 1]}) for i in range(2)]
    views.write_views(store, experiment)
    tags = [f"mlflow.sharedViewState.mlinterp-sweep-{run[:12]}" for run in runs]
    theirs = json.dumps({**json.loads(saved(store, experiment, f"mlinterp-sweep-{runs[0][:12]}")), "updatedAt": 1})
    store.client.set_experiment_tag(experiment, tags[0], theirs)
    for number in range(views.MOST_SWEEPS):
        sweep(f"later {number}", [], {"seed": [0, 1]})
    views.write_views(store, experiment)
    kept = store.client.get_experiment(experiment).tags
    assert kept[tags[0]] == theirs
    assert tags[1] not in kept
    assert sum(tag.startswith("mlflow.sharedViewState.mlinterp-sweep-") for tag in kept) == views.MOST_SWEEPS + 1
    views._remove(store, experiment, tags[1])  # as another process may have done meanwhile


def test_a_sweep_that_has_not_finished_has_no_view(store, experiment, run):
    run_id = run("sweep", {"mlinterp.kind": "sweep"})
    store.client.set_terminated(run_id, "KILLED")
    assert not any(view.key.startswith("mlinterp-sweep-") for view in views.project_views(store, experiment))


def test_links_to_views_name_view_and_mode(store, experiment):
    found = views.view_links(store, experiment, "http://127.0.0.1:5000")
    wanted = f"http://127.0.0.1:5000/#/experiments/{experiment}/runs?viewStateShareKey=mlinterp-saes&compareRunsMode=CHART&"
    assert found["SAEs: L0 against CE recovered"].startswith(wanted)
