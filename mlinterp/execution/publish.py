"""From a result in a work folder to what a person finds in MLflow: tables, figures, report, files, the manifest last, and the model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlinterp.errors import ExperimentError
from mlinterp.execution.session import Session
from mlinterp.execution.summary import RunSummary
from mlinterp.experiments.base import Experiment, ResolvedInput
from mlinterp.hypotheses.judging import judge
from mlinterp.io.atomic import write_bytes
from mlinterp.io.manifest import write_manifest
from mlinterp.reports import html, markdown
from mlinterp.reports.composite import Child
from mlinterp.reports.plots import draw_all
from mlinterp.result import FURTHER, METRIC_VERSION, ExperimentResult
from mlinterp.spec import Spec

if TYPE_CHECKING:
    from mlinterp.tracking.recorder import Recorder


def publish(spec: Spec, result: ExperimentResult, children: Sequence[RunSummary], workdir: Path, recorder: Recorder) -> None:
    """Log everything a result holds.

    Raises ExperimentError after logging where a metric is NaN or infinite: such a run has not succeeded.
    """
    names = [*result.files, *recorder.tables(result.tables.values(), workdir)]
    figures = draw_all(result)
    files = {"result.json": result.model_dump_json(by_alias=True, indent=2).encode()}
    files |= {f"figures/{name}.png": png for name, png in figures.items()}
    files |= {name: text.encode() for name, text in reports(spec, result, children, figures).items()}
    for name, data in files.items():
        write_bytes(workdir / name, data)
    names += files
    for name in names:
        recorder.artifact(workdir / name, Path(name).parent.as_posix())
    recorder.metrics(result.numbers(), step=0)
    recorder.tags({"mlinterp.mode": result.mode, **_said(result)})
    write_manifest(workdir, names)
    recorder.artifact(workdir / "manifest.json")
    broken = {name: value for name, value in result.metrics.items() if not math.isfinite(value)}
    if broken:
        recorder.metrics(broken, step=0)
        raise ExperimentError(f"not finite: {', '.join(f'{name} = {value}' for name, value in broken.items())}")


def _said(result: ExperimentResult) -> dict[str, str]:
    """Return what a result says in words, as tags by which runs are found: its latent, the ReLU floor, a dominant group."""
    found = {"mlinterp.feature_id": str(result.feature_id)} if result.feature_id is not None else {}
    if result.diagnostics.relu_floor_detected:
        found["mlinterp.relu_floor_detected"] = "true"
    for name, value in result.aggregates.custom.items():
        if isinstance(value, str | bool):
            found[f"mlinterp.custom.{name}"] = str(value).lower() if isinstance(value, bool) else value[:500]
    return found


def reports(spec: Spec, result: ExperimentResult, children: Sequence[RunSummary], figures: Mapping[str, bytes]) -> dict[str, str]:
    """Return the report's files: a run's own, or a study's or sweep's with its children in brief."""
    asked, judged = spec.model_dump(mode="json", exclude_none=True), judge(spec.expect, result)
    if not (spec.is_study or spec.is_sweep):
        return {
            "report.md": markdown.run_markdown(result, asked=asked, judged=judged),
            "report.html": html.run_html(result, figures=figures, asked=asked, judged=judged),
        }
    below = [Child(child.label or child.run_name, child.result, child.links, child.status, child.error) for child in children]
    if spec.is_study:
        return {
            "report.md": markdown.study_markdown(result, below, asked=asked, judged=judged),
            "report.html": html.study_html(result, below, asked=asked, judged=judged),
        }
    return {
        "report.md": markdown.sweep_markdown(result, below, asked=asked, judged=judged),
        "report.html": html.sweep_html(result, below, asked=asked, judged=judged),
    }


def log_model(result: ExperimentResult, experiment: Experiment | None, workdir: Path, session: Session, recorder: Recorder) -> None:
    """Log and register what the experiment fitted: SAEs as registered versions, a subject as a logged model.

    A run that was killed after logging a model and goes on does not log it twice. Of several SAEs the run's own is the last, so that it
    is the newest version of its hook point.
    """
    from mlinterp.tracking import flavor, queries

    made = experiment.produces if experiment else None
    saes = saes_of(result)
    if made not in ("sae", "subject") or len(queries.models_of(session.store, recorder.run_id)) >= max(1, len(saes)):
        return
    project, subject, numbers = session.project.name, result.subject or "subject", result.numbers()
    if made == "subject":
        flavor.log_subject(session.store, recorder.run_id, workdir / "subject", project=project, subject=subject, metrics=numbers)
        return
    asked = {"mlinterp.spec_sha256": result.spec_sha256, "mlinterp.metric_version": METRIC_VERSION}
    tags = {**asked, **{f"mlinterp.{role}_digest": digest for role, digest in result.inputs.items()}}
    for place, name in reversed(list(enumerate(saes))):
        flavor.log_sae(
            session.store,
            recorder.run_id,
            workdir / name,
            project=project,
            subject=subject,
            metrics=_numbers_below(f"{name}/", numbers) if place else {key: numbers[key] for key in numbers if not key.startswith(FURTHER)},
            tags=tags,
            place=place,
        )


def _numbers_below(prefix: str, numbers: Mapping[str, float]) -> dict[str, float]:
    return {name.removeprefix(prefix): value for name, value in numbers.items() if name.startswith(prefix)}


def saes_of(result: ExperimentResult) -> list[str]:
    """Return the folders of the SAEs that a run has fitted, its own first: `.` where there is one, else `saes/NAME` of each."""
    folders = [Path(name).parent.as_posix() for name in result.files if Path(name).name == "sae.pt"]
    return folders[1:] or folders


def log_measurements(
    result: ExperimentResult, experiment: Experiment | None, inputs: Mapping[str, ResolvedInput], session: Session, recorder: Recorder
) -> None:
    """Give the SAE that an evaluation has measured its numbers, so that the registry shows them and gates judge them."""
    from mlinterp.tracking import flavor, versions

    measured = inputs.get("sae")
    if experiment is not None and experiment.type == versions.EVALUATION and measured is not None and measured.model_id is not None:
        flavor.log_measurements(session.store, recorder.run_id, measured.model_id, result.numbers())
