from __future__ import annotations

import json
import zlib
from base64 import b64decode
from pathlib import Path

import pytest

from mlinterp.tracking import links, notes, views
from mlinterp.tracking.life import RunLife

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
        "Runs by hypothesis",
        "SAEs: L0 against CE recovered",
        "Effects beside controls",
    ]
    for view in made:
        text = views.encode(view)
        assert len(text) <= 20_000
        assert views.decode(text) == (view.name, view.state())
        assert len({chart["uuid"] for chart in view.state()["compareRunCharts"]}) == len(view.charts)
    assert made[1].state()["groupBy"]["groupByKeys"] == [{"mode": "tag", "groupByData": "mlinterp.hypothesis"}]


def test_a_view_that_a_person_has_changed_stays_and_ours_is_brought_up_to_date(store, experiment, run):
    views.write_views(store, experiment)
    before = views.decode(saved(store, experiment, "mlinterp-effects"))[1]
    tag = "mlflow.sharedViewState.mlinterp-saes"
    theirs = json.dumps({**json.loads(saved(store, experiment, "mlinterp-saes")), "updatedAt": 1})
    store.client.set_experiment_tag(experiment, tag, theirs)
    run("i", {"mlinterp.mode": "interventional"}, metrics={"effect/ablate": 0.5})
    views.write_views(store, experiment)
    assert store.client.get_experiment(experiment).tags[tag] == theirs
    assert views.decode(saved(store, experiment, "mlinterp-effects"))[1] != before


def test_links_to_views_name_view_and_mode(store, experiment):
    found = views.view_links(store, experiment, "http://127.0.0.1:5000")
    wanted = f"http://127.0.0.1:5000/#/experiments/{experiment}/runs?viewStateShareKey=mlinterp-saes&compareRunsMode=CHART&"
    assert found["SAEs: L0 against CE recovered"].startswith(wanted)
