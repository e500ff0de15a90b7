from __future__ import annotations

import signal
from pathlib import Path

import pytest


def pytest_configure() -> None:
    """Hear every signal: a shell that starts the tests in the background leaves them, and their children, deaf to some."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where several processes share the work, a file stays whole, and tests that add runs to one bench stay together and in order."""
    for item in items:
        group = "bench" if "bench" in getattr(item, "fixturenames", ()) else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))


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
