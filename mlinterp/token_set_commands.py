"""`mlinterp family-sweep`, `heatmap`, `weapon-sweep`, …: token-set experiments by the command line that mechinterp-runner had.

Each subcommand has the flags that its documentation names and those that its parser really took. It builds the Spec that a file would
hold and runs it like any other, so both are one question with one answer.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from mlinterp.errors import SpecError
from mlinterp.experiment_commands import AgainOption, QuietOption, SetOption, build_spec, declare_options, option_help
from mlinterp.experiments import catalog
from mlinterp.experiments.base import Experiment
from mlinterp.project import Project, choose_project, project_names
from mlinterp.result import Mode
from mlinterp.result_files import write_results
from mlinterp.spec import Spec
from mlinterp.terminal import show_lines, show_summary, show_table

if TYPE_CHECKING:
    from mlinterp.execution.summary import RunSummary

DEFAULT_SUBJECT = "ultra"
MOST_ROWS = 20
MOST_COLUMNS = 9
"""Of a table on the terminal: the run has the whole of it."""

_MEANS: Mapping[Mode, str] = {
    "observational": "contexts as they are; the numbers show what goes together, not what causes what",
    "interventional": "contexts were edited and the model run again; a change is an effect of the edit",
}

Run = Callable[[Spec, Project, bool, bool, "Callable[[RunSummary], None]"], None]
"""Runs (spec, project, again, quiet, what tells of it)."""
Format = Literal["markdown", "json"]


class _Kind(NamedTuple):
    """What a flag's value looks like on the command line, and how (value, flag) becomes a field's value."""

    shape: type
    read: Callable[[Any, str], Any]
    metavar: str | None = None


def _share(value: float, flag: str) -> float:  # noqa: ARG001 - the shape of every kind's reading
    """Return a percentile as a share: 90 and 0.9 are the same."""
    return value / 100 if value > 1 else value


def _names(text: str, flag: str) -> list[str]:
    found = [part.strip() for part in text.split(",")]
    if not all(found):
        raise SpecError(f"'{text[:80]}' has an empty place", field=flag, allowed="names with commas between, such as a,b")
    return found


def _rungs(text: str, flag: str) -> list[int]:
    parts = _names(text, flag)
    if wrong := next((part for part in parts if not part.isdecimal()), None):
        raise SpecError(f"'{wrong[:80]}' is no rung", field=flag, allowed="whole numbers with commas between, such as 3,6,12")
    return [int(part) for part in parts]


_TEXT = _Kind(str, lambda value, _: value)
_WHOLE = _Kind(int, lambda value, _: value)
_NUMBER = _Kind(float, lambda value, _: value)
_SHARE = _Kind(float, _share, "90|0.9")
_NAMES = _Kind(str, _names, "NAME,NAME…")
_RUNGS = _Kind(str, _rungs, "RUNG,RUNG…")
_ON = _Kind(bool, lambda _value, _: True)
_OFF = _Kind(bool, lambda _value, _: False)


@dataclass(frozen=True)
class Flag:
    """A flag of a subcommand.

    Attributes:
        names: the flag, and other spellings of it.
        field: the field of the type's variables that it sets.
        kind: how its value is read.
        default: its value where it is not given and the subcommand's default differs from the field's own.
    """

    names: tuple[str, ...]
    field: str
    kind: _Kind = _TEXT
    default: Any = None

    def value(self, given: Any) -> Any:
        """Return the field's value, None to leave it to the type. Raises SpecError for a value that cannot be read."""
        given = self.default if given in (None, False) else given
        return None if given is None else self.kind.read(given, self.names[0])


@dataclass(frozen=True)
class Command:
    """A subcommand: the experiment type that it runs, its flags beside the common ones, and an example of its use."""

    name: str
    type: str
    flags: tuple[Flag, ...]
    example: str


