"""A run from opening to its true status, whatever ends the process.

how the block ends                  status     tags
normally, sys.exit(0)               FINISHED
exception, sys.exit(other)          FAILED     mlinterp.error
INT, TERM, HUP                      KILLED     mlinterp.resumable
SIGKILL, crash, power loss          KILLED     mlinterp.resumable   (set by `lease.reconcile`)
"""

from __future__ import annotations

import getpass
import logging
import os
import shutil
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType

from mlinterp.errors import Interrupted, MlinterpError, SpecError, TrackingError
from mlinterp.io.text import scrub, visible
from mlinterp.tracking import lease as leases
from mlinterp.tracking import links, notes, signals
from mlinterp.tracking.recorder import Recorder
from mlinterp.tracking.store import Store

ERROR = "mlinterp.error"
_LOG = logging.getLogger(__name__)


class RunLife:
    """Context manager over one MLflow run.

    Opens a new run; or goes on with `run_id`; or, outermost, adopts the run that `mlflow run` opened for this process
    (MLFLOW_RUN_ID). Lives may be nested: a signal ends the inner run, then the outer, each as KILLED.

    Attributes:
        run_id, run_name: the run, once entered.
        recorder: what logs to it.
    """

    run_id: str
    recorder: Recorder

    def __init__(
        self,
        store: Store,
        experiment_id: str,
        run_name: str,
        tags: Mapping[str, str],
        workspace: Path,
        *,
        run_id: str | None = None,
    ) -> None:
        self.store, self.experiment_id, self.run_name = store, experiment_id, run_name
        self._tags, self._workspace, self._given = dict(tags), workspace, run_id
        self._stack = ExitStack()

    @property
    def links(self) -> dict[str, str]:
        """What to open in the UI, relative to a server's root."""
        return {"run": links.run(self.experiment_id, self.run_id), "project": links.experiment(self.experiment_id)}

    def __enter__(self) -> RunLife:
        """Open the run. Raises SpecError for a run to resume that is finished or held by a living process."""
        with ExitStack() as stack:
            stack.enter_context(signals.listening())
            try:
                with signals.deferred():
                    self._open()
            except Interrupted as stopped:
                self._close("KILLED", stopped)
                raise
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close the run with its true status, and listen to signals no longer."""
        with self._stack, signals.deferred():
            stopped = signals.behind(error)
            self._close(_status(stopped or error), stopped or error)
            if stopped is not None:
                raise stopped from error

    def _open(self) -> None:
        client = self.store.client
        adopted = os.environ.get("MLFLOW_RUN_ID") if "mlflow.parentRunId" not in self._tags else None
        existing = self._given or adopted
        if existing is None:
            token = leases.announce(self._workspace, self.store, self.experiment_id)
            run = client.create_run(self.experiment_id, tags={**_about(), **self._tags, leases.OPENING: token}, run_name=self.run_name)
            self.run_id = run.info.run_id
            self._lease = leases.take(self._workspace, self.store, self.run_id)
            leases.release(self._workspace, token)
            client.delete_tag(self.run_id, leases.OPENING)
        else:
            os.environ.pop("MLFLOW_RUN_ID", None)  # or every run below this one would adopt it too
            run = client.get_run(existing)
            if run.info.status == "FINISHED":
                raise SpecError(f"run {existing[:12]} is finished", allowed="only a run that was stopped or failed can go on")
            self.run_id, self.experiment_id = run.info.run_id, run.info.experiment_id
            self._lease = leases.take(self._workspace, self.store, self.run_id)
            client.update_run(self.run_id, status="RUNNING", name=self.run_name)
            for stale in {leases.RESUMABLE, ERROR} & run.data.tags.keys():
                client.delete_tag(self.run_id, stale)
        self.recorder = Recorder(client, self.run_id)
        if existing is not None:
            self.recorder.tags(self._tags)

    def _close(self, status: str, error: BaseException | None) -> None:
        """Flush and set the status. Where the store is out of reach the lease stays, and says which status is due.

        Raises TrackingError only where nothing else went wrong: an error on its way out keeps its exit code.
        """
        try:
            self.recorder.flush()
        except TrackingError as lost:
            self._settle("FAILED" if status == "FINISHED" else status, error or lost)
            if error is None:
                raise
        else:
            self._settle(status, error)

    def _settle(self, status: str, error: BaseException | None) -> None:
        with suppress(OSError):  # a full disk must not keep the store from hearing the status
            leases.note_ending(self._workspace, self._lease, status)
        try:
            if error is not None and status != "FINISHED":
                self.recorder.tags({ERROR: one_line(error)})
            leases.end(self.store.client, self.run_id, status)
            if status == "FINISHED":
                shutil.rmtree(leases.work_folder(self._workspace, self.run_id), ignore_errors=True)
            leases.release(self._workspace, self.run_id)
        except TrackingError as unreached:
            if error is None:
                raise
            _LOG.warning("run %s stays open until the store is back: %s", self.run_id[:12], unreached)
            return
        if status == "FINISHED":
            self._tell_lineage()

    def _tell_lineage(self) -> None:
        try:
            self.store.client.log_text(self.run_id, notes.close_lineage(self.store, self.run_id), "lineage.md")
        except (TrackingError, OSError) as error:  # the run is finished and says so; its links are a courtesy
            _LOG.warning("run %s has no lineage note: %s", self.run_id[:12], error)


def _status(error: BaseException | None) -> str:
    if error is None or (isinstance(error, SystemExit) and error.code in (None, 0)):
        return "FINISHED"
    return "KILLED" if isinstance(error, Interrupted | KeyboardInterrupt) else "FAILED"


def one_line(error: BaseException) -> str:
    """Return an error as one line without secrets, at most 500 characters."""
    text = str(error)
    if not isinstance(error, MlinterpError | Interrupted):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return visible(scrub(" ".join(text.split())))[:500]


def opened_page(store: Store, experiment_id: str, name: str, tags: Mapping[str, str]) -> str:
    """Create a run that is a page to read and no work to do, finished from the first, and return its id."""
    token = leases.announce(store.workspace, store, experiment_id)
    run = store.client.create_run(experiment_id, tags={**_about(), **tags, leases.OPENING: token}, run_name=name)
    store.client.set_terminated(run.info.run_id, status="FINISHED")
    store.client.delete_tag(run.info.run_id, leases.OPENING)
    leases.release(store.workspace, token)
    return str(run.info.run_id)


def _about() -> dict[str, str]:
    return {"mlflow.user": _user(), "mlflow.source.name": "mlinterp", "mlflow.source.type": "LOCAL"}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        return str(os.getuid())
