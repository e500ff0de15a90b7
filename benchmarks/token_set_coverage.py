"""How often the intervals of token-set experiments cover the truth, over many seeds, where the truth is known exactly.

python benchmarks/token_set_coverage.py [--seeds 50] [--output docs/token_set_coverage.md]

The subjects are the hand-built networks of `projects/splatoon` and `projects/poker`, whose neurons are exactly what the projects' own
`truth.py` says. The contexts of the test split are the population: the truth of an intervention is its mean effect over all of them, that
of an observation the same comparison among them. Each seed sees as many contexts, drawn from them with replacement. A line is one
experiment: the cells of its table (rungs, pairs, groups) that have an interval, over all seeds. Cells of one seed share their
contexts, so the share of a line is less sure than its number of intervals suggests.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from mlinterp.determinism import numpy_stream
from mlinterp.experiments import catalog
from mlinterp.experiments.base import Context
from mlinterp.project import find_project
from mlinterp.result import ExperimentResult
from mlinterp.spec import Spec
from mlinterp.stats import wilson_interval
from mlinterp.subjects.token_sets import edits
from mlinterp.subjects.token_sets.package import DataPackage
from mlinterp.subjects.token_sets.table import ContextTable
from mlinterp.token_sets.opening import open_lab

PROJECTS = Path(__file__).parent.parent / "projects"
LEVEL = 0.95

Value = Callable[[ContextTable], np.ndarray]
"""The exact value of the latent on each context."""


HEAD = """# Do the intervals cover the truth?

Written by `python benchmarks/token_set_coverage.py --seeds {seeds} --output docs/token_set_coverage.md`.