COMMANDS = (
    Command(
        "family-sweep",
        "family_1d_sweep",
        (Flag(("--family",), "family"), Flag(("--rungs",), "rungs", _RUNGS), Flag(("--no-absent",), "include_absent", _OFF)),
        "--feature-id 18712 --family special_charge_up --rungs 3,12,29,57 --mode interventional",
    ),
    Command(
        "heatmap",
        "family_2d_heatmap",
        (
            Flag(("--family-x",), "family_x"),
            Flag(("--family-y",), "family_y"),
            Flag(("--rungs-x",), "rungs_x", _RUNGS),
            Flag(("--rungs-y",), "rungs_y", _RUNGS),
        ),
        "--feature-id 18712 --family-x special_charge_up --family-y comeback",
    ),
    Command(
        "weapon-sweep",
        "weapon_sweep",
        (
            Flag(("--top-k",), "top_k_weapons", _WHOLE),
            Flag(("--min-examples",), "min_examples", _WHOLE),
            Flag(("--condition-family",), "condition_family"),
        ),
        "--feature-id 18712 --top-k 10",
    ),
    Command(
        "kit-sweep",
        "kit_sweep",
        (
            Flag(("--top-k",), "top_k", _WHOLE, default=15),
            Flag(("--min-examples",), "min_examples", _WHOLE),
            Flag(("--combinations", "--analyze-combinations"), "analyze_combinations", _ON),
        ),
        "--feature-id 18712 --analyze-combinations",
    ),
    Command(
        "binary",
        "binary_presence_effect",
        (
            Flag(("--tokens",), "binary_tokens", _NAMES),
            Flag(("--primary-family",), "primary_family"),
            Flag(("--min-samples",), "min_samples", _WHOLE, default=20),
            Flag(("--high-percentile",), "high_percentile", _SHARE),
        ),
        "--feature-id 18712 --tokens comeback,ninja_squid --primary-family special_charge_up",
    ),
    Command(
        "coverage",
        "core_coverage_analysis",
        (
            Flag(("--tokens",), "tokens_to_check", _NAMES),
            Flag(("--threshold",), "coverage_threshold", _NUMBER),
            Flag(("--no-weapons",), "include_weapons", _OFF),
        ),
        "--feature-id 18712 --tokens comeback,special_charge_up --threshold 0.3",
    ),
    Command(
        "token-influence",
        "token_influence_sweep",
        (
            Flag(("--min-samples",), "min_samples", _WHOLE),
            Flag(("--high-percentile",), "high_percentile", _SHARE, default=0.9),
            Flag(("--no-collapse",), "collapse_families", _OFF),
        ),
        "--feature-id 18712 --high-percentile 90 --no-collapse",
    ),
)


def _subjects() -> list[str]:
    """Return what may be completed: the token-set subjects of the project around the working folder."""
    try:
        return choose_project(None).token_set_subjects()
    except SpecError:
        return []


_COMMON: dict[str, Any] = {
    "feature_id": Annotated[int | None, typer.Option("--feature-id", "-f", help="The latent that is studied.")],
    "feature": Annotated[
        str | None, typer.Option("--feature", metavar="CONCEPT", help="Instead: the latent that best stands for a concept of the domain.")
    ],
    "subject": Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            "--subject",
            metavar="SUBJECT",
            help=f"A subject of the project \\[default: {DEFAULT_SUBJECT}, or the only one of token sets].",
            autocompletion=_subjects,
        ),
    ],
    "project": Annotated[
        str | None,
        typer.Option("--project", "-p", help="The project's folder, or its name below projects/.", autocompletion=project_names),
    ],
    "set": SetOption,
    "format": Annotated[
        Format | None, typer.Option("--format", help="Print the run's report as Markdown, or its result as JSON, and nothing else.")
    ],
    "output_dir": Annotated[
        Path | None, typer.Option("--output-dir", metavar="FOLDER", help="Write {spec_id}__result.json there, too.", show_default=False)
    ],
    "dry_run": Annotated[bool, typer.Option("--dry-run", help="Check everything and run nothing; with --format json print the spec.")],
    "again": AgainOption,
    "quiet": QuietOption,
}


def add_token_set_commands(app: typer.Typer, run: Run) -> None:
    """Add the subcommands to the app."""
    for command in COMMANDS:
        _add(app, command, catalog.find(command.type), run)


