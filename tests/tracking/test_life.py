from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time

import pytest

from mlinterp.errors import ExperimentError, Interrupted, SpecError, TrackingError
from mlinterp.progress import Silent
from mlinterp.tracking import lease, signals
from mlinterp.tracking.life import RunLife
from mlinterp.tracking.recorder import Recorder


@pytest.fixture
def life(store, experiment, tmp_path):
    def make(name="run", tags=None, run_id=None):
        return RunLife(store, experiment, name, tags or {}, tmp_path, run_id=run_id)

    return make


def run_of(store, life):
    return store.client.get_run(life.run_id)


def leases_of(workspace):
    return sorted((workspace / ".mlinterp" / "leases").glob("*.json"))


def test_a_run_that_ends_normally_is_finished_and_leaves_no_lease(life, store, tmp_path):
    with life("walk", {"mlinterp.type": "trace"}) as one:
        assert run_of(store, one).info.status == "RUNNING"
        assert [path.stem for path in leases_of(tmp_path)] == [one.run_id]
        one.recorder.metrics({"a/b": 1.0}, 0)
    run = run_of(store, one)
    assert (run.info.status, run.info.run_name, run.data.tags["mlinterp.type"]) == ("FINISHED", "walk", "trace")
    assert run.data.metrics == {"a/b": 1.0}
    assert run.info.end_time >= run.info.start_time
    assert not leases_of(tmp_path)
    assert one.links["run"] == f"#/experiments/{one.experiment_id}/runs/{one.run_id}?workflowType=machine_learning"


def test_an_error_is_told_in_one_line_without_secrets_and_metrics_are_kept(life, store, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_verysecretvalue")
    with pytest.raises(RuntimeError), life() as one:  # noqa: PT012
        one.recorder.metrics({"a/b": 1.0}, 0)
        raise RuntimeError("cannot open https://ada:hunter2@host/x\nwith hf_verysecretvalue\x1b[31m")
    run = run_of(store, one)
    assert run.info.status == "FAILED"
    assert run.data.tags["mlinterp.error"] == "RuntimeError: cannot open https://host/x with [secret]\\x1b[31m"
    assert run.data.metrics == {"a/b": 1.0}


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (ExperimentError("no latent is active"), "FAILED", "no latent is active"),
        (SystemExit(3), "FAILED", "SystemExit: 3"),
        (SystemExit("no"), "FAILED", "SystemExit: no"),
        (SystemExit(0), "FINISHED", None),
        (SystemExit(None), "FINISHED", None),
        (KeyboardInterrupt(), "KILLED", "KeyboardInterrupt"),
        (Interrupted(15), "KILLED", "stopped by signal 15"),
    ],
)
def test_each_way_out_of_the_block_has_its_status(life, store, error, status, told):
    with pytest.raises(type(error)), life() as one:
        raise error
    run = run_of(store, one)
    assert run.info.status == status
    assert run.data.tags.get("mlinterp.error") == told
    assert (run.data.tags.get("mlinterp.resumable") == "true") == (status == "KILLED")


@pytest.mark.parametrize("signum", signals.STOPPING)
def test_a_signal_raises_interrupted_in_the_block_and_the_old_handler_comes_back(life, store, signum):
    before = signal.signal(signum, signal.default_int_handler)
    try:
        with pytest.raises(Interrupted) as caught, life() as one:  # noqa: PT012
            os.kill(os.getpid(), signum)
            time.sleep(5)
        assert signal.getsignal(signum) is signal.default_int_handler
    finally:
        signal.signal(signum, before)
    assert caught.value.exit_code == 128 + signum
    assert run_of(store, one).info.status == "KILLED"


def test_a_signal_that_c_code_turns_into_an_error_of_its_own_still_counts_as_a_signal(life, store):
    with pytest.raises(Interrupted) as caught, life() as one:  # noqa: PT012
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        except Interrupted:
            raise ValueError("Invalid affine transformation matrix") from None
    assert caught.value.exit_code == 128 + signal.SIGTERM
    assert run_of(store, one).info.status == "KILLED"


