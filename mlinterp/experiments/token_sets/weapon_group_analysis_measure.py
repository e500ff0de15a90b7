"""The arithmetic of `weapon_group_analysis`.

1. Rank the contexts by activation, equal ones in an order that the seed draws; the first and the last share of them are high and low.
2. Count each group in both parts: the ratio of its shares, Fisher's exact test, and the logarithm of the odds ratio with one half added
   to each of the four counts (Haldane 1956, Anscombe 1956), which is finite for a group that one part has none of.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import special
from scipy import stats as scipy_stats

from mlinterp.errors import ExperimentError
from mlinterp.estimates import LEVEL, largest_of, record
from mlinterp.experiments.token_sets.grouped_measure import class_of
from mlinterp.experiments.token_sets.weapon_group_analysis import WeaponGroupVariables
from mlinterp.result import Estimate, ExperimentResult, Figure
from mlinterp.token_sets.effect_table import EffectTable, observed
from mlinterp.token_sets.groups import warn_of_gating
from mlinterp.token_sets.lab import Lab
from mlinterp.token_sets.slicing import Rows
from mlinterp.token_sets.telling import adjust

SHOWN, SAMPLES, FIRST = 30, 10, 8
"""Groups in the table of enrichment, contexts in that of samples, and families that are written out of each of those."""


def measure(lab: Lab, variables: WeaponGroupVariables) -> ExperimentResult:
    """Return the result: `weapon_enrichment` with its picture, `high_activation_samples`, and the most enriched group."""
    rows, groups = lab.rows, lab.groups
    lab.require_variation(rows)
    high, low = _extremes(lab, variables)
    high_counts, low_counts = (np.bincount(_known(rows.table.group[part]), minlength=len(lab.package.groups)) for part in (high, low))
    classes = None if (kind := class_of(lab)) is None else lab.package.attribute_of(kind)
    found = []
    for group in groups[(high_counts + low_counts)[groups] > 0].tolist():
        name = {"weapon": lab.package.group_keys[group], "weapon_class": None if classes is None else classes[group]}
        found.append(name | _enrichment(int(high_counts[group]), int(low_counts[group]), len(high), len(low)))
    adjust(found)
    found.sort(key=lambda row: row["low_count"] - row["high_count"])
    result = lab.result("observational")
    about = (
        "Each group among the contexts with the highest and the lowest activations, in percent of them. The ratio is undefined where "
        "the low part has none of the group (only_high says so); log_odds_ratio, with its interval, is finite there too. "
        "Groups differ in more than their name: what goes together need not be cause and effect."
    )
    result.add_table("weapon_enrichment", found[:SHOWN], description=about)
    some = f", {SHOWN} of {len(found)}" if len(found) > SHOWN else ""
    result.add_table("high_activation_samples", [_sample(rows, row) for row in high[:SAMPLES]], description="The highest activations.")
    _picture(result, lab, some)
    result.aggregates.n_conditions = len(found)
    result.aggregates.custom |= {"high_group_size": len(high), "low_group_size": len(low)}
    _tell_most(result, found)
    warn_of_gating(lab)
    return result


def effect_table(lab: Lab, variables: WeaponGroupVariables) -> EffectTable:
    """Return each group's share of the highest activations minus that of the lowest, so that it can be measured again."""
    groups = lab.groups

    def effects_of(rows: Rows) -> np.ndarray:
        order = np.argsort(-rows.post, kind="stable")
        n_high, n_low = _sizes(len(rows), variables)
        parts = order[:n_high], order[len(order) - n_low :]
        shares = [np.bincount(_known(rows.table.group[part]), minlength=len(lab.package.groups)) / len(part) for part in parts]
        return np.asarray((shares[0] - shares[1])[groups])

    return observed([lab.package.group_keys[group] for group in groups], lab.rows, effects_of)


