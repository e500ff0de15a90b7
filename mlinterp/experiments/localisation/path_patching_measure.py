"""The sweep of `path_patching`: every group of senders with every group of receivers, at every position, beside the nulls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mlinterp.determinism import torch_stream
from mlinterp.errors import SpecError
from mlinterp.experiments.base import Context
from mlinterp.experiments.localisation.activation_patching_measure import columns_of, ratio_of
from mlinterp.experiments.localisation.path_patching import PathPatchingVariables
from mlinterp.experiments.localisation.path_patching_circuit import Asked, asked_of
from mlinterp.patching.effects import CellEffect, cell_effects, gaps_of
from mlinterp.patching.metrics import Metric, MetricRegistry
from mlinterp.patching.path_names import Receiver, Sender, require
from mlinterp.patching.path_patcher import Path, PathPatcher, Written
from mlinterp.patching.untrained import untrained
from mlinterp.progress import Task
from mlinterp.subjects.hooked import HookedSubject
from mlinterp.subjects.pairs import Pairs, patchable, tokenise
from mlinterp.subjects.pairs_declared import read_pairs


class Cell(NamedTuple):
    """One path: numbers of its groups of senders and receivers, and the position where it begins; None for all, or the answer's."""

    senders: int
    receivers: int
    position: int | None


@dataclass(frozen=True)
class Paths:
    """Everything that was measured.

    Attributes:
        labels: what stands at each position.
        senders: the groups of senders.
        receivers: the groups of receivers.
        cells: the paths that there are: a sender of each writes before a receiver of it reads.
        effects: one a cell; None where undefined.
        untrained: effect in the model with random weights, one a cell, in units of the trained model's gap; None where it was not run.
        m_clean: the metric of the clean runs, `[pair]`.
        m_corrupted: that of the corrupted ones.
    """

    subject: HookedSubject
    pairs: Pairs
    metric: Metric
    labels: dict[int, str]
    senders: list[list[Sender]]
    receivers: list[list[Receiver]]
    cells: list[Cell]
    effects: list[CellEffect | None]
    untrained: list[float | None] | None
    m_clean: np.ndarray
    m_corrupted: np.ndarray
    warnings: tuple[str, ...] = ()
    """What is to be said of the circuit whose edges the paths are."""


