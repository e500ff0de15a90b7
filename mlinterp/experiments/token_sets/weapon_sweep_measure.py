"""The arithmetic of `weapon_sweep`, in both modes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mlinterp.errors import ExperimentError
from mlinterp.experiments.token_sets.grouped_measure import MEAN_OF_ALL, add_parts, class_of, result_of
from mlinterp.experiments.token_sets.weapon_sweep import WeaponSweepVariables
from mlinterp.result import ExperimentResult
from mlinterp.token_sets.effect_table import EffectTable
from mlinterp.token_sets.groups import ObservedGroups, Part, SwappedGroups, by_attributes, compare_groups, each_group, warn_of_gating
from mlinterp.token_sets.lab import Lab
from mlinterp.token_sets.telling import judge

FOLLOWUP = "kit_sweep"
"""The type that says whether a dominant group's attributes explain it."""


def measure(lab: Lab, variables: WeaponSweepVariables) -> ExperimentResult:
    """Return the result: `weapon_stats`, `class_stats`, a picture of each, and which group stands out."""
    lab, groups = _opened(lab, variables)
    partition, word = each_group(lab.package), lab.package.group_word
    parts = groups.parts(partition, variables.min_examples)
    if not parts:
        raise ExperimentError(f"no {word} has {variables.min_examples} contexts among {len(lab.rows)} (variables.min_examples)")
    if (few := len(lab.groups) - len(parts)) > 0:
        lab.warn(f"{few} of {len(lab.groups)} {word}s have fewer than {variables.min_examples} contexts and are left out")
    kind = class_of(lab)
    classes = None if kind is None else lab.package.attribute_of(kind)
    rows = []
    for part in parts:
        name = {"weapon_name": partition.labels[part.number][0], "weapon_class": None if classes is None else classes[part.number]}
        rows.append({**name, **part.columns(), "weapon_id": part.number})
    result = result_of(lab, variables.mode, groups.base)
    add_parts(result, lab, "weapon_stats", rows, word, variables.top_k_weapons)
    if kind is not None:
        _classes(result, lab, groups, kind, variables.min_examples)
    names = [row["weapon_name"] for row in rows]
    _sum_up(result, parts, names)
    _tell_dominance(result, lab, parts, names)
    warn_of_gating(lab)
    return result


def effect_table(lab: Lab, variables: WeaponSweepVariables) -> EffectTable:
    """Return how far each group lies from the mean of all, so that it can be measured again."""
    lab, groups = _opened(lab, variables)
    return groups.effect_table([each_group(lab.package)], variables.min_examples)


def _opened(lab: Lab, variables: WeaponSweepVariables) -> tuple[Lab, ObservedGroups | SwappedGroups]:
    """Return the lab of the contexts that are meant, and their groups."""
    rows = lab.rows
    if variables.condition_family is not None:
        lab.require_family(variables.condition_family, rows)
        rows = rows.take(rows.table.rungs(variables.condition_family) > 0)
    lab = replace(lab, rows=rows)
    if variables.mode == "observational":
        lab = replace(lab, rows=lab.holding(variables.stable_tokens))
    return lab, compare_groups(lab, variables.mode, variables.n_contexts, variables.stable_tokens)


def _classes(result: ExperimentResult, lab: Lab, groups: ObservedGroups | SwappedGroups, kind: str, min_examples: int) -> None:
    """Add the table of classes, and the class that lies highest."""
    partition = by_attributes(lab.package, [kind])
    parts = groups.parts(partition, min_examples)
    rows = [{"weapon_class": partition.labels[part.number][0], **part.columns()} for part in parts]
    add_parts(result, lab, "class_stats", rows, kind, len(rows))
    if parts:
        result.aggregates.custom["top_class"] = rows[0]["weapon_class"]


def _sum_up(result: ExperimentResult, parts: Sequence[Part], names: Sequence[str]) -> None:
    """Fill in which groups lie highest and lowest, of all that were measured."""
    first, last = parts[0], parts[-1]
    aggregates = result.aggregates
    aggregates.max_delta, aggregates.min_delta, aggregates.n_conditions = first.delta.value, last.delta.value, len(parts)
    aggregates.custom |= {
        "top_weapon": names[0],
        "top_weapon_mean": first.activation.value,
        "top_weapon_delta": first.delta.value,
        "bottom_weapon": names[-1],
        "weapon_range": (first.delta.value or 0.0) - (last.delta.value or 0.0),
    }
    for name, part in (("top_weapon_delta", first), ("max_delta", first), ("min_delta", last)):
        judge(result, f"aggregates/{name}", part.delta, MEAN_OF_ALL[result.mode], of=len(parts))


def _tell_dominance(result: ExperimentResult, lab: Lab, parts: Sequence[Part], names: Sequence[str]) -> None:
    """Say where one group lies more than twice as far from the mean as the next one does.

    It is the one group farthest from the mean, above or below, and the next one is the next from its end of the ranking. Exactly twice
    is no dominance; where the next one lies at the mean itself, the ratio is undefined.
    """
    deltas = [part.delta.value or 0.0 for part in parts]
    above = abs(deltas[0]) > abs(deltas[-1])
    if len(deltas) < 2 or bool(np.isclose(abs(deltas[0]), abs(deltas[-1]), rtol=1e-9, atol=1e-12)):
        return
    first, second = (0, 1) if above else (len(deltas) - 1, len(deltas) - 2)
    size, other = abs(deltas[first]), abs(deltas[second])
    if size <= 2 * other * (1 + 1e-9):
        return
    ratio, word = size / other if other > 1e-9 * size else None, lab.package.group_word
    custom = result.aggregates.custom
    custom |= {"dominant_weapon_detected": True, "dominant_weapon": names[first]}
    said = f"{names[first]} lies off the mean, where second {word} ({names[second]}) lies."
    if ratio is not None:
        custom["dominant_weapon_ratio"] = ratio
        said = f"{names[first]} has {ratio:.3g}x the delta of second {word} ({names[second]})."
    if lab.package.attributes:
        custom["recommended_followup"] = FOLLOWUP
        said += f" Run {FOLLOWUP} to see whether an attribute explains it."
    lab.warn(f"DOMINANT {word.upper()}: {said}")
