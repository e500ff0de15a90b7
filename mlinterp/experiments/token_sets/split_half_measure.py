"""The arithmetic of `split_half`.

1. Halve the contexts at random, n_splits times, and measure the effects on each half.
2. Correlate the halves over the effects: Pearson, Spearman, and what Pearson's would be between wholes instead of halves (Spearman 1910,
   Brown 1910: 2 r / (1 + r)).
3. Do the same, with the same halves, to n_shuffles draws of data in which there is nothing to find. What is stable there (the
   popularity of tokens is) is no effect.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse
from scipy import stats as scipy_stats

from mlinterp.errors import ExperimentError
from mlinterp.estimates import LEVEL, record
from mlinterp.experiments.token_sets.effect_object import table_of
from mlinterp.experiments.token_sets.split_half import SplitHalfVariables
from mlinterp.result import Estimate, ExperimentResult, Figure
from mlinterp.token_sets.effect_table import Effects, EffectTable, column_means
from mlinterp.token_sets.lab import Lab

STABLE = 0.7
"""A mean correlation from which on the effects pass as stable."""
FEWEST, FEW = 3, 5
"""Effects without which there is no correlation (two points always lie on a line), and with which it says little."""

_AT_ONCE = 100
"""Draws whose activations are held at a time; bounds memory."""


class Agreement(NamedTuple):
    """How two halves agree; NaN where undefined."""

    pearson: float
    spearman: float
    n_labels: int


def measure(lab: Lab, variables: SplitHalfVariables) -> ExperimentResult:
    """Return the result: `split_correlations`, `effects` as the first two halves show them, and the mean correlation beside its null."""
    table = token_frequencies(lab) if variables.object is None else table_of(lab, variables.object)
    if table.n_units < 4:
        raise ExperimentError(f"{table.n_units} contexts make no halves of two")
    halves = list(_halves(table.n_units, variables.n_splits, lab.stream("halves")))
    splits = [agreement(table.on(first), table.on(second)) for first, second in halves]
    null = _null_correlations(lab, table, halves, variables.n_shuffles)
    _warn(lab, splits)
    result = lab.result(table.mode)
    rows = [
        {
            "split": number,
            "correlation": one.pearson,
            "spearman": one.spearman,
            "spearman_brown": spearman_brown(one.pearson),
            "n_labels": one.n_labels,
        }
        for number, one in enumerate(splits, start=1)
    ]
    result.add_table("split_correlations", rows, description="Correlation of the effects in one random half with those in the other.")
    shown = [table.on(part) for part in halves[0]]
    about = "The effects as all contexts give them, and as the halves of the first split do."
    effects_rows = [
        {"label": label, "effect": value, "first_half": one, "second_half": other}
        for label, value, one, other in zip(table.labels, table.values, *shown, strict=True)
    ]
    result.add_table("effects", effects_rows, description=about)
    null_rows = [{"draw": at, "mean_correlation": value} for at, value in enumerate(null, start=1)]
    result.add_table("null_correlations", null_rows, description="The mean correlation over as many splits, in each draw of shuffled data.")
    _sum_up(result, lab, table, np.array([one.pearson for one in splits]), null)
    _pictures(result, lab, variables)
    return result


def agreement(one: np.ndarray, other: np.ndarray) -> Agreement:
    """Return the correlations of two measurements of the same effects, over those that both have; NaN where either does not vary.

    >>> agreement(np.array([1.0, 2.0, 3.0, np.nan]), np.array([2.0, 4.0, 6.5, 1.0])).n_labels
    3
    """
    known = np.isfinite(one) & np.isfinite(other)
    x, y = one[known], other[known]
    n = len(x)
    r = _pearson(x, y)
    return Agreement(r, float(scipy_stats.spearmanr(x, y).statistic) if np.isfinite(r) else np.nan, n)


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    if len(x) < FEWEST or _is_flat(x) or _is_flat(y):
        return np.nan
    return float(np.corrcoef(x, y)[0, 1])


def _is_flat(values: np.ndarray) -> bool:
    return bool(np.ptp(values) <= 1e-12 * np.abs(values).max())


def spearman_brown(r: float) -> float:
    """Return the correlation of two wholes whose halves correlate by r; NaN below 0, where halves share nothing that could add up.

    >>> spearman_brown(0.5)
    0.6666666666666666
    """
    return 2 * r / (1 + r) if r >= 0 else np.nan


def _halves(n: int, n_splits: int, stream: np.random.Generator) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """Yield n_splits random halvings of n units; of an odd number the second half has one more."""
    for _ in range(n_splits):
        order = stream.permutation(n)
        yield order[: n // 2], order[n // 2 :]


def _null_correlations(lab: Lab, table: EffectTable, halves: list[tuple[np.ndarray, np.ndarray]], n_shuffles: int) -> np.ndarray:
    """Return the mean correlation over the halvings in each draw under the null, float64 `[n_shuffles]`; NaN where undefined."""
    found = np.full((n_shuffles, len(halves)), np.nan)
    for start in range(0, n_shuffles, _AT_ONCE):
        draws = [table.null(lab.stream("null", draw)) for draw in range(start, min(n_shuffles, start + _AT_ONCE))]
        for split, (first, second) in enumerate(halves):
            for draw, effects in enumerate(draws, start):
                one, other = effects(first), effects(second)
                known = np.isfinite(one) & np.isfinite(other)
                found[draw, split] = _pearson(one[known], other[known])
    return column_means(found.T)


def token_frequencies(lab: Lab) -> EffectTable:
    """Return each token's share of the activation: summed over the contexts that hold it, of the sum over all tokens of all contexts.

    Undefined for a token that the contexts at hand are silent with. Mostly the popularity of tokens, which any half shares.
    """
    lab.require_variation(lab.rows)
    held, post, n = sparse.csr_array(lab.rows.table.incidence.astype(np.float64)), lab.rows.post, len(lab.rows)

    def shares_of(values: np.ndarray) -> Effects:
        def on(index: np.ndarray) -> np.ndarray:
            totals = (np.bincount(index, minlength=n) * values) @ held
            overall = totals.sum()
            return np.where(totals > 0, totals / overall, np.nan) if overall > 0 else np.full(len(totals), np.nan)

        return on

    return EffectTable(lab.vocabulary.tokens, n, "observational", shares_of(post), lambda stream: shares_of(stream.permutation(post)))


def _warn(lab: Lab, splits: list[Agreement]) -> None:
    undefined = sum(not np.isfinite(one.pearson) for one in splits)
    if undefined:
        why = f"a half's effects do not vary, or fewer than {FEWEST} are known"
        lab.warn(f"the correlation of {undefined} of {len(splits)} splits is undefined: {why}")
    fewest = min(one.n_labels for one in splits)
    if undefined < len(splits) and fewest < FEW:
        lab.warn(f"a correlation over {fewest} effects says little")


def _sum_up(result: ExperimentResult, lab: Lab, table: EffectTable, found: np.ndarray, null: np.ndarray) -> None:
    """Fill in the mean correlation, how it varies, whether it passes, and how it compares with the null."""
    found, null = found[np.isfinite(found)], null[np.isfinite(null)]
    aggregates = result.aggregates
    aggregates.n_samples, aggregates.n_conditions = table.n_units, len(table.labels)
    if not len(found):
        aggregates.custom |= {"mean_correlation": None, "stability_passed": None}
        return
    mean = float(found.mean())
    aggregates.custom |= {
        "mean_correlation": mean,
        "std_correlation": float(found.std(ddof=1)) if len(found) > 1 else None,
        "min_correlation": float(found.min()),
        "max_correlation": float(found.max()),
        "spearman_brown": spearman_brown(mean) if mean >= 0 else None,
        "stability_passed": int(mean >= STABLE),
    }
    if mean < STABLE:
        lab.warn(f"the halves correlate by {mean:.2f} on average, below {STABLE:g}: the effects are not stable")
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if len(found) > 1 else (None, None)
    estimate = Estimate(
        value=mean, low=low, high=high, level=LEVEL, n=table.n_units, unit="context", interval="quantiles over random halves"
    )
    if len(null):
        p = (1 + int((null >= mean - 1e-12).sum())) / (1 + len(null))
        aggregates.custom |= {"null_correlation": float(null.mean()), "p_value": p}
        if null.mean() >= STABLE:
            lab.warn(f"data with nothing to find are as stable ({null.mean():.2f}): stability says nothing about this latent")
        estimate = estimate.model_copy(update={"null": "halves of shuffled data", "null_value": float(null.mean()), "p": p})
    record(result, {"aggregates/mean_correlation": estimate})


def _pictures(result: ExperimentResult, lab: Lab, variables: SplitHalfVariables) -> None:
    what = "token frequencies" if variables.object is None else f"effects of {variables.object.type}"
    common: dict[str, Any] = {"table": "effects", "kind": "scatter", "x": "first_half", "y": ["second_half"]}
    result.figures += [
        Figure(
            name="halves",
            title=f"Latent {lab.latent}: {what} in two halves of the contexts ({result.mode})",
            x_label="in the first half",
            y_label="in the second half",
            **common,
        ),
        Figure(
            name="null_correlations",
            table="null_correlations",
            kind="histogram",
            x="mean_correlation",
            title=f"Latent {lab.latent}: mean correlation of halves where there is nothing to find ({result.mode})",
            x_label="mean correlation of halves of shuffled data; the line is what was measured",
            reference=result.aggregates.custom["mean_correlation"],
        ),
    ]
