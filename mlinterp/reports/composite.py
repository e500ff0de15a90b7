"""From a study or a sweep to the blocks of its report: the parent's own result, then its children in brief."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mlinterp.reports.document import Block, Document, Facts, Heading, Link, Links, Notice, Rows, link, shown
from mlinterp.reports.sections import ROWS, lineage, opening, pictures, provenance, table_blocks, title, warnings
from mlinterp.result import Cell, ExperimentResult, ResultTable

STEP_ROWS, STEP_METRICS = 5, 4


class Child(NamedTuple):
    """One step of a study or one cell of a sweep.

    `label` is its name inside its parent, `result` None where it failed, `links` what to open by title (the first is its run).
    """

    label: str
    result: ExperimentResult | None
    links: Mapping[str, str] = {}
    status: str = "FINISHED"
    error: str | None = None


Children = Sequence[Child | tuple[str, ExperimentResult | None, Mapping[str, str]]]


def study_document(result: ExperimentResult, steps: Children, links: Mapping[str, str] | None, asked: Mapping[str, Any] | None) -> Document:
    """Return a study's report: its steps as a table, what it found itself, then each step in brief."""
    children = [Child(*step) for step in steps]
    blocks: list[Block] = [*opening(result, asked), Heading("Steps"), _overview("step", children)]
    blocks += warnings(_without_echo(result, children))
    blocks += _own(result, without={"steps"})
    for child in children:
        blocks += _brief(child)
    return Document(title(result), [*blocks, *lineage(links), *provenance(result)])


def sweep_document(result: ExperimentResult, cells: Children, links: Mapping[str, str] | None, asked: Mapping[str, Any] | None) -> Document:
    """Return a sweep's report: each setting's mean over seeds with its 95 % interval, the figures, then every cell.

    Means come from the result's `summary` table: one row a setting and metric, with `mean`, `low`, `high` and `n_seeds`.
    """
    children = [Child(*cell) for cell in cells]
    blocks: list[Block] = [*opening(result, asked), Heading("What came out")]
    if "summary" in result.tables:
        blocks.append(_means(result.tables["summary"]))
    blocks += [*warnings(result), *_own(result, without={"summary", "cells", *(figure.table for figure in result.figures)})]
    blocks += [Heading("Cells"), _overview("cell", children)]
    return Document(f"{title(result)} · sweep", [*blocks, *lineage(links), *provenance(result)])


def _without_echo(result: ExperimentResult, children: Sequence[Child]) -> ExperimentResult:
    """Leave out the warnings that a parent only repeats from its children, each of which shows its own."""
    labels = tuple(f"{child.label}: " for child in children)
    kept = [warning for warning in result.diagnostics.warnings if not warning.startswith(labels)]
    return result.model_copy(update={"diagnostics": result.diagnostics.model_copy(update={"warnings": kept})})


def _overview(noun: str, children: Sequence[Child]) -> Rows:
    rows: list[tuple[Cell | Link, ...]] = []
    for child in children:
        first = next(iter(child.links.items()), None)
        name = link(child.label, first[1]) if first else child.label
        result = child.result
        rows.append((name, result.experiment_type if result else None, result.mode if result else None, child.status, _headline(child)))
    return Rows((noun, "type", "mode", "status", "headline"), tuple(rows))


def _headline(child: Child) -> str | None:
    if child.result is None or not child.result.success:
        return child.error or (child.result.error_message if child.result else None)
    return ", ".join(f"{name} {shown(value)}" for name, value in list(child.result.metrics.items())[:STEP_METRICS]) or None


def _means(summary: ResultTable) -> Rows:
    """Turn one row a (setting, metric) into one row a setting, a column a metric."""
    keys = [name for name in summary.columns if name not in ("metric", "mean", "low", "high", "n_seeds")]
    metrics = list(dict.fromkeys(str(row.get("metric")) for row in summary.rows))
    settings: dict[tuple[Cell, ...], dict[str, Cell]] = {}
    for row in summary.rows:
        cell = settings.setdefault(tuple(row.get(key) for key in keys), {})
        interval = f" ({shown(row.get('low'))} to {shown(row.get('high'))})" if row.get("low") is not None else ""
        cell[str(row.get("metric"))] = f"{shown(row.get('mean'))}{interval}"
        cell["n_seeds"] = row.get("n_seeds")
    rows = tuple((*setting, cell.get("n_seeds"), *(cell.get(name) for name in metrics)) for setting, cell in settings.items())
    return Rows((*keys, "seeds", *metrics), rows, "mean over seeds (95 % interval); no interval where there is one seed")


def _own(result: ExperimentResult, without: set[str]) -> list[Block]:
    blocks = pictures(result)
    for name, table in result.tables.items():
        blocks += table_blocks(table, ROWS) if name not in without else []
    return blocks


def _brief(child: Child) -> list[Block]:
    """Return a step's headline, its first figure, its first table and its links."""
    blocks: list[Block] = [Heading(child.label)]
    result = child.result
    if result is None or not result.success:
        message = child.error or (result.error_message if result else None)
        return [*blocks, Notice("failure", child.status.capitalize(), (message or "without a message",))]
    if result.metrics:
        blocks.append(Facts(tuple(result.metrics.items()), headline=True))
    blocks += warnings(result)
    blocks += pictures(result, folder=None)[:1]
    for table in list(result.tables.values())[:1]:
        blocks += table_blocks(table, STEP_ROWS, " of the step's run")
    return [*blocks, Links(tuple(link(text, url) for text, url in child.links.items()))] if child.links else blocks
