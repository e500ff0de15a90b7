"""What happens to a spec. Read this file and you know.

1. plan      the spec's type, typed variables and inputs; every refusal happens here, before a run exists
2. reuse     the same spec on the same inputs with the same code is the same run: say so instead of computing it again
3. open      an MLflow run whose status will be true whatever happens
4. work      the experiment; a study runs its steps, a sweep its cells, each through these same stages
5. publish   result, tables, figures, report, files, model, manifest; what was predicted beside it
6. close     FINISHED, FAILED or KILLED, with links up and down the lineage (`tracking.life`)
7. rule      what the run says for its hypothesis, among all evidence that there is (`execution.verdict`)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlinterp.errors import ExperimentError, SpecError
from mlinterp.execution import inputs as execution_inputs
from mlinterp.execution import verdict
from mlinterp.execution.code_version import code_version, versions
from mlinterp.execution.composite import Composite
from mlinterp.execution.earlier import summary_of
from mlinterp.execution.publish import log_measurements, log_model, publish
from mlinterp.execution.session import Place, Session
from mlinterp.execution.summary import RunSummary
from mlinterp.experiments import catalog
from mlinterp.experiments.base import Context, Experiment, ResolvedInput, Variables
from mlinterp.io.atomic import write_bytes, write_text
from mlinterp.io.digests import sha256_json
from mlinterp.progress import Reporter, Silent
from mlinterp.project import Project, find_project
from mlinterp.result import METRIC_VERSION, Aggregates, Diagnostics, ExperimentResult
from mlinterp.spec import Spec, flatten

if TYPE_CHECKING:
    from mlinterp.subjects.base import Subject
    from mlinterp.tracking.recorder import Recorder


@dataclass(frozen=True)
class Plan:
    """A spec with everything about it settled.

    Attributes:
        experiment: its type; None for a study or a sweep, whose children have types.
        variables: its typed variables.
        inputs: its inputs as verified files.
        key: digest of question, inputs, subject and code: two runs with equal keys are the same run.
    """

    experiment: Experiment | None
    variables: Variables | None
    inputs: dict[str, ResolvedInput]
    key: str


def run(
    spec: Spec,
    *,
    project: Project,
    document: tuple[bytes, str] | None = None,
    again: bool = False,
    reporter: Reporter | None = None,
    given: Mapping[str, ResolvedInput] | None = None,
) -> RunSummary:
    """Execute a spec as an MLflow run and return what came of it.

    Args:
        spec: what is asked.
        project: where its names come from.
        document: the spec as it was written and its file's suffix, kept beside the resolved spec.
        again: compute even what an earlier run already answered.
        reporter: who listens to progress.
        given: inputs already at hand, by role.

    Raises:
        SpecError: something declared is wrong; nothing was run.
        MlinterpError: the run has FAILED and says why.
    """
    spec.require_standalone()
    spec = execution_inputs.with_defaults(spec, project)
    session = Session.open(project, reporter or Silent(), again=again)
    with session.refreshed_views():
        return _told(execute(spec, session, Place(document=document, given=given or {})), spec, session)


def resume(run_id: str, *, workspace: Path, reporter: Reporter | None = None) -> RunSummary:
    """Go on with a run that was interrupted, from its last durable state to the bits that it would have had undisturbed.

    Raises SpecError for a run that is unknown, finished or held by a living process, and VerificationError where the code that
    would go on differs from the code that began.
    """
    from mlinterp.tracking import queries
    from mlinterp.tracking.lease import reconcile
    from mlinterp.tracking.store import open_store

    reconcile(workspace)
    recorded = queries.recorded_spec(open_store(workspace), run_id)
    if original := recorded.tags.get("mlinterp.reproduces"):
        problem = f"run {recorded.run_id[:12]} was to see whether run {original[:12]} comes out the same"
        raise SpecError(problem, allowed=f"`mlinterp reproduce {original[:12]}` begins it anew")
    project, again = find_project(workspace / recorded.project_root), recorded.tags.get("mlinterp.again") == "true"
    session = Session.open(project, reporter or Silent(), again=again, experiment_id=recorded.experiment_id)
    with session.refreshed_views():
        return _told(execute(recorded.spec, session, Place(run_id=recorded.run_id)), recorded.spec, session)


def _told(summary: RunSummary, spec: Spec, session: Session) -> RunSummary:
    return replace(summary, standings=verdict.standings(spec, session))


def execute(spec: Spec, session: Session, place: Place) -> RunSummary:
    """Take one spec through the stages."""
    from mlinterp.tracking.life import RunLife
    from mlinterp.tracking.queries import find_finished

    plan = plan_of(spec, session, place)
    if session.may_reuse(place) and (earlier := find_finished(session.store, session.experiment_id, plan.key)):
        return summary_of(earlier, session, place.label)
    started = datetime.now(UTC)
    tags = identity(spec, plan, session, place)
    with RunLife(session.store, session.experiment_id, run_name(spec, place), tags, session.workspace, run_id=place.run_id) as life:
        recorder, workdir = life.recorder, session.workdir(life.run_id)
        workdir.mkdir(parents=True, exist_ok=True)
        record_question(spec, plan, recorder, workdir, place)
        if place.original is None:
            verdict.register(spec, session, recorder)
        result, children = work(spec, plan, session, place, recorder, workdir)
        result = complete(result, spec, plan, started)
        publish(spec, result, children, workdir, recorder)
        if place.original is None:
            log_model(result, plan.experiment, workdir, session, recorder)
            log_measurements(result, plan.experiment, plan.inputs, session, recorder)
        if not result.success:
            raise ExperimentError(result.error_message or "the experiment failed without a word")
        if place.original is None:
            verdict.judge(spec, result, recorder)
    ruling = verdict.rule(spec, session, life.run_id) if place.original is None else None
    return RunSummary(
        run_id=life.run_id,
        run_name=life.run_name,
        status="FINISHED",
        store_uri=session.store.shown_uri,
        workspace=session.workspace,
        links=life.links,
        result=result,
        children=children,
        label=place.label,
        verdict=ruling.verdict if ruling else None,
        ruling=ruling.text if ruling else None,
    )


def plan_of(spec: Spec, session: Session, place: Place) -> Plan:
    """Settle a spec. Raises SpecError for the first thing wrong with it."""
    if place.parent is None and place.run_id is None and place.original is None:
        verdict.require_open(spec, session)
    if spec.is_study or spec.is_sweep:
        subjects = {name: session.project.subject_identity(name) for name in sorted(spec.subject_names())}
        outside = {f"{label}.{role}": item.digest for label, role, item in Composite(spec).outside_inputs(session, place)}
        return Plan(None, None, {}, _key(spec, subjects, outside, session))
    experiment = catalog.find(spec.type)
    variables = catalog.typed_variables(spec)
    execution_inputs.check_roles(spec, experiment, place.given)
    execution_inputs.check_domain(spec, experiment, session.project)
    subject = {spec.subject: session.project.subject_identity(spec.subject)} if spec.subject else {}
    resolved = execution_inputs.resolve(spec, session, place)
    return Plan(experiment, variables, resolved, _key(spec, subject, {role: item.digest for role, item in resolved.items()}, session))


def _key(spec: Spec, subjects: Mapping[str, Any], digests: Mapping[str, str], session: Session) -> str:
    asked = {"spec": spec.sha256(), "subjects": subjects, "inputs": digests, "code": code_version(), "threads": session.threads}
    files = session.project.named_files([spec.variables, spec.matrix, *([step.variables, step.matrix] for step in spec.steps)])
    return sha256_json({**asked, "files": files} if files else asked)


def work(
    spec: Spec, plan: Plan, session: Session, place: Place, recorder: Recorder, workdir: Path
) -> tuple[ExperimentResult, list[RunSummary]]:
    """Do what the spec asks: run its experiment, or its steps or cells through `execute`."""
    if plan.experiment is None:
        return Composite(spec).run(session, place, recorder.run_id, execute)
    from mlinterp.allocator import keep_freed_memory
    from mlinterp.determinism import settle

    keep_freed_memory()
    settle(spec.seed, session.threads)
    built = cache(lambda: load_subject(spec, session.project, plan.inputs))
    context = Context(
        spec=spec,
        variables=plan.variables,
        workdir=workdir,
        load_subject=built,
        inputs=plan.inputs,
        reporter=recorder.reporting(session.reporter),
        root=session.project.root,
    )
    result = plan.experiment.run(context)
    takes_weights = "subject" in plan.experiment.inputs and "subject" not in plan.inputs
    if takes_weights and spec.subject is not None and built.cache_info().currsize and session.project.starts_untrained(spec.subject):
        warning = f"'{spec.subject}' has random weights here: without inputs.subject it is the model before any training"
        result.diagnostics.warnings.append(warning)
    return result, []


def load_subject(spec: Spec, project: Project, inputs: Mapping[str, ResolvedInput]) -> Subject:
    """Build the spec's subject, with the weights that an input holds where there is one."""
    from mlinterp.subjects.fit import load_weights

    if spec.subject is None:
        raise SpecError(f"{spec.type} needs a subject", field="subject")
    subject = project.load_subject(spec.subject)
    return load_weights(subject, inputs["subject"].path) if "subject" in inputs else subject


