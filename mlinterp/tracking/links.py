"""Addresses in the MLflow UI. A fresh browser opens its other face, so every address carries `workflowType=machine_learning`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from urllib.parse import quote

_FACE = "workflowType=machine_learning"
PAGES = "mlinterp"
"""Below this path `mlinterp ui` serves pages of our own."""


def run(experiment_id: str, run_id: str) -> str:
    """Return the address of a run's page."""
    return f"#/experiments/{experiment_id}/runs/{run_id}?{_FACE}"


def experiment(experiment_id: str) -> str:
    """Return the address of an experiment's runs."""
    return f"#/experiments/{experiment_id}/runs?{_FACE}"


def view(experiment_id: str, key: str, mode: str) -> str:
    """Return the address of a saved view; `mode` is TABLE, CHART or ARTIFACT."""
    return f"#/experiments/{experiment_id}/runs?viewStateShareKey={quote(key)}&compareRunsMode={mode}&{_FACE}"


def search(experiment_id: str, query: str) -> str:
    """Return the address of the runs that a filter finds."""
    return f"#/experiments/{experiment_id}/runs?searchFilter={quote(query)}&{_FACE}"


def compare(experiment_ids: Sequence[str], run_ids: Sequence[str]) -> str:
    """Return the address of MLflow's own comparison of runs."""
    runs, experiments = (quote(json.dumps(ids)) for ids in (list(run_ids), list(dict.fromkeys(experiment_ids))))
    return f"#/compare-runs?runs={runs}&experiments={experiments}&{_FACE}"


def model_version(name: str, version: int) -> str:
    """Return the address of a registered model version."""
    return f"#/models/{quote(name)}/versions/{version}?{_FACE}"


def lineage(experiment_id: str) -> str:
    """Return the address of a project's lineage page, where `mlinterp ui` is the server."""
    return f"{PAGES}/lineage/{experiment_id}"


def absolute(base_url: str, address: str) -> str:
    """Return an address under a server's root."""
    return f"{base_url.rstrip('/')}/{address}"


def ui(store_uri: str) -> str:
    """Return the root of the UI: the server that the store is, else where `mlinterp ui` listens unless told otherwise."""
    return store_uri if store_uri.startswith(("http://", "https://")) else "http://127.0.0.1:5000"
