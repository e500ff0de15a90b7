"""Statistics of paired differences: intervals, p values and their correction for many tests.

Everything works on numbers that are given and generators that are passed in, so equal inputs give equal outputs. Matrices hold
one unit (an example, a seed) a row and one question a column; columns share their resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special
from scipy import stats as scipy_stats

_BLOCK = 2**22
"""Random numbers drawn at a time; bounds memory."""


class Interval(NamedTuple):
    """An estimate with its confidence interval; an undefined bound is NaN."""

    estimate: float
    low: float
    high: float


def bootstrap_means(values: np.ndarray, n_resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Return the means of `n_resamples` samples with replacement from the rows of `values [n, k]`, as `[n_resamples, k]`.

    All columns of one resample use the same rows: the pairing within a unit survives.
    """
    n = len(values)
    means = np.empty((n_resamples, values.shape[1]))
    step = max(1, _BLOCK // n)
    for start in range(0, n_resamples, step):
        counts = rng.multinomial(n, np.full(n, 1 / n), size=min(step, n_resamples - start))
        means[start : start + step] = counts @ values / n
    return means


def few_units(n: int, level: float = 0.95) -> float:
    """Return by what factor a bootstrap interval over `n >= 2` units must be stretched to hold the truth as often as it says.

    Resamples spread less than samples do, by sqrt((n - 1) / n), and few units tell little of how much they spread, so that quantiles are
    those of Student's t with n - 1 degrees of freedom (Hesterberg 2015, "What teachers should know about the bootstrap"). Hesterberg
    takes more extreme quantiles of the resamples instead, but none lies beyond the most extreme unit: of three units they hold the truth
    in 75 % of cases. Stretched, an interval may reach beyond the values that its estimate can take.

    >>> [round(few_units(n), 2) for n in (2, 3, 5, 8, 20, 100)]
    [9.17, 2.69, 1.58, 1.29, 1.1, 1.02]
    """
    tail = (1 + level) / 2
    return float(special.stdtrit(n - 1, tail) / special.ndtri(tail) * np.sqrt(n / (n - 1)))


def stretched(estimate: np.ndarray | float, bounds: np.ndarray, n: int, level: float = 0.95) -> np.ndarray:
    """Return the bounds `[2, ...]` of bootstrap intervals over n units, each as far from its estimate `[...]` as `few_units` says."""
    return estimate + (np.asarray(bounds) - estimate) * few_units(n, level)


def bootstrap_intervals(
    differences: np.ndarray, n_resamples: int = 2000, level: float = 0.95, *, rng: np.random.Generator
) -> list[Interval]:
    """Return the mean of each column of `differences [n, k]` (one paired difference a row) with its BCa bootstrap interval,
    `stretched` for few rows.

    Bias-corrected and accelerated (Efron 1987): the percentiles are shifted for bias and skewness, with the acceleration of a mean
    in closed form, sum d^3 / (6 (sum d^2)^1.5). A column that never varies gets an interval of width zero; a single row has none.
    Raises ValueError for values that are not finite or not `[n, k]`.
    """
    differences = np.asarray(differences, dtype=np.float64)
    if differences.ndim != 2 or not len(differences) or not np.isfinite(differences).all():
        raise ValueError(f"differences must be finite and [n >= 1, k], got shape {differences.shape}")
    means = differences.mean(axis=0)
    if len(differences) == 1:
        return [Interval(float(mean), float("nan"), float("nan")) for mean in means]
    resampled = bootstrap_means(differences, n_resamples, rng)
    return [_bca(column, means_of_column, level) for column, means_of_column in zip(differences.T, resampled.T, strict=True)]


def _bca(values: np.ndarray, resampled: np.ndarray, level: float) -> Interval:
    mean = float(values.mean())
    if np.ptp(values) == 0.0:
        return Interval(mean, mean, mean)
    below = (np.mean(resampled < mean) + np.mean(resampled <= mean)) / 2
    half = 0.5 / len(resampled)
    bias = special.ndtri(np.clip(below, half, 1 - half))
    centred = values - mean
    acceleration = np.sum(centred**3) / (6 * np.sum(centred**2) ** 1.5)
    tails = special.ndtri([(1 - level) / 2, (1 + level) / 2]) + bias
    bounds = np.quantile(resampled, special.ndtr(bias + tails / (1 - acceleration * tails)))
    low, high = stretched(mean, bounds, len(values), level)
    return Interval(mean, float(low), float(high))


def bootstrap_ratios(
    totals: np.ndarray, weights: np.ndarray, n_resamples: int = 1000, level: float = 0.95, *, rng: np.random.Generator
) -> list[Interval]:
    """Return sum(totals) / sum(weights) of each column of `totals [n, k]` and `weights [n, k]` with its percentile bootstrap interval,
    `stretched` for few rows.

    A row is one unit (an example), and whole units are drawn: what lies inside one need not be independent. Columns share their
    resamples. There is no interval for a single unit, nor where a resample's weights sum to zero or to the other sign.
    Raises ValueError for numbers that are not finite and for shapes that are not `[n >= 1, k]` and equal.
    """
    totals, weights = np.asarray(totals, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    if totals.ndim != 2 or not len(totals) or totals.shape != weights.shape or not np.isfinite([totals, weights]).all():
        raise ValueError(f"totals and weights must be finite and [n >= 1, k], got shapes {totals.shape} and {weights.shape}")
    k, n = totals.shape[1], len(totals)
    drawn = bootstrap_means(np.hstack([totals, weights]), n_resamples, rng)
    found = []
    for total, weight, some, below in zip(totals.sum(axis=0), weights.sum(axis=0), drawn.T[:k], drawn.T[k:], strict=True):
        if n > 1 and bool((below * weight > 0).all()):
            low, high = stretched(total / weight, np.quantile(some / below, [(1 - level) / 2, (1 + level) / 2]), n, level)
            found.append(Interval(float(total / weight), float(low), float(high)))
        else:
            found.append(Interval(float(total / weight) if weight else np.nan, np.nan, np.nan))
    return found


def widened(interval: Interval, level: float, to_level: float, df: float | None = None) -> Interval:
    """Return an interval at another level: each side grows as the quantiles of a normal (with `df` a Student t) distribution do.

    >>> [round(float(bound), 3) for bound in widened(Interval(1.0, 0.0, 3.0), 0.95, 0.99)]
    [1.0, -0.314, 3.628]
    """
    tails = np.array([(1 + level) / 2, (1 + to_level) / 2])
    quantiles = special.ndtri(tails) if df is None else special.stdtrit(df, tails)
    factor = quantiles[1] / quantiles[0]
    estimate, low, high = interval
    return Interval(estimate, float(estimate - (estimate - low) * factor), float(estimate + (high - estimate) * factor))


def interval_p(interval: Interval, point: float, n: int, level: float = 0.95, df: float | None = None) -> float:
    """Return the two-sided p value of "the true value is `point`", from the interval of an estimate over `n >= 2` units.

    The side of the interval that faces the point, divided by its quantile, is a standard error: p = 2 P(T > |estimate - point| / se).
    With `df` the interval is made with Student's t, and p is that of the t test (exactly, of a mean's t interval). Without, it is one
    that is nearly normal on each side (Wilson, a bootstrap that nobody `stretched`), and p is that of the interval stretched for n units:
    otherwise, six units would be wrong four times too often at 0.05. A side without width borrows the other; an interval without any has
    p = 2^(1 - n), that of the sign test of n units which all lie on one side of the point, or 1 at the point itself.

    >>> round(interval_p(Interval(2.0, 1.0, 4.0), 1.0, n=10, df=9), 6)
    0.05
    """
    estimate, low, high = interval
    below, above = estimate - low, high - estimate
    facing, other = (below, above) if point <= estimate else (above, below)
    half, distance = facing if facing > 0 else max(other, 0.0), abs(estimate - point)
    if distance == 0.0:
        return 1.0
    if half == 0.0:
        return unanimous_p(n)
    if df is None:
        half, df = half * few_units(n, level), n - 1
    spread = half / special.stdtrit(df, (1 + level) / 2)
    return float(2 * special.stdtr(df, -distance / spread))


def unanimous_p(n: int) -> float:
    """Return the two-sided p value of the sign test where all of `n >= 1` units lie on the same side: 2^(1 - n)."""
    return 2.0 ** (1 - n)


def control_adjusted(
    changes: np.ndarray, controls: np.ndarray, n_resamples: int = 2000, level: float = 0.95, *, rng: np.random.Generator
) -> tuple[Interval, Interval]:
    """Return the mean of `controls [n, c]` and the mean of `changes [n]` minus it, with percentile bootstrap intervals,
    `stretched` for few rows.

    Each resample draws rows (examples) anew and compares with one column (draw of a control), chosen at random. So the intervals cover
    single controls, not their mean: a change whose interval excludes zero lies outside what controls of its size do. Which few
    controls happened to be drawn cannot pass for an effect. A single row has no interval.
    """
    columns = np.column_stack([changes, controls]).astype(np.float64)
    estimates = columns.mean(axis=0)
    control, adjusted = float(estimates[1:].mean()), float(estimates[0] - estimates[1:].mean())
    if len(columns) == 1:
        return Interval(control, np.nan, np.nan), Interval(adjusted, np.nan, np.nan)
    means = bootstrap_means(columns, n_resamples, rng)
    null = means[np.arange(n_resamples), rng.integers(1, columns.shape[1], size=n_resamples)]
    tails, n = [(1 - level) / 2, (1 + level) / 2], len(columns)
    around = (stretched(at, np.quantile(drawn, tails), n, level) for at, drawn in ((control, null), (adjusted, means[:, 0] - null)))
    first, second = (bounds.tolist() for bounds in around)
    return Interval(control, *first), Interval(adjusted, *second)


def single_case_p(case: float, controls: np.ndarray) -> float:
    """Return the two-sided p value of one `case` belonging to the population of a few `controls [c >= 2]`.

    The t test of Crawford & Howell (1998): (case - mean) / (sd sqrt(1 + 1/c)) with c - 1 degrees of freedom. Where controls do not vary,
    any other value is impossible (0) and the same value certain (1). A single control tells nothing (1).
    """
    controls = np.asarray(controls, dtype=np.float64)
    distance = abs(case - float(controls.mean()))
    if len(controls) < 2:
        return 1.0
    spread = float(controls.std(ddof=1)) * np.sqrt(1 + 1 / len(controls))
    if spread == 0.0:
        return float(distance == 0.0)
    return float(2 * special.stdtr(len(controls) - 1, -distance / spread))


def drawn_anew_p(cases: np.ndarray, controls: np.ndarray) -> np.ndarray:
    """Return the two-sided p value of the sum of `cases [n, k]` over n units being like that of `controls [c, n, k]`, column by column.

    The test of `single_case_p` where every unit has `c` draws of its own, so that the variance of their sum is the sum of n variances:
    degrees of freedom by Satterthwaite (1946), c - 1 for a single unit and up to n (c - 1). A single draw tells nothing (1).
    """
    c = len(controls)
    distance = np.abs((cases - controls.mean(axis=0)).sum(axis=0))
    if c < 2:
        return np.ones(cases.shape[1])
    variances = controls.var(axis=0, ddof=1)
    whole, parts = variances.sum(axis=0), (variances**2).sum(axis=0) / (c - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * special.stdtr(whole**2 / parts, -distance / np.sqrt(whole * (1 + 1 / c)))
    return np.where(whole > 0, p, (distance == 0).astype(float))


def sign_flip_p(differences: np.ndarray, n_permutations: int = 10_000, *, rng: np.random.Generator) -> np.ndarray:
    """Return two-sided p values of "mean zero" for each column of `differences [n, k]`, by flipping signs of whole rows.

    Exact (all 2^n sign patterns) where 2^n <= `n_permutations`; otherwise Monte Carlo with the observed pattern counted as one of
    the draws, (1 + hits) / (1 + draws), so p is never zero (Phipson & Smyth 2010). Columns share their patterns.
    """
    differences = np.asarray(differences, dtype=np.float64)
    n = len(differences)
    observed = np.abs(differences.sum(axis=0))
    observed -= 1e-12 * np.abs(differences).sum(axis=0)  # a tie is a hit, whatever the order of summation
    if 2**n <= n_permutations:
        patterns = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
        return np.mean(np.abs((1.0 - 2.0 * patterns) @ differences) >= observed, axis=0)
    hits = np.zeros(differences.shape[1])
    step = max(1, _BLOCK // n)
    for start in range(0, n_permutations, step):
        signs = 1.0 - 2.0 * rng.integers(0, 2, size=(min(step, n_permutations - start), n), dtype=np.int8)
        hits += np.sum(np.abs(signs @ differences) >= observed, axis=0)
    return (1 + hits) / (1 + n_permutations)


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """Return p values adjusted for the false discovery rate (Benjamini & Hochberg 1995), in the order given.

    >>> benjamini_hochberg(np.array([0.01, 0.04, 0.03, 0.005])).round(3).tolist()
    [0.02, 0.04, 0.04, 0.02]
    """
    p = np.asarray(p, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    scaled = p[order] * len(p) / np.arange(1, len(p) + 1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return adjusted


def mean_t_interval(values: Sequence[float] | np.ndarray, level: float = 0.95) -> Interval:
    """Return a mean over independent runs (seeds) with its Student t interval; a single run has no interval (NaN)."""
    values = np.asarray(values, dtype=np.float64)
    mean = float(values.mean())
    if len(values) < 2:
        return Interval(mean, float("nan"), float("nan"))
    half = float(special.stdtrit(len(values) - 1, (1 + level) / 2) * values.std(ddof=1) / np.sqrt(len(values)))
    return Interval(mean, mean - half, mean + half)


def mean_t_p(values: Sequence[float] | np.ndarray) -> float:
    """Return the two-sided p value of "mean zero" over independent runs (seeds), by Student's t test.

    A single run tells nothing (1). Where runs do not vary, any other mean is impossible (0) and zero certain (1).
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2:
        return 1.0
    mean, spread = float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))
    if spread == 0.0:
        return float(mean == 0.0)
    return float(2 * special.stdtr(len(values) - 1, -abs(mean) / spread))


def wilson_interval(successes: int, n: int, level: float = 0.95) -> Interval:
    """Return a share with its Wilson score interval. Raises ValueError unless 0 <= successes <= n and n >= 1."""
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"{successes} successes of {n}")
    interval = scipy_stats.binomtest(successes, n).proportion_ci(level, method="wilson")
    return Interval(successes / n, float(interval.low), float(interval.high))


class Clusters(NamedTuple):
    """Trials that come in clusters (examples), each a hit or not, as the sums that the share of hits and its variance follow from."""

    n: int
    """Clusters."""
    trials: int
    """Trials in all."""
    trials_squared: int
    """Sum over clusters of trials²."""
    hits: int
    """Hits in all."""
    hits_squared: int
    """Sum over clusters of hits²."""
    hits_trials: int
    """Sum over clusters of hits · trials."""


def clustered_share(sums: Clusters, level: float = 0.95) -> Interval:
    """Return the share of hits among all trials with an interval that knows that trials of one cluster are alike.

    Wilson's score interval, which is sound for rare hits, with the effective number of trials p (1 - p) / v, where v is the variance
    of p as a ratio of sums over clusters (Kish 1965, "Survey sampling", chapter 6), and with Student's quantile for the degrees of
    freedom that clusters leave (Korn and Graubard 1998). It is never taken for more trials than there are, and for as many as there
    are clusters where all trials agree. One cluster alone has no interval. Where each cluster is one trial, this is Wilson's interval
    but for the quantile.

    >>> [round(bound, 4) for bound in clustered_share(Clusters(1000, 1000, 1000, 3, 3, 3))]
    [0.003, 0.001, 0.0088]
    """
    p = sums.hits / sums.trials
    if sums.n < 2:
        return Interval(p, float("nan"), float("nan"))
    spread = sums.hits_squared - 2 * p * sums.hits_trials + p**2 * sums.trials_squared
    variance = sums.n / (sums.n - 1) * spread / float(sums.trials) ** 2
    n = min(p * (1 - p) / variance, sums.trials) if variance > 0 and 0 < p < 1 else sums.n
    z2 = float(special.stdtrit(sums.n - 1, (1 + level) / 2)) ** 2
    centre, width = (p + z2 / (2 * n)) / (1 + z2 / n), z2 * (p * (1 - p) / n + z2 / (4 * n**2))
    half = width**0.5 / (1 + z2 / n)
    return Interval(p, max(centre - half, 0.0), min(centre + half, 1.0))
