"""The arithmetic of `kit_sweep`, in both modes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from mlinterp.errors import ExperimentError
from mlinterp.experiments.token_sets.grouped_measure import MEAN_OF_ALL, add_parts, result_of
from mlinterp.experiments.token_sets.kit_sweep import KitSweepVariables
from mlinterp.result import ExperimentResult
from mlinterp.token_sets.effect_table import EffectTable
from mlinterp.token_sets.groups import ObservedGroups, Part, Partition, SwappedGroups, by_attributes, compare_groups, warn_of_gating
from mlinterp.token_sets.lab import Lab
from mlinterp.token_sets.telling import judge

USUAL = ("sub", "special")
"""The attributes that are compared unless others are named, where groups have them."""


def measure(lab: Lab, variables: KitSweepVariables) -> ExperimentResult:
    """Return the result: a table and a picture for each attribute, one of their combinations, and the value that stands out of each."""
    names = _attributes(lab, variables)
    lab, groups = _opened(lab, variables)
    measured = {name: by_attributes(lab.package, [name]) for name in names}
    parts = {name: groups.parts(partition, variables.min_examples) for name, partition in measured.items()}
    together = by_attributes(lab.package, names) if variables.analyze_combinations and len(names) > 1 else None
    combined = groups.parts(together, variables.min_examples) if together is not None else []
    if not any(parts.values()):
        raise ExperimentError(f"no value of {', '.join(names)} has {variables.min_examples} contexts (variables.min_examples)")
    result = result_of(lab, variables.mode, groups.base)
    for name, partition in measured.items():
        _add(result, lab, [name], partition, parts[name], variables.top_k)
        _tell_top(result, name, partition, parts[name])
        _warn_of_singles(lab, name, parts[name])
    if together is not None:
        _add(result, lab, names, together, combined, variables.top_k)
    _sum_up(result, [part for found in parts.values() for part in found])
    warn_of_gating(lab)
    return result


def effect_table(lab: Lab, variables: KitSweepVariables) -> EffectTable:
    """Return how far each value of each attribute lies from the mean of all, so that it can be measured again."""
    names = _attributes(lab, variables)
    lab, groups = _opened(lab, variables)
    partitions = []
    for name in names:
        found = by_attributes(lab.package, [name])
        partitions.append(replace(found, labels=tuple((f"{name}={value}",) for (value,) in found.labels)))
    return groups.effect_table(partitions, variables.min_examples)


def _attributes(lab: Lab, variables: KitSweepVariables) -> list[str]:
    """Return which attributes are compared. Raises ExperimentError where the groups have none."""
    if variables.attributes is not None:
        return list(dict.fromkeys(variables.attributes))
    there = lab.package.attributes
    if not there:
        raise ExperimentError(f"the {lab.package.group_word}s of '{lab.package.name}' have no attributes to compare")
    return [name for name in USUAL if name in there] or list(there)


def _opened(lab: Lab, variables: KitSweepVariables) -> tuple[Lab, ObservedGroups | SwappedGroups]:
    if variables.mode == "observational":
        lab = replace(lab, rows=lab.holding(variables.stable_tokens))
    return lab, compare_groups(lab, variables.mode, variables.n_contexts, variables.stable_tokens)


def _add(result: ExperimentResult, lab: Lab, names: Sequence[str], partition: Partition, parts: Sequence[Part], shown: int) -> None:
    """Add the table of one attribute, or of the combinations of several."""
    single = len(names) == 1
    rows = []
    for part in parts:
        values = dict(zip(names, partition.labels[part.number], strict=True))
        rows.append(({} if single else {"combination": " + ".join(partition.labels[part.number])}) | values | part.columns())
    add_parts(result, lab, f"{plain(names[0])}_stats" if single else "combo_stats", rows, " and ".join(names), shown)


def plain(name: str) -> str:
    """Return an attribute's name as tables are named.

    >>> plain("Sub weapon")
    'sub_weapon'
    """
    return re.sub(r"[^a-z0-9_]+", "_", name.lower())[:50]


def _tell_top(result: ExperimentResult, name: str, partition: Partition, parts: Sequence[Part]) -> None:
    """Record the value of an attribute with the highest mean, and judge how far that lies from the mean of all."""
    if not parts:
        return
    top, key = parts[0], f"top_{plain(name)}"
    custom = {key: partition.labels[top.number][0], f"{key}_mean": top.activation.value, f"{key}_delta": top.delta.value}
    result.aggregates.custom |= custom
    judge(result, f"aggregates/{key}_delta", top.delta, MEAN_OF_ALL[result.mode], of=len(parts))


def _warn_of_singles(lab: Lab, name: str, parts: Sequence[Part]) -> None:
    """Warn of values that one group alone has: they and the group are the same thing."""
    if alone := sum(part.n_groups == 1 for part in parts):
        word = lab.package.group_word
        lab.warn(f"{alone} of {len(parts)} values of {name} belong to a single {word}: they cannot be told from that {word}")


def _sum_up(result: ExperimentResult, parts: Sequence[Part]) -> None:
    """Fill in the largest and smallest distance from the mean, of all values of all attributes."""
    aggregates, known = result.aggregates, [part.delta for part in parts if part.delta.value is not None]
    aggregates.n_conditions = len(parts)
    if not known:
        return
    ranked = sorted(known, key=lambda effect: effect.value or 0.0)
    aggregates.max_delta, aggregates.min_delta = ranked[-1].value, ranked[0].value
    judge(result, "aggregates/max_delta", ranked[-1], MEAN_OF_ALL[result.mode], of=len(known))
