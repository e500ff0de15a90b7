"""One function for each kind of figure. Each draws on given axes and returns remarks a reader must know."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from mlinterp.reports import plot_style as look
from mlinterp.reports.plot_data import Axis, Series, grid_of, label, samples_of, series_of
from mlinterp.result import Figure, ResultTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LYING_BARS = 40
"""Up to so many bars lie down, one labelled row each; more stand side by side."""


def draw_line(axes: Axes, figure: Figure, table: ResultTable) -> list[str]:
    """Draw lines; a missing value is a gap."""
    axis = Axis.of(row.get(figure.x) for row in table.rows)
    remarks, entries = _Remarks(figure), []
    for index, series in enumerate(series_of(figure, table, axis)):
        x, y = remarks.visible(series.x, series.y, axis)
        order = np.argsort(x, kind="stable")[: int(np.isfinite(x).sum())]
        x, y, tint = x[order], y[order], look.colour(index)
        dots = look.marker(index) if len(x) <= 40 else ""
        white: dict[str, Any] = {"markersize": 4.5, "markeredgecolor": "white", "markeredgewidth": 0.6}
        (line,) = axes.plot(x, y, color=tint, linestyle=look.dash(index), marker=dots, **white)
        if not dots:
            alone = _isolated(y)
            axes.plot(x[alone], y[alone], color=tint, linestyle="", marker=".", markersize=4)
        if series.low is not None and series.high is not None:
            low, high = remarks.bounds(series)
            axes.fill_between(x, low[order], high[order], color=tint, alpha=0.16, linewidth=0)
        entries.append((line, series.label))
    _finish(axes, figure, axis, entries, remarks)
    return remarks.lines


def draw_scatter(axes: Axes, figure: Figure, table: ResultTable) -> list[str]:
    """Draw points; the more there are, the smaller and more transparent."""
    axis = Axis.of(row.get(figure.x) for row in table.rows)
    remarks, entries = _Remarks(figure), []
    size = float(np.clip(9000 / max(len(table.rows), 1), 4, 38))
    alpha = float(np.clip(700 / max(len(table.rows), 1), 0.25, 0.85))
    for index, series in enumerate(series_of(figure, table, axis)):
        x, y = remarks.visible(series.x, series.y, axis)
        kind, tint = look.marker(index), look.colour(index)
        if series.low is not None:
            low, high = remarks.bounds(series)
            axes.vlines(x, low, high, color=tint, alpha=0.6, linewidth=1.2)
        axes.scatter(x, y, s=size, color=tint, marker=kind, alpha=alpha, linewidths=0)
        entries.append((Line2D([], [], color=tint, marker=kind, linestyle="", markersize=6), series.label))
    _finish(axes, figure, axis, entries, remarks)
    return remarks.lines


def draw_bar(axes: Axes, figure: Figure, table: ResultTable) -> list[str]:
    """Draw bars, lying down where labels are long; a missing value is a hatched slot."""
    axis, categories = bar_categories(figure, table)
    series = series_of(figure, table, axis)
    remarks, entries = _Remarks(figure), []
    lying = bars_lie(categories)
    thickness = (0.78 if len(categories) <= LYING_BARS else 1.0) / max(len(series), 1)
    if figure.log_y:
        (axes.set_xscale if lying else axes.set_yscale)("log")
    gaps = False
    for index, one in enumerate(series):
        at = one.x + (index - (len(series) - 1) / 2) * thickness
        _, y = remarks.visible(one.x, one.y, axis)
        tint = look.colour(index)
        drawn = np.isfinite(y)
        (axes.barh if lying else axes.bar)(at[drawn], y[drawn], thickness * 0.94, color=tint, alpha=0.88)
        if one.low is not None:
            low, high = remarks.bounds(one)
            (axes.hlines if lying else axes.vlines)(at, low, high, color=look.INK, linewidth=1.2)
        for place in at[~np.isfinite(one.y)]:
            gaps = True
            span = axes.axhspan if lying else axes.axvspan
            span(place - thickness * 0.47, place + thickness * 0.47, facecolor="none", edgecolor="#BBBBBB", hatch="////", linewidth=0)
        entries.append((Patch(color=tint, alpha=0.88), one.label))
    _bar_axes(axes, figure, categories, lying)
    _finish(axes, figure, None, entries, remarks, gaps=gaps, lying=lying)
    return remarks.lines


def bar_categories(figure: Figure, table: ResultTable) -> tuple[Axis, tuple[str, ...]]:
    """Return the axis of a bar figure, which always has categories (numbers in order), and their labels."""
    axis = Axis.of(row.get(figure.x) for row in table.rows)
    if axis.categories is None:
        values = sorted({row.get(figure.x) for row in table.rows} - {None}, key=float)  # type: ignore[arg-type]
        rest = [row.get(figure.x) for row in table.rows if row.get(figure.x) is None]
        axis = Axis(tuple(dict.fromkeys(label(value) for value in [*values, *rest])))
    return axis, axis.categories or ()


def bars_lie(categories: tuple[str, ...]) -> bool:
    """Whether bars lie down: labels too long to stand under them, and few enough for a row each."""
    return len(categories) <= LYING_BARS and sum(min(len(name), look.LONGEST_LABEL) + 2 for name in categories) > 84


def draw_histogram(axes: Axes, figure: Figure, table: ResultTable) -> list[str]:
    """Draw how many rows have which value; the series share their bins."""
    remarks, entries = _Remarks(figure), []
    groups = [(name, remarks.positive(values) if figure.log_x else values) for name, values in samples_of(figure, table)]
    remarks.missing(sum(1 for row in table.rows) - sum(len(values) for _, values in groups) - remarks.dropped)
    every = np.concatenate([values for _, values in groups]) if groups else np.empty(0)
    if len(every):
        edges = _edges(every, log=figure.log_x).tolist()
        for index, (name, values) in enumerate(groups):
            tint, several = look.colour(index), len(groups) > 1
            axes.hist(values, edges, color=tint, alpha=0.3 if several else 0.88, histtype="stepfilled" if several else "bar", rwidth=0.96)
            if several:
                axes.hist(values, edges, color=tint, histtype="step", linewidth=1.5, linestyle=look.dash(index))
            entries.append((Patch(facecolor=tint, edgecolor=tint, alpha=0.6), name))
    if figure.log_x:
        axes.set_xscale("log")
    if figure.log_y:
        axes.set_yscale("log")
    else:
        look.number_ticks(axes.yaxis, np.zeros(1))
    axes.grid(visible=False, axis="x")
    _reference(axes, figure, entries, lying=True)
    look.legend(axes, [entry for entry in entries if entry[1]] if len(entries) > 1 else [])
    axes.set_xlabel(look.text(figure.x_label or figure.x, 90))
    axes.set_ylabel(look.side_label(figure.y_label or "count"))
    return remarks.lines


def draw_heatmap(axes: Axes, figure: Figure, table: ResultTable) -> list[str]:
    """Draw cells by colour, diverging around zero where both signs occur; a missing value is a hatched cell."""
    grid = grid_of(figure, table)
    n_rows, n_columns = grid.values.shape
    shown = np.ma.masked_invalid(grid.values)
    axes.grid(visible=False)
    axes.patch.set(facecolor="#F4F4F4", hatch="////", edgecolor="#BBBBBB")
    image = axes.imshow(shown, aspect="auto", interpolation="nearest", **_colours(grid.values, figure))
    bar = axes.figure.colorbar(image, ax=axes, pad=0.015, fraction=0.05, aspect=max(20.0, 7 * _height(axes)))
    bar.outline.set_visible(False)
    bar.set_label(look.side_label(figure.value_label or figure.y[0]))
    for spine in axes.spines.values():
        spine.set_visible(False)
    if n_columns <= 60 and n_rows <= 60:
        axes.set_xticks(np.arange(1, n_columns) - 0.5, minor=True)
        axes.set_yticks(np.arange(1, n_rows) - 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=0.8)
        axes.tick_params(which="minor", length=0)
    look.category_ticks(axes.xaxis, grid.columns, 40, rotate=True)
    look.category_ticks(axes.yaxis, grid.rows, 60)
    if grid.values.size <= 240 and n_columns <= 16:
        _write_cells(axes, image, shown)
    if np.isnan(grid.values).any():
        look.legend(axes, [(Patch(facecolor="#F4F4F4", edgecolor="#BBBBBB", hatch="////"), "no data")])
    axes.set_xlabel(look.text(figure.x_label or figure.x, 90))
    axes.set_ylabel(look.side_label(figure.y_label or figure.series or ""))
    return ["cells that several rows fall into show their mean"] if grid.averaged else []


def _colours(values: np.ndarray, figure: Figure) -> dict[str, Any]:
    finite = values[np.isfinite(values)]
    if figure.full is not None:
        return {"cmap": "cividis", "vmin": 0.0, "vmax": figure.full}
    if figure.log_y and (finite > 0).any():
        from matplotlib.colors import LogNorm

        positive = finite[finite > 0]
        return {"cmap": "cividis", "norm": LogNorm(positive.min(), max(positive.max(), positive.min() * 1.0001))}
    if len(finite) and finite.min() < 0 < finite.max():
        reach = np.abs(finite).max()
        return {"cmap": "RdBu_r", "vmin": -reach, "vmax": reach}
    if len(finite) and finite.max() <= 0 and finite.min() < 0:
        return {"cmap": "Blues_r", "vmin": finite.min(), "vmax": 0.0}
    return {"cmap": "cividis"}


def _height(axes: Axes) -> float:
    return float(axes.figure.get_figheight())  # type: ignore[union-attr]


def _write_cells(axes: Axes, image: Any, values: Any) -> None:
    """Write every cell's number, with as many decimals as give the largest of them two digits; none where that is past four."""
    reach = float(np.abs(values).max()) or 1.0
    decimals = max(0, 1 - math.floor(math.log10(reach)))
    if decimals > 4 or reach >= 1e5:
        return
    for (row, column), value in np.ma.ndenumerate(values):
        red, green, blue, _ = image.cmap(image.norm(value))
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
        shown = f"{round(float(value), decimals) + 0.0:.{decimals}f}"
        axes.text(column, row, shown, ha="center", va="center", fontsize=7.5, color="white" if dark else look.INK)


