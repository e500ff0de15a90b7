"""MLflow's server with our pages in it: what `mlflow server --app-name mlinterp` runs (entry point `mlflow.app`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi import FastAPI

    from mlinterp.reports.lineage_graph import Lineage
    from mlinterp.tracking.store import Store


def app() -> FastAPI:
    """Return the app. A function, so that the process that only starts the server does not import the server too."""
    from mlinterp.tracking.app import server_app

    return server_app(_read)


def _read(store: Store, experiment_id: str) -> Lineage:
    from mlinterp.hypotheses.lineage import project_lineage

    return project_lineage(store, experiment_id)
