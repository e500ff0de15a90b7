"""Edges cut together: all that a node writes, all that a read takes, and whether they hide each other.

Parts that stand in for each other (an OR gate) do nothing one by one and much together. A search that cuts edges one at a time, or
follows a gradient, misses them. So every node's and every read's edges are cut together, and where that does more than twice what the
edges' own effects add up to, each of them is cut by itself to be sure. The embedding and the logits are left out: everything passes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mlinterp.circuits.graph import Graph
from mlinterp.circuits.machine import Machine
from mlinterp.progress import Advance, unheard

NOTABLE = 0.1
"""A joint effect below this is not worth a warning."""
CHECKED = 8
"""Groups whose edges are cut one by one, those with the largest joint effect first."""


class Group(NamedTuple):
    """Edges that are cut together."""

    name: str
    edges: np.ndarray
    """`[edge, 2]`: read, node."""


class Hidden(NamedTuple):
    """A group of edges that do together what they do not do one by one; effects are shares of the gap."""

    name: str
    n_edges: int
    together: float
    singles: float
    """Their effects one by one, added up."""
    largest: float
    """The largest of them, by size."""


def groups_of(graph: Graph) -> list[Group]:
    """Return the edges out of every node, in order, and those into every read."""
    out = [Group(f"out of {node.name}", _edges(graph, column=number)) for number, node in enumerate(graph.nodes)]
    return out + [Group(f"into {read.name}", _edges(graph, row=number)) for number, read in enumerate(graph.reads)]


def cut_together(machine: Machine, groups: Sequence[Group], rows: Sequence[int], done: Advance = unheard) -> np.ndarray:
    """Return by how much the metric falls when each group's edges are cut in the whole model, `[group, row]`; `done` is told of groups."""
    without = np.repeat(machine.graph.whole[None], len(groups), axis=0)
    for number, group in enumerate(groups):
        without[number][tuple(group.edges.T)] = False
    return machine.m_clean[list(rows)] - machine.metrics(without, rows, done)


def hidden(
    machine: Machine, groups: Sequence[Group], falls: np.ndarray, rows: Sequence[int], estimated: np.ndarray, done: Advance = unheard
) -> list[Hidden]:
    """Return the groups whose edges hide each other, on some pairs.

    Args:
        machine: the model as its graph.
        groups: of `groups_of`.
        falls: of `cut_together` for these.
        rows: the pairs.
        estimated: what each edge is thought to do by itself, as a share of the gap, `[read, node]`.
        done: told of groups, `CHECKED` in all.
    """
    total = float((machine.m_clean - machine.m_empty)[list(rows)].sum())
    suspects = []
    for number, group in enumerate(groups):
        together, guess = float(falls[number].sum()) / total, float(np.nansum(estimated[tuple(group.edges.T)]))
        if group.name not in ("out of embed", "into logits") and len(group.edges) > 1 and hides(together, guess):
            suspects.append((abs(together), number, together))
    found = []
    done(max(0, CHECKED - len(suspects)))
    for _, number, together in sorted(suspects, reverse=True)[:CHECKED]:
        group = groups[number]
        alone = cut_together(machine, [Group(group.name, edge[None]) for edge in group.edges], rows).sum(axis=1) / total
        done(1)
        if hides(together, float(alone.sum())):
            found.append(Hidden(group.name, len(alone), together, float(alone.sum()), float(max(alone, key=abs))))
    return found


def _edges(graph: Graph, row: int | None = None, column: int | None = None) -> np.ndarray:
    edges = np.argwhere(graph.whole)
    return edges[edges[:, 0] == row] if column is None else edges[edges[:, 1] == column]


def hides(together: float, singles: float) -> bool:
    """Whether parts do together what they do not do one by one, as shares of the gap."""
    return abs(together) >= NOTABLE and singles * np.sign(together) < abs(together) / 2
