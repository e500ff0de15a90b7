"""From a result to the blocks of its report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from mlinterp.reports import verdicts
from mlinterp.reports.document import Block, Document, Facts, Heading, Link, Links, Notice, Picture, Prose, Rows, link
from mlinterp.reports.plots import draw, table_of
from mlinterp.result import FURTHER, Cell, ExperimentResult, ResultTable

if TYPE_CHECKING:
    from mlinterp.hypotheses.records import Judgement, Ruling

ROWS, COLUMNS = 20, 12
"""How much of a table a report shows; the whole table is an artifact."""
NUMBERS = 24
"""How many metrics a report shows before its figures."""

_MODE = {
    "observational": "Activations were read and nothing was changed. The numbers show what goes together, not what causes what.",
    "interventional": "Activations inside the forward pass, or the contexts that the model reads, were edited and everything else was held "
    "fixed. A difference from the unedited pass is an effect of the edit.",
}


def run_document(
    result: ExperimentResult,
    links: Mapping[str, str] | None,
    figures: Mapping[str, bytes] | None,
    asked: Mapping[str, Any] | None,
    judged: Sequence[Judgement] = (),
    ruling: Ruling | None = None,
) -> Document:
    """Return the report of one run. `figures` (PNG by name) are drawn where they are not given; `asked` is the spec as plain data.

    `judged` are its predictions, judged by themselves; `ruling` is what they say among all evidence.
    """
    blocks: list[Block] = [*opening(result, asked, judged, ruling), *verdicts.verdict(ruling, result.hypothesis)]
    blocks += [Heading("What came out"), *numbers(result), *warnings(result), *pictures(result, figures)]
    for table in result.tables.values():
        blocks += table_blocks(table, ROWS)
    return Document(title(result), [*blocks, *lineage(links), *provenance(result)])


def title(result: ExperimentResult) -> str:
    """Return what a run is about in one line."""
    latent = None if result.feature_id is None else f"latent {result.feature_id}"
    return " · ".join(part for part in (result.experiment_type or "experiment", result.subject, latent) if part)


def opening(
    result: ExperimentResult, asked: Mapping[str, Any] | None, judged: Sequence[Judgement] = (), ruling: Ruling | None = None
) -> list[Block]:
    """Return what was asked, what was predicted, and whether the answer is an observation or an intervention."""
    spec = asked or {}
    blocks: list[Block] = verdicts.standing(ruling)
    if result.success:
        blocks.append(Notice(result.mode, result.mode.capitalize(), (_MODE[result.mode],)))
    else:
        blocks.append(Notice("failure", "Failed", (result.error_message or "without a message",)))
    blocks.append(Heading("What was asked"))
    blocks += [Prose(spec[name]) for name in ("description", "rationale") if spec.get(name)]
    facts: list[tuple[str, Cell]] = [
        ("type", result.experiment_type or None),
        ("subject", result.subject),
        ("latent", result.feature_id),
        ("hypothesis", result.hypothesis),
    ]
    facts += [(f"input {role}", reference) for role, reference in (spec.get("inputs") or {}).items()]
    facts += [(name, _brief(value)) for name, value in _flat(result.variables)]
    facts += [("dataset slice", _brief({key: value for key, value in (result.dataset_slice or {}).items() if value is not None}))]
    facts += [("constraints", _brief(list(spec.get("constraints") or [])))]
    blocks.append(Facts((*((name, value) for name, value in facts if value not in (None, "")), ("seed", result.seed))))
    return blocks + verdicts.predictions(result, spec, judged or (ruling.evidence.judgements if ruling else ()))


def headline(result: ExperimentResult) -> list[Block]:
    """Return the headline metrics, each with its interval where it has one: the first `NUMBERS`, and how many there are."""
    found = [(name, value) for name, value in result.metrics.items() if not name.startswith(FURTHER)]
    facts = tuple((name, value, verdicts.between(result.estimates.get(name)) or "") for name, value in found[:NUMBERS])
    blocks: list[Block] = [Facts(facts, headline=True)] if facts else []
    if len(found) > NUMBERS:
        blocks.append(Prose(f"{NUMBERS} of {len(found)} numbers; all are metrics of the run."))
    return blocks


def numbers(result: ExperimentResult) -> list[Block]:
    """Return the headline metrics, then the aggregates that are defined."""
    blocks = headline(result)
    plain = {key: value for key, value in result.aggregates.model_dump(exclude={"custom"}).items() if value not in (None, 0)}
    aggregates = [(name, _brief(value)) for name, value in [*plain.items(), *result.aggregates.custom.items()] if value is not None]
    if aggregates:
        blocks += [Heading("Aggregates", 3), Facts(tuple(aggregates))]
    if not blocks:
        blocks.append(Prose("No number was returned."))
    return blocks


def warnings(result: ExperimentResult) -> list[Block]:
    """Return what a reader must know to trust the numbers."""
    found, seen = result.diagnostics, []
    tested = f"of {found.n_contexts_tested + found.n_contexts_skipped + found.n_contexts_errored} contexts"
    if found.n_contexts_skipped:
        seen.append(f"{found.n_contexts_skipped} {tested} were skipped")
    if found.n_contexts_errored:
        seen.append(f"{found.n_contexts_errored} {tested} ended in an error")
    if found.relu_floor_detected:
        seen.append(
            f"the activation sits on its ReLU floor in {found.relu_floor_rate:.1%} of contexts: effects downwards cannot show there"
        )
    seen += [f"constraint broken: {violation}" for violation in found.constraint_violations]
    seen += found.warnings
    return [Notice("warning", "Warnings", tuple(seen))] if seen else []


def pictures(result: ExperimentResult, drawn: Mapping[str, bytes] | None = None, folder: str | None = "figures") -> list[Block]:
    """Return a result's figures, drawn when they are needed where they are not given; `folder` None where none lies beside the report."""
    found: list[Block] = []
    for figure in result.figures:
        png = partial(draw, figure, table_of(figure, result)) if drawn is None else partial(drawn.__getitem__, figure.name)
        found.append(Picture(figure.title or figure.name.replace("_", " "), png, f"{folder}/{figure.name}.png" if folder else None))
    return found


