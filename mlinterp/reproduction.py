"""A run executed again from its own record, to see whether it comes out the same: number by number and file by file.

1. read      the recorded spec, and what the run really took: `latest` and aliases may mean something else by now
2. execute   the same spec on the same inputs as a run of its own that is no evidence and answers nothing
3. compare   every number exactly; every file by its content; where files differ, without what only tells a moment or names a run
4. record    on the new run whether it is the same, with notes that lead from one run to the other
"""

from __future__ import annotations

import csv
import io
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mlinterp.errors import SpecError, VerificationError
from mlinterp.execution import inputs as execution_inputs
from mlinterp.execution.composite import Composite
from mlinterp.execution.contained import contained
from mlinterp.execution.session import Original, Place, Session
from mlinterp.execution.summary import RunSummary
from mlinterp.experiments.base import ResolvedInput
from mlinterp.io.digests import VOLATILE, sha256_json
from mlinterp.progress import Reporter, Silent
from mlinterp.project import find_project
from mlinterp.result import ExperimentResult
from mlinterp.run import execute
from mlinterp.spec import Spec
from mlinterp.tracking import links, notes, queries
from mlinterp.tracking.recorder import INPUT_TAG, Recorder
from mlinterp.tracking.store import Store, open_store

RETOLD = frozenset({"report.md", "report.html"})
"""Files that only tell again, with the time, what other files of the run say; those are compared."""

TOLD = VOLATILE | {"reused", "versions"}
"""Fields and columns that name a run or a moment, or what the comparison looks at by itself."""


@dataclass(frozen=True)
class NumberChange:
    """A number that came out differently; None where one of the runs does not have it."""

    name: str
    before: float | None
    now: float | None

    @property
    def absolute(self) -> float | None:
        """By how much it changed."""
        return None if self.before is None or self.now is None else abs(self.now - self.before)

    @property
    def relative(self) -> float | None:
        """By how much of what it was; None where it was 0."""
        return self.absolute / abs(self.before) if self.before and self.absolute is not None else None


@dataclass(frozen=True)
class FileChange:
    """A file that says something else, or that only one of the runs has."""

    name: str
    what: str


@dataclass(frozen=True)
class Change:
    """Something around the computation that changed since: code, a package, the number of threads, a subject's settings."""

    name: str
    before: str
    now: str


@dataclass(frozen=True)
class Reproduction:
    """What came of executing a run again.

    Attributes:
        original, run_id: the run and its reproduction; the latter empty where a cell failed again as it had before.
        label: the step's or cell's name in what contains it; None for the whole.
        n_numbers, n_files: how many were compared.
        numbers, files: those that differ.
        changes: what changed around the computation, the likeliest cause first.
        children: the same for the steps of a study and the cells of a sweep.
        problem: why nothing could be compared, where one of the two has no result.
        links: both runs in the UI, by title.
    """

    original: str
    run_id: str
    label: str | None = None
    n_numbers: int = 0
    n_files: int = 0
    numbers: tuple[NumberChange, ...] = ()
    files: tuple[FileChange, ...] = ()
    changes: tuple[Change, ...] = ()
    children: tuple[Reproduction, ...] = ()
    problem: str | None = None
    links: Mapping[str, str] = field(default_factory=dict)

    @property
    def same(self) -> bool:
        """Whether every number and every file came out the same, here and below."""
        return not (self.numbers or self.files or self.problem) and all(child.same for child in self.children)

    def family(self) -> Iterator[Reproduction]:
        """Yield this and everything below it."""
        yield self
        for child in self.children:
            yield from child.family()

    def line(self) -> str:
        """Return the outcome in one line, the likeliest cause of a difference first."""
        family = list(self.family())
        n_numbers, n_files = sum(one.n_numbers for one in family), sum(one.n_files for one in family)
        changed = self.changes or tuple(change for one in family for change in one.changes)
        if self.same:
            though = f", although {_told(changed[0])}" if changed else ""
            return f"same: {n_numbers} numbers and {n_files} files equal{though}"
        differing = sum(len(one.numbers) for one in family), sum(len(one.files) for one in family)
        wrong = f"{differing[0]} of {n_numbers} numbers and {differing[1]} of {n_files} files"
        problems = [f"{one.label or 'the run'}: {one.problem}" for one in family if one.problem]
        cause = _told(changed[0]) if changed else "nothing on record changed: other hardware, or an experiment that is not deterministic"
        return f"differs: {wrong}; likely cause: {cause}" + "".join(f"; {problem}" for problem in problems)


def _told(change: Change) -> str:
    return f"{change.name} {change.before} → {change.now}"


