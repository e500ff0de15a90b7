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
from mlinterp.token_sets.counterfactual import Changes, Edit, beyond_controls, changes, matched_rung
from mlinterp.token_sets.effects import NOTHING, Effect, combined, difference, mean_effect, mean_of_cells
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
    """Every cell of a grid in its order, and all of them together.

    Attributes:
        cells: the cells.
        overall: the mean difference from the cell of neither family.
        spread: sample standard deviation of these differences: of the cells' means, each as often as it has contexts, where contexts were
            observed; of every context's own changes where they were edited.
        compared: the activations that differences start from, or all that were observed, float64 `[n]`: what the floor is checked on.
    """

    cells: list[Cell]
    overall: Response
    spread: float | None
    compared: np.ndarray


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
        delta = sum_of((1, -1), (number, 0)) if number else _from_itself(own)
        interaction = sum_of((1, -1, -1, 1), grid.corners(x, y)) if x and y else None
        found.append(Cell(x, y, own, None if own.value is None else float(rows.pre[there].mean()), delta, interaction))
    measured = np.isin(at, [number for number, cell in enumerate(found) if number and cell.own.value is not None])
    overall = difference(rows.post[measured], rows.post[members[0]]) if found[0].own.value is not None and measured.any() else NOTHING
    deltas = [(cell.delta.effect.value, cell.own.n) for cell in found[1:] if cell.delta.effect.value is not None]
    each = np.repeat([value for value, _ in deltas], [n for _, n in deltas])
    return Cells(found, Response(overall), _spread(each), rows.post)


def observed_deltas(rows: Rows, grid: Grid, min_n: int) -> np.ndarray:
    """Return the difference of every cell but the first from the first, float64 `[n_cells - 1]`; NaN with fewer than `min_n` contexts."""
    at = grid.numbers_of(rows.table)
    inside = at >= 0
    count = np.bincount(at[inside], minlength=len(grid.cells))
    total = np.bincount(at[inside], rows.post[inside], minlength=len(grid.cells))
    means = np.divide(total, count, out=np.full(len(count), np.nan), where=count >= min_n)
    return means[1:] - means[0]


def edited_cells(lab: Lab, bases: ContextTable, grid: Grid, min_n: int, controls: int, spare: Sequence[str]) -> Cells:
    """Put contexts into every cell and compare the model's latent; `controls` other pairs of families get the same treatment.

    Raises ExperimentError where every context without the two families breaks a hard constraint.
    """
    start = edits.strip_family(edits.strip_family(bases, grid.x.name), grid.y.name)
    admitted = lab.admit(start)
    if not admitted.any():
        raise ExperimentError(f"without {grid.x.name} and {grid.y.name}, every context breaks a hard constraint")
    start, bases = start.take(admitted), bases.take(admitted)
    base = lab.activations(start)
    post, pre = cell_changes(lab, bases, grid)
    control = _control(lab, bases, grid, controls, spare)

    def mean_of(change: np.ndarray, change_pre: np.ndarray, beside: np.ndarray | None) -> Response:
        """Return the mean of `change [n, k]`, beside the same of each control, `[n_pairs, n, k]`."""
        known = np.isfinite(change)
        if (n := int(known.any(axis=1).sum())) < min_n:
            return Response(NOTHING._replace(n=n))
        found = Response(mean_of_cells(change), float(change_pre[known].mean()))
        beyond = None if beside is None else beyond_controls(change, beside)
        return found if beyond is None else found._replace(control=beyond[0], beyond=beyond[1])

    found = []
    for number, (x, y) in enumerate(grid.cells):
        known = np.isfinite(post[:, number])
        own = mean_effect(base.post[known] + post[known, number]) if known.sum() >= min_n else NOTHING._replace(n=int(known.sum()))
        mean_pre = None if own.value is None else float((base.pre[known] + pre[known, number]).mean())
        delta, interaction = _from_itself(own), None
        if number:
            delta = mean_of(post[:, [number]], pre[:, [number]], None if control is None else control[..., [number]])
        if x and y:
            both, only_x, only_y, _ = grid.corners(x, y)
            measured = [post, pre] if control is None else [post, pre, control]
            apart = [each[..., [both]] - each[..., [only_x]] - each[..., [only_y]] for each in measured]
            interaction = mean_of(apart[0], apart[1], None if control is None else apart[2])
        found.append(Cell(x, y, own, mean_pre, delta, interaction))
    overall = mean_of(post[:, 1:], pre[:, 1:], None if control is None else control[..., 1:])
    return Cells(found, overall, _spread(post[:, 1:][np.isfinite(post[:, 1:])]), base.post)


