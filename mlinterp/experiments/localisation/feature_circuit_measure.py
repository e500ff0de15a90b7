"""The work of `feature_circuit`: nodes are scored and a circuit chosen on some pairs, and everything is judged on the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from mlinterp.circuits import latent_edges
from mlinterp.circuits.held_out import curve_sizes, split_pairs, tokenised
from mlinterp.circuits.latent_edges import OUTPUT, Edge, edges_among
from mlinterp.circuits.latent_faithfulness import Judged, judge
from mlinterp.circuits.latent_machine import LatentMachine
from mlinterp.circuits.latent_scores import moved, passes_of, scores, slopes_of
from mlinterp.circuits.redundancy import hides
from mlinterp.determinism import numpy_stream
from mlinterp.errors import ExperimentError, SpecError
from mlinterp.experiments.base import Context
from mlinterp.experiments.localisation.feature_circuit import SAES, FeatureCircuitVariables
from mlinterp.patching.effects import CellEffect, cell_effects, gaps_of
from mlinterp.patching.metrics import MetricRegistry
from mlinterp.sae.files.checkpoint import load_sae
from mlinterp.sae.files.provenance import require_subject
from mlinterp.sae.model import SAE
from mlinterp.subjects.hooked import HookedSubject
from mlinterp.subjects.pairs import patchable
from mlinterp.subjects.pairs_declared import read_pairs

EDGED = 200
"""Latents of the circuit between which edges are measured, the largest first; each takes a backward pass a batch."""


class Scored(NamedTuple):
    """The nodes that differ from what stands in their place in some pair: all others change nothing.

    Attributes:
        nodes: their numbers, ascending; the errors are among them.
        shares: their scores on the pairs that choose, as shares of the gap.
        falls: their scores on the held-out pairs, in the metric's own unit, `[held-out pair, node]`.
        effects: the same as shares of the gap, beside random directions, with intervals.
        missed: of each hook point, what integrated scores add up to less what ablating all of it does, as a share of the gap, over
            all pairs; None where gradients are not integrated.
    """

    nodes: np.ndarray
    shares: np.ndarray
    falls: np.ndarray
    effects: list[CellEffect | None]
    missed: list[float] | None


class Exact(NamedTuple):
    """What was patched by itself, exactly: the largest first, then as many at random, then the errors (of nodes)."""

    which: list[int]
    n_largest: int
    n_random: int
    falls: np.ndarray
    """By how much the metric falls then, `[held-out pair, one]`."""


class Joint(NamedTuple):
    """All latents of a hook point ablated together, on held-out pairs; effects are shares of the gap."""

    site: str
    n_latents: int
    together: float
    singles: float
    """Their effects one by one, added up."""
    n_measured: int
    """How many of these were measured; the others are estimated."""

    @property
    def is_measured(self) -> bool:
        """Whether all of these were."""
        return self.n_measured == self.n_latents

    @property
    def hides(self) -> bool:
        """Whether they do together what they do not do one by one."""
        return self.n_latents > 1 and hides(self.together, self.singles)


class Edges(NamedTuple):
    """Edges of the circuit; `which` of `exact` are numbers of edges.

    Attributes:
        edges: every one that was looked at.
        shares: their weights on the pairs that choose, as shares of the gap.
        falls: their weights on held-out pairs, `[held-out pair, edge]`.
        left_out: latents of the circuit that have no edges, since there are too many.
    """

    edges: list[Edge]
    shares: np.ndarray
    falls: np.ndarray
    exact: Exact
    left_out: int


@dataclass(frozen=True)
class Found:
    """Everything that was measured.

    Attributes:
        digests: of the SAE of each hook point, in order.
        roles: the input that each of them came by.
        choosing: the pairs that chose the circuit.
        judging: the held-out ones.
        circuit: its latents, bool `[node]`.
        curve: latents ranked first, of each size, with the errors in the circuit and then outside.
        own: the circuit itself, judged so.
        ends: all latents that there are, and none, judged so, in this order.
        top_tokens: the token that each latent of the circuit is most active on, by node.
    """

    machine: LatentMachine
    digests: list[str]
    roles: list[str]
    choosing: list[int]
    judging: list[int]
    scored: Scored
    circuit: np.ndarray
    exact: Exact
    joints: list[Joint]
    edges: Edges | None
    curve: list[Judged]
    own: list[Judged]
    ends: list[Judged]
    top_tokens: dict[int, str]

    @property
    def gaps(self) -> np.ndarray:
        """The metric of the clean run less that of the one with everything ablated, `[held-out pair]`."""
        gaps: np.ndarray = (self.machine.m_clean - self.machine.m_empty)[self.judging]
        return gaps


def measure(context: Context) -> Found:
    """Score, choose and judge."""
    variables: FeatureCircuitVariables = context.variables
    metric, given = MetricRegistry(context.root).get(variables.metric), read_pairs(variables.pairs, context.root)
    subject = patchable(context.load_subject())
    saes, roles = _saes(context, subject)
    pairs = tokenised(given, subject)
    choosing, judging = split_pairs(len(given), variables.held_out, context.seed)
    machine = LatentMachine(subject, pairs, saes, metric, variables.ablation, choosing, variables.batch_size)
    for rows in (choosing, judging):
        gaps_of(machine.m_empty[rows], machine.m_clean[rows], metric.name, "the clean run and the one with every node ablated")
    gap = float((machine.m_clean - machine.m_empty)[choosing].sum())

    differs = moved(machine, range(len(given))) > 0
    some = np.flatnonzero(differs | machine.nodes.is_error)
    latents = some[~machine.nodes.is_error[some]]
    if not len(latents):
        raise ExperimentError("no latent differs from what stands in its place in any pair: the SAEs do not see these prompts")
    steps = variables.ig_steps if variables.method == "integrated" else None
    with context.reporter.task("slopes", passes_of(machine, range(len(given)), steps)) as task:
        slopes, held_slopes = (slopes_of(machine, rows, steps, task.advance) for rows in (choosing, judging))
    chosen = scores(machine, choosing, slopes, some).own
    held_out = scores(machine, judging, held_slopes, some, variables.controls, context.seed)
    gaps = (machine.m_clean - machine.m_empty)[judging]
    effects = cell_effects(held_out.own, held_out.nulls, gaps, variables.n_bootstrap, context.seed)
    missed = None
    if steps is not None:
        missed = _missed(machine, [*choosing, *judging], some, np.concatenate([chosen, held_out.own]))
    scored = Scored(some, chosen.sum(axis=0) / gap, held_out.own, effects, missed)

    ranked = latents[np.argsort(-np.abs(scored.shares[~machine.nodes.is_error[some]]), kind="stable")]
    circuit = _circuit(machine, scored, ranked, variables)
    sizes = curve_sizes(variables.sizes, len(ranked))
    pool = machine.nodes.of(latents)
    sets = [machine.nodes.of(ranked[:size]) for size in sizes] + [circuit, machine.nodes.all & ~machine.nodes.is_error, machine.nodes.none]
    draws = variables.random_circuits
    with context.reporter.task("circuits and random ones", 1 + draws) as task:
        judged = judge(machine, sets, judging, pool, draws, variables.n_bootstrap, context.seed, task.advance)
    exact = _exact_nodes(machine, ranked, judging, context)
    edges = None
    if variables.edges:
        members = np.sort(ranked[: int(circuit.sum())][:EDGED])
        among = edges_among(machine, sorted([*members.tolist(), *machine.nodes.errors.tolist()]))
        with context.reporter.task("edges", len({up for up, _ in among}) * len(given)) as task:
            shares = latent_edges.weights(machine, choosing, slopes, among, task.advance).sum(axis=0) / gap
            falls = latent_edges.weights(machine, judging, held_slopes, among, task.advance)
        edges = Edges(among, shares, falls, _exact_edges(machine, among, shares, judging, context), int(circuit.sum()) - len(members))
    n = 2 * len(sizes)
    return Found(
        machine,
        [context.inputs[role].digest for role in roles],
        roles,
        choosing,
        judging,
        scored,
        circuit,
        exact,
        _joints(machine, scored, exact, judging),
        edges,
        judged[:n],
        judged[n : n + 2],
        judged[n + 2 :],
        _top_tokens(machine, circuit),
    )


def _saes(context: Context, subject: HookedSubject) -> tuple[dict[str, SAE], list[str]]:
    """Return the SAE of each hook point, in order of evaluation, and the inputs they came by. Raises SpecError, naming the input."""
    found: dict[str, tuple[str, SAE]] = {}
    for role in (role for role in SAES if role in context.inputs):
        field, path = f"inputs.{role}", context.inputs[role].path
        require_subject(path, subject, field)
        sae = load_sae(path)
        config = sae.config
        if config.kind != "sae":
            raise SpecError(f"is a {config.kind}", field=field, allowed="an SAE, which writes what it reads")
        if not config.site:
            raise SpecError("does not say which hook point it reads", field=field, allowed="an SAE that was fitted or imported with one")
        if config.site in found:
            raise SpecError(
                f"reads {config.site}, and so does inputs.{found[config.site][0]}", field=field, allowed="one SAE for each hook point"
            )
        if (width := subject.width(config.site)) != config.d_in:
            raise SpecError(f"reads {config.d_in} numbers, and {config.site} of '{subject.name}' holds {width}", field=field)
        found[config.site] = (role, sae)
    order = [address.site for address in subject.addresses(list(found))]
    return {site: found[site][1] for site in order}, [found[site][0] for site in order]


def _missed(machine: LatentMachine, rows: list[int], some: np.ndarray, own: np.ndarray) -> list[float]:
    """Return by how much each hook point's scores miss what ablating all of it does."""
    nodes, gap, found = machine.nodes, float((machine.m_clean - machine.m_empty)[rows].sum()), []
    for place in range(len(nodes.places)):
        kept = nodes.all
        kept[nodes.at(place)] = False
        exact = machine.m_clean[rows] - machine.metrics(kept[None], rows)[0]
        found.append(float(own[:, nodes.place_of[some] == place].sum() - exact.sum()) / gap)
    return found


