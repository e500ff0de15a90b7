"""The data package of gear builds: 26 families of abilities, 40 weapons with their kits, and builds drawn from a documented model.

Names are those of Splatoon 3; weapons' kits, builds and every number are ours (`weapons.yaml`, `planted.yaml`, `builds.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mlinterp.io.specfile import read_document
from mlinterp.subjects.token_sets.constraints import Constraint, no_group_gating_if_relu_floor, one_rung_per_family
from mlinterp.subjects.token_sets.package import DataPackage, Split
from mlinterp.subjects.token_sets.table import NO_GROUP, ContextTable, TokenContext
from mlinterp.subjects.token_sets.vocabulary import Family, Vocabulary

from .builds import GeneratingModel

RUNGS = (3, 6, 12, 15, 21, 29, 38, 51, 57)
"""Ability points at which a family's next token appears in a build."""

STACKABLE = {
    "ink_saver_main": "ISM",
    "ink_saver_sub": "ISS",
    "ink_recovery_up": "IRU",
    "run_speed_up": "RSU",
    "swim_speed_up": "SSU",
    "special_charge_up": "SCU",
    "special_saver": "SS",
    "special_power_up": "SPU",
    "quick_respawn": "QR",
    "quick_super_jump": "QSJ",
    "sub_power_up": "BPU",
    "ink_resistance_up": "RES",
    "sub_resistance_up": "SRU",
    "intensify_action": "IA",
}
SLOTS = {
    "head": {"comeback": "CB", "last_ditch_effort": "LDE", "opening_gambit": "OG", "tenacity": "T"},
    "clothes": {"ability_doubler": "AD", "haunt": "H", "ninja_squid": "NS", "respawn_punisher": "RP", "thermal_ink": "TI"},
    "shoes": {"object_shredder": "OS", "stealth_jump": "SJ", "drop_roller": "DR"},
}

MAIN_ONLY = 10
"""What a main-only ability is worth in ability points, by which tables name it as a rung."""


class Builds(DataPackage):
    """The domain.

    Attributes:
        planted: `planted.yaml`, the truth that a run is scored against.
        model: how builds come about, and what a context says about it.
    """

    name = "splatoon"
    group_word = "weapon"

    def __init__(self, root: Path) -> None:
        families = [Family(name, code, rungs=RUNGS) for name, code in STACKABLE.items()]
        families += [Family(name, code, "binary", present=10) for slot in SLOTS.values() for name, code in slot.items()]
        self.vocabulary = Vocabulary(tuple(families), special=("<NULL>",), empty="<NULL>")
        self.groups = read_document(root / "weapons.yaml").data
        self.planted = read_document(root / "planted.yaml").data
        self.model = GeneratingModel(self.planted["builds"], self.vocabulary, [list(slot) for slot in SLOTS.values()], self.groups)
        self._drawn: dict[str, tuple[ContextTable, np.ndarray]] = {}

    @property
    def outputs(self) -> tuple[str, ...]:
        """The tokens, one of which is hidden, and the empty token, where none is."""
        return (*self.vocabulary.tokens, "<NULL>")

    def contexts(self, split: Split) -> ContextTable:
        return self._split(split)[0]

    def targets(self, split: Split) -> np.ndarray:
        return self._split(split)[1]

    def concepts(self, table: ContextTable) -> Mapping[str, np.ndarray]:
        """Return the exact probability of each archetype given a context; NaN where no build could have left the context."""
        return dict(zip(self.model.archetypes, self.model.posterior(table).T, strict=True))

    def constraints(self) -> tuple[Constraint, ...]:
        return (one_rung_per_family(), self._valid_gear(), self._budget(), self._in_distribution(), no_group_gating_if_relu_floor())

    def points(self, table: ContextTable) -> np.ndarray:
        """Return what each context spends, in ability points: int64 `[n]`."""
        ladder = np.array([0, *RUNGS])
        main_only = self.planted["builds"]["main_only"] * table.levels[:, len(STACKABLE) :]
        return np.asarray(ladder[table.levels[:, : len(STACKABLE)]].sum(axis=1) + main_only.sum(axis=1))

    def _split(self, split: str) -> tuple[ContextTable, np.ndarray]:
        if split not in self._drawn:
            self._drawn[split] = self.model.draw(split)
        return self._drawn[split]

    def _valid_gear(self) -> Constraint:
        slots = [self.vocabulary.numbers(slot) for slot in SLOTS.values()]

        def broken(table: ContextTable) -> np.ndarray:
            return np.any([table.incidence[:, numbers].sum(axis=1) > 1 for numbers in slots], axis=0)

        def explain(context: TokenContext) -> str:
            crowded = {name: sorted(context.tokens & slot.keys()) for name, slot in SLOTS.items()}
            return "; ".join(f"{name} holds {' and '.join(held)}" for name, held in crowded.items() if len(held) > 1)

        return Constraint("valid_gear_combinations", "A slot holds one main-only ability at most.", "hard", broken, explain)

    def _budget(self) -> Constraint:
        budget = self.planted["builds"]["budget"]

        def explain(context: TokenContext) -> str:
            table = ContextTable.of(self.vocabulary, self.group_keys, [context])
            return f"{self.points(table)[0]} ability points, above {budget}"

        about = f"A build spends {budget} ability points at most: the rungs of its families, and 10 for a main-only ability."
        return Constraint("max_ap_budget", about, "soft", lambda table: self.points(table) > budget, explain)

    @cached_property
    def _met(self) -> np.ndarray:
        """Whether a token occurs with a weapon's class in the training split, bool `[n_weapons, n_tokens]`."""
        table, classes = self.contexts("train"), self.attribute_of("class")
        met = np.zeros((len(self.groups), len(self.vocabulary)), dtype=bool)
        for name in set(classes):
            met[classes == name] = table.incidence[(classes == name)[table.group]].any(axis=0)
        return met

    def _in_distribution(self) -> Constraint:
        def strange(table: ContextTable) -> np.ndarray:
            met = np.vstack([self._met, self._met.any(axis=0)])[table.group]  # the last row: no weapon
            return np.asarray(table.incidence & ~met)

        def explain(context: TokenContext) -> str:
            table = ContextTable.of(self.vocabulary, self.group_keys, [context])
            names = [self.vocabulary.tokens[number] for number in np.flatnonzero(strange(table)[0])]
            weapon = "any weapon" if table.group[0] == NO_GROUP else f"a {self.groups[str(context.group)]['class']}"
            return f"{', '.join(names)} never seen with {weapon}"

        about = "Each token has been seen with the weapon's class in the training split."
        return Constraint("avoid_ood_token_combinations", about, "soft", lambda table: strange(table).any(axis=1), explain)


def build(options: Mapping[str, Any], root: Path) -> Builds:
    """Return the package. It has no options."""
    if options:
        raise ValueError(f"options {sorted(options)}: this package has none")
    return Builds(root)