def _edges(values: np.ndarray, *, log: bool) -> np.ndarray:
    """Return bin edges: one bin a whole number where there are few, else Freedman and Diaconis's width, 10 to 60 bins."""
    if not log and np.all(values == np.round(values)) and np.ptp(values) <= 60:
        return np.arange(values.min() - 0.5, values.max() + 1.5)
    scaled = np.log10(values) if log else values
    spread = float(np.ptp(scaled))
    if spread == 0:
        edges = scaled[0] + np.array([-0.5, 0.5]) * max(1.0, 1e-6 * abs(float(scaled[0])))
    else:
        quartiles = np.quantile(scaled, [0.25, 0.75])
        width = 2 * float(quartiles[1] - quartiles[0]) / len(scaled) ** (1 / 3)
        bins = int(np.clip(spread / width if width > 0 else 0, 10, 60))
        edges = np.linspace(scaled.min(), scaled.max(), bins + 1)
    return 10**edges if log else edges


def _isolated(y: np.ndarray) -> np.ndarray:
    gap = np.concatenate([[True], ~np.isfinite(y), [True]])
    return ~gap[1:-1] & gap[:-2] & gap[2:]


def _bar_axes(axes: Axes, figure: Figure, categories: tuple[str, ...], lying: bool) -> None:
    along, across = (axes.yaxis, axes.xaxis) if lying else (axes.xaxis, axes.yaxis)
    if lying:
        look.category_ticks(along, categories, LYING_BARS, longest=42)
    else:
        look.category_ticks(along, categories, 20, rotate=True)
    along.grid(visible=False)
    across.grid(visible=True)
    if lying:
        axes.set_ylim(len(categories) - 0.4, -0.6)
    else:
        axes.set_xlim(-0.6, len(categories) - 0.4)
    if not figure.log_y:
        (axes.axvline if lying else axes.axhline)(0, color="#999999", linewidth=0.8)


