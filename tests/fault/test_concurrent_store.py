"""Several processes on one SQLite store: none dies, nothing is lost, nothing is there twice."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys

import pytest

from mlinterp.tracking.lease import take
from mlinterp.tracking.store import open_store

PROCESSES = 8

# Imports MLflow once; for each line it forks racers that wait for one gate, so that all reach the store in the same instant.
STARTER = """
import json, os, sys
from pathlib import Path
import mlflow.store.tracking.sqlalchemy_store, mlflow.store.model_registry.sqlalchemy_store, mlflow.tracking.client
from mlinterp.tracking.lease import reconcile
from mlinterp.tracking.life import RunLife
from mlinterp.tracking.store import open_store

def fresh(workspace):
    store = open_store(workspace)
    return store.client.create_run(store.experiment_id("one")).info.run_id

def metrics(workspace, steps):
    store = open_store(workspace)
    with RunLife(store, store.experiment_id("one"), "w", {}, workspace) as life:
        for step in range(steps):
            life.recorder.metrics({"a/b": float(step)}, step)
            if step % 100 == 0:
                life.recorder.flush()
    return life.run_id

for line in sys.stdin:
    work, workspace, count, args = json.loads(line)
    workspace = Path(workspace)
    gate, opener = os.pipe()
    racers = []
    for index in range(count):
        pid = os.fork()
        if pid == 0:
            try:
                os.close(opener)
                os.read(gate, 1)
                answer = globals()[work](workspace, *args)
                (workspace / f"answer-{index}").write_text(json.dumps(answer))
                os._exit(0)
            finally:
                os._exit(1)
        racers.append(pid)
    os.close(gate)
    os.close(opener)
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in racers]), flush=True)
"""


@pytest.fixture(scope="module")
def starter(tmp_path_factory):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    command = [sys.executable, "-c", STARTER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def race(starter):
    """Let several processes do the same thing at once and return their answers; all must succeed."""

    def start(work, workspace, *args, count=PROCESSES):
        workspace.mkdir(exist_ok=True)
        starter.stdin.write(json.dumps([work, str(workspace), count, args]) + "\n")
        starter.stdin.flush()
        assert json.loads(starter.stdout.readline()) == [0] * count
        return [json.loads((workspace / f"answer-{index}").read_text()) for index in range(count)]

    return start


def _whole(workspace):
    with sqlite3.connect(workspace / "mlruns.db") as db:
        return db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.parametrize("rounds", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_eight_processes_that_start_at_once_on_a_fresh_store_all_succeed(race, tmp_path, rounds):
    for number in range(rounds):
        workspace = tmp_path / str(number)
        answers = race("fresh", workspace)
        store = open_store(workspace)
        assert len(store.client.search_experiments(filter_string="name = 'one'")) == 1
        assert sorted(run.info.run_id for run in store.client.search_runs([store.experiment_id("one")])) == sorted(answers)
        assert _whole(workspace)


@pytest.mark.parametrize("steps", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_eight_writers_on_one_store_lose_nothing_and_write_nothing_twice(race, tmp_path, steps):
    answers = race("metrics", tmp_path, steps)
    with sqlite3.connect(tmp_path / "mlruns.db") as db:
        for run_id in answers:
            rows = db.execute("SELECT step, value FROM metrics WHERE run_uuid = ? ORDER BY step", (run_id,)).fetchall()
            assert rows == [(step, float(step)) for step in range(steps)]
    store = open_store(tmp_path)
    assert {run.info.status for run in store.client.search_runs([store.experiment_id("one")])} == {"FINISHED"}
    assert _whole(tmp_path)


def test_four_reconcilers_at_once_close_each_run_exactly_once(race, tmp_path):
    store = open_store(tmp_path)
    experiment = store.experiment_id("one")
    runs = [store.client.create_run(experiment).info.run_id for _ in range(10)]
    for run_id in runs:
        take(tmp_path, store, run_id)
        path = tmp_path / ".mlinterp" / "leases" / f"{run_id}.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "started": 1}))
    answers = race("reconcile", tmp_path, count=4)
    assert sorted(run_id for answer in answers for run_id in answer) == sorted(runs)
    assert {run.info.status for run in store.client.search_runs([experiment])} == {"KILLED"}
