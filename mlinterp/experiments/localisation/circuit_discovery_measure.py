"""The work of `circuit_discovery`: edges are scored and a circuit chosen on some pairs, and everything is judged on the others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlinterp.circuits import declared, transformer
from mlinterp.circuits.acdc import prune
from mlinterp.circuits.faithfulness import Judged, faithfulness, judge, runs_of
from mlinterp.circuits.graph import Graph
from mlinterp.circuits.held_out import curve_sizes, split_pairs, tokenised
from mlinterp.circuits.machine import Machine
from mlinterp.circuits.redundancy import CHECKED, Group, Hidden, cut_together, groups_of, hidden
from mlinterp.determinism import numpy_stream
from mlinterp.experiments.base import Context
from mlinterp.experiments.localisation.circuit_discovery import CircuitDiscoveryVariables
from mlinterp.patching.effects import gaps_of
from mlinterp.patching.metrics import MetricRegistry
from mlinterp.subjects.hooked import HookedSubject
from mlinterp.subjects.huggingface import HuggingFaceSubject
from mlinterp.subjects.pairs import patchable
from mlinterp.subjects.pairs_declared import read_pairs


@dataclass(frozen=True)
class Search:
    """What a method says of every edge.

    Attributes:
        scores: share of the gap that each edge carries, `[read, node]`, on the pairs that choose; NaN for one that was never tried.
        held_out: the same on the held-out pairs; None for acdc.
        completeness: what the integrated scores of the embedding's edges add up to, as a share of what they must; None for other methods.
        runs: circuits that acdc ran; None for other methods.
    """

    scores: np.ndarray
    held_out: np.ndarray | None
    completeness: float | None
    runs: int | None


@dataclass(frozen=True)
class Found:
    """Everything that was measured.

    Attributes:
        choosing: the pairs that chose the circuit.
        judging: the held-out ones.
        sizes: numbers of edges of the curve's circuits.
        chosen_by: faithfulness of each of them on the pairs that choose; None where undefined.
        reached: whether some circuit is as faithful as the target on the pairs that choose (acdc has none).
        curve: each of them, judged.
        circuit: the found circuit, without edges that change nothing.
        judged: it, judged.
        groups: edges out of each node, then those into each read.
        falls: by how much the metric falls when each group is cut, `[group, held-out pair]`.
        null_falls: the same for as many edges at random as leave each node, `[node, held-out pair]`.
        exact: edges that were cut by themselves, `[edge, 2]`, the largest first, then as many random ones.
        n_largest: how many of these are largest ones.
        exact_falls: by how much the metric falls then, `[edge, held-out pair]`.
    """

    machine: Machine
    choosing: list[int]
    judging: list[int]
    search: Search
    sizes: list[int]
    chosen_by: list[float | None]
    reached: bool
    curve: list[Judged]
    circuit: np.ndarray
    judged: Judged
    groups: list[Group]
    falls: np.ndarray
    null_falls: np.ndarray
    hidden: list[Hidden]
    exact: np.ndarray
    n_largest: int
    exact_falls: np.ndarray

    @property
    def graph(self) -> Graph:
        """The model's graph."""
        return self.machine.graph

    @property
    def gaps(self) -> np.ndarray:
        """The metric of the whole model less that of the empty circuit, `[held-out pair]`."""
        gaps: np.ndarray = (self.machine.m_clean - self.machine.m_empty)[self.judging]
        return gaps


