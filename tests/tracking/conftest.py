from __future__ import annotations

import shutil

import pytest

from mlinterp.tracking.store import Store, open_store


@pytest.fixture
def store(tmp_path, template) -> Store:
    shutil.copyfile(template, tmp_path / "mlruns.db")
    return open_store(tmp_path)


@pytest.fixture
def experiment(store) -> str:
    return store.experiment_id("maze")
