"""The arithmetic of `binary_presence_effect`, in both modes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mlinterp.errors import ExperimentError
from mlinterp.experiments.token_sets.binary_presence_effect import BinaryEffectVariables
from mlinterp.result import ExperimentResult, Figure
from mlinterp.subjects.token_sets import edits
from mlinterp.subjects.token_sets.table import ContextTable
from mlinterp.subjects.token_sets.vocabulary import Family
from mlinterp.token_sets.counterfactual import beyond_controls, control_draws, family_changes
from mlinterp.token_sets.effect_table import EffectTable, edited
from mlinterp.token_sets.effects import NOTHING, Effect, compared, mean_effect, standardised
from mlinterp.token_sets.high_part import high_part
from mlinterp.token_sets.lab import Lab
from mlinterp.token_sets.presence import presence, presence_table
from mlinterp.token_sets.slicing import Rows
from mlinterp.token_sets.telling import adjust, flag_artefacts, judge, status

OBSERVED = "in observed contexts, against others without it, which differ in more than the token"
"""What is compared where nothing is edited."""


class Found(NamedTuple):
    """What a token does, as the headline numbers need it: its name, its effect, and beside it that of its control."""

    name: str
    effect: Effect
    control: float | None = None
    beyond: Effect | None = None


def measure(lab: Lab, variables: BinaryEffectVariables) -> ExperimentResult:
    """Return the result: `binary_effects`, with a primary family also `conditional_effects`, and a picture of each."""
    families = _families(lab, variables)
    if variables.mode == "observational":
        return _observe(lab, variables, families)
    return _intervene(lab, variables, families)


def effect_table(lab: Lab, variables: BinaryEffectVariables) -> EffectTable:
    """Return the effect of each token, so that it can be measured again."""
    families = _families(lab, variables)
    labels = [family.name for family in families]
    if variables.mode == "interventional":
        bases = lab.bases(variables.n_contexts, variables.stable_tokens)
        deltas = np.column_stack([family_changes(lab, bases, family, family.levels).post[:, 0] for family in families])
        return edited(labels, deltas, variables.min_n)
    rows = lab.holding(variables.stable_tokens)
    return presence_table(labels, rows, rows.table.incidence[:, lab.vocabulary.numbers(labels)], variables.min_samples)


def _families(lab: Lab, variables: BinaryEffectVariables) -> list[Family]:
    """Return the binary families that are looked at; where none are named, all but those that are held fixed."""
    if variables.binary_tokens is not None:
        return [lab.vocabulary.family(name) for name in dict.fromkeys(variables.binary_tokens)]
    held = {*variables.stable_tokens, variables.primary_family}
    return [family for family in lab.vocabulary.families if family.is_binary and family.name not in held]


def _primary_rungs(lab: Lab, variables: BinaryEffectVariables) -> list[int]:
    if variables.primary_family is None:
        return []
    return list(dict.fromkeys(variables.primary_rungs or (0, *lab.vocabulary.family(variables.primary_family).levels)))


def _observe(lab: Lab, variables: BinaryEffectVariables, families: Sequence[Family]) -> ExperimentResult:
    """Compare observed contexts with each token and without it."""
    rows = lab.holding(variables.stable_tokens)
    lab.require_variation(rows)
    masks = {family.name: rows.table.levels[:, lab.vocabulary.family_number(family.name)] > 0 for family in families}
    if not any(there.any() for there in masks.values()):
        raise ExperimentError(f"none of the {len(masks)} binary tokens occurs in any of {len(rows)} contexts")
    if variables.primary_family is not None:
        lab.require_family(variables.primary_family, rows)
    high, min_n = high_part(rows.post, variables.high_percentile), variables.min_samples
    effects, found = [], []
    for name, there in masks.items():
        of_it = presence(rows, there, high, min_n)
        enriched = of_it.ratio.enrichment(float(high.there.mean())) if of_it.ratio else (None, None, None)
        row: dict[str, Any] = {"binary_ability": name, "delta": of_it.effect.value, "effect_size": of_it.size, "enrichment": enriched[0]}
        row |= {"mean_with": of_it.mean_with, "mean_without": of_it.mean_without}
        row |= {"n_present": of_it.n_present, "n_high_with": of_it.n_high_with, **_uncertainty(of_it.effect), "pre_delta": of_it.pre}
        row |= {"enrichment_low": enriched[1], "enrichment_high": enriched[2], "n_absent": of_it.n_absent}
        effects.append({**row, "status": status(min(of_it.n_present, of_it.n_absent), min_n)})
        found.append(Found(name, of_it.effect))
    conditional = []
    at = rows.table.rungs(variables.primary_family) if variables.primary_family else np.zeros(len(rows), dtype=np.int64)
    for rung in _primary_rungs(lab, variables):
        conditional += [_observed_at(rows, name, there, at == rung, rung, variables.min_n) for name, there in masks.items()]
    if high.warning is not None:
        lab.warn(high.warning)
    result = lab.result("observational", rows.post)
    _tables(result, lab, effects, conditional)
    custom = result.aggregates.custom
    custom |= {"n_high_examples": int(high.there.sum()), "high_threshold": high.threshold}
    _top(result, found, "contexts without the token")
    enriched_rows = [row for row in effects if row["enrichment"] is not None]
    if enriched_rows:
        for key, pick in (("most_enriched", max), ("most_depleted", min)):
            row = pick(enriched_rows, key=lambda row: row["enrichment"])
            custom |= {key: row["binary_ability"], f"{key}_ratio": row["enrichment"]}
    result.aggregates.n_samples, result.aggregates.n_conditions = len(rows), len(effects)
    return result


def _observed_at(rows: Rows, name: str, there: np.ndarray, at_rung: np.ndarray, rung: int, min_n: int) -> dict[str, Any]:
    """Return the row of a token among the observed contexts at one rung of the primary family."""
    present, absent = there & at_rung, ~there & at_rung
    n_with, n_without = int(present.sum()), int(absent.sum())
    effect = compared(rows.post, present, absent, min_n)
    row: dict[str, Any] = {"binary_ability": name, "primary_rung": rung, "delta": effect.value, "mean_with": None, "mean_without": None}
    row |= {"n_with": n_with, "n_without": n_without, **_uncertainty(effect), "pre_delta": compared(rows.pre, present, absent, min_n).value}
    if effect.value is not None:
        row |= {"mean_with": float(rows.post[present].mean()), "mean_without": float(rows.post[absent].mean())}
    return {**row, "status": status(min(n_with, n_without), min_n)}


def _intervene(lab: Lab, variables: BinaryEffectVariables, families: Sequence[Family]) -> ExperimentResult:
    """Take each token out of contexts, put it in, and compare the model's latent on both."""
    bases = lab.bases(variables.n_contexts, variables.stable_tokens)
    spare = [*(lab.vocabulary.parse(token)[0] for token in variables.stable_tokens), variables.primary_family or ""]
    effects, found, floor, conditional = [], [], [], []
    for family in families:
        row, one, before = _edited(lab, bases, family, variables, spare)
        effects.append({"binary_ability": family.name, **row, "status": status(row["n"], variables.min_n)})
        found.append(one)
        floor.append(before)
    for rung in _primary_rungs(lab, variables):
        primary = lab.vocabulary.family(variables.primary_family or "")
        if rung not in (0, *primary.levels):
            lab.warn(f"{rung} is no rung of {primary.name} ({', '.join(map(str, primary.levels))}): there is no such token to add")
            continue
        standing = edits.set_rung(bases, primary.name, rung) if rung else edits.strip_family(bases, primary.name)
        for family in families:
            row, _, _ = _edited(lab, standing, family, variables, spare)
            n = row.pop("n")
            del row["effect_size"]
            at = {"binary_ability": family.name, "primary_rung": rung}
            conditional.append({**at, **row, "n_with": n, "n_without": n, "status": status(n, variables.min_n)})
    if all(one.beyond is None for one in found):
        lab.warn("there is no control: no other binary family was edited")
    result = lab.result("interventional", np.concatenate(floor))
    _tables(result, lab, effects, conditional)
    _top(result, found, "no edit")
    result.aggregates.n_samples, result.aggregates.n_conditions = len(bases), len(effects)
    return result


