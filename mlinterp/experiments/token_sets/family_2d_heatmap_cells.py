"""The cells of a heatmap: what a latent is in each, what that differs by from neither family, and the difference of differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from mlinterp.errors import ExperimentError
from mlinterp.subjects.token_sets import edits
from mlinterp.subjects.token_sets.table import ContextTable
from mlinterp.subjects.token_sets.vocabulary import Family
from mlinterp.token_sets.counterfactual import Edit, changes, matched_rung
from mlinterp.token_sets.effect_table import column_means
from mlinterp.token_sets.effects import NOTHING, Effect, combined, difference, mean_effect
from mlinterp.token_sets.lab import Lab
from mlinterp.token_sets.slicing import Rows


@dataclass(frozen=True)
class Grid:
    """Two families and the rungs that they are looked at; rung 0, absent, is the first of both."""

    x: Family
    y: Family
    rungs_x: tuple[int, ...]
    rungs_y: tuple[int, ...]

    @classmethod
    def of(cls, x: Family, y: Family, rungs_x: Sequence[int] | None, rungs_y: Sequence[int] | None) -> Grid:
        """Build a grid over the rungs asked for, all where None."""
        return cls(x, y, tuple(sorted({0, *(rungs_x or x.levels)})), tuple(sorted({0, *(rungs_y or y.levels)})))

    @cached_property
    def cells(self) -> tuple[tuple[int, int], ...]:
        """Rungs of x and y of every cell; the first is that of neither family."""
        return tuple((x, y) for x in self.rungs_x for y in self.rungs_y)

    def number(self, x: int, y: int) -> int:
        """Return the number of a cell."""
        return self.rungs_x.index(x) * len(self.rungs_y) + self.rungs_y.index(y)

    def numbers_of(self, table: ContextTable) -> np.ndarray:
        """Return the cell of each context by its highest rungs, int64 `[n]`; -1 where one of them is not listed."""
        found = []
        for family, rungs in ((self.x, self.rungs_x), (self.y, self.rungs_y)):
            at = table.rungs(family.name)
            place = np.minimum(np.searchsorted(rungs, at), len(rungs) - 1)
            found.append(np.where(np.array(rungs)[place] == at, place, -1))
        return np.where((found[0] < 0) | (found[1] < 0), -1, found[0] * len(self.rungs_y) + found[1])

    def corners(self, x: int, y: int) -> tuple[int, int, int, int]:
        """Return the cells of a difference of differences: (x, y), (x, 0), (0, y) and (0, 0)."""
        return self.number(x, y), self.number(x, 0), self.number(0, y), 0


class Response(NamedTuple):
    """An effect on the activation.

    Attributes:
        effect: the effect.
        pre: the same on the pre-activation; None where the effect has no value.
        control: the same edits of other families; None where there is no control.
        beyond: the effect minus its control.
    """

    effect: Effect
    pre: float | None = None
    control: float | None = None
    beyond: Effect | None = None

    def columns(self, name: str) -> dict[str, Any]:
        """Return it as cells of a table."""
        cells = {**self.effect.columns(name), f"pre_{name}": self.pre}
        del cells["n"]
        if self.beyond is not None:
            cells |= {f"control_{name}": self.control, f"adjusted_{name}": self.beyond.value}
            cells |= {"adjusted_low": self.beyond.low, "adjusted_high": self.beyond.high}
        return cells


class Cell(NamedTuple):
    """One cell.

    Attributes:
        x, y: its rungs; 0 for absent.
        own: the mean activation there.
        mean_pre: the mean pre-activation.
        delta: its difference from the cell of neither family.
        interaction: (x, y) - (x, 0) - (0, y) + (0, 0); None where x or y is 0.
    """

    x: int
    y: int
    own: Effect
    mean_pre: float | None
    delta: Response
    interaction: Response | None


class Cells(NamedTuple):
    """Every cell of a grid in its order, and the difference from neither family taken over all cells, with its control's mean."""

    cells: list[Cell]
    overall: Response


