"""The arithmetic of `core_coverage_analysis`.

1. The effective maximum is a quantile of the activations above 0 (linear interpolation), so that one outlier does not set it.
2. The core are activations in (lower, upper] of it, the tail those above nine tenths of it.
3. Coverage is the share of a part's contexts that hold a token, with its Wilson interval; the difference is tested by Fisher's exact test.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats as scipy_stats

from mlinterp.errors import ExperimentError
from mlinterp.estimates import largest_of, record, share
from mlinterp.experiments.token_sets.core_coverage_analysis import CoreCoverageVariables
from mlinterp.result import ExperimentResult, Figure
from mlinterp.token_sets.effect_table import EffectTable, observed
from mlinterp.token_sets.lab import Lab
from mlinterp.token_sets.slicing import Rows
from mlinterp.token_sets.telling import adjust

TAIL = 0.9
"""The tail begins above this share of the effective maximum."""
ENRICHED, FREQUENT = 2.0, 0.1
"""A group marks the tail where it is so many times as frequent there as in the core, and holds more than this share of it."""


def measure(lab: Lab, variables: CoreCoverageVariables) -> ExperimentResult:
    """Return the result: `token_coverage` with its picture, `weapon_coverage`, and which tokens drive the core or mark the tail."""
    rows = lab.rows
    lab.require_variation(rows)
    top, core, tail = _regions(rows.post, variables)
    if not top:
        raise ExperimentError(f"latent {lab.latent} is active in none of {len(rows)} contexts")
    for part, name in ((core, "core"), (tail, "tail")):
        if not part.any():
            lab.warn(f"no context lies in the {name} of the activations (effective maximum {top:g}): there is no coverage of it")
    names = variables.tokens_to_check or carried(lab, variables.top_k)
    found = [{"token": name} | _coverage(_holds(rows, name), core, tail, ("core_with_token", "tail_with_token")) for name in names]
    for row in found:
        covered = row["core_coverage_pct"]
        row["is_tail_marker"] = None if covered is None else covered < 100 * variables.coverage_threshold
    adjust(found)
    found.sort(key=lambda row: row["core_coverage_pct"] if row["core_coverage_pct"] is not None else np.inf)
    result = lab.result("observational")
    columns = ["token", "core_coverage_pct", "tail_coverage_pct", "tail_enrichment", "is_tail_marker"]
    columns += [name for name in found[0] if name not in columns]
    result.add_table("token_coverage", found, columns, description=HOW.format(what="token"))
    if variables.include_weapons and len(lab.package.groups):
        _add_groups(result, lab, core, tail)
    _picture(result, lab, variables)
    aggregates = result.aggregates
    aggregates.n_conditions = len(found)
    aggregates.custom |= {
        "effective_max": top,
        "n_core_examples": int(core.sum()),
        "n_tail_examples": int(tail.sum()),
        "core_region": f"{100 * variables.core_lower_pct:g}%-{100 * variables.core_upper_pct:g}%",
        "coverage_threshold": variables.coverage_threshold,
    }
    _tell(result, lab, found)
    return result


def effect_table(lab: Lab, variables: CoreCoverageVariables) -> EffectTable:
    """Return each token's share of the tail minus that of the core, so that it can be measured again.

    Where no token is named, of every family that occurs: those that `carried` picks were chosen by looking at the activations.
    """
    there = np.asarray(lab.rows.table.levels.any(axis=0))
    families = [family.name for family, occurs in zip(lab.vocabulary.families, there, strict=True) if occurs]
    names = variables.tokens_to_check or families

    def effects_of(rows: Rows) -> np.ndarray:
        _, core, tail = _regions(rows.post, variables)
        if not core.any() or not tail.any():
            return np.full(len(names), np.nan)
        held = np.column_stack([_holds(rows, name) for name in names])
        return np.asarray(held[tail].mean(axis=0) - held[core].mean(axis=0))

    return observed(names, lab.rows, effects_of)


def _regions(post: np.ndarray, variables: CoreCoverageVariables) -> tuple[float, np.ndarray, np.ndarray]:
    """Return the effective maximum (0 where nothing is active), and which activations are core and tail, bool `[n]`."""
    active = post[post > 0]
    if not len(active):
        return 0.0, np.zeros(len(post), dtype=bool), np.zeros(len(post), dtype=bool)
    top = float(np.quantile(active, variables.effective_max_percentile))
    return top, (post > variables.core_lower_pct * top) & (post <= variables.core_upper_pct * top), post > TAIL * top


HOW = (
    "Shares, in percent with 95 % Wilson intervals, of the contexts in the core and in the tail of the activations that have each {what}. "
    "tail_enrichment is undefined where the core has none (only_tail says so). What goes together need not be cause and effect."
)
"""What the tables show."""


def carried(lab: Lab, k: int) -> list[str]:
    """Return the k families that the most activation goes with: their contexts counted, each max(1, int(10 · activation)) times.

    Contexts on which the latent is silent do not count.
    """
    rows = lab.rows
    weight = np.where(rows.post > 0, np.maximum(1, np.floor(10 * rows.post)), 0.0)
    counts = weight @ (rows.table.levels > 0)
    order = [number for number in np.argsort(-counts, kind="stable")[:k] if counts[number] > 0]
    if not order:
        raise ExperimentError(f"no context on which latent {lab.latent} is active holds a token")
    return [lab.vocabulary.families[number].name for number in order]


def _holds(rows: Rows, name: str) -> np.ndarray:
    """Return which contexts hold a token, or a family at any rung, bool `[n]`."""
    families = [family.name for family in rows.table.vocabulary.families]
    if name in families:
        return np.asarray(rows.table.levels[:, families.index(name)] > 0)
    return np.asarray(rows.table.incidence[:, rows.table.vocabulary.number(name)])


def _coverage(there: np.ndarray, core: np.ndarray, tail: np.ndarray, counted: tuple[str, str]) -> dict[str, Any]:
    """Return the cells of what is there in some contexts; `counted` names the columns of its counts."""
    n_core, n_tail = int((there & core).sum()), int((there & tail).sum())
    row: dict[str, Any] = {}
    for name, hits, n in (("core", n_core, int(core.sum())), ("tail", n_tail, int(tail.sum()))):
        covered = share(hits, n) if n else None
        for key, value in (("coverage_pct", "value"), ("low", "low"), ("high", "high")):
            row[f"{name}_{key}"] = None if covered is None else 100 * getattr(covered, value)
    both = row["core_coverage_pct"] is not None and row["tail_coverage_pct"] is not None
    row["tail_enrichment"] = row["tail_coverage_pct"] / row["core_coverage_pct"] if both and n_core else None
    row["only_tail"] = both and n_core == 0 and n_tail > 0
    row |= {f"n_{counted[0]}": n_core, f"n_{counted[1]}": n_tail}
    table = [[n_tail, int(tail.sum()) - n_tail], [n_core, int(core.sum()) - n_core]]
    row["p"] = float(scipy_stats.fisher_exact(table).pvalue) if both else None
    return row


def _add_groups(result: ExperimentResult, lab: Lab, core: np.ndarray, tail: np.ndarray) -> None:
    """Add the table of groups that the core or the tail has contexts of."""
    group, found = lab.rows.table.group, []
    for number in np.unique(group[core | tail]):
        if number < 0:
            continue
        row = {"weapon": lab.package.group_keys[number], "weapon_id": int(number)} | _coverage(
            group == number, core, tail, ("core", "tail")
        )
        enriched = row["only_tail"] or (row["tail_enrichment"] or 0.0) > ENRICHED
        row["is_flanderized"] = None if row["p"] is None else enriched and row["tail_coverage_pct"] > 100 * FREQUENT
        found.append(row)
    if not found:
        return
    adjust(found)
    found.sort(key=lambda row: (not row["only_tail"], -(row["tail_enrichment"] or 0.0), -row["n_tail"]))
    columns = ["weapon", "weapon_id", "core_coverage_pct", "tail_coverage_pct", "tail_enrichment", "is_flanderized", "n_core", "n_tail"]
    columns += [name for name in found[0] if name not in columns]
    result.add_table("weapon_coverage", found, columns, description=HOW.format(what=lab.package.group_word))


def _tell(result: ExperimentResult, lab: Lab, found: list[dict[str, Any]]) -> None:
    """Record the most enriched tail marker and the driver with the largest share of the core, and judge their coverage."""
    custom, n_core = result.aggregates.custom, result.aggregates.custom["n_core_examples"]
    markers = [row for row in found if row["is_tail_marker"]]
    drivers = [row for row in found if row["is_tail_marker"] is False]
    custom |= {"n_tail_markers": len(markers), "n_primary_drivers": len(drivers)}
    if markers and not drivers:
        lab.warn(f"all {len(markers)} tokens are tail markers: the latent may be diffuse, or other tokens drive it")
    if markers:
        top = max(markers, key=lambda row: (row["only_tail"], row["tail_enrichment"] or 0.0))
        custom |= {"top_tail_marker": top["token"], "top_tail_marker_coverage": top["core_coverage_pct"] / 100}
        custom |= {"top_tail_marker_enrichment": top["tail_enrichment"]}
        record(result, {"aggregates/top_tail_marker_coverage": largest_of(len(found), share(top["n_core_with_token"], n_core))})
    if drivers:
        best = max(drivers, key=lambda row: row["core_coverage_pct"])
        custom |= {"best_primary_driver": best["token"], "best_driver_coverage": best["core_coverage_pct"] / 100}
        record(result, {"aggregates/best_driver_coverage": largest_of(len(found), share(best["n_core_with_token"], n_core))})


def _picture(result: ExperimentResult, lab: Lab, variables: CoreCoverageVariables) -> None:
    result.figures.append(
        Figure(
            name="token_coverage",
            table="token_coverage",
            kind="bar",
            x="token",
            y=["core_coverage_pct", "tail_coverage_pct"],
            title=f"Latent {lab.latent}: what its core and its tail hold (observational)",
            x_label="token",
            y_label="contexts that hold it, %",
            reference=100 * variables.coverage_threshold,
        )
    )