def _add(app: typer.Typer, command: Command, experiment: Experiment, run: Run) -> None:
    def work(**given: Any) -> None:
        project = choose_project(given["project"])
        spec = spec_of(command, given, project)
        if given["dry_run"]:
            _dry_run(spec, project, given["format"])
            return
        run(spec, project, given["again"], given["quiet"], lambda summary: _tell(summary, given["format"], given["output_dir"]))

    fields = experiment.Variables.model_fields
    own = {
        f"flag_{index}": Annotated[
            flag.kind.shape | None,
            typer.Option(*flag.names, metavar=flag.kind.metavar, help=_help(flag, fields), show_default=False, rich_help_panel="Variables"),
        ]
        for index, flag in enumerate(command.flags)
    }
    if "mode" in fields:
        mode = typer.Option("--mode", help=option_help(fields["mode"]), show_default=False, rich_help_panel="Variables")
        own["mode"] = Annotated[Literal[experiment.modes] | None, mode]
    declare_options(work, {**own, **_COMMON})
    text = "\n\n".join(
        [
            experiment.summary,
            f"Runs {experiment.type}, whose other variables are set with --set variables.NAME=…: `mlinterp types {experiment.type}`.",
            f"For example:\n\n  mlinterp {command.name} {command.example}",
        ]
    ).replace("[", "\\[")
    app.command(command.name, help=text, short_help=f"Runs {experiment.type}.", rich_help_panel="Token sets")(work)


def spec_of(command: Command, given: Mapping[str, Any], project: Project) -> Spec:
    """Return the Spec that a subcommand's command line means. Raises SpecError for the first thing wrong.

    Args:
        command: the subcommand.
        given: `flag_N` for its flags by their number, `mode`, `feature`, `feature_id`, `subject` and `set`; None or absent where not given.
            What else the command line has does not belong to the spec.
        project: where the subject comes from.
    """
    variables = {flag.field: flag.value(given.get(f"flag_{index}")) for index, flag in enumerate(command.flags)}
    variables |= {name: given.get(name) for name in ("mode", "feature")}
    envelope = {"feature_id": given.get("feature_id"), "subject": given.get("subject") or _only_subject(project), "set": given.get("set")}
    nothing = dict.fromkeys(("hypothesis", "seed", "input"))
    return build_spec(catalog.find(command.type), {**nothing, **envelope, **{f"variable_{name}": v for name, v in variables.items()}})


def _only_subject(project: Project) -> str:
    names = project.token_set_subjects()
    if DEFAULT_SUBJECT in names:
        return DEFAULT_SUBJECT
    if len(names) == 1:
        return names[0]
    allowed = f"name one: {', '.join(names)}" if names else "expected a subject of kind token_set in project.yaml"
    raise SpecError(f"project '{project.name}' has {len(names)} subjects of token sets", field="--model", allowed=allowed)


def _help(flag: Flag, fields: Mapping[str, Any]) -> str:
    """Return a flag's help: what its field says; a switch says what it sets."""
    if flag.kind.shape is bool:
        said = "no" if flag.kind is _OFF else "yes"
        return f"{flag.field}: {said} ({(fields[flag.field].description or '').rstrip('.')})".replace("[", "\\[")
    return option_help(fields[flag.field], None if flag.default is None else str(flag.default))


def _dry_run(spec: Spec, project: Project, form: Format | None) -> None:
    from mlinterp.validation import check_spec

    checked = check_spec(spec, project)
    if form == "json":
        sys.stdout.write(spec.model_dump_json(indent=2, exclude_defaults=True) + "\n")
    else:
        show_lines([checked.line()])


def _tell(summary: RunSummary, form: Format | None, folder: Path | None) -> None:
    """Print what came of a run, and write its result into a folder where one is named."""
    if form == "json" and summary.result is not None:
        sys.stdout.write(summary.result.model_dump_json(by_alias=True, indent=2) + "\n")
    elif form == "markdown":
        from mlinterp.reporting import generate

        sys.stdout.write(generate(summary.run_id, summary.workspace).markdown)
    else:
        show_summary(summary)
        _show_tables(summary)
    if folder is not None:
        told = show_lines if form is None else _aside
        told(f"wrote {path}" for path in write_results(summary, folder))


def _aside(lines: Any) -> None:
    sys.stderr.writelines(f"{line}\n" for line in lines)


def _show_tables(summary: RunSummary) -> None:
    """Print a result's tables, as much of each as fits, and what kind of numbers they hold."""
    if summary.result is None:
        return
    show_lines(["", f"{summary.result.mode}: {_MEANS[summary.result.mode]}"])
    for table in summary.result.tables.values():
        told = [name for name in table.columns if name != "mode"]  # which stands above
        columns = told[:MOST_COLUMNS]
        more = [f"{len(table.rows)} rows"] if len(table.rows) > MOST_ROWS else []
        more += [f"{len(told)} columns"] if len(columns) < len(told) else []
        title = f"{table.name} (of {' and '.join(more)})" if more else table.name
        show_lines([""])
        show_table(columns, [[row.get(name) for name in columns] for row in table.rows[:MOST_ROWS]], title=title)