def _finish(
    axes: Axes,
    figure: Figure,
    axis: Axis | None,
    entries: list[tuple[Any, str]],
    remarks: _Remarks,
    *,
    gaps: bool = False,
    lying: bool = False,
) -> None:
    """Scales, ticks, labels, reference line and legend, alike for lines, points and bars."""
    x_label, y_label = figure.x_label or figure.x, figure.y_label or (figure.y[0] if len(figure.y) == 1 else "")
    if axis is not None:
        if axis.categories is not None:
            look.category_ticks(axes.xaxis, axis.categories, 40, rotate=True)
        elif not figure.log_x:
            look.number_ticks(axes.xaxis, remarks.seen_x())
        if figure.log_x and axis.categories is None:
            axes.set_xscale("log")
            look.setting_ticks(axes.xaxis, remarks.seen_x())
        if figure.log_y:
            axes.set_yscale("log")
    axes.set_xlabel(look.text(y_label if lying else x_label, 90))
    axes.set_ylabel(look.side_label(x_label if lying else y_label))
    named = [entry for entry in entries if entry[1]]
    if gaps:
        named.append((Patch(facecolor="none", edgecolor="#BBBBBB", hatch="////"), "no data"))
    _reference(axes, figure, named, lying=lying)
    look.legend(axes, named)


