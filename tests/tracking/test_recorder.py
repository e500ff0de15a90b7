from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path

import pytest

from mlinterp.errors import TrackingError, UnsafeError, VerificationError
from mlinterp.io.digests import sha256_bytes
from mlinterp.progress import Silent
from mlinterp.result import ResultTable
from mlinterp.tracking.recorder import Recorder


@pytest.fixture
def recorder(store, experiment) -> Recorder:
    return Recorder(store.client, store.client.create_run(experiment).info.run_id)


def data(recorder):
    return recorder.client.get_run(recorder.run_id).data


def history(recorder, name):
    return [(metric.step, metric.value) for metric in recorder.client.get_metric_history(recorder.run_id, name)]


def test_parameters_keep_their_spelling_and_250_of_them_go_in_batches(recorder):
    recorder.params({"spec.lr": 0.001, "spec.flag": True, "spec.none": None, "spec.ids": [1, 2], "spec.text": "ключ"})
    recorder.params({f"spec.p{i}": i for i in range(250)})
    kept = data(recorder).params
    assert (kept["spec.lr"], kept["spec.flag"], kept["spec.none"], kept["spec.ids"], kept["spec.text"]) == (
        "0.001",
        "true",
        "null",
        "[1, 2]",
        "ключ",
    )
    assert len(kept) == 255


def test_a_parameter_that_mlflow_would_cut_is_kept_as_its_digest(recorder):
    recorder.params({"spec.short": "x" * 6000, "spec.long": "x" * 6001})
    assert data(recorder).params["spec.short"] == "x" * 6000
    assert data(recorder).params["spec.long"] == "sha256:" + sha256_bytes(b"x" * 6001)


def test_the_same_parameter_twice_is_harmless_and_another_value_names_both(recorder):
    recorder.params({"version.torch": "2.13"})
    recorder.params({"version.torch": "2.13"})
    with pytest.raises(VerificationError, match=r"version.torch = 2.13, now it is 2.14"):
        recorder.params({"spec.new": 1, "version.torch": "2.14"})


def test_metrics_wait_for_the_batch_and_keep_their_order_time_and_step(recorder):
    before = int(time.time() * 1000)
    for step in range(499):
        recorder.metrics({"sae_fit/fvu": 1 / (1 + step)}, step)
    assert data(recorder).metrics == {}
    recorder.metrics({"sae_fit/fvu": 0.0}, 499)
    assert history(recorder, "sae_fit/fvu") == [*((step, 1 / (1 + step)) for step in range(499)), (499, 0.0)]
    times = [metric.timestamp for metric in recorder.client.get_metric_history(recorder.run_id, "sae_fit/fvu")]
    assert before <= min(times) <= max(times) <= int(time.time() * 1000)


def test_metrics_are_sent_after_five_seconds_without_a_full_batch(recorder, monkeypatch):
    recorder.metrics({"a/b": 1.0}, 0)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 6)
    recorder.metrics({"a/b": 2.0}, 1)
    assert history(recorder, "a/b") == [(0, 1.0), (1, 2.0)]


def test_a_number_that_is_none_becomes_a_tag_and_never_a_metric(recorder):
    recorder.metrics({"eval/a": math.nan, "eval/b": math.inf, "eval/c": -math.inf, "eval/d": 1.0}, 3)
    recorder.metrics({"eval/a": math.inf}, 4)
    recorder.flush()
    assert data(recorder).metrics == {"eval/d": 1.0}
    tags = data(recorder).tags
    assert tags["mlinterp.nonfinite.eval.a"] == "nan at step 3"
    assert tags["mlinterp.nonfinite.eval.b"] == "inf at step 3"
    assert tags["mlinterp.nonfinite.eval.c"] == "-inf at step 3"


def test_names_that_mlflow_refuses_are_cleaned_and_never_share_one_key(recorder):
    recorder.metrics({"layer[0]": 1.0, "layer(0)": 2.0, "a//../b": 3.0, "é/ü": 4.0, "x" * 300: 5.0}, 0)
    recorder.flush()
    kept = data(recorder).metrics
    assert sorted(kept.values()) == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert kept["layer_0_"] == 1.0
    assert kept["a/b"] == 3.0
    assert kept["é/ü"] == 4.0


class _Down:
    """A client whose store is away for a while."""

    def __init__(self, client):
        self.client, self.away = client, True

    def log_batch(self, *args, **kwargs):
        if self.away:
            raise TrackingError("down")
        return self.client.log_batch(*args, **kwargs)


def test_a_store_that_goes_away_in_mid_run_costs_no_metric(recorder):
    down = _Down(recorder.client)
    cut_off = Recorder(down, recorder.run_id)
    for step in range(600):
        cut_off.metrics({"a/b": float(step)}, step)
    with pytest.raises(TrackingError):
        cut_off.flush()
    down.away = False
    cut_off.flush()
    cut_off.flush()
    assert history(recorder, "a/b") == [(step, float(step)) for step in range(600)]


def test_tags_lose_credentials_and_one_that_mlflow_would_cut_is_refused(recorder):
    recorder.tags({"mlinterp.remote": "https://ada:hunter2@host/repo"})
    assert data(recorder).tags["mlinterp.remote"] == "https://host/repo"
    with pytest.raises(ValueError, match="9000 characters"):
        recorder.tags({"mlinterp.long": "x" * 9000})


