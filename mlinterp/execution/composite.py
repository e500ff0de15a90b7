"""The two shapes of several runs: a study's steps in order, a sweep's cells side by side. Each child is a run of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mlinterp.errors import ExperimentError, MlinterpError
from mlinterp.execution import inputs as execution_inputs
from mlinterp.execution.earlier import summary_of
from mlinterp.execution.gather import study_result, sweep_result
from mlinterp.execution.session import Place, Session
from mlinterp.execution.summary import RunSummary
from mlinterp.experiments.base import ResolvedInput
from mlinterp.project import Project
from mlinterp.result import ExperimentResult
from mlinterp.spec import Spec

if TYPE_CHECKING:
    from mlflow.entities import Run

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

    def complete_children(self, project: Project) -> list[Child]:
        """Return the children with the inputs that their subjects give: those of a sweep over subjects differ from cell to cell."""
        return [replace(child, spec=execution_inputs.with_defaults(child.spec, project)) for child in self.children()]

    def outside_inputs(self, session: Session, place: Place) -> Iterator[tuple[str, str, ResolvedInput]]:
        """Yield (child, role, input) for every input that comes from outside this composite."""
        for child in self.complete_children(session.project):
            where = place.child("", child.label, place.outputs)
            for role, reference in child.spec.inputs.items():
                if place.outputs or role in where.given or not reference.startswith("@"):
                    only = child.spec.model_copy(update={"inputs": {role: reference}})
                    yield child.label, role, execution_inputs.resolve(only, session, where)[role]

    def run(self, session: Session, place: Place, run_id: str, execute: Execute) -> tuple[ExperimentResult, list[RunSummary]]:
        """Run every child below `run_id` and gather their numbers.

        A failing step ends its study. A failing cell leaves its siblings alone; a sweep fails only when every cell does.
        """
        from mlinterp.tracking.views import mark_headlines, mark_parts

        before = earlier_children(session, run_id) if place.run_id else {}
        done: dict[str, RunSummary] = {}
        everything = self.complete_children(session.project)
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
        mark_parts(session.store, run_id, [child.run_id for child in runs if child.status == "FINISHED"])
        if self.spec.is_study:
            return study_result(self.spec, runs), runs
        if all(child.status != "FINISHED" for child in runs):
            raise ExperimentError(f"all {len(runs)} cells failed; the first: {runs[0].error}")
        result, shown = sweep_result(self.spec, [child.cell for child in everything], runs)
        mark_headlines(session.store, run_id, shown)
        return result, runs

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
