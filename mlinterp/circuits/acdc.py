"""ACDC: the circuit that is left when every edge is cut whose loss is bearable (Conmy et al. 2023, "Towards automated circuit discovery").

Reads are visited from the logits back to the first block, and the edges into each from the latest write to the embedding. An edge is cut
where the circuit's distance to the whole model then rises by less than the threshold, and stays otherwise:

    distance  =  sum over pairs of |m(whole) - m(circuit)|  /  |sum over pairs of (m(whole) - m(empty))|

A read that feeds no node that anything still reads loses all its edges at once, which changes nothing. Everything below the visited read
is still whole, so runs begin at its block. Edges are tried several to a batch, each on top of the cuts before it: as long as all are
bearable that is what one by one would have found, and from the first that is not the rest are tried again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mlinterp.circuits.machine import Machine
from mlinterp.progress import Task


class Pruned(NamedTuple):
    """What ACDC found."""

    kept: np.ndarray
    """The circuit, bool `[read, node]`."""
    rises: np.ndarray
    """By how much the distance rose when an edge was tried, `[read, node]`; NaN for edges that were cut untried."""
    runs: int
    """Circuits that were run."""


def prune(machine: Machine, rows: Sequence[int], threshold: float, task: Task | None = None) -> Pruned:
    """Return the circuit of some pairs; `task` is told of every edge that is decided."""
    graph = machine.graph
    kept, rises = graph.whole.copy(), np.full(graph.whole.shape, np.nan)
    m_whole = machine.m_clean[list(rows)]
    scale = abs(float((m_whole - machine.m_empty[list(rows)]).sum()))
    distance, runs, width, widest = 0.0, 0, 1, max(1, machine.batch_size // len(rows))
    for row in reversed(range(len(graph.reads))):
        if not graph.useful(kept)[row].any():
            kept[row] = False
            _tell(task, graph.reads[row].upstream)
            continue
        waiting = list(reversed(range(graph.reads[row].upstream)))
        while waiting:
            tried = waiting[:width]
            circuits = np.repeat(kept[None], len(tried), axis=0)
            for number, node in enumerate(tried):
                circuits[number:, row, node] = False
            found = np.abs(m_whole - machine.metrics(circuits, rows)).sum(axis=1) / scale
            runs += len(tried)
            decided = 0
            for node, then in zip(tried, found.tolist(), strict=True):
                rises[row, node] = then - distance
                decided += 1
                # An undefined metric is no reason to cut.
                if not then - distance < threshold:
                    break
                kept[row, node], distance = False, then
            waiting = waiting[decided:]
            width = min(2 * width, widest) if decided == len(tried) else max(1, decided)
            _tell(task, decided)
    return Pruned(kept, rises, runs)


def _tell(task: Task | None, amount: int) -> None:
    if task is not None:
        task.advance(amount)
