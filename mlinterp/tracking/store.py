"""Where runs go: which tracking store, how it first comes to be, and a project's experiment in it."""

from __future__ import annotations

import fcntl
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from mlinterp.errors import EnvironmentFault, TrackingError
from mlinterp.io.atomic import sync_folder
from mlinterp.tracking.connection import connect, reaching

if TYPE_CHECKING:
    from mlflow import MlflowClient

_SQLITE = "sqlite:///"


@dataclass(frozen=True)
class Store:
    """An open tracking store.

    Attributes:
        uri: its address, with credentials where it has any: never show it.
        client: every method raises TrackingError where the store cannot be reached.
        artifact_root: absolute folder for the artifacts of experiments created here; None where a server decides.
        workspace: the folder that holds `.mlinterp/` (leases, caches, work folders).
    """

    uri: str
    client: MlflowClient
    artifact_root: str | None
    workspace: Path

    @property
    def shown_uri(self) -> str:
        """The address without credentials."""
        return without_credentials(self.uri)

    @property
    def cache(self) -> Path:
        """Where downloaded artifacts are kept."""
        return self.workspace / ".mlinterp" / "cache"

    def experiment_id(self, project_name: str) -> str:
        """Return the id of a project's experiment, created on first use with an absolute artifact location.

        Raises EnvironmentFault where the experiment was deleted, or keeps its artifacts behind a server that this store bypasses.
        """
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(project_name)
        if found is None:
            location = None if self.artifact_root is None else f"{self.artifact_root}/{_folder_name(project_name)}"
            try:
                return str(self.client.create_experiment(project_name, artifact_location=location))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            found = self.client.get_experiment_by_name(project_name)
        if found.lifecycle_stage != "active":
            restore = f"mlflow experiments restore --experiment-id {found.experiment_id}"
            raise EnvironmentFault(f"experiment '{project_name}' was deleted in {self.shown_uri}; bring it back with `{restore}`")
        if self.artifact_root is not None and found.artifact_location.startswith("mlflow-artifacts:"):
            where = "set MLFLOW_TRACKING_URI to that server's http address"
            raise EnvironmentFault(f"experiment '{project_name}' keeps its artifacts behind an MLflow server; {where}")
        return str(found.experiment_id)


def open_store(workspace: Path, uri: str | None = None) -> Store:
    """Open a tracking store: `uri`, else MLFLOW_TRACKING_URI, else `mlruns.db` in the workspace with artifacts in `mlartifacts/`.

    A fresh SQLite file is safe to open from several processes at once. Raises TrackingError where the store cannot be reached and
    EnvironmentFault for a kind of store that cannot hold runs.
    """
    workspace = workspace.resolve()
    given = uri or os.environ.get("MLFLOW_TRACKING_URI")
    chosen: str = given or f"{_SQLITE}{workspace / 'mlruns.db'}"
    shown = without_credentials(chosen)
    if chosen.startswith(_SQLITE):
        db = Path(shown.removeprefix(_SQLITE)).absolute()
        _create_sqlite(db, wal=not given)
        address = f"{_SQLITE}{db}"
        store = Store(address, connect(address, shown), str(db.parent / "mlartifacts"), workspace)
    elif re.match(r"(https?|postgresql|mysql|mssql)[:+]", chosen):
        root = None if chosen.startswith("http") else str(workspace / "mlartifacts")
        store = Store(chosen, connect(chosen, shown), root, workspace)
    else:
        raise EnvironmentFault(f"tracking store '{shown}' cannot hold runs; use sqlite:///FILE, http://HOST:PORT or a database address")
    store.client.search_experiments(max_results=1)  # the first contact: a store that is down says so here
    return store


def _create_sqlite(db: Path, *, wal: bool) -> None:
    """Bring a SQLite store into being with its whole schema: built beside its place under a lock, then renamed.

    MLflow's own start on a fresh file loses most of several processes that start at once, and a start that is killed half-way
    leaves a schema that no later start can mend.
    """
    if db.exists():
        return
    db.parent.mkdir(parents=True, exist_ok=True)
    with locked(db.with_name(f".{db.name}.lock")):
        if db.exists():
            return
        unfinished = db.with_name(f".{db.name}.{os.getpid()}.new")
        try:
            with reaching(f"{_SQLITE}{db}"):
                _build_schema(unfinished, db.parent / "mlartifacts")
            connection = sqlite3.connect(unfinished)
            if wal:
                connection.execute("PRAGMA journal_mode=WAL")
            connection.close()
            with unfinished.open("rb") as handle:
                os.fsync(handle.fileno())
            os.replace(unfinished, db)
            sync_folder(db.parent)
        except (OSError, sqlite3.Error) as error:
            raise TrackingError(f"cannot create tracking store {db}: {error}") from error
        finally:
            for leftover in db.parent.glob(f"{unfinished.name}*"):
                leftover.unlink(missing_ok=True)


def _build_schema(db: Path, artifact_root: Path) -> None:
    """Run MLflow's migrations on a file that nobody sees yet, without waiting for the disk at each of some fifty steps."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from sqlalchemy import Engine, event

    def hasten(connection: sqlite3.Connection, _: object) -> None:
        connection.execute("PRAGMA synchronous=OFF")

    event.listen(Engine, "connect", hasten)
    try:
        SqlAlchemyStore(f"{_SQLITE}{db}", str(artifact_root)).engine.dispose()
    finally:
        event.remove(Engine, "connect", hasten)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock between processes; it ends with the block or with the process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def without_credentials(uri: str) -> str:
    """Return an address without user, password, query and fragment.

    >>> without_credentials("https://ada:hunter2@host:8080/mlflow?token=x")
    'https://host:8080/mlflow'
    """
    if uri.startswith("sqlite:"):
        return uri.partition("?")[0]
    parts = urlsplit(uri)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _folder_name(project_name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", project_name).strip(".") or "project"
