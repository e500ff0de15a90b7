"""From a result in a work folder to what a person finds in MLflow: tables, figures, report, files, model, and the manifest last."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlinterp.errors import ExperimentError
from mlinterp.execution.session import Session
from mlinterp.experiments.base import Experiment, ResolvedInput
from mlinterp.io.atomic import write_bytes, write_text
from mlinterp.io.manifest import write_manifest
from mlinterp.reports.plots import draw
from mlinterp.result import ExperimentResult

if TYPE_CHECKING:
    from mlinterp.tracking.recorder import Recorder


def publish(result: ExperimentResult, workdir: Path, recorder: Recorder, report: Mapping[str, str]) -> dict[str, Any]:
    """Log everything a result holds and return its manifest.

    `report` maps the report's file names to their text. Raises ExperimentError after logging where a metric is NaN or infinite:
    such a run has not succeeded.
    """
    names = list(result.files)
    names.append(_write(workdir, "result.json", result.model_dump_json(by_alias=True, indent=2)))
    for figure in result.figures:
        name = f"figures/{figure.name}.png"
        write_bytes(workdir / name, draw(figure, result.tables[figure.table]))
        names.append(name)
    names += [_write(workdir, name, text) for name, text in report.items()]
    names += recorder.tables(result.tables.values(), workdir)
    for name in names:
        recorder.artifact(workdir / name, str(Path(name).parent) if "/" in name else None)
    recorder.metrics(result.numbers(), step=0)
    manifest = write_manifest(workdir, names)
    recorder.artifact(workdir / "manifest.json")
    broken = {name: value for name, value in result.metrics.items() if not math.isfinite(value)}
    for name, value in broken.items():
        recorder.tags({f"mlinterp.nonfinite.{name.replace('/', '.')}": str(value)})
    if broken:
        raise ExperimentError(f"not finite: {', '.join(f'{name} = {value}' for name, value in broken.items())}")
    return manifest


def _write(workdir: Path, name: str, text: str) -> str:
    write_text(workdir / name, text)
    return name


def log_model(
    result: ExperimentResult,
    experiment: Experiment,
    inputs: Mapping[str, ResolvedInput],
    workdir: Path,
    session: Session,
    recorder: Recorder,
) -> None:
    """Log and register what the experiment fitted: an SAE as a registered version, a subject as a logged model."""
    from mlinterp.tracking import flavor

    if experiment.produces == "sae":
        flavor.log_sae(
            session.store,
            recorder.run_id,
            workdir,
            project=session.project.name,
            subject=result.subject or "subject",
            metrics=result.numbers(),
            tags={"mlinterp.spec_sha256": result.spec_sha256, **{f"mlinterp.input.{role}": item.digest for role, item in inputs.items()}},
        )
    elif experiment.produces == "subject":
        flavor.log_subject(session.store, recorder.run_id, workdir / "subject", project=session.project.name, subject=result.subject or "subject", metrics=result.numbers())
