from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import workbench

import mlinterp
from mlinterp.execution.summary import RunSummary
from mlinterp.tracking.store import Store, open_store


def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLINTERP_THREADS", "1")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch):
    _alone(monkeypatch)


@dataclass(frozen=True)
class Bench:
    """A workspace whose study is finished."""

    root: Path
    study: Path
    summary: RunSummary
    store: Store

    @property
    def runs(self) -> dict[str, str]:
        """The study's runs by step, and the study itself."""
        return {"study": self.summary.run_id, **{str(child.label): child.run_id for child in self.summary.children}}

    def all_runs(self) -> list[Any]:
        """Every run of the project, oldest first."""
        experiment = self.store.experiment_id("bench")
        return list(self.store.client.search_runs([experiment], max_results=1000, order_by=["attributes.start_time ASC"]))

    def artifacts(self, run_id: str) -> Path:
        """Return the folder of a run's artifacts."""
        return Path(self.store.client.get_run(run_id).info.artifact_uri)

    def write(self, name: str, spec: dict[str, Any]) -> Path:
        """Write a spec into the project."""
        return workbench.write(self.study.parent / f"{name}.yaml", spec)


@pytest.fixture(scope="session")
def bench(tmp_path_factory) -> Bench:
    root = tmp_path_factory.mktemp("bench")
    study = workbench.make(root)
    with pytest.MonkeyPatch.context() as monkeypatch:
        _alone(monkeypatch)
        return Bench(root, study, mlinterp.run_spec(study), open_store(root))
