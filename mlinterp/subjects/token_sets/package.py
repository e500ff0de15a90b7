"""What a domain tells mlinterp about itself: a data package, written by the project in Python.

    class Builds(DataPackage):
        name = "builds"

        def __init__(self):
            self.vocabulary = Vocabulary((Family("swim_speed_up", "SSU", rungs=(3, 6, 12)), Family("ninja_squid", "NS", "binary")))
            self.groups = {"Splattershot": {"class": "shooter", "sub": "Suction Bomb"}}

        def contexts(self, split):
            return ContextTable.of(self.vocabulary, self.group_keys, [({"swim_speed_up_3"}, "Splattershot")])

    def build(options, root):
        return Builds()

Contexts on which a latent is silent belong to them: whatever is measured on the others alone is conditional on activity.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from mlinterp.errors import SpecError, nearest, unknown
from mlinterp.io.pyfile import call, load_function
from mlinterp.subjects.token_sets.config import TokenSetConfig
from mlinterp.subjects.token_sets.constraints import Constraint, one_rung_per_family
from mlinterp.subjects.token_sets.table import ContextTable
from mlinterp.subjects.token_sets.vocabulary import Vocabulary

Split = Literal["train", "validation", "test"]


class DataPackage(ABC):
    """A domain: its tokens, groups, contexts and constraints.

    Attributes:
        name: the domain's.
        vocabulary: its families.
        groups: key of each group to its attributes by name, such as `{"class": "shooter"}`; empty where contexts have no group.
        group_word: what a group is called, such as weapon.
        outputs: names of what the model predicts, in the order of its logits; the tokens unless the package says otherwise.
    """

    name: str
    vocabulary: Vocabulary
    groups: Mapping[str, Mapping[str, str]] = {}
    group_word: str = "group"

    @abstractmethod
    def contexts(self, split: Split) -> ContextTable:
        """Return the contexts of a split, always the same ones in the same order."""

    def targets(self, split: Split) -> np.ndarray:
        """Return what the model should predict for each context of a split, as numbers of `outputs`: int64 `[n]`."""
        raise SpecError(f"data package '{self.name}' has no targets to train on", field="subject")

    def concepts(self, table: ContextTable) -> Mapping[str, np.ndarray]:
        """Return what is known to be true of each context, by name: float64 `[n]` each, NaN where it is undefined. A latent can be looked
        up by the concept that it stands for, and a run scored against it.
        """
        return {}

    @property
    def outputs(self) -> Sequence[str]:
        """Names of what the model predicts."""
        return self.vocabulary.tokens

    def constraints(self) -> Sequence[Constraint]:
        """Return the domain's constraints."""
        return (one_rung_per_family(),)

    @cached_property
    def group_keys(self) -> tuple[str, ...]:
        """Keys of the groups, in the order of their numbers."""
        return tuple(self.groups)

    @cached_property
    def attributes(self) -> tuple[str, ...]:
        """Names of the groups' attributes."""
        return tuple(dict.fromkeys(name for held in self.groups.values() for name in held))

    def group_number(self, group: int | str, field: str) -> int:
        """Return a group's number, given that or its key. Raises SpecError with the nearest key."""
        if isinstance(group, str):
            if group not in self.groups:
                raise unknown(field, group, self.group_keys, what=self.group_word)
            return self.group_keys.index(group)
        if not 0 <= group < len(self.groups):
            raise SpecError(
                f"there is no {self.group_word} number {group}", field=field, allowed=f"0 to {len(self.groups) - 1}, or its name"
            )
        return group

    def require_attribute(self, name: str, field: str) -> str:
        """Return an attribute's name. Raises SpecError with the nearest one."""
        if name not in self.attributes:
            raise unknown(field, name, self.attributes, what=f"attribute of a {self.group_word}")
        return name

    def attribute_of(self, name: str) -> np.ndarray:
        """Return the value of an attribute for each group, object `[n_groups]`; None where a group does not have it."""
        return np.array([held.get(name) for held in self.groups.values()], dtype=object)

    def constraint(self, constraint_id: str, field: str = "constraints") -> Constraint:
        """Return a constraint by its id. Raises SpecError with the nearest id."""
        for found in self.constraints():
            if found.id == constraint_id:
                return found
        ids = [found.id for found in self.constraints()]
        raise SpecError(
            f"unknown constraint '{constraint_id}'", field=field, allowed=f"allowed: {', '.join(ids)}", nearest=nearest(constraint_id, ids)
        )

    def encode(self, table: ContextTable) -> np.ndarray:
        """Return contexts as a model reads them: float32 `[n, n_tokens + n_special + n_groups]`, 1 for what a context holds.

        Columns: the vocabulary's tokens, its special tokens, the groups. A context without a token holds the empty one.
        """
        vocabulary = self.vocabulary
        n_tokens, n_special = len(vocabulary), len(vocabulary.special)
        encoded = np.zeros((len(table), n_tokens + n_special + len(self.groups)), dtype=np.float32)
        encoded[:, :n_tokens] = table.incidence
        if vocabulary.empty is not None:
            encoded[:, n_tokens + vocabulary.special.index(vocabulary.empty)] = ~table.incidence.any(axis=1)
        grouped = np.flatnonzero(table.group >= 0)
        encoded[grouped, n_tokens + n_special + table.group[grouped]] = 1.0
        return encoded


def load_package(name: str, config: TokenSetConfig, root: Path) -> DataPackage:
    """Return the data package that a project declares for a subject; its file lies below `root`.

    Raises UnsafeError for a file outside `root`, SpecError for a function that is not there, fails or returns something else.
    """
    field = f"subjects.{name}.package"
    package = call(load_function(root, config.package, field), config.package, field, dict(config.options), root)
    if not isinstance(package, DataPackage):
        problem = f"{config.package} returned a {type(package).__name__}"
        raise SpecError(problem, field=field, allowed="expected a mlinterp.subjects.token_sets.package.DataPackage")
    return package
