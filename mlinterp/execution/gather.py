"""From the results of children to the result of their parent: a study's numbers under its steps' names, a sweep's means over seeds."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any, NamedTuple

from mlinterp.estimates import over_seeds, record
from mlinterp.execution.narrative import narrative
from mlinterp.execution.summary import RunSummary
from mlinterp.execution.sweep_figures import sweep_figures
from mlinterp.experiments import catalog
from mlinterp.result import Estimate, ExperimentResult
from mlinterp.spec import Spec

HEADLINES = 8
"""Metrics of a step that its study carries too, beside those that its type or a prediction names; the step itself has them all."""
MOST_METRICS = 200
"""Numbers that a sweep of several settings carries under their names; its tables have them all."""
DEFAULT_HEADLINES = 4
"""Metrics that a sweep is drawn in where its type names none."""


def study_result(spec: Spec, runs: Sequence[RunSummary]) -> ExperimentResult:
    """Return a study's result: its steps, and each step's main numbers under `step/metric`, with their estimates."""
    result, rows = ExperimentResult(), []
    estimates: dict[str, Estimate] = {}
    predicted = {expectation.metric.replace("/", ".") for expectation in spec.expect}
    for child in runs:
        assert child.result is not None
        if child.result.mode == "interventional":
            result.mode = "interventional"
        rows.append(
            {
                "step": child.label,
                "type": child.result.experiment_type,
                "mode": child.result.mode,
                "seconds": round(child.result.duration_seconds, 1),
                "reused": child.reused,
                "run_id": child.run_id,
            }
        )
        declared = catalog.find(child.result.experiment_type).headlines
        for position, (name, value) in enumerate(child.result.numbers().items()):
            dotted = name.replace("/", ".")
            if (position < HEADLINES and name in child.result.metrics) or name in declared or f"{child.label}.{dotted}" in predicted:
                result.metrics[f"{child.label}/{dotted}"] = value
                if name in child.result.estimates:
                    own = child.result.estimates[name]
                    estimates[f"{child.label}/{dotted}"] = own.model_copy(update={"mode": own.mode or child.result.mode})
        result.diagnostics.warnings += [f"{child.label}: {warning}" for warning in child.result.diagnostics.warnings]
    result.add_table("steps", rows, description="The steps of this study, in order.")
    if told := narrative(runs):
        result.add_table("narrative", told, description="What the steps say, in sentences made from their numbers.")
    record(result, estimates)
    return result


class Mean(NamedTuple):
    """A mean over so many seeds, with its estimate where there is one."""

    value: float
    n_seeds: int
    estimate: Estimate | None

    @property
    def low(self) -> float | None:
        """The lower bound of its interval."""
        return self.estimate.low if self.estimate else None

    @property
    def high(self) -> float | None:
        """The upper bound of its interval."""
        return self.estimate.high if self.estimate else None

    @property
    def how(self) -> str | None:
        """How its interval was made."""
        return self.estimate.interval if self.estimate else None


@dataclass(frozen=True)
class Setting:
    """Cells that differ in their seed alone.

    Attributes:
        name: what tells it from the others, in signs that a metric's name may have; empty where it is the only one.
        cell: its values by matrix key.
        results: of its cells that finished, in the order of their seeds.
    """

    name: str
    cell: Mapping[str, Any]
    results: tuple[ExperimentResult, ...]

    @cached_property
    def means(self) -> dict[str, Mean]:
        """Each metric's mean over the seeds that have it."""
        found = {}
        numbers = [result.measured() for result in self.results]
        for metric in dict.fromkeys(name for each in numbers for name in each):
            pairs = zip(numbers, self.results, strict=True)
            having = [(each[metric], result.estimates.get(metric)) for each, result in pairs if metric in each]
            values = [value for value, _ in having]
            found[metric] = Mean(fmean(values), len(values), over_seeds(values, [estimate for _, estimate in having]))
        return found

    def key(self, metric: str) -> str:
        """Return the name under which the sweep carries a metric of this setting."""
        return f"{self.name}/{metric.replace('/', '.')}" if self.name else metric