def observed_cells(rows: Rows, grid: Grid, min_n: int) -> Cells:
    """Compare observed contexts cell by cell; a mean needs `min_n` contexts, a difference as many in each of its cells."""
    at = grid.numbers_of(rows.table)
    members = [np.flatnonzero(at == number) for number in range(len(grid.cells))]

    def sum_of(weights: Sequence[float], numbers: Sequence[int]) -> Response:
        parts = [members[number] for number in numbers]
        smallest = min(map(len, parts))
        if smallest < min_n:
            return Response(NOTHING._replace(n=smallest))
        effect = combined([(weight, rows.post[part]) for weight, part in zip(weights, parts, strict=True)])
        return Response(effect, float(sum(weight * rows.pre[part].mean() for weight, part in zip(weights, parts, strict=True))))

    found = []
    for number, (x, y) in enumerate(grid.cells):
        there = members[number]
        own = mean_effect(rows.post[there]) if len(there) >= min_n else NOTHING._replace(n=len(there))
        delta = sum_of((1, -1), (number, 0)) if number else Response(own._replace(value=None if own.value is None else 0.0))
        interaction = sum_of((1, -1, -1, 1), grid.corners(x, y)) if x and y else None
        found.append(Cell(x, y, own, None if own.value is None else float(rows.pre[there].mean()), delta, interaction))
    measured = np.isin(at, [number for number, cell in enumerate(found) if number and cell.own.value is not None])
    overall = difference(rows.post[measured], rows.post[members[0]]) if found[0].own.value is not None and measured.any() else NOTHING
    return Cells(found, Response(overall))


def observed_deltas(rows: Rows, grid: Grid, min_n: int) -> np.ndarray:
    """Return the difference of every cell but the first from the first, float64 `[n_cells - 1]`; NaN with fewer than `min_n` contexts."""
    at = grid.numbers_of(rows.table)
    inside = at >= 0
    count = np.bincount(at[inside], minlength=len(grid.cells))
    total = np.bincount(at[inside], rows.post[inside], minlength=len(grid.cells))
    means = np.divide(total, count, out=np.full(len(count), np.nan), where=count >= min_n)
    return means[1:] - means[0]


class Edited(NamedTuple):
    """What putting contexts into every cell does to the latent.

    Attributes:
        base, base_pre: the latent and its pre-activation on each context without both families, float64 `[n]`.
        post, pre: changes from there, float64 `[n, n_cells]`; 0 in the first cell, NaN where a context breaks a hard constraint or the
            domain has no such rung.
    """

    base: np.ndarray
    base_pre: np.ndarray
    post: np.ndarray
    pre: np.ndarray


def put_into_cells(lab: Lab, bases: ContextTable, grid: Grid) -> Edited:
    """Strip both families from contexts, set every pair of rungs, and return what that changes.

    Raises ExperimentError where every stripped context breaks a hard constraint.
    """
    start = edits.strip_family(edits.strip_family(bases, grid.x.name), grid.y.name)
    start = start.take(lab.admit(start))
    if not len(start):
        raise ExperimentError(f"without {grid.x.name} and {grid.y.name}, every context breaks a hard constraint")
    numbers = [
        number for number, (x, y) in enumerate(grid.cells) if number and x in (0, *grid.x.levels) and y in (0, *grid.y.levels)
    ]
    made = changes(lab, start, [_into(grid, *grid.cells[number]) for number in numbers])
    post, pre = (np.full((len(start), len(grid.cells)), np.nan) for _ in range(2))
    post[:, 0] = pre[:, 0] = 0.0
    post[:, numbers], pre[:, numbers] = made.post, made.pre
    return Edited(made.before, lab.feature(start).pre, post, pre)


def _into(grid: Grid, x: int, y: int) -> Edit:
    def edit(table: ContextTable) -> ContextTable:
        held = edits.set_rung(table, grid.x.name, x) if x else table
        return edits.set_rung(held, grid.y.name, y) if y else held

    return edit