def table_blocks(table: ResultTable, most: int, where: str = "") -> list[Block]:
    """Return a table's first rows and columns, saying how many there are in all and `where` the whole table lies."""
    columns = table.columns[:COLUMNS]
    rows: tuple[tuple[Cell | Link, ...], ...] = tuple(tuple(row.get(name) for name in columns) for row in table.rows[:most])
    parts = []
    if len(table.rows) > most:
        parts.append(f"{most} of {len(table.rows)} rows")
    if len(table.columns) > COLUMNS:
        parts.append(f"{COLUMNS} of {len(table.columns)} columns")
    note = f"{' and '.join(parts)}; the whole table is tables/{table.name}.csv{where}" if parts else ""
    about: list[Block] = [Prose(table.description)] if table.description else []
    return [
        Heading(table.name.replace("_", " "), 3),
        *about,
        Rows(tuple(columns), rows, note) if columns else Prose("The table is empty."),
    ]


def lineage(links: Mapping[str, str] | None) -> list[Block]:
    """Return where the run comes from and where it leads."""
    return [Heading("Lineage"), Links(tuple(link(text, url) for text, url in links.items()))] if links else []


def provenance(result: ExperimentResult) -> list[Block]:
    """Return what is needed to compute the same again."""
    facts: list[tuple[str, Cell]] = [("spec", result.spec_id), ("spec SHA-256", result.spec_sha256), ("spec file", result.spec_path)]
    facts += [(f"input {role} SHA-256", digest) for role, digest in result.inputs.items()]
    facts += [("seed", result.seed)]
    facts += [(name, version) for name, version in result.versions.items()]
    for name, moment in (("started", result.started_at), ("completed", result.completed_at)):
        facts.append((name, moment.isoformat(sep=" ", timespec="seconds") if moment else None))
    if result.completed_at:
        facts.append(("seconds", round(result.duration_seconds, 3)))
    return [Heading("Provenance"), Facts(tuple((name, value) for name, value in facts if value not in (None, "")))]


def _flat(block: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, value in block.items():
        flat += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else [(f"{prefix}{key}", value)]
    return flat


def _brief(value: Any) -> Cell:
    """Return a value as one cell; blocks as `key value` pairs, lists with commas."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, dict):
        return ", ".join(f"{key} {_brief(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(str(item) if isinstance(item, str | int | float) else json.dumps(item, default=str) for item in value)
    return str(value)
