"""What patches do over several prompt pairs: effects beside nulls, with paired intervals and p values.

For each cell (a place that is patched) with changes d of the metric over pairs, gaps g between source and base run, and the changes d'
under norm-matched random directions at the same place:

    effect = Σd / Σg,    null = Σd' / Σg,    adjusted = effect - null

A ratio of sums is defined as long as the runs differ on average; a mean of ratios is at the mercy of the pair whose runs differ least.
Resamples draw whole pairs, the same for every cell, and compare with one draw of the null, chosen at random: the intervals cover single
draws. They are stretched as far as few pairs ask for (`stats.few_units`). `p` is the larger of two: sign flips over pairs of d minus the
mean d', both counted towards the source run (is it there in more than a few pairs?), and the single-case t test against the draws (is it
larger than what any change of that size does?), which has more degrees of freedom where every pair has random directions of its own than
where a draw is the same for all pairs, such as another neuron.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mlinterp.determinism import numpy_stream
from mlinterp.errors import ExperimentError
from mlinterp.estimates import LEVEL
from mlinterp.patching.metrics import NEGLIGIBLE
from mlinterp.stats import Interval, benjamini_hochberg, bootstrap_means, drawn_anew_p, sign_flip_p, single_case_p, stretched

_RESAMPLED = 2**22
"""Resampled numbers held at a time; bounds memory."""


class CellEffect(NamedTuple):
    """One cell's numbers; intervals are undefined (NaN) for a single pair."""

    n: int
    """Pairs that have the cell."""
    change: float
    """Mean change of the metric, in its own unit."""
    effect: Interval
    null: Interval
    adjusted: Interval
    p: float
    p_adj: float
    """`p` after Benjamini-Hochberg over all cells in which anything changes: a place at which the runs do not differ is no test."""


def gaps_of(m_base: np.ndarray, m_source: np.ndarray, metric: str, runs: str = "clean and corrupted prompts") -> np.ndarray:
    """Return source minus base, `[pair]`; `runs` is what the two are called.

    Raises ExperimentError where the metric is undefined for a pair, and where the runs do not differ on average: then a patch has
    nothing to restore or to break.
    """
    if not np.isfinite([m_base, m_source]).all():
        raise ExperimentError(f"{metric} is undefined for a prompt that nobody patched")
    gaps = m_source - m_base
    if abs(gaps.mean()) <= NEGLIGIBLE * max(1.0, float(np.abs([m_base, m_source]).max())):
        raise ExperimentError(f"{runs} have the same mean {metric} ({m_base.mean():.6g}): there is nothing that a patch could carry")
    return gaps


def patch_effect(changes: np.ndarray, gaps: np.ndarray) -> float | None:
    """Return Σ changes / Σ gaps; None where both runs are alike or a change is undefined.

    >>> patch_effect(np.array([1.0, 0.0]), np.array([3.0, 1.0]))
    0.25
    """
    total = float(gaps.sum())
    if abs(total) <= NEGLIGIBLE * len(gaps) or not np.isfinite(changes).all():
        return None
    return float(changes.sum()) / total + 0.0