def _sizes(n: int, variables: WeaponGroupVariables) -> tuple[int, int]:
    """Return how many of n contexts are high and low: int(n · percentile / 100) each, and at least one."""
    return max(1, int(n * variables.high_percentile / 100 + 1e-9)), max(1, int(n * variables.low_percentile / 100 + 1e-9))


def _extremes(lab: Lab, variables: WeaponGroupVariables) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of the high contexts, the highest first, and of the low ones. Raises ExperimentError where the two are alike."""
    n_high, n_low = _sizes(len(lab.rows), variables)
    drawn = lab.stream("ties").permutation(len(lab.rows))
    order = drawn[np.argsort(-lab.rows.post[drawn], kind="stable")]
    high, low = order[:n_high], order[len(order) - n_low :]
    if lab.rows.post[high[-1]] == lab.rows.post[low[0]]:
        lab.warn(
            f"contexts with activation {lab.rows.post[low[0]]:g} are in the high and in the low part: so many have it that chance decides"
        )
    if lab.rows.post[high].mean() == lab.rows.post[low].mean():
        raise ExperimentError(f"the {n_high} highest and the {n_low} lowest activations are the same: there is nothing to contrast")
    return high, low


def _known(groups: np.ndarray) -> np.ndarray:
    return groups[groups >= 0]


def _enrichment(high: int, low: int, n_high: int, n_low: int) -> dict[str, Any]:
    """Return the cells of a group with these counts in parts of these sizes."""
    high_pct, low_pct = 100 * high / n_high, 100 * low / n_low
    cells = np.array([high, n_high - high, low, n_low - low]) + 0.5
    log_odds, error = float(np.log(cells[0] * cells[3] / (cells[1] * cells[2]))), float(np.sqrt((1 / cells).sum()))
    half = float(special.ndtri((1 + LEVEL) / 2)) * error
    table = [[high, n_high - high], [low, n_low - low]]
    return {
        "high_count": high,
        "low_count": low,
        "high_pct": high_pct,
        "low_pct": low_pct,
        "enrichment_ratio": high_pct / low_pct if low else None,
        "only_high": low == 0,
        "log_odds_ratio": log_odds,
        "log_odds_low": log_odds - half,
        "log_odds_high": log_odds + half,
        "p": float(scipy_stats.fisher_exact(table).pvalue),
    }


def _sample(rows: Rows, row: int) -> dict[str, Any]:
    """Return one context as a row: its activation, group and first families."""
    tokens, _, group = rows.table.shown(int(row)).partition(" @ ")
    return {"activation": float(rows.post[row]), "weapon": group or None, "tokens": " + ".join(tokens.split(" + ")[:FIRST])}


def _tell_most(result: ExperimentResult, found: list[dict[str, Any]]) -> None:
    """Record the group with the largest odds ratio; one that the low part has none of can win, but not by a single context."""
    if not found:
        return
    most = max(found, key=lambda row: row["log_odds_ratio"])
    result.aggregates.custom |= {"most_enriched_weapon": most["weapon"], "most_enriched_log_odds": most["log_odds_ratio"]}
    estimate = Estimate(
        value=most["log_odds_ratio"],
        low=most["log_odds_low"],
        high=most["log_odds_high"],
        level=LEVEL,
        n=result.aggregates.custom["high_group_size"] + result.aggregates.custom["low_group_size"],
        unit="context",
        interval="Wald, one half added to each count",
        null="as frequent among the lowest as among the highest",
        null_value=0.0,
        p=most["p"],
    )
    record(result, {"aggregates/most_enriched_log_odds": largest_of(len(found), estimate)})


def _picture(result: ExperimentResult, lab: Lab, some: str) -> None:
    word = lab.package.group_word
    result.figures.append(
        Figure(
            name="weapon_enrichment",
            table="weapon_enrichment",
            kind="bar",
            x="weapon",
            y=["log_odds_ratio"],
            low="log_odds_low",
            high="log_odds_high",
            title=f"Latent {lab.latent}: each {word} among its highest against its lowest activations{some} (observational)",
            x_label=word,
            y_label="log odds ratio, high against low",
        )
    )
