"""SAE latents as places: one latent takes another activation, and nothing else of what the model holds there changes.

With h the base run's activation at a position, f_j(h) what an SAE's latent j says of it, and a what stands in the latent's place,

    h + (a - f_j(h)) · d_j,    d_j = what one unit of the latent adds to a reconstruction, in the model's own units,

so that h - decode(encode(h)), the SAE's error, stays as it is, and several latents add their steps (Marks et al. 2024, "Sparse feature
circuits"). a is what the latent says of the source run (`resample`), 0, or the mean of what it says of all source runs at the position. A
latent for which a is f_j(h) to the bit changes nothing there, and nothing is run for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mlinterp.patching.components import Ablation
from mlinterp.patching.metrics import Metric
from mlinterp.patching.packed import Cells
from mlinterp.patching.patcher import Activations, Direction, Moved, Patch, Patcher, _Job
from mlinterp.patching.places import Places
from mlinterp.patching.stand_ins import patched_positions, stand_in
from mlinterp.sae.model import SAE
from mlinterp.subjects.hooked import HookedSubject
from mlinterp.subjects.pairs import Pairs

_ROWS = 512
"""Rows encoded at a time; bounds memory."""


class LatentSteps(NamedTuple):
    """What some latents say, and what takes its place.

    Attributes:
        latents: their numbers, ascending, int64 `[latent]`.
        base: activations in the base runs, `[pair, pos, latent]`.
        put: what stands in their place; the base's own where nothing is patched.
        directions: what one unit of each adds to the model's activation, `[latent, d]`.
    """

    latents: Tensor
    base: Tensor
    put: Tensor
    directions: Tensor

    @property
    def amounts(self) -> Tensor:
        """How far each latent moves, `[pair, pos, latent]`."""
        return self.put - self.base

    @property
    def together(self) -> Tensor:
        """What all latents together add, `[pair, pos, d]`."""
        return self.amounts @ self.directions

    def random_directions(self, generator: torch.Generator) -> Tensor:
        """Return a random direction for each latent, as long as its own, `[latent, d]`."""
        drawn = torch.randn(self.directions.shape, generator=generator).to(self.directions)
        lengths = self.directions.norm(dim=1, keepdim=True)
        return drawn / drawn.norm(dim=1, keepdim=True).clamp_min(1e-12) * lengths


@torch.no_grad()
def latent_steps(
    sae: SAE,
    base: Tensor,
    source: Tensor,
    subject: HookedSubject,
    pairs: Pairs,
    direction: Direction,
    ablation: Ablation = "resample",
    chosen: Sequence[int] | None = None,
) -> LatentSteps:
    """Return what latents say of the base runs, and what takes its place.

    Args:
        sae: an autoencoder of the hook point at which the activations were read.
        base: the base runs' activations there, `[pair, pos, d]`.
        source: those of the source runs.
        subject: whose runs they are.
        pairs: their prompts.
        direction: which run is patched into which.
        ablation: what takes the place.
        chosen: which latents; every one that is active in some run where None.
    """
    masks = (pairs.clean.mask, pairs.corrupted.mask) if direction == "noise" else (pairs.corrupted.mask, pairs.clean.mask)
    own, other = (_active(sae, h, mask) for h, mask in zip((base, source), masks, strict=True))
    latents = torch.cat([own.indices()[1], other.indices()[1]]).unique() if chosen is None else torch.tensor(sorted(chosen))
    latents = latents.to(base.device)
    acts, others = (_of(active, latents).unflatten(0, base.shape[:2]) for active in (own, other))
    patched = patched_positions(subject, pairs, ablation).to(base.device)[:, :, None]
    put = torch.where(patched, stand_in(others, masks[1], ablation), acts)
    return LatentSteps(latents, acts, put, sae.directions(latents))


def _active(sae: SAE, h: Tensor, mask: Tensor) -> Tensor:
    """Return what latents say of activations `[pair, pos, d]` where there is a token, sparse `[pair x pos, d_sae]`."""
    sae.to(h.device)
    rows, there = h.flatten(0, 1), mask.to(h.device).flatten()
    parts = [
        torch.where(there[at : at + _ROWS, None], sae.encode(rows[at : at + _ROWS]), 0).to_sparse() for at in range(0, len(rows), _ROWS)
    ]
    return torch.cat(parts).coalesce()


def _of(active: Tensor, latents: Tensor) -> Tensor:
    """Return some latents' columns of a sparse `[row, d_sae]`, dense `[row, latent]`."""
    rows, numbers = active.indices()
    columns = torch.full((active.shape[1],), -1, dtype=torch.long, device=active.device)
    columns[latents] = torch.arange(len(latents), device=active.device)
    kept = columns[numbers] >= 0
    found = torch.zeros(active.shape[0], len(latents), dtype=active.dtype, device=active.device)
    found[rows[kept], columns[numbers[kept]]] = active.values()[kept]
    return found