def cell_effects(
    changes: np.ndarray, nulls: np.ndarray, gaps: np.ndarray, n_bootstrap: int, seed: int, *, drawn_anew: bool = False
) -> list[CellEffect | None]:
    """Return the effect of every cell; None for one that no pair has or whose pairs do not differ on average.

    Args:
        changes: of the metric under each cell's patch, `[pair, cell]`; NaN where a pair does not have the cell.
        nulls: changes under random directions, `[draw, pair, cell]`.
        gaps: source minus base run, `[pair]`.
        n_bootstrap: resamples of each interval.
        seed: of resampling and sign flips.
        drawn_anew: whether each pair has random directions of its own in every draw, rather than all pairs the same.
    """
    found: list[CellEffect | None] = [None] * changes.shape[1]
    there = np.isfinite(changes) & np.isfinite(nulls).all(axis=0)
    at_once = max(1, _RESAMPLED // (n_bootstrap * (1 + len(nulls))))
    for pattern in np.unique(there, axis=1).T:
        cells = np.flatnonzero((there == pattern[:, None]).all(axis=0))
        if pattern.any() and patch_effect(gaps[pattern], gaps[pattern]) is not None:
            for block in np.split(cells, range(at_once, len(cells), at_once)):
                own = changes[np.ix_(pattern, block)]
                some = _alike(own, nulls[:, pattern][:, :, block], gaps[pattern], n_bootstrap, seed, drawn_anew)
                for cell, effect in zip(block, some, strict=True):
                    found[cell] = effect
    moved = np.nan_to_num(changes).any(axis=0) | np.nan_to_num(nulls).any(axis=(0, 1))
    tests = {at: cell for at, cell in enumerate(found) if cell is not None and moved[at]}
    adjusted = benjamini_hochberg(np.array([cell.p for cell in tests.values()]))
    for (at, cell), p_adj in zip(tests.items(), adjusted.tolist(), strict=True):
        found[at] = cell._replace(p_adj=p_adj)
    return found


def _alike(changes: np.ndarray, nulls: np.ndarray, gaps: np.ndarray, n_bootstrap: int, seed: int, drawn_anew: bool) -> list[CellEffect]:
    """Return the effects of cells that the same pairs have; p_adj is left to be p."""
    n, k = changes.shape
    total = gaps.sum()
    own, null = changes.sum(axis=0) / total + 0.0, nulls.sum(axis=1) / total + 0.0  # never minus zero
    centre = null.mean(axis=0)
    p = np.ones(k)
    if n > 1:
        towards = np.where(gaps < 0, -1.0, 1.0)[:, None]  # the source run may lie below the base run in some pairs
        p = sign_flip_p(towards * (changes - nulls.mean(axis=0)), rng=numpy_stream(seed, "sign_flip"))
        single = (
            [single_case_p(float(own[cell]), null[:, cell]) for cell in range(k)]
            if not drawn_anew
            else drawn_anew_p(towards * changes, towards * nulls)
        )
        p = np.maximum(p, single)
    estimates, bounds = (own, centre, own - centre), np.full((3, 2, k), np.nan)
    resampled = _resampled(changes, nulls, gaps, n_bootstrap, seed)
    if resampled is not None:
        tails = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
        quantiles = [np.quantile(values, tails, axis=0) for values in resampled]
        bounds = np.stack([stretched(*both, n, LEVEL) for both in zip(estimates, quantiles, strict=True)])
    found = []
    for cell in range(k):
        effect, random, adjusted = (
            Interval(float(e[cell]), float(b[0, cell]), float(b[1, cell])) for e, b in zip(estimates, bounds, strict=True)
        )
        found.append(CellEffect(n, float(changes[:, cell].mean()), effect, random, adjusted, float(p[cell]), float(p[cell])))
    return found


def _resampled(changes: np.ndarray, nulls: np.ndarray, gaps: np.ndarray, n_bootstrap: int, seed: int) -> Sequence[np.ndarray] | None:
    """Return effect, null (of one draw) and their difference in each resample of pairs, `[resample, cell]` each.

    None for a single pair, and where a resample's gaps sum to zero or to the other sign: the ratio has no interval then.
    """
    n, k = changes.shape
    if n == 1:
        return None
    rng = numpy_stream(seed, "bootstrap")
    means = bootstrap_means(np.concatenate([changes, *nulls, gaps[:, None]], axis=1), n_bootstrap, rng)
    below = means[:, -1:]
    if not (below * gaps.sum() > 0).all():
        return None
    drawn = rng.integers(0, len(nulls), size=n_bootstrap)
    own, every = means[:, :k] / below, means[:, k:-1].reshape(n_bootstrap, len(nulls), k)
    null = every[np.arange(n_bootstrap), drawn] / below
    return own, null, own - null