def run_name(spec: Spec, place: Place) -> str:
    """Return a run's name: its place or type, what it looks at, and a short id."""
    looked_at = f"latent {spec.feature_id}" if spec.feature_id is not None else spec.subject
    again = "again" if place.original and place.parent is None else None
    return " · ".join(part for part in (again, place.label or spec.type, looked_at, (spec.id or spec.sha256())[:8]) if part)


def identity(spec: Spec, plan: Plan, session: Session, place: Place) -> dict[str, str]:
    """Return the tags that say what a run is, where it belongs and what it rests on."""
    kind = "study" if spec.is_study else "sweep" if spec.is_sweep else spec.type
    upstream = [item.run_id for item in plan.inputs.values() if item.run_id]
    tags = {
        "mlinterp.kind": kind,
        "mlinterp.type": spec.type,
        "mlinterp.spec_id": spec.id,
        "mlinterp.spec_sha256": spec.sha256(),
        "mlinterp.run_key": plan.key,
        "mlinterp.subject": spec.subject,
        "mlinterp.hypothesis": spec.hypothesis,
        "mlinterp.label": place.label,
        "mlinterp.produces": plan.experiment.produces if plan.experiment else None,
        "mlinterp.upstream": ",".join(upstream) or None,
        "mlinterp.code_version": code_version(),
        "mlinterp.metric_version": METRIC_VERSION,
        "mlinterp.threads": str(session.threads),
        "mlinterp.again": "true" if session.again else None,
        "mlinterp.project": session.project.name,
        "mlinterp.project_root": session.project.root.relative_to(session.workspace).as_posix(),
        "mlflow.parentRunId": place.parent,
    }
    if place.original is not None:
        tags |= {"mlinterp.reproduces": place.original.run_id, "mlinterp.reproduced_key": plan.key, **dict.fromkeys(_ANSWER)}
    return {name: value for name, value in tags.items() if value}