def sweep_result(spec: Spec, cells: Sequence[Mapping[str, Any]], runs: Sequence[RunSummary]) -> tuple[ExperimentResult, list[str]]:
    """Return a sweep's result and the names of the metrics it is read by.

    Each setting's mean over seeds stands in the tables `summary` (a row a setting and metric) and `settings` (a row a setting, its
    main metrics beside each other), and among the metrics: under its own name where there is one setting, else as
    `setting/metric`. A prediction about a sweep of several settings names the setting that it is about.
    """
    result = ExperimentResult()
    if any(outcome.result and outcome.result.mode == "interventional" for outcome in runs):
        result.mode = "interventional"
    finished = [outcome.result for outcome in runs if outcome.result is not None and outcome.status == "FINISHED"]
    names = list(dict.fromkeys(name for each in finished for name in each.measured()))
    shown = _headlines(spec, names)
    settings = _settings(spec, cells, runs)

    rows = [
        {**{key: _plain(value) for key, value in cell.items()}, "status": outcome.status}
        | (outcome.result.measured() if outcome.result else {})
        | {"run_id": outcome.run_id, "error": outcome.error}
        for cell, outcome in zip(cells, runs, strict=True)
    ]
    columns = list(dict.fromkeys([*cells[0], "status", *names, "run_id", "error"]))
    result.add_table("cells", rows, columns, description="Each cell of the sweep with its numbers.")
    _add_means(result, settings, shown)
    sweep_figures(result, spec, shown, catalog.find(spec.type).frontiers)

    result.metrics = {"sweep/n_cells": float(len(runs)), "sweep/n_failed": float(sum(run.status != "FINISHED" for run in runs))}
    estimates: dict[str, Estimate] = {}
    predicted = {expectation.metric.replace("/", ".") for expectation in spec.expect}
    for setting in settings:
        for metric in _carried(setting, shown, len(settings), predicted):
            mean = setting.means[metric]
            result.metrics[setting.key(metric)] = mean.value
            if mean.estimate is not None:
                estimates[setting.key(metric)] = mean.estimate
    record(result, estimates)
    result.diagnostics.warnings += [f"cell {run.label} failed: {run.error}" for run in runs if run.status != "FINISHED"]
    return result, shown


def _settings(spec: Spec, cells: Sequence[Mapping[str, Any]], runs: Sequence[RunSummary]) -> list[Setting]:
    from mlinterp.tracking import names

    keys = [key for key in spec.matrix if key != "seed"]
    groups: dict[str, tuple[dict[str, Any], list[ExperimentResult]]] = {}
    for cell, outcome in zip(cells, runs, strict=True):
        own = {key: cell[key] for key in keys}
        results = groups.setdefault(repr(own), (own, []))[1]
        if outcome.result is not None and outcome.status == "FINISHED":
            results.append(outcome.result)
    found: dict[str, Setting] = {}
    for own, results in groups.values():
        words = " ".join(f"{key.rsplit('.', 1)[-1]}_{_plain(value)}".replace("/", "_")[:60] for key, value in own.items())
        name = names.key(words) if len(groups) > 1 else ""
        name = name if name not in found else f"{name} {len(found)}"
        found[name] = Setting(name, own, tuple(results))
    return [setting for setting in found.values() if setting.results]


def _headlines(spec: Spec, names: Sequence[str]) -> list[str]:
    """Return the metrics that a sweep is read by: those predicted, then those its type names, else its first ones."""
    predicted = [next((name for name in (each.metric, each.metric.replace(".", "/", 1)) if name in names), None) for each in spec.expect]
    declared = [name for name in catalog.find(spec.type).headlines if name in names]
    plain = [name for name in names if not name.endswith(("seconds", "n_states", "n_examples"))]
    return list(dict.fromkeys([*filter(None, predicted), *(declared or plain[:DEFAULT_HEADLINES])]))


def _carried(setting: Setting, shown: Sequence[str], n_settings: int, predicted: Collection[str]) -> list[str]:
    """Return the metrics that a sweep carries of one setting: all where that is few, else the main ones, and whatever was predicted."""
    most = MOST_METRICS // n_settings
    kept = setting.means if n_settings == 1 or len(setting.means) <= most else shown[:most]
    return [name for name in setting.means if name in kept or setting.key(name).replace("/", ".") in predicted]


def _add_means(result: ExperimentResult, settings: Sequence[Setting], shown: Sequence[str]) -> None:
    long: list[dict[str, Any]] = []
    wide: list[dict[str, Any]] = []
    for setting in settings:
        own, means = {key: _plain(value) for key, value in setting.cell.items()}, setting.means
        long += [
            {**own, "metric": name, "mean": mean.value, "low": mean.low, "high": mean.high, "n_seeds": mean.n_seeds, "interval": mean.how}
            for name, mean in means.items()
        ]
        wide.append({"setting": setting.name or "all cells", **own, "seeds": len(setting.results)})
        for name in shown:
            if name in means:
                wide[-1] |= {name: means[name].value, f"{name} low": means[name].low, f"{name} high": means[name].high}
    about = "with its 95 % interval: Student's t over seeds; a single run's own, where it has one."
    result.add_table("settings", wide, description=f"Each setting's mean over seeds of the main metrics, {about}")
    result.add_table("summary", long, description=f"The mean over seeds of every metric, {about}")


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | None) else str(value)
