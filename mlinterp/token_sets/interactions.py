"""Interactions: what tokens do together beyond what they do apart, by edits that cross them and by contexts that happen to.

Of k items, each there or not, there are 2^k corners. The interaction is the sum of the corners' activations with the sign
(-1)^(k - items there): for two f_ij - f_i - f_j + f_0, for three f_ijk - f_ij - f_ik - f_jk + f_i + f_j + f_k - f_0, which is how much
the third changes the interaction of the other two. A base is first stripped of the items' families, so that a corner differs from
another in the items alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from mlinterp.errors import ExperimentError
from mlinterp.subjects.token_sets import edits
from mlinterp.subjects.token_sets.table import ContextTable
from mlinterp.token_sets.effects import NOTHING, Effect, combined
from mlinterp.token_sets.lab import Lab
from mlinterp.token_sets.slicing import Rows

_BLOCK = 100_000
"""Contexts that are edited and evaluated at a time; bounds memory."""


@dataclass(frozen=True)
class Item:
    """What is there or not: a token, or a family at whatever rung.

    Attributes:
        name: of the token or family.
        family: its family.
        rung: where an edit sets the family; None of a binary one.
        whole: whether any rung of the family counts as its being there.
    """

    name: str
    family: str
    rung: int | None
    whole: bool = False

    def held(self, table: ContextTable) -> np.ndarray:
        """Return which contexts have it, bool `[n]`."""
        if self.whole:
            return table.levels[:, table.vocabulary.family_number(self.family)] > 0
        return table.incidence[:, table.vocabulary.number(self.name)]

    def put(self, table: ContextTable) -> ContextTable:
        """Return the contexts with it."""
        return edits.set_rung(table, self.family, self.rung)


Combination = tuple[Item, ...]


def item_of(lab: Lab, rows: Rows, name: str, *, whole: bool = False) -> Item:
    """Return a token or family as an item; of a token `whole` means its family. A family is set to the rung that it most often has."""
    vocabulary = lab.vocabulary
    ordered = {family.name: family for family in vocabulary.families if not family.is_binary}
    if name not in ordered:
        family, rung = vocabulary.parse(name)
        if not whole or rung is None:
            return Item(name, family, rung)
        name = family
    at = rows.table.rungs(name)
    counts = [int((at == rung).sum()) for rung in ordered[name].levels]
    return Item(name, name, ordered[name].levels[int(np.argmax(counts))], whole=True)


def candidates(lab: Lab, rows: Rows, names: Sequence[str] | None, n: int, spare: Collection[str], *, whole: bool) -> list[Item]:
    """Return the items to combine: those named, else the n most influential, one a family.

    Influence is the correlation of an item's presence with the activation, of either sign; where that is undefined, as in a slice of
    silent contexts, the more frequent come first. Items of the families `spare` are left out.
    """
    if names is not None:
        found = list(dict.fromkeys(item_of(lab, rows, name, whole=whole) for name in names))
        for dropped in (item for item in found if item.family in spare):
            lab.warn(f"{dropped.name} is not varied: its family is held fixed")
        found = [item for item in found if item.family not in spare]
    else:
        found = _influential(lab, rows, n, spare, whole=whole)
    if len({item.family for item in found}) < 2:
        there = ", ".join(item.name for item in found) or "none"
        raise ExperimentError(f"an interaction needs tokens of two families, and there are: {there}")
    return found


def _influential(lab: Lab, rows: Rows, n: int, spare: Collection[str], *, whole: bool) -> list[Item]:
    vocabulary, table = lab.vocabulary, rows.table
    held = (table.levels > 0 if whole else table.incidence).astype(np.float32)
    family_of = np.arange(len(vocabulary.families)) if whole else vocabulary.family_of
    share = held.mean(axis=0, dtype=np.float64)
    centred = rows.post - rows.post.mean()
    size = np.sqrt(share * (1 - share)) * np.sqrt((centred**2).mean())
    together = (centred.astype(np.float32) @ held).astype(np.float64) / len(rows)
    influence = np.abs(np.divide(together, size, out=np.zeros(len(size)), where=size > 0))
    best: dict[str, Item] = {}
    for at in np.lexsort((np.arange(len(share)), -share, -np.round(influence, 6))).tolist():
        family = vocabulary.families[family_of[at]]
        if share[at] > 0 and family.name not in spare and family.name not in best:
            name = family.name if whole else vocabulary.tokens[at]
            best[family.name] = item_of(lab, rows, name, whole=whole)
    return sorted(list(best.values())[:n], key=lambda item: vocabulary.family_number(item.family))


def combinations(items: Sequence[Item], size: int = 2) -> list[Combination]:
    """Return every combination of items of different families."""
    return [found for found in itertools.combinations(items, size) if len({item.family for item in found}) == size]


def random_items(lab: Lab, size: int, n: int, spare: Collection[str], known: Collection[frozenset[str]] = ()) -> list[Combination]:
    """Return at most n combinations of random tokens of different families, drawn by the spec's seed, none of them `known` by its names."""
    vocabulary, stream = lab.vocabulary, lab.stream("controls", size)
    families = [family for family in vocabulary.families if family.name not in spare]
    found: dict[frozenset[str], Combination] = {}
    if len(families) < size:
        return []
    for _ in range(20 * n):
        if len(found) == n:
            break
        tokens = []
        for number in stream.choice(len(families), size, replace=False).tolist():
            family = families[number]
            tokens.append(family.tokens[int(stream.integers(len(family.tokens)))])
        if (names := frozenset(tokens)) not in known:
            found.setdefault(names, tuple(Item(token, *vocabulary.parse(token)) for token in tokens))
    return list(found.values())


