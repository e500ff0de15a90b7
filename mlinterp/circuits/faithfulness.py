"""How good circuits are: what they restore, what is left without them, which of their edges matter, and what chance restores.

For a circuit C of the whole graph G, with the empty circuit for the run in which everything is cut, and sums over prompt pairs:

    faithfulness(C)  =  sum of (m(C) - m(empty))  /  sum of (m(G) - m(empty))     0: nothing, 1: all of the behaviour
    completeness(C)  =  1 - faithfulness(G without C)                            1: nothing is left when the circuit is cut
    minimality(C)    =  share of its edges whose cut changes its faithfulness by at least a threshold

(Wang et al. 2022; Hanna et al. 2024.) The null is random circuits of as many edges that grow from the logits as found ones do: edges drawn
anywhere would hang together with nothing, and beating them would be no feat. Where cut edges carry the corrupted run's writes, only edges
that are reached from the embedding can restore anything, so those are counted. The pairs must not be those that chose the circuit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mlinterp.circuits.machine import Machine
from mlinterp.determinism import numpy_stream
from mlinterp.patching.effects import CellEffect, cell_effects, patch_effect
from mlinterp.progress import Advance, unheard

TRIED = 32
"""Edges of a circuit, drawn at random, that minimality is measured on."""


class Judged(NamedTuple):
    """One circuit on some pairs."""

    n_edges: int
    faithfulness: CellEffect | None
    """Beside random circuits of as many edges; None where undefined."""
    completeness: CellEffect | None
    """Beside that of random circuits of as many edges, reached or not: any edge that is cut can take something away."""
    minimality: float | None
    """None for the empty circuit."""
    tried: int
    """Edges that minimality was measured on."""


def runs_of(circuits: Sequence[np.ndarray], draws: int) -> int:
    """Return how many circuits `judge` runs for some."""
    return 2 * len(circuits) * (1 + draws) + sum(min(TRIED, int(circuit.sum())) for circuit in circuits)


def judge(
    machine: Machine,
    circuits: Sequence[np.ndarray],
    rows: Sequence[int],
    draws: int,
    threshold: float,
    n_bootstrap: int,
    seed: int,
    done: Advance = unheard,
) -> list[Judged]:
    """Judge circuits on pairs that did not choose them; `done` is told of the circuits that were run, `runs_of` in all."""
    graph, rows = machine.graph, list(rows)
    m_whole, m_empty = machine.m_clean[rows], machine.m_empty[rows]
    gaps = m_whole - m_empty
    own = machine.metrics(np.stack(circuits), rows, done)
    without = machine.metrics(np.stack([graph.whole & ~circuit for circuit in circuits]), rows, done)
    alive = machine.ablation == "resample"
    sizes = [int((graph.reached(circuit) if alive else circuit).sum()) for circuit in circuits]
    chance, chance_without = [], []
    for draw in range(draws):
        drawn = np.stack([graph.grown(size, seed, draw, reached=alive) for size in sizes])
        chance.append(machine.metrics(drawn, rows, done))
        cut = np.stack([graph.grown(int(circuit.sum()), seed, draw) for circuit in circuits])
        chance_without.append(machine.metrics(graph.whole & ~cut, rows, done))
    restored = cell_effects((own - m_empty).T, np.stack([(each - m_empty).T for each in chance]), gaps, n_bootstrap, seed)
    lost = cell_effects((m_whole - without).T, np.stack([(m_whole - each).T for each in chance_without]), gaps, n_bootstrap, seed)
    judged = []
    for circuit, values, faithful, complete in zip(circuits, own, restored, lost, strict=True):
        minimal, tried = _minimality(machine, circuit, values, gaps, rows, threshold, seed, done)
        judged.append(Judged(int(circuit.sum()), faithful, complete, minimal, tried))
    return judged


def faithfulness(machine: Machine, circuits: Sequence[np.ndarray], rows: Sequence[int], done: Advance = unheard) -> list[float | None]:
    """Return the faithfulness of circuits on some pairs; None where it is undefined. `done` is told of circuits."""
    rows = list(rows)
    m_empty = machine.m_empty[rows]
    gaps = machine.m_clean[rows] - m_empty
    return [patch_effect(values - m_empty, gaps) for values in machine.metrics(np.stack(circuits), rows, done)]


def _minimality(
    machine: Machine, circuit: np.ndarray, values: np.ndarray, gaps: np.ndarray, rows: list[int], threshold: float, seed: int, done: Advance
) -> tuple[float | None, int]:
    edges = np.argwhere(circuit)
    if not len(edges):
        return None, 0
    chosen = edges[numpy_stream(seed, "minimality", len(edges)).permutation(len(edges))[:TRIED]]
    fewer = np.repeat(circuit[None], len(chosen), axis=0)
    fewer[np.arange(len(chosen)), chosen[:, 0], chosen[:, 1]] = False
    changes = (values - machine.metrics(fewer, rows, done)).sum(axis=1) / gaps.sum()
    return float(np.mean(np.abs(changes) >= threshold)), len(chosen)
