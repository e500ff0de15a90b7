"""What a study or a sweep consists of, read back from the store: its own children, and earlier runs that answered a step or a cell."""

from __future__ import annotations

from mlinterp.execution.composite import Composite
from mlinterp.result import ExperimentResult
from mlinterp.spec import Spec
from mlinterp.tracking import queries
from mlinterp.tracking.store import Store


def contained(store: Store, experiment_id: str, run_id: str, spec: Spec | None, result: ExperimentResult | None) -> dict[str, str]:
    """Return the runs of a study's steps or a sweep's cells by label, in order; one that never began is left out.

    A step that an earlier run had answered is no child of this study in MLflow: only the study's own table names it.
    """
    found = {
        run.data.tags.get("mlinterp.label", run.info.run_name): run.info.run_id for run in queries.children(store, experiment_id, run_id)
    }
    if spec is None:
        return found
    labels = [child.label for child in Composite(spec).children()]
    table = result.tables.get("steps" if spec.is_study else "cells") if result is not None else None
    if table is not None:
        found |= {label: str(row["run_id"]) for label, row in zip(labels, table.rows, strict=False) if row.get("run_id")}
    return {label: found[label] for label in labels if label in found}
