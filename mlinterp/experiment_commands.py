"""One subcommand for each experiment type, made from its Variables model: `mlinterp trace --subject trm4 --sites z_L …`.

A field that is a scalar, a choice or a list of them becomes an option with the field's own description, bounds and default; nested
blocks are reached with `--set variables.block.field=value`. What comes out is a Spec like any other.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import typer
from pydantic.fields import FieldInfo

from mlinterp.errors import SpecError
from mlinterp.experiments.base import Experiment
from mlinterp.io.specfile import parse_value
from mlinterp.project import Project, choose_project, override, parse_spec, project_names
from mlinterp.refusals import bounds
from mlinterp.spec import Spec

Run = Callable[[Spec, Project, bool, bool], None]
"""Runs (spec, project, again, quiet)."""

_SCALARS: tuple[type, ...] = (int, float, bool, str)

SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="FIELD=VALUE", help="Set any field of the spec, such as variables.examples.n=64; the value is read as YAML."
    ),
]
AgainOption = Annotated[bool, typer.Option("--again", help="Compute even what an earlier run already answered.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]

_ENVELOPE: dict[str, Any] = {
    "subject": Annotated[str | None, typer.Option("--subject", help="A subject of the project.", rich_help_panel="Spec")],
    "project": Annotated[
        str | None,
        typer.Option(
            "--project",
            "-p",
            help="The project's folder, or its name below projects/.",
            rich_help_panel="Spec",
            autocompletion=project_names,
        ),
    ],
    "input": Annotated[
        list[str] | None,
        typer.Option(
            "--input", metavar="ROLE=REFERENCE", help="An input, such as sae=latest or sae=models:/NAME@candidate.", rich_help_panel="Spec"
        ),
    ],
    "feature_id": Annotated[int | None, typer.Option("--feature-id", help="The latent that is studied.", rich_help_panel="Spec")],
    "hypothesis": Annotated[
        str | None, typer.Option("--hypothesis", help="The hypothesis that the run is evidence for.", rich_help_panel="Spec")
    ],
    "seed": Annotated[int | None, typer.Option("--seed", help="Seed of every random draw \\[default: 0].", rich_help_panel="Spec")],
    "set": SetOption,
    "again": AgainOption,
    "quiet": QuietOption,
}


def add_experiment_command(app: typer.Typer, experiment: Experiment, run: Run) -> None:
    """Add a type's subcommand to the app."""

    def command(**given: Any) -> None:
        spec = build_spec(experiment, given)
        run(spec, choose_project(given["project"]), given["again"], given["quiet"])

    options = {name: option for name, info in experiment.Variables.model_fields.items() if (option := _option(name, info)) is not None}
    declare_options(command, {**_ENVELOPE, **{f"variable_{name}": option for name, option in options.items()}})
    blocks = [name for name in experiment.Variables.model_fields if name not in options]
    notes = [experiment.summary, f"Also called: {', '.join(experiment.aliases)}." if experiment.aliases else ""]
    notes.append(f"Set with --set variables.NAME=…: {', '.join(blocks)}." if blocks else "")
    notes.append(f"For example:\n\n  {_example(experiment, options)}")
    text = "\n\n".join(filter(None, notes)).replace("[", "\\[")
    app.command(experiment.type, help=text, short_help=experiment.summary.replace("[", "\\["), rich_help_panel="Experiment types")(command)


def declare_options(command: Callable[..., None], options: Mapping[str, Any]) -> None:
    """Give a function of keywords these typer options: switches are off, anything else is None, where they are not given."""
    command.__annotations__ = dict(options)
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=option, default=False if _is_switch(option) else None)
            for name, option in options.items()
        ]
    )


def _is_switch(option: Any) -> bool:
    return typing.get_args(option)[0] is bool


def build_spec(experiment: Experiment, given: Mapping[str, Any]) -> Spec:
    """Return the Spec that a command line means. Raises SpecError for the first thing wrong."""
    data: dict[str, Any] = {"type": experiment.type}
    data |= {name: given[name] for name in ("subject", "feature_id", "hypothesis", "seed") if given[name] is not None}
    data["inputs"] = dict(assignment(text, "--input") for text in given["input"] or [])
    data["variables"] = {
        name: _typed(info, given[f"variable_{name}"])
        for name, info in experiment.Variables.model_fields.items()
        if given.get(f"variable_{name}") not in (None, [])
    }
    return parse_spec(override(data, overrides(given["set"])))