Experiments on token sets, asked of two networks that were built by hand, so that every effect on their neurons is known exactly:
`projects/splatoon` (planted traits of gear builds) and `projects/poker` (the rules of hands). The contexts of the test split are the
population, and each seed sees as many of them, drawn with replacement. An effect's 95 % interval should cover its value in the
population in 95 % of the cases. Cells of one seed share their contexts, so a line is less sure than its number of intervals
suggests. Cells whose effect is the same in every context are always covered.
"""


@dataclass(frozen=True)
class Question:
    """An experiment whose answer is known.

    Attributes:
        about: what is asked, in a few words.
        subject: `project/subject`.
        latent: the neuron's number.
        spec: type and variables.
        found: (low, high) of each cell of a result.
        true: the truth of each cell, given the exact latent.
    """

    about: str
    subject: str
    latent: int
    spec: Mapping[str, Any]
    found: Callable[[ExperimentResult], dict[str, tuple[float, float]]]
    true: Callable[[DataPackage, Value], dict[str, float]]


@dataclass
class Tally:
    """Hits of one question, by cell."""

    hits: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    of: dict[str, int] = field(default_factory=lambda: defaultdict(int))


def bounds(table: str, key: str) -> Callable[[ExperimentResult], dict[str, tuple[float, float]]]:
    """Return a reader of a table's intervals, by the cell's name in column `key`."""
    return lambda result: {
        str(row[key]): (float(row["low"]), float(row["high"]))
        for row in result.tables[table].rows
        if row.get("low") is not None  # type: ignore[arg-type]
    }


def everywhere(package: DataPackage) -> ContextTable:
    """Return every context of the test split that breaks no hard constraint."""
    return _admitted(package, package.contexts("test"))


def _admitted(package: DataPackage, table: ContextTable) -> ContextTable:
    return table.take(_allowed(package, table))


def _allowed(package: DataPackage, *tables: ContextTable) -> np.ndarray:
    hard = [constraint for constraint in package.constraints() if constraint.enforcement == "hard"]
    return ~np.any([constraint.check(table) for constraint in hard for table in tables], axis=0)


def mean_change(package: DataPackage, value: Value, terms: list[tuple[int, ContextTable]]) -> float:
    """Return the mean of a signed sum of the latent over contexts that are admissible in every term; NaN where none is."""
    kept = _allowed(package, *(table for _, table in terms))
    if not kept.any():
        return float("nan")
    return float(np.sum([sign * value(table.take(kept)) for sign, table in terms], axis=0).mean())


def swept(family: str) -> Callable[[DataPackage, Value], dict[str, float]]:
    """Return the truth of an interventional family sweep."""

    def true(package: DataPackage, value: Value) -> dict[str, float]:
        start = edits.strip_family(everywhere(package), family)
        levels = package.vocabulary.family(family).levels
        return {str(rung): mean_change(package, value, [(1, edits.set_rung(start, family, rung)), (-1, start)]) for rung in levels}

    return true


def seen(family: str) -> Callable[[DataPackage, Value], dict[str, float]]:
    """Return the truth of an observational family sweep."""

    def true(package: DataPackage, value: Value) -> dict[str, float]:
        table = everywhere(package)
        values, at = value(table), table.rungs(family)
        absent = float(values[at == 0].mean())
        return {str(rung): float(values[at == rung].mean()) - absent for rung in np.unique(at[at > 0])}

    return true


def build_up(package: DataPackage, first: tuple[str, int | None], second: tuple[str, int | None]) -> list[tuple[int, ContextTable]]:
    """Return the four terms of an interaction between two levels."""
    start = edits.strip_family(edits.strip_family(everywhere(package), first[0]), second[0])
    one, other = edits.set_rung(start, *first), edits.set_rung(start, *second)
    return [(1, edits.set_rung(one, *second)), (-1, one), (-1, other), (1, start)]


def interacting(x: str, y: str) -> Callable[[DataPackage, Value], dict[str, float]]:
    """Return the truth of the interactions of an interventional heatmap."""

    def true(package: DataPackage, value: Value) -> dict[str, float]:
        levels = [package.vocabulary.family(name).levels for name in (x, y)]
        return {
            f"{one} x {other}": mean_change(package, value, build_up(package, (x, one), (y, other)))
            for one in levels[0]
            for other in levels[1]
        }

    return true


def swapped(package: DataPackage, value: Value) -> dict[str, float]:
    """Return the truth of an interventional group sweep: each group against the mean of all, in the same contexts."""
    table = everywhere(package)
    swaps = {key: edits.swap_group(table, key) for key in package.group_keys}
    kept = _allowed(package, *swaps.values())
    means = {key: float(value(swap.take(kept)).mean()) for key, swap in swaps.items()}
    whole = float(np.mean(list(means.values())))
    return {key: mean - whole for key, mean in means.items()}


def grid(result: ExperimentResult) -> dict[str, tuple[float, float]]:
    """Return the intervals of a heatmap's interactions; the first two columns name the cell."""
    table = result.tables["interactions"]
    x, y = table.columns[:2]
    return {
        f"{row[x]} x {row[y]}": (float(row["low"]), float(row["high"]))  # type: ignore[arg-type]
        for row in table.rows
        if row.get("low") is not None
    }


