"""What rests on something that is gone: a run that was deleted, retracted or replaced, or whose own inputs are.

A run names the runs whose output it took in its tag `mlinterp.upstream`, so anyone can repeat what is done here in the search box of
the UI: ``tags.`mlinterp.upstream` LIKE '%RUN%'`` finds what rests on a run, ``tags.`mlinterp.stale` != ''`` all that is marked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlinterp.tracking import queries
from mlinterp.tracking.queries import REPLACED_BY, RETRACTED, STALE
from mlinterp.tracking.recorder import Recorder
from mlinterp.tracking.store import Store

if TYPE_CHECKING:
    from mlflow.entities import Run

UPSTREAM = "mlinterp.upstream"
COMPOSITES = {"study", "sweep"}


@dataclass(frozen=True)
class Stale:
    """A run that rests on something gone, why, and a filter of MLflow's search syntax that finds it."""

    run_id: str
    run_name: str
    why: str
    query: str


class Runs:
    """Runs by id, each read from the store once."""

    def __init__(self, store: Store, known: Iterable[Run] = ()) -> None:
        self.store = store
        self._known: dict[str, Run | None] = {run.info.run_id: run for run in known}

    def get(self, run_id: str) -> Run | None:
        """Return a run, in the bin or not, or None where it is gone for good."""
        if run_id not in self._known:
            self._known[run_id] = queries.get(self.store, run_id)
        return self._known[run_id]


def upstream(run: Run) -> list[str]:
    """Return the runs whose output a run took."""
    return [found for found in run.data.tags.get(UPSTREAM, "").split(",") if found]


def gone(run_id: str, runs: Runs) -> str | None:
    """Return what became of a run, as the end of a sentence about it, or None where it still stands."""
    run = runs.get(run_id)
    if run is None:
        return "is gone from the store"
    if run.info.lifecycle_stage == "deleted":
        return "was deleted"
    if why := retraction(run, runs):
        return f"was retracted: {why}"
    if replacement := run.data.tags.get(REPLACED_BY):
        return f"was replaced by run {replacement[:12]}"
    return None


def retraction(run: Run, runs: Runs) -> str | None:
    """Return why a run, or the study or sweep that contains it, was retracted."""
    if why := run.data.tags.get(RETRACTED):
        return why
    parent = run.data.tags.get("mlflow.parentRunId")
    above = runs.get(parent) if parent else None
    return retraction(above, runs) if above is not None and above.data.tags.get("mlinterp.kind") in COMPOSITES else None


def staleness(run: Run, runs: Runs) -> Stale | None:
    """Return why a run is stale, or None where all it rests on still stands."""
    for source, what in _sources(run, runs):
        if why := gone(source, runs):
            return Stale(run.info.run_id, run.info.run_name, f"rests on {_named(source, runs)}, which {why}", _query(run, source, what))
        above = runs.get(source)
        if above is not None and what == UPSTREAM and (deeper := staleness(above, runs)):
            return Stale(
                run.info.run_id, run.info.run_name, f"rests on {_named(source, runs)}, which {deeper.why}", _query(run, source, what)
            )
    return None


def _sources(run: Run, runs: Runs) -> Iterator[tuple[str, str]]:
    """Yield what a run rests on: the sources of its inputs and, for a study or a sweep, the runs that it sums up."""
    yield from ((source, UPSTREAM) for source in upstream(run))
    if run.data.tags.get("mlinterp.kind") in COMPOSITES:
        where = f"tags.`mlflow.parentRunId` = '{run.info.run_id}'"
        home = run.info.experiment_id
        for deleted in (False, True):
            yield from ((child.info.run_id, "") for child in queries.search(runs.store, home, where, deleted=deleted))


def _query(run: Run, source: str, what: str) -> str:
    return f"tags.`{UPSTREAM}` LIKE '%{source}%'" if what == UPSTREAM else f"attributes.run_id = '{run.info.run_id}'"


def _named(run_id: str, runs: Runs) -> str:
    run = runs.get(run_id)
    return f"'{run.info.run_name}' ({run_id[:12]})" if run is not None else f"run {run_id[:12]}"


def find(store: Store, experiment_id: str) -> tuple[dict[str, Run], list[Stale]]:
    """Return the runs of a project that rest on anything, by id, and those of them that rest on something gone."""
    resting = queries.search(store, experiment_id, f"tags.`{UPSTREAM}` != ''")
    composites = [run for kind in sorted(COMPOSITES) for run in queries.search(store, experiment_id, f"tags.`mlinterp.kind` = '{kind}'")]
    found = {run.info.run_id: run for run in [*resting, *composites]}
    runs = Runs(store, found.values())
    return found, [stale for run in found.values() if (stale := staleness(run, runs)) is not None]


def mark(store: Store, experiment_id: str) -> list[Stale]:
    """Mark every run of a project that rests on something gone, take the mark from those that no longer do, and return the former."""
    runs, found = find(store, experiment_id)
    reasons = {stale.run_id: stale.why for stale in found}
    for run_id, run in runs.items():
        why, marked = reasons.get(run_id), run.data.tags.get(STALE)
        if why is not None and marked != why:
            Recorder(store.client, run_id).tags({STALE: why})
        elif why is None and marked:
            store.client.delete_tag(run_id, STALE)
    return found
