"""The arithmetic of `token_influence_sweep` on observed contexts, and its headline numbers in both modes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mlinterp.experiments.token_sets.token_influence_sweep import TokenInfluenceVariables
from mlinterp.experiments.token_sets.token_influence_sweep_edits import Influence, added, sweep
from mlinterp.result import ExperimentResult, Figure
from mlinterp.subjects.token_sets.table import ContextTable
from mlinterp.token_sets.effect_table import EffectTable, edited
from mlinterp.token_sets.effects import Effect
from mlinterp.token_sets.high_part import high_part
from mlinterp.token_sets.lab import Lab
from mlinterp.token_sets.presence import Presence, presence, presence_table
from mlinterp.token_sets.telling import adjust, flag_artefacts, judge, status

SIGNIFICANT = 0.05
"""A token that is edited is an enhancer or a suppressor where its adjusted p value lies below this."""
DRAWN = 20
"""Tokens in the figure: the largest effects."""


def measure(lab: Lab, variables: TokenInfluenceVariables) -> ExperimentResult:
    """Return the result: `all_tokens`, `suppressors`, `enhancers`, and a picture of the largest effects."""
    return _observe(lab, variables) if variables.mode == "observational" else _intervene(lab, variables)


def effect_table(lab: Lab, variables: TokenInfluenceVariables) -> EffectTable:
    """Return the effect of each token's presence (of adding it, where contexts are edited), so that it can be measured again."""
    names = _names(lab, variables)
    if variables.mode == "interventional":
        bases = lab.bases(variables.n_contexts, variables.stable_tokens)
        return edited(names, added(lab, bases, names, variables.collapse_families).post, variables.min_n)
    rows = lab.holding(variables.stable_tokens)
    return presence_table(names, rows, _there(rows.table, names, variables.collapse_families), variables.min_samples)


def _names(lab: Lab, variables: TokenInfluenceVariables) -> list[str]:
    """Return the families or tokens that are looked at: all but those that are held fixed."""
    held = {lab.vocabulary.parse(token)[0] for token in variables.stable_tokens}
    families = [family for family in lab.vocabulary.families if family.name not in held]
    if variables.collapse_families:
        return [family.name for family in families]
    return [token for family in families for token in family.tokens]


def _there(table: ContextTable, names: Sequence[str], collapse: bool) -> np.ndarray:
    """Return which contexts hold each family or token, bool `[n, n_names]`."""
    if collapse:
        return np.asarray(table.levels[:, [table.vocabulary.family_number(name) for name in names]] > 0)
    return np.asarray(table.incidence[:, table.vocabulary.numbers(names)])


def _observe(lab: Lab, variables: TokenInfluenceVariables) -> ExperimentResult:
    """Compare observed contexts with each token and without it; special tokens are no part of a context."""
    rows, names = lab.holding(variables.stable_tokens), _names(lab, variables)
    lab.require_variation(rows)
    high, there = high_part(rows.post, variables.high_percentile), _there(rows.table, names, variables.collapse_families)
    found = [presence(rows, there[:, column], high, variables.min_samples) for column in range(len(names))]
    listed = [_row(name, of_it, variables.min_samples) for name, of_it in zip(names, found, strict=True)]
    adjust(listed)
    flag_artefacts(lab, listed, "delta", "pre_delta")
    if high.warning is not None:
        lab.warn(high.warning)
    result = lab.result("observational", rows.post)
    rated = [row for row in listed if row["status"] == "ok"]
    suppressors = [row for row in rated if row["high_rate_ratio"] is not None and row["high_rate_ratio"] < variables.suppressor_threshold]
    enhancers = [row for row in rated if _exceeds(row, variables.enhancer_threshold)]
    suppressors.sort(key=lambda row: row["high_rate_ratio"])
    enhancers.sort(key=_height, reverse=True)
    listed.sort(key=lambda row: -1.0 if row["delta"] is None else abs(row["delta"]), reverse=True)
    about = "Observed contexts with each token against others without it, and how often it stands in the high ones and in the rest."
    result.add_table("all_tokens", listed, description=f"{about} Contexts with a token differ from others in more than that.")
    of_high = "over its share of the rest (never in low: it occurs in high ones only, and the ratio is infinite)"
    for name, chosen, word in (("suppressors", suppressors, "below"), ("enhancers", enhancers, "above")):
        rate = "low_rate" if name == "suppressors" else "high_rate"
        columns = ["token", "high_rate_ratio", rate, "n_present", "n_high_with_token", "ratio_low", "ratio_high", "ratio_note"]
        limit = variables.suppressor_threshold if name == "suppressors" else variables.enhancer_threshold
        columns += ["delta", "low", "high", "p_adj"]
        result.add_table(name, chosen, columns, f"Tokens whose share of the high contexts {of_high} is {word} {limit:g}.")
    aggregates, n_high = result.aggregates, int(high.there.sum())
    aggregates.n_samples, aggregates.n_conditions = len(rows), len(names)
    aggregates.custom |= {"n_high_examples": n_high, "n_low_examples": len(rows) - n_high, "high_threshold": high.threshold}
    aggregates.custom |= {"n_suppressors": len(suppressors), "n_enhancers": len(enhancers)}
    for key, chosen in (("top_suppressor", suppressors), ("top_enhancer", enhancers)):
        if chosen:
            aggregates.custom[key] = chosen[0]["token"]
            if chosen[0]["high_rate_ratio"] is not None:
                aggregates.custom[f"{key}_ratio"] = chosen[0]["high_rate_ratio"]
    _extremes(result, [of_it.effect for of_it in found], "contexts without the token")
    _draw(result, lab, variables, listed[:DRAWN])
    return result


