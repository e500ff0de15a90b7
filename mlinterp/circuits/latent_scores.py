"""How much each latent and each error matters, to first order: what the metric falls by when the node alone is ablated.

With f - f° the step of a node from what stands in its place to its clean value, and m the metric,

    score of a node  =  sum over positions of (f - f°) · dm/df

where dm/df is the slope in the clean run (`gradient`; Nanda 2023), or its mean along the straight way on which all nodes of a hook point
move together from what stands in their place to their clean values (`integrated`; Sundararajan et al. 2017; Marks et al. 2024), taken at
the midpoints of equal parts. Nodes move the activation linearly, so one slope by the activation serves every node of a hook point, and the
integrated scores of a hook point add up to what ablating all of it does, but for the midpoint rule's error (completeness).

The null is a step of the same length in a random direction, along the same slope.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mlinterp.circuits.latent_machine import At, LatentMachine
from mlinterp.determinism import torch_stream
from mlinterp.errors import ExperimentError, SpecError
from mlinterp.progress import Advance, unheard


class Scores(NamedTuple):
    """What first order says of some nodes, in the metric's own unit."""

    own: np.ndarray
    """`[row, node]`."""
    nulls: np.ndarray
    """Of random directions, `[draw, row, node]`."""


def slopes_of(machine: LatentMachine, rows: Sequence[int], steps: int | None = None, done: Advance = unheard) -> list[Tensor]:
    """Return the metric's slope at every hook point, `[row, pos, d]` each: in the clean run, or its mean over so many steps of the way.

    `done` is told how many prompts each backward pass was through: `passes_of` in all. Raises SpecError for a metric that has no
    gradient, ExperimentError where it is not finite.
    """

    def slopes(some: Sequence[int]) -> list[Tensor]:
        return _clean_slopes(machine, some, done) if steps is None else _mean_slopes(machine, some, steps, done)

    pieces = list(machine.batched(rows, slopes))
    found = [torch.cat(parts) for parts in zip(*pieces, strict=True)]
    if not all(bool(torch.isfinite(each).all()) for each in found):
        raise ExperimentError(f"{machine.metric.name} has no finite gradient")
    return found


def passes_of(machine: LatentMachine, rows: Sequence[int], steps: int | None) -> int:
    """Return how many prompts the backward passes of `slopes_of` are through, one after the other."""
    return len(rows) * (1 if steps is None else steps * len(machine.sites))


def _clean_slopes(machine: LatentMachine, rows: Sequence[int], done: Advance) -> list[Tensor]:
    seen: dict[int, Tensor] = {}

    def ask(place: int, h: Tensor) -> Tensor:
        seen[place] = h if h.requires_grad else h.detach().clone().requires_grad_()
        return seen[place]

    return _gradients(machine, rows, ask, seen, done)


def _mean_slopes(machine: LatentMachine, rows: Sequence[int], steps: int, done: Advance) -> list[Tensor]:
    found = []
    for place in range(len(machine.sites)):
        ways = (machine.on_the_way(place, rows, (step + 0.5) / steps) for step in range(steps))
        found.append(torch.stack([_at(machine, rows, place, h, done) for h in ways]).mean(dim=0))
    return found


def _at(machine: LatentMachine, rows: Sequence[int], place: int, h: Tensor, done: Advance) -> Tensor:
    """Return the slope at one activation of a hook point."""
    at = h.requires_grad_()
    return _gradients(machine, rows, lambda here, other: at if here == place else other, {place: at}, done)[0]


def _gradients(machine: LatentMachine, rows: Sequence[int], edit: At, seen: dict[int, Tensor], done: Advance) -> list[Tensor]:
    """Return the metric's gradient by what an edit has put in place, hook point by hook point, float32 at least."""
    with torch.enable_grad():
        logits = machine.run(rows, edit)
        assert logits is not None
        m = machine.measured(logits, rows)
        if not m.requires_grad:
            allowed = "a metric made of differentiable steps"
            raise SpecError(f"{machine.metric.name} has no gradient", field="variables.metric", allowed=allowed)
        gradients = torch.autograd.grad(m.sum(), [seen[place] for place in sorted(seen)], materialize_grads=True)
    done(len(rows))
    return [each.to(torch.promote_types(each.dtype, torch.float32)) for each in gradients]


def moved(machine: LatentMachine, rows: Sequence[int]) -> np.ndarray:
    """Return how far each node moves the activation when it is ablated, summed over positions and pairs, float64 `[node]`."""
    found = np.zeros(len(machine.nodes))
    with torch.no_grad():
        for batch in machine.batched(rows, list):
            for place, directions in enumerate(machine.directions):
                step = machine.steps(place, batch)
                lengths = torch.cat([step.latents.abs().sum(dim=(0, 1)) * directions.norm(dim=1), step.error.norm(dim=2).sum()[None]])
                found[machine.nodes.at(place)] += lengths.double().cpu().numpy()
    return found


def scores(
    machine: LatentMachine, rows: Sequence[int], slopes: Sequence[Tensor], some: np.ndarray, draws: int = 0, seed: int = 0
) -> Scores:
    """Return the scores of some nodes, and of steps as long in random directions.

    Args:
        machine: the model.
        rows: the pairs.
        slopes: of `slopes_of` for these.
        some: numbers of nodes, ascending.
        draws: of the null.
        seed: of the null.
    """
    own, nulls = np.zeros((len(rows), len(some))), np.zeros((draws, len(rows), len(some)))
    with torch.no_grad():
        for place, directions in enumerate(machine.directions):
            here = np.flatnonzero(machine.nodes.place_of[some] == place)
            numbers = some[here] - machine.nodes.starts[place]
            is_error = numbers == len(directions)
            latents, at, errors = torch.from_numpy(numbers[~is_error]).to(machine.device), here[~is_error], here[is_error]
            chosen = directions[latents]
            drawn = [_random_like(directions, latents, seed, place, draw) for draw in range(draws)]
            for batch in machine.batched(range(len(rows)), list):
                step, slope = machine.steps(place, [rows[row] for row in batch]), slopes[place][batch].to(chosen.dtype)
                moves, grid = step.latents[..., latents], np.ix_(batch, at)
                own[grid] = summed(moves, slope @ chosen.T)
                own[np.ix_(batch, errors)] = summed(step.error, slope).sum(axis=1, keepdims=True)
                for draw, (random, other) in enumerate(drawn):
                    nulls[draw][grid] = summed(moves, slope @ random.T)
                    lengths = step.error.norm(dim=2, keepdim=True)
                    nulls[draw][np.ix_(batch, errors)] = summed(lengths, (slope @ other)[..., None])
    return Scores(own, nulls)


def _random_like(directions: Tensor, latents: Tensor, seed: int, place: int, draw: int) -> tuple[Tensor, Tensor]:
    """Return random directions, each as long as the one of the latent that it stands for, and one of length 1 for the error.

    A latent's own do not depend on which others are asked for, and no more than those are kept: an SAE has many more latents than differ.
    """
    generator = torch_stream(seed, "random_direction", place, draw)
    random = torch.randn(len(directions) + 1, directions.shape[1], generator=generator).to(directions)
    random /= random.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return random[latents] * directions[latents].norm(dim=1, keepdim=True), random[-1].clone()


def summed(moves: Tensor, slopes: Tensor) -> np.ndarray:
    """Return the products summed over positions, float64 `[row, …]`."""
    return np.asarray((moves.double() * slopes.double()).sum(dim=1).cpu().numpy())
