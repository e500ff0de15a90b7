"""A graph drawn in columns: a line for each row, from its `x` to its `series`, as wide as |y| and coloured by its sign.

Names that share what stands before their first `/` share a column, under that as a heading; every line leads from left to right.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch

from mlinterp.errors import VerificationError
from mlinterp.reports import plot_style as look
from mlinterp.reports.plot_data import label, numbers
from mlinterp.result import Figure, ResultTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

UP, DOWN = look.COLOURS[0], look.COLOURS[1]
_SWEEPS = 8
"""How often columns are ordered by their neighbours."""
_WIDEST, _THINNEST = 5.0, 0.6
"""Line widths in points."""


class Layout(NamedTuple):
    """Where everything stands.

    Attributes:
        headings: of the columns, from left to right.
        columns: the names in each, from top to bottom.
        lines: from, to and weight.
    """

    headings: list[str]
    columns: list[list[str]]
    lines: list[tuple[str, str, float]]

    @property
    def at(self) -> dict[str, tuple[float, float]]:
        """Each name's place: its column, and its height, with the columns centred."""
        tallest = self.height
        return {name: (float(x), (tallest - len(names)) / 2 + y) for x, names in enumerate(self.columns) for y, name in enumerate(names)}

    @property
    def height(self) -> int:
        """Names in the tallest column."""
        return max((len(names) for names in self.columns), default=0)


def layout_of(figure: Figure, table: ResultTable) -> Layout:
    """Return where a graph's names stand. Raises VerificationError where its lines cannot all lead from left to right."""
    weights = numbers([row.get(figure.y[0]) for row in table.rows])
    lines = [
        (label(row.get(figure.x)), label(row.get(figure.series or "")), float(weight))
        for row, weight in zip(table.rows, weights, strict=True)
        if np.isfinite(weight)
    ]
    names = list(dict.fromkeys(name for one, other, _ in lines for name in (one, other)))
    headings = _ordered(figure, names, {(_heading(one), _heading(other)) for one, other, _ in lines})
    columns = [[name for name in names if _heading(name) == heading] for heading in headings]
    for sweep in range(_SWEEPS):
        places = Layout(headings, columns, lines).at
        forward = sweep % 2 == 0
        columns = [sorted(column, key=lambda name: _centre(name, lines, places, forward)) for column in columns]
    return Layout(headings, columns, lines)


def _heading(name: str) -> str:
    return name.split("/", 1)[0]


def _ordered(figure: Figure, names: list[str], links: set[tuple[str, str]]) -> list[str]:
    """Return the columns so that every line leads to a later one.

    Those that no line orders go by the numbers in their headings, as layers do, else as they came; an end without a number is last.
    """
    lead_on = {one for one, _ in links}
    waiting, found = list(dict.fromkeys(_heading(name) for name in names)), list[str]()
    numbered = {one: [int(number) for number in re.findall(r"\d+", one)] for one in waiting}
    waiting.sort(key=lambda one: (not numbered[one] and one not in lead_on, numbered[one]))
    while waiting:
        free = [one for one in waiting if not any(other in waiting for other, to in links if to == one)]
        if not free:
            raise VerificationError(f"figure '{figure.name}': the columns {', '.join(waiting)} lead to each other")
        found.append(free[0])
        waiting.remove(free[0])
    return found


def _centre(name: str, lines: list[tuple[str, str, float]], at: dict[str, tuple[float, float]], forward: bool) -> float:
    """Return the mean height of a name's neighbours before (or after) it, weighted; its own where it has none."""
    near = [(at[one][1], abs(weight)) for one, other, weight in lines if other == name] if forward else []
    near = near if forward else [(at[other][1], abs(weight)) for one, other, weight in lines if one == name]
    total = sum(weight for _, weight in near)
    return sum(height * weight for height, weight in near) / total if total else at[name][1]


def draw_graph(axes: Axes, figure: Figure, table: ResultTable) -> list[str]:
    """Draw the graph; the thinnest lines lie below the others."""
    layout = layout_of(figure, table)
    at, largest = layout.at, max(abs(weight) for *_, weight in layout.lines) or 1.0
    axes.set_axis_off()
    axes.set_xlim(-0.5, len(layout.columns) - 0.5)
    axes.set_ylim(layout.height - 0.4, -1.2)
    room = max(10, round(88 / len(layout.columns)))
    for column, heading in enumerate(layout.headings):
        if any("/" in name for name in layout.columns[column]):
            axes.text(column, -0.95, look.text(heading, room), ha="center", va="center", fontsize=9.5, fontweight="bold", color=look.INK)
    for name, (x, y) in at.items():
        shown = look.text(name.split("/", 1)[-1], room)
        style = {"boxstyle": "round,pad=0.35", "facecolor": "white", "edgecolor": "#999999", "linewidth": 0.8}
        is_error = name.endswith("/error")
        axes.text(
            x,
            y,
            shown,
            ha="center",
            va="center",
            fontsize=8.5,
            color=look.SOFT if is_error else look.INK,
            bbox=style,
            zorder=3,
            fontstyle="italic" if is_error else "normal",
        )
    for one, other, weight in sorted(layout.lines, key=lambda line: abs(line[2])):
        share = abs(weight) / largest
        axes.add_patch(
            FancyArrowPatch(
                at[one],
                at[other],
                arrowstyle="-",
                connectionstyle=f"arc3,rad={_bend(layout, one, other)}",
                linewidth=_THINNEST + (_WIDEST - _THINNEST) * share,
                color=UP if weight > 0 else DOWN,
                alpha=0.35 + 0.5 * share,
                shrinkA=0,
                shrinkB=0,
                zorder=1 + share,
            )
        )
    signs = [sign for sign in (1, -1) if any(weight * sign > 0 for *_, weight in layout.lines)]
    look.legend(
        axes, [(Line2D([], [], color=UP if sign > 0 else DOWN, linewidth=3), "positive" if sign > 0 else "negative") for sign in signs]
    )
    return [f"left acts on right; widest line: {largest:.3g}"]


def _bend(layout: Layout, one: str, other: str) -> float:
    """Return how far a line bends: past names in between where it skips columns."""
    (x, y), (to_x, to_y) = layout.at[one], layout.at[other]
    return 0.0 if to_x - x <= 1 else (0.18 if y + to_y > layout.height - 1 else -0.18)
