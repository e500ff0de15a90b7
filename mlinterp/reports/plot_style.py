"""The one look of every figure: palette, sizes, labels, legend."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.font_manager import findfont, get_font
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from mlinterp.io.text import visible
from mlinterp.reports.plot_data import are_round

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis as DrawnAxis

WIDTH, DPI = 8.0, 150
"""1200 px: sharp at the 900 px of the MLflow UI, where ticks come to about 14 px."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5B5B5B")
"""Okabe and Ito's palette without yellow (too pale on white), dark grey for black."""

DASHES = ("-", (0, (5, 2)), (0, (1.2, 1.6)), (0, (6, 2, 1.2, 2)))
MARKERS = ("o", "s", "^", "D")
"""Past seven series colours repeat with another dash and marker."""

INK, SOFT, FAINT = "#222222", "#666666", "#DDDDDD"
LONGEST_LABEL = 30

_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": "#999999",
    "axes.labelcolor": INK,
    "axes.labelsize": 10,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": "#E9E9E9",
    "grid.linewidth": 0.8,
    "xtick.color": "#999999",
    "ytick.color": "#999999",
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.7,
    "hatch.linewidth": 0.6,
    "hatch.color": "#BBBBBB",
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "figure.facecolor": "white",
    "agg.path.chunksize": 20000,
}
_LOCK = Lock()


@contextmanager
def style() -> Iterator[None]:
    """Draw in our style whatever the user's matplotlibrc says; settings are matplotlib's global state, hence the lock."""
    with _LOCK, matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def colour(index: int) -> str:
    """Return the colour of a series."""
    return COLOURS[index % len(COLOURS)]


def dash(index: int) -> Any:
    """Return the line style of a series."""
    return DASHES[index // len(COLOURS) % len(DASHES)]


def marker(index: int) -> str:
    """Return the marker of a series."""
    return MARKERS[index // len(COLOURS) % len(MARKERS)]


def text(value: str, longest: int | None = None) -> str:
    """Return text that matplotlib draws literally: no math, no missing glyph, spaces at the ends shown, at most `longest` characters."""
    shown = "".join(char if _has_glyph(char) else char.encode("unicode_escape").decode() for char in visible(value))
    body = shown.strip(" ")
    lead = len(shown) - len(shown.lstrip(" "))
    shown = "␣" * lead + body + "␣" * (len(shown) - lead - len(body))
    if longest is not None and len(shown) > longest:
        shown = shown[: longest * 2 // 3] + "…" + shown[-(longest - longest * 2 // 3 - 1) :]
    return shown.replace("$", r"\$")


def side_label(value: str) -> str:
    """Return the label of an upright axis, in at most two lines that fit beside it."""
    return "\n".join(textwrap.wrap(text(value, 56), 30)[:2])


@lru_cache(4096)
def _has_glyph(char: str) -> bool:
    return bool(get_font(findfont("DejaVu Sans")).get_char_index(ord(char)))


def category_ticks(axis: DrawnAxis, labels: Sequence[str], most: int, *, rotate: bool = False, longest: int = LONGEST_LABEL) -> None:
    """Put category labels on an axis, evenly thinned to at most `most`; long ones slant where `rotate` is set."""
    numeric = all(name.lstrip("-").replace(".", "").isdigit() for name in labels)
    if rotate and numeric:
        most = min(most, 88 // (max(map(len, labels)) + 2))
    stride = -(-len(labels) // most)
    chosen = range(0, len(labels), stride)
    shown = [text(labels[index], longest) for index in chosen]
    axis.set_major_locator(FixedLocator(list(chosen)))
    if rotate and not numeric and sum(map(len, shown)) + 2 * len(shown) > 80:
        axis.set_ticklabels(shown, rotation=50, ha="right", rotation_mode="anchor")
    else:
        axis.set_ticklabels(shown)
    axis.set_tick_params(length=0 if stride == 1 else 3)


def number_ticks(axis: DrawnAxis, values: np.ndarray) -> None:
    """Put ticks on the values themselves where they are few, round and far between, and on whole numbers where every value is one."""
    distinct = np.unique(values)
    if 1 < len(distinct) <= 10 and are_round(distinct) and np.diff(distinct).min() >= 0.05 * np.ptp(distinct):
        axis.set_major_locator(FixedLocator(distinct.tolist()))
    elif np.all(values == np.round(values)):
        axis.set_major_locator(MaxNLocator(nbins=9, integer=True, min_n_ticks=1))


def setting_ticks(axis: DrawnAxis, values: np.ndarray) -> None:
    """Put the ticks of a logarithmic axis on the values themselves where they are few, in plain numbers."""
    distinct = np.unique(values)
    if len(distinct) <= 12:
        axis.set_major_locator(FixedLocator(_apart(distinct)))
        axis.set_major_formatter("{x:.4g}")
        axis.set_minor_locator(NullLocator())


def _apart(values: np.ndarray) -> list[float]:
    """Return those ascending positive values whose labels have room beside the one before on a logarithmic axis."""
    least = 0.05 * np.log(values[-1] / values[0]) if len(values) else 0.0
    kept: list[float] = []
    for value in values.tolist():
        if not kept or np.log(value / kept[-1]) >= least:
            kept.append(value)
    return kept


def legend(axes: Axes, entries: Sequence[tuple[Any, str]], most: int = 24) -> None:
    """Put a legend outside the axes: above them in one line where it fits, else to their right."""
    if not entries:
        return
    shown = [text(name, LONGEST_LABEL) for _, name in entries[:most]]
    if len(entries) > most:
        shown[-1] = f"… and {len(entries) - most + 1} more"
    above = sum(map(len, shown)) + 5 * len(shown) <= 88
    place = (
        {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": len(shown), "borderpad": 0.2, "borderaxespad": 0.2, "columnspacing": 1.6}
        if above
        else {"loc": "upper left", "bbox_to_anchor": (1.01, 1.01), "borderaxespad": 0.0}
    )
    drawn = axes.legend([handle for handle, _ in entries[: len(shown)]], ["."] * len(shown), handlelength=1.8, **place)
    for line, name in zip(drawn.get_texts(), shown, strict=True):
        line.set_text(name)  # set afterwards: matplotlib leaves labels out that begin with an underscore