def _edited(
    lab: Lab, bases: ContextTable, family: Family, variables: BinaryEffectVariables, spare: Sequence[str]
) -> tuple[dict[str, Any], Found, np.ndarray]:
    """Return what a token does to contexts: its columns, its effect, and the latent on the contexts without it."""
    made = family_changes(lab, bases, family, family.levels)
    post, known = made.post[:, 0], np.isfinite(made.post[:, 0])
    row: dict[str, Any] = dict.fromkeys(("delta", "effect_size", "mean_with", "mean_without")) | {"n": int(known.sum())}
    row |= {**_uncertainty(NOTHING), "pre_delta": None}
    if known.sum() < variables.min_n:
        return row, Found(family.name, NOTHING), made.before
    effect, without = mean_effect(post[known]), made.before[known]
    row |= {"delta": effect.value, "effect_size": standardised(without + post[known], without), "mean_without": float(without.mean())}
    row |= {"mean_with": float((without + post[known]).mean()), **_uncertainty(effect), "pre_delta": float(made.pre[known, 0].mean())}
    controls = control_draws(lab, bases, family, family.levels, variables.controls, spare)
    paired = None if controls is None else beyond_controls(made.post, controls)
    if paired is None:
        return row, Found(family.name, effect), made.before
    control, beyond = paired
    one = Found(family.name, effect, control, beyond)
    row |= {"control_delta": one.control, "adjusted_delta": beyond.value, "adjusted_low": beyond.low, "adjusted_high": beyond.high}
    return row, one, made.before


