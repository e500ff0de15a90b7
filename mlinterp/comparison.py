"""Runs side by side: what each measured with its interval, how far that lies from the first run, and what was asked differently.

The difference of two independent estimates has the interval of Zou & Donner (2008, "MOVER"), the squared half-widths of each side added:

    low  = d - sqrt((b - b.low)^2 + (a.high - a)^2)        d = b - a
    high = d + sqrt((b.high - b)^2 + (a - a.low)^2)

Runs that look at the same examples are not independent. Their differences have no interval here: how strongly they go together is
known only where both were measured example by example, in one run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mlinterp.errors import SpecError, unknown
from mlinterp.io.atomic import write_bytes, write_text
from mlinterp.result import Estimate, ExperimentResult
from mlinterp.spec import Spec, flatten
from mlinterp.tracking import links, queries
from mlinterp.tracking.store import Store, open_store

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.entities import Run

Apart = Literal["intervals apart", "intervals overlap", "difference excludes 0", "difference includes 0"]
_ROUTINE = ("seconds", "n_states", "n_examples")


@dataclass(frozen=True)
class Compared:
    """One of the runs.

    Attributes:
        key: how the comparison calls it: A, B, …
        run_id, name, address: the run and its page in the UI.
        mode: whether it observed or intervened.
        verdict: what it says, with its standing where it does not count; None where nothing was predicted.
        metric_version: which definitions its metrics follow.
    """

    key: str
    run_id: str
    name: str
    address: str
    mode: str
    verdict: str | None
    metric_version: str


@dataclass(frozen=True)
class Difference:
    """How far a run lies from the first one; the interval where both are independent and have one of the same level."""

    value: float
    low: float | None = None
    high: float | None = None
    apart: Apart | None = None


@dataclass(frozen=True)
class Row:
    """One metric: for each run its value and, where it has one, its estimate; for each but the first the difference from the first."""

    metric: str
    values: tuple[float | None, ...]
    estimates: tuple[Estimate | None, ...]
    differences: tuple[Difference | None, ...]


@dataclass(frozen=True)
class Changed:
    """Something that differs between the runs: its name, and its value in each."""

    name: str
    values: tuple[str | None, ...]


@dataclass(frozen=True)
class Comparison:
    """Runs side by side.

    Attributes:
        runs: the runs, the first of which is the one that others are compared with.
        rows: their metrics.
        asked, inputs, surroundings: fields of the spec, digests of inputs and versions that differ.
        remarks: what a reader must know before comparing.
        address: MLflow's own page that compares them.
    """

    runs: tuple[Compared, ...]
    rows: tuple[Row, ...]
    asked: tuple[Changed, ...]
    inputs: tuple[Changed, ...]
    surroundings: tuple[Changed, ...]
    remarks: tuple[str, ...]
    address: str

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each metric and run, with value, interval and difference from the first run."""
        import pandas as pd

        return pd.DataFrame([cell for row in self.rows for cell in self._cells(row)])

    def _cells(self, row: Row) -> Iterator[dict[str, Any]]:
        for index, run in enumerate(self.runs):
            estimate, difference = row.estimates[index], row.differences[index]
            yield {
                "metric": row.metric,
                "run": run.key,
                "run_id": run.run_id,
                "value": row.values[index],
                "low": estimate.low if estimate else None,
                "high": estimate.high if estimate else None,
                "difference": difference.value if difference else None,
                "difference_low": difference.low if difference else None,
                "difference_high": difference.high if difference else None,
                "apart": difference.apart if difference else None,
            }

    def save(self, folder: Path) -> list[Path]:
        """Write `compare.md`, `compare.html` and the figure into a folder, and return their paths."""
        from mlinterp.reports import html, markdown
        from mlinterp.reports.comparison import comparison_document
        from mlinterp.reports.document import drawn

        document, figures = drawn(comparison_document(self))
        paths = [write_text(folder / "compare.md", markdown.render(document)), write_text(folder / "compare.html", html.render(document))]
        return paths + [write_bytes(folder / name, png) for name, png in figures.items()]


@dataclass(frozen=True)
class _Read:
    """A run as it was recorded."""

    run: Run
    spec: Spec
    result: ExperimentResult


