"""Parallel coordinates: one upright axis for each column, one line across them for each row, coloured by its place on the last."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import colormaps
from matplotlib.collections import LineCollection
from matplotlib.ticker import MaxNLocator

from mlinterp.reports import plot_style as look
from mlinterp.reports.plot_data import LEAST_GAP, Axis, are_round, label, needs_log, numbers
from mlinterp.result import Cell, Figure, ResultTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_TICKS, FEW = 8, 5
"""Ticks of one axis, and values so few that each is a tick even where it is not round."""
BAND = 0.03
"""Lines that meet in one value are spread over a band of this height, as a share of the axis."""
_COLOURS = colormaps["viridis"].resampled(256)
_BRIGHTEST = 0.9
"""How far into the colours we go: what comes after is too pale on white."""


@dataclass(frozen=True)
class Upright:
    """One axis, scaled to 0 (bottom) to 1 (top).

    Attributes:
        name: its column.
        places: where each row crosses it, float64 `[n]`, NaN where it has no value there.
        ticks: labels with their places.
        is_log: whether it is logarithmic.
    """

    name: str
    places: np.ndarray
    ticks: tuple[tuple[float, str], ...]
    is_log: bool = False


def uprights(figure: Figure, table: ResultTable) -> list[Upright]:
    """Return the axes from left to right: numbers grow upwards, categories read downwards."""
    return [_upright(name, [row.get(name) for row in table.rows]) for name in (figure.x, *figure.y)]


def _upright(name: str, values: list[Cell]) -> Upright:
    axis = Axis.of(values)
    if axis.categories is not None:
        at = 1 - _scaled(np.arange(len(axis.categories), dtype=np.float64))
        place = dict(zip(axis.categories, at.tolist(), strict=True))
        stride = -(-len(at) // MOST_TICKS)
        return Upright(name, np.array([place[label(value)] for value in values]), tuple((place[c], c) for c in axis.categories[::stride]))
    found = numbers(values)
    seen = np.unique(found[np.isfinite(found)])
    is_log = needs_log(seen.tolist())
    chosen = seen if is_log or len(seen) <= FEW or (len(seen) <= MOST_TICKS and are_round(seen)) else _round_ticks(seen[0], seen[-1])
    every = np.log(np.concatenate([seen, chosen])) if is_log else np.concatenate([seen, chosen])
    places = dict(zip(np.concatenate([seen, chosen]).tolist(), _scaled(every).tolist(), strict=True))
    ticks: list[tuple[float, str]] = []
    for value in chosen.tolist():
        if not ticks or places[value] - ticks[-1][0] >= LEAST_GAP:
            ticks.append((places[value], f"{value:.4g}"))
    return Upright(name, np.array([places.get(value, np.nan) for value in found.tolist()]), tuple(ticks), is_log)


def _scaled(values: np.ndarray) -> np.ndarray:
    """Return values between 0 and 1; where they are all one, in the middle."""
    span = float(np.ptp(values))
    return (values - values.min()) / span if span > 0 else np.full(len(values), 0.5)


def _round_ticks(low: float, high: float) -> np.ndarray:
    """Return round numbers from `low` to `high`, both of these where fewer than two lie between them."""
    found = np.asarray(MaxNLocator(nbins=MOST_TICKS - 2).tick_values(low, high))
    found = found[(found >= low) & (found <= high)]
    return found if len(found) > 1 else np.array([low, high])


def spread(places: np.ndarray) -> np.ndarray:
    """Return `places [n, axes]` with rows apart that meet in one place, those that end lowest on the last axis lowest."""
    n = len(places)
    rank = np.argsort(np.argsort(np.nan_to_num(places[:, -1], nan=-1.0), kind="stable"), kind="stable")
    offset = BAND * ((rank + 0.5) / n - 0.5)
    crowded = [n >= 2 * len(np.unique(column[np.isfinite(column)])) for column in places.T]
    return places + np.outer(offset, crowded)


def draw_parallel(axes: Axes, figure: Figure, table: ResultTable) -> list[str]:
    """Draw every row as a line; it stops where a value is missing, and is grey where the last one is."""
    lines = uprights(figure, table)
    room = max(6, 84 // len(lines))
    places = np.column_stack([upright.places for upright in lines])
    n, last = len(places), len(lines) - 1
    tints = [_tint(place) for place in places[:, last]]
    apart = spread(places)
    for i in range(last):
        whole = np.isfinite(apart[:, i : i + 2]).all(axis=1)
        segments = [[(i, row[i]), (i + 1, row[i + 1])] for row in apart[whole]]
        colours = [tint for tint, there in zip(tints, whole, strict=True) if there]
        width, alpha = float(np.clip(40 / max(n, 1), 0.9, 2.0)), float(np.clip(40 / max(n, 1), 0.45, 0.9))
        axes.add_collection(LineCollection(segments, colors=colours, linewidths=width, alpha=alpha, capstyle="round"))
    for i, upright in enumerate(lines):
        axes.plot([i, i], [0, 1], color="#999999", linewidth=1.0, zorder=3)
        behind = {"facecolor": "white", "edgecolor": "none", "alpha": 0.78, "pad": 0.8}
        for place, shown in upright.ticks:
            axes.plot([i, i + 0.02], [place, place], color="#999999", linewidth=0.8, zorder=3)
            axes.text(i + 0.035, place, look.text(shown, room), va="center", fontsize=8.5, color=look.INK, bbox=behind, zorder=4)
    steps = np.linspace(0, 1, 65)
    strip = [[(last, low), (last, high)] for low, high in itertools.pairwise(steps)]
    axes.add_collection(LineCollection(strip, colors=[_tint(step) for step in steps[:-1]], linewidths=5.0, capstyle="butt", zorder=3.5))
    axes.set(xlim=(-0.05, last + 0.05), ylim=(-0.04, 1.04))
    axes.set_xticks(range(len(lines)), [wrapped(upright.name + (" (log)" if upright.is_log else ""), room) for upright in lines])
    axes.tick_params(axis="x", length=0, pad=6)
    axes.set_yticks([])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    missing = int((~np.isfinite(places)).sum())
    about = [f"a line for each of {n} rows, coloured by {look.text(lines[last].name, 60)}"]
    return [*about, f"{missing} value{'s' if missing > 1 else ''} missing"] if missing else about


def _tint(place: float) -> tuple[float, float, float, float]:
    return _COLOURS(place * _BRIGHTEST) if math.isfinite(place) else (0.75, 0.75, 0.75, 1.0)


def wrapped(name: str, width: int, most: int = 3) -> str:
    """Return a name broken after `/`, `_`, `.` or a space into at most `most` lines of about `width` characters; its end is kept."""
    longest = width * most
    lines = [""]
    for part in re.findall(r"[^/_. ]*[/_. ]?", look.text(name if len(name) <= longest else f"…{name[-longest:]}")):
        if lines[-1] and len(lines[-1]) + len(part) > width and len(lines) < most:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def is_empty(figure: Figure, table: ResultTable) -> bool:
    """Whether no row says anything on any axis."""
    columns: Sequence[str] = (figure.x, *figure.y)
    return all(row.get(name) is None for row in table.rows for name in columns)
