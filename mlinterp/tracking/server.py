"""The MLflow UI on this machine, our pages in it: one worker, no job runner, 127.0.0.1 only, gone when we are."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import distributions
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from mlinterp.errors import EnvironmentFault, Interrupted
from mlinterp.tracking import links, queries, signals, views
from mlinterp.tracking.lease import reconcile
from mlinterp.tracking.store import Store, open_store

HOST = "127.0.0.1"
START_SECONDS = 90.0
STOP_SECONDS = 8.0
APP = "mlinterp"
"""The name under which MLflow finds our pages: an entry point of the group `mlflow.app`."""


def serve(
    workspace: Path,
    store_uri: str | None = None,
    port: int = 5000,
    say: Callable[[str], object] = print,
    prepare: Callable[[Store], object] | None = None,
) -> None:
    """Run the UI on a store until a signal stops it; `say` is told the links to open, `prepare` brings up to date what it will show.

    Raises EnvironmentFault for a port in use (naming the next free one), for a store that is a server itself and for a server that
    does not come up. Leaves no process behind.
    """
    with signals.listening(), suppress(Interrupted):
        reconcile(workspace)
        store = open_store(workspace, store_uri)
        if store.artifact_root is None:
            raise EnvironmentFault(f"{store.shown_uri} is a server already: open it in a browser")
        check_port(port)
        if prepare is not None:
            prepare(store)
        with running(store, port) as server:
            base = f"http://{HOST}:{port}"
            for line in announcement(store, base):
                say(line)
            code = server.wait()
        raise EnvironmentFault(f"the MLflow server ended by itself with code {code}; see {_log(store)}")


def announcement(store: Store, base_url: str) -> Iterator[str]:
    """Write the saved views of every project and yield what to tell the user: each project's links."""
    yield f"MLflow UI on {store.shown_uri}: {base_url}  (stop with Ctrl-C)"
    for experiment in queries.projects(store):
        views.write_views(store, experiment.experiment_id)
        yield f"{experiment.name}"
        if _has_pages():
            yield f"  lineage: {links.absolute(base_url, links.lineage(experiment.experiment_id))}"
        yield f"  runs: {links.absolute(base_url, links.experiment(experiment.experiment_id))}"
        for name, address in views.view_links(store, experiment.experiment_id, base_url).items():
            yield f"  {name}: {address}"


@contextmanager
def running(store: Store, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Start an MLflow server on a store, wait until it answers, and end it with everything that it started."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    command += ["--no-serve-artifacts", "--default-artifact-root", str(store.artifact_root)]
    command += ["--app-name", APP] if _has_pages() else []
    log = _log(store)
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_BACKEND_STORE_URI": store.uri}
    environment["PYTHONSAFEPATH"] = (
        "1"  # or what lies in the working folder, such as an old build's metadata, goes before what is installed
    )
    with log.open("wb") as output:
        # a session of its own: a terminal's Ctrl-C reaches us alone, and we end the whole group
        server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True)  # noqa: S603
        try:
            _await(server, port, log)
            yield server
        finally:
            with signals.deferred():
                _end(server)


def _has_pages() -> bool:
    """Whether this installation declares our pages to MLflow; a checkout that is only on the path does not."""
    declared = (entry for found in distributions(name="mlinterp") for entry in found.entry_points)
    return any((entry.group, entry.name) == ("mlflow.app", APP) for entry in declared)


def check_port(port: int) -> None:
    """Raise EnvironmentFault for a port in use, naming the next free one."""
    if _is_free(port):
        return
    free = next((other for other in range(port + 1, min(port + 200, 65536)) if _is_free(other)), None)
    raise EnvironmentFault(f"port {port} is in use" + (f"; {free} is free: --port {free}" if free else ""))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _await(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if server.poll() is not None:
            last = log.read_text(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
            raise EnvironmentFault(f"the MLflow server did not start: {last[0][:200]}; see {log}")
        with suppress(URLError, OSError), urlopen(f"http://{HOST}:{port}/health", timeout=2) as answer:
            if answer.status == 200:
                return
        time.sleep(0.1)
    raise EnvironmentFault(f"the MLflow server did not answer within {START_SECONDS:.0f} seconds; see {log}")


def _end(server: subprocess.Popen[bytes]) -> None:
    """End the server and every process of its group: asked first, then killed."""
    for signum, patience in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, STOP_SECONDS)):
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signum)
        with suppress(subprocess.TimeoutExpired):
            server.wait(patience)
            break
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)


def _log(store: Store) -> Path:
    return store.workspace / ".mlinterp" / "ui.log"
