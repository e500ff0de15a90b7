from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mlinterp.errors import SpecError, UnsafeError, VerificationError
from mlinterp.io.manifest import write_manifest
from mlinterp.result import ExperimentResult
from mlinterp.spec import Spec
from mlinterp.tracking import queries
from mlinterp.tracking.life import RunLife

SPEC = Spec.model_validate({"type": "trace", "subject": "tiny", "variables": {"sites": ["a"]}})


@pytest.fixture
def finished(store, experiment, tmp_path):
    """Make a finished run with tags and artifacts."""

    def make(tags=None, files=None, status=None):
        work = tmp_path / "work"
        shutil.rmtree(work, ignore_errors=True)
        content = {"spec.resolved.json": SPEC.model_dump_json(exclude_none=True).encode(), **(files or {})}
        life = RunLife(store, experiment, "run", {"mlinterp.spec_sha256": SPEC.sha256(), **(tags or {})}, tmp_path)
        with life:
            for name, data in content.items():
                (work / name).parent.mkdir(parents=True, exist_ok=True)
                (work / name).write_bytes(data)
                life.recorder.artifact(work / name, str(Path(name).parent))
            write_manifest(work, content)
            life.recorder.artifact(work / "manifest.json")
        if status:
            store.client.set_terminated(life.run_id, status)
        return life.run_id

    return make


def artifact(store, run_id, name) -> Path:
    return Path(store.client.get_run(run_id).info.artifact_uri.removeprefix("file://")) / name


def test_only_a_finished_run_with_the_key_is_the_same_run(store, experiment, finished):
    finished({"mlinterp.run_key": "k1"}, status="FAILED")
    assert queries.find_finished(store, experiment, "k1") is None
    first, second = finished({"mlinterp.run_key": "k1"}), finished({"mlinterp.run_key": "k1"})
    assert first != second
    assert queries.find_finished(store, experiment, "k1").info.run_id == second
    assert queries.find_finished(store, experiment, "k2") is None


def test_the_latest_of_a_role_is_asked_for_by_subject(store, experiment, finished):
    finished({"mlinterp.produces": "trace", "mlinterp.subject": "a"})
    newest = finished({"mlinterp.produces": "trace", "mlinterp.subject": "b"})
    assert queries.latest(store, experiment, "trace", "b") == newest
    assert queries.latest(store, experiment, "trace", None) == newest
    assert queries.latest(store, experiment, "sae", "b") is None


def test_a_run_is_found_by_the_beginning_of_its_id(store, finished):
    run_id = finished()
    assert queries.run_by_prefix(store, run_id[:8]).info.run_id == run_id
    assert queries.run_by_prefix(store, run_id).info.run_id == run_id


@pytest.mark.parametrize("prefix", ["", "abc", "%%%%", "0000' or '1", "ffffffff", "ABCD"])
def test_a_beginning_that_no_run_has_is_refused(store, prefix):
    with pytest.raises(SpecError):
        queries.run_by_prefix(store, prefix)


def test_children_and_downstream_runs_are_found_oldest_first(store, experiment, finished):
    parent = finished()
    children = [finished({"mlflow.parentRunId": parent}) for _ in range(2)]
    below = [finished({"mlinterp.upstream": f"{'a' * 32},{parent}"})]
    assert [run.info.run_id for run in queries.children(store, experiment, parent)] == children
    assert [run.info.run_id for run in queries.downstream(store, experiment, parent)] == below


def test_recent_runs_are_plain_rows_newest_first(tmp_path, finished):
    ids = [finished({"mlinterp.hypothesis": "h001"}) for _ in range(3)]
    rows = queries.recent_runs(tmp_path, 2)
    assert [row["run_id"] for row in rows] == [ids[2][:12], ids[1][:12]]
    assert (rows[0]["status"], rows[0]["project"], rows[0]["hypothesis"]) == ("finished", "maze", "h001")


