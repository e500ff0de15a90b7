"""The tables of interactions, which pairs and pairs under a modulator share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mlinterp.experiments.token_sets.pairwise_interactions import InteractionVariables
from mlinterp.result import ExperimentResult, Figure
from mlinterp.token_sets.effect_table import EffectTable, column_means, edited, observed
from mlinterp.token_sets.effects import NOTHING, Effect, mean_effect
from mlinterp.token_sets.interactions import Combination, crossed, observed_value
from mlinterp.token_sets.lab import Lab
from mlinterp.token_sets.slicing import Rows
from mlinterp.token_sets.telling import adjust, flag_artefacts, judge, status

_SHOWN = 20
"""Bars of the figure."""


def names(combination: Combination) -> str:
    """Return a combination as a label."""
    return " × ".join(item.name for item in combination)


def families_of(lab: Lab, tokens: Sequence[str]) -> set[str]:
    """Return the families of some tokens."""
    return {lab.vocabulary.parse(token)[0] for token in tokens}


def cells(rows: Rows, combination: Combination) -> np.ndarray:
    """Return which contexts hold each item, bool `[n, size]`."""
    return np.column_stack([item.held(rows.table) for item in combination])


def interaction_effects(lab: Lab, rows: Rows, wanted: Sequence[Combination], variables: InteractionVariables) -> EffectTable:
    """Return the interaction of each combination, so that it can be measured again."""
    labels = [names(combination) for combination in wanted]
    if variables.mode == "interventional":
        found = crossed(lab, lab.bases(variables.n_contexts, variables.stable_tokens), wanted).interaction()[0].T
        return edited(labels, found, variables.min_n)

    def effects_of(rows: Rows) -> np.ndarray:
        return np.array([observed_value(rows.post, cells(rows, combination), variables.min_n) for combination in wanted])

    return observed(labels, rows, effects_of)


def beside_control(own: np.ndarray, pre: np.ndarray, control: np.ndarray, min_n: int) -> tuple[dict[str, Any], Effect]:
    """Return the cells of one interaction over its bases, beside that of random combinations on the same bases.

    Args:
        own: the interaction on each base, `[n_bases]`; NaN where it could not be made.
        pre: that of the pre-activations, likewise.
        control: the interactions of random combinations, `[n_controls, n_bases]`.
        min_n: bases that a mean needs.
    """
    known = np.isfinite(own)
    n = int(known.sum())
    effect = mean_effect(own[known]) if n >= min_n else NOTHING._replace(n=n)
    row: dict[str, Any] = effect.columns("interaction") | {"status": status(n, min_n), "pre_interaction": None}
    row |= dict.fromkeys(("std_error_population", "control_interaction", "adjusted_interaction", "adjusted_low", "adjusted_high"))
    row["control_p"] = None
    if effect.value is None:
        return row, effect
    row |= {"pre_interaction": float(pre[known].mean()), "std_error_population": float(own[known].std() / np.sqrt(n))}
    means = column_means(control.T) if len(control) else np.zeros(0)
    means = means[np.isfinite(means)]
    if len(means):
        each = column_means(control)
        both = known & np.isfinite(each)
        beyond = mean_effect(own[both] - each[both])
        row |= {"control_interaction": float(each[both].mean()) if both.any() else None, "adjusted_interaction": beyond.value}
        row |= {"adjusted_low": beyond.low, "adjusted_high": beyond.high}
        row["control_p"] = (1 + int((np.abs(means) >= abs(effect.value) - 1e-12).sum())) / (1 + len(means))
    return row, effect


def report(
    lab: Lab,
    result: ExperimentResult,
    name: str,
    rows: list[dict[str, Any]],
    effects: Sequence[Effect],
    effect_column: str,
    top_k: int,
    about: str,
    title: str,
) -> None:
    """Add the table `name` of all combinations, `synergies` and `redundancies`, the `strongest` with a figure, and the headline numbers.

    What is a synergy or redundancy goes by the column `interaction`; what is strongest, and judged, by `effect_column`. `title` is that
    of the figure.
    """
    adjust(rows)
    flag_artefacts(lab, rows, effect_column, "pre_interaction")
    for row in rows:
        row["pair"] = f"{row['token_a']} × {row['token_b']}"
    columns = list(dict.fromkeys(key for row in rows for key in row))
    result.add_table(name, rows, columns, description=about)
    analysed = [row for row in rows if row["interaction"] is not None]
    synergies = sorted((row for row in analysed if row["interaction"] > 0), key=lambda row: -row["interaction"])
    redundancies = sorted((row for row in analysed if row["interaction"] < 0), key=lambda row: row["interaction"])
    result.add_table("synergies", synergies[:top_k], columns, description=f"Interactions above zero, the highest first. {about}")
    result.add_table("redundancies", redundancies[:top_k], columns, description=f"Interactions below zero, the lowest first. {about}")
    custom = result.aggregates.custom
    custom |= {"n_pairs_analyzed": len(analysed), "n_synergies": len(synergies), "n_redundancies": len(redundancies)}
    for key, found in (("synergy", synergies), ("redundancy", redundancies)):
        custom |= {f"max_{key}": found[0]["interaction"] if found else None, f"top_{key}": found[0]["pair"] if found else None}
    _headlines(result, effects)
    _strongest(result, rows, effect_column, title)


def _strongest(result: ExperimentResult, rows: list[dict[str, Any]], column: str, title: str) -> None:
    """Add the largest interactions of the activation, of either sign, as a table and a figure."""
    top = sorted((row for row in rows if row[column]), key=lambda row: -abs(row[column]))[:_SHOWN]
    about = f"The {_SHOWN} largest interactions of the activation, of either sign."
    result.add_table("strongest", top, ["pair", column, "low", "high"], description=about)
    result.figures.append(
        Figure(
            name="strongest",
            table="strongest",
            kind="bar",
            x="pair",
            y=[column],
            low="low",
            high="high",
            title=f"{title} ({result.mode})",
            y_label="interaction of the activation",
        )
    )


def _headlines(result: ExperimentResult, effects: Sequence[Effect]) -> None:
    """Fill in the largest and the smallest interaction, each judged as the one chosen from all."""
    known = sorted((effect for effect in effects if effect.value is not None), key=lambda effect: effect.value or 0.0)
    aggregates = result.aggregates
    aggregates.n_conditions = len(known)
    if not known:
        return
    values = [effect.value for effect in known if effect.value is not None]
    aggregates.mean_delta, aggregates.median_delta = float(np.mean(values)), float(np.median(values))
    aggregates.std_delta = float(np.std(values, ddof=1)) if len(values) > 1 else None
    aggregates.min_delta, aggregates.max_delta = values[0], values[-1]
    judge(result, "aggregates/max_delta", known[-1], "no interaction", of=len(known))
    judge(result, "aggregates/min_delta", known[0], "no interaction", of=len(known))
