"""A small domain of contexts, a network for it whose neurons are known, and a project that declares both.

A fighter holds power (a thermometer: 3, 6, 12), speed (one-hot: 1, 2, 5) and perhaps a shield, and has one of three weapons. The file
copies itself into a project as `package.py`, so that a subject is built from it as from any project's own.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mlinterp.subjects.token_sets.constraints import Constraint, of_each, one_rung_per_family
from mlinterp.subjects.token_sets.package import DataPackage
from mlinterp.subjects.token_sets.table import NO_GROUP, ContextTable
from mlinterp.subjects.token_sets.vocabulary import Family, Vocabulary

FAMILIES = (
    Family("power", "POW", rungs=(3, 6, 12), encoding="thermometer"),
    Family("speed", "SPD", rungs=(1, 2, 5), encoding="one_hot"),
    Family("shield", "SHD", "binary"),
)
WEAPONS = {
    "bow": {"class": "ranged", "size": "large"},
    "sling": {"class": "ranged", "size": "small"},
    "axe": {"class": "melee", "size": "large"},
}
SIZES = {"train": 200, "validation": 80, "test": 120}


class Fighters(DataPackage):
    """The domain. `options`: `sizes` (contexts of each split), `grouped` (False: contexts have no group)."""

    name = "fighters"
    group_word = "weapon"

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        given = dict(options or {})
        self.sizes = SIZES | given.pop("sizes", {})
        self.groups = WEAPONS if given.pop("grouped", True) else {}
        assert not given, given
        self.vocabulary = Vocabulary(FAMILIES, special=("<pad>", "<null>"), empty="<null>")

    @property
    def outputs(self) -> tuple[str, ...]:
        return ("weak", "strong", "guarded", "berserk")

    def contexts(self, split: str) -> ContextTable:
        """Return random contexts, the first one empty and without a group; a sixth of the thermometers miss a lower token."""
        rng = np.random.default_rng(["train", "validation", "test"].index(split))
        n = self.sizes[split]
        power, speed, shield = rng.integers(0, 4, n), rng.integers(0, 4, n), rng.random(n) < 0.4
        incidence = np.zeros((n, len(self.vocabulary)), dtype=bool)
        incidence[:, 0:3] = np.arange(1, 4) <= power[:, None]
        incidence[:, 0] &= rng.random(n) > 1 / 6
        incidence[:, 3:6] = np.arange(1, 4) == speed[:, None]
        incidence[:, 6] = shield
        incidence[0] = False
        group = rng.integers(0, len(self.groups), n) if self.groups else np.full(n, NO_GROUP)
        group[0] = NO_GROUP
        return ContextTable(self.vocabulary, self.group_keys, incidence, group.astype(np.int64))

    def targets(self, split: str) -> np.ndarray:
        """Return guarded where a shield stands beside much power, berserk for an axe with much power, else weak or strong by levels."""
        table = self.contexts(split)
        power, speed, shield = table.levels.T
        axe = table.group == self.group_keys.index("axe") if self.groups else np.zeros(len(table), dtype=bool)
        found = np.select([(shield > 0) & (power >= 2), axe & (power >= 2), power + speed >= 3], [2, 3, 1], 0)
        return found.astype(np.int64)

    def concepts(self, table: ContextTable) -> dict[str, np.ndarray]:
        power, speed, shield = table.levels.T.astype(np.float64)
        return {"power": power, "speed": speed, "guarded": ((shield > 0) & (power >= 2)).astype(np.float64)}

    def constraints(self) -> tuple[Constraint, ...]:
        heavy = of_each("no_fast_axe", "An axe is slow.", "soft", lambda at: "an axe at speed_5" if self._fast_axe(at) else None)
        return (one_rung_per_family(), heavy)

    def _fast_axe(self, context: Any) -> bool:
        return context.group == "axe" and "speed_5" in context.tokens


class Planted(nn.Module):
    """Neurons that are known, at `trunk`: each relu of a sum over what a context holds, then one linear map to the outputs.

    0. `power`: the number of power tokens, less one: it sits on its floor up to one token.
    1. `both`: 2 where shield and power_6 stand together, else 0: a pure interaction.
    2. `speed`: 1, 2 or 3 by the rung of speed.
    3. `ranged`: 1 for bow and sling.
    4. `none`: silent whatever comes.
    """

    def __init__(self, package: DataPackage) -> None:
        super().__init__()
        columns = package.encode(package.contexts("test").take(slice(0, 1))).shape[1]
        weight, bias = torch.zeros(5, columns), torch.tensor([-1.0, -2.0, 0.0, 0.0, -1.0])
        at = package.vocabulary.number
        weight[0, package.vocabulary.span("power")] = 1.0
        weight[1, [at("shield"), at("power_6")]] = 2.0
        weight[2, package.vocabulary.span("speed")] = torch.tensor([1.0, 2.0, 3.0])
        for group in ("bow", "sling") if package.groups else ():
            first = len(package.vocabulary) + len(package.vocabulary.special)
            weight[3, first + package.group_keys.index(group)] = 1.0
        self.trunk = nn.Sequential(nn.Linear(columns, 5), nn.ReLU())
        self.head = nn.Linear(5, len(package.outputs))
        with torch.no_grad():
            self.trunk[0].weight.copy_(weight)  # type: ignore[operator]
            self.trunk[0].bias.copy_(bias)  # type: ignore[operator]
            self.head.weight.copy_(torch.arange(20.0).reshape(4, 5) / 10 - 1)
            self.head.bias.zero_()

    def forward(self, bag: torch.Tensor) -> torch.Tensor:
        """Map `[n, columns]` to logits `[n, 4]`."""
        logits: torch.Tensor = self.head(self.trunk(bag))
        return logits


def build(options: Mapping[str, Any], root: Path) -> Fighters:
    """Return the domain, as a project's `package.py:build` does."""
    return Fighters(options)


def network(package: DataPackage) -> Planted:
    """Return the planted network, as a project's factory does."""
    return Planted(package)


LEARNED: dict[str, Any] = {"kind": "token_set", "package": "package.py:build", "network": {"d": 16, "hidden": 32, "layers": 1}}
PLANTED: dict[str, Any] = {
    "kind": "token_set",
    "package": "package.py:build",
    "network": {"factory": "package.py:network"},
    "sites": {"pooled": "trunk"},
}


def make(root: Path, **subjects: Mapping[str, Any]) -> Path:
    """Write a workspace with one project `fighters` of the subjects `learned` and `planted`, and others given, and return its folder."""
    project = root / "projects" / "fighters"
    project.mkdir(parents=True)
    shutil.copy(__file__, project / "package.py")
    declared = {"name": "fighters", "subjects": {"learned": LEARNED, "planted": PLANTED, **subjects}}
    (project / "project.yaml").write_text(json.dumps(declared, indent=2))
    return project
