"""What a run said, for programs and notebooks: its numbers, tables and figures, and where to look at it.

found = mlinterp.activation_patching("gpt", pairs="pairs.jsonl")
found.metrics["top/effect"]; found.tables["patches"]; found.top_components(3); found.plot().save("patches.png")
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlinterp.errors import SpecError, unknown
from mlinterp.execution.summary import RunSummary
from mlinterp.experiments import catalog
from mlinterp.io.atomic import write_bytes
from mlinterp.io.tables import frame
from mlinterp.result import Aggregates, Cell, Estimate, ExperimentResult

if TYPE_CHECKING:
    import pandas as pd

_FINDING = ("mode", "metrics", "estimates", "aggregates", "tables", "figures", "diagnostics")
"""Fields of a result that say what was found; the others say where it comes from."""


@dataclass(frozen=True)
class StoredFigure:
    """A figure as a run keeps it. A notebook shows it; `save` writes it."""

    name: str
    title: str
    png: bytes

    def _repr_png_(self) -> bytes:
        return self.png

    def __repr__(self) -> str:
        return f"<figure '{self.name}': {self.title}>"

    def save(self, path: Path | str) -> Path:
        """Write the PNG and return its path."""
        return write_bytes(Path(path), self.png)


@dataclass(frozen=True)
class AnalysisResult:
    """One finished run.

    Attributes:
        run: the run: its id, name and status, its verdict, and whether an earlier one had the answer (`run.reused`).
        result: all that it returned.
    """

    run: RunSummary
    result: ExperimentResult

    @classmethod
    def of(cls, run: RunSummary) -> AnalysisResult:
        """Return a finished run as its result."""
        assert run.result is not None, "a finished run has a result"
        return cls(run, run.result)

    def __repr__(self) -> str:
        return (
            f"<{self.result_type} · run {self.run_id[:12]} · {len(self.metrics)} metrics, tables {', '.join(self.result.tables) or 'none'}>"
        )

    @property
    def result_type(self) -> str:
        """The experiment type."""
        return self.result.experiment_type

    @property
    def run_id(self) -> str:
        """The MLflow run."""
        return self.run.run_id

    @property
    def link(self) -> str:
        """The run's page in the MLflow UI, which `mlinterp ui` serves where the store is no server."""
        from mlinterp.tracking import links

        return links.absolute(links.ui(self.run.store_uri), self.run.links["run"])

    @property
    def metrics(self) -> Mapping[str, float]:
        """The headline numbers, by name."""
        return self.result.metrics

    @property
    def estimates(self) -> Mapping[str, Estimate]:
        """Interval and null of each number that has them, by the number's name."""
        return self.result.estimates

    @property
    def aggregates(self) -> Aggregates:
        """What all types have in common; None where undefined."""
        return self.result.aggregates

    @property
    def warnings(self) -> list[str]:
        """What a reader must know to trust the numbers."""
        return self.result.diagnostics.warnings

    @cached_property
    def tables(self) -> Mapping[str, pd.DataFrame]:
        """Every table as a data frame, by name."""
        return {name: frame(table) for name, table in self.result.tables.items()}

    def summary(self) -> str:
        """Return the numbers and warnings in a few lines of text, and the run they are from."""
        return f"{self.result.get_summary()}\n  run {self.run_id[:12]}: {self.link}"

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values under `result_type`, `data` (what was found), `metadata` (where it comes from) and `summary`."""
        everything = json.loads(self.result.model_dump_json(by_alias=True))
        data = {name: everything.pop(name) for name in _FINDING}
        about = {"run_id": self.run_id, "run_name": self.run.run_name, "status": self.run.status, "reused": self.run.reused}
        judged = {"verdict": self.run.verdict, "ruling": self.run.ruling}
        metadata = {**about, "link": self.link, "store": self.run.store_uri, **judged, **everything}
        return {"result_type": self.result_type, "data": data, "metadata": metadata, "summary": self.summary()}

    def to_json(self, indent: int | None = 2) -> str:
        """Return `to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False, allow_nan=False)

    def to_markdown(self) -> str:
        """Return the run's report, with its verdict as the evidence stands now; it names figures as `figures/NAME.png`."""
        from mlinterp.reporting import generate

        return generate(self.run_id, self.run.workspace).markdown

    def plot(self, name: str | None = None) -> StoredFigure:
        """Return a figure of the run as it is stored; the type's main one where none is named.

        Raises SpecError, with the nearest name, for one that there is not.
        """
        from mlinterp.tracking import queries
        from mlinterp.tracking.store import open_store

        there = {figure.name: figure for figure in self.result.figures}
        if not there:
            raise SpecError(f"run {self.run_id[:12]} ({self.result_type}) has no figure", allowed="its tables are in `tables`")
        if name is not None and name not in there:
            raise unknown("plot", name, there, what="figure")
        figure = there[name or next(iter(there))]
        store, file = open_store(self.run.workspace), f"figures/{figure.name}.png"
        folder = queries.fetch(store, self.run_id, [file], store.cache / self.run_id)
        return StoredFigure(figure.name, figure.title, (folder / file).read_bytes())

    def top_components(self, k: int = 5) -> list[dict[str, Cell]]:
        """Return the k rows of the type's ranked table whose number is largest by size, the largest first; undefined ones have no rank.

        Raises SpecError for a type that ranks nothing.
        """
        ranking = catalog.find(self.result_type).ranking
        if ranking is None:
            known = [experiment.type for experiment in catalog.experiments().values() if experiment.ranking]
            raise SpecError(f"{self.result_type} ranks nothing", field="top_components", allowed=f"types that do: {', '.join(known)}")
        table, column = ranking
        rows = self.result.tables[table].rows if table in self.result.tables else []
        known_rows = [row for row in rows if isinstance(row.get(column), int | float)]
        return sorted(known_rows, key=lambda row: -abs(_number(row[column])))[:k]


def _number(cell: Cell) -> float:
    assert isinstance(cell, int | float)
    return float(cell)