def test_a_regular_file_becomes_an_artifact_under_its_folder(recorder, tmp_path):
    (tmp_path / "a.txt").write_text("hello")
    recorder.artifact(tmp_path / "a.txt", "notes")
    recorder.artifact(tmp_path / "a.txt")
    assert [item.path for item in recorder.client.list_artifacts(recorder.run_id)] == ["a.txt", "notes"]
    assert recorder.client.list_artifacts(recorder.run_id, "notes")[0].file_size == 5


def test_links_folders_pipes_and_names_that_lead_out_are_refused_as_artifacts(recorder, tmp_path):
    (tmp_path / "link").symlink_to("/etc/hostname")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "plain").write_text("x")
    for name in ("link", "folder", "pipe"):
        with pytest.raises(UnsafeError):
            recorder.artifact(tmp_path / name)
    for folder in ("..", "a/../..", "/etc", "%2e%2e", "a\\b", "a/./b"):
        with pytest.raises(UnsafeError):
            recorder.artifact(tmp_path / "plain", folder)
    assert recorder.client.list_artifacts(recorder.run_id) == []


def test_tables_are_written_for_spreadsheets_and_for_the_ui_and_tagged(recorder, tmp_path, experiment):
    tables = [
        ResultTable.of("tokens", [{"token": "=1+1", "n": 2, "x": None}, {"token": "@a", "n": 3, "x": 0.5}]),
        ResultTable.of("empty", [], columns=["a"]),
    ]
    names = recorder.tables(tables, tmp_path)
    assert names == ["tables/tokens.csv", "tables/tokens.json", "tables/empty.csv", "tables/empty.json"]
    assert (tmp_path / names[0]).read_text().splitlines()[1] == "'=1+1,2,"
    assert json.loads((tmp_path / names[1]).read_text()) == {"columns": ["token", "n", "x"], "data": [["=1+1", 2, None], ["@a", 3, 0.5]]}
    for name in names:
        recorder.artifact(tmp_path / name, "tables")
    assert json.loads(data(recorder).tags["mlflow.loggedArtifacts"]) == [{"path": name, "type": "table"} for name in names[1::2]]


@pytest.mark.filterwarnings("ignore:For backward compatibility, 'str' dtypes")
def test_a_tables_json_and_tag_are_what_mlflows_own_log_table_would_have_made(recorder, tmp_path, experiment):
    rows = [{"token": "=1", "n": 2, "x": None}, {"token": "@a", "n": 3, "x": 0.5}]
    (name,) = recorder.tables([ResultTable.of("tokens", rows)], tmp_path)[1:]
    recorder.artifact(tmp_path / name, "tables")
    theirs = recorder.client.create_run(experiment).info.run_id
    recorder.client.log_table(theirs, {key: [row[key] for row in rows] for key in rows[0]}, name)
    read = [json.loads(Path(recorder.client.download_artifacts(run, name)).read_text()) for run in (recorder.run_id, theirs)]
    assert read[0] == read[1]
    assert data(recorder).tags["mlflow.loggedArtifacts"] == recorder.client.get_run(theirs).data.tags["mlflow.loggedArtifacts"]


def test_an_input_is_mlflows_own_lineage(recorder):
    recorder.input("trace", "@trace", "ab" * 32, run_id="c" * 32)
    recorder.input("trace", "@trace", "ab" * 32, run_id="c" * 32)
    (item,) = recorder.client.get_run(recorder.run_id).inputs.dataset_inputs
    assert (item.dataset.name, item.dataset.digest) == ("trace", "ab" * 8)
    assert json.loads(item.dataset.source) == {"uri": f"runs:/{'c' * 32}"}
    assert {tag.key: tag.value for tag in item.tags} == {"mlflow.data.context": "trace"}
    assert data(recorder).tags["mlinterp.from.trace"] == "c" * 32


def test_a_model_that_went_in_is_a_model_input_too(recorder, experiment):
    model = recorder.client.create_logged_model(experiment, "sae")
    recorder.input("sae", "models:/sae@candidate", "cd" * 32, model_id=model.model_id)
    run = recorder.client.get_run(recorder.run_id)
    assert [item.model_id for item in run.inputs.model_inputs] == [model.model_id]
    assert run.data.tags["mlinterp.from.sae"] == "models:/sae@candidate"


def test_a_note_too_long_for_mlflow_says_that_it_was_cut(recorder):
    recorder.note("**Title**\n" + "x" * 9000)
    text = data(recorder).tags["mlflow.note.content"]
    assert len(text) == 8000
    assert text.endswith("(cut here: see report.md)")


def test_reporting_records_and_passes_on(recorder):
    seen = []

    class Listening(Silent):
        def metrics(self, values, step):
            seen.append((dict(values), step))

    reporter = recorder.reporting(Listening())
    reporter.metrics({"a/b": 1.0}, 7)
    with reporter.task("work", 3) as task:
        task.advance()
    recorder.flush()
    assert seen == [({"a/b": 1.0}, 7)]
    assert history(recorder, "a/b") == [(7, 1.0)]
