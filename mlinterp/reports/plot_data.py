"""What a declared figure shows, taken out of its table: axes, series, cells. No drawing here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from mlinterp.errors import VerificationError, nearest
from mlinterp.result import Cell, Figure, ResultTable

MOST_SETTINGS, LEAST_GAP = 12, 0.07
"""Up to so many distinct numbers are settings, and two crowd that are nearer than this share of their range."""
MISSING = "(none)"
"""Label of a row whose category is not given."""


@dataclass(frozen=True)
class Axis:
    """One axis: numbers at their place, or categories at 0, 1, 2, … with their labels."""

    categories: tuple[str, ...] | None

    @classmethod
    def of(cls, values: Iterable[Cell]) -> Axis:
        """Build the axis of a column: numeric where every value given is a number, else categories in order of appearance."""
        seen = dict.fromkeys(values)
        if any(value is not None for value in seen) and all(value is None or _is_number(value) for value in seen):
            return cls(None)
        return cls(tuple(dict.fromkeys(label(value) for value in seen)))

    def positions(self, values: Sequence[Cell]) -> np.ndarray:
        """Return where values stand; NaN where a numeric axis has no place for one."""
        if self.categories is None:
            return numbers(values)
        place = {name: index for index, name in enumerate(self.categories)}
        return np.array([place[label(value)] for value in values], dtype=np.float64)


@dataclass(frozen=True)
class Series:
    """One series: `x`, `y` and the interval `low` to `high`, float64 of equal length, NaN where there is no number."""

    label: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None


@dataclass(frozen=True)
class Grid:
    """A heatmap: `values [row, column]`, NaN where there is no number, and whether a cell is the mean of several rows."""

    columns: tuple[str, ...]
    rows: tuple[str, ...]
    values: np.ndarray
    averaged: bool


def check(figure: Figure, table: ResultTable) -> None:
    """Raise VerificationError where a figure names a column its table does not have, or lacks a y or series that its kind needs."""
    needed = [figure.x, *figure.y, figure.series, figure.low, figure.high]
    for column in needed:
        if column is not None and column not in table.columns:
            close = nearest(column, table.columns)
            hint = f"; did you mean '{close}'?" if close else ""
            raise VerificationError(f"figure '{figure.name}': table '{table.name}' has no column '{column}'{hint}")
    if not figure.y and figure.kind != "histogram":
        raise VerificationError(f"figure '{figure.name}': a {figure.kind} needs at least one y column")
    if figure.kind == "graph" and figure.series is None:
        raise VerificationError(f"figure '{figure.name}': a graph needs a series column, which its lines lead to")


def series_of(figure: Figure, table: ResultTable, axis: Axis) -> list[Series]:
    """Return the series of a line, scatter or bar figure: y columns times values of `series`. The interval belongs to the first y."""
    found = []
    for group, rows in _groups(figure, table):
        x = axis.positions([row.get(figure.x) for row in rows])
        for column in figure.y:
            name = " · ".join(part for part in (group, column if len(figure.y) > 1 else None) if part is not None)
            bounds = (figure.low, figure.high) if column == figure.y[0] and figure.low and figure.high else ()
            interval = [numbers([row.get(bound) for row in rows]) for bound in bounds]
            found.append(Series(name, x, numbers([row.get(column) for row in rows]), *interval))
    return found


def samples_of(figure: Figure, table: ResultTable) -> list[tuple[str, np.ndarray]]:
    """Return the finite numbers of `x` for each value of `series`."""
    groups = ((group or "", numbers([row.get(figure.x) for row in rows])) for group, rows in _groups(figure, table))
    return [(group, values[np.isfinite(values)]) for group, values in groups]


def grid_of(figure: Figure, table: ResultTable) -> Grid:
    """Return the cells of a heatmap; numbers on an axis are put in order, names stay in theirs."""
    columns = _ordered([row.get(figure.x) for row in table.rows])
    rows = _ordered([row.get(figure.series) if figure.series else None for row in table.rows])
    column_at, row_at = ({name: index for index, name in enumerate(names)} for names in (columns, rows))
    total, count = np.zeros((len(rows), len(columns))), np.zeros((len(rows), len(columns)), dtype=int)
    for row, value in zip(table.rows, numbers([row.get(figure.y[0]) for row in table.rows]), strict=True):
        if np.isfinite(value):
            at = row_at[label(row.get(figure.series) if figure.series else None)], column_at[label(row.get(figure.x))]
            total[at] += value
            count[at] += 1
    values = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return Grid(columns, rows if figure.series else ("",), values, bool((count > 1).any()))


def needs_log(values: Sequence[float]) -> bool:
    """Whether a few distinct numbers stand apart on a logarithmic axis and crowd on a linear one.

    >>> needs_log([2, 4, 8, 16, 32]), needs_log([3, 6, 12]), needs_log([0, 1, 100])
    (True, False, False)
    """
    seen = np.unique(np.asarray(values, dtype=np.float64))
    if not 2 < len(seen) <= MOST_SETTINGS or seen[0] <= 0:
        return False
    linear, log = (float(np.diff(at).min() / np.ptp(at)) for at in (seen, np.log(seen)))
    return linear < LEAST_GAP and log > 2 * linear


def are_round(values: np.ndarray) -> bool:
    """Whether three digits say every number, as they do of settings and seldom of measurements."""
    return all(np.isclose(value, float(f"{value:.3g}"), rtol=1e-9, atol=0.0) for value in values.tolist())


def label(value: Cell) -> str:
    """Return a category as text."""
    if value is None:
        return MISSING
    return f"{value:g}" if isinstance(value, float) else str(value)


def numbers(values: Sequence[Cell]) -> np.ndarray:
    """Return values as float64; NaN for what is no number."""
    return np.array([float(value) if _is_number(value) else np.nan for value in values], dtype=np.float64)  # type: ignore[arg-type]


def _is_number(value: Cell) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _groups(figure: Figure, table: ResultTable) -> list[tuple[str | None, list[dict[str, Cell]]]]:
    if figure.series is None:
        return [(None, table.rows)]
    groups: dict[str, list[dict[str, Cell]]] = {}
    for row in table.rows:
        groups.setdefault(label(row.get(figure.series)), []).append(row)
    return list(groups.items())


def _ordered(values: list[Cell]) -> tuple[str, ...]:
    seen = list(dict.fromkeys(values))
    if all(_is_number(value) for value in seen):
        seen.sort(key=float)  # type: ignore[arg-type]
    return tuple(dict.fromkeys(label(value) for value in seen))