_ANSWER = ("mlinterp.run_key", "mlinterp.hypothesis", "mlinterp.produces")
"""Tags by which a run is found as an answer, as evidence or as the latest of its kind; one that only repeats another has none of them."""


def record_question(spec: Spec, plan: Plan, recorder: Recorder, workdir: Path, place: Place) -> None:
    """Log the spec as written (where it was) and, from which the run can be resumed, as resolved; its parameters, versions and inputs."""
    if place.document is not None:
        data, suffix = place.document
        recorder.artifact(write_bytes(workdir / f"spec{suffix}", data))
    recorder.artifact(write_text(workdir / "spec.resolved.json", spec.model_dump_json(indent=2, exclude_none=True)))
    asked = spec.model_dump(mode="json", exclude_none=True, exclude={"id", "created_at", "description", "rationale", "steps"})
    if plan.variables is not None:
        asked["variables"] = plan.variables.model_dump(mode="json")
    recorder.params({f"spec.{name}": value for name, value in flatten(asked).items()})
    recorder.params({f"version.{name}": value for name, value in versions().items()})
    for role, item in plan.inputs.items():
        recorder.input(role, item.reference, item.digest, item.run_id, item.model_id)


def complete(result: ExperimentResult, spec: Spec, plan: Plan, started: datetime) -> ExperimentResult:
    """Fill in where a result comes from, and leave out what the spec's outputs do not want."""
    finished = datetime.now(UTC)
    kept: dict[str, Any] = {}
    if not spec.outputs.figures:
        kept["figures"] = []
    if not spec.outputs.tables:
        kept |= {"tables": {}, "figures": []}
    if not spec.outputs.aggregates:
        kept["aggregates"] = Aggregates()
    if not spec.outputs.diagnostics:
        kept["diagnostics"] = Diagnostics()
    return result.model_copy(
        update={
            **kept,
            "spec_id": spec.id or "",
            "spec_sha256": spec.sha256(),
            "experiment_type": spec.type,
            "subject": spec.subject,
            "feature_id": result.feature_id if spec.feature_id is None else spec.feature_id,
            "variables": plan.variables.model_dump(mode="json") if plan.variables else {},
            "dataset_slice": spec.dataset_slice.model_dump(mode="json"),
            "hypothesis": spec.hypothesis,
            "seed": spec.seed,
            "inputs": {role: item.digest for role, item in plan.inputs.items()},
            "versions": versions(),
            "started_at": started,
            "completed_at": finished,
            "duration_seconds": (finished - started).total_seconds(),
        }
    )
