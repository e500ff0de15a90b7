"""What a workflow found: every step whole, and the sentences that its study made of them."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import Any

from mlinterp.analysis import AnalysisResult, StoredFigure
from mlinterp.errors import SpecError, unknown
from mlinterp.execution.summary import RunSummary
from mlinterp.experiments import catalog
from mlinterp.result import Cell


@dataclass(frozen=True)
class WorkflowResult:
    """A workflow's study, finished.

    Attributes:
        workflow: its name.
        study: the study's own run: its report, its verdict, its page in the UI.
        steps: each step's name and what it found, in order.
    """

    workflow: str
    study: AnalysisResult
    steps: list[tuple[str, AnalysisResult]]

    @classmethod
    def of(cls, workflow: str, run: RunSummary) -> WorkflowResult:
        """Return a finished study as a workflow's result. A step that an earlier run had answered is read from there."""
        study, known = AnalysisResult.of(run), {str(child.label): child for child in run.children}
        rows = study.result.tables["steps"].rows
        named = [(str(row["step"]), str(row["run_id"])) for row in rows]
        return cls(workflow, study, [(name, AnalysisResult.of(known.get(name) or _earlier(run, name, run_id))) for name, run_id in named])

    def __repr__(self) -> str:
        return f"<{self.workflow} · run {self.run_id[:12]} · steps {', '.join(name for name, _ in self.steps)}>"

    @property
    def run_id(self) -> str:
        """The MLflow run of the study."""
        return self.study.run_id

    @property
    def link(self) -> str:
        """The study's page in the MLflow UI."""
        return self.study.link

    @property
    def narrative(self) -> str:
        """What the steps say, a sentence a line: numbers with their intervals and nulls, observational or interventional."""
        return "\n".join(self.study.result.sentences())

    def get_step(self, name: str) -> AnalysisResult:
        """Return what a step found. Raises SpecError with the nearest name."""
        found = dict(self.steps)
        if name not in found:
            raise unknown("get_step", name, found, what=f"step of this {self.workflow}")
        return found[name]

    def summary(self) -> str:
        """Return the narrative, and the run it is from."""
        reused = ", all as before" if self.study.run.reused else ""
        head = f"{self.workflow} of {self.study.result.subject}: {', '.join(name for name, _ in self.steps)}{reused}"
        return f"{head}\n{self.narrative}\nrun {self.run_id[:12]}: {self.link}"

    def to_dict(self) -> dict[str, Any]:
        """Return the narrative, every step whole and the study itself, as JSON values."""
        study = self.study.to_dict()
        steps = [{"name": name, **step.to_dict()} for name, step in self.steps]
        data = {"workflow": self.workflow, "narrative": self.narrative, "steps": steps, "study": study["data"]}
        return {"result_type": "workflow", "data": data, "metadata": study["metadata"], "summary": self.summary()}

    def to_json(self, indent: int | None = 2) -> str:
        """Return `to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False, allow_nan=False)

    def to_markdown(self) -> str:
        """Return the study's report: the steps, what they say, and each in brief."""
        return self.study.to_markdown()

    def plot(self, step: str | None = None) -> StoredFigure:
        """Return the main figure of a step, or those of all steps that have one, below one another, where none is named."""
        if step is not None:
            return self.get_step(step).plot()
        figures = [found.plot() for _, found in self.steps if found.result.figures]
        if not figures:
            raise SpecError("no step has a figure", field="plot")
        return StoredFigure(self.workflow, "; ".join(figure.title for figure in figures), _stacked([figure.png for figure in figures]))

    def top_components(self, k: int = 5) -> list[dict[str, Cell]]:
        """Return the k first rows of each step that ranks what it found, with the step's name; effects of steps are not comparable.

        Raises SpecError where no step ranks anything.
        """
        ranked = [(name, found) for name, found in self.steps if catalog.find(found.result_type).ranking]
        if not ranked:
            raise SpecError(f"no step of this {self.workflow} ranks anything", field="top_components")
        return [{"step": name, **row} for name, found in ranked for row in found.top_components(k)]


def _earlier(study: RunSummary, label: str, run_id: str) -> RunSummary:
    """Return the run that had answered a step before its study began."""
    from mlinterp.tracking import links, queries
    from mlinterp.tracking.store import open_store

    store = open_store(study.workspace)
    run = queries.get(store, run_id)
    if run is None:
        raise SpecError(f"run {run_id[:12]} of step '{label}' was deleted", allowed="restore it in the UI, or run the workflow `again`")
    return RunSummary(
        run_id=run_id,
        run_name=run.info.run_name,
        status=run.info.status,
        store_uri=study.store_uri,
        workspace=study.workspace,
        reused=True,
        links={"run": links.run(run.info.experiment_id, run_id)},
        result=queries.recorded_result(store, run_id),
        label=label,
        verdict=run.data.tags.get("mlinterp.verdict"),
        ruling=run.data.tags.get("mlinterp.ruling"),
    )


def _stacked(pictures: list[bytes]) -> bytes:
    """Return PNGs below one another as one PNG."""
    from PIL import Image

    images = [Image.open(io.BytesIO(png)).convert("RGB") for png in pictures]
    whole = Image.new("RGB", (max(image.width for image in images), sum(image.height for image in images)), "white")
    top = 0
    for image in images:
        whole.paste(image, (0, top))
        top += image.height
    target = io.BytesIO()
    whole.save(target, format="PNG")
    return target.getvalue()
