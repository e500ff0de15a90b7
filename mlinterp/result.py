"""What an experiment returns: numbers, tables, figures and files, and whether it observed or intervened.

A result is plain data: it round-trips through JSON, holds no NaN where JSON has none, and knows nothing of MLflow. Figures are
declared over tables and drawn elsewhere, so that a figure can never show what no table holds.
"""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Cell = str | int | float | bool | None
Mode = Literal["observational", "interventional"]
RESULT_SCHEMA = "mlinterp.result.v1"
METRIC_VERSION = "1"
"""Which definitions the metrics follow. Raised whenever one of them changes, so that numbers of two definitions are never compared."""


FURTHER = "saes/"
"""How the numbers of a run's further SAEs begin, before the name of each: a person reads them in the table `saes`."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="null")


class ResultTable(_Part):
    """Rows under named columns. An undefined number is None."""

    name: str = Field(pattern=r"^[a-z0-9_]{1,64}$")
    columns: list[str] = []
    rows: list[dict[str, Cell]] = []
    description: str | None = None

    @classmethod
    def of(cls, name: str, rows: list[dict[str, Any]], description: str | None = None, columns: list[str] | None = None) -> ResultTable:
        """Build a table; numpy scalars become Python ones and non-finite numbers None."""
        names = columns or list(dict.fromkeys(key for row in rows for key in row))
        return cls(name=name, columns=names, rows=[{key: _plain(row.get(key)) for key in names} for row in rows], description=description)


def _plain(value: Any) -> Cell:
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


class Figure(_Part):
    """A plot declared over one table.

    `line`, `scatter` and `bar` draw each column of `y` against `x` (one series for each value of `series` where given), with
    `low`/`high` as the interval; `heatmap` draws `y[0]` over `x` (columns) and `series` (rows); `histogram` counts `x`; `parallel` draws
    a line for each row across upright axes, `x` and then each of `y`, coloured by the last; `graph` draws a line for each row, from `x`
    to `series`, as wide as `y[0]`.
    """

    name: str = Field(pattern=r"^[a-z0-9_]{1,64}$")
    table: str
    kind: Literal["line", "scatter", "bar", "heatmap", "histogram", "parallel", "graph"]
    x: str
    y: list[str] = []
    series: str | None = None
    low: str | None = None
    high: str | None = None
    title: str = ""
    x_label: str = ""
    y_label: str = ""
    log_x: bool = False
    log_y: bool = False
    reference: float | None = None
    """A line to compare with, upright in a histogram: a control, a chance level."""
    value_label: str = ""
    """What the colours of a heatmap show, with its unit; the column's name where left out."""
    full: float | None = None
    """The value of a heatmap's strongest colour where it is known beforehand, as 1 of a share: colours then begin at 0."""


class Estimate(_Part):
    """What is needed to judge a number: its interval, and what it would be if there were nothing to find.

    A two-sided interval at `level`; with `df` it is made with Student's t (t intervals, bootstraps), otherwise nearly normal on each side
    (Wilson). `p` is the two-sided p value of the null; where it is None, it follows from the interval and `null_value`.
    """

    value: float
    low: float | None = None
    high: float | None = None
    level: float = 0.95
    df: float | None = None
    n: int
    """Independent units behind the number."""
    unit: str = "example"
    interval: str
    """How the interval was made, in a few words."""
    null: str | None = None
    """What the number is compared with, in a few words; None where there is nothing but the predicted bound."""
    null_value: float | None = None
    """What the number would be under the null; 0 for an effect beyond its controls."""
    p: float | None = None
    mode: Mode | None = None
    """How it was measured, where that is not the mode of the whole result: a study's numbers come from steps of both modes."""


class Aggregates(_Part):
    """Headline numbers. None means undefined, never zero."""

    mean_delta: float | None = None
    std_delta: float | None = None
    max_delta: float | None = None
    min_delta: float | None = None
    median_delta: float | None = None
    base_activation_mean: float | None = None
    base_activation_std: float | None = None
    n_samples: int = 0
    n_conditions: int = 0
    effect_size: float | None = None
    explained_variance: float | None = None
    custom: dict[str, Any] = {}


class Diagnostics(_Part):
    """What a reader must know to trust the numbers."""

    n_contexts_tested: int = 0
    n_contexts_skipped: int = 0
    n_contexts_errored: int = 0
    relu_floor_detected: bool = False
    relu_floor_rate: float = 0.0
    base_activation_range: tuple[float, float] = (0.0, 0.0)
    cache_hit_rate: float = 0.0
    constraint_violations: list[str] = []
    warnings: list[str] = []