def reproduce(reference: str, workspace: Path, reporter: Reporter | None = None) -> Reproduction:
    """Execute a finished run again from its own record and compare; nothing is reused, and the original is left as it is.

    Raises:
        SpecError: the run is unknown, is not finished, or took something that is no run's output.
        VerificationError: its record or one of its inputs was altered since.
        MlinterpError: it could not be executed again; the new run has FAILED and says why.
    """
    store = open_store(workspace)
    run = queries.run_by_prefix(store, reference)
    if "mlinterp.spec_sha256" not in run.data.tags:
        raise SpecError(f"run {run.info.run_id[:12]} executed no spec", allowed="name one that did, such as one that it contains")
    if run.info.status != "FINISHED":
        raise SpecError(f"run {run.info.run_id[:12]} is {run.info.status}", allowed="only a finished run can be reproduced")
    recorded = queries.recorded_spec(store, run.info.run_id)
    project = find_project(workspace / recorded.project_root)
    session = Session.open(project, reporter or Silent(), again=True, experiment_id=recorded.experiment_id)
    original = _Record(session).original(recorded.run_id, recorded.spec)
    with session.refreshed_views():
        summary = execute(recorded.spec, session, Place(given=original.inputs, original=original))
    found = _compare(session.store, original, recorded.spec, summary)
    for one in found.family():
        if one.run_id:
            Recorder(store.client, one.run_id).tags({"mlinterp.reproduction": "same" if one.same else "differs"})
            notes.rewrite(store, one.run_id)
            notes.rewrite(store, one.original)
    return found


