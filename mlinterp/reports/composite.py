"""From a study or a sweep to the blocks of its report: the parent's own result, then its children in brief."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from mlinterp.reports import verdicts
from mlinterp.reports.document import Block, Document, Heading, Link, Links, Notice, Points, Rows, link, shown
from mlinterp.reports.sections import ROWS, headline, lineage, opening, pictures, provenance, table_blocks, title, warnings
from mlinterp.result import Cell, ExperimentResult, ResultTable

if TYPE_CHECKING:
    from mlinterp.hypotheses.records import Judgement, Ruling

STEP_ROWS, STEP_METRICS = 5, 4


class Child(NamedTuple):
    """One step of a study or one cell of a sweep.

    `label` is its name inside its parent, `result` None where it failed, `links` what to open by title (the first is its run),
    `ruling` what it says among all evidence, where that is known.
    """

    label: str
    result: ExperimentResult | None
    links: Mapping[str, str] = {}
    status: str = "FINISHED"
    error: str | None = None
    ruling: Ruling | None = None


Children = Sequence[Child | tuple[str, ExperimentResult | None, Mapping[str, str]]]


def study_document(
    result: ExperimentResult,
    steps: Children,
    links: Mapping[str, str] | None,
    asked: Mapping[str, Any] | None,
    judged: Sequence[Judgement] = (),
    ruling: Ruling | None = None,
) -> Document:
    """Return a study's report: its steps as a table, what it found itself, then each step in brief."""
    children = [Child(*step) for step in steps]
    blocks: list[Block] = [*opening(result, asked, judged, ruling), *verdicts.verdict(ruling, result.hypothesis)]
    blocks += [Heading("Steps"), _overview("step", children)]
    if said := result.sentences():
        blocks += [Heading("What the steps say"), Points(tuple(said))]
    blocks += warnings(_without_echo(result, children))
    blocks += _own(result, without={"steps", "narrative", "estimates"})
    for child in children:
        blocks += _brief(child)
    return Document(title(result), [*blocks, *lineage(links), *provenance(result)])


def sweep_document(
    result: ExperimentResult,
    cells: Children,
    links: Mapping[str, str] | None,
    asked: Mapping[str, Any] | None,
    judged: Sequence[Judgement] = (),
    ruling: Ruling | None = None,
) -> Document:
    """Return a sweep's report: each setting's mean over seeds with its 95 % interval, the figures, then every cell.

    Means come from the result's `settings` table: one row a setting, beside each main metric its `low` and `high`.
    """
    children = [Child(*cell) for cell in cells]
    blocks: list[Block] = [*opening(result, asked, judged, ruling), *verdicts.verdict(ruling, result.hypothesis)]
    blocks.append(Heading("What came out"))
    if "settings" in result.tables:
        blocks.append(_means(result.tables["settings"]))
    blocks += [*warnings(result), *_own(result, without={"settings", "summary", "cells", "estimates"})]
    main = _metrics(result.tables["settings"]) if "settings" in result.tables else []
    blocks += [Heading("Cells"), _overview("cell", children, main)]
    return Document(f"{title(result)} · sweep", [*blocks, *lineage(links), *provenance(result)])


def _without_echo(result: ExperimentResult, children: Sequence[Child]) -> ExperimentResult:
    """Leave out the warnings that a parent only repeats from its children, each of which shows its own."""
    labels = tuple(f"{child.label}: " for child in children)
    kept = [warning for warning in result.diagnostics.warnings if not warning.startswith(labels)]
    return result.model_copy(update={"diagnostics": result.diagnostics.model_copy(update={"warnings": kept})})


def _overview(noun: str, children: Sequence[Child], main: Sequence[str] = ()) -> Rows:
    rows: list[tuple[Cell | Link, ...]] = []
    judged = any(child.ruling for child in children)
    for child in children:
        first = next(iter(child.links.items()), None)
        name = link(child.label, first[1]) if first else child.label
        result = child.result
        said = [verdicts.brief(child.ruling)] if judged else []
        rows.append(
            (name, result.experiment_type if result else None, result.mode if result else None, child.status, *said, _headline(child, main))
        )
    return Rows((noun, "type", "mode", "status", *(["verdict"] if judged else []), "headline"), tuple(rows))


def _headline(child: Child, main: Sequence[str]) -> str | None:
    """Return a child's main metrics, the first ones where none are named, or why it failed."""
    if child.result is None or not child.result.success:
        return child.error or (child.result.error_message if child.result else None)
    found = child.result.metrics
    return ", ".join(f"{name} {shown(found[name])}" for name in main or list(found)[:STEP_METRICS] if name in found) or None


def _means(settings: ResultTable) -> Rows:
    """Return a row for each setting, each main metric with its interval in one cell."""
    metrics = _metrics(settings)
    plain = [name for name in settings.columns if not any(name in (metric, f"{metric} low", f"{metric} high") for metric in metrics)]
    rows = tuple((*(row.get(name) for name in plain), *(_with_interval(row, name) for name in metrics)) for row in settings.rows)
    return Rows((*plain, *metrics), rows, settings.description or "")


def _metrics(settings: ResultTable) -> list[str]:
    return [name for name in settings.columns if f"{name} low" in settings.columns]


def _with_interval(row: Mapping[str, Cell], metric: str) -> str | None:
    value, low, high = (row.get(f"{metric}{end}") for end in ("", " low", " high"))
    if value is None:
        return None
    return shown(value) if low is None or high is None else f"{shown(value)} ({shown(low)} to {shown(high)})"


def _own(result: ExperimentResult, without: set[str]) -> list[Block]:
    blocks = pictures(result)
    for name, table in result.tables.items():
        blocks += table_blocks(table, ROWS) if name not in without else []
    return blocks


def _brief(child: Child) -> list[Block]:
    """Return a step's verdict, its headline, its first figure, its first table and its links."""
    blocks: list[Block] = [Heading(child.label), *verdicts.standing(child.ruling)]
    result = child.result
    if result is None or not result.success:
        message = child.error or (result.error_message if result else None)
        return [*blocks, Notice("failure", child.status.capitalize(), (message or "without a message",))]
    if child.ruling is not None:
        blocks.append(verdicts.notice(child.ruling, result.hypothesis))
    blocks += headline(result)
    blocks += warnings(result)
    blocks += pictures(result, folder=None)[:1]
    for table in list(result.tables.values())[:1]:
        blocks += table_blocks(table, STEP_ROWS, " of the step's run")
    return [*blocks, Links(tuple(link(text, url) for text, url in child.links.items()))] if child.links else blocks
