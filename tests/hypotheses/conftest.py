from __future__ import annotations

import shutil
from pathlib import Path

import evidence
import pytest

from mlinterp.execution.session import Session
from mlinterp.hypotheses.ledger import Ledger
from mlinterp.hypotheses.records import Declaration
from mlinterp.project import Project
from mlinterp.tracking.store import open_store


@pytest.fixture(autouse=True)
def _no_outside(monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def template(tmp_path_factory) -> Path:
    """A SQLite store with its schema, built once: a fresh one costs seconds."""
    folder = tmp_path_factory.mktemp("template")
    open_store(folder)
    return folder / "mlruns.db"


@pytest.fixture
def project(tmp_path, template) -> Project:
    shutil.copyfile(template, tmp_path / "mlruns.db")
    return evidence.project(tmp_path)


@pytest.fixture
def session(project) -> Session:
    return evidence.session(project)


@pytest.fixture
def ledger(session) -> Ledger:
    return session.ledger


@pytest.fixture
def h001(ledger) -> str:
    return ledger.add(Declaration(claim="the last state holds the whole answer")).id
