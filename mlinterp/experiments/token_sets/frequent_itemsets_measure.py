"""The arithmetic of `frequent_itemsets`: mining, lift against the baseline, and Fisher's exact test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mlinterp.errors import ExperimentError
from mlinterp.estimates import LEVEL, bounds, largest_of, record
from mlinterp.experiments.token_sets.frequent_itemsets import ItemsetVariables
from mlinterp.result import Estimate, ExperimentResult, Figure
from mlinterp.stats import benjamini_hochberg
from mlinterp.subjects.token_sets.table import ContextTable
from mlinterp.token_sets.itemsets import Bits, enrichment_p, frequent, lift_interval
from mlinterp.token_sets.lab import Lab

BAND = (0.25, 0.75)
"""The middle half of the contexts by activation: numbers [int(n · 0.25), int(n · 0.75)) of n, ascending."""

_SHOWN = 20
"""Sets in the figure."""


@dataclass(frozen=True)
class Mined:
    """Every frequent set of some contexts, and how often it occurs in others.

    Attributes:
        sets: names of its items.
        count: of the high contexts that hold it, int64 `[n_sets]`.
        others: of the baseline's contexts that hold it, int64 `[n_sets]`.
        n: high contexts that hold anything.
        n_others: the baseline's contexts that hold anything.
    """

    sets: list[tuple[str, ...]]
    count: np.ndarray
    others: np.ndarray
    n: int
    n_others: int

    @property
    def lift(self) -> np.ndarray:
        """Share of the high contexts over that of the baseline, float64 `[n_sets]`; infinite where the baseline does not have the set."""
        with np.errstate(divide="ignore"):
            found: np.ndarray = (self.count / self.n) / (self.others / self.n_others)
        return found


def measure(lab: Lab, variables: ItemsetVariables) -> ExperimentResult:
    """Return the result: `itemsets` by lift, those that the baseline does not have at all first."""
    lab.require_variation(lab.rows)
    high, others = _parts(lab, variables)
    mined = _mine(lab, variables, high, others)
    p = enrichment_p(mined.count, mined.n, mined.others, mined.n_others)
    adjusted = benjamini_hochberg(p) if len(p) else p
    lift = mined.lift
    order = sorted(range(len(p)), key=lambda at: (-lift[at], -mined.count[at], mined.sets[at]))
    rows = [_row(mined, at, float(p[at]), float(adjusted[at])) for at in order[: variables.top_k]]
    if len(order) > variables.top_k:
        lab.warn(f"{len(order)} sets are frequent: the table lists the {variables.top_k} of highest lift")
    result = lab.result("observational")
    against = "all other contexts" if variables.baseline == "rest" else "the middle half of the contexts by activation"
    about = (
        f"Sets that at least {variables.min_support:.3g} of the {mined.n} contexts with the highest activations hold, against "
        f"{against} ({mined.n_others}). Lift is the ratio of the two shares; where the baseline does not have the set it is infinite, "
        "and the cell empty. p: Fisher's exact test (one-sided), p_adj: adjusted for all frequent sets (Benjamini and Hochberg)."
    )
    columns = ["tokens", "size", "support_high", "support_baseline", "lift", "count", "count_baseline"]
    columns += ["lift_is_infinite", "low", "high", "p", "p_adj"]
    result.add_table("itemsets", rows, columns, description=about)
    _sum_up(result, mined, p)
    result.aggregates.n_conditions = len(order)
    result.diagnostics.n_contexts_tested = len(high)
    surest = sorted(rows, key=lambda row: row["p"])[:_SHOWN]
    about = f"Of these sets the {_SHOWN} that chance explains least."
    result.add_table("top_itemsets", surest, ["tokens", "support_high", "support_baseline", "p_adj"], description=about)
    result.figures.append(
        Figure(
            name="top_itemsets",
            table="top_itemsets",
            kind="bar",
            x="tokens",
            y=["support_high", "support_baseline"],
            title=f"Sets of tokens where latent {lab.latent} is most active, and elsewhere (observational)",
            y_label="share of contexts that hold the set",
        )
    )
    return result


def _parts(lab: Lab, variables: ItemsetVariables) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of the high contexts and of the baseline's. Ties go to the earlier context."""
    n, post = len(lab.rows), lab.rows.post
    descending = np.argsort(-post, kind="stable")
    n_high = max(1, int(n * variables.high_activation_pct / 100 + 1e-9))
    high, others = descending[:n_high], descending[n_high:]
    if variables.baseline == "band":
        ascending = np.argsort(post, kind="stable")
        middle = ascending[int(n * BAND[0]) : int(n * BAND[1])]
        others = middle[~np.isin(middle, high)]
    silent = int((post[high] <= 0).sum())
    if silent:
        lab.warn(f"{silent} of the {n_high} contexts with the highest activations are silent: high_activation_pct is too large")
    elif len(others) and post[high].min() == post[others].max():
        lab.warn("contexts of equal activation stand on both sides of the border: which of them is high was decided by their order")
    return high, others


