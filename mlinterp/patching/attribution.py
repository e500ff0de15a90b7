"""Attribution patching: what every patch would do, to first order, from two forward passes and one backward pass (Nanda 2023; Kramár
et al. 2024, "AtP*").

With a the activation of the base run, a' that of the source run and m the metric of the base run,

    effect of patching c  ≈  (a'_c - a_c) · ∂m / ∂a_c

for every layer, position, head or neuron c at once. It is exact where m is linear in a, and blind where m is flat at the base run: a
saturated attention or metric has no slope. Integrated gradients (Sundararajan et al. 2017) see that: the slope of a layer is averaged
over the way from a to a', all positions together, at the midpoints of `ig_steps` equal parts. Then the effects of a layer add up to
what patching all of it does (completeness), but for the error of the midpoint rule, which is returned.

Where an activation is ablated, a' is zero or a mean in place of the source run's. `attribution_latents` does the same for SAE latents.

Each pair's numbers depend on nothing but the pair.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mlinterp.errors import SpecError
from mlinterp.halving import halved
from mlinterp.interventions.controls import derangement
from mlinterp.patching.answers import answers_only, at_answers, measured, tokens_asked
from mlinterp.patching.components import Ablation
from mlinterp.patching.metrics import Metric
from mlinterp.patching.patcher import Direction
from mlinterp.patching.places import Places
from mlinterp.patching.replay import anatomy
from mlinterp.patching.stand_ins import mean_at_positions, patched_positions, sums_at_positions
from mlinterp.progress import Advance, unheard
from mlinterp.subjects.base import Address, Examples, Tap
from mlinterp.subjects.hooked import HookedSubject
from mlinterp.subjects.pairs import Pairs, answer_columns


class Slopes(NamedTuple):
    """What first order needs of every pair.

    Attributes:
        steps: source minus base activation, layer to `[pair, pos, unit, width]` (one unit where the component has none); zero where
            nothing is patched.
        slopes: the metric's gradient, of the same shape.
        m_base: the metric of the base runs, float64 `[pair]`.
        m_source: that of the source runs.
        whole: layer to the exact change of the metric when all of it is patched, `[pair]`; only where gradients were integrated.
    """

    steps: dict[int, Tensor]
    slopes: dict[int, Tensor]
    m_base: np.ndarray
    m_source: np.ndarray
    whole: dict[int, np.ndarray]

    def effects(self) -> dict[int, np.ndarray]:
        """Return the first-order change of the metric of each step, layer to float64 `[pair, pos, unit]`."""
        return {layer: _effect(step, self.slopes[layer]) for layer, step in self.steps.items()}

    def lengths(self) -> dict[int, np.ndarray]:
        """Return how long each step is, layer to float64 `[pair, pos, unit]`."""
        return {layer: _plain(step.norm(dim=3)) for layer, step in self.steps.items()}

    def random_effects(self, generator: torch.Generator) -> dict[int, np.ndarray]:
        """Return what steps of the same lengths in random directions change, by the same slopes, layer to float64 `[pair, pos, unit]`.

        A neuron has but one direction, so its step is made in another neuron of the layer, up or down.
        """
        found = {}
        for layer, step in self.steps.items():
            drawn, slope = torch.randn(step.shape, generator=generator).to(step), self.slopes[layer]
            drawn = drawn / drawn.norm(dim=3, keepdim=True).clamp_min(1e-12) * step.norm(dim=3, keepdim=True)
            if step.shape[3] == 1 and step.shape[2] > 1:
                seed = int(torch.randint(2**62, (1,), generator=generator))
                slope = slope[:, :, derangement(step.shape[2], np.random.default_rng(seed))]
            found[layer] = _effect(drawn, slope)
        return found


def slopes(
    subject: HookedSubject,
    pairs: Pairs,
    places: Places,
    metric: Metric,
    direction: Direction = "denoise",
    *,
    ig_steps: int = 0,
    batch_size: int = 256,
    ablation: Ablation = "resample",
    steps: Mapping[int, Tensor] | None = None,
    done: Advance = unheard,
) -> Slopes:
    """Return the slope of every place of a component in every pair.

    Args:
        subject: the model.
        pairs: the prompts.
        places: the component.
        metric: what is read. Raises SpecError for a pair that lacks a token it needs, and for one that has no gradient.
        direction: which run is patched into which.
        ig_steps: parts of the way over which slopes are averaged; 0 takes the slope at the base run alone.
        batch_size: pairs a batch; halved where one does not fit in memory.
        ablation: what stands in the place of an activation: the source run's, zero, or the mean over the pairs' source runs.
        steps: what is added to the base runs' activations instead, layer to `[pair, pos, d]`.
        done: told how many pairs are done.
    """
    runs = _Runs(subject, pairs, places, metric, direction, ig_steps, ablation, steps)
    if ablation == "mean" and steps is None:
        runs.average(batch_size)
    pieces: list[Slopes] = []
    for at in range(0, len(pairs), batch_size):
        rows = range(at, min(at + batch_size, len(pairs)))
        pieces += halved(rows, runs.slopes, "prompt pair")
        done(len(rows))
    if len(pieces) == 1:
        return pieces[0]
    return Slopes(
        {layer: torch.cat([piece.steps[layer] for piece in pieces]) for layer in places.sites},
        {layer: torch.cat([piece.slopes[layer] for piece in pieces]) for layer in places.sites},
        np.concatenate([piece.m_base for piece in pieces]),
        np.concatenate([piece.m_source for piece in pieces]),
        {layer: np.concatenate([piece.whole[layer] for piece in pieces]) for layer in pieces[0].whole},
    )


class _Runs:
    """Both runs of some pairs, with the gradient of the base run's metric at every place."""

    def __init__(
        self,
        subject: HookedSubject,
        pairs: Pairs,
        places: Places,
        metric: Metric,
        direction: Direction,
        ig_steps: int,
        ablation: Ablation,
        steps: Mapping[int, Tensor] | None,
    ) -> None:
        self.subject, self.metric, self.ig_steps, self.noise = subject, metric, ig_steps, direction == "noise"
        self.sites, self.n_units = places.sites, places.n_units or 1
        self.layers = {site: layer for layer, site in places.sites.items()}
        self.base, self.source = (pairs.clean, pairs.corrupted) if self.noise else (pairs.corrupted, pairs.clean)
        self.ablation, self.given, self.means = ablation, steps, dict[int, Tensor]()
        self.device = next(subject.model.parameters()).device
        self.tokens = tokens_asked(pairs, metric, self.device)
        parts = anatomy(subject)
        self.head = parts.head if parts is not None and places.inside else None
        self.patched = patched_positions(subject, pairs, ablation).to(self.device)

    def average(self, batch_size: int) -> None:
        """Take the mean of the source runs' activations at every position, over all pairs."""
        added: dict[int, tuple[Tensor, Tensor]] = {}
        for at in range(0, len(self.source), batch_size):
            rows = range(at, min(at + batch_size, len(self.source)))
            for some, activations in halved(rows, lambda some: (list(some), self._read_source(some)[1]), "prompt"):
                for layer, h in activations.items():
                    found = sums_at_positions(h, self.source.mask[some])
                    so_far = added.get(layer)
                    added[layer] = found if so_far is None else (so_far[0] + found[0], so_far[1] + found[1])
        self.means = {layer: mean_at_positions(*sums) for layer, sums in added.items()}

    def slopes(self, rows: Sequence[int]) -> Slopes:
        """Return the slopes of some pairs."""
        base: dict[int, Tensor] = {}

        def ask(address: Address, h: Tensor) -> Tensor:
            h = h if h.requires_grad else h.detach().clone().requires_grad_()
            base[self.layers[address.site]] = h
            return h

        from_source, source = self._read_source(rows)
        with torch.enable_grad():
            logits = self._logits(self.base, rows, ask)
            clean = logits.detach() if self.noise else from_source
            m_base = self._measured(logits, clean, rows)
            slopes = self._gradients(m_base, base)
        steps = {layer: self._step(layer, base[layer].detach(), source[layer], list(rows)) for layer in self.sites}
        whole: dict[int, np.ndarray] = {}
        if self.ig_steps:
            for layer in self.sites:
                slopes[layer], m_patched = self._integrated(layer, base[layer].detach(), steps[layer], rows, clean)
                whole[layer] = _plain(m_patched) - _plain(m_base)
        shape = (self.n_units, -1)
        return Slopes(
            {layer: steps[layer].unflatten(2, shape) for layer in self.sites},
            {layer: slopes[layer].unflatten(2, shape) for layer in self.sites},
            _plain(m_base),
            _plain(self._measured(from_source, clean, rows)),
            whole,
        )

    @torch.no_grad()
    def _read_source(self, rows: Sequence[int]) -> tuple[Tensor, dict[int, Tensor]]:
        """Return the source runs' logits, `[row, vocab]`, and activations."""
        found: dict[int, Tensor] = {}

        def keep(address: Address, h: Tensor) -> Tensor:
            found[self.layers[address.site]] = h.detach().clone()
            return h

        return self._logits(self.source, rows, keep), found

    def _step(self, layer: int, base: Tensor, source: Tensor, rows: list[int]) -> Tensor:
        """Return what is added to the base runs' activations, `[row, pos, d]`."""
        if self.given is not None:
            return _wide(self.given[layer][rows])
        there: Tensor | float = _wide(source)
        if self.ablation != "resample":
            there = self.means[layer].to(_wide(base).dtype) if self.ablation == "mean" else 0.0
        return torch.where(self.patched[rows, :, None], there - _wide(base), 0.0)

    def _integrated(self, layer: int, base: Tensor, step: Tensor, rows: Sequence[int], clean: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean slope of a layer on the way from base to source, and the metric at its end."""

        def measured_at(h: Tensor) -> Tensor:
            logits = self._logits(self.base, rows, lambda _address, _h: h, [self.sites[layer]])
            return self._measured(logits, clean, rows)

        total = torch.zeros_like(step)
        for number in range(self.ig_steps):
            h = (base + (number + 0.5) / self.ig_steps * step).to(base.dtype).requires_grad_()
            with torch.enable_grad():
                total += self._gradients(measured_at(h), {layer: h})[layer]
        with torch.no_grad():
            return total / self.ig_steps, measured_at((base + step).to(base.dtype))

    def _gradients(self, m: Tensor, at: dict[int, Tensor]) -> dict[int, Tensor]:
        if not m.requires_grad:
            raise SpecError(
                f"{self.metric.name} has no gradient", field="variables.metric", allowed="a metric made of differentiable steps"
            )
        return {layer: _wide(slope) for layer, slope in zip(at, torch.autograd.grad(m.sum(), list(at.values())), strict=True)}

    def _logits(self, examples: Examples, rows: Sequence[int], tap: Tap, sites: Collection[str] | None = None) -> Tensor:
        """Return the logits at the answer positions, `[row, vocab]`."""
        batch = examples.take(rows)
        columns = answer_columns(examples)[list(rows)]
        with answers_only(self.head, columns):
            outputs = self.subject.forward(batch, tap, self.layers if sites is None else sites)
        assert outputs is not None
        return at_answers(outputs.logits, columns)

    def _measured(self, logits: Tensor, clean: Tensor, rows: Sequence[int]) -> Tensor:
        return measured(self.metric, logits, clean, self.tokens[list(rows)])


def _effect(step: Tensor, slope: Tensor) -> np.ndarray:
    return _plain((step.double() * slope.double()).sum(dim=3))


def _wide(h: Tensor) -> Tensor:
    """Return an activation in float32 at least."""
    return h.to(torch.promote_types(h.dtype, torch.float32))


def _plain(values: Tensor) -> np.ndarray:
    return np.asarray(values.detach().double().cpu().numpy())