def cell_changes(lab: Lab, bases: ContextTable, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Return what every cell changes of the activation and of the pre-activation of contexts without both families.

    float64 `[n, n_cells]` both; 0 in the first cell, NaN where a context breaks a hard constraint or the domain has no such rung.
    """
    numbers = _settable(grid)
    post, pre = (np.full((len(bases), len(grid.cells)), np.nan) for _ in range(2))
    post[:, 0] = pre[:, 0] = 0.0
    made = _changes(lab, bases, (grid.x, grid.y), [grid.cells[number] for number in numbers])
    post[:, numbers], pre[:, numbers] = made.post, made.pre
    return post, pre


def _settable(grid: Grid) -> list[int]:
    """Return the numbers of the cells that contexts can be put into: the first is left out, and rungs that the domain does not have."""
    x_there, y_there = {0, *grid.x.levels}, {0, *grid.y.levels}
    return [number for number, (x, y) in enumerate(grid.cells) if number and x in x_there and y in y_there]


def _changes(lab: Lab, bases: ContextTable, families: tuple[Family, Family], rungs: Sequence[tuple[int, int]]) -> Changes:
    start = bases
    for family in families:
        start = edits.strip_family(start, family.name)

    def setting(pair: tuple[int, int]) -> Edit:
        def edit(table: ContextTable) -> ContextTable:
            for family, rung in zip(families, pair, strict=True):
                table = edits.set_rung(table, family.name, rung) if rung else table
            return table

        return edit

    return changes(lab, start, [setting(pair) for pair in rungs])


def _control(lab: Lab, bases: ContextTable, grid: Grid, draws: int, spare: Sequence[str]) -> np.ndarray | None:
    """Return the changes by the same edits of `draws` other pairs of families of the same kinds, float64 `[n_pairs, n, n_cells]`.

    Pairs that share no family come first: they say more about pairs. Each rung is matched by the one at the same height of the other
    family's ladder. None where there is no such pair.
    """
    taken = {grid.x.name, grid.y.name, *spare}
    free = [family for family in lab.vocabulary.families if family.name not in taken]
    pairs = [(x, y) for x in free for y in free if x != y and x.kind == grid.x.kind and y.kind == grid.y.kind]
    if not pairs or not draws:
        return None
    numbers, found = _settable(grid), []
    drawn = [pairs[picked] for picked in lab.stream("controls", grid.x.name, grid.y.name).permutation(len(pairs)).tolist()]
    for x, y in _apart_first(drawn)[:draws]:
        cells = [grid.cells[number] for number in numbers]
        rungs = [(_height(grid.x, x, at_x), _height(grid.y, y, at_y)) for at_x, at_y in cells]
        post = np.full((len(bases), len(grid.cells)), np.nan)
        post[:, 0], post[:, numbers] = 0.0, _changes(lab, bases, (x, y), rungs).post
        found.append(post)
    return np.stack(found)


def _apart_first(pairs: Sequence[tuple[Family, Family]]) -> list[tuple[Family, Family]]:
    """Return pairs with those in front, in their order, that share no family with one before them."""
    apart: list[tuple[Family, Family]] = []
    for pair in pairs:
        if all(family not in other for other in apart for family in pair):
            apart.append(pair)
    return [*apart, *(pair for pair in pairs if pair not in apart)]


def _height(family: Family, other: Family, rung: int) -> int:
    return matched_rung(family.levels, other.levels, rung) if rung else 0


def _from_itself(own: Effect) -> Response:
    """Return the difference of the first cell from itself: zero by definition, which no test says anything about."""
    return Response(NOTHING._replace(value=None if own.value is None else 0.0, n=own.n), None if own.value is None else 0.0)


def _spread(values: np.ndarray) -> float | None:
    return float(values.std(ddof=1)) if len(values) > 1 else None