def test_a_signal_to_nested_runs_kills_the_inner_then_the_outer(life, store):
    ended = []
    with pytest.raises(Interrupted), life("study") as outer:  # noqa: PT012
        with pytest.raises(Interrupted), life("step", {"mlflow.parentRunId": outer.run_id}) as inner:  # noqa: PT012
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        ended.append(run_of(store, inner).info.status)
        ended.append(run_of(store, outer).info.status)
        raise Interrupted(signal.SIGTERM)
    assert ended == ["KILLED", "RUNNING"]
    assert run_of(store, outer).info.status == "KILLED"


def test_a_signal_while_a_run_is_being_closed_leaves_it_finished_and_is_raised_afterwards(life, store, monkeypatch):
    flush = Recorder.flush

    def interrupted_flush(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)
        flush(self)

    monkeypatch.setattr(Recorder, "flush", interrupted_flush)
    with pytest.raises(Interrupted), life() as one:
        pass
    assert run_of(store, one).info.status == "FINISHED"


def test_a_signal_while_a_run_is_being_opened_leaves_it_killed(life, store, experiment, monkeypatch):
    take = lease.take

    def interrupted_take(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)
        return take(*args)

    monkeypatch.setattr(lease, "take", interrupted_take)
    with pytest.raises(Interrupted), life():
        raise AssertionError("the block must not be entered")
    (run,) = store.client.search_runs([experiment])
    assert run.info.status == "KILLED"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_python_loses_in_a_finalizer_stops_the_work_at_its_next_report(life, store):
    class Finalized:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)

    reports = []
    with pytest.raises(Interrupted), life() as one:  # noqa: PT012
        reporter = one.recorder.reporting(Silent())
        reporter.metrics({"a/b": 1.0}, 0)
        Finalized()
        reports.append("the signal is lost")
        reporter.metrics({"a/b": 2.0}, 1)
        reports.append("never")
    assert reports == ["the signal is lost"]
    assert run_of(store, one).info.status == "KILLED"


def test_signals_that_were_ignored_stay_ignored(life):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with life():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_run_in_another_thread_needs_no_signal_handlers(life, store):
    ended = []

    def work():
        with life() as one:
            pass
        ended.append(run_of(store, one).info.status)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ended == ["FINISHED"]


def test_a_killed_run_goes_on_under_its_id_and_forgets_that_it_was_killed(life, store):
    with pytest.raises(Interrupted), life() as first:
        raise Interrupted(15)
    with life("again", {"mlinterp.type": "trace"}, run_id=first.run_id) as second:
        run = run_of(store, second)
        assert run.info.status == "RUNNING"
        assert "mlinterp.resumable" not in run.data.tags
        assert "mlinterp.error" not in run.data.tags
    run = run_of(store, second)
    assert (second.run_id, run.info.status, run.data.tags["mlinterp.type"]) == (first.run_id, "FINISHED", "trace")


def test_a_finished_run_is_not_gone_on_with(life):
    with life() as one:
        pass
    with pytest.raises(SpecError, match="is finished"), life(run_id=one.run_id):
        raise AssertionError("the block must not be entered")


def test_the_run_that_mlflow_opened_for_this_process_is_adopted_once(life, store, experiment, monkeypatch):
    given = store.client.create_run(experiment).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", given)
    with life("study") as outer, life("step", {"mlflow.parentRunId": given}) as inner:
        assert outer.run_id == given
        assert inner.run_id != given
        assert "MLFLOW_RUN_ID" not in os.environ
    assert run_of(store, outer).info.status == "FINISHED"


def test_a_run_whose_metrics_cannot_be_sent_is_failed_and_raises(life, store, monkeypatch):
    def lost(self):
        raise TrackingError("down")

    monkeypatch.setattr(Recorder, "flush", lost)
    with pytest.raises(TrackingError), life() as one:
        pass
    run = run_of(store, one)
    assert (run.info.status, run.data.tags["mlinterp.error"]) == ("FAILED", "down")


def test_a_store_away_at_the_end_leaves_a_lease_that_says_which_status_is_due(life, store, tmp_path, monkeypatch):
    def away(*args):
        raise TrackingError("down")

    with monkeypatch.context() as patch:
        patch.setattr(lease, "end", away)
        with pytest.raises(ExperimentError), life() as one:
            raise ExperimentError("no answer")
    (path,) = leases_of(tmp_path)
    held = json.loads(path.read_text())
    assert held["ending"] == "FAILED"
    path.write_text(json.dumps({**held, "pid": 2**22 - 1}))
    assert lease.reconcile(tmp_path) == [one.run_id]
    assert run_of(store, one).info.status == "FAILED"
    assert "mlinterp.resumable" not in run_of(store, one).data.tags


