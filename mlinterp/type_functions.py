"""Every experiment type as a Python function of its name: `mlinterp.activation_patching("gpt", pairs=[…])` is a run like any other.

The function's keywords are the fields of the type's `variables` and of the spec's envelope; what it builds is a spec, so that the same
question is the same run, whoever asks it and how.
"""

from __future__ import annotations

import functools
import inspect
import operator
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from mlinterp.analysis import AnalysisResult
from mlinterp.errors import SpecError, unknown
from mlinterp.experiments import catalog
from mlinterp.experiments.base import Experiment
from mlinterp.project import choose_project, parse_spec
from mlinterp.refusals import aliases, describe
from mlinterp.spec import Spec

if TYPE_CHECKING:
    from mlinterp.execution.summary import RunSummary
    from mlinterp.progress import Reporter

TypeFunction = Callable[..., AnalysisResult]

_FIELDS = ("subject", "feature_id", "inputs", "dataset_slice", "hypothesis", "expect", "seed")
"""Keywords that are fields of the spec itself."""
_HOW = ("project", "again", "reporter")
"""Keywords that say how it is run."""
_ENVELOPE: Mapping[str, tuple[Any, Any, str]] = {
    "subject": (str | None, None, "a subject of the project"),
    "feature_id": (int | None, None, "the latent that is studied"),
    "inputs": (Mapping[str, str] | None, None, "inputs by role: `latest`, `run:ID` or `models:/NAME@alias`"),
    "dataset_slice": (Mapping[str, Any] | None, None, "which part of the data; of token sets"),
    "hypothesis": (str | None, None, "the hypothesis that the run is evidence for"),
    "expect": (Sequence[Mapping[str, Any]], (), "predictions: metric, op, value"),
    "seed": (int, 0, "seed of every random draw"),
    "project": (
        Path | str | None,
        None,
        "the project's folder, or its name below `projects/`; the one around the working folder if left out",
    ),
    "again": (bool, False, "compute even what an earlier run already answered"),
    "reporter": ("Reporter | None", None, "who listens to progress; nobody by default"),
}


def type_function(name: str) -> TypeFunction:
    """Return the function of an experiment type, by its name or alias. Raises SpecError with the nearest name."""
    experiment = catalog.find(name)
    fields = experiment.Variables.model_fields
    accepted = [*fields, *(alias for name, info in fields.items() for alias in aliases(name, info))]

    def function(subject: str | None = None, **given: Any) -> AnalysisResult:
        wrong = next((each for each in given if each not in accepted and each not in _ENVELOPE), None)
        if wrong is not None:
            raise unknown(f"{experiment.type}()", wrong, [*accepted, *_ENVELOPE], what="keyword")
        variables = {each: value for each, value in given.items() if each in accepted}
        envelope = {"subject": subject, **{each: given[each] for each in _FIELDS if each in given}}
        how = {each: given[each] for each in _HOW if each in given}
        return AnalysisResult.of(run_checked(spec_of(experiment, envelope, variables), **how))

    function.__name__ = function.__qualname__ = experiment.type
    function.__module__ = "mlinterp"
    function.__doc__ = _documentation(experiment)
    function.__signature__ = _signature(experiment)  # type: ignore[attr-defined]
    return function


def spec_of(experiment: Experiment, fields: Mapping[str, Any], variables: Mapping[str, Any]) -> Spec:
    """Return the spec of a call; None is what was left out. Raises SpecError for the first thing wrong with it."""
    asked = {"type": experiment.type, **{name: plain(value) for name, value in fields.items() if value is not None}}
    spec = parse_spec({**asked, "variables": {name: plain(value) for name, value in variables.items() if value is not None}})
    catalog.typed_variables(spec)
    return spec


def run_checked(spec: Spec, *, project: Path | str | None = None, again: bool = False, reporter: Reporter | None = None) -> RunSummary:
    """Check a spec whole, execute it as an MLflow run and return what came of it.

    Raises SpecError where something declared is wrong (nothing was run), and the MlinterpError of a run that has FAILED.
    """
    from mlinterp import run
    from mlinterp.validation import check_spec

    found = choose_project(None if project is None else str(project))
    check_spec(spec, found)
    return run.run(spec, project=found, again=again, reporter=reporter)


def plain(value: Any) -> Any:
    """Return a value as a spec file would hold it: models, tuples, paths and numpy's numbers as blocks, lists, text and numbers."""

    def other(unknown_value: Any) -> Any:
        if hasattr(unknown_value, "tolist"):
            return unknown_value.tolist()
        raise SpecError(f"'{type(unknown_value).__name__}' is no type that a spec holds", allowed="text, numbers, lists and blocks of them")

    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_none=True)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return to_jsonable_python(value, fallback=other)


def _signature(experiment: Experiment) -> inspect.Signature:
    kind, empty = inspect.Parameter, inspect.Parameter.empty
    subject, default, _ = _ENVELOPE["subject"]
    parameters = [kind("subject", kind.POSITIONAL_OR_KEYWORD, annotation=subject, default=default)]
    for name, info in experiment.Variables.model_fields.items():
        own = empty if info.is_required() else info.get_default(call_default_factory=True, validated_data={})
        parameters.append(kind(name, kind.KEYWORD_ONLY, annotation=_bare(info.annotation), default=own))
    rest = {name: entry for name, entry in _ENVELOPE.items() if name != "subject"}
    parameters += [kind(name, kind.KEYWORD_ONLY, annotation=entry[0], default=entry[1]) for name, entry in rest.items()]
    return inspect.Signature(parameters, return_annotation=AnalysisResult)


def _bare(annotation: Any) -> Any:
    """Return a declared type without its bounds, as a signature shows it."""
    origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _bare(inside[0])
    if origin in (typing.Union, types.UnionType):
        return functools.reduce(operator.or_, map(_bare, inside))
    return list[_bare(inside[0])] if origin is list else annotation  # type: ignore[misc]


def _documentation(experiment: Experiment) -> str:
    """Return the text of `help()`: what the type does, and each keyword with what it may be."""
    roles = ", ".join(f"{role}{'' if required else ' (optional)'}" for role, required in experiment.inputs.items())
    lines = [experiment.summary, ""]
    lines += [f"Runs as an MLflow run of type {experiment.type} ({' or '.join(experiment.modes)}); the same question is the same run."]
    lines += [f"It takes inputs: {roles}."] if roles else []
    lines += ["", "Args:", f"    subject: {_ENVELOPE['subject'][2]}."]
    for name, info in experiment.Variables.model_fields.items():
        words = (info.description or "").rstrip(".").replace("\n", " ")
        allowed = describe(info.annotation, info.metadata)
        lines.append(f"    {name}: {words} ({allowed}{', required' if info.is_required() else ''}).")
    lines += [f"    {name}: {entry[2]}." for name, entry in _ENVELOPE.items() if name != "subject"]
    lines += ["", "Raises SpecError where something is wrong (nothing was run), and another MlinterpError where the run has FAILED."]
    return "\n".join(lines)
