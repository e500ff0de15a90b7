"""Addresses in the MLflow UI. A fresh browser opens its other face, so every address carries `workflowType=machine_learning`."""

from __future__ import annotations

from urllib.parse import quote

_FACE = "workflowType=machine_learning"


def run(experiment_id: str, run_id: str) -> str:
    """Return the address of a run's page."""
    return f"#/experiments/{experiment_id}/runs/{run_id}?{_FACE}"


def experiment(experiment_id: str) -> str:
    """Return the address of an experiment's runs."""
    return f"#/experiments/{experiment_id}/runs?{_FACE}"


def view(experiment_id: str, key: str, mode: str) -> str:
    """Return the address of a saved view; `mode` is TABLE, CHART or ARTIFACT."""
    return f"#/experiments/{experiment_id}/runs?viewStateShareKey={quote(key)}&compareRunsMode={mode}&{_FACE}"


def model_version(name: str, version: int) -> str:
    """Return the address of a registered model version."""
    return f"#/models/{quote(name)}/versions/{version}?{_FACE}"


def absolute(base_url: str, address: str) -> str:
    """Return an address under a server's root."""
    return f"{base_url.rstrip('/')}/{address}"
