"""The planted truth of the hand-built network in closed form: what each trait is on any contexts, in float64 and without a network.

    trait(context) = max(0, Σ rungs[family][its rung] + Σ present + specials[special] + weapons[weapon] + Σ together - offset)

The exact effect of an edit on a context is the difference of two such values, `mlinterp.subjects.token_sets.edits` making the contexts; its
population mean is the mean of that over `package.contexts(split)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mlinterp.subjects.token_sets.package import DataPackage
from mlinterp.subjects.token_sets.table import ContextTable


def evidence(package: DataPackage, table: ContextTable, trait: str) -> np.ndarray:
    """Return a trait before its ReLU on each context, float64 `[n]`. Raises KeyError for a trait that is not planted."""
    told = _planted(package)["traits"][trait]
    vocabulary = package.vocabulary
    found = np.full(len(table), -told["offset"], dtype=np.float64)
    for family, values in told.get("rungs", {}).items():
        found += np.array([0.0, *values])[table.levels[:, vocabulary.family_number(family)]]
    for token, value in told.get("present", {}).items():
        found += value * table.incidence[:, vocabulary.number(token)]
    held = [{"weapon": name, **package.groups[name]} for name in package.group_keys]
    by_weapon = [told.get("specials", {}).get(kit["special"], 0.0) + told.get("weapons", {}).get(kit["weapon"], 0.0) for kit in held]
    found += np.array([*by_weapon, 0.0])[table.group]  # the last one: no weapon
    for both in told.get("together", []):
        reached = table.rungs(both["family"]) >= both["rung"]
        found += both["adds"] * (reached & table.incidence[:, vocabulary.number(both["ability"])])
    return found


def trait(package: DataPackage, table: ContextTable, name: str) -> np.ndarray:
    """Return a trait on each context, float64 `[n]`."""
    return np.maximum(evidence(package, table, name), 0.0)


def effect(
    package: DataPackage, table: ContextTable, name: str, edit: Callable[[ContextTable], ContextTable], before: Callable[..., ContextTable] | None = None
) -> np.ndarray:
    """Return how much an edit changes a trait on each context, float64 `[n]`, against the context itself or another edit of it."""
    base = table if before is None else before(table)
    return trait(package, edit(table), name) - trait(package, base, name)


def _planted(package: DataPackage) -> Mapping[str, Any]:
    planted: Mapping[str, Any] = package.planted  # type: ignore[attr-defined]
    return planted
