"""Contexts, many at a time: which tokens each holds, as one boolean matrix, and its group.

Everything that is done to contexts (edits, constraints, encoding, finding equal ones) is done to all rows at once: a sweep asks for
a hundred thousand of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from mlinterp.errors import unknown
from mlinterp.subjects.token_sets.vocabulary import Vocabulary

NO_GROUP = -1


class TokenContext(NamedTuple):
    """One context: a set of tokens, and the key of its group (None where it has none)."""

    tokens: frozenset[str]
    group: str | None = None


@dataclass(frozen=True)
class ContextTable:
    """Contexts as a matrix.

    Attributes:
        vocabulary: what the columns are.
        groups: keys of the groups, in the order of their numbers.
        incidence: whether context i holds token t, bool `[n, n_tokens]`.
        group: number of each context's group, int64 `[n]`; `NO_GROUP` where it has none.
    """

    vocabulary: Vocabulary
    groups: tuple[str, ...]
    incidence: np.ndarray
    group: np.ndarray

    def __post_init__(self) -> None:
        assert self.incidence.shape == (len(self.group), len(self.vocabulary)), self.incidence.shape
        assert self.incidence.dtype == bool

    @classmethod
    def of(cls, vocabulary: Vocabulary, groups: Sequence[str], contexts: Iterable[tuple[Iterable[str], str | None]]) -> ContextTable:
        """Build a table from sets of tokens and group keys. Special tokens are left out; raises SpecError for what is unknown."""
        listed = [({token for token in tokens if token not in vocabulary.special}, group) for tokens, group in contexts]
        incidence = np.zeros((len(listed), len(vocabulary)), dtype=bool)
        numbers = {name: number for number, name in enumerate(groups)}
        for row, (tokens, _) in enumerate(listed):
            incidence[row, vocabulary.numbers(sorted(tokens))] = True
        strange = next((name for _, name in listed if name is not None and name not in numbers), None)
        if strange is not None:
            raise unknown("group", strange, numbers, what="group")
        group = np.array([NO_GROUP if name is None else numbers[name] for _, name in listed], dtype=np.int64)
        return cls(vocabulary, tuple(groups), incidence, group)

    def __len__(self) -> int:
        return len(self.group)

    def take(self, rows: np.ndarray | slice) -> ContextTable:
        """Return the chosen contexts (numbers, a slice or a mask), in that order."""
        taken = ContextTable(self.vocabulary, self.groups, self.incidence[rows], self.group[rows])
        if "levels" in self.__dict__:  # known already: they need not be found again, which takes longer than everything else
            taken.__dict__["levels"] = self.levels[rows]
        return taken

    def with_incidence(self, incidence: np.ndarray) -> ContextTable:
        """Return contexts of the same groups with other tokens."""
        return ContextTable(self.vocabulary, self.groups, incidence, self.group)

    @staticmethod
    def stack(tables: Sequence[ContextTable]) -> ContextTable:
        """Return the contexts of several tables, one below the other."""
        first = tables[0]
        incidence = np.concatenate([table.incidence for table in tables])
        return ContextTable(first.vocabulary, first.groups, incidence, np.concatenate([table.group for table in tables]))

    @cached_property
    def levels(self) -> np.ndarray:
        """The highest rung of each family in each context, counted from 1; 0 where the family is absent. int64 `[n, n_families]`.

        A present binary family has level 1.
        """
        starts = self.vocabulary.starts
        height = np.arange(len(self.vocabulary)) - starts[self.vocabulary.family_of] + 1
        if not len(self):
            return np.zeros((0, len(self.vocabulary.families)), dtype=np.int64)
        return np.maximum.reduceat(self.incidence * height, starts[:-1], axis=1)

    def rungs(self, family: str) -> np.ndarray:
        """Return the rung of one family in each context, int64 `[n]`: 0 where it is absent."""
        number = self.vocabulary.family_number(family)
        return np.array([0, *self.vocabulary.families[number].levels])[self.levels[:, number]]

    @cached_property
    def words(self) -> np.ndarray:
        """Each context as bits, uint64 `[n, n_words]`; the last word is its group. Equal rows are equal contexts."""
        bits = np.packbits(self.incidence, axis=1)
        padded = np.zeros((len(self), -(-bits.shape[1] // 8) * 8), dtype=np.uint8)
        padded[:, : bits.shape[1]] = bits
        return np.column_stack([padded.view(np.uint64), self.group.astype(np.uint64)])

    def context(self, row: int) -> TokenContext:
        """Return one context as a set."""
        tokens = frozenset(self.vocabulary.tokens[number] for number in np.flatnonzero(self.incidence[row]))
        return TokenContext(tokens, None if self.group[row] == NO_GROUP else self.groups[self.group[row]])

    def shown(self, row: int) -> str:
        """Return one context as people read it: each family at its rung, then the group."""
        parts = []
        for family, level in zip(self.vocabulary.families, self.levels[row], strict=True):
            if level:
                parts.append(family.name if family.is_binary else f"{family.name}_{family.rungs[level - 1]}")
        group = "" if self.group[row] == NO_GROUP else f" @ {self.groups[self.group[row]]}"
        return f"{' + '.join(parts) or '(empty)'}{group}"