def _uncertainty(effect: Effect) -> dict[str, Any]:
    return {"std_error": effect.std_error, "low": effect.low, "high": effect.high, "p": effect.p}


def _top(result: ExperimentResult, found: Sequence[Found], nothing: str) -> None:
    """Fill in the token with the largest effect of either sign, and the extremes."""
    known = sorted((one for one in found if one.effect.value is not None), key=lambda one: one.effect.value or 0.0)
    if not known:
        return
    aggregates, least, most = result.aggregates, known[0], known[-1]
    top = max(known, key=lambda one: abs(one.effect.value or 0.0))
    aggregates.min_delta, aggregates.max_delta = least.effect.value, most.effect.value
    aggregates.custom |= {"top_effect_ability": top.name, "top_effect_delta": top.effect.value}
    for name, one in (("top_effect_delta", top), ("max_delta", most), ("min_delta", least)):
        same = "the same edit of other binary tokens" if one.control is not None else nothing
        judge(result, f"aggregates/{name}", one.effect, same, one.control or 0.0, of=len(known), beyond=one.beyond)
    if top.beyond is not None and top.beyond.value is not None and top.control is not None:
        result.metrics |= {"effect/control_delta": top.control, "effect/adjusted_delta": top.beyond.value}
        judge(result, "effect/adjusted_delta", top.beyond, "the same edit of other binary tokens", of=len(known))


def _tables(result: ExperimentResult, lab: Lab, effects: list[dict[str, Any]], conditional: list[dict[str, Any]]) -> None:
    edited_here = result.mode == "interventional"
    how = "put into contexts, against the same contexts without it" if edited_here else OBSERVED
    effects.sort(key=lambda row: -1.0 if row["delta"] is None else abs(row["delta"]), reverse=True)
    for name, rows, about in (
        ("binary_effects", effects, f"Change of the activation with each binary token {how}."),
        ("conditional_effects", conditional, f"The same at each rung of the primary family, 0 for absent: each token {how}."),
    ):
        if not rows:
            continue
        adjust(rows)
        flag_artefacts(lab, rows, "delta", "pre_delta")
        last = ["p_adj", "floor_artefact", "status"]
        columns = [column for column in dict.fromkeys(key for row in rows for key in row) if column not in last]
        result.add_table(name, rows, [*columns, *last], about)
    controlled = any("control_delta" in row for row in effects)
    result.figures.append(
        Figure(
            name="binary_effects",
            table="binary_effects",
            kind="bar",
            x="binary_ability",
            y=["delta", *(["control_delta"] if controlled else [])],
            low="low",
            high="high",
            title=f"Latent {lab.latent} with each binary token ({result.mode})",
            x_label="binary token",
            y_label="change of the activation",
        )
    )
    if conditional:
        result.figures.append(
            Figure(
                name="conditional_effects",
                table="conditional_effects",
                kind="heatmap",
                x="primary_rung",
                series="binary_ability",
                y=["delta"],
                title=f"Change of latent {lab.latent} with each binary token, by rung of the primary family ({result.mode})",
                x_label="rung of the primary family",
                y_label="binary token",
            )
        )
