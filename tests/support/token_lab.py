"""A lab over contexts written down by hand: act[tokens]@group, or a latent that is a formula."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mlinterp.spec import Spec
from mlinterp.subjects.token_sets.constraints import Constraint, one_rung_per_family
from mlinterp.subjects.token_sets.package import DataPackage, Split
from mlinterp.subjects.token_sets.table import ContextTable, TokenContext
from mlinterp.subjects.token_sets.vocabulary import Family, Vocabulary
from mlinterp.token_sets.feature import Activations, Feature
from mlinterp.token_sets.lab import Lab
from mlinterp.token_sets.slicing import Rows, cut

LADDER = (3, 6, 12, 29, 57)
BUILDS = Vocabulary(
    (
        *(
            Family(name, code, rungs=LADDER)
            for name, code in {"special_charge_up": "SCU", "run_speed_up": "RSU", "swim_speed_up": "SSU"}.items()
        ),
        Family("comeback", "CB", "binary", present=10),
        Family("ninja_squid", "NS", "binary", present=10),
    ),
    special=("<NULL>",),
    empty="<NULL>",
)
"""A few families as the worked examples name them."""

TOY = Vocabulary(
    (
        Family("alpha", "A", rungs=(1, 2, 3), encoding="one_hot"),
        Family("beta", "B", rungs=(1, 2), encoding="one_hot"),
        Family("gamma", "G", "binary"),
        Family("delta", "D", "binary"),
    )
)
"""The families of `toy`."""

WEAPONS: Mapping[str, Mapping[str, str]] = {
    "1": {"class": "shooter", "sub": "A", "special": "X"},
    "2": {"class": "roller", "sub": "A", "special": "Y"},
    "3": {"class": "shooter", "sub": "B", "special": "X"},
}


class HandPackage(DataPackage):
    """Contexts that somebody wrote down; every split has them all."""

    name = "by hand"
    group_word = "weapon"

    def __init__(
        self, vocabulary: Vocabulary, table: ContextTable | None = None, groups: Mapping[str, Mapping[str, str]] = WEAPONS
    ) -> None:
        self.vocabulary, self.groups, self.table = vocabulary, groups, table
        self.rules: Sequence[Constraint] = (one_rung_per_family(),)

    def contexts(self, split: Split) -> ContextTable:
        assert self.table is not None
        return self.table

    def constraints(self) -> Sequence[Constraint]:
        return self.rules


def flat(*names: str) -> Vocabulary:
    """Return a vocabulary of binary families."""
    return Vocabulary(tuple(Family(name, kind="binary") for name in names))


def observed_lab(
    rows: Iterable[tuple[float, Iterable[str]] | tuple[float, Iterable[str], str]],
    vocabulary: Vocabulary = BUILDS,
    spec: Mapping[str, Any] | None = None,
    groups: Mapping[str, Mapping[str, str]] = WEAPONS,
) -> Lab:
    """Return a lab whose contexts have the given activations, whatever their tokens; its latent is known on no other context."""
    listed = [(row[0], row[1], row[2] if len(row) > 2 else None) for row in rows]
    table = ContextTable.of(vocabulary, tuple(groups), [(tokens, group) for _, tokens, group in listed])
    values = np.array([value for value, _, _ in listed], dtype=np.float64)

    def unknown(table: ContextTable) -> Activations:
        raise AssertionError(f"the latent is known on observed contexts only, not on {table.shown(0)}")

    return _lab(HandPackage(vocabulary, table, groups), Feature(unknown), Rows(table, Activations(values, values)), spec)


def computed_lab(
    pre: Callable[[frozenset[str], str | None], float],
    contexts: Iterable[Iterable[str] | TokenContext],
    vocabulary: Vocabulary = TOY,
    spec: Mapping[str, Any] | None = None,
    groups: Mapping[str, Mapping[str, str]] = WEAPONS,
) -> Lab:
    """Return a lab whose latent is relu of a formula of tokens and group."""
    listed = [context if isinstance(context, TokenContext) else TokenContext(frozenset(context)) for context in contexts]
    table = ContextTable.of(vocabulary, tuple(groups), listed)

    def compute(table: ContextTable) -> Activations:
        found = [table.context(row) for row in range(len(table))]
        values = np.array([pre(context.tokens, context.group) for context in found], dtype=np.float64)
        return Activations(values, np.maximum(values, 0.0))

    feature = Feature(compute)
    return _lab(HandPackage(vocabulary, table, groups), feature, Rows(table, feature(table)), spec)


def toy(tokens: frozenset[str], group: str | None = None) -> float:
    """Return the pre-activation of f = relu(alpha + beta / 2 + 3 [gamma and alpha >= 2] - 2 [delta] - 1)."""
    rung = {token.rpartition("_")[0]: int(token.rpartition("_")[2]) for token in tokens if "_" in token}
    alpha = rung.get("alpha", 0)
    return alpha + 0.5 * rung.get("beta", 0) + 3 * ("gamma" in tokens and alpha >= 2) - 2 * ("delta" in tokens) - 1


TOY_BASES: list[Iterable[str]] = [(), ("beta_2",), ("delta",)]


def _lab(package: HandPackage, feature: Feature, rows: Rows, spec: Mapping[str, Any] | None) -> Lab:
    asked = Spec.model_validate({"type": "by_hand", "feature_id": 0, **(spec or {})})
    lab = Lab(asked, package, feature, 0, rows, package.constraints())
    lab.rows = cut(rows.take(lab.admit(rows.table)), asked.dataset_slice, package)
    return lab