def overrides(texts: list[str] | None) -> dict[str, Any]:
    """Return `--set FIELD=VALUE` texts as values by dotted field."""
    values = {}
    for text in texts or []:
        field, value = assignment(text, "--set")
        try:
            values[field] = parse_value(value)
        except SpecError as error:
            raise SpecError(error.problem, field=f"--set {field}", allowed=error.allowed) from None
    return values


def assignment(text: str, option: str) -> tuple[str, str]:
    """Return `name=value` as a pair. Raises SpecError for anything else."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise SpecError(f"'{text[:80]}' is no assignment", field=option, allowed="expected NAME=VALUE")
    return name, value


def _option(name: str, info: FieldInfo) -> Any:
    """Return a field's annotation for typer; None for a nested block."""
    shape = _shape(info.annotation)
    if shape is None:
        return None
    flag = f"--{name.replace('_', '-')}"
    declared = (f"{flag}/--no-{flag[2:]}",) if shape is bool else (flag,)
    declared = (f"--variable-{flag[2:]}",) if name in _ENVELOPE else declared
    option = typer.Option(*declared, help=option_help(info), show_default=False, rich_help_panel="Variables")
    return Annotated[shape | None, option]


def option_help(info: FieldInfo, default: str | None = None) -> str:
    """Return the help of the option for a field: its description, bounds and default; `default` where the option's differs."""
    allowed = bounds(info.annotation, info.metadata)
    shown = "required" if info.is_required() else f"default: {default or _shown_default(info)}"
    words = [(info.description or "").rstrip("."), allowed and f" ({allowed})", f" [{shown}]"]
    return "".join(filter(None, words)).replace("[", "\\[")


def _shape(annotation: Any) -> Any:
    """Return the option's type: a scalar, a choice of texts, or a list; text, read as YAML, for a mixture with a scalar; else None."""
    members = _members(annotation)
    if len(members) == 1 and typing.get_origin(members[0]) is list:
        inner = _shape((typing.get_args(members[0]) or (Any,))[0])
        return list[inner] if inner in _SCALARS else None  # type: ignore[valid-type]
    plain = [member for member in members if member in _SCALARS or typing.get_origin(member) is Literal]
    if not plain:
        return None
    if len(plain) < len(members):
        return str
    if len(members) == 1 and members[0] in _SCALARS:
        return members[0]
    choices = [value for member in members if typing.get_origin(member) is Literal for value in typing.get_args(member)]
    texts_only = all(typing.get_origin(member) is Literal for member in members) and all(isinstance(value, str) for value in choices)
    return Literal[tuple(choices)] if texts_only else str


def _members(annotation: Any) -> list[Any]:
    if typing.get_origin(annotation) is Annotated:
        return _members(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in {typing.Union, types.UnionType}:
        return [found for member in typing.get_args(annotation) if member is not type(None) for found in _members(member)]
    return [annotation]


def _typed(info: FieldInfo, value: Any) -> Any:
    """Return an option's value as its field expects it: a mixture of scalars comes as text and is read as YAML."""
    mixed = _shape(info.annotation) is str and _members(info.annotation) != [str]
    return parse_value(value) if mixed else value


def _shown_default(info: FieldInfo) -> str:
    value = info.get_default(call_default_factory=True, validated_data={})
    return {None: "none", True: "yes", False: "no"}.get(value, str(value)) if value is None or isinstance(value, bool) else str(value)


def _example(experiment: Experiment, options: Mapping[str, Any]) -> str:
    words = ["mlinterp", experiment.type]
    words += [f"--subject {experiment.example['subject']}"] if "subject" in experiment.example else []
    inputs = {role: "latest" for role, required in experiment.inputs.items() if required} | experiment.example.get("inputs", {})
    words += [f"--input {role}={reference}" for role, reference in inputs.items()]
    for name, value in experiment.example.get("variables", {}).items():
        flag = f"--{name.replace('_', '-')}"
        if name in options and isinstance(value, str | int | float) and not isinstance(value, bool):
            words.append(f"{flag} {value}")
        elif name in options and isinstance(value, list):
            words += [f"{flag} {name}.jsonl"] if isinstance(value[0], dict) else [f"{flag} {item}" for item in value]
    return " ".join(words)