def _row(name: str, of_it: Presence, min_n: int) -> dict[str, Any]:
    ratio = of_it.ratio
    row: dict[str, Any] = {"token": name, "high_rate_ratio": None, "high_rate": None, "low_rate": None}
    if ratio is not None:
        row |= {"high_rate_ratio": ratio.value, "high_rate": ratio.high, "low_rate": ratio.low}
    row |= {"delta": of_it.effect.value, "effect_size": of_it.size, "n_present": of_it.n_present, "n_high_with_token": of_it.n_high_with}
    row |= {"mean_present": of_it.mean_with, "mean_absent": of_it.mean_without, "n_absent": of_it.n_absent}
    row |= dict(zip(("ratio_low", "ratio_high"), ratio.bounds if ratio is not None and ratio.bounds else (None, None), strict=True))
    row |= {"ratio_note": None if ratio is None else ratio.note, "std_error": of_it.effect.std_error}
    row |= {"low": of_it.effect.low, "high": of_it.effect.high, "p": of_it.effect.p, "pre_delta": of_it.pre}
    return {**row, "status": status(min(of_it.n_present, of_it.n_absent), min_n)}


def _exceeds(row: dict[str, Any], threshold: float) -> bool:
    return row["ratio_note"] == "never in low" or (row["high_rate_ratio"] is not None and row["high_rate_ratio"] > threshold)


def _height(row: dict[str, Any]) -> tuple[bool, float]:
    """Return what enhancers are sorted by: those that stand in high contexts only come first, by their share of them."""
    never = row["ratio_note"] == "never in low"
    return never, row["high_rate"] if never else row["high_rate_ratio"]


