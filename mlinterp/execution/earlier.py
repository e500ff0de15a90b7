"""What an earlier run said, read back from the store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlinterp.execution.session import Session
from mlinterp.execution.summary import RunSummary
from mlinterp.execution.verdict import rule_late

if TYPE_CHECKING:
    from mlflow.entities import Run


def summary_of(run: Run, session: Session, label: str | None = None) -> RunSummary:
    """Return a finished run as the summary that it had, marked as reused."""
    from mlinterp.tracking import links, queries

    run = rule_late(run, session)
    below = queries.children(session.store, run.info.experiment_id, run.info.run_id)
    return RunSummary(
        run_id=run.info.run_id,
        run_name=run.info.run_name,
        status=run.info.status,
        store_uri=session.store.shown_uri,
        workspace=session.workspace,
        reused=True,
        links={"run": links.run(run.info.experiment_id, run.info.run_id), "project": links.experiment(run.info.experiment_id)},
        result=queries.recorded_result(session.store, run.info.run_id) if run.info.status == "FINISHED" else None,
        children=[summary_of(child, session, child.data.tags.get("mlinterp.label")) for child in below],
        label=label,
        error=run.data.tags.get("mlinterp.error"),
        verdict=run.data.tags.get("mlinterp.verdict"),
        ruling=run.data.tags.get("mlinterp.ruling"),
    )