class _Record:
    """What runs took, read from their records; an input that several of them share is fetched once."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._known: dict[tuple[str, str], ResolvedInput] = {}

    def original(self, run_id: str, spec: Spec, *, inside: bool = False) -> Original:
        """Return a run as it is to be executed again; `inside` a study that is, whose steps take from each other anew."""
        if not (spec.is_study or spec.is_sweep):
            return Original(run_id, dict(self._inputs(run_id, spec, inside=inside)))
        store = self.session.store
        result = queries.recorded_result(store, run_id)
        runs = contained(store, self.session.experiment_id, run_id, spec, result)
        children = {
            child.label: self.original(runs[child.label], child.spec, inside=inside or spec.is_study)
            for child in Composite(spec).children()
            if child.label in runs
        }
        return Original(run_id, children=children)

    def _inputs(self, run_id: str, spec: Spec, *, inside: bool) -> Iterator[tuple[str, ResolvedInput]]:
        run = self.session.store.client.get_run(run_id)
        digests = queries.recorded_result(self.session.store, run_id).inputs if run.info.status == "FINISHED" else {}
        for name, source in run.data.tags.items():
            role = name.removeprefix(INPUT_TAG)
            reference = spec.inputs.get(role, source)
            if name.startswith(INPUT_TAG) and not (inside and reference.startswith("@")):
                yield role, self._input(run_id, role, reference, source, digests.get(role))

    def _input(self, run_id: str, role: str, reference: str, source: str, digest: str | None) -> ResolvedInput:
        """Return one input as it was taken."""
        if not re.fullmatch(r"[0-9a-f]{32}", source):
            problem = f"run {run_id[:12]} took its {role} from '{source[:80]}', which is no run"
            raise SpecError(problem, allowed="only what runs have made can be taken again")
        if (role, source) not in self._known:
            self._known[role, source] = execution_inputs.from_run(role, reference, source, self.session)
        found = self._known[role, source]
        if digest is not None and digest != found.digest and digest not in self._other_digests(role, source):
            taken = f"run {run_id[:12]} took {role} {digest[:12]} from run {source[:12]}"
            raise VerificationError(f"{taken}, which holds {found.digest[:12]} now")
        return replace(found, reference=reference, digest=digest or found.digest)

    def _other_digests(self, role: str, source: str) -> set[str]:
        """Return what else the same files go by: in the registry without files of digests, in a folder of three commands by one file."""
        files = execution_inputs.files_of(role, queries.manifest(self.session.store, source))
        content = {name: entry["content_digest"] for name, entry in files.items() if not name.endswith(".sha256")}
        return {sha256_json(content), *(entry["sha256"] for entry in files.values())}


def _compare(store: Store, original: Original, spec: Spec, summary: RunSummary) -> Reproduction:
    """Compare a run with its reproduction, and the children of both by their labels."""
    children = {child.label: child for child in Composite(spec).children()} if spec.is_study or spec.is_sweep else {}
    now = {str(child.label): child for child in summary.children}
    below = [
        _compare(store, original.children[label], child.spec, now[label])
        for label, child in children.items()
        if label in original.children and label in now
    ]
    before = store.client.get_run(original.run_id)
    outcome = Reproduction(original.run_id, summary.run_id, summary.label, children=tuple(below))
    if before.info.status != "FINISHED" or summary.status != "FINISHED":
        both = f"it was {before.info.status} and is {summary.status} now"
        return outcome if before.info.status == summary.status else replace(outcome, problem=both)
    again = store.client.get_run(summary.run_id)
    results = queries.recorded_result(store, original.run_id), queries.recorded_result(store, summary.run_id)
    numbers = list(_numbers(*results))
    files = list(_files(store, original.run_id, summary.run_id))
    pages = {"original": before, "reproduction": again}
    return replace(
        outcome,
        n_numbers=len(numbers),
        n_files=len(files),
        numbers=tuple(change for change in numbers if change.before != change.now),
        files=tuple(change for change in files if change.what),
        changes=tuple(_changes(before.data.tags, again.data.tags, *results)),
        links={
            title: links.absolute(links.ui(store.shown_uri), links.run(run.info.experiment_id, run.info.run_id))
            for title, run in pages.items()
        },
    )


def _numbers(before: ExperimentResult, now: ExperimentResult) -> Iterator[NumberChange]:
    sides = [{**result.numbers(), **_bounds(result)} for result in (before, now)]
    for name in dict.fromkeys([*sides[0], *sides[1]]):
        if name.rsplit("/", 1)[-1] not in TOLD:
            yield NumberChange(name, sides[0].get(name), sides[1].get(name))


def _bounds(result: ExperimentResult) -> dict[str, float]:
    """Return what belongs to the estimates of a result: their intervals and p values, named after the number."""
    found = {f"{name} {part}": getattr(item, part) for name, item in result.estimates.items() for part in ("low", "high", "p")}
    return {name: value for name, value in found.items() if value is not None}


def _files(store: Store, before: str, now: str) -> Iterator[FileChange]:
    """Yield every file of both manifests, with what is wrong with it in words: nothing where it says the same."""
    sides = queries.manifest(store, before)["files"], queries.manifest(store, now)["files"]
    for name in sorted({*sides[0], *sides[1]} - RETOLD):
        if name not in sides[1]:
            yield FileChange(name, "is missing now")
        elif name not in sides[0]:
            yield FileChange(name, "was not there before")
        elif sides[0][name]["content_digest"] == sides[1][name]["content_digest"] or _says_the_same(store, before, now, name):
            yield FileChange(name, "")
        else:
            yield FileChange(name, "says something else")


def _says_the_same(store: Store, before: str, now: str, name: str) -> bool:
    """Whether two tables or JSON files differ only in what names a run or tells a moment."""
    if not name.endswith((".json", ".csv")):
        return False
    with tempfile.TemporaryDirectory(prefix="mlinterp-reproduce-") as temporary:
        texts = [queries.fetch(store, run_id, [name], Path(temporary) / run_id).joinpath(name).read_text() for run_id in (before, now)]
    return _finding(name, texts[0]) == _finding(name, texts[1])


def _finding(name: str, text: str) -> Any:
    if name.endswith(".csv"):
        columns, *rows = csv.reader(io.StringIO(text))
        return _without_told_columns(columns, rows)
    value = json.loads(text)
    if isinstance(value, dict) and value.keys() == {"columns", "data"}:
        return _without_told_columns(value["columns"], value["data"])
    return _without_told(value)


def _without_told_columns(columns: list[str], rows: list[list[Any]]) -> list[list[Any]]:
    kept = [index for index, column in enumerate(columns) if column not in TOLD]
    return [[row[index] for index in kept] for row in [columns, *rows]]


def _without_told(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_told(item) for key, item in value.items() if key not in TOLD}
    return [_without_told(item) for item in value] if isinstance(value, list) else value


def _changes(before: Mapping[str, str], now: Mapping[str, str], old: ExperimentResult, new: ExperimentResult) -> Iterator[Change]:
    """Yield what changed around the computation, the likeliest cause of a difference first."""
    surroundings = {"code version": "mlinterp.code_version", "threads": "mlinterp.threads"}
    for name, tag in surroundings.items():
        if tag in before and before[tag] != now[tag]:
            yield Change(name, before[tag], now[tag])
    for package in dict.fromkeys([*old.versions, *new.versions]):
        if package != "code" and old.versions.get(package) != new.versions.get(package):
            yield Change(package, old.versions.get(package, "none"), new.versions.get(package, "none"))
    for role in dict.fromkeys([*old.inputs, *new.inputs]):
        if old.inputs.get(role) != new.inputs.get(role):
            yield Change(f"input {role}", old.inputs.get(role, "none")[:12], new.inputs.get(role, "none")[:12])
    fixed = old.inputs == new.inputs and all(before.get(tag) == now[tag] for tag in surroundings.values())
    if fixed and before.get("mlinterp.run_key") != now.get("mlinterp.reproduced_key"):
        yield Change("settings of the subject in project.yaml", "as they were", "changed since")
