"""Reports as one self-contained HTML file: no script, nothing loaded from outside, readable on a screen and on paper.

Every text goes through `element`, which escapes whatever is not an `Html` already; there is no other way into the page.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from mlinterp.io.text import scrub, visible
from mlinterp.reports.composite import Children, study_document, sweep_document
from mlinterp.reports.document import Block, Document, Facts, Heading, Link, Links, Notice, Picture, Points, Prose, Rows, shown
from mlinterp.reports.html_style import STYLE
from mlinterp.reports.sections import run_document
from mlinterp.result import Cell, ExperimentResult

if TYPE_CHECKING:
    from mlinterp.hypotheses.records import Judgement

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
CARDS = 8
"""Up to so many headline numbers stand large, more become a list."""


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def run_html(
    result: ExperimentResult,
    links: Mapping[str, str] | None = None,
    figures: Mapping[str, bytes] | None = None,
    asked: Mapping[str, Any] | None = None,
    judged: Sequence[Judgement] = (),
) -> str:
    """Return the report of one run; arguments as in `markdown.run_markdown`."""
    return render(run_document(result, links, figures, asked, judged))


def study_html(
    result: ExperimentResult,
    steps: Children,
    links: Mapping[str, str] | None = None,
    asked: Mapping[str, Any] | None = None,
    judged: Sequence[Judgement] = (),
) -> str:
    """Return the report of a study; arguments as in `markdown.study_markdown`."""
    return render(study_document(result, steps, links, asked, judged))


def sweep_html(
    result: ExperimentResult,
    cells: Children,
    links: Mapping[str, str] | None = None,
    asked: Mapping[str, Any] | None = None,
    judged: Sequence[Judgement] = (),
) -> str:
    """Return the report of a sweep; arguments as in `markdown.sweep_markdown`."""
    return render(sweep_document(result, cells, links, asked, judged))


def render(document: Document) -> str:
    """Return a document as an HTML page."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", _plain(document.title)),
        element("style", Html(STYLE)),
    )
    body = element("body", element("main", element("h1", _plain(document.title)), *(_block(block) for block in document.blocks)))
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def element(tag: str, *children: str, **attributes: str) -> Html:
    """Return an element. Attribute names write `-` as `_` and may end with `_`; values and texts are escaped."""
    names = "".join(f' {name.rstrip("_").replace("_", "-")}="{escape(value)}"' for name, value in attributes.items())
    if tag in ("meta", "img"):
        return Html(f"<{tag}{names}>")
    inner = "".join(child if isinstance(child, Html) else escape(child) for child in children)
    return Html(f"<{tag}{names}>{inner}</{tag}>")


def _block(block: Block) -> Html:
    match block:
        case Heading():
            return element(f"h{block.level}", _plain(block.text))
        case Prose():
            parts = (part for part in re.split(r"\n\s*\n", block.text) if part.strip())
            return Html("".join(element("p", _plain(part)) for part in parts))
        case Notice():
            if len(block.items) == 1:
                title = element("strong", _plain(f"{block.title}."))
                return element("p", title, " ", _plain(block.items[0]), class_=f"notice {block.kind}")
            items = element("ul", *(element("li", _plain(item)) for item in block.items))
            return element("div", element("strong", _plain(block.title)), items, class_=f"notice {block.kind}")
        case Facts():
            look = "cards" if block.headline and len(block.items) <= CARDS else "facts"
            return element("dl", *(_fact(*item) for item in block.items), class_=look)
        case Rows():
            return _table(block)
        case Picture():
            source = f"data:image/png;base64,{b64encode(block.png()).decode()}"
            return element("figure", element("img", src=source, alt=_plain(block.title)))
        case Links():
            return element("ul", *(element("li", _cell(item)) for item in block.items))
        case Points():
            return element("ul", *(element("li", _plain(item)) for item in block.items))


def _fact(name: str, value: Cell, remark: str = "") -> Html:
    small = [element("dd", _cell(remark), class_="remark")] if remark else []
    return element("div", element("dt", _plain(name)), element("dd", _cell(value)), *small)


def _table(block: Rows) -> Html:
    numeric = [block.numeric(index) for index in range(len(block.columns))]
    head = (_sided("th", _plain(name), right) for name, right in zip(block.columns, numeric, strict=True))
    rows = (element("tr", *(_sided("td", _cell(value), right) for value, right in zip(row, numeric, strict=True))) for row in block.rows)
    table = element("table", element("thead", element("tr", *head)), element("tbody", *rows))
    note = [element("p", _plain(block.note), class_="note")] if block.note else []
    return Html("".join([element("div", table, class_="wide"), *note]))


def _sided(tag: str, child: str, right: bool) -> Html:
    return element(tag, child, class_="n") if right else element(tag, child)


def _cell(value: Cell | Link) -> str:
    if isinstance(value, Link):
        return element("a", shown(value.text), href=value.url) if value.url else shown(value.text)
    return shown(value)


def _plain(text: str) -> str:
    return visible(scrub(" ".join(text.split())))
