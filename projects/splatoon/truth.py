"""The planted truth of the hand-built network in closed form: what each trait is on any contexts, in float64 and without a network.

    trait(context) = max(0, Σ rungs[family][its rung] + Σ present + specials[special] + weapons[weapon] + Σ together - offset)

The exact effect of an edit on a context is the difference of two such values, `mlinterp.subjects.token_sets.edits` making the contexts; its
population mean is the mean of that over `package.contexts(split)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlinterp.project import find_project
from mlinterp.subjects.token_sets import edits
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


def effect(package: DataPackage, name: str, terms: Sequence[tuple[int, ContextTable]]) -> np.ndarray:
    """Return a signed sum of a trait over edits of the same contexts, float64 `[n]`; those that break a hard constraint are left out.

    `[(1, edited), (-1, contexts)]` is the effect of an edit, four terms an interaction.
    """
    hard = [constraint for constraint in package.constraints() if constraint.enforcement == "hard"]
    allowed = ~np.any([constraint.check(table) for constraint in hard for _, table in terms], axis=0)
    return np.sum([sign * trait(package, table, name)[allowed] for sign, table in terms], axis=0)


def sweep(package: DataPackage, name: str, family: str, contexts: ContextTable) -> list[tuple[int, np.ndarray]]:
    """Return the effect of setting a family to each of its rungs, against the same contexts without it: (rung, `[n]`)."""
    start = edits.strip_family(contexts, family)
    levels = package.vocabulary.family(family).levels
    return [(rung, effect(package, name, [(1, edits.set_rung(start, family, rung)), (-1, start)])) for rung in levels]


def interaction(package: DataPackage, name: str, one: str, other: str, contexts: ContextTable) -> np.ndarray:
    """Return f(both) - f(one) - f(other) + f(neither) of two tokens, whose families are stripped first: float64 `[n]`."""
    start = contexts
    for token in (one, other):
        start = edits.strip_family(start, package.vocabulary.parse(token)[0])
    first, second = edits.add_token(start, one), edits.add_token(start, other)
    return effect(package, name, [(1, edits.add_token(first, other)), (-1, first), (-1, second), (1, start)])


def main() -> None:
    """Print the exact effects that the study asks for, over every context of the test split."""
    package = find_project(Path(__file__)).load_subject("planted").package  # type: ignore[attr-defined]
    contexts = package.contexts("test")
    for family in ("special_charge_up", "special_power_up", "comeback"):
        for rung, values in sweep(package, "special_spam", family, contexts):
            print(f"special_spam  {family} {rung:<3} {values.mean():+.6f}  in {len(values)} contexts")
    for rung in (6, 12, 29):
        values = interaction(package, "special_spam", f"special_charge_up_{rung}", "comeback", contexts)
        print(f"special_spam  special_charge_up_{rung} with comeback, beyond their sum  {values.mean():+.6f}  in {len(values)} contexts")
    everywhere = [trait(package, edits.swap_group(contexts, weapon), "special_spam") for weapon in package.group_keys]
    for weapon, values in zip(package.group_keys, everywhere, strict=True):
        if values.mean() > np.mean(everywhere):
            print(f"special_spam  in {weapon}, against the mean over all weapons  {values.mean() - np.mean(everywhere):+.6f}")


def _planted(package: DataPackage) -> Mapping[str, Any]:
    planted: Mapping[str, Any] = package.planted  # type: ignore[attr-defined]
    return planted


if __name__ == "__main__":
    main()