EDITED = {"mode": "interventional", "n_contexts": 400, "controls": 0, "stable_tokens": []}
QUESTIONS = [
    Question(
        "builds: rungs of special_charge_up, set",
        "splatoon/planted",
        0,
        {"type": "family_1d_sweep", "variables": {**EDITED, "family": "special_charge_up"}},
        bounds("rung_deltas", "rung"),
        swept("special_charge_up"),
    ),
    Question(
        "builds: rungs of special_charge_up, observed",
        "splatoon/planted",
        0,
        {"type": "family_1d_sweep", "variables": {"family": "special_charge_up"}},
        bounds("rung_deltas", "rung"),
        seen("special_charge_up"),
    ),
    Question(
        "builds: special_charge_up x comeback, set",
        "splatoon/planted",
        0,
        {"type": "family_2d_heatmap", "variables": {**EDITED, "family_x": "special_charge_up", "family_y": "comeback"}},
        grid,
        interacting("special_charge_up", "comeback"),
    ),
    Question(
        "builds: every weapon, swapped in",
        "splatoon/planted",
        0,
        {"type": "weapon_sweep", "variables": {**EDITED, "top_k_weapons": 100}},
        bounds("weapon_stats", "weapon_name"),
        swapped,
    ),
    Question(
        "hands: copies of a 7 and a pair, set",
        "poker/rules",
        1,
        {"type": "family_1d_sweep", "variables": {**EDITED, "family": "rank_7"}},
        bounds("rung_deltas", "rung"),
        swept("rank_7"),
    ),
    Question(
        "hands: copies of a 7 and a pair, observed",
        "poker/rules",
        1,
        {"type": "family_1d_sweep", "variables": {"family": "rank_7"}},
        bounds("rung_deltas", "rung"),
        seen("rank_7"),
    ),
    Question(
        "hands: hearts and a flush, set",
        "poker/rules",
        5,
        {"type": "family_1d_sweep", "variables": {**EDITED, "family": "suit_h"}},
        bounds("rung_deltas", "rung"),
        swept("suit_h"),
    ),
    Question(
        "hands: copies of a 7 x copies of a king and two pair, set",
        "poker/rules",
        2,
        {"type": "family_2d_heatmap", "variables": {**EDITED, "family_x": "rank_7", "family_y": "rank_K"}},
        grid,
        interacting("rank_7", "rank_K"),
    ),
]


@cache
def subject_of(name: str) -> Any:
    """Return a subject by `project/subject`."""
    project, _, subject = name.partition("/")
    return find_project(PROJECTS / project).load_subject(subject)


def exact(question: Question) -> Value:
    """Return the exact latent: the hand-built network's neuron, which the project's tests hold against its rules."""
    subject = subject_of(question.subject)
    return lambda table: subject.activations(table, subject.readout)[:, question.latent].astype(np.float64)


def answer(question: Question, seed: int) -> ExperimentResult:
    """Run the experiment under one seed, which draws the contexts too."""
    told = dict(question.spec)
    variables = {key: value for key, value in told["variables"].items() if key in catalog.find(told["type"]).Variables.model_fields}
    spec = Spec.model_validate({**told, "variables": variables, "feature_id": question.latent, "seed": seed})
    lab = open_lab(Context(spec, catalog.typed_variables(spec), Path(), lambda: subject_of(question.subject)))
    lab.rows = lab.rows.take(numpy_stream(seed, "coverage").integers(0, len(lab.rows), len(lab.rows)))
    measure = import_module(f"mlinterp.experiments.token_sets.{catalog.find(spec.type).type}_measure").measure
    result: ExperimentResult = measure(lab, catalog.typed_variables(spec))
    return result


def main() -> int:
    """Print the table; write it where told so. Exits 1 where fewer intervals than nominal cover, beyond chance."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    lines = [
        f"| question ({given.seeds} seeds) | mode | cells | intervals | cover the truth | worst cell |",
        "|---|---|---|---|---|---|",
    ]
    short = False
    for question in QUESTIONS:
        truth, tally, mode = question.true(subject_of(question.subject).package, exact(question)), Tally(), ""
        for seed in range(given.seeds):
            result = answer(question, seed)
            mode = result.mode
            for cell, (low, high) in question.found(result).items():
                near = 1e-6 * max(1.0, abs(truth[cell]))
                tally.of[cell] += 1
                tally.hits[cell] += low - near <= truth[cell] <= high + near
        n, hits = sum(tally.of.values()), sum(tally.hits.values())
        worst = min(tally.of, key=lambda cell: tally.hits[cell] / tally.of[cell])
        whole = wilson_interval(hits, n, LEVEL)
        low = f"{worst}: {tally.hits[worst]} of {tally.of[worst]}, truth {truth[worst]:.4g}"
        lines.append(f"| {question.about} | {mode} | {len(tally.of)} | {n} | {hits / n:.1%} | {low} |")
        print(lines[-1], flush=True)
        short |= whole.high < LEVEL
    if given.output is not None:
        given.output.write_text("\n".join([HEAD.format(seeds=given.seeds), *lines]) + "\n")
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
