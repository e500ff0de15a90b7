from __future__ import annotations

import shutil

import evidence
import pytest

from mlinterp.execution.session import Session
from mlinterp.hypotheses.ledger import Ledger
from mlinterp.hypotheses.records import Declaration
from mlinterp.project import Project


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