def _reference(axes: Axes, figure: Figure, entries: list[tuple[Any, str]], *, lying: bool) -> None:
    if figure.reference is not None:
        line = (axes.axvline if lying else axes.axhline)(figure.reference, color=look.SOFT, linewidth=1.3, linestyle=(0, (4, 3)))
        entries.append((line, f"reference {figure.reference:.4g}"))


class _Remarks:
    """Counts what an axis cannot show, so that the figure says it."""

    def __init__(self, figure: Figure) -> None:
        self.figure = figure
        self.dropped = 0
        self.absent = 0
        self._x: list[np.ndarray] = []

    def visible(self, x: np.ndarray, y: np.ndarray, axis: Axis) -> tuple[np.ndarray, np.ndarray]:
        """Return x and y with NaN where a log axis has no place."""
        self.absent += int((~np.isfinite(y) | ~np.isfinite(x)).sum())
        bad = np.zeros(len(x), dtype=bool)
        if self.figure.log_x and axis.categories is None:
            bad |= x <= 0
        if self.figure.log_y:
            bad |= y <= 0
        self.dropped += int(bad.sum())
        x, y = x.copy(), y.copy()
        y[bad] = np.nan
        if self.figure.log_x and axis.categories is None:
            x[x <= 0] = np.nan
        self._x.append(x[np.isfinite(x)])
        return x, y

    def bounds(self, series: Series) -> tuple[np.ndarray, np.ndarray]:
        """Return the interval with NaN where it is not whole, has no value in it or cannot stand on a log axis."""
        assert series.low is not None
        assert series.high is not None
        whole = np.isfinite(series.low) & np.isfinite(series.high) & np.isfinite(series.y)
        if self.figure.log_y:
            whole &= series.low > 0
        return np.where(whole, series.low, np.nan), np.where(whole, series.high, np.nan)

    def positive(self, values: np.ndarray) -> np.ndarray:
        """Return the values a log axis can show."""
        self.dropped += int((values <= 0).sum())
        return values[values > 0]

    def missing(self, count: int) -> None:
        """Count rows without a value."""
        self.absent += count

    def seen_x(self) -> np.ndarray:
        """Return every x drawn."""
        return np.concatenate(self._x) if self._x else np.empty(0)

    @property
    def lines(self) -> list[str]:
        """What to write under the figure."""
        found = []
        if self.dropped:
            found.append(f"{_count(self.dropped, 'value')} ≤ 0 cannot stand on the log axis")
        if self.absent:
            found.append(f"{_count(self.absent, 'value')} missing")
        return found


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
