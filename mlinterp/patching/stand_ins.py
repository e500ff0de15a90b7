"""What stands in the place of an activation that is patched: another run's, nothing, or a mean."""

from __future__ import annotations

import torch
from torch import Tensor

from mlinterp.patching.components import Ablation
from mlinterp.patching.replay import anatomy
from mlinterp.subjects.hooked import HookedSubject
from mlinterp.subjects.pairs import Pairs


def stand_in(source: Tensor, there: Tensor, ablation: Ablation) -> Tensor:
    """Return what is put in place in every pair, like `source`.

    Args:
        source: activations of the pairs' source prompts, `[pair, pos, ...]`.
        there: where those prompts have a token, bool `[pair, pos]`.
        ablation: `resample` gives the source's own, `zero` zeros, `mean` at each position the mean over all source prompts that have it.
    """
    if ablation == "resample":
        return source
    if ablation == "zero":
        return torch.zeros_like(source)
    return mean_at_positions(*sums_at_positions(source, there)).to(source.dtype).expand_as(source)


def sums_at_positions(h: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """Return the float64 sum `[pos, ...]` over prompts that have a position of their activations `[pair, pos, ...]`, and their number."""
    here = there.to(h.device).reshape(*there.shape, *[1] * (h.ndim - 2))
    return torch.where(here, h, 0).sum(dim=0, dtype=torch.float64), here.sum(dim=0)


def mean_at_positions(total: Tensor, count: Tensor) -> Tensor:
    """Return the mean of `sums_at_positions`; zero at a position that no prompt has."""
    return total / count.clamp_min(1)


def patched_positions(subject: HookedSubject, pairs: Pairs, ablation: Ablation) -> Tensor:
    """Return where something can stand in the place of a base run's activation, bool `[pair, pos]`.

    In a model that reads from left to right nothing differs between two runs before the first differing token but by rounding.
    """
    from_source = ablation == "resample" and anatomy(subject) is not None
    return pairs.shared & pairs.differs if from_source else pairs.shared
