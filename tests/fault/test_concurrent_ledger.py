"""Several processes at one project's hypotheses, each from a workspace of its own: only the server is shared, no lock file."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import evidence
import pytest

from mlinterp.hypotheses.ledger import Ledger
from mlinterp.hypotheses.lineage import project_lineage
from mlinterp.hypotheses.records import Declaration
from mlinterp.tracking.server import running
from mlinterp.tracking.store import open_store

WORKER = """
import sys, time
from pathlib import Path
import evidence
from mlinterp.hypotheses.records import Declaration
from mlinterp.project import find_project

workspace, go, what, count = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
session = evidence.session(find_project(workspace / "projects" / "maze"))
session.ledger.all()
print("ready", flush=True)
while not go.exists():
    time.sleep(0.002)
for number in range(count):
    if what == "claim":
        print(session.ledger.add(Declaration(claim=f"claim {number} of {workspace.name}")).id, flush=True)
    else:
        print(evidence.run(session, what, run_key=f"{workspace.name} {number}"), flush=True)
"""


@pytest.fixture
def home(tmp_path, template) -> Path:
    """The workspace whose store is served."""
    folder = tmp_path / "home"
    folder.mkdir()
    shutil.copyfile(template, folder / "mlruns.db")
    return folder


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def at_once(folder: Path, address: str, what: str, workers: int, count: int) -> list[str]:
    """Let several processes do the same at once and return every line that they said."""
    script, go = folder / "worker.py", folder / f"go-{time.monotonic_ns()}"
    script.write_text(WORKER)
    environment = {**os.environ, "MLFLOW_TRACKING_URI": address, "PYTHONPATH": str(Path(evidence.__file__).parent), "OMP_NUM_THREADS": "1"}
    started = []
    for number in range(workers):
        workspace = folder / f"{go.name}-{number}"
        evidence.project(workspace)
        command = [sys.executable, str(script), str(workspace), str(go), what, str(count)]
        started.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    try:
        assert [worker.stdout.readline().strip() for worker in started] == ["ready"] * workers
        go.touch()
        said = [worker.communicate(timeout=120)[0].split() for worker in started]
        assert [worker.returncode for worker in started] == [0] * workers
    finally:
        for worker in started:
            worker.kill()
            worker.stdout.close()
            worker.wait()
    return [line for lines in said for line in lines]


@pytest.mark.parametrize(("workers", "count"), [(3, 2), pytest.param(8, 6, marks=pytest.mark.slow)])
def test_ids_are_unique_when_processes_add_at_once(home, tmp_path, workers, count):
    port = free_port()
    with running(open_store(home), port):
        got = at_once(tmp_path, f"http://127.0.0.1:{port}", "claim", workers, count)
    assert len(got) == len(set(got)) == workers * count
    ledger = Ledger.open(evidence.project(home))
    assert sorted(one.id for one in ledger.all()) == sorted(got)
    assert len({one.declared.claim for one in ledger.all()}) == workers * count


@pytest.mark.parametrize(("workers", "count"), [(2, 2), pytest.param(6, 5, marks=pytest.mark.slow)])
def test_evidence_at_once_a_deleted_run_and_a_restarted_server_leave_a_true_lineage(home, tmp_path, workers, count):
    ledger = Ledger.open(evidence.project(home))
    h001 = ledger.add(Declaration(claim="the last state holds the whole answer", alpha=0.2)).id
    port = free_port()
    with running(open_store(home), port):
        runs = at_once(tmp_path, f"http://127.0.0.1:{port}", h001, workers, count)
    ledger.store.client.delete_run(runs[0])
    with running(open_store(home), port):
        runs += at_once(tmp_path, f"http://127.0.0.1:{port}", h001, workers, count)
    there = ledger.get(h001)
    standing = {ruling.evidence.run_id: ruling.evidence.standing for ruling in there.evaluation.rulings}
    assert standing == {run: "counted" if run != runs[0] else "deleted" for run in runs}
    page = ledger.store.client.get_run(there.run_id)
    assert page.data.tags["mlinterp.status"] == there.status == "supported"
    assert page.data.metrics["hypothesis/confidence"] == there.evaluation.confidence
    assert page.data.tags["mlinterp.evidence"].startswith(f"{2 * workers * count - 1} for")
    for ruling in there.evaluation.rulings[1:]:
        assert ledger.store.client.get_run(ruling.evidence.run_id).data.tags["mlinterp.verdict"] == ruling.verdict
    lineage = project_lineage(ledger.store, ledger.experiment_id)
    assert {edge.source for edge in lineage.edges if edge.kind == "evidence"} == set(runs[1:])
