"""The contexts on which a latent is most active, and how much likelier something is among them than among the others."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import special

from mlinterp.estimates import LEVEL


class HighPart(NamedTuple):
    """The most active contexts.

    Attributes:
        threshold: the least activation among them.
        there: which contexts they are, bool `[n]`.
        warning: what is to be said of them; None where they are as many as were asked for.
    """

    threshold: float
    there: np.ndarray
    warning: str | None = None


def high_part(post: np.ndarray, share: float) -> HighPart:
    """Return the contexts above a share of all: of n in descending order, down to number max(1, int(n (1 - share))) counted from 0.

    All that reach the activation of that one belong to it, so it has one context more than 1 - share at least. Where that would be all
    there are (a latent that is silent in most contexts), those above the lowest activation, with a warning.

    >>> found = high_part(np.arange(1.0, 21.0), 0.75)
    >>> found.threshold, int(found.there.sum())
    (15.0, 6)
    """
    n = len(post)
    threshold = float(np.sort(post)[::-1][min(max(1, int(n * (1 - share) + 1e-9)), n - 1)])
    above = post > threshold
    if above.any() and post.min() == threshold:
        few = f"{int(above.sum())} of {n} contexts lie above the lowest activation, {threshold:g}: these are the high ones"
        return HighPart(float(post[above].min()), above, f"{few}, and no {1 - share:.3g} of all")
    return HighPart(threshold, post >= threshold)


class Ratio(NamedTuple):
    """A share of the high contexts over the share of the low ones.

    Attributes:
        high: share of the high contexts that hold something; None where there are none.
        low: share of the low ones, likewise.
        value: high / low; None where that is undefined.
        bounds: its 95 % interval, by the logarithm's normal approximation (Katz et al. 1978); None where a count is zero.
        note: `ok`, `never in low` (the ratio would be infinite), or `undefined`.
    """

    high: float | None
    low: float | None
    value: float | None
    bounds: tuple[float, float] | None
    note: str

    def enrichment(self, share: float) -> tuple[float | None, float | None, float | None]:
        """Return the share of the high contexts over that of all, with its interval, where `share` of all contexts are high.

        It rises with the ratio r, as r / (share r + 1 - share), so the interval's bounds are those of the ratio.
        """
        if self.note == "never in low":
            return 1 / share, None, None
        if self.value is None:
            return None, None, None
        found = [None if r is None else r / (share * r + 1 - share) for r in (self.value, *(self.bounds or (None, None)))]
        return found[0], found[1], found[2]


def ratio_of(n_high_with: int, n_high: int, n_low_with: int, n_low: int) -> Ratio:
    """Return how much likelier something is among the high contexts, from counts of contexts with it and of all.

    >>> found = ratio_of(6, 6, 4, 14)
    >>> found.value, found.note
    (3.5, 'ok')
    """
    high, low = n_high_with / n_high if n_high else None, n_low_with / n_low if n_low else None
    if high is None or low is None or (low == 0 and high == 0):
        return Ratio(high, low, None, None, "undefined")
    if low == 0:
        return Ratio(high, low, None, None, "never in low")
    value, bounds = n_high_with * n_low / (n_high * n_low_with), None
    if n_high_with:
        error = np.sqrt(1 / n_high_with - 1 / n_high + 1 / n_low_with - 1 / n_low)
        factor = float(np.exp(special.ndtri((1 + LEVEL) / 2) * error))
        bounds = (value / factor, value * factor) if error > 0 else None
    return Ratio(high, low, value, bounds, "ok")
