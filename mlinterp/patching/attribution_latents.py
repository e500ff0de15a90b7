"""Attribution patching of SAE latents: what each latent's patch would do, to first order (Marks et al. 2024, "Sparse feature circuits").

With the steps (a - f_j(h)) · d_j of `patch_latents` and the metric's gradient g at the SAE's hook point in the base run,

    effect of patching latent j  ≈  (a - f_j(h)) · (d_j · g).

Integrated gradients go from the base run's activations to those in which all latents have moved, the SAE's error kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mlinterp.halving import halved
from mlinterp.patching.attribution import Slopes, slopes
from mlinterp.patching.components import Ablation
from mlinterp.patching.latents import LatentSteps, latent_steps
from mlinterp.patching.metrics import Metric
from mlinterp.patching.patcher import Direction
from mlinterp.patching.places import Places
from mlinterp.progress import Advance, unheard
from mlinterp.sae.model import SAE
from mlinterp.subjects.base import Address, Examples
from mlinterp.subjects.hooked import HookedSubject
from mlinterp.subjects.pairs import Pairs


class LatentSlopes(NamedTuple):
    """What first order needs of every pair.

    Attributes:
        at_site: what it needs of the hook point, whose steps are those of all latents together.
        steps: what the latents say, and what takes its place.
    """

    at_site: Slopes
    steps: LatentSteps

    @property
    def m_base(self) -> np.ndarray:
        """The metric of the base runs, float64 `[pair]`."""
        return self.at_site.m_base

    @property
    def m_source(self) -> np.ndarray:
        """That of the source runs, float64 `[pair]`."""
        return self.at_site.m_source

    @property
    def whole(self) -> dict[int, np.ndarray]:
        """Layer to the exact change of the metric when all latents move, `[pair]`; only where gradients were integrated."""
        return self.at_site.whole

    def effects(self) -> dict[int, np.ndarray]:
        """Return the first-order change of the metric of each latent's step, layer to float64 `[pair, pos, latent]`."""
        return self._along(self.steps.directions)

    def lengths(self) -> dict[int, np.ndarray]:
        """Return how long each step is, layer to float64 `[pair, pos, latent]`."""
        lengths = self.steps.amounts.abs() * self.steps.directions.norm(dim=1)
        return dict.fromkeys(self.at_site.slopes, _plain(lengths))

    def random_effects(self, generator: torch.Generator) -> dict[int, np.ndarray]:
        """Return what the same steps in random directions change, by the same slopes, layer to float64 `[pair, pos, latent]`."""
        return self._along(self.steps.random_directions(generator))

    def _along(self, directions: Tensor) -> dict[int, np.ndarray]:
        amounts, across = self.steps.amounts.double(), directions.double().T
        return {layer: _plain(amounts * (slope[:, :, 0].double() @ across)) for layer, slope in self.at_site.slopes.items()}


def latent_slopes(
    sae: SAE,
    subject: HookedSubject,
    pairs: Pairs,
    places: Places,
    metric: Metric,
    direction: Direction = "denoise",
    *,
    ablation: Ablation = "resample",
    latents: Sequence[int] | None = None,
    ig_steps: int = 0,
    batch_size: int = 256,
    done: Advance = unheard,
) -> LatentSlopes:
    """Return the slope of every latent in every pair.

    Args:
        sae: an autoencoder of the one hook point of `places`.
        subject: the model.
        pairs: the prompts.
        places: the hook point.
        metric: what is read; see `attribution_patching.slopes`.
        direction: which run is patched into which.
        ablation: what stands in the place of a latent's activation.
        latents: which latents; every one that is active in some run where None.
        ig_steps: parts of the way over which slopes are averaged; 0 takes the slope at the base run alone.
        batch_size: pairs a batch; halved where one does not fit in memory.
        done: told how many pairs are done.
    """
    ((layer, site),) = places.sites.items()
    base, source = (pairs.clean, pairs.corrupted) if direction == "noise" else (pairs.corrupted, pairs.clean)
    read = [_at_site(subject, examples, site, batch_size) for examples in (base, source)]
    steps = latent_steps(sae, read[0], read[1], subject, pairs, direction, ablation, latents)
    added = {layer: steps.together}
    return LatentSlopes(
        slopes(subject, pairs, places, metric, direction, ig_steps=ig_steps, batch_size=batch_size, steps=added, done=done), steps
    )


@torch.no_grad()
def _at_site(subject: HookedSubject, examples: Examples, site: str, batch_size: int) -> Tensor:
    """Return the activations of every prompt at a hook point, `[pair, pos, d]`; nothing behind it is computed."""
    found: list[Tensor] = []

    def keep(_address: Address, h: Tensor) -> Tensor:
        found.append(h.detach().clone())
        return h

    def read(rows: Sequence[int]) -> None:
        subject.forward(examples.take(rows), keep, [site], Address(site))

    for at in range(0, len(examples), batch_size):
        list(halved(range(at, min(at + batch_size, len(examples))), read, "prompt"))
    return torch.cat(found)


def _plain(values: Tensor) -> np.ndarray:
    return np.asarray(values.detach().double().cpu().numpy())
