"""A hypothesis as a page in the UI: the note of its run, and the table of all of them in the note of the project.

The notes' own text stays; only what follows the headings below is written anew, each time evidence arrives or goes.
"""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from mlinterp.hypotheses.records import Hypothesis, Ruling
from mlinterp.reports.document import shown
from mlinterp.tracking import links
from mlinterp.tracking.notes import plain
from mlinterp.tracking.recorder import NOTE_TAG, Recorder, fitting
from mlinterp.tracking.store import Store

if TYPE_CHECKING:
    from mlflow.entities import Run

HEADING = "#### Hypotheses"
MOST = 20
"""Rows of a table in a note; `mlinterp hypothesis show` has them all."""
MOST_HYPOTHESES = 50
"""Rows of the project's table: MLflow keeps 20,000 characters of a note."""
_DECIDED = {"supported", "refuted", "superseded"}
CONFIDENCE = "hypothesis/confidence"


def hypothesis_markdown(hypothesis: Hypothesis, pages: Mapping[str, Run]) -> str:
    """Return a hypothesis with its evidence as Markdown; its links, to the `pages` of others too, work inside the UI."""
    declared, rulings = hypothesis.declared, hypothesis.evaluation.rulings
    lines = [f"**{hypothesis.id}: {plain(declared.claim)}**", ""]
    lines += [f"**{hypothesis.status}**, confidence {shown(hypothesis.evaluation.confidence)}: {plain(hypothesis.evaluation.text)}", ""]
    facts = {"predicted": declared.prediction, "refuted by": declared.refuted_by, "kind of claim": declared.level}
    facts |= {"needs": " and ".join(declared.requires) or None, "closed": hypothesis.closed}
    lines += [f"- {name}: {plain(text)}" for name, text in facts.items() if text]
    related = {"parent": [declared.parent], "superseded by": [hypothesis.superseded_by], "children": hypothesis.children}
    for name, ids in related.items():
        found = [_linked(other, pages) for other in ids if other]
        lines += [f"- {name}: {', '.join(found)}"] if found else []
    under = links.search(hypothesis.experiment_id, f"tags.`mlinterp.hypothesis` = '{hypothesis.id}'")
    lines.append(f"- [every run under it]({under})")
    if rulings:
        lines += ["", "| # | run | mode | verdict | what was measured | confidence |", "|---|---|---|---|---|---|"]
        numbered = list(enumerate(rulings, start=1))
        lines += [_row(number, ruling) for number, ruling in numbered[-MOST:]]
        lines += [f"\n… and {len(rulings) - MOST} earlier ones: `mlinterp hypothesis show {hypothesis.id}`"] if len(rulings) > MOST else []
    return "\n".join(lines)


def _row(number: int, ruling: Ruling) -> str:
    evidence = ruling.evidence
    said = ruling.verdict if evidence.standing == "counted" else f"{evidence.standing}: {plain(evidence.why or '')}"
    link = f"[{plain(evidence.run_name)}]({links.run(evidence.experiment_id, evidence.run_id)})"
    measured = plain(textwrap.shorten(ruling.text, 400, placeholder=" …"))
    return f"| {number} | {link} | {evidence.mode} | {said} | {measured} | {shown(ruling.confidence)} |"


def _linked(name: str, pages: Mapping[str, Run]) -> str:
    page = pages.get(name)
    return f"[{name}]({links.run(page.info.experiment_id, page.info.run_id)})" if page is not None else name


def overview_markdown(pages: Collection[Run]) -> str:
    """Return the hypotheses of a project as a table, from their pages: of many, those that are undecided, then the newest."""
    lines = [HEADING, "", "| | claim | status | confidence | evidence |", "|---|---|---|---|---|"]
    ranked = sorted(pages, key=lambda page: (page.data.tags.get("mlinterp.status") in _DECIDED, -page.info.start_time))
    shown_pages = {page.info.run_id for page in ranked[:MOST_HYPOTHESES]}
    for page in (page for page in pages if page.info.run_id in shown_pages):
        tags = page.data.tags
        link = f"[{tags['mlinterp.hypothesis']}]({links.run(page.info.experiment_id, page.info.run_id)})"
        cells = [link, plain(textwrap.shorten(tags.get("mlinterp.claim", ""), 120, placeholder=" …")), tags.get("mlinterp.status", "")]
        cells += [shown(page.data.metrics.get(CONFIDENCE)), tags.get("mlinterp.evidence", "")]
        lines.append(f"| {' | '.join(cells)} |")
    if len(pages) > MOST_HYPOTHESES:
        lines.append(f"\n… and {len(pages) - MOST_HYPOTHESES} more: `mlinterp hypothesis list`")
    return "\n".join(lines)


def tally(hypothesis: Hypothesis) -> str:
    """Return how much evidence there is for and against a hypothesis, in words."""
    counted = [ruling.verdict for ruling in hypothesis.evaluation.rulings if ruling.evidence.standing == "counted"]
    uncounted = len(hypothesis.evaluation.rulings) - len(counted)
    parts = {"for": counted.count("supports"), "against": counted.count("refutes"), "inconclusive": counted.count("inconclusive")}
    parts["not counted"] = uncounted
    return ", ".join(f"{n} {what}" for what, n in parts.items() if n) or "none"


def write_page(store: Store, hypothesis: Hypothesis, pages: Mapping[str, Run]) -> bool:
    """Write a hypothesis's note, and the same as its artifact `lineage.md`; return whether it said anything else before."""
    text = fitting(hypothesis_markdown(hypothesis, pages))
    if pages[hypothesis.id].data.tags.get(NOTE_TAG) == text:
        return False
    Recorder(store.client, hypothesis.run_id).note(text)
    store.client.log_text(hypothesis.run_id, text, "lineage.md")
    return True


def write_overview(store: Store, experiment_id: str, pages: Collection[Run], title: str) -> bool:
    """Write the table of a project's hypotheses below what people wrote in its note; return whether it said anything else before."""
    before = store.client.get_experiment(experiment_id).tags.get(NOTE_TAG, f"**{plain(title)}**")
    text = f"{before.partition(HEADING)[0].rstrip()}\n\n{overview_markdown(pages)}"
    if not pages or text == before:
        return False
    store.client.set_experiment_tag(experiment_id, NOTE_TAG, text)
    return True
