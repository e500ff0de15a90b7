"""From a run, a study or a hypothesis in the store to a report: rendered anew from what was recorded, with the verdict as it is now."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlinterp.errors import SpecError, VerificationError
from mlinterp.execution.contained import contained
from mlinterp.hypotheses import reading, staleness
from mlinterp.io.atomic import write_bytes, write_text
from mlinterp.project import Project
from mlinterp.reports import html, markdown, verdicts
from mlinterp.reports.composite import Child, study_document, sweep_document
from mlinterp.reports.document import Block, Document, Notice, drawn
from mlinterp.reports.hypothesis import hypothesis_document
from mlinterp.reports.sections import run_document
from mlinterp.result import ExperimentResult
from mlinterp.spec import Spec, slug
from mlinterp.tracking import links, queries
from mlinterp.tracking.recorder import INPUT_TAG
from mlinterp.tracking.store import Store, open_store

if TYPE_CHECKING:
    from mlflow.entities import Run

    from mlinterp.hypotheses.records import Hypothesis, Ruling

HYPOTHESIS = re.compile(r"h[0-9]{3,9}")
_MOST_DOWNSTREAM = 20


@dataclass(frozen=True)
class Report:
    """A report in both forms.

    Attributes:
        name: a short name for its folder.
        title: what it is about.
        summary: what it says, in one line.
        markdown: for a README or the UI; it names figures as `figures/NAME.png`.
        html: one self-contained page.
        figures: PNG by the name under which `markdown` refers to it.
    """

    name: str
    title: str
    summary: str
    markdown: str
    html: str
    figures: Mapping[str, bytes]

    def save(self, folder: Path) -> list[Path]:
        """Write `report.md`, `report.html` and the figures into a folder, and return their paths, the two reports first."""
        texts = {"report.md": self.markdown, "report.html": self.html}
        return [write_text(folder / name, text) for name, text in texts.items()] + [
            write_bytes(folder / name, png) for name, png in self.figures.items()
        ]


def generate(reference: str, workspace: Path, project: Project | None = None) -> Report:
    """Return the report of a run, a study or a sweep (by the beginning of its id), or of a hypothesis (`h001`, which needs its project).

    Raises SpecError where nothing or several things are meant, and for a run that is not over.
    """
    from mlinterp.hypotheses.ledger import Ledger

    store = open_store(workspace)
    if HYPOTHESIS.fullmatch(reference):
        if project is None:
            raise SpecError(f"'{reference}' is a hypothesis, and ids of hypotheses belong to a project", field="project")
        return _of_hypothesis(store, Ledger.open(project, store).get(reference))
    run = queries.run_by_prefix(store, reference)
    if run.data.tags.get("mlinterp.kind") == "hypothesis":
        name = run.data.tags[reading.ID]
        return _of_hypothesis(store, reading.hypotheses(store, run.info.experiment_id, [name])[name])
    if run.info.status in ("RUNNING", "SCHEDULED"):
        raise SpecError(f"run {run.info.run_id[:12]} is not over", allowed="a report is written once a run has ended")
    return _of_run(store, run)


def _of_hypothesis(store: Store, found: Hypothesis) -> Report:
    pages = reading.hypothesis_runs(store, found.experiment_id)
    related = {name: _address(store, run) for name, run in pages.items()}
    everything = links.search(found.experiment_id, f"tags.`{reading.ID}` = '{found.id}'")
    onward = {"its page in the UI": related[found.id], "every run under it": _absolute(store, everything)}
    document = hypothesis_document(
        found, lambda evidence: _absolute(store, links.run(evidence.experiment_id, evidence.run_id)), onward, related
    )
    return _rendered(found.id, document, f"{found.status}: {found.evaluation.text}")


def _of_run(store: Store, run: Run) -> Report:
    spec, result = _asked(store, run), _came_out(store, run)
    asked = spec.model_dump(mode="json", exclude_none=True) if spec is not None else {}
    below = contained(store, run.info.experiment_id, run.info.run_id, spec, result)
    family = {label: store.client.get_run(run_id) for label, run_id in below.items()}
    if any(child.data.tags.get("mlinterp.mode") == "interventional" for child in family.values()):
        result.mode = "interventional"
    rulings = _rulings(store, [run, *family.values()])
    ruling, onward = rulings.get(run.info.run_id), _lineage(store, run)
    if run.data.tags.get("mlinterp.kind") in staleness.COMPOSITES:
        children = [_child(store, label, child, rulings.get(child.info.run_id)) for label, child in family.items()]
        document_of = sweep_document if spec is not None and spec.is_sweep else study_document
        document = document_of(result, children, onward, asked, ruling=ruling)
    else:
        document = run_document(result, onward, None, asked, ruling=ruling)
    told = [] if ruling is not None else _withdrawn(store, run)
    document = Document(document.title, [*told, *_reproduction(run), *document.blocks])
    name = f"{slug(run.data.tags.get('mlinterp.label') or run.data.tags.get('mlinterp.kind', 'run'))}-{run.info.run_id[:12]}"
    said = [f"{label} {verdicts.brief(rulings[child.info.run_id])}" for label, child in family.items() if child.info.run_id in rulings]
    summary = ruling.text if ruling else result.error_message or ", ".join(said) or _numbers(result)
    return _rendered(name, document, summary)


def _asked(store: Store, run: Run) -> Spec | None:
    """Return what a run was asked; None for one that only holds others together, or that was stopped before it had begun."""
    if "mlinterp.spec_sha256" not in run.data.tags:
        return None
    try:
        return queries.recorded_spec(store, run.info.run_id).spec
    except SpecError:
        return None


def _came_out(store: Store, run: Run) -> ExperimentResult:
    """Return what a run has recorded, or, where it ended before it had recorded anything, that and why."""
    tags = run.data.tags
    try:
        return queries.recorded_result(store, run.info.run_id)
    except VerificationError:
        if run.info.status == "FINISHED" and "mlinterp.spec_sha256" in tags:
            raise
    told = {"experiment_type": tags.get("mlinterp.type", tags.get("mlinterp.kind", "")), "subject": tags.get("mlinterp.subject")}
    if run.info.status == "FINISHED":
        return ExperimentResult(**told)
    error = tags.get("mlinterp.error", f"it ended as {run.info.status} and left no result")
    return ExperimentResult(success=False, error_message=error, hypothesis=tags.get(reading.ID), **told)


def _child(store: Store, label: str, run: Run, ruling: Ruling | None) -> Child:
    result = _came_out(store, run) if run.info.status == "FINISHED" else None
    return Child(label, result, {"run": _address(store, run)}, run.info.status, run.data.tags.get("mlinterp.error"), ruling)


def _rulings(store: Store, runs: list[Run]) -> dict[str, Ruling]:
    """Return what judged runs say, by run, as the evidence is now."""
    judged = [run for run in runs if reading.JUDGED_AT in run.data.tags and run.info.status == "FINISHED"]
    names = {run.data.tags[reading.ID] for run in judged if reading.ID in run.data.tags}
    found = reading.hypotheses(store, runs[0].info.experiment_id, names) if names else {}
    rulings = {ruling.evidence.run_id: ruling for one in found.values() for ruling in one.evaluation.rulings}
    known = staleness.Runs(store, runs[0].info.experiment_id)
    return rulings | {run.info.run_id: reading.ruling_alone(run, known) for run in judged if reading.ID not in run.data.tags}


def _withdrawn(store: Store, run: Run) -> list[Block]:
    """Return, for a run that is no evidence itself, that it was retracted or rests on something that was."""
    runs = staleness.Runs(store, run.info.experiment_id)
    if why := staleness.retraction(run, runs):
        return [Notice("failure", "Retracted", (why,))]
    stale = runs.staleness(run)
    return [Notice("failure", "Stale", (stale.why,))] if stale is not None else []


def _reproduction(run: Run) -> list[Block]:
    original = run.data.tags.get("mlinterp.reproduces")
    if original is None:
        return []
    outcome = run.data.tags.get("mlinterp.reproduction", "not compared yet")
    return [Notice("warning", "A reproduction, and so no evidence", (f"of run {original[:12]}: {outcome}",))]


def _lineage(store: Store, run: Run) -> dict[str, str]:
    """Return where a run comes from and where it leads, text to address."""
    tags = run.data.tags
    near = {name.removeprefix(INPUT_TAG): run_id for name, run_id in tags.items() if name.startswith(INPUT_TAG)}
    near = {f"rests on {role}": run_id for role, run_id in near.items()}
    named = {"part of": "mlflow.parentRunId", "hypothesis": "mlinterp.hypothesis_run", "replaced by": "mlinterp.replaced_by"}
    near |= {what: tags[tag] for what, tag in {**named, "reproduces": "mlinterp.reproduces"}.items() if tag in tags}
    found = {
        what: other for what, run_id in near.items() if re.fullmatch(r"[0-9a-f]{32}", run_id) and (other := queries.get(store, run_id))
    }
    lines = {"this run in the UI": _address(store, run)}
    lines |= {f"{what}: {other.info.run_name}": _address(store, other) for what, other in found.items()}
    below = queries.downstream(store, run.info.experiment_id, run.info.run_id)[:_MOST_DOWNSTREAM]
    return lines | {f"used by: {other.info.run_name}": _address(store, other) for other in below}


def _numbers(result: ExperimentResult) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in list(result.metrics.items())[:6]) or "no number was returned"


def _address(store: Store, run: Run) -> str:
    return _absolute(store, links.run(run.info.experiment_id, run.info.run_id))


def _absolute(store: Store, address: str) -> str:
    """Return an address in the UI: that of the server that is the store, or of `mlinterp ui` on this machine."""
    return links.absolute(links.ui(store.shown_uri), address)


def _rendered(name: str, document: Document, summary: str) -> Report:
    document, figures = drawn(document)
    return Report(name, document.title, summary, markdown.render(document), html.render(document), figures)
