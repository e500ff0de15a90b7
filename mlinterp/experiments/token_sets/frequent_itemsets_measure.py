"""The arithmetic of `frequent_itemsets`: mining, lift against the baseline, and Fisher's exact test."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mlinterp.errors import ExperimentError
from mlinterp.estimates import LEVEL, bounds, largest_of, record
from mlinterp.experiments.token_sets.frequent_itemsets import ItemsetVariables
from mlinterp.result import Estimate, ExperimentResult, Figure
from mlinterp.stats import benjamini_hochberg
from mlinterp.subjects.token_sets.table import ContextTable
from mlinterp.token_sets.effect_table import EffectTable, observed
from mlinterp.token_sets.itemsets import Bits, Found, enrichment_p, frequent, lift_interval
from mlinterp.token_sets.lab import Lab
from mlinterp.token_sets.slicing import Rows

BAND = (0.25, 0.75)
"""The middle half of the contexts by activation: numbers [int(n · 0.25), int(n · 0.75)) of n, ascending."""

_SHOWN = 20
"""Sets in the figure."""


@dataclass(frozen=True)
class Mined:
    """Every frequent set of some contexts, and how often it occurs in others.

    Attributes:
        names: of the items.
        found: the sets by size; arrays below have them one size after the other.
        count: of the high contexts that hold each set, int64 `[n_sets]`.
        others: of the baseline's contexts that hold it, int64 `[n_sets]`.
        n: high contexts that hold anything.
        n_others: the baseline's contexts that hold anything.
        least: high contexts that a frequent set is held by.
    """

    names: tuple[str, ...]
    found: list[Found]
    count: np.ndarray
    others: np.ndarray
    n: int
    n_others: int
    least: int

    @cached_property
    def lift(self) -> np.ndarray:
        """Share of the high contexts over that of the baseline, float64 `[n_sets]`; infinite where the baseline does not have the set."""
        with np.errstate(divide="ignore"):
            found: np.ndarray = (self.count / self.n) / (self.others / self.n_others)
        return found

    @property
    def by_lift(self) -> np.ndarray:
        """Numbers of the sets, the highest lift first; of equal ones the more frequent, then the smaller."""
        return np.lexsort((-self.count, -self.lift))

    def tokens(self, at: int) -> list[str]:
        """Return the items of a set."""
        for part in self.found:
            if at < len(part.sets):
                return [self.names[item] for item in part.sets[at].tolist()]
            at -= len(part.sets)
        raise IndexError(at)


def measure(lab: Lab, variables: ItemsetVariables) -> ExperimentResult:
    """Return the result: `itemsets` by lift, those that the baseline does not have at all first."""
    lab.require_variation(lab.rows)
    high, others = _parts(lab.rows.post, variables)
    _warn(lab, high, others)
    mined = _mine(lab, variables, high, others)
    p = enrichment_p(mined.count, mined.n, mined.others, mined.n_others, mined.least)
    adjusted = benjamini_hochberg(p) if len(p) else p
    rows = [_row(mined, at, float(p[at]), float(adjusted[at])) for at in mined.by_lift[: variables.top_k].tolist()]
    if len(p) > variables.top_k:
        lab.warn(f"{len(p)} sets are frequent: the table lists the {variables.top_k} of highest lift")
    if not len(p):
        lab.warn(f"no two tokens stand together in {mined.least} of the {mined.n} high contexts: min_support is too large")
    result = lab.result("observational")
    against = "all other contexts" if variables.baseline == "rest" else "the middle half of the contexts by activation"
    about = (
        f"Sets that at least {variables.min_support:.3g} of the {mined.n} contexts with the highest activations hold, against "
        f"{against} ({mined.n_others}). Lift is the ratio of the two shares; where the baseline does not have the set it is infinite, "
        f"and the cell empty. p: Fisher's exact test (one-sided) given that the set is here for {mined.least} high contexts or more, "
        "p_adj: adjusted for all frequent sets (Benjamini and Hochberg); low, high: Katz's interval of the lift, likewise. "
        "Correlational: the contexts differ in more than the set."
    )
    columns = ["tokens", "size", "support_high", "support_baseline", "lift", "count", "count_baseline"]
    columns += ["lift_is_infinite", "low", "high", "p", "p_adj"]
    result.add_table("itemsets", rows, columns, description=about)
    _sum_up(result, mined, p)
    result.aggregates.n_conditions = len(p)
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


def effect_table(lab: Lab, variables: ItemsetVariables) -> EffectTable:
    """Return how much more of the high contexts than of the baseline hold each set, so that it can be measured again.

    The sets are the `top_k` most common ones of all contexts, at least `min_support` of which hold them: chosen without a look at the
    latent, so that a set's being here is no effect of it.
    """
    names, held, keep = _held(lab.rows.table, variables)
    found = frequent(Bits.of(held[keep]), max(1, int(keep.sum() * variables.min_support + 1e-9)), variables.max_size)
    sets = [(count, items) for part in found for count, items in zip(part.count.tolist(), part.sets.tolist(), strict=True)]
    chosen = [items for _, items in sorted(sets, key=lambda pair: -pair[0])[: variables.top_k]]

    def effects_of(rows: Rows) -> np.ndarray:
        _, held, keep = _held(rows.table, variables)
        high, others = (part[keep[part]] for part in _parts(rows.post, variables))
        if not len(high) or not len(others):
            return np.full(len(chosen), np.nan)
        inside, outside = held[high], held[others]
        return np.array([inside[:, items].all(axis=1).mean() - outside[:, items].all(axis=1).mean() for items in chosen])

    return observed([" + ".join(names[item] for item in items) for items in chosen], lab.rows, effects_of)


def _parts(post: np.ndarray, variables: ItemsetVariables) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of the high contexts and of the baseline's, given the activations. Ties go to the earlier context."""
    n = len(post)
    descending = np.argsort(-post, kind="stable")
    n_high = max(1, int(n * variables.high_activation_pct / 100 + 1e-9))
    high, others = descending[:n_high], descending[n_high:]
    if variables.baseline == "band":
        ascending = np.argsort(post, kind="stable")
        middle = ascending[int(n * BAND[0]) : int(n * BAND[1])]
        others = middle[~np.isin(middle, high)]
    return high, others