def test_artifacts_come_back_verified_and_whole_ones_are_not_fetched_again(store, finished, tmp_path):
    run_id = finished(files={"trace.jsonl": b'{"a": 1}\n', "states/0.npy": b"\x00\x01"})
    into = tmp_path / "cache"
    assert queries.fetch(store, run_id, ["trace.jsonl", "states/0.npy"], into) == into
    assert (into / "states" / "0.npy").read_bytes() == b"\x00\x01"
    artifact(store, run_id, "states/0.npy").write_bytes(b"\x00\x02")
    queries.fetch(store, run_id, ["states/0.npy"], into)
    assert (into / "states" / "0.npy").read_bytes() == b"\x00\x01"
    assert not list(into.glob(".download-*"))


def test_a_flipped_bit_a_truncation_and_a_missing_file_are_named(store, finished, tmp_path):
    run_id = finished(files={"a.npy": b"0123456789"})
    for damage in (b"0123456788", b"0123", None):
        path = artifact(store, run_id, "a.npy")
        path.unlink() if damage is None else path.write_bytes(damage)
        with pytest.raises(VerificationError, match=r"'a.npy'"):
            queries.fetch(store, run_id, ["a.npy"], tmp_path / "cache")
        assert not (tmp_path / "cache" / "a.npy").exists()


def test_a_damaged_or_missing_manifest_is_named(store, experiment, finished, tmp_path):
    run_id = finished(files={"a.npy": b"x"})
    path = artifact(store, run_id, "manifest.json")
    path.write_text(path.read_text().replace('"bytes": 1', '"bytes": 2'))
    with pytest.raises(VerificationError, match=r"manifest.json"):
        queries.manifest(store, run_id)
    path.unlink()
    with pytest.raises(VerificationError, match=r"manifest.json"):
        queries.manifest(store, run_id)


@pytest.mark.parametrize(
    "name",
    [
        "../manifest.json",
        "/etc/passwd",
        "a/../../b",
        "%2e%2e/x",
        "..%2fx",
        "a\\..\\b",
        "",
        ".",
        "a//b",
        "./a",
        "~/x",
        "a\x00b",
        "file:///x",
        "a\n",
    ],
)
def test_names_that_could_lead_out_of_a_run_are_refused(store, finished, tmp_path, name):
    run_id = finished()
    with pytest.raises(UnsafeError):
        queries.fetch(store, run_id, [name], tmp_path / "cache")


def test_an_artifact_outside_the_manifest_is_refused(store, finished, tmp_path):
    run_id = finished()
    with pytest.raises(VerificationError, match="in its manifest"):
        queries.fetch(store, run_id, ["other.txt"], tmp_path / "cache")


def test_a_link_in_the_cache_is_refused(store, finished, tmp_path):
    run_id = finished(files={"a.npy": b"x"})
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "a.npy").symlink_to("/etc/hostname")
    with pytest.raises(UnsafeError, match="symbolic link"):
        queries.fetch(store, run_id, ["a.npy"], tmp_path / "cache")


def test_what_a_run_was_asked_comes_back_with_its_place(store, experiment, finished):
    run_id = finished({"mlinterp.project_root": "projects/maze"})
    recorded = queries.recorded_spec(store, run_id[:10])
    assert recorded.spec == SPEC
    assert (recorded.run_id, recorded.experiment_id, recorded.project_root) == (run_id, experiment, "projects/maze")


def test_a_spec_that_was_altered_in_the_store_is_refused(store, finished):
    run_id = finished()
    path = artifact(store, run_id, "spec.resolved.json")
    path.write_text(path.read_text().replace("tiny", "huge"))
    with pytest.raises(VerificationError, match="spec_sha256"):
        queries.recorded_spec(store, run_id)


def test_the_result_of_a_finished_run_comes_back(store, finished):
    result = ExperimentResult(metrics={"a/b": 1.5})
    run_id = finished(files={"result.json": result.model_dump_json(by_alias=True).encode()})
    assert queries.recorded_result(store, run_id).metrics == {"a/b": 1.5}
