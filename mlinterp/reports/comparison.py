"""From runs side by side to the blocks of their comparison."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from mlinterp.reports import verdicts
from mlinterp.reports.document import Block, Document, Heading, Link, Links, Notice, Picture, Prose, Rows, link, shown
from mlinterp.reports.forest import MOST, Mark, Panel, draw_forest
from mlinterp.result import Cell

if TYPE_CHECKING:
    from mlinterp.comparison import Changed, Comparison, Difference, Row


def comparison_document(comparison: Comparison) -> Document:
    """Return a comparison: what a reader must know, the figure, the numbers, the differences, and what was asked differently."""
    keys = [run.key for run in comparison.runs]
    blocks: list[Block] = [Notice("warning", "Before comparing", comparison.remarks)] if comparison.remarks else []
    blocks += [_runs(comparison), Heading("What was measured")]
    panels = [_panel(row, keys) for row in comparison.rows if any(row.estimates)]
    if panels:
        beyond = f", the first {MOST} of {len(panels)}" if len(panels) > MOST else ""
        blocks.append(Picture(f"Estimates with their intervals{beyond}", partial(draw_forest, panels, keys), "figures/compare.png"))
    blocks.append(Rows(("metric", *keys), tuple((row.metric, *_measured(row)) for row in comparison.rows), "value (interval)"))
    blocks += [Heading(f"Differences from {keys[0]}"), _differences(comparison)]
    for title, changed in (
        ("What was asked differently", comparison.asked),
        ("Which inputs differ", comparison.inputs),
        ("Computed with different versions", comparison.surroundings),
    ):
        blocks += [Heading(title), _changes(changed, keys)]
    blocks += [Heading("Lineage"), Links((link("MLflow's own comparison", comparison.address),))]
    return Document(f"Comparison of {len(keys)} runs", blocks)


def _runs(comparison: Comparison) -> Rows:
    rows: tuple[tuple[Cell | Link, ...], ...] = tuple(
        (run.key, link(run.name, run.address), run.run_id[:12], run.mode, run.verdict, run.metric_version) for run in comparison.runs
    )
    return Rows(("", "run", "id", "mode", "verdict", "metric version"), rows)


def _panel(row: Row, keys: list[str]) -> Panel:
    marks = []
    for key, value, estimate in zip(keys, row.values, row.estimates, strict=True):
        if value is not None:
            marks.append(Mark(key, value, estimate.low if estimate else None, estimate.high if estimate else None))
    nulls = {estimate.null_value for estimate in row.estimates if estimate is not None}
    return Panel(row.metric, tuple(marks), nulls.pop() if len(nulls) == 1 else None)


def _measured(row: Row) -> list[Cell]:
    return [measured(value, verdicts.between(estimate)) for value, estimate in zip(row.values, row.estimates, strict=True)]


def measured(value: float | None, interval: str | None) -> Cell:
    """Return a value with its interval as one cell; a bare number stays a number."""
    return value if value is None or interval is None else f"{shown(value)} ({interval.replace(' (', ', ')}"


def _differences(comparison: Comparison) -> Rows:
    others = comparison.runs[1:]
    columns = ("metric", *(f"{run.key} − {comparison.runs[0].key}" for run in others))
    rows = tuple((row.metric, *(told(found) for found in row.differences[1:])) for row in comparison.rows)
    return Rows(
        columns, rows, "an interval where both runs are independent and have one of the same level; otherwise what can be said of theirs"
    )


def told(difference: Difference | None) -> str | None:
    """Return a difference in words: its interval, or what can be said of the intervals of both."""
    if difference is None:
        return None
    value = f"{'+' if difference.value > 0 else ''}{shown(difference.value)}"
    if difference.low is not None and difference.high is not None:
        value += f" ({shown(difference.low)} to {shown(difference.high)})"
    return value if difference.apart is None else f"{value}: {difference.apart}"


def _changes(changed: tuple[Changed, ...], keys: list[str]) -> Block:
    if not changed:
        return Prose("Nothing.")
    return Rows(("", *keys), tuple((one.name, *one.values) for one in changed))
