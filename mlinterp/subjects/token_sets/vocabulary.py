"""Families of tokens and their rungs: what a context can be made of.

A family is ordered (its tokens `NAME_RUNG` stand on a ladder of rungs) or binary (its one token `NAME` is there or is not). An ordered
family is encoded one-hot, with the token of one rung, or as a thermometer, with the tokens of every rung up to it. The rung of a
context is in both the highest one that is present.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np

from mlinterp.errors import SpecError, nearest, unknown


@dataclass(frozen=True)
class Family:
    """A family of tokens.

    Attributes:
        name: as tokens begin.
        short_code: a few letters for labels; the name in capitals unless given.
        kind: `ordered` or `binary`.
        rungs: the ladder of an ordered family, ascending; empty for a binary one.
        encoding: how a rung is written as tokens; of no consequence for a binary family.
        present: the rung by which tables name a binary family that is there.
    """

    name: str
    short_code: str = ""
    kind: Literal["ordered", "binary"] = "ordered"
    rungs: tuple[int, ...] = ()
    encoding: Literal["one_hot", "thermometer"] = "thermometer"
    present: int = 1

    def __post_init__(self) -> None:
        if (self.kind == "ordered") != bool(self.rungs) or list(self.rungs) != sorted(set(self.rungs)) or min(self.rungs, default=1) < 1:
            raise ValueError(f"family '{self.name}': an ordered family has ascending rungs from 1 on, a binary one has none")
        if not self.short_code:
            object.__setattr__(self, "short_code", self.name.upper())

    @property
    def is_binary(self) -> bool:
        """Whether it has one token that is there or not."""
        return self.kind == "binary"

    @property
    def levels(self) -> tuple[int, ...]:
        """What it can stand at when it is there, ascending: its rungs, or `present`."""
        return self.rungs or (self.present,)

    @property
    def tokens(self) -> tuple[str, ...]:
        """Its tokens, from the lowest rung on."""
        return (self.name,) if self.is_binary else tuple(f"{self.name}_{rung}" for rung in self.rungs)


@dataclass(frozen=True)
class Vocabulary:
    """Every token that a context can hold, family by family.

    Attributes:
        families: in their order, which is that of the tokens' numbers.
        special: tokens that are no family's, such as the one that stands for the empty context; they are never part of a context.
        empty: the special token by which a model reads an empty context; None where it reads nothing at all.
    """

    families: tuple[Family, ...]
    special: tuple[str, ...] = ()
    empty: str | None = None
    _number: dict[str, int] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._number.update({token: number for number, token in enumerate(self.tokens)})
        if len(self._number) != len(self.tokens) or len({family.name for family in self.families}) != len(self.families):
            raise ValueError("two families share a name or a token")
        if shared := self._number.keys() & set(self.special):
            raise ValueError(f"'{min(shared)}' is a special token and a family's")
        if self.empty is not None and self.empty not in self.special:
            raise ValueError(f"the empty token '{self.empty}' is not among the special ones")

    @cached_property
    def tokens(self) -> tuple[str, ...]:
        """Every token of every family, in the order of their numbers."""
        return tuple(token for family in self.families for token in family.tokens)

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def starts(self) -> np.ndarray:
        """The number of each family's first token, and the number of tokens: int64 `[n_families + 1]`."""
        return np.cumsum([0, *(len(family.tokens) for family in self.families)])

    @cached_property
    def family_of(self) -> np.ndarray:
        """The family's number of each token, int64 `[n_tokens]`."""
        return np.repeat(np.arange(len(self.families)), np.diff(self.starts))

    def number(self, token: str, field: str = "token") -> int:
        """Return a token's number. Raises SpecError with the nearest token."""
        if token not in self._number:
            raise SpecError(
                f"unknown token '{token}'",
                field=field,
                allowed="allowed: NAME of a binary family, NAME_RUNG of an ordered one",
                nearest=nearest(token, self.tokens),
            )
        return self._number[token]

    def numbers(self, tokens: Iterable[str], field: str = "token") -> np.ndarray:
        """Return tokens' numbers, int64 `[n]`. Raises SpecError, naming the entry, with the nearest token."""
        return np.array([self.number(token, f"{field}[{index}]") for index, token in enumerate(tokens)], dtype=np.int64)

    def family(self, name: str, field: str = "family") -> Family:
        """Return a family by its name. Raises SpecError with the nearest name."""
        return self.families[self.family_number(name, field)]

    def family_number(self, name: str, field: str = "family") -> int:
        """Return a family's number. Raises SpecError with the nearest name."""
        for number, family in enumerate(self.families):
            if family.name == name:
                return number
        raise unknown(field, name, [family.name for family in self.families], what="family")

    def span(self, family: str) -> slice:
        """Return the numbers of a family's tokens."""
        number = self.family_number(family)
        return slice(int(self.starts[number]), int(self.starts[number + 1]))

    def parse(self, token: str) -> tuple[str, int | None]:
        """Return a token's family and rung (None for a binary one). Raises SpecError with the nearest token.

        The rung is what the family declares, not what digits at the end happen to say.
        """
        number = self.number(token)
        family = self.families[self.family_of[number]]
        return family.name, None if family.is_binary else family.rungs[number - int(self.starts[self.family_of[number]])]

    def token(self, family: str, rung: int | None = None) -> str:
        """Return the token of a family's rung. Raises SpecError for a rung that the family does not have."""
        found = self.family(family)
        if found.is_binary and rung in (None, found.present):
            return found.name
        if rung not in found.rungs:
            raise SpecError(f"{rung} is no rung of '{family}'", field="rung", allowed=rungs_of(found))
        return f"{family}_{rung}"

    def label(self, family: str, rung: int | None = None) -> str:
        """Return a family, or a rung of it, as it stands on an axis."""
        code = self.family(family).short_code
        return code if rung is None else f"{code}_{rung}"


def rungs_of(family: Family) -> str:
    """Return what rungs a family has, in words."""
    return f"its rungs: {', '.join(map(str, family.rungs))}" if family.rungs else f"'{family.name}' is binary and has no rungs"
