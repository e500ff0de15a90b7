"""The project, its workflow and an SAE of random weights, made once for all tests."""

from __future__ import annotations

import pytest
import torch
from sae_kinds import random_sae
from workflow_toy import FAST, SITE, Toy, make

import mlinterp
from mlinterp.sae.files.checkpoint import save_sae


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLINTERP_THREADS", "1")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    root = make(tmp_path_factory.mktemp("workflows") / "projects" / "toy")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("MLINTERP_THREADS", "1")
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        return Toy(root, mlinterp.workflows.behavior_localization("gpt", "pairs.jsonl", variables=FAST, top_k=3, project=root))


@pytest.fixture(scope="session")
def sae(toy: Toy) -> str:
    """A registered SAE of random weights that reads `SITE`, as a reference."""
    folder = toy.root / "sae"
    folder.mkdir()
    save_sae(random_sae(d_in=16, d_sae=24, dtype=torch.float32, site=SITE, k=6), folder)
    version = mlinterp.register_sae(folder, "toy.random", subject="gpt", site=SITE, project=toy.root)
    return version.reference
