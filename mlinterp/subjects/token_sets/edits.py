"""Edits of contexts: what a counterfactual changes, on many contexts at once.

Each returns new contexts row by row; whether a domain allows them is for its constraints to say. A rung is set in the way that the
family is encoded: a thermometer holds every token up to it, a one-hot family that one token.
"""

from __future__ import annotations

import numpy as np

from mlinterp.subjects.token_sets.table import ContextTable
from mlinterp.subjects.token_sets.vocabulary import Vocabulary


def strip_family(table: ContextTable, family: str) -> ContextTable:
    """Return the contexts without any token of a family."""
    incidence = table.incidence.copy()
    incidence[:, table.vocabulary.span(family)] = False
    return table.with_incidence(incidence)


def set_rung(table: ContextTable, family: str, rung: int | None = None) -> ContextTable:
    """Return the contexts with a family at a rung, whatever it stood at before; a binary family has no rung and is made present.

    Raises SpecError for a rung that the family does not have.
    """
    incidence = table.incidence.copy()
    incidence[:, table.vocabulary.span(family)] = pattern(table.vocabulary, family, rung)
    return table.with_incidence(incidence)


def add_token(table: ContextTable, token: str) -> ContextTable:
    """Return the contexts with a token. Its family is stripped first, so that it stands at the token's rung alone."""
    family, rung = table.vocabulary.parse(token)
    return set_rung(table, family, rung)


def remove_token(table: ContextTable, token: str) -> ContextTable:
    """Return the contexts without a token; of a thermometer every higher rung goes with it, so the family stands at the rung below."""
    number, (family, _) = table.vocabulary.number(token), table.vocabulary.parse(token)
    incidence = table.incidence.copy()
    last = table.vocabulary.span(family).stop if table.vocabulary.family(family).encoding == "thermometer" else number + 1
    incidence[:, number:last] = False
    return table.with_incidence(incidence)


def swap_group(table: ContextTable, group: str) -> ContextTable:
    """Return the contexts in another group. Raises ValueError for a group that there is not."""
    number = table.groups.index(group)
    return ContextTable(table.vocabulary, table.groups, table.incidence, np.full(len(table), number, dtype=np.int64))


def pattern(vocabulary: Vocabulary, family: str, rung: int | None) -> np.ndarray:
    """Return which tokens of a family are there when it stands at a rung, bool `[n tokens of the family]`."""
    found = vocabulary.family(family)
    at = vocabulary.number(vocabulary.token(family, rung)) - vocabulary.span(family).start
    steps = np.arange(len(found.tokens))
    held: np.ndarray = steps <= at if found.encoding == "thermometer" else steps == at
    return held
