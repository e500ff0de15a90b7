"""What one latent does through another, and through nothing else: edges of a feature circuit, with quantities of their own.

The edge from an upstream node u to a downstream node d is what the metric falls by when d alone sees u ablated:

1. u is ablated in the clean run while every later hook point keeps its clean activation, so that what arrives at d's hook point has passed
   no other node; there d is read;
2. the clean run is run again with d as it was read, at every position, and all else as it then follows.

The first run serves every downstream node at once. The second would be one for each edge, so all but some of them are replaced by the
slope dm/dd that d's own score is made of:

    weight of u -> d  =  sum over positions of (dm/dd) · (d in the clean run - d as it was read)

Marks et al. 2024 (section 3.2) take a gradient for the first run too. An SAE has none where it matters: a latent that is silent has no
slope until it wakes, TopK and JumpReLU jump, and a gradient counts all of that for the error.

The metric itself is the last downstream node. What a node does past all later hook points is measured by the first run.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mlinterp.circuits.latent_machine import At, Code, LatentMachine
from mlinterp.circuits.latent_scores import summed
from mlinterp.progress import Advance, unheard

OUTPUT = -1
"""Stands for the metric among downstream nodes."""
Edge = tuple[int, int]
"""Upstream node, downstream node or `OUTPUT`."""


def edges_among(machine: LatentMachine, some: Sequence[int]) -> list[Edge]:
    """Return every edge between some nodes, and from each to the metric: those that lead to a later hook point."""
    place = machine.nodes.place_of
    return [(up, down) for down in (*some, OUTPUT) for up in some if down == OUTPUT or place[up] < place[down]]


def weights(
    machine: LatentMachine, rows: Sequence[int], slopes: Sequence[Tensor], edges: Sequence[Edge], done: Advance = unheard
) -> np.ndarray:
    """Return the weight of edges in some pairs, in the metric's own unit, float64 `[row, edge]`.

    Args:
        machine: the model.
        rows: the pairs.
        slopes: of `slopes_of` for these.
        edges: those asked for.
        done: told of the upstream nodes that are through, over all pairs: as many as there are nodes and pairs.
    """
    found, out_of = np.zeros((len(rows), len(edges))), dict[int, dict[int, int]]()
    for number, (up, down) in enumerate(edges):
        out_of.setdefault(up, {})[down] = number
    downs = np.array(sorted({down for _, down in edges} - {OUTPUT}), dtype=int)
    jobs = [(up, at) for up in out_of for at in range(len(rows))]

    def run(some: Sequence[tuple[int, int]]) -> np.ndarray:
        ups, ats = zip(*some, strict=True)
        found = _read(machine, ups, [rows[at] for at in ats], [slope[list(ats)] for slope in slopes], downs)
        done(len(some))
        return found

    with torch.no_grad():
        read = np.concatenate(list(machine.batched(jobs, run)))
    column = {int(down): at for at, down in enumerate(downs)} | {OUTPUT: len(downs)}
    for (up, at), falls in zip(jobs, read, strict=True):
        for down, number in out_of[up].items():
            found[at, number] = falls[column[down]]
    return found


def _read(machine: LatentMachine, ups: Sequence[int], rows: Sequence[int], slopes: Sequence[Tensor], downs: np.ndarray) -> np.ndarray:
    """Return the weights of one upstream node a run into some nodes, and last into the metric, `[run, downstream node + 1]`."""
    arrived: dict[int, Tensor] = {}
    logits = machine.run(rows, _ablated(machine, ups, rows, arrived))
    assert logits is not None
    found = np.empty((len(rows), len(downs) + 1))
    found[:, -1] = machine.m_clean[list(rows)] - machine.measured(logits, rows).double().cpu().numpy()
    for place in np.unique(machine.nodes.place_of[downs]).tolist():
        here = np.flatnonzero(machine.nodes.place_of[downs] == place)
        change = machine.code(place, machine.clean[place][list(rows)]).less(machine.code(place, arrived[place]))
        slope = torch.where(machine.edited_at[list(rows)], slopes[place], 0).to(change.error.dtype)
        numbers = downs[here] - machine.nodes.starts[place]
        is_error = numbers == len(machine.directions[place])
        latents = torch.from_numpy(numbers[~is_error]).to(machine.device)
        found[:, here[~is_error]] = summed(change.latents[..., latents], slope @ machine.directions[place][latents].T)
        found[:, here[is_error]] = summed(change.error, slope).sum(axis=1, keepdims=True)
    return found


def _ablated(machine: LatentMachine, ups: Sequence[int], rows: Sequence[int], arrived: dict[int, Tensor]) -> At:
    """Return the edit that ablates one node a run and holds every other hook point; what arrives there is put down."""
    kept = torch.from_numpy(~np.stack([machine.nodes.of([up]) for up in ups])).to(machine.device)

    def hold(place: int, h: Tensor) -> Tensor:
        arrived[place] = h.clone()
        return machine.without(place, machine.clean[place][list(rows)], rows, kept[:, machine.nodes.at(place)])

    return hold


def exact(machine: LatentMachine, rows: Sequence[int], edge: Edge) -> np.ndarray:
    """Return by how much the metric really falls when the downstream node alone sees the upstream one ablated, float64 `[row]`."""
    up, down = edge
    last, latent = int(machine.nodes.place_of[down]), machine.nodes.latent(down)

    def seen(some: Sequence[int]) -> At:
        """Let the downstream node be what it is then."""
        arrived: dict[int, Tensor] = {}
        machine.run(some, _ablated(machine, [up] * len(some), some, arrived), until=last)
        clean = machine.clean[last][list(some)]
        latents, error = machine.code(last, arrived[last]).less(machine.code(last, clean))
        alone = torch.zeros_like(latents)
        if latent is not None:
            alone[..., latent] = latents[..., latent]
        change = machine.added(last, Code(alone, torch.zeros_like(error) if latent is not None else error))
        edited = (clean + torch.where(machine.edited_at[list(some)], change, 0)).to(clean.dtype)
        return lambda place, h: edited if place == last else h

    return machine.falls(rows, seen)