def _circuit(machine: LatentMachine, scored: Scored, ranked: np.ndarray, variables: FeatureCircuitVariables) -> np.ndarray:
    if variables.top is not None:
        return machine.nodes.of(ranked[: variables.top])
    share = dict(zip(scored.nodes.tolist(), scored.shares.tolist(), strict=True))
    return machine.nodes.of([node for node in ranked.tolist() if abs(share[node]) >= variables.share])


def _exact_nodes(machine: LatentMachine, ranked: np.ndarray, rows: list[int], context: Context) -> Exact:
    n = context.variables.exact
    random = numpy_stream(context.seed, "exact").permutation(ranked[n:])[:n]
    which = [*ranked[:n].tolist(), *random.tolist(), *machine.nodes.errors.tolist()]
    fewer = np.repeat(machine.nodes.all[None], len(which), axis=0)
    fewer[np.arange(len(which)), which] = False
    return Exact(which, min(n, len(ranked)), len(random), (machine.m_clean[rows] - machine.metrics(fewer, rows)).T)


def _exact_edges(machine: LatentMachine, edges: list[Edge], shares: np.ndarray, rows: list[int], context: Context) -> Exact:
    n, order = context.variables.exact, np.argsort(-np.abs(shares), kind="stable")
    order = order[[edges[at][1] != OUTPUT for at in order.tolist()]]  # what goes straight to the metric is measured as it is
    random = numpy_stream(context.seed, "exact_edges").permutation(order[n:])[:n]
    which, columns = [*order[:n].tolist(), *random.tolist()], [np.empty((len(rows), 0))]
    with context.reporter.task("exact edges", len(which)) as task:
        for at in which:
            columns.append(latent_edges.exact(machine, rows, edges[at])[:, None])
            task.advance(1)
    return Exact(which, min(n, len(order)), len(random), np.concatenate(columns, axis=1))


