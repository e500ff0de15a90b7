"""From measurements to estimates: how a number gets its interval, in one way wherever it comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mlinterp.determinism import numpy_stream
from mlinterp.result import Estimate, ExperimentResult
from mlinterp.stats import Interval, bootstrap_ratios, mean_t_interval, mean_t_p, widened, wilson_interval

LEVEL = 0.95


class PerExample(NamedTuple):
    """A mean as what each example adds to it: sum(total) / sum(weight), float64 `[n]` both.

    `is_share` says that it is a share: of `weight`, `total` is right.
    """

    total: np.ndarray
    weight: np.ndarray
    is_share: bool = False

    @property
    def value(self) -> float:
        """The mean."""
        return float(self.total.sum() / self.weight.sum())


def share(successes: int, n: int) -> Estimate:
    """Return a share of n examples with its Wilson score interval."""
    value, low, high = wilson_interval(successes, n, LEVEL)
    return Estimate(value=value, low=low, high=high, level=LEVEL, n=n, interval="Wilson score")


def means(scores: Mapping[str, PerExample], seed: int) -> dict[str, Estimate]:
    """Return each mean with its interval over examples.

    Shares of examples that are each wholly right or wholly wrong get Wilson's (also where every one is right, of which a bootstrap
    would be certain), everything else a percentile bootstrap over whole examples, which does not reach beyond what a share can be. A mean
    that is undefined is left out.
    """
    found = {name: share(round(score.value * len(score.total)), len(score.total)) for name, score in scores.items() if _is_plain(score)}
    rest = {name: score for name, score in scores.items() if name not in found and score.weight.sum() != 0}
    for n in dict.fromkeys(len(score.total) for score in rest.values()):  # scores of other examples are resampled apart
        alike = {name: score for name, score in rest.items() if len(score.total) == n}
        columns = [np.column_stack(part) for part in zip(*(score[:2] for score in alike.values()), strict=True)]
        intervals = bootstrap_ratios(columns[0], columns[1], level=LEVEL, rng=numpy_stream(seed, "estimates"))
        for (name, score), at in zip(alike.items(), intervals, strict=True):
            within = bounds(Interval(at.estimate, *np.clip(at[1:], 0, 1)) if score.is_share else at)
            found[name] = Estimate(value=at.estimate, **within, level=LEVEL, df=n - 1, n=n, interval="bootstrap over examples")
    return {name: found[name] for name in scores if name in found}


def _is_plain(score: PerExample) -> bool:
    """Whether every example is right or wrong as a whole, and all count alike or have one answer."""
    if not score.is_share or not bool(((score.total == 0) | (score.total == score.weight)).all()):
        return False
    return bool(np.ptp(score.weight) == 0 or score.total.sum() in (0, score.weight.sum()))


def bounds(interval: Interval) -> dict[str, float | None]:
    """Return `low` and `high`, both None where the interval is undefined."""
    whole = bool(np.isfinite(interval[1:]).all())
    return {"low": float(interval.low) if whole else None, "high": float(interval.high) if whole else None}


def largest_of(m: int, found: Estimate) -> Estimate:
    """Return an estimate that was chosen as the largest of m by looking: valid for all m at once (Bonferroni).

    Its p value is m times as large, its interval as wide as one at level 1 - (1 - level) / m; as the interval of the one that was
    chosen it still has the level it had.
    """
    if m == 1:
        return found
    p = None if found.p is None else min(1.0, m * found.p)
    words = f"{found.interval}, widened for the largest of {m} (Bonferroni)"
    if found.low is None or found.high is None:
        return found.model_copy(update={"p": p})
    wide = widened(Interval(found.value, found.low, found.high), found.level, 1 - (1 - found.level) / m, found.df)
    return found.model_copy(update={**bounds(wide), "p": p, "interval": words})


def over_seeds(values: Sequence[float], own: Sequence[Estimate | None]) -> Estimate | None:
    """Return one number of several seeds: their mean with its Student t interval, beside the mean of their nulls.

    The p value is that of the paired t test of value minus null. A single seed, and seeds that make no difference but in the last
    digits, have the estimate that the first run made by itself, if it made one: runs that repeat each other say nothing about chance.
    """
    if np.allclose(values, values[0], rtol=1e-9, atol=0.0):
        return own[0]
    interval, nulls = mean_t_interval(values, LEVEL), [each.null_value for each in own if each is not None]
    known = [null for null in nulls if null is not None]
    paired = len(known) == len(values)
    return Estimate(
        value=interval.estimate,
        **bounds(interval),
        level=LEVEL,
        df=len(values) - 1,
        n=len(values),
        unit="seed",
        interval="Student t over seeds",
        null=next((each.null for each in own if each is not None), None) if paired else None,
        null_value=float(np.mean(known)) if paired else None,
        p=mean_t_p(np.subtract(values, known)) if paired else None,
    )


def record(result: ExperimentResult, found: Mapping[str, Estimate]) -> None:
    """Put estimates into a result, and every one that it has into its table `estimates`."""
    result.estimates = {**result.estimates, **found}
    columns = ["metric", "value", "low", "high", "n", "null_value", "p", "null", "interval"]
    rows = [{"metric": name, **each.model_dump()} for name, each in result.estimates.items()]
    if rows:
        about = (
            "Every number that a prediction can be judged by, with its 95 % interval, and what it would be if there were nothing to find."
        )
        result.add_table("estimates", rows, columns, description=about)
