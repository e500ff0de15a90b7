"""Frequent sets of items, many at a time: items are columns of bits, and a set's contexts are the AND of its columns.

Apriori (Agrawal and Srikant 1994): a set is frequent only where each of its parts is. So frequent pairs are found first, a set of k items
is made of one of k - 1 and a later item that is frequent together with each of them, and all such candidates are counted in blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import optimize, special

from mlinterp.errors import ExperimentError
from mlinterp.estimates import LEVEL
from mlinterp.stats import Interval

MOST_CANDIDATES = 10_000_000
"""Candidates of one size; more of them take minutes and gigabytes."""
_BLOCK = 2**22
"""Words of 64 contexts that are ANDed at a time; bounds memory."""


@dataclass(frozen=True)
class Bits:
    """Which contexts hold each item, 64 contexts a word.

    Attributes:
        words: uint64 `[n_items, n_words]`.
        n: number of contexts.
    """

    words: np.ndarray
    n: int

    @classmethod
    def of(cls, held: np.ndarray) -> Bits:
        """Pack `held`, bool `[n, n_items]`."""
        packed = np.packbits(held.T, axis=1)
        padded = np.zeros((held.shape[1], -(-packed.shape[1] // 8) * 8), dtype=np.uint8)
        padded[:, : packed.shape[1]] = packed
        return cls(padded.view(np.uint64), len(held))

    def count(self, sets: np.ndarray) -> np.ndarray:
        """Return how many contexts hold all items of each set, int64 `[n_sets]`, for sets of numbers of items `[n_sets, size]`."""
        found = np.zeros(len(sets), dtype=np.int64)
        step = max(1, _BLOCK // max(1, self.words.shape[1]))
        for start in range(0, len(sets), step):
            block = sets[start : start + step]
            both = self.words[block[:, 0]]
            for column in block.T[1:]:
                both &= self.words[column]
            found[start : start + step] = np.bitwise_count(both).sum(axis=1, dtype=np.int64)
        return found


@dataclass(frozen=True)
class Found:
    """Frequent sets of one size.

    Attributes:
        sets: numbers of their items, ascending, int64 `[n_sets, size]`.
        count: contexts that hold all of them, int64 `[n_sets]`.
    """

    sets: np.ndarray
    count: np.ndarray


def frequent(bits: Bits, min_count: int, max_size: int) -> list[Found]:
    """Return every set of 2 to `max_size` items that at least `min_count >= 1` contexts hold, by size.

    Raises ExperimentError where there are too many candidates to count.
    """
    n_items = len(bits.words)
    alone = np.flatnonzero(bits.count(np.arange(n_items)[:, None]) >= min_count)
    at = alone[np.column_stack(np.triu_indices(len(alone), 1))]
    count = bits.count(at)
    kept = count >= min_count
    found = [Found(at[kept], count[kept])]
    together = np.zeros((n_items, n_items), dtype=bool)
    together[tuple(at[kept].T)] = True
    for size in range(3, max_size + 1):
        candidates = _extended(found[-1].sets, together, size)
        count = bits.count(candidates)
        kept = count >= min_count
        found.append(Found(candidates[kept], count[kept]))
    return found


def _extended(sets: np.ndarray, together: np.ndarray, size: int) -> np.ndarray:
    """Return each set with each later item that is frequent together with every member, int64 `[n, size]`."""
    parts, total = [], 0
    step = max(1, _BLOCK // max(1, together.shape[1]))
    for start in range(0, len(sets), step):
        block = sets[start : start + step]
        fits = together[block[:, 0]]
        for column in block.T[1:]:
            fits &= together[column]
        rows, items = np.nonzero(fits)
        total += len(rows)
        if total > MOST_CANDIDATES:
            raise ExperimentError(f"more than {MOST_CANDIDATES:,} sets of {size} items could be frequent: raise variables.min_support")
        parts.append(np.column_stack([block[rows], items]))
    return np.concatenate(parts) if parts else np.zeros((0, size), dtype=np.int64)


def enrichment_p(count: np.ndarray, n: int, others: np.ndarray, n_others: int, least: int = 0) -> np.ndarray:
    """Return Fisher's exact one-sided p values of "no more common among the n than among the others", float64 `[n_sets]`.

    `count` of the n contexts and `others` of the `n_others` hold a set. With K = count + others in all, p is the chance that n contexts
    drawn from the n + n_others without replacement hold at least `count` of the K. Where sets are looked at because at least `least` of
    the n hold them, it is the chance among the draws of which that is true: those that chance makes common would all look enriched.

    >>> enrichment_p(np.array([2]), 2, np.array([2]), 8).round(4).tolist()
    [0.1333]
    >>> enrichment_p(np.array([2]), 2, np.array([2]), 8, least=1).round(4).tolist()
    [0.2]
    """
    log_factorial = special.gammaln(np.arange(n + n_others + 2) + 1.0)

    def log_choose(top: int, below: np.ndarray) -> np.ndarray:
        out: np.ndarray = log_factorial[top] - log_factorial[below] - log_factorial[top - below]
        return out

    in_all = count + others
    order = np.argsort(in_all, kind="stable")
    totals, starts = np.unique(in_all[order], return_index=True)
    p = np.empty(len(count))
    if not len(count):
        return p
    for total, own in zip(totals.tolist(), np.split(order, starts[1:]), strict=True):
        low, high = max(least, total - n_others), min(n, total)
        drawn = np.arange(low, high + 1)
        chance = log_choose(total, drawn) + log_choose(n + n_others - total, n - drawn)
        as_many = np.cumsum(np.exp(chance - chance.max())[::-1])[::-1]
        p[own] = as_many[count[own] - low] / as_many[0]
    return p


def lift_interval(count: int, n: int, others: int, n_others: int, least: int = 0) -> Interval:
    """Return a ratio of two shares, (count / n) / (others / n_others), with its interval on the logarithmic scale (Katz et al. 1978).

    Where the ratio is looked at because `count` is `least` or more, the lower bound is that of a normal distribution cut off there (half
    a count below); the upper bound, which that would only lower, stays. Infinite, without an interval, where no other holds it; NaN
    where nobody does.

    >>> [round(bound, 3) for bound in lift_interval(15, 25, 5, 50)]
    [6.0, 2.461, 14.626]
    >>> [round(bound, 3) for bound in lift_interval(15, 25, 5, 50, least=14)]
    [6.0, 0.691, 14.626]
    """
    if not others:
        return Interval(float("inf") if count else float("nan"), float("nan"), float("nan"))
    lift = (count / n) / (others / n_others)
    if not count:
        return Interval(0.0, float("nan"), float("nan"))
    error = float(np.sqrt(1 / count - 1 / n + 1 / others - 1 / n_others))
    quantile = float(special.ndtri((1 + LEVEL) / 2))
    below = quantile
    if least and error:
        border = (least - 0.5) / n / ((count + others - least + 0.5) / n_others)
        below = _cut_quantile(float(np.log(lift / border)) / error, quantile)
    return Interval(lift, lift * float(np.exp(-below * error)), lift * float(np.exp(quantile * error)))


def _cut_quantile(gap: float, quantile: float) -> float:
    """Return how far below a value, in standard errors, its mean can lie, where only values above one `gap` lower are seen.

    It is the t at which P(Z > t) / P(Z > t - gap) is P(Z > quantile); that ratio is below exp(gap² / 2 - gap t).
    """
    tail = float(special.log_ndtr(-quantile))
    if gap > 2 * quantile + 5:  # hardly anything is cut off
        return quantile
    last = 1.01 * max(quantile, gap / 2 - tail / gap)
    return float(optimize.brentq(lambda t: special.log_ndtr(-t) - special.log_ndtr(gap - t) - tail, quantile, last))
