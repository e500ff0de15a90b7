from __future__ import annotations

import sqlite3
import time

import pytest

from mlinterp.errors import EnvironmentFault, TrackingError
from mlinterp.tracking.store import open_store, without_credentials


def test_without_an_address_the_store_is_a_wal_file_in_the_workspace_with_artifacts_beside_it(tmp_path):
    store = open_store(tmp_path)
    assert store.uri == f"sqlite:///{tmp_path / 'mlruns.db'}"
    assert store.artifact_root == str(tmp_path / "mlartifacts")
    with sqlite3.connect(tmp_path / "mlruns.db") as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert not list(tmp_path.glob("*.new*"))


def test_an_address_in_the_environment_is_used_and_an_explicit_one_goes_before_it(tmp_path, template, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{template}")
    assert open_store(tmp_path).uri == f"sqlite:///{template}"
    (tmp_path / "other.db").write_bytes(template.read_bytes())
    assert open_store(tmp_path, f"sqlite:///{tmp_path / 'other.db'}").uri.endswith("other.db")


def test_an_experiment_is_created_once_with_an_absolute_artifact_location(store, tmp_path):
    first = store.experiment_id("maze walk")
    assert store.experiment_id("maze walk") == first
    assert store.client.get_experiment(first).artifact_location == f"{tmp_path}/mlartifacts/maze_walk"


def test_a_deleted_experiment_is_refused_with_the_command_that_brings_it_back(store):
    identity = store.experiment_id("gone")
    store.client.delete_experiment(identity)
    with pytest.raises(EnvironmentFault, match=f"mlflow experiments restore --experiment-id {identity}"):
        store.experiment_id("gone")


def test_an_experiment_behind_a_server_is_refused_by_a_store_that_bypasses_it(store):
    store.client.create_experiment("served", artifact_location="mlflow-artifacts:/7")
    with pytest.raises(EnvironmentFault, match="http address"):
        store.experiment_id("served")


@pytest.mark.parametrize("uri", ["file:./mlruns", "./mlruns", "databricks", "ftp://x/y"])
def test_a_store_that_cannot_hold_runs_is_refused_in_one_line(tmp_path, uri):
    with pytest.raises(EnvironmentFault, match="cannot hold runs") as caught:
        open_store(tmp_path, uri)
    assert "\n" not in str(caught.value)


def test_a_server_that_is_down_gives_a_tracking_error_within_seconds_and_without_its_password(tmp_path):
    begun = time.monotonic()
    with pytest.raises(TrackingError) as caught:
        open_store(tmp_path, "http://ada:hunter2@127.0.0.1:9/mlflow")
    assert time.monotonic() - begun < 15
    assert "hunter2" not in str(caught.value)
    assert "connection refused" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_database_gives_a_tracking_error(tmp_path):
    (tmp_path / "mlruns.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(TrackingError):
        open_store(tmp_path)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://ada:pw@host:8080/a?token=t#f", "https://host:8080/a"),
        ("postgresql://u:p@db/mlflow", "postgresql://db/mlflow"),
        ("sqlite:////w/mlruns.db", "sqlite:////w/mlruns.db"),
        ("http://[::1]:5000", "http://[::1]:5000"),
    ],
)
def test_credentials_are_taken_out_of_addresses(uri, shown):
    assert without_credentials(uri) == shown