def _intervene(lab: Lab, variables: TokenInfluenceVariables) -> ExperimentResult:
    """Put each token into contexts without its family, take it out of contexts that hold it, and compare the model's latent."""
    bases = lab.bases(variables.n_contexts, variables.stable_tokens)
    names = _names(lab, variables)
    found, before = sweep(lab, bases, names, variables.collapse_families, variables.min_n)
    parts = [("add", [each.add for each in found]), ("remove", [each.remove for each in found])]
    listed: list[dict[str, Any]] = [
        {"token": name, "add_delta": each.add.effect.value, "remove_delta": each.remove.effect.value}
        for name, each in zip(names, found, strict=True)
    ]
    lists: dict[str, list[dict[str, Any]]] = {"suppressors": [], "enhancers": []}
    for edit, responses in parts:
        rows = [_edit_row(name, edit, each, variables.min_n) for name, each in zip(names, responses, strict=True)]
        adjust(rows)
        flag_artefacts(lab, rows, "delta", "pre_delta")
        for whole, row in zip(listed, rows, strict=True):
            whole |= {f"{edit}_{key}": value for key, value in row.items() if key not in {"token", "edit", "delta"}}
            if row["p_adj"] is not None and row["p_adj"] < SIGNIFICANT:
                lists["enhancers" if (row["delta"] > 0) == (edit == "add") else "suppressors"].append(row)
    result = lab.result("interventional", before)
    listed.sort(key=lambda row: -1.0 if row["add_delta"] is None else abs(row["add_delta"]), reverse=True)
    what = "each family (at each of its rungs in turn, the mean over them)" if variables.collapse_families else "each token"
    about = f"Change of the activation where {what} is put into contexts without the family, and where it is taken out of contexts with it"
    result.add_table("all_tokens", listed, description=f"{about}; control: the mean over the other tokens in the same contexts.")
    for name, rows in lists.items():
        rows.sort(key=lambda row: abs(row["delta"]), reverse=True)
        columns = ["token", "edit", "delta", "n", "std_error", "low", "high", "p", "p_adj", "pre_delta", "control_delta"]
        columns += ["adjusted_delta", "adjusted_low", "adjusted_high", "floor_artefact"]
        result.add_table(name, rows, columns, f"Edits that show a token to be one of the {name}: adjusted p below {SIGNIFICANT:g}.")
        result.aggregates.custom[f"n_{name}"] = len({row["token"] for row in rows})
        if rows:
            top = name.removesuffix("s")
            result.aggregates.custom |= {
                f"top_{top}": rows[0]["token"],
                f"top_{top}_edit": rows[0]["edit"],
                f"top_{top}_delta": rows[0]["delta"],
            }
    result.aggregates.n_samples, result.aggregates.n_conditions = len(bases), len(names)
    _extremes(result, [each.add.effect for each in found], "the same edit with the other tokens", [each.add for each in found])
    _draw(result, lab, variables, listed[:DRAWN])
    return result


def _edit_row(name: str, edit: str, found: Influence, min_n: int) -> dict[str, Any]:
    effect, beyond = found.effect, found.beyond
    row: dict[str, Any] = {"token": name, "edit": edit, **effect.columns("delta"), "pre_delta": found.pre, "control_delta": found.control}
    row |= {"adjusted_delta": beyond.value, "adjusted_low": beyond.low, "adjusted_high": beyond.high}
    return {**row, "status": status(effect.n, min_n)}


def _extremes(result: ExperimentResult, effects: Sequence[Effect], null: str, edits: Sequence[Influence] | None = None) -> None:
    """Fill in the largest effects in either direction."""
    known = [number for number, effect in enumerate(effects) if effect.value is not None]
    if not known:
        return
    known.sort(key=lambda number: effects[number].value or 0.0)
    for name, number in (("min_delta", known[0]), ("max_delta", known[-1])):
        setattr(result.aggregates, name, effects[number].value)
        if edits is None:
            judge(result, f"aggregates/{name}", effects[number], null, of=len(known))
        elif (control := edits[number].control) is None:
            judge(result, f"aggregates/{name}", effects[number], "no edit", of=len(known))
        else:
            judge(result, f"aggregates/{name}", effects[number], null, control, of=len(known), beyond=edits[number].beyond)


def _draw(result: ExperimentResult, lab: Lab, variables: TokenInfluenceVariables, rows: list[dict[str, Any]]) -> None:
    """Declare the figure, over a table of its own with the largest effects only."""
    edited_here = result.mode == "interventional"
    y, low, high = ("add_delta", "add_low", "add_high") if edited_here else ("delta", "low", "high")
    columns = ["token", y, *(["remove_delta"] if edited_here else []), low, high]
    result.add_table("largest_effects", [row for row in rows if row[y] is not None], columns, f"The up to {DRAWN} largest effects.")
    what = "families" if variables.collapse_families else "tokens"
    title = f"Latent {lab.latent}: the {what} with the largest effects ({result.mode})"
    result.figures.append(
        Figure(
            name="token_influence",
            table="largest_effects",
            kind="bar",
            x="token",
            y=[column for column in (y, "remove_delta") if column in columns],
            low=low,
            high=high,
            title=title,
            x_label="family" if variables.collapse_families else "token",
            y_label="change of the activation",
        )
    )