def _mine(lab: Lab, variables: ItemsetVariables, high: np.ndarray, others: np.ndarray) -> Mined:
    """Find the frequent sets. Contexts that hold nothing, or nothing but the condition, count on neither side."""
    names, held = _items(lab.rows.table, variables)
    keep = np.ones(len(held), dtype=bool)
    if variables.condition_on is not None:
        keep, own = _condition(lab.rows.table, variables)
        held = held & ~own
    keep &= held.any(axis=1)
    high, others = high[keep[high]], others[keep[others]]
    if not len(high) or not len(others):
        where = "with the highest activations" if not len(high) else "of the baseline"
        holding = f" beside {variables.condition_on}" if variables.condition_on else ""
        raise ExperimentError(f"none of the contexts {where} holds a token{holding}: there is nothing to compare")
    inside, outside = Bits.of(held[high]), Bits.of(held[others])
    least = max(1, int(len(high) * variables.min_support + 1e-9))
    found = frequent(inside, least, variables.max_size)
    sets = [tuple(names[item] for item in items) for part in found for items in part.sets.tolist()]
    count = np.concatenate([part.count for part in found])
    elsewhere = np.concatenate([outside.count(part.sets) for part in found])
    return Mined(sets, count, elsewhere, len(high), len(others))


def _items(table: ContextTable, variables: ItemsetVariables) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the names of the items and which contexts hold each, bool `[n, n_items]`."""
    vocabulary = table.vocabulary
    if variables.collapse_families:
        return tuple(family.name for family in vocabulary.families), table.levels > 0
    if variables.levels == "all":
        return vocabulary.tokens, table.incidence
    height = np.arange(len(vocabulary)) - vocabulary.starts[vocabulary.family_of] + 1
    return vocabulary.tokens, table.levels[:, vocabulary.family_of] == height


def _condition(table: ContextTable, variables: ItemsetVariables) -> tuple[np.ndarray, np.ndarray]:
    """Return which contexts hold what is conditioned on, bool `[n]`, and which items are it, bool `[n_items]`."""
    vocabulary, name = table.vocabulary, variables.condition_on
    assert name is not None
    number = next((at for at, family in enumerate(vocabulary.families) if family.name == name), None)
    token = vocabulary.number(name, "variables.condition_on") if number is None else None
    held = table.levels[:, number] > 0 if token is None else table.incidence[:, token]
    if variables.collapse_families:
        return held, np.arange(len(vocabulary.families)) == (vocabulary.family_of[token] if number is None else number)
    return held, vocabulary.family_of == number if token is None else np.arange(len(vocabulary)) == token


def _row(mined: Mined, at: int, p: float, adjusted: float) -> dict[str, Any]:
    count, others = int(mined.count[at]), int(mined.others[at])
    lift = lift_interval(count, mined.n, others, mined.n_others)
    row: dict[str, Any] = {"tokens": " + ".join(mined.sets[at]), "size": len(mined.sets[at])}
    row |= {"support_high": count / mined.n, "support_baseline": others / mined.n_others}
    row |= {"lift": lift.estimate if others else None, "count": count, "count_baseline": others, "lift_is_infinite": not others}
    return row | bounds(lift) | {"p": p, "p_adj": adjusted}


def _sum_up(result: ExperimentResult, mined: Mined, p: np.ndarray) -> None:
    """Fill in how many sets there are, and the largest finite lift with its interval, widened for having been chosen."""
    finite = np.flatnonzero(mined.others > 0)
    custom = result.aggregates.custom
    custom |= {"n_itemsets": len(mined.sets), "n_infinite_lift": len(mined.sets) - len(finite), "n_high_contexts": mined.n}
    custom |= {"max_lift": None, "avg_lift": None, "top_itemset": None}
    if not len(finite):
        return
    lift = mined.lift[finite]
    top = int(finite[int(np.argmax(lift))])
    custom |= {"max_lift": float(lift.max()), "avg_lift": float(lift.mean()), "top_itemset": " + ".join(mined.sets[top])}
    interval = lift_interval(int(mined.count[top]), mined.n, int(mined.others[top]), mined.n_others)
    found = Estimate(
        value=interval.estimate,
        **bounds(interval),
        level=LEVEL,
        n=mined.n,
        unit="context",
        interval="Katz, on the logarithmic scale",
        null="the baseline's contexts hold the set as often",
        null_value=1.0,
        p=min(1.0, 2 * float(p[top])),
    )
    record(result, {"aggregates/max_lift": largest_of(len(finite), found)})