def compare(
    references: Sequence[str], workspace: Path, metrics: Sequence[str] = (), *, everything: bool = False, allow_mixed_metrics: bool = False
) -> Comparison:
    """Compare finished runs.

    Args:
        references: two or more runs, each by the beginning of its id.
        workspace: the folder whose store holds them.
        metrics: which metrics; by default those that a spec predicted, then the headline ones that all runs have.
        everything: every metric that any run has.
        allow_mixed_metrics: compare even runs whose metrics follow different definitions, and say so.

    Raises:
        SpecError: fewer than two runs, one that has no result, an unknown metric, nothing in common, or different definitions.
    """
    store = open_store(workspace)
    read = [_read(store, queries.run_by_prefix(store, reference)) for reference in references]
    if len({one.run.info.run_id for one in read}) < max(len(read), 2):
        raise SpecError("a comparison needs at least two runs, each named once", field="RUN")
    versions = [one.run.data.tags.get("mlinterp.metric_version", "none") for one in read]
    mixed = next((index for index, version in enumerate(versions) if version != versions[0]), None)
    if mixed is not None and not allow_mixed_metrics:
        pair = f"runs {read[0].run.info.run_id[:12]} and {read[mixed].run.info.run_id[:12]}"
        problem = f"{pair} follow different definitions of metrics: version {versions[0]} and {versions[mixed]}"
        raise SpecError(problem, allowed="`--allow-mixed-metrics` compares them all the same, and says so")
    names = _chosen(read, metrics, everything=everything)
    together = [_same_examples(read[0], other) for other in read]
    return Comparison(
        runs=tuple(_compared(store, one, index) for index, one in enumerate(read)),
        rows=tuple(_row(name, read, together) for name in names),
        asked=tuple(_changed([_question(one) for one in read])),
        inputs=tuple(_changed([{role: digest[:16] for role, digest in one.result.inputs.items()} for one in read])),
        surroundings=tuple(_changed([one.result.versions for one in read])),
        remarks=tuple(_remarks(read, together, versions)),
        address=links.absolute(
            links.ui(store.shown_uri), links.compare([one.run.info.experiment_id for one in read], [one.run.info.run_id for one in read])
        ),
    )


def difference(a: Estimate, b: Estimate) -> tuple[float, float] | None:
    """Return the interval of `b - a` for independent estimates; None where one has no interval, or theirs are of different levels.

    >>> difference(Estimate(value=1, low=0, high=2, n=9, interval="t"), Estimate(value=5, low=5, high=5, n=9, interval="t"))
    (3.0, 5.0)
    """
    if a.low is None or a.high is None or b.low is None or b.high is None or a.level != b.level:
        return None
    d = b.value - a.value
    return d - math.hypot(b.value - b.low, a.high - a.value), d + math.hypot(b.high - b.value, a.value - a.low)


def _read(store: Store, run: Run) -> _Read:
    run_id = run.info.run_id
    if run.data.tags.get("mlinterp.kind") == "hypothesis":
        raise SpecError(f"run {run_id[:12]} is a hypothesis", allowed=f"`mlinterp report {run_id[:12]}`")
    if run.info.status != "FINISHED":
        raise SpecError(f"run {run_id[:12]} has no result to compare: it is {run.info.status}", allowed="only finished runs")
    return _Read(run, queries.recorded_spec(store, run_id).spec, queries.recorded_result(store, run_id))


def _compared(store: Store, one: _Read, index: int) -> Compared:
    run, tags = one.run, one.run.data.tags
    verdict, standing = tags.get("mlinterp.verdict"), tags.get("mlinterp.standing", "counted")
    return Compared(
        key=_key(index),
        run_id=run.info.run_id,
        name=run.info.run_name,
        address=links.absolute(links.ui(store.shown_uri), links.run(run.info.experiment_id, run.info.run_id)),
        mode=one.result.mode,
        verdict=verdict if standing == "counted" else f"{verdict}, but {standing}",
        metric_version=tags.get("mlinterp.metric_version", "none"),
    )


def _key(index: int) -> str:
    return chr(ord("A") + index) if index < 26 else f"R{index + 1}"