class ExperimentResult(_Part):
    """One experiment's outcome: success, or a named failure.

    An experiment fills the upper half; the run that executed it fills the provenance below.
    """

    result_schema: str = Field(RESULT_SCHEMA, alias="schema")
    mode: Mode = "observational"
    success: bool = True
    error_message: str | None = None
    metrics: dict[str, float] = {}
    """Numbers for comparison between runs, named `stage/name`; finite."""
    estimates: dict[str, Estimate] = {}
    """For each number of `numbers()` that a prediction can be judged by: its interval and null, under the same name."""
    aggregates: Aggregates = Aggregates()
    tables: dict[str, ResultTable] = {}
    figures: list[Figure] = []
    diagnostics: Diagnostics = Diagnostics()
    files: list[str] = []
    """Files the experiment wrote, relative to its work folder; each becomes an artifact under the same name."""
    model_file: str | None = None
    """The file among `files` that is a model to register (an SAE or a subject's weights folder)."""

    spec_id: str = ""
    spec_path: str | None = None
    spec_sha256: str = ""
    experiment_type: str = ""
    subject: str | None = None
    feature_id: int | None = None
    variables: dict[str, Any] = {}
    dataset_slice: dict[str, Any] | None = None
    hypothesis: str | None = None
    seed: int = 0
    inputs: dict[str, str] = {}
    """Role of each input to its digest."""
    versions: dict[str, str] = {}
    started_at: datetime | None = None
    completed_at: datetime | None = None
    duration_seconds: float = 0.0

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="null", populate_by_name=True)

    def add_table(
        self, name: str, rows: list[dict[str, Any]], columns: list[str] | None = None, description: str | None = None
    ) -> ResultTable:
        """Add a table and return it."""
        self.tables[name] = ResultTable.of(name, rows, description, columns)
        return self.tables[name]

    def to_filename(self) -> str:
        """Return the name of the file that holds this result alone; a spec without an id is named by the beginning of its digest."""
        return f"{self.spec_id or self.spec_sha256[:12]}__result.json"

    def numbers(self) -> dict[str, float]:
        """Return every finite number worth comparing, named `stage/name`."""
        found = dict(self.metrics)
        for key, value in [*self.aggregates.model_dump(exclude={"custom"}).items(), *self.aggregates.custom.items()]:
            if isinstance(value, int | float) and not isinstance(value, bool):
                found[f"aggregates/{key}"] = float(value)
        for key, value in self.diagnostics.model_dump(exclude={"warnings", "constraint_violations", "base_activation_range"}).items():
            found[f"diagnostics/{key}"] = float(value)
        return {key: value for key, value in found.items() if math.isfinite(value)}

    def measured(self) -> dict[str, float]:
        """Return the finite numbers that were measured: metrics, and those aggregates that are not at their default."""
        plain = self.aggregates.model_dump(exclude_defaults=True, exclude={"custom"})
        kept = {*self.metrics, *(f"aggregates/{name}" for name in [*plain, *self.aggregates.custom])}
        return {name: value for name, value in self.numbers().items() if name in kept}

    def number_named(self, metric: str) -> tuple[str, float] | None:
        """Return a number with its full name, or None where there is none; `stage.name` is read as `stage/name` too."""
        found = self.numbers()
        name = metric if metric in found else metric.replace(".", "/", 1)
        return (name, found[name]) if name in found else None

    def sentences(self) -> list[str]:
        """Return what the steps of a study say, from its table `narrative`; empty where there is none."""
        rows = self.tables["narrative"].rows if "narrative" in self.tables else []
        return [f"{row['step']} ({row['mode']}): {row['sentence']}" for row in rows]

    def get_summary(self) -> str:
        """Return the result in a few lines of text."""
        head = f"{self.experiment_type or 'experiment'} ({self.mode})"
        if not self.success:
            return f"{head}: failed: {self.error_message}"
        plain = self.aggregates.model_dump(exclude={"custom"}, exclude_none=True, exclude_defaults=True)
        shown = {**self.metrics, **plain, **self.aggregates.custom}
        lines = [head, *(f"  {key} = {value:.6g}" if isinstance(value, float) else f"  {key} = {value}" for key, value in shown.items())]
        lines += [f"  warning: {text}" for text in self.diagnostics.warnings]
        return "\n".join(lines)
