"""Exact solving of many small sudokus at once.

A board is one bit mask of candidate digits for each cell, and boards lie side by side as `[cell, board]`, so that each step of
the search is a few array operations over all of them:

1. propagate: a digit settled in a cell leaves its row, column and box (naked single); a digit that has one place left in a row,
   column or box goes there (hidden single); repeat until nothing changes; a board where a digit has no place, or two, is dead;
2. a board with one candidate in each cell is a solution;
3. any other board is split in two at its cell with the fewest candidates: the lowest candidate, and all but that one.

Boards wait on a stack and the newest are taken first, so memory grows with depth and not with the number of solutions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Boards = NDArray[np.uint16]
Ints = NDArray[np.int64]
_WIDTH = 8192
"""Boards searched at once."""


@dataclass(frozen=True)
class Geometry:
    """A square grid of `size` x `size` cells in boxes of `box_rows` x `box_cols`."""

    size: int
    box_rows: int
    box_cols: int
    units: Ints
    """Cells of each row, column and box, `[3 * size, size]`."""
    cell_units: Ints
    """The three units of each cell, `[3, cells]`."""

    @property
    def cells(self) -> int:
        """Number of cells."""
        return self.size * self.size

    @property
    def full(self) -> int:
        """The mask of a cell where every digit is possible."""
        return (1 << self.size) - 1


@cache
def geometry(size: int) -> Geometry:
    """Return the grid of a size: 4 has boxes of 2 x 2, 6 of 2 x 3, 9 of 3 x 3."""
    box_rows, box_cols = {4: (2, 2), 6: (2, 3), 9: (3, 3)}[size]
    cells = np.arange(size * size).reshape(size, size)
    boxes = cells.reshape(size // box_rows, box_rows, size // box_cols, box_cols).transpose(0, 2, 1, 3).reshape(size, size)
    units = np.concatenate([cells, cells.T, boxes])
    cell_units = np.stack([np.nonzero((units == cell).any(axis=1))[0] for cell in range(size * size)], axis=1)
    return Geometry(size, box_rows, box_cols, units, cell_units)


def boards_of(grids: Ints, shape: Geometry) -> Boards:
    """Return grids `[grid, cell]` (0 where blank) as boards `[cell, grid]`."""
    masks = np.where(grids == 0, shape.full, 1 << (np.maximum(grids, 1) - 1))
    return np.ascontiguousarray(masks.T.astype(np.uint16))


def grids_of(boards: Boards) -> Ints:
    """Return settled boards `[cell, board]` as grids `[board, cell]`."""
    return np.log2(boards.T).astype(np.int64) + 1


def is_single(boards: Boards) -> NDArray[np.bool_]:
    """Return where at most one candidate is left."""
    return (boards & (boards - np.uint16(1))) == 0


def propagate(boards: Boards, shape: Geometry) -> tuple[Boards, NDArray[np.bool_]]:
    """Return boards after every naked and hidden single, and which of them are dead, `[board]`."""
    boards = boards.copy()
    dead = np.zeros(boards.shape[1], dtype=bool)
    active = np.arange(boards.shape[1])
    while active.size:
        before = boards[:, active]
        after, broken = _singles(before, shape)
        boards[:, active] = after
        dead[active] = broken
        active = active[~broken & (after != before).any(axis=0)]
    return boards, dead


def _singles(boards: Boards, shape: Geometry) -> tuple[Boards, NDArray[np.bool_]]:
    single = is_single(boards)
    settled = np.where(single, boards, np.uint16(0))
    once, twice, taken, clash = (np.zeros((len(shape.units), boards.shape[1]), dtype=np.uint16) for _ in range(4))
    for column in shape.units.T:
        candidates, digits = boards[column], settled[column]
        twice |= once & candidates
        once |= candidates
        clash |= taken & digits
        taken |= digits
    broken = (once != shape.full).any(axis=0) | (clash != 0).any(axis=0)
    first, second, third = shape.cell_units
    after = np.where(single, boards, boards & ~(taken[first] | taken[second] | taken[third]))
    lonely = once & ~twice
    hidden = after & (lonely[first] | lonely[second] | lonely[third])
    return np.where(hidden != 0, hidden, after), broken


class Solutions(NamedTuple):
    """What a search found."""

    counts: Ints
    """Solutions of each board, up to the limit, `[board]`."""
    owners: Ints
    """The board that each solution belongs to, `[solution]`."""
    grids: Ints
    """The solutions, `[solution, cell]`."""


def solve(boards: Boards, shape: Geometry, limit: int) -> Solutions:
    """Return the solutions of boards `[cell, board]`, at least `min(limit, all)` of each board."""
    counts = np.zeros(boards.shape[1], dtype=np.int64)
    owners: list[Ints] = []
    grids: list[Ints] = []
    stack: list[tuple[Boards, Ints]] = [(boards, np.arange(boards.shape[1]))]
    while stack:
        waiting, owner = stack.pop()
        if waiting.shape[1] > _WIDTH:
            stack.append((waiting[:, :-_WIDTH], owner[:-_WIDTH]))
            waiting, owner = waiting[:, -_WIDTH:], owner[-_WIDTH:]
        wanted = counts[owner] < limit
        current, dead = propagate(waiting[:, wanted], shape)
        owner = owner[wanted]
        solved = ~dead & is_single(current).all(axis=0)
        counts += np.bincount(owner[solved], minlength=counts.size)
        owners.append(owner[solved])
        grids.append(grids_of(current[:, solved]))
        branch = ~dead & ~solved & (counts[owner] < limit)
        if branch.any():
            stack.append(_split(current[:, branch], owner[branch]))
    return Solutions(counts, np.concatenate(owners), np.concatenate(grids))


def _split(boards: Boards, owner: Ints) -> tuple[Boards, Ints]:
    number = np.bitwise_count(boards)
    cell = np.where(number > 1, number, np.uint8(255)).argmin(axis=0)
    at = (cell, np.arange(boards.shape[1]))
    lowest = boards[at] & (~boards[at] + np.uint16(1))
    with_it, without = boards.copy(), boards.copy()
    with_it[at] = lowest
    without[at] &= ~lowest
    return np.concatenate([without, with_it], axis=1), np.concatenate([owner, owner])


def random_grids(n: int, shape: Geometry, rng: np.random.Generator) -> Ints:
    """Return `n` full grids `[grid, cell]` by randomised search; every grid has a chance, not all the same one.

    A random candidate goes into a random cell among those with the fewest; a board that dies begins again.
    """
    boards = np.full((shape.cells, n), shape.full, dtype=np.uint16)
    open_boards = np.arange(n)
    while open_boards.size:
        current, dead = propagate(boards[:, open_boards], shape)
        current[:, dead] = shape.full
        number = np.bitwise_count(current)
        order = np.where(number > 1, number, 255) + rng.random(current.shape)
        at = (order.argmin(axis=0), np.arange(open_boards.size))
        digits = (1 << np.arange(shape.size, dtype=np.uint16))[:, None]
        chance = np.where(current[at] & digits, rng.random((shape.size, open_boards.size)), -1.0)
        chosen = digits[chance.argmax(axis=0), 0]
        finished = (number == 1).all(axis=0)
        current[at] = np.where(finished, current[at], chosen)
        boards[:, open_boards] = current
        open_boards = open_boards[~finished]
    return grids_of(boards)


def dig(grids: Ints, shape: Geometry, order: Ints, blanks: Ints) -> Ints:
    """Return grids `[grid, cell]` with cells emptied in `order` (same shape) as long as the solution stays the only one.

    Stops at `blanks` empty cells, `[grid]`. A clue that must stay when it is tried must stay for good, since later there are fewer
    clues still; so with every cell tried no clue of the puzzle can be left out.
    """
    solution = boards_of(grids, shape)
    puzzles = solution.copy()
    empty = np.zeros(len(grids), dtype=np.int64)
    for cell in order.T:
        going = np.nonzero(empty < blanks)[0]
        at = (cell[going], np.arange(going.size))
        trial = puzzles[:, going]
        trial[at] = np.uint16(shape.full) & ~trial[at]
        free = going[solve(trial, shape, limit=1).counts == 0]
        puzzles[cell[free], free] = shape.full
        empty[free] += 1
    return np.where((puzzles == solution).T, grids, 0)