def measure(context: Context) -> Found:
    """Score, choose and judge."""
    variables: CircuitDiscoveryVariables = context.variables
    metric = MetricRegistry(context.root).get(variables.metric)
    given = read_pairs(variables.pairs, context.root)
    subject = patchable(context.load_subject())
    pairs = tokenised(given, subject)
    choosing, judging = split_pairs(len(given), variables.held_out, context.seed)
    kind, graph = _kind(subject)
    machine = kind(subject, pairs, graph, metric, variables.ablation, choosing, variables.batch_size)
    for rows in (choosing, judging):
        gaps_of(machine.m_empty[rows], machine.m_clean[rows], metric.name, "the clean run and the one with every edge cut")

    search, circuit = _searched(machine, choosing, judging, context)
    sizes = curve_sizes(variables.sizes, graph.n_edges)
    curve = graph.largest(np.nan_to_num(search.scores) + (0.0 if circuit is None else _KEPT * circuit), sizes)
    candidates = [] if circuit is not None else graph.largest(search.scores, sizes if variables.sizes else _grid(graph.n_edges))
    with context.reporter.task("circuits of each size", len(curve) + len(candidates)) as task:
        chosen_by, *tried = (faithfulness(machine, each, choosing, task.advance) for each in (curve, candidates) if each)
    reached = True
    if circuit is None:
        enough = [value is not None and value >= variables.target for value in tried[0]]
        reached = any(enough)
        circuit = candidates[enough.index(True) if reached else -1]
    circuit = graph.useful(circuit)
    if variables.ablation == "resample":
        circuit = graph.reached(circuit)
    draws = variables.random_circuits
    with context.reporter.task("circuits and random ones", runs_of([*curve, circuit], draws)) as task:
        *judged, own = judge(
            machine, [*curve, circuit], judging, draws, variables.threshold, variables.n_bootstrap, context.seed, task.advance
        )
    groups = groups_of(graph)
    chance = [
        Group(group.name, np.argwhere(graph.random(len(group.edges), context.seed, at)))
        for at, group in enumerate(groups[: len(graph.nodes)])
    ]
    exact, n_largest = _to_cut(graph, search.scores, variables.exact, context.seed)
    # What acdc measured of an edge hangs on what had been cut before it, so it tells nothing of the edge alone.
    estimated = np.zeros(graph.whole.shape) if search.held_out is None else search.held_out
    alone = [Group(graph.edge(*edge), edge[None]) for edge in exact]
    with context.reporter.task("cuts", len(groups) + len(chance) + len(alone)) as task:
        falls, null_falls, exact_falls = (cut_together(machine, each, judging, task.advance) for each in (groups, chance, alone))
    with context.reporter.task("edges that may hide each other", CHECKED) as task:
        hiding = hidden(machine, groups, falls, judging, estimated, task.advance)
    return Found(
        machine,
        choosing,
        judging,
        search,
        sizes,
        chosen_by,
        reached,
        judged,
        circuit,
        own,
        groups,
        falls,
        null_falls,
        hiding,
        exact,
        n_largest,
        exact_falls,
    )


_KEPT = 1e9
"""Added to the scores of edges that acdc kept: the curve takes them first."""


def _kind(subject: HookedSubject) -> tuple[type[Machine], Graph]:
    if isinstance(subject, HuggingFaceSubject):
        return transformer.TransformerMachine, transformer.graph_of(subject)
    return declared.DeclaredMachine, declared.graph_of(subject)


def _searched(machine: Machine, choosing: list[int], judging: list[int], context: Context) -> tuple[Search, np.ndarray | None]:
    """Return what the method says, and the circuit where it says that by itself."""
    variables: CircuitDiscoveryVariables = context.variables
    gaps = machine.m_clean - machine.m_empty
    if variables.method == "acdc":
        with context.reporter.task("edges", machine.graph.n_edges) as task:
            pruned = prune(machine, choosing, variables.threshold, task)
        return Search(pruned.rises, None, None, pruned.runs), pruned.kept
    steps = variables.ig_steps if variables.method == "eap_ig" else None
    with context.reporter.task("gradients", len(gaps)) as task:
        scores, held_out = (machine.edge_scores(rows, steps, task.advance) for rows in (choosing, judging))
    completeness = None
    if steps is not None:
        must = float(machine.embedding_gap([*choosing, *judging]).sum())
        completeness = float(scores[:, :, 0].sum() + held_out[:, :, 0].sum()) / must if must else None
    return Search(scores.sum(axis=0) / gaps[choosing].sum(), held_out.sum(axis=0) / gaps[judging].sum(), completeness, None), None


def _grid(n_edges: int) -> list[int]:
    """Return the sizes among which the circuit is chosen: every one up to ten, then each about a tenth larger, up to the whole graph.

    >>> _grid(15)
    [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]
    """
    sizes = [1]
    while sizes[-1] < n_edges:
        sizes.append(min(n_edges, sizes[-1] + max(1, sizes[-1] // 10)))
    return sizes


def _to_cut(graph: Graph, scores: np.ndarray, n: int, seed: int) -> tuple[np.ndarray, int]:
    """Return the n largest edges and as many others at random."""
    edges = np.argwhere(graph.whole)
    order = np.argsort(-np.abs(np.nan_to_num(scores[tuple(edges.T)])), kind="stable")
    rest = numpy_stream(seed, "exact").permutation(order[n:])[:n]
    return edges[[*order[:n], *rest]], min(n, len(edges))
