"""Runs recorded as real ones are, stage by stage, from a result that is given: everything but the experiment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import evidence
import pytest

from mlinterp.cli import main
from mlinterp.execution import verdict
from mlinterp.execution.publish import publish
from mlinterp.execution.session import Place, Session
from mlinterp.execution.summary import RunSummary
from mlinterp.experiments.base import ResolvedInput
from mlinterp.io.digests import sha256_json
from mlinterp.progress import Silent
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


def workspace(root: Path, **hypotheses: dict[str, Any]) -> Iterator[Session]:
    """Make a workspace with one project (`maze`) and a store, and yield a session on it while it is the working folder."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.chdir(root)
        yield Session.open(evidence.project(root, hypotheses=hypotheses or None), Silent())


class Said:
    """What a command line printed, and its exit code."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> None:
        self.code = 0
        try:
            main(list(arguments))
        except SystemExit as stop:
            self.code = int(stop.code or 0)
        self.out, self.err = capsys.readouterr()
