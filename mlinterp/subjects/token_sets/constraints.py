"""Constraints: which contexts a domain allows. A context that breaks a hard one is skipped, counted and listed; a soft one warns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mlinterp.subjects.token_sets.table import ContextTable, TokenContext

Enforcement = Literal["hard", "soft"]


@dataclass(frozen=True)
class Constraint:
    """What a context must satisfy.

    Attributes:
        id: its name in a spec.
        description: one sentence.
        enforcement: `hard`: a context that breaks it is skipped; `soft`: it is used, with a warning.
        broken: whether each context breaks it, bool `[n]`; None where it is about whole experiments and not about contexts.
        explain: what is wrong with one context that breaks it.
    """

    id: str
    description: str
    enforcement: Enforcement
    broken: Callable[[ContextTable], np.ndarray] | None
    explain: Callable[[TokenContext], str]

    def check(self, table: ContextTable) -> np.ndarray:
        """Return whether each context breaks it, bool `[n]`."""
        return np.zeros(len(table), dtype=bool) if self.broken is None else self.broken(table)


def of_each(constraint_id: str, description: str, enforcement: Enforcement, check: Callable[[TokenContext], str | None]) -> Constraint:
    """Return a constraint whose `check` looks at one context and says what is wrong with it, or None. Slow on many contexts."""

    def broken(table: ContextTable) -> np.ndarray:
        return np.array([check(table.context(row)) is not None for row in range(len(table))], dtype=bool)

    return Constraint(constraint_id, description, enforcement, broken, lambda context: check(context) or "")


def one_rung_per_family() -> Constraint:
    """Return the constraint that every family stands at one level.

    A one-hot family holds one token at most. A thermometer's level is its highest token, whichever of the lower ones are there too
    (masked contexts miss some), so it always has one.
    """

    def broken(table: ContextTable) -> np.ndarray:
        one_hot = np.array([family.encoding == "one_hot" and not family.is_binary for family in table.vocabulary.families])
        if not len(table) or not one_hot.any():
            return np.zeros(len(table), dtype=bool)
        counts = np.add.reduceat(table.incidence, table.vocabulary.starts[:-1], axis=1, dtype=np.int64)
        return np.asarray((counts[:, one_hot] > 1).any(axis=1))

    def explain(context: TokenContext) -> str:
        return f"a family stands at several rungs in {', '.join(sorted(context.tokens))}"

    return Constraint("one_rung_per_family", "Each family stands at one rung.", "hard", broken, explain)


def no_group_gating_if_relu_floor() -> Constraint:
    """Return the constraint that no claim about groups is made of a latent that mostly sits on its ReLU floor."""
    about = "Where most activations sit on the ReLU floor, differences between groups are no evidence that a group gates the latent."
    return Constraint("no_group_gating_if_relu_floor", about, "soft", None, lambda _: about)
