"""Who works on a run. A lease outlives its process, so whoever comes next can tell that the run has no owner any more.

`<workspace>/.mlinterp/leases/<run_id>.json` names the process (id, start time, boot, host), the store and, once the run is being
closed, its true status. `reconcile` gives every run of a dead process that status, or KILLED where it never came so far.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from mlinterp.errors import EnvironmentFault, SpecError, TrackingError
from mlinterp.io.atomic import write_json
from mlinterp.tracking.store import Store, locked, open_store, without_credentials

if TYPE_CHECKING:
    from mlflow import MlflowClient

RESUMABLE = "mlinterp.resumable"
OPENING = "mlinterp.opening"
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lease:
    """One run's owner.

    Attributes:
        run_id: the run.
        store_uri: its tracking store, without credentials.
        pid: the process.
        started: its start time in clock ticks since boot, which tells a reused process id apart; None where the system has no /proc.
        boot_id: the boot that ticks and pid belong to.
        host: the machine.
        ending: the status that the run is being closed with; None while it is worked on.
        opening: the experiment in which a run tagged `mlinterp.opening=<run_id>` is being created, before its own id is known.
    """

    run_id: str
    store_uri: str
    pid: int
    started: int | None
    boot_id: str | None
    host: str
    ending: str | None = None
    opening: str | None = None

    @property
    def is_local(self) -> bool:
        """Whether its owner ran on this machine, so that its death can be known here."""
        return self.host == socket.gethostname()

    @property
    def is_alive(self) -> bool:
        """Whether its owner still runs, on this machine."""
        return self.boot_id == _boot_id() and _start_time(self.pid) == self.started and (self.started is not None or _exists(self.pid))


def announce(workspace: Path, store: Store, experiment_id: str) -> str:
    """Write a lease for a run about to be created, and return the token to tag it with: a death in between leaves no open run."""
    token = uuid.uuid4().hex
    write_json(_folder(workspace) / f"{token}.json", asdict(replace(_own(store, token), opening=experiment_id)))
    return token


def take(workspace: Path, store: Store, run_id: str) -> Lease:
    """Write this process's lease on a run. Raises SpecError where a living process of this machine holds it."""
    lease = _own(store, run_id)
    with _locked_leases(workspace) as folder:
        held = _read(folder / f"{run_id}.json")
        if held is not None and held.pid != lease.pid and held.is_local and held.is_alive:
            raise SpecError(f"run {run_id[:12]} is being worked on by process {held.pid}", allowed="wait for it, or stop it first")
        write_json(folder / f"{run_id}.json", asdict(lease))
    return lease


def _own(store: Store, run_id: str) -> Lease:
    return Lease(run_id, store.shown_uri, os.getpid(), _start_time(os.getpid()), _boot_id(), socket.gethostname())


def note_ending(workspace: Path, lease: Lease, status: str) -> None:
    """Record the status that a run is being closed with, so that a death right now cannot falsify it."""
    write_json(_folder(workspace) / f"{lease.run_id}.json", asdict(replace(lease, ending=status)))


def work_folder(workspace: Path, run_id: str) -> Path:
    """Return the durable folder of a run; it goes once the run is finished."""
    return workspace / ".mlinterp" / "runs" / run_id


def release(workspace: Path, run_id: str) -> None:
    """Drop the lease of a run that is closed."""
    (_folder(workspace) / f"{run_id}.json").unlink(missing_ok=True)


def reconcile(workspace: Path) -> list[str]:
    """Close every run whose process is gone and return their ids; harmless at any time, from several processes at once.

    MLflow is imported only where there is something to close. A store that cannot be reached keeps its leases for the next time.
    """
    if not _folder(workspace).is_dir():
        return []
    closed = []
    with _locked_leases(workspace) as folder:
        stores: dict[str, Store | None] = {}
        for path in sorted(folder.glob("*.json")):
            lease = _read(path)
            if lease is None or not lease.is_local or lease.is_alive:
                continue
            if lease.store_uri not in stores:
                stores[lease.store_uri] = _reopen(workspace, lease.store_uri)
            store = stores[lease.store_uri]
            ended = _close(store, lease) if store is not None else None
            if ended is not None:
                if lease.ending == "FINISHED":
                    shutil.rmtree(work_folder(workspace, lease.run_id), ignore_errors=True)
                path.unlink()
                closed += ended
    return closed


def _reopen(workspace: Path, shown_uri: str) -> Store | None:
    current = os.environ.get("MLFLOW_TRACKING_URI")
    same = current is not None and without_credentials(current) == shown_uri
    try:
        return open_store(workspace, current if same else shown_uri)
    except (TrackingError, EnvironmentFault) as error:
        _LOG.warning("runs of a dead process stay open: %s", error)
        return None


def _close(store: Store, lease: Lease) -> list[str] | None:
    """Give the runs of a lease their status and return their ids; None where the store could not be reached."""
    from mlflow.exceptions import MlflowException

    closed = []
    try:
        if lease.opening is None:
            runs = [store.client.get_run(lease.run_id)]
        else:
            runs = store.client.search_runs([lease.opening], f"tags.`{OPENING}` = '{lease.run_id}'")
        for run in runs:
            if run.info.status in {"RUNNING", "SCHEDULED"}:
                end(store.client, run.info.run_id, lease.ending or "KILLED")
                closed.append(run.info.run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
    except TrackingError as error:
        _LOG.warning("run %s stays open: %s", lease.run_id, error)
        return None
    return closed


def end(client: MlflowClient, run_id: str, status: str) -> None:
    """Set a run's final status; a killed run can be resumed."""
    if status == "KILLED":
        client.set_tag(run_id, RESUMABLE, "true")
    client.set_terminated(run_id, status=status)


def _folder(workspace: Path) -> Path:
    return workspace / ".mlinterp" / "leases"


@contextmanager
def _locked_leases(workspace: Path) -> Iterator[Path]:
    with locked(_folder(workspace) / ".lock"):
        yield _folder(workspace)


def _read(path: Path) -> Lease | None:
    """Return a lease, or None where there is none. One that cannot be read was not written by us: leave it alone."""
    try:
        data = json.loads(path.read_text())
        lease = Lease(**data)
    except (OSError, ValueError, TypeError):
        return None
    return lease if re.fullmatch(r"[0-9a-f]{32}", str(lease.run_id)) else None


@cache
def _boot_id() -> str | None:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


def _start_time(pid: int) -> int | None:
    """Return when a process started, in ticks; None where it is gone, a zombie, or there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] == b"Z" else int(fields[19])


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
