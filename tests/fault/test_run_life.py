"""Every way a process can end, with real processes and real signals: the run's status and the exit code must both be true."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlinterp.tracking.lease import reconcile
from mlinterp.tracking.store import open_store

# The launcher imports MLflow once and forks a supervisor for each line it reads, so that an ending costs no import.
LAUNCHER = """
import os, signal, sys, time
from pathlib import Path
from mlinterp.tracking.life import RunLife
from mlinterp.tracking.store import open_store
from mlinterp.tracking.supervise import supervised
import mlflow.store.tracking.sqlalchemy_store, mlflow.store.model_registry.sqlalchemy_store, mlflow.tracking.client

def work(ending, workspace):
    store = open_store(workspace)
    experiment = store.experiment_id("fault")
    with RunLife(store, experiment, ending, {}, workspace) as outer:
        with RunLife(store, experiment, "step", {"mlflow.parentRunId": outer.run_id}, workspace) as life:
            life.recorder.metrics({"a/b": 1.0}, 0)
            (workspace / "worker.tmp").write_text(str(os.getpid()))
            (workspace / "worker.tmp").rename(workspace / "worker")
            if ending == "exception":
                raise RuntimeError("boom")
            if ending == "_exit":
                os._exit(9)
            if ending == "segfault":
                os.kill(os.getpid(), signal.SIGSEGV)
            if ending.startswith("exit"):
                sys.exit(int(ending[4:]))
            if ending == "deaf":
                try:
                    time.sleep(60)
                finally:
                    time.sleep(60)
            if ending == "short":
                time.sleep(1)
            if ending == "wait":
                time.sleep(60)
    return 0

for line in sys.stdin:
    ending, workspace = line.rstrip("\\n").split("\\t")
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        os.close(0)
        os._exit(supervised(lambda: work(ending, Path(workspace)), Path(workspace)))
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def launcher(tmp_path_factory):
    script = tmp_path_factory.mktemp("launcher") / "launcher.py"
    script.write_text(LAUNCHER)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    with subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as process:
        yield process
        process.stdin.close()


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    folder = tmp_path_factory.mktemp("template")
    open_store(folder)
    return folder / "mlruns.db"


class Shot:
    """One process with its own store."""

    def __init__(self, launcher, workspace: Path, template: Path, ending: str) -> None:
        self.launcher, self.workspace = launcher, workspace
        (workspace / "mlruns.db").write_bytes(template.read_bytes())
        launcher.stdin.write(f"{ending}\t{workspace}\n")
        launcher.stdin.flush()
        self.supervisor = int(launcher.stdout.readline())

    def worker(self) -> int:
        until = time.monotonic() + 30
        while not (self.workspace / "worker").exists():
            assert time.monotonic() < until
            time.sleep(0.01)
        return int((self.workspace / "worker").read_text())

    def code(self) -> int:
        return int(self.launcher.stdout.readline())

    def statuses(self) -> dict[str, str]:
        store = open_store(self.workspace)
        runs = store.client.search_runs([store.experiment_id("fault")])
        return {("inner" if run.info.run_name == "step" else "outer"): run.info.status for run in runs}

    def resumable(self) -> list[bool]:
        store = open_store(self.workspace)
        return [run.data.tags.get("mlinterp.resumable") == "true" for run in store.client.search_runs([store.experiment_id("fault")])]


@pytest.fixture
def shoot(launcher, tmp_path, template):
    return lambda ending: Shot(launcher, tmp_path, template, ending)


def both(status: str) -> dict[str, str]:
    return {"inner": status, "outer": status}


@pytest.mark.parametrize(
    ("ending", "code", "status"),
    [
        ("success", 0, "FINISHED"),
        ("exit0", 0, "FINISHED"),
        ("exit3", 3, "FAILED"),
        ("exception", 1, "FAILED"),
        ("_exit", 9, "KILLED"),
        ("segfault", 128 + signal.SIGSEGV, "KILLED"),
    ],
)
def test_a_process_that_ends_by_itself_leaves_true_statuses_and_its_code(shoot, ending, code, status):
    shot = shoot(ending)
    assert shot.code() == code
    assert shot.statuses() == both(status)
    assert not list((shot.workspace / ".mlinterp" / "leases").glob("*.json"))


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("to", ["supervisor", "worker", "group"])
def test_a_stopping_signal_leaves_killed_resumable_runs_and_its_code(shoot, signum, to):
    shot = shoot("wait")
    worker = shot.worker()
    begun = time.monotonic()
    if to == "group":
        os.killpg(shot.supervisor, signum)
    else:
        os.kill(shot.supervisor if to == "supervisor" else worker, signum)
    assert shot.code() == 128 + signum
    assert time.monotonic() - begun < 10
    assert shot.statuses() == both("KILLED")
    assert shot.resumable() == [True, True]


