"""Effects with their uncertainty: of an edit over the contexts that it was made in, and between groups of contexts that were observed.

What is undefined is None: a spread or an interval of one value. Where several agree to the last digit, the interval has no width and the
p value is that of so many agreeing by chance.

Intervals are Student's (Welch's) with Hall's correction for skewness (Hall 1992, "On the removal of skewness by transformation", Journal
of the Royal Statistical Society B 54). Activations are mostly zero with a long tail upwards, so a mean of them and its standard error go
together, and the plain interval misses on one side: where 15 % of 100 values are above zero it covers 90 %, the corrected one 96 %.
Where nothing is skewed both are the same.

A few contexts of a latent that is mostly silent are often all silent, and look as if they did not vary: of groups of 10, of which 15 % of
the values are above zero, every fourth would differ from the rest with p < 0.001. So a group in which hardly any values stand out takes
the spread of all groups together where its own is smaller.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy import special

from mlinterp.estimates import LEVEL
from mlinterp.result import Estimate
from mlinterp.stats import unanimous_p

ROUNDING = 1e-7
"""Numbers that differ by less than this share of the largest of them agree: latents are computed in single precision."""

OUTSTANDING = 20
"""A group with fewer values above its lowest, and several at that, is too small to say how much it varies."""


class Effect(NamedTuple):
    """A mean, or a difference of two, with its Student t interval.

    Attributes:
        value: the mean or the difference; None where there is nothing to average.
        std: sample standard deviation (n - 1) of what was averaged; None for a difference and for n < 2.
        std_error: standard error of the value; None for n < 2.
        low, high: 95 % interval; None where undefined.
        p: two-sided p value of "zero"; None where undefined.
        n: units behind it; of a difference, those on its first side.
        df: degrees of freedom of the interval.
    """

    value: float | None
    std: float | None
    std_error: float | None
    low: float | None
    high: float | None
    p: float | None
    n: int
    df: float | None

    def columns(self, name: str) -> dict[str, Any]:
        """Return it as cells of a table: the value under `name`, then std_error, n, low, high and p."""
        return {name: self.value, "std_error": self.std_error, "n": self.n, "low": self.low, "high": self.high, "p": self.p}

    def estimate(self, unit: str, null: str | None = None, null_value: float | None = None, p: float | None = None) -> Estimate | None:
        """Return it as what predictions are judged by; None where it has no value.

        `p` is that of the null where the null is uncertain too, such as a control that was measured; else it follows from `null_value`.
        """
        if self.value is None:
            return None
        return Estimate(
            value=self.value,
            low=self.low,
            high=self.high,
            level=LEVEL,
            df=self.df,
            n=self.n,
            unit=unit,
            interval="Student t, corrected for skewness",
            null=null,
            null_value=null_value,
            p=self.p if p is None and null_value == 0 else p,
        )


NOTHING = Effect(None, None, None, None, None, None, 0, None)
"""What is said of no data."""


def mean_effect(values: np.ndarray) -> Effect:
    """Return the mean of independent values, such as the change of each context by one edit (a paired difference)."""
    n = len(values)
    if n == 0:
        return NOTHING
    mean = float(values.mean())
    if n == 1:
        return Effect(mean, None, None, None, None, None, 1, None)
    std = float(values.std(ddof=1))
    error = std / np.sqrt(n)
    return _with_interval(mean, std, error, n, n - 1, unanimous_p(n), _size(values), _skewness(values, error))


def mean_of_cells(values: np.ndarray) -> Effect:
    """Return the mean of the finite entries of `values [n, k]`, of which those of one row (a context) depend on each other.

    It is a ratio of sums over rows, whose variance is that of the rows' departures from it (Cochran 1977, "Sampling techniques",
    chapter 6); where every row has as many entries, that is the mean of the rows' means.
    """
    known = np.isfinite(values)
    counts = known.sum(axis=1)
    there = counts > 0
    if not there.any():
        return NOTHING
    sums, counts = np.where(known, values, 0.0).sum(axis=1)[there], counts[there]
    mean = float(values[known].mean())
    return mean_effect(mean + (sums - counts * mean) / counts.mean())._replace(value=mean)


def difference(values: np.ndarray, others: np.ndarray) -> Effect:
    """Return the mean of some values minus that of others, independent of them, with Welch's interval (Welch 1947)."""
    if not len(values) or not len(others):
        return NOTHING._replace(n=len(values))
    gap = float(values.mean() - others.mean())
    if len(values) < 2 or len(others) < 2:
        return Effect(gap, None, None, None, None, None, len(values), None)
    alike = min(1.0, 2 / float(special.comb(len(values) + len(others), len(values))))
    return _weighted([(1.0, values), (-1.0, others)], gap, len(values), alike)