class Codes(dict[int, Tensor]):
    """Layer to what latents say, `[pair, pos, latent]`, and the direction of each in the model, `[latent, d]`."""

    def __init__(self, acts: Mapping[int, Tensor], directions: Tensor) -> None:
        super().__init__(acts)
        self.directions = directions


class LatentPatcher(Patcher):
    """Both runs of every pair, and what becomes of the base run where latents of an SAE take other activations.

    A place's unit is a latent by its number in the SAE; without one, all latents move together.

    Attributes:
        steps: what the latents say and what takes its place.

    Args:
        sae: an autoencoder of the one hook point of `places`.
        latents: which of its latents can be patched; every one that is active in some run where None.
    """

    def __init__(
        self,
        sae: SAE,
        subject: HookedSubject,
        pairs: Pairs,
        places: Places,
        metric: Metric,
        direction: Direction = "denoise",
        batch_size: int = 256,
        ablation: Ablation = "resample",
        latents: Sequence[int] | None = None,
    ) -> None:
        super().__init__(subject, pairs, places, metric, direction, batch_size)
        (layer,) = places.sites
        self.steps = latent_steps(sae, self.base[layer], self.source[layer], subject, pairs, direction, ablation, latents)
        self.base, self.source = {layer: self.steps.base}, Codes({layer: self.steps.put}, self.steps.directions)
        self._column_of = {latent: at for at, latent in enumerate(self.steps.latents.tolist())}

    def moved(self, generator: torch.Generator) -> Moved:
        """Return the same activations of latents whose directions are random, as long as their own."""
        return Moved(Codes(self.source, self.steps.random_directions(generator)), {})

    def _changed(self, layer: int, source: Activations) -> Tensor:
        return source[layer] != self.base[layer]

    def _job(self, number: int, patch: Patch, changed: Mapping[int, np.ndarray]) -> _Job | None:
        """Lay a patch out by columns of `steps`; a latent that has none is active nowhere, and changes nothing."""
        known = (edit for edit in patch.edits if edit.unit is None or edit.unit in self._column_of)
        edits = tuple(edit if edit.unit is None else edit._replace(unit=self._column_of[edit.unit]) for edit in known)
        return super()._job(number, Patch(patch.pair, edits), changed)

    def _put(self, h: Tensor, at: Cells, source: Activations, layer: int) -> None:
        """Add the steps of the edited latents to `h [row, slot, d]`, in place; those of one position are summed first."""
        assert isinstance(source, Codes)
        where = (at.pairs, at.columns, at.units)
        steps = (source[layer][where] - self.base[layer][where])[:, None] * source.directions[at.units]
        places, of = torch.unique(at.rows * h.shape[1] + at.slots, return_inverse=True)
        total = torch.zeros(len(places), h.shape[2], dtype=steps.dtype, device=h.device).index_add_(0, of, steps)
        row, column = places // h.shape[1], places % h.shape[1]
        h[row, column] = (h[row, column] + total).to(h.dtype)
