"""What all runs of one command share: the project, the store, who listens, and whether answers may be reused."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from mlinterp.execution.summary import RunSummary
from mlinterp.experiments.base import ResolvedInput
from mlinterp.progress import Reporter
from mlinterp.project import Project

if TYPE_CHECKING:
    from mlinterp.hypotheses.ledger import Ledger
    from mlinterp.tracking.store import Store


@dataclass(frozen=True)
class Session:
    """One command's surroundings.

    Attributes:
        project: where names come from.
        store: where runs go.
        experiment_id: the MLflow experiment of the project.
        reporter: who listens to progress.
        again: whether to compute even what an earlier run already answered.
        threads: how many threads torch may use (MLINTERP_THREADS, 1 by default: small models are slower on more, and much slower
            where another process wants the same cores); float32 sums depend on it, so it is part of a run's identity.
    """

    project: Project
    store: Store
    experiment_id: str
    reporter: Reporter
    again: bool = False
    threads: int = 1

    @classmethod
    def open(cls, project: Project, reporter: Reporter, *, again: bool = False, experiment_id: str | None = None) -> Session:
        """Open the project's store; runs whose process died are closed first."""
        from mlinterp.tracking.lease import reconcile
        from mlinterp.tracking.store import open_store

        reconcile(project.workspace)
        store = open_store(project.workspace)
        experiment = experiment_id or os.environ.get("MLFLOW_EXPERIMENT_ID") or store.experiment_id(project.name)
        threads = int(os.environ.get("MLINTERP_THREADS", "1"))
        return cls(project, store, experiment, reporter, again, threads)

    @cached_property
    def ledger(self) -> Ledger:
        """The project's hypotheses, opened when a spec first names one."""
        from mlinterp.hypotheses.ledger import Ledger

        return Ledger.open(self.project, self.store, self.experiment_id)

    @property
    def workspace(self) -> Path:
        """The folder that holds the store and what runs leave behind."""
        return self.project.workspace

    @contextmanager
    def refreshed_views(self) -> Iterator[None]:
        """Write the project's saved views once the block is over: they show what the runs in it have measured."""
        from mlinterp.tracking.views import write_views

        yield
        write_views(self.store, self.experiment_id)

    def may_reuse(self, place: Place) -> bool:
        """Whether an earlier run may stand in for a new one: not when that was ruled out, a run goes on, or `mlflow run` opened one."""
        adopting = place.parent is None and "MLFLOW_RUN_ID" in os.environ
        return not self.again and place.run_id is None and not adopting

    def workdir(self, run_id: str) -> Path:
        """Return the durable folder of a run; gone once the run is finished."""
        from mlinterp.tracking.lease import work_folder

        return work_folder(self.workspace, run_id)


@dataclass(frozen=True)
class Original:
    """A recorded run that is executed again: what it really took, whatever `latest` or an alias may mean by now.

    Attributes:
        run_id: the run.
        inputs: what it took from outside of what is executed again, by role.
        children: the runs of its steps or cells, by label.
    """

    run_id: str
    inputs: Mapping[str, ResolvedInput] = field(default_factory=dict)
    children: Mapping[str, Original] = field(default_factory=dict)


@dataclass(frozen=True)
class Place:
    """Where a run stands among others.

    Attributes:
        parent: the run that contains it.
        label: its name there: a step's, or a cell's.
        outputs: the steps before it, by name.
        given: inputs that are already at hand, by role.
        run_id: the run to go on with, where it was interrupted.
        document: the spec as it was written, and the suffix of its file.
        original: the run that is executed again to see whether it comes out the same; such a run is no evidence, and neither `latest` nor
            the registry knows of it.
    """

    parent: str | None = None
    label: str | None = None
    outputs: Mapping[str, RunSummary] = field(default_factory=dict)
    given: Mapping[str, ResolvedInput] = field(default_factory=dict)
    run_id: str | None = None
    document: tuple[bytes, str] | None = None
    original: Original | None = None

    def child(self, parent: str, label: str, outputs: Mapping[str, RunSummary] | None = None, run_id: str | None = None) -> Place:
        """Return the place of a child."""
        original = self.original.children.get(label, Original("")) if self.original else None
        given = original.inputs if original else {}
        return replace(
            self, parent=parent, label=label, outputs=outputs or {}, given=given, run_id=run_id, document=None, original=original
        )
