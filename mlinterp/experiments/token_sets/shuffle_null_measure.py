"""The arithmetic of `shuffle_null`: a permutation test of all effects of an experiment at once.

1. Measure the effects, and n_shuffles times the effects of data in which there is nothing to find: activations dealt out to contexts
   anew, or the signs of each context's changes flipped.
2. Compare the root mean square of the effects, and the largest of them; of token frequencies the largest share, which says which
   pattern there is. p = (1 + draws at least as large) / (1 + draws) (Phipson and Smyth 2010).
3. Each effect by itself: its own p, and p_adj for having looked at all of them, by the largest effect of each draw in units of its
   spread over draws (max-T, Westfall and Young 1993).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import sparse

from mlinterp.errors import ExperimentError
from mlinterp.estimates import record, share
from mlinterp.experiments.token_sets.effect_object import table_of
from mlinterp.experiments.token_sets.shuffle_null import ShuffleNullVariables
from mlinterp.result import ExperimentResult, Figure
from mlinterp.token_sets.effect_table import Effects, EffectTable, column_means
from mlinterp.token_sets.lab import Lab

SIGNIFICANT = 0.05
"""A p value below this is significant."""


class Draws(NamedTuple):
    """Effects as they were measured, and under the null.

    Attributes:
        observed: float64 `[n_labels]`; NaN where undefined.
        null: a draw a row, float64 `[n_draws, n_labels]`.
    """

    observed: np.ndarray
    null: np.ndarray


def measure(lab: Lab, variables: ShuffleNullVariables) -> ExperimentResult:
    """Return the result: `null_distribution`, every draw in `shuffles` with a picture, `effects`, and the p value of all at once."""
    table = high_shares(lab) if variables.object is None else table_of(lab, variables.object)
    draws = drawn(table, lab, variables.n_shuffles)
    spread, largest = statistics(draws)
    main = largest if variables.object is None else spread
    p_value = exceeded(main)
    if p_value >= SIGNIFICANT:
        lab.warn(f"shuffled data give effects as large with p = {p_value:.3g}, not below {SIGNIFICANT:g}: the pattern may be chance")
    result = lab.result(table.mode)
    null_low, null_high = np.quantile(main[1:], [0.025, 0.975])
    row = {
        "observed": float(main[0]),
        "null_mean": float(main[1:].mean()),
        "null_std": float(main[1:].std(ddof=1)) if len(main) > 2 else None,
        "p_value": p_value,
        "null_low": null_low,
        "null_high": null_high,
        "statistic": "largest effect" if main is largest else "root mean square of the effects",
        "largest": float(largest[0]),
        "null_largest": float(largest[1:].mean()),
        "p_largest": exceeded(largest),
    }
    about = "What was measured beside shuffled data: their mean, spread and middle 95 %."
    result.add_table("null_distribution", [row], description=about)
    shuffles = [
        {"draw": at, "statistic": value, "largest": most} for at, (value, most) in enumerate(zip(main[1:], largest[1:], strict=True), 1)
    ]
    result.add_table("shuffles", shuffles, description="The same statistics of each draw of shuffled data.")
    _add_effects(result, table, draws)
    _sum_up(result, table, row, variables.n_shuffles)
    _picture(result, lab, variables)
    return result


def drawn(table: EffectTable, lab: Lab, n_shuffles: int) -> Draws:
    """Return the effects and n_shuffles draws under the null. Raises ExperimentError where no effect is defined."""
    observed = table.values
    if not np.isfinite(observed).any():
        raise ExperimentError("none of the effects is defined on these contexts: there is nothing to compare with chance")
    return Draws(observed, np.stack([table.shuffled(lab.stream("shuffle", draw)) for draw in range(n_shuffles)]))


def statistics(draws: Draws) -> tuple[np.ndarray, np.ndarray]:
    """Return the root mean square and the largest of the effects, float64 `[1 + n_draws]` each: as measured, then of each draw."""
    known = np.isfinite(draws.observed)
    sizes = np.nan_to_num(np.abs(np.vstack([draws.observed, draws.null])[:, known]))
    return np.sqrt((sizes**2).mean(axis=1)), sizes.max(axis=1)


def exceeded(values: np.ndarray) -> float:
    """Return the p value of the first value being one of them all: the share of them that is at least as large, itself included.

    >>> exceeded(np.array([3.0, 1.0, 2.0, 3.0]))
    0.5
    """
    return float((values >= values[0] - 1e-12 * abs(values[0])).mean())


def each_effect(draws: Draws) -> tuple[np.ndarray, np.ndarray]:
    """Return the two-sided p value of each effect, and those adjusted for all of them (max-T), float64 `[n_labels]`.

    An effect's size is its distance from the mean in units of the spread, both over what was measured and all draws alike, which the
    null makes exchangeable. NaN for an effect that is undefined, or the same in all of them.
    """
    everything = np.vstack([draws.observed, draws.null])
    known = np.isfinite(everything).all(axis=0)
    spread = np.where(known, everything.std(axis=0), 0.0)
    known &= spread > 1e-12 * np.abs(everything).max(axis=0)
    sizes = np.abs(everything[:, known] - everything[:, known].mean(axis=0)) / spread[known]
    p, p_adj = (np.full(len(known), np.nan) for _ in range(2))
    if known.any():
        edge = sizes[0] * (1 - 1e-12)
        p[known] = (sizes >= edge).mean(axis=0)
        p_adj[known] = (sizes.max(axis=1)[:, None] >= edge).mean(axis=0)
    return p, p_adj


def high_shares(lab: Lab) -> EffectTable:
    """Return each token's share of all tokens in the tenth of the contexts with the highest activations."""
    lab.require_variation(lab.rows)
    held, post = sparse.csr_array(lab.rows.table.incidence.astype(np.float64)), lab.rows.post

    def shares_of(values: np.ndarray) -> Effects:
        def on(index: np.ndarray) -> np.ndarray:
            high = index[np.argsort(-values[index], kind="stable")[: max(1, len(index) // 10)]]
            counts = np.bincount(high, minlength=len(values)).astype(np.float64) @ held
            return counts / counts.sum() if counts.sum() else np.full(len(counts), np.nan)

        return on

    return EffectTable(
        lab.vocabulary.tokens, len(post), "observational", shares_of(post), lambda stream: shares_of(stream.permutation(post))
    )


def _add_effects(result: ExperimentResult, table: EffectTable, draws: Draws) -> None:
    p, p_adj = each_effect(draws)
    means = column_means(draws.null)
    rows = [
        {"label": label, "effect": value, "null_mean": mean, "p": one, "p_adj": adjusted}
        for label, value, mean, one, adjusted in zip(table.labels, draws.observed, means, p, p_adj, strict=True)
    ]
    rows.sort(key=lambda row: (np.nan_to_num(row["p"], nan=2.0), -np.nan_to_num(abs(row["effect"]), nan=-1.0)))
    about = "Each effect beside its mean in shuffled data; p_adj is p for having looked at all of them."
    result.add_table("effects", rows, description=about)


def _sum_up(result: ExperimentResult, table: EffectTable, row: dict[str, float], n_shuffles: int) -> None:
    """Fill in the headline numbers. A p value from draws is itself uncertain: its interval is that of the share of draws (Wilson)."""
    aggregates, p_value = result.aggregates, row["p_value"]
    aggregates.n_samples, aggregates.n_conditions = table.n_units, len(table.labels)
    aggregates.custom |= {
        "observed_stat": row["observed"],
        "null_mean": row["null_mean"],
        "p_value": p_value,
        "significant": int(p_value < SIGNIFICANT),
        "largest_effect": row["largest"],
        "p_largest": row["p_largest"],
    }
    drawn_share = share(round(p_value * (1 + n_shuffles)) - 1, n_shuffles)
    estimate = drawn_share.model_copy(
        update={
            "value": p_value,
            "unit": "draw",
            "interval": "Wilson score over draws",
            "null": "a p value where there is nothing to find: one half on average",
            "null_value": 0.5,
            "p": p_value,
        }
    )
    record(result, {"aggregates/p_value": estimate})


def _picture(result: ExperimentResult, lab: Lab, variables: ShuffleNullVariables) -> None:
    what = "token frequencies" if variables.object is None else f"effects of {variables.object.type}"
    result.figures.append(
        Figure(
            name="shuffles",
            table="shuffles",
            kind="histogram",
            x="statistic",
            title=f"Latent {lab.latent}: {what}, measured and in shuffled data ({result.mode})",
            x_label=f"{result.tables['null_distribution'].rows[0]['statistic']} in shuffled data; the line is what was measured",
            y_label="draws",
            reference=result.aggregates.custom["observed_stat"],
        )
    )
