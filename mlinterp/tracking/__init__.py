"""The tracking room: the only importer of MLflow, which is opened through `MlflowClient` and never through the fluent API.

store       where runs go: which tracking store, its first initialisation, a project's experiment
connection  the client, with one TrackingError for every way a store can be out of reach
life        a run from opening to its true status, whatever ends the process
signals     INT, TERM and HUP as one exception in the main thread
lease       who works on a run; closes the runs of processes that are gone
supervise   the parent process that notices a killed child at once
recorder    params, tags, metrics, tables, artifacts and inputs of one run
queries     finds runs, and reads back what they hold, verified
flavor      an SAE or a subject as an MLflow model; registering it
registry    from `models:/NAME@alias` to verified files
views       saved views of a project in the UI
view_format how MLflow keeps one
notes       the lineage of a run, as a note with links up and down
links       addresses in the UI
server      the UI, lean, on this machine
names       what may be called what
"""

from __future__ import annotations

import logging
import os

# Read by MLflow when it is first imported, which every module here does later than this.
for _name, _value in {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}.items():
    os.environ.setdefault(_name, _value)

for _name in ("mlflow.store.db.utils", "alembic", "mlflow.tracking._model_registry.client"):  # they tell of every migration and version
    logging.getLogger(_name).setLevel(logging.WARNING)
