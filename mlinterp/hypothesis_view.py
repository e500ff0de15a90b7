"""How hypotheses look on a terminal: a table of all, the tree of what refines what, and one with all that speaks for and against it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mlinterp.hypotheses.records import Hypothesis, Ruling
from mlinterp.terminal import safe, show, show_lines, show_table

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text
    from rich.tree import Tree

    from mlinterp.hypotheses.staleness import Stale

_GLYPHS = {"proposed": "○", "testing": "◐", "supported": "●", "refuted": "✗", "superseded": "⊘"}
_STYLES = {
    "proposed": "cyan",
    "testing": "yellow",
    "supported": "bold green",
    "refuted": "bold red",
    "superseded": "dim",
    "supports": "green",
    "refutes": "red",
    "inconclusive": "yellow",
}
_BARS = "▁▂▃▄▅▆▇█"


def status_text(one: Hypothesis) -> Text:
    """Return a status with its sign and colour."""
    return safe(f"{_GLYPHS[one.status]} {one.status}{', closed' if one.closed else ''}", _STYLES[one.status])


def sparkline(values: Iterable[float]) -> str:
    """Return probabilities as a row of bars.

    >>> sparkline([0.0, 0.5, 1.0])
    '▁▅█'
    """
    return "".join(_BARS[min(int(value * len(_BARS)), len(_BARS) - 1)] for value in values)


def show_list(hypotheses: Sequence[Hypothesis]) -> None:
    """Print a line for each hypothesis."""
    show_table(["id", "status", "confidence", "evidence", "parent", "claim"], map(_row, hypotheses))


def _row(one: Hypothesis) -> tuple[Any, ...]:
    claim = safe(one.declared.claim, "dim" if one.status == "superseded" else "")
    return one.id, status_text(one), _number(one.evaluation.confidence), tally(one), one.declared.parent, claim


def show_tree(project: str, hypotheses: Sequence[Hypothesis]) -> None:
    """Print hypotheses below those that they refine or replace."""
    from rich.tree import Tree

    here = {one.id: one for one in hypotheses}
    root = Tree(safe(project, "bold"), guide_style="dim")

    def grow(above: Tree, names: Iterable[str]) -> None:
        for name in names:
            grow(above.add(_leaf(here[name])), (child for child in here[name].children if child in here))

    grow(root, (one.id for one in hypotheses if one.declared.parent not in here))
    show(root)


def _leaf(one: Hypothesis) -> Text:
    faded = "dim" if one.status == "superseded" else ""
    counts = tally(one).replace("none", "no evidence")
    head = [safe(f"{one.id} ", "dim" if faded else "bold"), status_text(one), safe(f"  {_number(one.evaluation.confidence)}", faded)]
    return _joined(*head, safe(f"  {counts}", "dim"), "\n", safe(one.declared.claim, faded))


def show_hypothesis(one: Hypothesis, others: Mapping[str, Hypothesis], address: str) -> None:
    """Print all about a hypothesis.

    Args:
        one: the hypothesis.
        others: those that it may name: its parent, its children, what replaced it.
        address: its page in the UI.
    """
    show(_joined(safe(f"{one.id} ", "bold"), status_text(one), safe(f"  confidence {_number(one.evaluation.confidence)}")))
    show(safe(one.declared.claim, "bold"))
    show_lines([""])
    show(_grid((safe(name, "dim"), safe(value)) for name, value in _facts(one, others)))
    if one.evaluation.rulings:
        show_lines([""])
        show(_grid((safe(number, "dim"), _evidence(ruling)) for number, ruling in enumerate(one.evaluation.rulings, start=1)))
    show_lines(["", f"its page: {address}", f"its runs, in the search box of the UI: tags.`mlinterp.hypothesis` = '{one.id}'"])


def _grid(rows: Iterable[tuple[Text, Text]]) -> Table:
    from rich.table import Table

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _facts(one: Hypothesis, others: Mapping[str, Hypothesis]) -> Iterator[tuple[str, str]]:
    declared, evaluation = one.declared, one.evaluation
    latent = f"latent {declared.feature_id}" if declared.feature_id is not None else None
    path = [declared.confidence, *(ruling.confidence for ruling in evaluation.rulings)]
    facts = {
        "why": evaluation.text,
        "predicted": declared.prediction,
        "refuted by": declared.refuted_by,
        "kind": declared.level + (f", needs {' and '.join(declared.requires)}" if declared.requires else ""),
        "about": " of ".join(filter(None, (latent, declared.subject))),
        "confidence": f"{sparkline(path[-40:])}  {' → '.join(map(_number, path[-8:]))}" if len(path) > 1 else None,
        "tags": ", ".join(declared.tags),
        "notes": declared.notes,
        "closed": one.closed,
        "parent": _named(declared.parent, others),
        "superseded by": _named(one.superseded_by, others),
    }
    yield from ((name, text) for name, text in facts.items() if text)
    yield from (("" if number else "children", str(_named(child, others))) for number, child in enumerate(one.children))


def _named(name: str | None, others: Mapping[str, Hypothesis]) -> str | None:
    other = others.get(name or "")
    return f"{name} {_GLYPHS[other.status]} {other.declared.claim}" if other is not None else name


def _evidence(ruling: Ruling) -> Text:
    """Return a piece of evidence: what it says and does, which run it is, and below that what was measured."""
    evidence, counted = ruling.evidence, ruling.evidence.standing == "counted"
    said = safe(f"{ruling.verdict:<13}", _STYLES[ruling.verdict]) if counted else safe(f"{evidence.standing:<13}", "dim")
    odds = f"odds ×{ruling.likelihood_ratio:.3g}"
    moved = safe(f"{odds:<14}confidence {_number(ruling.confidence):<8}", "" if counted else "dim")
    return _joined(said, moved, safe(evidence.run_name), safe(f"  {evidence.run_id[:12]}", "dim"), "\n", safe(ruling.text, "dim"))


def show_stale(found: Sequence[Stale]) -> None:
    """Print what rests on something gone, and how to find it in the UI."""
    if not found:
        show_lines(["nothing rests on anything gone"])
        return
    show_table(["run", "name", "why"], [(one.run_id[:12], one.run_name, _brief(one.why)) for one in found])
    show_lines(["", "to find them in the search box of the UI:", *(f"  {query}" for query in dict.fromkeys(one.query for one in found))])


def _brief(why: str) -> str:
    """Return the first and the last link of a chain of reasons."""
    first, *between, last = why.split(", which ") if ", which " in why else (why, "")
    return f"{first}, …, which {last}" if between else why


def show_changes(before: Iterable[Hypothesis], after: Iterable[Hypothesis]) -> None:
    """Print which hypotheses stand differently than before."""
    then = {one.id: one for one in before}
    for now in after:
        old = then.get(now.id, now)
        if (old.status, old.evaluation.confidence) != (now.status, now.evaluation.confidence):
            was, is_now = _number(old.evaluation.confidence), _number(now.evaluation.confidence)
            show(_joined(safe(f"{now.id}: "), status_text(old), f" {was} -> ", status_text(now), f" {is_now}"))


def as_json(one: Hypothesis) -> dict[str, Any]:
    """Return all about a hypothesis as plain values."""
    from pydantic_core import to_jsonable_python

    return {"id": one.id, "status": one.status, **to_jsonable_python(one, inf_nan_mode="null")}


def show_json(value: Any) -> None:
    """Print plain values as JSON."""
    show_lines([json.dumps(value, allow_nan=False)])


def tally(one: Hypothesis) -> str:
    """Return how much evidence there is for and against a hypothesis."""
    from mlinterp.hypotheses.pages import tally as in_words

    return in_words(one)


def _joined(*parts: Text | str) -> Text:
    from rich.text import Text

    return Text.assemble(*parts)


def _number(value: float) -> str:
    return f"{value:.3g}"
