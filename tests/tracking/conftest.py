from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mlinterp.tracking.store import Store, open_store


@pytest.fixture(autouse=True)
def _no_outside(monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def template(tmp_path_factory) -> Path:
    """A SQLite store with its schema, built once: a fresh one costs seconds."""
    folder = tmp_path_factory.mktemp("template")
    open_store(folder, f"sqlite:///{folder / 'mlruns.db'}")
    return folder / "mlruns.db"


@pytest.fixture
def store(tmp_path, template) -> Store:
    shutil.copyfile(template, tmp_path / "mlruns.db")
    return open_store(tmp_path)


@pytest.fixture
def experiment(store) -> str:
    return store.experiment_id("maze")
