"""Runs that are evidence, made directly: a prediction, a number with its interval, and everything after that as in a real run."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from mlinterp.execution import verdict
from mlinterp.execution.session import Session
from mlinterp.progress import Silent
from mlinterp.project import Project, find_project
from mlinterp.result import Estimate, ExperimentResult
from mlinterp.spec import Spec
from mlinterp.tracking.life import RunLife

FOR, AGAINST, UNDECIDED = (0.95, 0.93, 0.97), (0.2, 0.15, 0.25), (0.9, 0.7, 1.1)
"""Numbers with their intervals that speak for, against, and neither for nor against `m/x > 0.8`."""
_counter = itertools.count()


def project(root: Path, name: str = "maze", hypotheses: dict[str, Any] | None = None) -> Project:
    """Write a project without subjects and return it."""
    folder = root / "projects" / name
    folder.mkdir(parents=True)
    (folder / "project.yaml").write_text(yaml.safe_dump({"name": name}))
    if hypotheses is not None:
        (folder / "hypotheses.yaml").write_text(yaml.safe_dump(hypotheses))
    return find_project(folder)


def session(of: Project) -> Session:
    """Open a session on a project."""
    return Session.open(of, Silent())


def run(
    session: Session,
    hypothesis: str | None,
    numbers: Sequence[float] = FOR,
    *,
    upstream: Sequence[str] = (),
    parent: str | None = None,
    mode: str = "interventional",
    name: str = "run",
    expect: Sequence[dict[str, Any]] = ({"metric": "m/x", "op": ">", "value": 0.8},),
    **tags: str,
) -> str:
    """Make a finished run that predicted and measured `m/x`, and return its id."""
    number = next(_counter)
    spec = Spec.model_validate({"type": "intervene", "hypothesis": hypothesis, "expect": list(expect), "seed": number})
    own = uuid.uuid4().int % 10**6 * 1e-12  # no two runs measure the same to the last digit, in whatever process
    value, low, high = (bound + own for bound in numbers)
    estimate = Estimate(value=value, low=low, high=high, n=100, interval="made for a test", null="matched controls", null_value=0.0)
    result = ExperimentResult(mode=mode, metrics={"m/x": value}, estimates={"m/x": estimate})  # type: ignore[arg-type]
    verdict.require_open(spec, session)
    about = {"mlinterp.kind": "intervene", "mlinterp.type": "intervene", "mlinterp.mode": mode, "mlinterp.run_key": f"key{number}"}
    about |= {"mlinterp.hypothesis": hypothesis} if hypothesis else {}
    about |= {"mlinterp.upstream": ",".join(upstream)} if upstream else {}
    about |= {"mlflow.parentRunId": parent} if parent else {}
    about |= {f"mlinterp.{key}": value for key, value in tags.items()}
    with RunLife(session.store, session.experiment_id, name, about, session.workspace) as life:
        verdict.register(spec, session, life.recorder)
        life.recorder.metrics(result.numbers(), 0)
        verdict.judge(spec, result, life.recorder)
    verdict.rule(spec, session, life.run_id)
    return life.run_id
