"""Reports as GitHub-flavoured markdown, as the MLflow UI renders it.

Text from outside is either tame (words that no renderer gives a meaning) or stands in code spans. The two characters that mean
something even there, the pipe of tables and the backtick itself, become numeric entities between spans.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mlinterp.io.text import scrub, visible
from mlinterp.reports.composite import Children, study_document, sweep_document
from mlinterp.reports.document import Block, Document, Facts, Heading, Link, Links, Notice, Picture, Points, Prose, Rows, shown
from mlinterp.reports.sections import run_document
from mlinterp.result import Cell, ExperimentResult

if TYPE_CHECKING:
    from mlinterp.hypotheses.records import Judgement

_NUMBER = r"[-+−]?\d[\w.+-]*"
_TAME = re.compile(
    r"""[("'“‘]*[-+−]?[^\W_](?:[\w'’/%·.:=-]*[^\W_])?%?[)"'”’]*[%.,;:!?…]*|%[)"'”’]*[.,;:!?…]*|[·–—+=−±≤≥-]|[<>]=?|=="""
    rf"|\[{_NUMBER},|{_NUMBER}\][.,;]?"
)
"""Words without a meaning in Markdown, intervals such as `[0.1, 0.2]` among them: nothing defines a link of that name."""
_TRAPS = re.compile(r"://|www\.|:[^\W\d]\w*:|__", re.IGNORECASE)
_SPLIT = re.compile(r"([|`]|\](?=:))")
"""What no code span may hold: the sign that ends a table cell, the one that ends a span, and `]:`, which turns a line that begins
with a link into a definition that nobody sees."""
_NUMBERED = re.compile(r"\d+[.)]")


def run_markdown(
    result: ExperimentResult,
    links: Mapping[str, str] | None = None,
    figures: Mapping[str, bytes] | None = None,
    asked: Mapping[str, Any] | None = None,
    judged: Sequence[Judgement] = (),
) -> str:
    """Return the report of one run.

    Args:
        result: what the experiment returned, with its provenance filled in.
        links: lineage, text to address (http(s) or `#/…` inside the MLflow UI).
        figures: PNG by name, where they are drawn already.
        asked: the spec as plain data: its description, rationale, inputs and predictions are shown.
        judged: the predictions in order, judged by themselves.
    """
    return render(run_document(result, links, figures, asked, judged))


def study_markdown(
    result: ExperimentResult,
    steps: Children,
    links: Mapping[str, str] | None = None,
    asked: Mapping[str, Any] | None = None,
    judged: Sequence[Judgement] = (),
) -> str:
    """Return the report of a study: its own result, then each step (label, result, links) in brief."""
    return render(study_document(result, steps, links, asked, judged))


def sweep_markdown(
    result: ExperimentResult,
    cells: Children,
    links: Mapping[str, str] | None = None,
    asked: Mapping[str, Any] | None = None,
    judged: Sequence[Judgement] = (),
) -> str:
    """Return the report of a sweep: means over seeds with 95 % intervals, then every cell (label, result, links)."""
    return render(sweep_document(result, cells, links, asked, judged))


def render(document: Document) -> str:
    """Return a document as markdown."""
    parts = [f"# {line(document.title)}", *(_block(block) for block in document.blocks)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _block(block: Block) -> str:
    match block:
        case Heading():
            return f"{'#' * block.level} {line(block.text)}"
        case Prose():
            return "\n\n".join(line(part) for part in re.split(r"\n\s*\n", block.text) if part.strip())
        case Notice():
            if len(block.items) == 1:
                return f"**{line(block.title)}.** {line(block.items[0])}"
            return "\n".join([f"**{line(block.title)}**", "", *(f"- {line(item)}" for item in block.items)])
        case Facts():
            return _table(("", ""), [_fact(*item) for item in block.items], "| --- | --- |")
        case Rows():
            rule = "|" + "|".join(" ---: " if block.numeric(index) else " --- " for index in range(len(block.columns))) + "|"
            body = _table(tuple(cell(name) for name in block.columns), [tuple(map(cell, row)) for row in block.rows], rule)
            return f"{body}\n\n{line(block.note)}" if block.note else body
        case Picture():
            return _picture(block)
        case Links():
            return "\n".join(f"- {cell(item)}" for item in block.items)
        case Points():
            return "\n".join(f"- {line(item)}" for item in block.items)


def _fact(name: str, value: Cell, remark: str = "") -> tuple[str, str]:
    return line(name), f"{cell(value)} · {cell(remark)}" if remark else cell(value)


def _picture(block: Picture) -> str:
    title = line(block.title)
    return f"![figure]({block.path})\n\n{title}" if block.path else f"Figure, in report.html and in the step's own run: {title}"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]], rule: str) -> str:
    return "\n".join([f"| {' | '.join(head)} |", rule, *(f"| {' | '.join(row)} |" for row in rows)])


def cell(value: Cell | Link) -> str:
    """Return a table cell."""
    if isinstance(value, Link):
        return f"[{cell(value.text)}]({value.url})" if value.url else cell(value.text)
    text = shown(value)
    if not isinstance(value, str) or all(_is_tame(word) for word in text.split(" ")):
        return text
    return code(text)


def line(text: str) -> str:
    """Return prose as one line: tame words as they are, others in code spans."""
    words = visible(scrub(" ".join(text.split()))).split(" ")
    return " ".join(word if _is_tame(word) and (index or _may_begin(word)) else _quoted(word) for index, word in enumerate(words) if word)


def _quoted(word: str) -> str:
    """Return a word in code spans, the punctuation that ends it outside them."""
    inside = word.rstrip(",;")
    return code(inside) + word[len(inside) :] if inside else code(word)


def _may_begin(word: str) -> bool:
    """Whether a line may begin with a word without becoming a list or a rule."""
    return word[0].isalnum() and not _NUMBERED.fullmatch(word)


def _is_tame(word: str) -> bool:
    return bool(_TAME.fullmatch(word)) and not _TRAPS.search(word)


def code(text: str) -> str:
    """Return text as code spans, which every renderer shows literally."""
    parts = (f"&#{ord(part)};" if part in ("|", "`", "]") else _span(part) for part in _SPLIT.split(text) if part)
    return "".join(parts)


def _span(text: str) -> str:
    strips = text.startswith(" ") and text.endswith(" ") and text.strip(" ")
    return f"` {text} `" if strips else f"`{text}`"