def signs(size: int) -> np.ndarray:
    """Return the sign of each corner in the interaction of `size` items, float64 `[2^size]`; corner c has item j where bit j of c is set.

    >>> signs(2).tolist()
    [1.0, -1.0, -1.0, 1.0]
    """
    return np.array([(-1.0) ** (size - corner.bit_count()) for corner in range(2**size)])


@dataclass(frozen=True)
class Corners:
    """The latent at every corner of every combination, on every base.

    Attributes:
        post: activations, float64 `[n_combinations, n_bases, 2^size]`; NaN at all corners of a base where one breaks a hard constraint.
        pre: pre-activations, likewise.
    """

    post: np.ndarray
    pre: np.ndarray

    def interaction(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the interaction of the activations and of the pre-activations, float64 `[n_combinations, n_bases]` both."""
        weights = signs(self.post.shape[2].bit_length() - 1)
        return self.post @ weights, self.pre @ weights


def crossed(lab: Lab, bases: ContextTable, wanted: Sequence[Combination]) -> Corners:
    """Set and leave out the items of each combination on each base, and run the model on every corner; equal contexts run once."""
    size = len(wanted[0]) if wanted else 0
    post, pre = (np.full((len(wanted), len(bases), 2**size), np.nan) for _ in range(2))
    step = max(1, _BLOCK // (len(bases) * 2**size))
    for first in range(0, len(wanted), step):
        block = wanted[first : first + step]
        table = ContextTable.stack([corner for combination in block for corner in _corners(bases, combination)])
        shape = (len(block), 2**size, len(bases))
        usable = np.broadcast_to(lab.admit(table).reshape(shape).all(axis=1, keepdims=True), shape)
        found = lab.activations(table.take(usable.reshape(-1)))
        for target, values in ((post, found.post), (pre, found.pre)):
            part = np.full(shape, np.nan)
            part[usable] = values
            target[first : first + step] = part.transpose(0, 2, 1)
    return Corners(post, pre)


def _corners(bases: ContextTable, items: Combination) -> list[ContextTable]:
    corners = [bases]
    for item in items:
        corners = [edits.strip_family(table, item.family) for table in corners]
    for item in items:
        corners = [*corners, *(item.put(table) for table in corners)]
    return corners


def observed_interaction(values: np.ndarray, held: np.ndarray, min_n: int) -> Effect:
    """Return the interaction of items as contexts that hold them or not show it: a difference of differences of means.

    Args:
        values: the latent on each context, `[n]`.
        held: which contexts hold each item, bool `[n, size]`.
        min_n: contexts that each corner needs; with fewer in one there is no value, and `n` says how many the smallest has.
    """
    corner = _corner_of(held)
    parts = [(float(sign), values[corner == number]) for number, sign in enumerate(signs(held.shape[1]))]
    smallest = min(len(part) for _, part in parts)
    return combined(parts) if smallest >= min_n else NOTHING._replace(n=smallest)


def observed_value(values: np.ndarray, held: np.ndarray, min_n: int) -> float:
    """Return the value of `observed_interaction` alone, NaN where there is none; fast enough for a thousand permutations."""
    corner, size = _corner_of(held), held.shape[1]
    n = np.bincount(corner, minlength=2**size)
    if n.min() < min_n:
        return float("nan")
    return float(np.bincount(corner, weights=values, minlength=2**size) / n @ signs(size))


def _corner_of(held: np.ndarray) -> np.ndarray:
    """Return the corner that each context stands at, int64 `[n]`."""
    found: np.ndarray = sum(column.astype(np.int64) << bit for bit, column in enumerate(held.T))
    return found