def compared(values: np.ndarray, there: np.ndarray, others: np.ndarray, min_n: int) -> Effect:
    """Return the difference between two of the groups that masks choose; without a value where one has fewer than `min_n` members."""
    if min(there.sum(), others.sum()) < min_n:
        return NOTHING._replace(n=int(there.sum()))
    return difference(values[there], values[others])


def combined(parts: list[tuple[float, np.ndarray]]) -> Effect:
    """Return a weighted sum of the means of independent groups, `[(weight, values)]`, with Welch and Satterthwaite's interval.

    A difference of differences is the sum with weights 1, -1, -1, 1. None where a group is empty, or has one value only.
    """
    smallest = min(len(values) for _, values in parts)
    if smallest == 0:
        return NOTHING
    total = float(sum(weight * values.mean() for weight, values in parts))
    if smallest < 2:
        return Effect(total, None, None, None, None, None, smallest, None)
    return _weighted(parts, total, smallest, unanimous_p(smallest))


def _weighted(parts: list[tuple[float, np.ndarray]], total: float, n: int, alike: float) -> Effect:
    """Return the weighted sum `total` of the means of groups of two values or more with its interval; `alike` as of `_with_interval`."""
    residuals = np.concatenate([values - values.mean() for _, values in parts])
    shared = (float((residuals**2).sum() / (len(residuals) - len(parts))), _cubed(residuals), len(residuals) - len(parts))
    found = []
    for weight, values in parts:
        own = (float(values.var(ddof=1)), _cubed(values - values.mean()), len(values) - 1)
        variance, third, df = shared if shared[0] > own[0] and _hardly_varies(values) else own
        if df != own[2]:  # the error does not go along with the mean, so skewness counts half as much, the other way (Hall 1992, 3.2)
            third = -third / 2
        found.append((weight**2 * variance / len(values), weight**3 * third / len(values) ** 2, df))
    variances, thirds, freedom = np.array(found).T
    error = float(np.sqrt(variances.sum()))
    welch = float(variances.sum() ** 2 / (variances**2 / freedom).sum()) if error > 0 else None
    size = max(abs(weight) * _size(values) for weight, values in parts)
    return _with_interval(total, None, error, n, welch, alike, size, float(thirds.sum()) / error**3 if error > 0 else 0.0)


def _hardly_varies(values: np.ndarray) -> bool:
    lowest = int((values == values.min()).sum())
    return lowest > 1 and len(values) - lowest < OUTSTANDING


def _size(values: np.ndarray) -> float:
    return float(np.abs(values).max())


def _cubed(deviations: np.ndarray) -> float:
    """Return the mean cube; a power of three takes fifty times as long."""
    return float((deviations * deviations * deviations).mean())


def _skewness(values: np.ndarray, error: float) -> float:
    """Return the skewness of a mean: its third cumulant over its standard error cubed."""
    return _cubed(values - values.mean()) / len(values) ** 2 / error**3 if error > 0 else 0.0


def _with_interval(
    value: float, std: float | None, error: float, n: int, df: float | None, alike: float, size: float, skewness: float
) -> Effect:
    """Return an effect with its interval; `alike` is its p value where nothing varies (within rounding) and it is not zero.

    `size` is the largest of the numbers that it was made from, which says what rounding is.
    """
    if df is None or error <= ROUNDING * size:
        return Effect(value, std, error, value, value, alike if abs(value) > ROUNDING * size else 1.0, n, None)
    quantile = float(special.stdtrit(df, (1 + LEVEL) / 2))
    low, high = (value - error * _skewed(at, skewness) for at in (quantile, -quantile))
    p = float(2 * special.stdtr(df, -abs(_symmetric(value / error, skewness))))
    return Effect(value, std, error, low, high, p, n, df)


def _symmetric(t: float, skewness: float) -> float:
    """Return Hall's cubic transformation, under which a studentised mean is symmetric: t + a t² / 3 + a² t³ / 27 + a / 6."""
    return t + skewness * t**2 / 3 + skewness**2 * t**3 / 27 + skewness / 6


def _skewed(x: float, skewness: float) -> float:
    """Return the inverse of `_symmetric`."""
    if abs(skewness) < 1e-6:  # the closed form would lose its digits; to this order the transformation is the identity
        return x
    return 3 / skewness * (float(np.cbrt(1 + skewness * (x - skewness / 6))) - 1)


def standardised(values: np.ndarray, others: np.ndarray) -> float | None:
    """Return the difference of two groups' means over their spread: sqrt((n s² + m v) / (n + m)), where s² is the sample variance of
    the n values and v the population variance of the m others. None where undefined.
    """
    n, m = len(values), len(others)
    if n < 2 or m < 1:
        return None
    spread = float(np.sqrt((n * values.var(ddof=1) + m * others.var()) / (n + m)))
    gap = float(values.mean() - others.mean())
    return gap / spread if spread > 1e-12 * abs(gap) else None
