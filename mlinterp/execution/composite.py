"""The two shapes of several runs: a study's steps in order, a sweep's cells side by side. Each child is a run of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlinterp.errors import ExperimentError, MlinterpError
from mlinterp.execution import inputs as execution_inputs
from mlinterp.execution.earlier import summary_of
from mlinterp.execution.session import Place, Session
from mlinterp.execution.summary import RunSummary
from mlinterp.experiments.base import ResolvedInput
from mlinterp.result import ExperimentResult, Figure
from mlinterp.spec import Spec
from mlinterp.stats import mean_t_interval

if TYPE_CHECKING:
    from mlflow.entities import Run

HEADLINES = 8
"""Metrics of a step that its study carries too; the step itself has them all."""

Execute = Callable[[Spec, Session, Place], RunSummary]


@dataclass(frozen=True)
class Child:
    """One run below a parent: its name there, its spec and, in a sweep, its cell."""

    label: str
    spec: Spec
    cell: dict[str, Any]


@dataclass(frozen=True)
class Composite:
    """A study or a sweep."""

    spec: Spec

    def children(self) -> list[Child]:
        """Return the children in order."""
        if self.spec.is_study:
            return [Child(step.name, self.spec.step_spec(step), {}) for step in self.spec.steps]
        return [
            Child(" ".join(f"{key.rsplit('.', 1)[-1]}={value}" for key, value in cell.items()), spec, cell)
            for cell, spec in self.spec.cells()
        ]

    def outside_inputs(self, session: Session, place: Place) -> Iterator[tuple[str, str, ResolvedInput]]:
        """Yield (child, role, input) for every input that comes from outside this composite."""
        for child in self.children():
            for role, reference in child.spec.inputs.items():
                if not reference.startswith("@"):
                    only = child.spec.model_copy(update={"inputs": {role: reference}})
                    yield child.label, role, execution_inputs.resolve(only, session, Place(outputs=place.outputs))[role]
                elif place.outputs:
                    only = child.spec.model_copy(update={"inputs": {role: reference}})
                    yield child.label, role, execution_inputs.resolve(only, session, place)[role]

    def run(self, session: Session, place: Place, run_id: str, execute: Execute) -> tuple[ExperimentResult, list[RunSummary]]:
        """Run every child below `run_id` and gather their numbers.

        A failing step ends its study. A failing cell leaves its siblings alone; a sweep fails only when every cell does.
        """
        before = earlier_children(session, run_id) if place.run_id else {}
        done: dict[str, RunSummary] = {}
        everything = self.children()
        with session.reporter.task(self.spec.type if self.spec.is_study else f"{self.spec.type} sweep", len(everything)) as task:
            for child in everything:
                earlier = before.get((child.label, child.spec.sha256()))
                if earlier is not None and earlier.info.status == "FINISHED":
                    done[child.label] = summary_of(earlier, session, child.label)
                else:
                    outputs = {**place.outputs, **done} if self.spec.is_study else place.outputs
                    where = place.child(run_id, child.label, outputs, earlier.info.run_id if earlier else None)
                    done[child.label] = self._run_child(child, session, where, execute)
                task.advance(1, child.label)
        runs = list(done.values())
        if not self.spec.is_study and all(child.status != "FINISHED" for child in runs):
            raise ExperimentError(f"all {len(runs)} cells failed; the first: {runs[0].error}")
        return (_study_result(runs) if self.spec.is_study else _sweep_result(self.spec, everything, runs)), runs

    def _run_child(self, child: Child, session: Session, where: Place, execute: Execute) -> RunSummary:
        if self.spec.is_study:
            return execute(child.spec, session, where)
        try:
            return execute(child.spec, session, where)
        except MlinterpError as error:
            return RunSummary("", child.label, "FAILED", session.store.shown_uri, session.workspace, label=child.label, error=str(error))


def earlier_children(session: Session, run_id: str) -> dict[tuple[str, str], Run]:
    """Return the children that a parent has already, the newest by label and digest of the spec: finished ones and ones to go on with."""
    from mlinterp.tracking import queries

    found = queries.children(session.store, session.experiment_id, run_id)
    return {(child.data.tags["mlinterp.label"], child.data.tags["mlinterp.spec_sha256"]): child for child in found}


def _study_result(runs: list[RunSummary]) -> ExperimentResult:
    result = ExperimentResult()
    rows = []
    for child in runs:
        assert child.result is not None
        if child.result.mode == "interventional":
            result.mode = "interventional"
        rows.append(
            {
                "step": child.label,
                "type": child.result.experiment_type,
                "mode": child.result.mode,
                "seconds": round(child.result.duration_seconds, 1),
                "reused": child.reused,
                "run_id": child.run_id,
            }
        )
        headline = list(child.result.metrics.items())[:HEADLINES]
        result.metrics |= {f"{child.label}/{name.replace('/', '.')}": value for name, value in headline}
        result.diagnostics.warnings += [f"{child.label}: {warning}" for warning in child.result.diagnostics.warnings]
    result.add_table("steps", rows, description="The steps of this study, in order.")
    return result


def _sweep_result(spec: Spec, everything: list[Child], runs: list[RunSummary]) -> ExperimentResult:
    result = ExperimentResult()
    cells: list[dict[str, Any]] = []
    for child, outcome in zip(everything, runs, strict=True):
        metrics = outcome.result.metrics if outcome.result else {}
        if outcome.result and outcome.result.mode == "interventional":
            result.mode = "interventional"
        cells.append(
            {
                **{key: _shown(value) for key, value in child.cell.items()},
                "status": outcome.status,
                **metrics,
                "run_id": outcome.run_id,
                "error": outcome.error,
            }
        )
    result.add_table("cells", cells, description="Each cell of the sweep with its numbers.")
    keys = [key for key in spec.matrix if key != "seed"]
    names = list(dict.fromkeys(name for outcome in runs if outcome.result for name in outcome.result.metrics))
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in cells:
        if row["status"] == "FINISHED":
            groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    rows = []
    for group, members in groups.items():
        for name in names:
            values = [member[name] for member in members if member.get(name) is not None]
            if values:
                mean, low, high = mean_t_interval(values)
                rows.append(
                    {**dict(zip(keys, group, strict=True)), "metric": name, "mean": mean, "low": low, "high": high, "n_seeds": len(values)}
                )
    result.add_table("summary", rows, description="Mean over seeds with a 95 % t interval; without an interval where there is one seed.")
    for name in _headlines(spec, names):
        _add_figure(result, name, keys, [row for row in rows if row["metric"] == name])
    result.metrics = {"sweep/n_cells": float(len(runs)), "sweep/n_failed": float(sum(run.status != "FINISHED" for run in runs))}
    if len(groups) == 1:
        result.metrics |= {row["metric"]: float(row["mean"]) for row in rows}
    result.diagnostics.warnings += [f"cell {run.label} failed: {run.error}" for run in runs if run.status != "FINISHED"]
    return result


def _shown(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _headlines(spec: Spec, names: list[str]) -> list[str]:
    predicted = [expectation.metric for expectation in spec.expect if expectation.metric in names]
    return predicted or [name for name in names if not name.endswith(("seconds", "n_states", "n_examples"))][:4]


def _add_figure(result: ExperimentResult, name: str, keys: list[str], rows: list[dict[str, Any]]) -> None:
    """Draw one metric over the first axis, a series for each value of the second."""
    if not keys or len(rows) < 2:
        return
    table = f"by_{''.join(c if c.isalnum() else '_' for c in name.lower())}"[:64]
    result.add_table(table, rows, description=f"{name} over the sweep.")
    numeric = all(isinstance(row[keys[0]], int | float) for row in rows)
    result.figures.append(
        Figure(
            name=table,
            table=table,
            kind="line" if numeric else "bar",
            x=keys[0],
            y=["mean"],
            low="low",
            high="high",
            series=keys[1] if len(keys) > 1 else None,
            title=name,
            x_label=keys[0],
            y_label=name,
        )
    )
