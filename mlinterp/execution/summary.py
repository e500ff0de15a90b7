"""What is said of a run once it is over."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from mlinterp.result import ExperimentResult


@dataclass(frozen=True)
class RunSummary:
    """One run and, for a study or a sweep, its children.

    Attributes:
        run_id: the MLflow run.
        run_name: its name in the UI.
        status: FINISHED, FAILED or KILLED.
        reused: whether an earlier run already held the answer, so that nothing was computed.
        store_uri: the tracking store, without credentials.
        links: what to open in the UI, by title; relative to a server's root.
        result: what the experiment returned (None where it failed).
        children: the runs of a study's steps or a sweep's cells, in order.
        label: the step's or cell's name inside its parent.
        error: one line, where it failed.
        verdict: supports, refutes or inconclusive, where something was predicted.
        ruling: the verdict with its test, interval and null, in one line.
        standings: where the hypotheses that the spec names stand now, a line each.
    """

    run_id: str
    run_name: str
    status: str
    store_uri: str
    workspace: Path
    reused: bool = False
    links: dict[str, str] = field(default_factory=dict)
    result: ExperimentResult | None = None
    children: list[RunSummary] = field(default_factory=list)
    label: str | None = None
    error: str | None = None
    verdict: str | None = None
    ruling: str | None = None
    standings: list[str] = field(default_factory=list)

    @property
    def n_failed(self) -> int:
        """How many runs below this one failed."""
        return sum((child.status != "FINISHED") + child.n_failed for child in self.children)