def _chosen(read: Sequence[_Read], wanted: Sequence[str], *, everything: bool) -> list[str]:
    known = list(dict.fromkeys(name for one in read for name in one.result.numbers()))
    if wanted:
        for name in wanted:
            if name not in known:
                raise unknown("--metric", name, known, what="metric")
        return list(dict.fromkeys(wanted))
    if everything:
        return known
    predicted = [one.result.number_named(item.metric) for one in read for item in one.spec.expect]
    headline = [name for name in read[0].result.metrics if not name.endswith(_ROUTINE)]
    shared = [name for name in [*read[0].result.estimates, *headline] if all(name in one.result.numbers() for one in read)]
    chosen = list(dict.fromkeys([found[0] for found in predicted if found is not None] + shared))
    if not chosen:
        raise SpecError("the runs have no number in common", allowed="`--all` shows everything, `--metric NAME` one metric")
    return chosen


def _row(name: str, read: Sequence[_Read], together: Sequence[bool]) -> Row:
    values = [one.result.numbers().get(name) for one in read]
    estimates = [one.result.estimates.get(name) for one in read]
    first, differences = estimates[0], list[Difference | None]([None])
    for value, estimate, dependent in zip(values[1:], estimates[1:], together[1:], strict=True):
        if value is None or values[0] is None:
            differences.append(None)
        elif estimate is None or first is None:
            differences.append(Difference(value - values[0]))
        else:
            differences.append(_difference(first, estimate, dependent=dependent))
    return Row(name, tuple(values), tuple(estimates), tuple(differences))


def _difference(a: Estimate, b: Estimate, *, dependent: bool) -> Difference:
    value, interval = b.value - a.value, difference(a, b)
    if interval is None:
        return Difference(value)
    if dependent:
        assert a.low is not None
        assert a.high is not None
        assert b.low is not None
        assert b.high is not None
        return Difference(value, apart="intervals apart" if b.low > a.high or b.high < a.low else "intervals overlap")
    low, high = interval
    return Difference(value, low, high, "difference excludes 0" if low > 0 or high < 0 else "difference includes 0")


def _same_examples(a: _Read, b: _Read) -> bool:
    """Whether two runs may look at the same examples: those of one trace, or of one subject and split."""
    if a.result.inputs.get("trace") is not None and a.result.inputs.get("trace") == b.result.inputs.get("trace"):
        return True
    places = [(one.run.info.experiment_id, one.spec.subject) for one in (a, b)]
    splits = [(one.result.variables.get("examples") or {}).get("split") for one in (a, b)]
    return places[0] == places[1] and (None in splits or splits[0] == splits[1])


def _question(one: _Read) -> dict[str, Any]:
    """Return what was asked, defaults included, as dotted names; steps of a study by their name."""
    asked = one.spec.model_dump(mode="json", exclude_none=True, exclude={"id", "created_at", "description", "rationale"})
    asked["steps"] = {step.pop("name"): step for step in asked["steps"]}
    asked["expect"] = [str(item) for item in one.spec.expect]
    return flatten({**asked, "variables": one.result.variables or asked["variables"]})


def _changed(sides: Sequence[dict[str, Any]]) -> Iterator[Changed]:
    for name in dict.fromkeys(name for side in sides for name in side):
        values = tuple(None if side.get(name) is None else _text(side[name]) for side in sides)
        if len(set(values)) > 1:
            yield Changed(name, values)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _remarks(read: Sequence[_Read], together: Sequence[bool], versions: Sequence[str]) -> Iterator[str]:
    keys = [_key(index) for index in range(len(read))]
    if len(set(versions)) > 1:
        told = ", ".join(f"{key} version {version}" for key, version in zip(keys, versions, strict=True))
        yield f"metrics of different definitions stand side by side ({told}): equal names need not mean the same"
    modes = {one.result.mode for one in read}
    if len(modes) > 1:
        told = ", ".join(f"{key} {one.result.mode}" for key, one in zip(keys, read, strict=True))
        yield f"some runs observed and some intervened ({told}): what goes together and what has an effect are different questions"
    dependent = [key for key, same in zip(keys[1:], together[1:], strict=True) if same]
    if dependent:
        yield (
            f"runs on the same examples are not independent ({keys[0]} and {', '.join(dependent)}): "
            "their differences have no interval here, and intervals that overlap do not mean that nothing differs"
        )
    for key, one in zip(keys, read, strict=True):
        for tag in ("mlinterp.retracted", "mlinterp.stale"):
            if why := one.run.data.tags.get(tag):
                yield f"{key} is {tag.removeprefix('mlinterp.')}: {why}"
