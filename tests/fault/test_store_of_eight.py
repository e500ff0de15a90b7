"""Eight processes that fit, log and register SAEs of one site in one workspace at the same time."""

from __future__ import annotations

import json
import sqlite3

import pytest
import workbench
from forkserver import ForkServer

from mlinterp.io.manifest import verify
from mlinterp.tracking.registry import resolve_model
from mlinterp.tracking.store import open_store

PROCESSES = 8


@pytest.fixture
def server(tmp_path):
    server = ForkServer(tmp_path)
    yield server
    server.close()


@pytest.mark.slow
def test_eight_fits_at_once_are_eight_versions_and_the_newest_is_the_candidate(server, tmp_path):
    study = workbench.make(tmp_path)
    workbench.write(study, {"type": "study", "subject": "trm", "steps": workbench.STEPS[:2]})
    server.do("run", study)
    store = open_store(tmp_path)
    experiment = store.experiment_id("bench")
    runs = {run.data.tags.get("mlinterp.label", "study"): run.info.run_id for run in store.client.search_runs([experiment])}
    fit = workbench.step("sae", runs, steps=20)
    specs = [workbench.write(study.parent / f"fit-{seed}.yaml", {**fit, "seed": seed}) for seed in range(PROCESSES)]
    crowd = server.start("crowd", specs, tmp_path)
    assert crowd.answer() == [0] * PROCESSES, crowd.said()

    fits = store.client.search_runs([experiment], "tags.`mlinterp.kind` = 'sae_fit'")
    assert [run.info.status for run in fits] == ["FINISHED"] * PROCESSES
    for run in fits:
        folder = tmp_path / "mlartifacts" / "bench" / run.info.run_id / "artifacts"
        verify(folder, json.loads((folder / "manifest.json").read_text()))
    versions = store.client.search_model_versions(f"name = '{workbench.SITE_MODEL}'")
    assert sorted(int(version.version) for version in versions) == list(range(1, PROCESSES + 1))
    assert {version.run_id for version in versions} == {run.info.run_id for run in fits}
    newest = resolve_model(store, f"models:/{workbench.SITE_MODEL}@candidate")
    assert newest.version == PROCESSES
    assert newest.run_id == next(version.run_id for version in versions if int(version.version) == PROCESSES)
    assert not list((tmp_path / ".mlinterp" / "leases").glob("*.json"))
    assert not list((tmp_path / ".mlinterp" / "runs").iterdir())
    with sqlite3.connect(tmp_path / "mlruns.db") as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