@pytest.fixture
def orphan(store, experiment, tmp_path):
    """A RUNNING run whose lease is changed as told."""

    def make(**changes):
        run_id = store.client.create_run(experiment).info.run_id
        lease.take(tmp_path, store, run_id)
        path = tmp_path / ".mlinterp" / "leases" / f"{run_id}.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
        return run_id

    return make


@pytest.mark.parametrize(
    "changes", [{"started": 1}, {"pid": 2**22 - 1}, {"boot_id": "another"}], ids=["reused process id", "gone", "rebooted"]
)
def test_a_run_without_its_process_is_closed_as_killed_and_resumable(orphan, store, tmp_path, changes):
    run_id = orphan(**changes)
    assert lease.reconcile(tmp_path) == [run_id]
    run = store.client.get_run(run_id)
    assert (run.info.status, run.data.tags["mlinterp.resumable"]) == ("KILLED", "true")
    assert lease.reconcile(tmp_path) == []
    assert not leases_of(tmp_path)


@pytest.mark.parametrize("changes", [{}, {"host": "elsewhere", "pid": 1}], ids=["alive", "on another machine"])
def test_a_run_whose_process_lives_or_cannot_be_known_is_left_alone(orphan, store, tmp_path, changes):
    run_id = orphan(**changes)
    assert lease.reconcile(tmp_path) == []
    assert store.client.get_run(run_id).info.status == "RUNNING"
    assert len(leases_of(tmp_path)) == 1


def test_a_death_between_creating_a_run_and_its_lease_leaves_no_open_run(store, experiment, tmp_path):
    token = lease.announce(tmp_path, store, experiment)
    run_id = store.client.create_run(experiment, tags={lease.OPENING: token}).info.run_id
    (path,) = leases_of(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "started": 1}))
    assert lease.reconcile(tmp_path) == [run_id]
    assert store.client.get_run(run_id).info.status == "KILLED"


def test_a_run_that_is_worked_on_elsewhere_is_refused_by_name_of_the_process(store, experiment, tmp_path, orphan):
    parent = os.getppid()
    run_id = orphan(pid=parent, started=lease._start_time(parent))
    with pytest.raises(SpecError, match=f"process {parent}"):
        lease.take(tmp_path, store, run_id)


def test_a_run_that_was_closed_meanwhile_keeps_its_status(orphan, store, tmp_path):
    run_id = orphan(started=1)
    store.client.set_terminated(run_id, "FINISHED")
    assert lease.reconcile(tmp_path) == []
    assert store.client.get_run(run_id).info.status == "FINISHED"
    assert not leases_of(tmp_path)


def test_a_store_out_of_reach_keeps_its_leases_for_the_next_time(orphan, tmp_path, caplog):
    orphan(started=1, store_uri="http://127.0.0.1:9")
    assert lease.reconcile(tmp_path) == []
    assert len(leases_of(tmp_path)) == 1
    assert "stay open" in caplog.text


def test_files_among_the_leases_that_are_none_are_left_alone(tmp_path, orphan):
    run_id = orphan(started=1)
    folder = tmp_path / ".mlinterp" / "leases"
    (folder / "broken.json").write_text("{")
    (folder / "foreign.json").write_text('{"pid": 1}')
    assert lease.reconcile(tmp_path) == [run_id]
    assert [path.name for path in leases_of(tmp_path)] == ["broken.json", "foreign.json"]


def test_a_workspace_without_leases_is_reconciled_without_importing_mlflow(tmp_path):
    import subprocess
    import sys

    code = "import sys, pathlib; from mlinterp.tracking.lease import reconcile; reconcile(pathlib.Path(sys.argv[1]))"
    code += "; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == 0
    assert not list(tmp_path.iterdir())


def test_the_lease_names_this_process_and_no_credentials(store, tmp_path):
    held = lease.take(tmp_path, store, "a" * 32)
    assert (held.pid, held.host, held.is_alive, held.is_local) == (os.getpid(), socket.gethostname(), True, True)
    assert held.store_uri == store.shown_uri
