"""Estimates with their intervals, one below the other, a panel for each metric: where runs agree and where they do not, at a glance."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from mlinterp.reports import plot_style as look

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST = 12
"""Panels of one figure."""
_ROW, _FRAME = 0.24, 0.62
"""Inches of a row, and of what stands around the rows of a panel."""


@dataclass(frozen=True)
class Mark:
    """One estimate: its row, its value and its interval where it has one."""

    row: str
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Panel:
    """One metric: a mark for each run that has it, and what the metric would be if there were nothing to find."""

    title: str
    marks: tuple[Mark, ...]
    null: float | None = None


def draw_forest(panels: Sequence[Panel], rows: Sequence[str]) -> bytes:
    """Return the first `MOST` panels as one PNG, 1200 px wide; `rows` stand in the same order and colours in each."""
    with look.style():
        target = io.BytesIO()
        FigureCanvasAgg(_paint(panels[:MOST], rows)).print_png(target, metadata={"Software": None})
    return target.getvalue()


def _paint(panels: Sequence[Panel], rows: Sequence[str]) -> Canvas:
    height = len(panels) * (_FRAME + _ROW * len(rows)) + 0.3
    canvas = Canvas(figsize=(look.WIDTH, height), dpi=look.DPI, layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06))
    for axes, panel in zip(canvas.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
        _draw(axes, panel, rows)
    if any(panel.null is not None for panel in panels):
        nothing = Line2D([], [], color=look.SOFT, linewidth=1.3, linestyle=(0, (4, 3)))
        canvas.legend([nothing], ["if there were nothing to find"], loc="outside lower right")
    return canvas


def _draw(axes: Axes, panel: Panel, rows: Sequence[str]) -> None:
    axes.set_title(look.text(panel.title, 90), loc="left", fontsize=10)
    if panel.null is not None:
        axes.axvline(panel.null, color=look.SOFT, linewidth=1.3, linestyle=(0, (4, 3)))
    for mark in panel.marks:
        at = list(rows).index(mark.row)
        tint = look.colour(at)
        if mark.low is not None and mark.high is not None:
            axes.hlines(at, mark.low, mark.high, color=tint, linewidth=2)
            axes.vlines([mark.low, mark.high], at - 0.16, at + 0.16, color=tint, linewidth=1.3)
        axes.plot([mark.value], [at], color=tint, marker=look.marker(at), markersize=6, markeredgecolor="white", markeredgewidth=0.6)
    axes.set_yticks(np.arange(len(rows)), [look.text(row, look.LONGEST_LABEL) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8))
