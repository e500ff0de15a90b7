"""The search for minimal cores: which families of a context can go while the latent keeps a share of its activation.

What goes or stays is a family as it stands in the context, with all its tokens. A context with few families is searched exhaustively,
size by size from nothing on, so the first size at which a set suffices is the smallest there is. A larger one is reduced greedily: take
away the family whose absence leaves the highest activation, as long as enough is left. That gives a set from which no single family can
go (irreducible), not necessarily a smallest one.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from mlinterp.subjects.token_sets.table import ContextTable
from mlinterp.token_sets.effect_table import column_means
from mlinterp.token_sets.feature import Activations
from mlinterp.token_sets.lab import Lab

EXHAUSTIVE = 12
"""Families up to which every subset is tried: 4096 of them."""
_TOGETHER = 100
"""Contexts that are searched at a time; bounds memory."""
ROUNDING = 1e-6
"""Retention may fall short of the threshold by this: float32 passes of different batches differ in the last digits."""


@dataclass(frozen=True)
class Core:
    """An irreducible part of one context.

    Attributes:
        row: number of the context in its table.
        kept: families that are there, bool `[n_families]`; the clamped ones too.
        activation: of the latent on it.
        retention: that as a share of the whole context's.
        empty_retention: share that is left with the clamped families alone.
        control: mean share that subsets of the same size keep; None where none of them is allowed.
        n_alike: sets of this size that keep enough; None after a greedy search, which does not see them.
        search: `exhaustive`: no smaller set keeps enough; `greedy`: there may be a smaller one.
        irreducible: no single family can go.
    """

    row: int
    kept: np.ndarray
    activation: Activations
    retention: float
    empty_retention: float | None
    control: float | None
    n_alike: int | None
    search: Literal["exhaustive", "greedy"]
    irreducible: bool


class Search:
    """Searches the contexts of a table, on each of which the latent is above zero.

    Args:
        lab: evaluates contexts.
        table: the contexts.
        clamped: families that always stay, bool `[n_families]`.
        threshold: the least share of the activation that a core keeps.
        controls: random parts that a part of a context is compared with.
    """

    def __init__(self, lab: Lab, table: ContextTable, clamped: np.ndarray, threshold: float, controls: int) -> None:
        self.lab, self.table, self.clamped, self.controls = lab, table, clamped, controls
        self.least = threshold - ROUNDING
        self.whole = lab.activations(table).post
        self.there = table.levels > 0
        self.free = [np.flatnonzero(row & ~clamped) for row in self.there]

    def cores(self) -> list[Core]:
        """Return one core of each context, in the order of the table."""
        few = [row for row, free in enumerate(self.free) if len(free) <= EXHAUSTIVE]
        many = [row for row, free in enumerate(self.free) if len(free) > EXHAUSTIVE]
        found = []
        for rows, search in ((few, self._exhaustive), (many, self._greedy)):
            for start in range(0, len(rows), _TOGETHER):
                found += search(rows[start : start + _TOGETHER])
        return sorted(found, key=lambda core: core.row)

    def _evaluated(self, rows: np.ndarray, kept: np.ndarray) -> Activations:
        """Return the latent on contexts `rows [n]` of which only the families `kept [n, n_families]` are left; NaN where not allowed."""
        vocabulary = self.table.vocabulary
        parts = self.table.take(rows)
        parts = parts.with_incidence(parts.incidence & kept[:, vocabulary.family_of])
        allowed = self.lab.admit(parts)
        values = self.lab.activations(parts.take(allowed))
        pre, post = np.full(len(rows), np.nan), np.full(len(rows), np.nan)
        pre[allowed], post[allowed] = values.pre, values.post
        return Activations(pre, post)

    def _subsets(self, row: int, chosen: np.ndarray) -> np.ndarray:
        """Return which families are kept where only the free ones numbered `chosen [n, size]` are, and the clamped, `[n, n_families]`."""
        kept = np.repeat((self.there[row] & self.clamped)[None], len(chosen), axis=0)
        np.put_along_axis(kept, self.free[row][chosen], True, axis=1)
        return kept

    def _exhaustive(self, rows: Sequence[int]) -> list[Core]:
        pending, found = list(rows), []
        empty: dict[int, float] = {}
        for size in range(EXHAUSTIVE + 1):
            if not pending:
                break
            chosen = {n: _chosen(n, size) for n in {len(self.free[row]) for row in pending}}
            kept = [self._subsets(row, chosen[len(self.free[row])]) for row in pending]
            counts = [len(part) for part in kept]
            values = self._evaluated(np.repeat(pending, counts), np.concatenate(kept))
            left, at = [], 0
            for row, part in zip(pending, kept, strict=True):
                own = values.take(slice(at, at := at + len(part)))
                retention = own.post / self.whole[row]
                if size == 0:
                    empty[row] = float(retention[0])
                enough = retention >= self.least
                if not enough.any():
                    left.append(row)
                    continue
                best = int(np.argmax(np.where(enough, retention, -np.inf)))
                found.append(self._core(row, part[best], own.take(slice(best, best + 1)), empty[row], retention, int(enough.sum())))
            pending = left
        return self._verified(found)

    def _greedy(self, rows: Sequence[int]) -> list[Core]:
        kept = self.there[list(rows)].copy()
        pending = list(range(len(rows)))
        while pending:
            steps = [np.flatnonzero(kept[at] & ~self.clamped) for at in pending]
            trials = np.concatenate([_without(kept[at], families) for at, families in zip(pending, steps, strict=True)])
            values = self._evaluated(np.repeat([rows[at] for at in pending], [len(step) for step in steps]), trials).post
            left, start = [], 0
            for at, families in zip(pending, steps, strict=True):
                own = values[start : (start := start + len(families))] / self.whole[rows[at]]
                if len(own) and np.nanmax(own, initial=-np.inf) >= self.least:
                    kept[at, families[int(np.nanargmax(own))]] = False
                    left.append(at)
            pending = left
        final = self._evaluated(np.array(rows), kept)
        nothing = self._evaluated(np.array(rows), self.there[list(rows)] & self.clamped).post
        found = []
        others = self._random(rows, kept)
        for at, row in enumerate(rows):
            empty = float(nothing[at] / self.whole[row])
            found.append(self._core(row, kept[at], final.take(slice(at, at + 1)), empty, others[at], None))
        return self._verified(found)

    def transferred(self, cores: Sequence[Core]) -> tuple[np.ndarray, np.ndarray]:
        """Return what contexts keep of themselves where only the families of another's core are left, float64 `[n]`.

        Beside it, what random parts of that size keep on average. NaN where no such part is allowed, and where there is no other core.
        The families were not chosen by what the latent does in the context that they are tried in, so chance alone makes both equal.
        """
        if len(cores) < 2:
            return np.full(len(cores), np.nan), np.full(len(cores), np.nan)
        rows = [core.row for core in cores]
        cored = np.stack([core.kept for core in cores]) & ~self.clamped
        kept = self.there[rows] & (cored[_donors(self.table.levels[rows], cored)] | self.clamped)
        own = self._evaluated(np.array(rows), kept).post / self.whole[rows]
        blocks = [slice(start, start + _TOGETHER) for start in range(0, len(rows), _TOGETHER)]
        others = np.concatenate([self._random(rows[block], kept[block]) for block in blocks])
        return own, column_means(others.T)

    def _random(self, rows: Sequence[int], kept: np.ndarray) -> np.ndarray:
        """Return what random parts of contexts `rows [n]` retain, as large as `kept [n, n_families]`, float64 `[n, controls]`."""
        there = self.there[list(rows)][:, None]
        sizes = (kept & ~self.clamped).sum(axis=1)[:, None, None]
        drawn = self.lab.stream("subsets", int(rows[0])).random((len(rows), self.controls, kept.shape[1]))
        place = np.where(there & ~self.clamped, drawn, 2.0).argsort(axis=2).argsort(axis=2)
        parts = (place < sizes) | (there & self.clamped)
        values = self._evaluated(np.repeat(rows, self.controls), parts.reshape(-1, kept.shape[1])).post
        return values.reshape(len(rows), -1) / self.whole[list(rows)][:, None]

    def _core(self, row: int, kept: np.ndarray, values: Activations, empty: float, alike: np.ndarray, n_alike: int | None) -> Core:
        known = alike[np.isfinite(alike)]
        return Core(
            row,
            kept,
            values,
            float(values.post[0] / self.whole[row]),
            empty if np.isfinite(empty) else None,
            float(known.mean()) if len(known) else None,
            n_alike,
            "greedy" if n_alike is None else "exhaustive",
            False,
        )

    def _verified(self, cores: list[Core]) -> list[Core]:
        """Return the cores, each with whether no single family can go from it."""
        trials = [_without(core.kept, np.flatnonzero(core.kept & ~self.clamped)) for core in cores]
        if not trials:
            return []
        values = self._evaluated(np.repeat([core.row for core in cores], [len(part) for part in trials]), np.concatenate(trials)).post
        found, at = [], 0
        for core, part in zip(cores, trials, strict=True):
            retention = values[at : (at := at + len(part))] / self.whole[core.row]
            found.append(replace(core, irreducible=not bool((retention >= self.least).any())))
        return found


def _donors(levels: np.ndarray, cored: np.ndarray) -> np.ndarray:
    """Return whose core is tried in each context: the next one's that the context contains, else simply the next one's; int64 `[n]`.

    Args:
        levels: of the families in each context, `[n, n_families]`.
        cored: families of each one's core, bool `[n, n_families]`.
    """
    n, empty, outside = len(levels), ~cored.any(axis=1), ~cored
    found = np.empty(n, dtype=np.int64)
    for at in range(n):
        contained = ((levels == levels[at]) | outside).all(axis=1) & ~empty
        following = np.roll(contained, -at - 1)[:-1]
        found[at] = (at + 1 + int(np.argmax(following))) % n
    return found


def _chosen(n: int, size: int) -> np.ndarray:
    """Return every choice of `size` numbers below n, int64 `[n_choices, size]`."""
    found = list(itertools.combinations(range(n), size))
    return np.array(found, dtype=np.int64).reshape(len(found), size)


def _without(kept: np.ndarray, families: np.ndarray) -> np.ndarray:
    """Return what is kept without each of some families in turn, bool `[n, n_families]`."""
    trials = np.repeat(kept[None], len(families), axis=0)
    trials[np.arange(len(families)), families] = False
    return trials
