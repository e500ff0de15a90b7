from __future__ import annotations

import signal
from pathlib import Path

import pytest


def pytest_configure() -> None:
    """Hear every signal: a shell that starts the tests in the background leaves them, and their children, deaf to some."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def _no_outside(monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def template(tmp_path_factory) -> Path:
    """A SQLite store with its schema, built once: a fresh one costs seconds."""
    from mlinterp.tracking.store import open_store

    folder = tmp_path_factory.mktemp("template")
    open_store(folder, f"sqlite:///{folder / 'mlruns.db'}")
    return folder / "mlruns.db"
