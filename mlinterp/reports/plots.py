"""Figures as PNG: what a result declares over its tables, drawn in one style. Equal tables give equal bytes."""

from __future__ import annotations

import io
import textwrap

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.layout_engine import ConstrainedLayoutEngine

from mlinterp.errors import VerificationError
from mlinterp.reports import plot_graph as graph
from mlinterp.reports import plot_kinds as kinds
from mlinterp.reports import plot_parallel as parallel
from mlinterp.reports import plot_style as look
from mlinterp.reports.plot_data import Axis, check, grid_of, numbers, series_of
from mlinterp.result import ExperimentResult, Figure, ResultTable

_DRAW = {
    "line": kinds.draw_line,
    "scatter": kinds.draw_scatter,
    "bar": kinds.draw_bar,
    "histogram": kinds.draw_histogram,
    "heatmap": kinds.draw_heatmap,
    "parallel": parallel.draw_parallel,
    "graph": graph.draw_graph,
}


def draw_all(result: ExperimentResult) -> dict[str, bytes]:
    """Return every declared figure as PNG by name. Raises VerificationError for a figure whose table or column does not exist."""
    return {figure.name: draw(figure, table_of(figure, result)) for figure in result.figures}


def table_of(figure: Figure, result: ExperimentResult) -> ResultTable:
    """Return the table a figure is declared over. Raises VerificationError where there is none."""
    if figure.table not in result.tables:
        there = ", ".join(result.tables) or "none"
        raise VerificationError(f"figure '{figure.name}': there is no table '{figure.table}' (there are: {there})")
    return result.tables[figure.table]


def draw(figure: Figure, table: ResultTable) -> bytes:
    """Return one figure as PNG, 1200 px wide. Raises VerificationError where it names a column the table does not have."""
    check(figure, table)
    with look.style():
        canvas = paint(figure, table)
        target = io.BytesIO()
        FigureCanvasAgg(canvas).print_png(target, metadata={"Software": None})
    return target.getvalue()


def paint(figure: Figure, table: ResultTable) -> Canvas:
    """Return a figure laid out but not yet drawn; call it inside `plot_style.style()`."""
    canvas = Canvas(figsize=(look.WIDTH, _height(figure, table)), dpi=look.DPI, layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))
    axes = canvas.add_subplot()
    title = look.text(figure.title or figure.name.replace("_", " ").capitalize(), 160)
    canvas.suptitle("\n".join(textwrap.wrap(title, 78)), x=0.012, ha="left", fontsize=11.5, fontweight="bold")
    if _is_empty(figure, table):
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no data", ha="center", va="center", fontsize=12, color=look.SOFT, transform=axes.transAxes)
        return canvas
    remarks = _DRAW[figure.kind](axes, figure, table)
    if remarks:
        canvas.supxlabel("; ".join(remarks), x=0.012, ha="left", fontsize=8.5, color=look.SOFT)
    return canvas


def _is_empty(figure: Figure, table: ResultTable) -> bool:
    if figure.kind == "histogram":
        values = numbers([row.get(figure.x) for row in table.rows])
        return not (values > 0 if figure.log_x else np.isfinite(values)).any()
    if figure.kind == "heatmap":
        return not table.rows or not np.isfinite(grid_of(figure, table).values).any()
    if figure.kind == "parallel":
        return parallel.is_empty(figure, table)
    if figure.kind == "graph":
        return not graph.layout_of(figure, table).lines
    axis = Axis.of(row.get(figure.x) for row in table.rows)
    points = [(one.x, one.y) for one in series_of(figure, table, axis)]
    return not any((np.isfinite(x) & (y > 0 if figure.log_y else np.isfinite(y))).any() for x, y in points)


def _height(figure: Figure, table: ResultTable) -> float:
    """Return the height in inches: rows that carry labels need room, everything else has one shape."""
    if figure.kind == "heatmap" and table.rows:
        grid = grid_of(figure, table)
        longest = min(max(map(len, grid.columns)), look.LONGEST_LABEL)
        return float(np.clip(1.6 + 0.06 * longest + 0.27 * len(grid.rows), 3.2, 14.0))
    if figure.kind == "graph":
        return float(np.clip(1.4 + 0.42 * graph.layout_of(figure, table).height, 3.2, 14.0))
    if figure.kind == "bar" and table.rows:
        axis, categories = kinds.bar_categories(figure, table)
        if kinds.bars_lie(categories):
            return float(np.clip(1.5 + len(categories) * (0.22 + 0.13 * len(series_of(figure, table, axis))), 2.8, 16.0))
    return 4.0