def _warn(lab: Lab, high: np.ndarray, others: np.ndarray) -> None:
    post = lab.rows.post
    silent = int((post[high] <= 0).sum())
    if silent:
        lab.warn(f"{silent} of the {len(high)} contexts with the highest activations are silent: high_activation_pct is too large")
    elif len(others) and post[high].min() == post[others].max():
        lab.warn("contexts of equal activation stand on both sides of the border: which of them is high was decided by their order")


def _mine(lab: Lab, variables: ItemsetVariables, high: np.ndarray, others: np.ndarray) -> Mined:
    """Find the frequent sets of the high contexts, and count them in the others."""
    names, held, keep = _held(lab.rows.table, variables)
    high, others = high[keep[high]], others[keep[others]]
    if not len(high) or not len(others):
        where = "with the highest activations" if not len(high) else "of the baseline"
        holding = f" beside {variables.condition_on}" if variables.condition_on else ""
        raise ExperimentError(f"none of the contexts {where} holds a token{holding}: there is nothing to compare")
    inside, outside = Bits.of(held[high]), Bits.of(held[others])
    least = max(1, int(len(high) * variables.min_support + 1e-9))
    found = frequent(inside, least, variables.max_size)
    count = np.concatenate([part.count for part in found])
    elsewhere = np.concatenate([outside.count(part.sets) for part in found])
    return Mined(names, found, count, elsewhere, len(high), len(others), least)


def _held(table: ContextTable, variables: ItemsetVariables) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Return the names of the items, which contexts hold each, bool `[n, n_items]`, and which contexts count, bool `[n]`.

    A context that holds nothing, or nothing beside what is conditioned on, does not count.
    """
    names, held = _items(table, variables)
    keep = np.ones(len(table), dtype=bool)
    if variables.condition_on is not None:
        keep, own = _condition(table, variables)
        held = held & ~own
    return names, held, keep & held.any(axis=1)


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
    lift = lift_interval(count, mined.n, others, mined.n_others, mined.least)
    tokens = mined.tokens(at)
    row: dict[str, Any] = {"tokens": " + ".join(tokens), "size": len(tokens)}
    row |= {"support_high": count / mined.n, "support_baseline": others / mined.n_others}
    row |= {"lift": lift.estimate if others else None, "count": count, "count_baseline": others, "lift_is_infinite": not others}
    return row | bounds(lift) | {"p": p, "p_adj": adjusted}


def _sum_up(result: ExperimentResult, mined: Mined, p: np.ndarray) -> None:
    """Fill in how many sets there are, and the largest finite lift with its interval, widened for having been chosen."""
    finite = np.flatnonzero(mined.others > 0)
    custom = result.aggregates.custom
    custom |= {"n_itemsets": len(mined.count), "n_infinite_lift": len(mined.count) - len(finite), "n_high_contexts": mined.n}
    custom |= {"max_lift": None, "avg_lift": None, "top_itemset": None}
    if not len(finite):
        return
    lift = mined.lift[finite]
    top = int(finite[int(np.argmax(lift))])
    custom |= {"max_lift": float(lift.max()), "avg_lift": float(lift.mean()), "top_itemset": " + ".join(mined.tokens(top))}
    interval = lift_interval(int(mined.count[top]), mined.n, int(mined.others[top]), mined.n_others, mined.least)
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
