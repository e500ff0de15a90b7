"""Runs recorded as real ones are, stage by stage, from a result that is given: everything but the experiment."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from mlinterp.execution import verdict
from mlinterp.execution.publish import publish
from mlinterp.execution.session import Place, Session
from mlinterp.execution.summary import RunSummary
from mlinterp.experiments.base import ResolvedInput
from mlinterp.io.digests import sha256_json
from mlinterp.result import Estimate, ExperimentResult
from mlinterp.run import Plan, complete, identity, record_question, run_name
from mlinterp.spec import Spec
from mlinterp.tracking.life import RunLife


def estimate(value: float, low: float | None = None, high: float | None = None, **fields: Any) -> Estimate:
    """Return an estimate of 100 examples beside a null of 0."""
    base = {"n": 100, "interval": "bootstrap over examples", "null": "matched controls", "null_value": 0.0}
    return Estimate(value=value, low=low, high=high, **{**base, **fields})


def result(estimates: Mapping[str, Estimate], mode: str = "interventional", **metrics: float) -> ExperimentResult:
    """Return a result of these estimates, and of numbers that have no interval (named `stage__name`)."""
    numbers = {name: item.value for name, item in estimates.items()} | {name.replace("__", "/"): value for name, value in metrics.items()}
    return ExperimentResult(mode=mode, metrics=numbers, estimates=dict(estimates))  # type: ignore[arg-type]


def record(
    session: Session,
    came_out: ExperimentResult,
    *,
    inputs: Mapping[str, ResolvedInput] | None = None,
    children: list[RunSummary] | None = None,
    place: Place | None = None,
    tags: Mapping[str, str] | None = None,
    **asked: Any,
) -> str:
    """Record a finished run and return its id; `asked` are fields of its spec."""
    spec, where = Spec.model_validate({"type": "intervene", **asked}), place or Place()
    plan = Plan(None, None, dict(inputs or {}), sha256_json([spec.sha256(), asked]))
    about = {**identity(spec, plan, session, where), **(tags or {})}
    with RunLife(session.store, session.experiment_id, run_name(spec, where), about, session.workspace) as life:
        workdir = session.workdir(life.run_id)
        workdir.mkdir(parents=True, exist_ok=True)
        record_question(spec, plan, life.recorder, workdir, where)
        verdict.register(spec, session, life.recorder)
        finished = complete(came_out, spec, plan, datetime.now(UTC)).model_copy(update={"variables": spec.variables})
        publish(spec, finished, children or [], workdir, life.recorder)
        verdict.judge(spec, finished, life.recorder)
    verdict.rule(spec, session, life.run_id)
    return life.run_id
