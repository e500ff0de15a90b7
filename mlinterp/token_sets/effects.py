"""Effects with their uncertainty: of an edit over the contexts that it was made in, and between groups of contexts that were observed.

What is undefined is None: a spread or an interval of one value. Where several agree to the last digit, the interval has no width and the
p value is that of so many agreeing by chance.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy import special

from mlinterp.estimates import LEVEL
from mlinterp.result import Estimate
from mlinterp.stats import unanimous_p


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

    def estimate(self, unit: str, null: str | None = None, null_value: float | None = None) -> Estimate | None:
        """Return it as what predictions are judged by; None where it has no value."""
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
            interval="Student t",
            null=null,
            null_value=null_value,
            p=self.p if null_value == 0 else None,
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
    return _with_interval(mean, std, std / np.sqrt(n), n, n - 1, unanimous_p(n))


def difference(values: np.ndarray, others: np.ndarray) -> Effect:
    """Return the mean of some values minus that of others, independent of them, with Welch's interval (Welch 1947)."""
    if not len(values) or not len(others):
        return NOTHING._replace(n=len(values))
    gap = float(values.mean() - others.mean())
    if len(values) < 2 or len(others) < 2:
        return Effect(gap, None, None, None, None, None, len(values), None)
    parts = np.array([values.var(ddof=1) / len(values), others.var(ddof=1) / len(others)])
    error = float(np.sqrt(parts.sum()))
    df = float(parts.sum() ** 2 / (parts**2 / np.array([len(values) - 1, len(others) - 1])).sum()) if error > 0 else None
    alike = min(1.0, 2 / float(special.comb(len(values) + len(others), len(values))))
    return _with_interval(gap, None, error, len(values), df, alike)


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
    variances = np.array([weight**2 * values.var(ddof=1) / len(values) for weight, values in parts])
    error = float(np.sqrt(variances.sum()))
    df = float(variances.sum() ** 2 / (variances**2 / np.array([len(values) - 1 for _, values in parts])).sum()) if error > 0 else None
    return _with_interval(total, None, error, smallest, df, unanimous_p(smallest))


def _with_interval(value: float, std: float | None, error: float, n: int, df: float | None, alike: float) -> Effect:
    """Return an effect with its interval; `alike` is its p value where nothing varies (within rounding) and it is not zero."""
    if df is None or error <= 1e-12 * abs(value):
        return Effect(value, std, error, value, value, alike if value else 1.0, n, None)
    half = float(special.stdtrit(df, (1 + LEVEL) / 2)) * error
    p = float(2 * special.stdtr(df, -abs(value) / error))
    return Effect(value, std, error, value - half, value + half, p, n, df)


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
