"""The figures of a sweep, as one would draw them by hand: each main metric over the first number that was swept."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from mlinterp.reports.plot_data import needs_log
from mlinterp.result import Cell, ExperimentResult, Figure, ResultTable
from mlinterp.spec import Spec

MOST_SERIES = 8
"""Lines that one figure may hold and still be read."""
LEAST_GRID = 3
"""Values on each axis from which a heatmap says more than lines do."""


def sweep_figures(result: ExperimentResult, spec: Spec, shown: Sequence[str], frontiers: Sequence[tuple[str, str]]) -> None:
    """Declare a sweep's figures over its tables `settings` and `cells`.

    Each main metric over the first number that was swept, with its interval and a line for each value of what else was swept (of
    several such keys `settings` gets a column that joins them); as a map too where two numbers were swept; what trades against what;
    and every cell as a line of parallel coordinates. A metric that is the same everywhere is not drawn.

    Args:
        result: the sweep's; holds the tables already.
        spec: the sweep.
        shown: its main metrics.
        frontiers: pairs of metrics that trade against each other.
    """
    settings, cells = result.tables["settings"], result.tables["cells"]
    keys = [key for key in spec.matrix if key != "seed" and len(_distinct(settings, key)) > 1]
    if keys and len(settings.rows) > 1:
        x = next((key for key in keys if _is_numeric(settings, key)), keys[0])
        others = [key for key in keys if key != x]
        series = _series(settings, others)
        is_grid = len(keys) == 2 and all(_is_numeric(settings, key) and len(_distinct(settings, key)) >= LEAST_GRID for key in keys)
        moving = [metric for metric in shown if len(_distinct(settings, metric)) > 1]
        if not is_grid or len(_distinct(settings, others[0])) <= MOST_SERIES:
            result.figures += [_over(settings, x, metric, series) for metric in moving]
        if is_grid:
            result.figures += [_map(x, others[0], metric) for metric in moving]
        for first, second in frontiers:
            if {first, second} <= set(settings.columns):
                result.figures.append(_frontier(first, second, _tells_apart(settings, keys)))
    axes = [key for key in ("seed", *keys) if key in spec.matrix and len(_distinct(cells, key)) > 1]
    outcomes = [metric for metric in shown if len(_distinct(cells, metric)) > 1]
    if axes and outcomes:
        result.figures.append(
            Figure(
                name="parallel",
                table="cells",
                kind="parallel",
                x=axes[0],
                y=[*axes[1:], *outcomes],
                title="Every cell, from setting to outcome",
            )
        )


def _over(settings: ResultTable, x: str, metric: str, series: str | None) -> Figure:
    numeric = _is_numeric(settings, x)
    return Figure(
        name=f"by_{_slug(metric)}",
        table="settings",
        kind="line" if numeric else "bar",
        x=x,
        y=[metric],
        low=f"{metric} low",
        high=f"{metric} high",
        series=series,
        title=f"{metric} over {_short(x)}" + (f", for each {_short(series)}" if series else "") + ", with 95 % intervals",
        x_label=_short(x),
        y_label=metric,
        log_x=numeric and needs_log(_distinct(settings, x)),
    )


def _map(x: str, y: str, metric: str) -> Figure:
    words = f"{metric} over {_short(x)} and {_short(y)}"
    return Figure(
        name=f"map_{_slug(metric)}",
        table="settings",
        kind="heatmap",
        x=x,
        y=[metric],
        series=y,
        title=words,
        x_label=_short(x),
        y_label=_short(y),
    )


def _frontier(first: str, second: str, series: str | None) -> Figure:
    return Figure(
        name=f"frontier_{_slug(second)}"[:64],
        table="settings",
        kind="scatter",
        x=first,
        y=[second],
        low=f"{second} low",
        high=f"{second} high",
        series=series,
        title=f"{second} against {first}, a point for each setting",
        x_label=first,
        y_label=second,
    )


def _series(settings: ResultTable, others: Sequence[str]) -> str | None:
    """Return the column whose values become lines: the other key, or a new column that joins several."""
    if len(others) < 2:
        return others[0] if others else None
    column = ", ".join(_short(key) for key in others)
    settings.columns.insert(settings.columns.index("seeds"), column)
    for row in settings.rows:
        row[column] = ", ".join(f"{_short(key)} {row[key]}" for key in others)
    return column


def _tells_apart(settings: ResultTable, keys: Sequence[str]) -> str | None:
    """Return the key whose values a frontier's points are coloured by: a category, else the key with the fewest values."""
    few = [key for key in keys if len(_distinct(settings, key)) <= MOST_SERIES]
    ranked = sorted(few, key=lambda key: (_is_numeric(settings, key), len(_distinct(settings, key))))
    return ranked[0] if ranked and (len(keys) > 1 or not _is_numeric(settings, ranked[0])) else None


def _is_numeric(table: ResultTable, column: str) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in _distinct(table, column))


def _distinct(table: ResultTable, column: str) -> list[Any]:
    found: dict[Cell, None] = dict.fromkeys(row.get(column) for row in table.rows)
    return list(found)


def _short(key: str) -> str:
    return key.rsplit(".", 1)[-1]


def _slug(metric: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", metric.lower())[:50]