def test_a_second_signal_ends_a_process_that_does_not_stop(shoot):
    shot = shoot("deaf")
    shot.worker()
    os.kill(shot.supervisor, signal.SIGINT)
    time.sleep(1.2)
    os.kill(shot.supervisor, signal.SIGINT)
    assert shot.code() == 128 + signal.SIGINT
    assert shot.statuses() == both("KILLED")


def test_a_worker_that_is_killed_outright_is_recorded_at_once(shoot):
    shot = shoot("wait")
    os.kill(shot.worker(), signal.SIGKILL)
    assert shot.code() == 128 + signal.SIGKILL
    assert shot.statuses() == both("KILLED")
    assert shot.resumable() == [True, True]


def test_a_worker_whose_supervisor_is_killed_still_finishes(shoot):
    shot = shoot("short")
    shot.worker()
    os.kill(shot.supervisor, signal.SIGKILL)
    assert shot.code() == -signal.SIGKILL
    until = time.monotonic() + 20
    while shot.statuses() != both("FINISHED"):
        assert time.monotonic() < until
        time.sleep(0.1)


def test_when_both_are_killed_the_next_command_closes_their_runs(shoot):
    shot = shoot("wait")
    worker = shot.worker()
    os.kill(shot.supervisor, signal.SIGKILL)
    os.kill(worker, signal.SIGKILL)
    assert shot.code() == -signal.SIGKILL
    assert shot.statuses() == both("RUNNING")
    until = time.monotonic() + 10
    closed: list[str] = []
    while len(closed) < 2:  # the system takes a moment to take a killed process away
        closed += reconcile(shot.workspace)
        assert time.monotonic() < until
    assert shot.statuses() == both("KILLED")
    assert shot.resumable() == [True, True]


FIT = """
import os, sys, torch
from pathlib import Path
from mlinterp.progress import Silent
from mlinterp.trainer import ResumableModule, fit
from mlinterp.tracking.life import RunLife
from mlinterp.tracking.store import open_store
from mlinterp.tracking.supervise import supervised

workspace = Path(sys.argv[1])

class Endless(ResumableModule):
    stage, total_steps = "fit", 10**7
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(4))
    def fingerprint(self):
        return {}
    def tensors(self):
        return {"weight": self.weight.detach()}
    def restore(self, tensors):
        self.weight.data.copy_(tensors["weight"])
    def inner_step(self, step):
        if step == 50:
            (workspace / "worker.tmp").write_text(str(os.getpid()))
            (workspace / "worker.tmp").rename(workspace / "worker")
        return {"loss": float(step)}

def work():
    store = open_store(workspace)
    with RunLife(store, store.experiment_id("fault"), "fit", {}, workspace) as life:
        fit(Endless(), workspace / "fit", life.recorder.reporting(Silent()), checkpoint_every=10**6)
    return 0

sys.exit(supervised(work, workspace))
"""


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_lightning_does_not_swallow_a_signal_in_the_middle_of_a_fit(tmp_path, template, signum):
    (tmp_path / "mlruns.db").write_bytes(template.read_bytes())
    (tmp_path / "fit.py").write_text(FIT)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    with subprocess.Popen([sys.executable, str(tmp_path / "fit.py"), str(tmp_path)], env=environment) as process:
        try:
            until = time.monotonic() + 90
            while not (tmp_path / "worker").exists():
                assert time.monotonic() < until
                time.sleep(0.05)
            process.send_signal(signum)
            assert process.wait(30) == 128 + signum
        finally:
            process.kill()
            if (tmp_path / "worker").exists():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int((tmp_path / "worker").read_text()), signal.SIGKILL)
    store = open_store(tmp_path)
    (run,) = store.client.search_runs([store.experiment_id("fault")])
    assert (run.info.status, run.data.tags["mlinterp.error"]) == ("KILLED", f"stopped by signal {int(signum)}")
    assert run.data.metrics["fit/loss"] >= 49