class _Sweep:
    """All paths of one model."""

    def __init__(self, patcher: PathPatcher, variables: PathPatchingVariables, asked: Asked) -> None:
        self.patcher, self.columns = patcher, columns_of(patcher.pairs, variables.positions)
        senders = {each.name: each for each in patcher.runs.senders}
        receivers = {each.name: each for each in patcher.runs.receivers}
        named = [[name] for name in senders] if asked.senders is None else asked.senders
        for field, what, groups, known in (("senders", "sender", named, senders), ("receivers", "receiver", asked.receivers, receivers)):
            for group in groups:
                require(group, known, f"variables.{field}", what)
        self.receivers: list[list[Receiver]] = [[receivers[name] for name in group] for group in asked.receivers]
        every: list[list[Sender]] = [[senders[name] for name in group] for group in named]
        if variables.senders is not None:
            self._refuse_unread(every)
        if asked.senders is not None and variables.receivers is not None:
            self._refuse_deaf(every)
        self.receivers = [group for group in self.receivers if any(self._leads(each, group) for each in every)]
        self.senders = [group for group in every if any(self._leads(group, to) for to in self.receivers)]
        edges = None if asked.edges is None else {tuple(map(frozenset, edge)) for edge in asked.edges}
        self.cells = [
            Cell(a, b, position)
            for a, group in enumerate(self.senders)
            for b, to in enumerate(self.receivers)
            if self._leads(group, to) and (edges is None or (_names(group), _names(to)) in edges)
            for position in self.columns
        ]

    def changes(self, written: Sequence[Written], task: Task) -> np.ndarray:
        """Return the change of the metric on each path, `[pair, cell]`; NaN where a pair has none."""
        found = np.full((len(self.patcher.pairs), len(self.cells)), np.nan)
        for number, receivers in enumerate(self.receivers):
            at = [
                (pair, cell, Path(pair, each.senders, column))
                for cell, each in enumerate(self.cells)
                if each.receivers == number
                for pair, column in self.columns[each.position].items()
            ]
            if at:
                rows, cells, paths = zip(*at, strict=True)
                values = self.patcher.metrics(paths, receivers, written, task.advance)
                found[rows, cells] = values - self.patcher.m_base[list(rows)]
        return found

    def _leads(self, senders: Sequence[Sender], receivers: Sequence[Receiver]) -> bool:
        """Whether something that one of the senders writes can be read by one of the receivers."""
        return min(map(self.patcher.runs.writing, senders)) < max(map(self.patcher.runs.reading, receivers))

    def _refuse_unread(self, senders: Sequence[Sequence[Sender]]) -> None:
        """Raise SpecError for a sender whose part no receiver reads."""
        last = max(self.patcher.runs.reading(each) for group in self.receivers for each in group)
        for group in senders:
            for sender in group:
                if self.patcher.runs.writing(sender) >= last:
                    allowed = "a sender that writes before a receiver reads"
                    raise SpecError(f"no receiver reads what {sender.name} writes", field="variables.senders", allowed=allowed)

    def _refuse_deaf(self, senders: Sequence[Sequence[Sender]]) -> None:
        """Raise SpecError for a receiver that reads no sender's part."""
        first = min(self.patcher.runs.writing(each) for group in senders for each in group)
        for to in self.receivers:
            for receiver in to:
                if self.patcher.runs.reading(receiver) <= first:
                    allowed = "a receiver that reads after a sender writes"
                    raise SpecError(f"{receiver.name} reads nothing that a sender writes", field="variables.receivers", allowed=allowed)


def _names(group: Sequence[Sender | Receiver]) -> frozenset[str]:
    return frozenset(each.name for each in group)


def measure(context: Context) -> Paths:
    """Run the sweep and its nulls."""
    variables: PathPatchingVariables = context.variables
    metric = MetricRegistry(context.root).get(variables.metric)
    declared = read_pairs(variables.pairs, context.root)
    subject = patchable(context.load_subject())
    pairs = tokenise(declared, subject, variables.align)
    circuit = context.inputs.get("circuit")
    asked = asked_of(variables, None if circuit is None else circuit.path, subject, pairs)
    sweep = _Sweep(PathPatcher(subject, pairs, metric, variables.direction, variables.batch_size), variables, asked)
    patcher = sweep.patcher
    gaps = gaps_of(patcher.m_base, patcher.m_source, metric.name)
    written = [patcher.written(group) for group in sweep.senders]
    twin = untrained(subject, context.seed) if variables.untrained else None
    n_paths = sum(len(sweep.columns[cell.position]) for cell in sweep.cells)
    with context.reporter.task("paths", n_paths * (1 + variables.controls + (twin is not None))) as task:
        changes = sweep.changes(written, task)
        nulls = []
        for draw in range(variables.controls):
            generator = torch_stream(context.seed, "random_direction", draw)
            nulls.append(sweep.changes([patcher.random(each, generator) for each in written], task))
        random_model = None
        if twin is not None:
            other = _Sweep(PathPatcher(twin, pairs, metric, variables.direction, variables.batch_size), variables, asked)
            random_model = other.changes([other.patcher.written(group) for group in other.senders], task)
    clean_first = variables.direction == "noise"
    return Paths(
        subject,
        pairs,
        metric,
        pairs.labels(subject),
        sweep.senders,
        sweep.receivers,
        sweep.cells,
        cell_effects(changes, np.stack(nulls), gaps, variables.n_bootstrap, context.seed, drawn_anew=True),
        None if random_model is None else [ratio_of(column, gaps) for column in random_model.T],
        patcher.m_base if clean_first else patcher.m_source,
        patcher.m_source if clean_first else patcher.m_base,
        asked.warnings,
    )
