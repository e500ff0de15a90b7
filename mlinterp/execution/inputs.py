"""From what a spec says (`@trace`, `latest`, `run:…`, `models:/NAME@candidate`) to files at hand, verified."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mlinterp.errors import SpecError, VerificationError, unknown
from mlinterp.execution.session import Place, Session
from mlinterp.experiments import catalog
from mlinterp.experiments.base import Experiment, ResolvedInput
from mlinterp.io.digests import sha256_json
from mlinterp.project import Project
from mlinterp.refusals import from_validation
from mlinterp.spec import Spec, Step

FILES: Mapping[str, tuple[str, ...]] = {
    "subject": ("subject/",),
    "trace": ("trace.jsonl", "states", "truth."),
    "sae": ("sae.", "cfg.json", "sae_metrics.json"),
    "circuit": ("circuit.json",),
    "report": ("report.json",),
}
"""Which artifacts of a run make up each kind of input."""


def kind_of(role: str) -> str:
    """Return what an input of a role is: that of `trace_b`, a second trace, is a trace.

    >>> kind_of("trace_b"), kind_of("sae_c"), kind_of("sae")
    ('trace', 'sae', 'sae')
    """
    return re.sub(r"_[b-z]$", "", role)


def with_defaults(spec: Spec, project: Project) -> Spec:
    """Return a spec with the inputs that its subject gives where it names none itself: of a study, in every step.

    That is for types about token sets; to others an SAE is something that they may do without. An unknown type or subject has none: it is
    refused when it is looked at. In a sweep over subjects each cell takes what its own says, once it is a spec by itself.
    """
    if spec.is_study:
        given = {step.name: _defaults(step.type, _subject_of(step, spec.subject), project) for step in spec.steps}
        return spec.model_copy(
            update={"steps": [step.model_copy(update={"inputs": given[step.name] | step.inputs}) for step in spec.steps]}
        )
    return spec.model_copy(update={"inputs": _defaults(spec.type, _subject_of(spec), project) | spec.inputs})


def _subject_of(block: Spec | Step, around: str | None = None) -> str | None:
    """Return the subject of every run that a block declares; None where they differ."""
    return None if "subject" in block.matrix else block.subject or around


def _defaults(type_name: str, subject: str | None, project: Project) -> dict[str, str]:
    """Return the inputs that a subject gives for the roles which a type takes."""
    if subject not in project.subjects or type_name not in catalog.names():
        return {}
    experiment = catalog.find(type_name)
    if experiment.check_domain is None:
        return {}
    given = {role: reference for role, reference in project.default_inputs(subject).items() if role in experiment.inputs}
    for role, reference in given.items():
        if reference.startswith("@"):
            problem = f"'{reference}' names a step, and a subject is part of no study"
            raise SpecError(problem, field=f"subjects.{subject}.inputs.{role}", allowed="`latest`, `run:ID` or `models:/NAME@alias`")
    try:
        return Spec.model_validate({"type": experiment.type, "inputs": given}).inputs
    except ValidationError as error:
        raise from_validation(error, prefix=f"subjects.{subject}", model=Spec) from None


def check_domain(spec: Spec, experiment: Experiment, project: Project) -> None:
    """Refuse what the data package of a token-set subject does not have. Raises SpecError with the nearest name."""
    if experiment.check_domain is not None and spec.subject is not None:
        experiment.check_domain(spec, catalog.typed_variables(spec), project.data_package(spec.subject))


def check_roles(spec: Spec, experiment: Experiment, given: Collection[str] = ()) -> None:
    """Refuse inputs that the experiment type does not take, and the lack of those it needs; `given` ones are at hand already."""
    for role in spec.inputs:
        if role not in experiment.inputs:
            raise unknown(f"inputs.{role}", role, experiment.inputs, what=f"input of {experiment.type}")
    for role, required in experiment.inputs.items():
        if required and role not in spec.inputs and role not in given:
            raise SpecError(
                f"{experiment.type} needs a {role}",
                field=f"inputs.{role}",
                allowed="`@step` of a study, `latest`, `run:ID` or `models:/NAME@alias`",
            )
    if experiment.needs_subject and spec.subject is None:
        raise SpecError(f"{experiment.type} needs a subject", field="subject", allowed="a name from project.yaml")
    if experiment.check is not None:
        experiment.check(spec, catalog.typed_variables(spec), {*spec.inputs, *given})


def resolve(spec: Spec, session: Session, place: Place) -> dict[str, ResolvedInput]:
    """Return every input of a spec as verified files."""
    resolved = dict(place.given)
    for role, reference in spec.inputs.items():
        if role not in resolved:
            resolved[role] = _resolve_one(role, reference, spec, session, place)
    return resolved


def _resolve_one(role: str, reference: str, spec: Spec, session: Session, place: Place) -> ResolvedInput:
    from mlinterp.tracking import queries, registry

    if reference.startswith("models:/"):
        model = registry.resolve_model(session.store, reference)
        if model.run_id is not None:
            _refuse_withdrawn(role, model.run_id, session)
        return _in_use(role, ResolvedInput(reference, model.path, model.digest, model.run_id, model.model_id), spec, session)
    if reference.startswith("@"):
        run_id = place.outputs[reference[1:]].run_id
    elif reference == "latest":
        found = queries.latest(session.store, session.experiment_id, kind_of(role), spec.subject)
        if found is None:
            raise SpecError(
                f"no finished run that still stands has produced a {role} for '{spec.subject}'",
                field=f"inputs.{role}",
                allowed="run one first, or name a run; `mlinterp stale` lists what was withdrawn",
            )
        run_id = found
    else:
        run_id = queries.run_by_prefix(session.store, reference.removeprefix("run:")).info.run_id
        _refuse_withdrawn(role, run_id, session)
    return _in_use(role, from_run(role, reference, run_id, session), spec, session)


def _in_use(role: str, item: ResolvedInput, spec: Spec, session: Session) -> ResolvedInput:
    """Return an input, refusing an SAE that was retired, and one whose alias another version has now unless it is only described."""
    from mlinterp.tracking import versions

    if kind_of(role) == "sae" and item.model_id is not None:
        version = next((one for one in versions.withdrawn(session.store) if one.model_id == item.model_id), None)
        if version is not None and (version.retired or spec.type not in versions.ABOUT_AN_SAE):
            allowed = f"use models:/{version.name}/{version.superseded_by}" if version.superseded_by and not version.retired else None
            allowed = allowed or f"`mlinterp sae list {version.name}` shows the others"
            raise SpecError(f"{version} {version.withdrawn}", field=f"inputs.{role}", allowed=allowed)
    return item


def _refuse_withdrawn(role: str, run_id: str, session: Session) -> None:
    """Refuse what was retracted, or rests on something gone: whatever took it would be stale from the first."""
    from mlinterp.tracking import queries

    run = queries.get(session.store, run_id)
    tags = run.data.tags if run is not None else {}
    if run is not None and run.info.lifecycle_stage == "deleted":
        raise SpecError(f"run {run_id[:12]} was deleted", field=f"inputs.{role}", allowed="restore it in the UI, or name another")
    why = f"was retracted: {tags[queries.RETRACTED]}" if queries.RETRACTED in tags else tags.get(queries.STALE)
    if why:
        better = tags.get(queries.REPLACED_BY)
        allowed = f"use run:{better}" if better else f"`mlinterp restore {run_id[:12]}` takes a retraction back"
        raise SpecError(f"run {run_id[:12]} {why}", field=f"inputs.{role}", allowed=allowed)


def files_of(role: str, manifest: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the entries of a run's manifest that make up a role."""
    wanted = FILES.get(kind_of(role), (role,))
    return {name: entry for name, entry in manifest["files"].items() if name.startswith(wanted)}


def from_run(role: str, reference: str, run_id: str, session: Session) -> ResolvedInput:
    """Return what a finished run holds for a role. Raises VerificationError, naming the file, where an artifact is damaged."""
    from mlinterp.tracking import queries

    manifest = queries.manifest(session.store, run_id)
    files = files_of(role, manifest)
    if not files:
        raise VerificationError(f"run {run_id[:12]} holds no {role} (its artifacts: {', '.join(sorted(manifest['files'])[:12])})")
    path = queries.fetch(session.store, run_id, sorted(files), session.store.cache / run_id)
    digest = sha256_json({name: entry["content_digest"] for name, entry in files.items()})
    return ResolvedInput(reference, Path(path), digest, run_id, queries.model_of(session.store, run_id))
