"""The one model of a report, which markdown and HTML both render: they can differ in looks, never in content."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from urllib.parse import quote, urlsplit, urlunsplit

from mlinterp.io.text import scrub, visible
from mlinterp.result import Cell

LONGEST_CELL = 160
NOTHING = "–"
"""How a missing value is shown."""


@dataclass(frozen=True)
class Link:
    """A link; `url` None where the address given was not one to follow, so that only the text is shown."""

    text: str
    url: str | None


@dataclass(frozen=True)
class Heading:
    """A section begins. Level 2 or 3; the title has level 1."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Prose:
    """Paragraphs, separated by empty lines."""

    text: str


@dataclass(frozen=True)
class Notice:
    """What must not be overlooked. Kind: `observational`, `interventional`, `warning`, `failure`, a verdict or a hypothesis's status."""

    kind: str
    title: str
    items: tuple[str, ...]


@dataclass(frozen=True)
class Facts:
    """Named values, each with a remark where it has one. `headline` numbers are shown large where the medium can."""

    items: tuple[tuple[str, Cell] | tuple[str, Cell, str], ...]
    headline: bool = False


@dataclass(frozen=True)
class Rows:
    """A table with the same number of cells in every row."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell | Link, ...], ...]
    note: str = ""

    def numeric(self, column: int) -> bool:
        """Whether a column holds numbers only (and holds one)."""
        values = [row[column] for row in self.rows if row[column] is not None]
        return bool(values) and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


@dataclass(frozen=True)
class Picture:
    """A figure: its title, how to get its PNG, and its file beside the report where it has one."""

    title: str
    png: Callable[[], bytes]
    path: str | None


@dataclass(frozen=True)
class Links:
    """Where to go on."""

    items: tuple[Link, ...]


@dataclass(frozen=True)
class Points:
    """Sentences, one below the other."""

    items: tuple[str, ...]


Block = Heading | Prose | Notice | Facts | Rows | Picture | Links | Points


@dataclass(frozen=True)
class Document:
    """A whole report."""

    title: str
    blocks: Sequence[Block]


def drawn(document: Document) -> tuple[Document, dict[str, bytes]]:
    """Return a document whose figures are drawn, once for both forms, and the PNG of those that have a file, by its path."""
    blocks = [replace(block, png=cache(block.png)) if isinstance(block, Picture) else block for block in document.blocks]
    return Document(document.title, blocks), {block.path: block.png() for block in blocks if isinstance(block, Picture) and block.path}


def shown(value: Cell) -> str:
    """Return a value as a reader sees it: four significant digits, no secret, no invisible character, spaces at the ends as ␣.

    >>> [shown(value) for value in (0.123456, 12, 3.0, 1234567.8, None, " the")]
    ['0.1235', '12', '3', '1.235e+06', '–', '␣the']
    """
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return _number(value)
    return _text(value)


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "-∞"
    if value.is_integer() and abs(value) < 1e6:
        return str(int(value))
    if 1e-4 <= abs(value) < 1e6:
        digits = max(0, 3 - math.floor(math.log10(abs(value))))
        rounded = f"{value:.{digits}f}"
        return rounded.rstrip("0").rstrip(".") if "." in rounded else rounded
    return f"{value:.4g}"


def _text(value: str) -> str:
    text = visible(scrub(value))
    if len(text) > LONGEST_CELL:
        text = text[: LONGEST_CELL - 1] + "…"
    body = text.strip(" ")
    lead = len(text) - len(text.lstrip(" "))
    return "␣" * lead + body + "␣" * (len(text) - lead - len(body))


def link(text: str, url: str) -> Link:
    """Return a link whose address is one that a report may hold.

    Allowed are http(s) addresses, which lose user and query parts, and `#/…` inside the MLflow UI; every character outside the
    URL alphabet is percent-encoded.
    """
    return Link(text, _address(url))


def _address(url: str) -> str | None:
    url = visible(url)
    if url.startswith("#/"):
        return "#" + quote(url[1:], safe="/?=&%:-._~,+")
    try:
        parts = urlsplit(url)
        host = parts.hostname
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or not host:
        return None
    host = quote(f"[{host}]" if ":" in host else host, safe="[]:-._~")
    path, fragment = quote(parts.path, safe="/%:-._~,+@"), quote(parts.fragment, safe="/?=&%:-._~,+")
    return urlunsplit((parts.scheme, host + port, path, "", fragment))