def _joints(machine: LatentMachine, scored: Scored, exact: Exact, rows: list[int]) -> list[Joint]:
    """Ablate all latents of each hook point together, and hold that against what they do one by one."""
    nodes, gap, found = machine.nodes, float((machine.m_clean - machine.m_empty)[rows].sum()), []
    alone = dict(zip(scored.nodes.tolist(), scored.falls.sum(axis=0).tolist(), strict=True))
    alone |= dict(zip(exact.which, exact.falls.sum(axis=0).tolist(), strict=True))
    for place, (site, _) in enumerate(nodes.places):
        here = [node for node in scored.nodes.tolist() if nodes.place_of[node] == place and not nodes.is_error[node]]
        if here:
            together = float((machine.m_clean[rows] - machine.metrics(~nodes.of(here)[None], rows)[0]).sum())
            n_measured = len(set(here) & set(exact.which))
            found.append(Joint(site, len(here), together / gap, sum(alone[node] for node in here) / gap, n_measured))
    return found


def _top_tokens(machine: LatentMachine, circuit: np.ndarray) -> dict[int, str]:
    """Return the token of the clean prompts that each latent of a circuit is most active on; none for one that is never active there."""
    found: dict[int, str] = {}
    inputs, real = machine.pairs.clean.inputs, machine.pairs.clean.mask.to(machine.device)[..., None]
    best = dict.fromkeys(np.flatnonzero(circuit).tolist(), 0.0)
    with torch.no_grad():
        for batch in machine.batched(range(len(machine.pairs)), list):
            for place in range(len(machine.sites)):
                here = [node for node in best if machine.nodes.place_of[node] == place]
                if here:
                    latents = [machine.nodes.latent(node) for node in here]
                    acts = torch.where(real[batch], machine.code(place, machine.clean[place][batch]).latents[..., latents], 0)
                    largest, where = acts.flatten(0, 1).max(dim=0)
                    for node, act, at in zip(here, largest.tolist(), where.tolist(), strict=True):
                        if act > best[node]:
                            best[node] = act
                            found[node] = machine.subject.token_text(int(inputs[batch].flatten()[at]))
    return found
