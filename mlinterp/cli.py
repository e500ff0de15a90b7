"""The command line: thin verbs over the package, and the only place that prints errors.

Whatever goes wrong ends as one line `mlinterp: …` on stderr and the exit code that `mlinterp.errors` lists; an unexpected exception
leaves its traceback in a file that the line names.
"""

from __future__ import annotations

import io
import json
import os
import sys
import traceback
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from mlinterp import __version__
from mlinterp.errors import Interrupted, MlinterpError, SpecError
from mlinterp.experiment_commands import AgainOption, QuietOption, SetOption, add_experiment_command, overrides
from mlinterp.experiments import catalog
from mlinterp.progress import Reporter, Silent
from mlinterp.project import LoadedSpec, Project, find_project, find_workspace, load_spec
from mlinterp.spec import Spec
from mlinterp.terminal import TerminalReporter, one_line, show_lines, show_summary, show_table

UsageError: Any = typer.BadParameter.__base__
"""What typer raises for a command line that it cannot read."""

BROKEN_PIPE = 141

app = typer.Typer(
    name="mlinterp",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Ask questions of models: every question is a spec, every spec an MLflow run, every run evidence.",
    epilog="Start with: mlinterp new study -o study.yaml; mlinterp validate study.yaml; mlinterp run study.yaml; mlinterp ui",
)

SpecsArgument = Annotated[list[Path] | None, typer.Argument(metavar="SPEC...", help="Spec files: YAML, JSON or TOML.", show_default=False)]
SpecOption = Annotated[list[Path] | None, typer.Option("--spec", metavar="SPEC", help="A spec file, as MLproject entry points pass it.")]


class CollectedError(MlinterpError):
    """Errors of several files; each is printed on its own line."""

    def __init__(self, errors: list[MlinterpError]) -> None:
        self.errors = errors
        self.exit_code = errors[0].exit_code
        super().__init__(f"{len(errors)} errors")


@app.command("run", short_help="Run specs, each as an MLflow run.")
def run_command(
    specs: SpecsArgument = None, spec: SpecOption = None, values: SetOption = None, again: AgainOption = False, quiet: QuietOption = False
) -> None:
    """Run specs, each as an MLflow run. All are checked before the first one starts.

    For example:

      mlinterp run projects/trm_sudoku/study.yaml

      mlinterp run fit.yaml --set variables.k=32 --set seed=1
    """
    from mlinterp import run

    checked = _checked(_files(specs, spec), values)
    for loaded, project in checked:
        document = None if loaded.overrides else (loaded.document.text, loaded.document.path.suffix)
        show_summary(run.run(loaded.spec, project=project, document=document, again=again, reporter=_reporter(quiet)))


@app.command("validate", short_help="Check specs without running them.")
def validate_command(specs: SpecsArgument = None, spec: SpecOption = None, values: SetOption = None) -> None:
    """Check specs without running them: every field, subject, input, step and cell of a sweep.

    For example:

      mlinterp validate projects/trm_sudoku/specs/*.yaml
    """
    _checked(_files(specs, spec), values, show=True)


@app.command("types", short_help="List the experiment types.")
def types_command(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the experiment types there are, with their aliases and modes.

    For example:

      mlinterp types --json
    """
    found = catalog.experiments().values()
    if as_json:
        fields = ("type", "aliases", "modes", "inputs", "produces", "needs_subject", "summary")
        show_lines([json.dumps([{name: getattr(experiment, name) for name in fields} for experiment in found])])
        return
    rows = [(experiment.type, ", ".join(experiment.aliases), ", ".join(experiment.modes), experiment.summary) for experiment in found]
    show_table(["type", "aliases", "modes", "summary"], rows)


@app.command("schema", short_help="Print the JSON Schema of a spec.")
def schema_command(type_name: Annotated[str | None, typer.Argument(metavar="[TYPE]", autocompletion=lambda: _type_names())] = None) -> None:
    """Print the JSON Schema of a spec, with the variables of TYPE in place where it is given; editors complete specs from it.

    For example:

      mlinterp schema trace > trace.schema.json
    """
    from mlinterp.scaffold import schema

    sys.stdout.write(json.dumps(schema(type_name), indent=2) + "\n")


@app.command("new", short_help="Write a commented spec to start from.")
def new_command(
    type_name: Annotated[
        str, typer.Argument(metavar="TYPE", help="An experiment type, or study.", autocompletion=lambda: [*_type_names(), "study"])
    ],
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write there instead of printing.")] = None,
) -> None:
    """Write a commented spec to start from.

    For example:

      mlinterp new trace -o projects/trm_sudoku/specs/trace.yaml

      mlinterp new study
    """
    from mlinterp.io.atomic import write_text
    from mlinterp.scaffold import new_spec

    try:
        project: Project | None = find_project(output or ".")
    except SpecError:
        project = None
    text = new_spec(type_name, project)
    if output is None:
        sys.stdout.write(text)
        return
    if output.exists():
        raise SpecError(f"'{output}' exists already", field="--output", allowed="name a new file")
    write_text(output, text)


@app.command("resume", short_help="Go on with an interrupted run.")
def resume_command(
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or the beginning of it.")], quiet: QuietOption = False
) -> None:
    """Go on with an interrupted run, to the same result that it would have had undisturbed.

    For example:

      mlinterp resume 3f2a91
    """
    from mlinterp import run

    show_summary(run.resume(run_id, workspace=find_workspace("."), reporter=_reporter(quiet)))


@app.command("ui", short_help="Open the MLflow UI on this workspace.")
def ui_command(
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port on 127.0.0.1.")] = 5000,
    store: Annotated[str | None, typer.Option("--store", metavar="URI", help="Another tracking store than the workspace's own.")] = None,
) -> None:
    """Open the MLflow UI on this workspace, on this machine only.

    For example:

      mlinterp ui --port 5001
    """
    from mlinterp.tracking.server import serve

    serve(find_workspace("."), store, port)


@app.command("runs", short_help="List recent runs.")
def runs_command(limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="How many.")] = 20) -> None:
    """List recent runs of this workspace with their status, newest first.

    For example:

      mlinterp runs -n 5
    """
    from mlinterp.tracking.queries import recent_runs

    found = recent_runs(find_workspace("."), limit)
    columns = list(dict.fromkeys(name for row in found for name in row))
    show_table(columns or ["no runs yet"], [[row.get(name) for name in columns] for row in found])


@app.callback(invoke_without_command=True)
def top(context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    """Print the version, or the help where nothing is asked."""
    if version:
        show_lines([f"mlinterp {__version__}"])
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _run_built(spec: Spec, project: Project, again: bool, quiet: bool) -> None:
    """Check and run a spec that the command line declared."""
    from mlinterp import run
    from mlinterp.validation import check_spec

    check_spec(spec, project)
    show_summary(run.run(spec, project=project, again=again, reporter=_reporter(quiet)))


def _checked(paths: list[Path], values: list[str] | None, show: bool = False) -> list[tuple[LoadedSpec, Project]]:
    """Return every spec with its project, all checked. Raises CollectedError with the first error of each file."""
    from mlinterp.validation import check

    found: list[tuple[LoadedSpec, Project]] = []
    errors: list[MlinterpError] = []
    for path in paths:
        try:
            loaded, project = load_spec(path, overrides(values)), find_project(path)
            checked = check(loaded, project)
        except MlinterpError as error:
            errors.append(error)
            continue
        found.append((loaded, project))
        if show:
            show_lines([f"{path}: {checked.line()}"])
    if errors:
        raise CollectedError(errors)
    return found


def _files(specs: list[Path] | None, more: list[Path] | None) -> list[Path]:
    paths = [*(specs or []), *(more or [])]
    if not paths:
        raise SpecError("no spec is named", allowed="expected one or more spec files, such as projects/NAME/study.yaml")
    return paths


def _reporter(quiet: bool) -> Reporter:
    return Silent() if quiet else TerminalReporter()


def _type_names() -> list[str]:
    return [*catalog.experiments()]


for _experiment in catalog.experiments().values():
    add_experiment_command(app, _experiment, _run_built)


def main(argv: list[str] | None = None) -> None:
    """Run a command line; returns on success and raises SystemExit with the exit code otherwise."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if "_MLINTERP_COMPLETE" in os.environ:
        app(prog_name="mlinterp")
    code = _guarded(sys.argv[1:] if argv is None else argv)
    if code:
        raise SystemExit(code)


def _guarded(arguments: list[str]) -> int:
    """Run a command line and return its exit code, with every error printed."""
    try:
        command = typer.main.get_command(app)
        with command.make_context("mlinterp", list(arguments)) as context:
            command.invoke(context)
        sys.stdout.flush()
    except typer.Exit as stop:
        return stop.exit_code
    except UsageError as error:
        return _say([error.format_message()], 2)
    except (KeyboardInterrupt, typer.Abort):
        return _say(["stopped"], 130)
    except Interrupted as stop:
        return _say([str(stop)], stop.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except CollectedError as several:
        return _say(map(str, several.errors), several.exit_code)
    except MlinterpError as error:
        return _say([str(error)], error.exit_code)
    except Exception as error:  # noqa: BLE001 - the outermost edge: whatever is left is a bug of ours
        return _say([f"{type(error).__name__}: {one_line(str(error))[:120]}; {_keep_traceback()}"], 1)
    return 0


def _say(messages: Iterable[str], code: int) -> int:
    for message in messages:
        sys.stderr.write(one_line(f"mlinterp: {message}") + "\n")
    return code


def _keep_traceback() -> str:
    """Write the current traceback to a file and return where it is, in words."""
    from mlinterp.io.atomic import write_text
    from mlinterp.io.text import scrub

    moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    path = find_workspace(".") / ".mlinterp" / "errors" / f"{moment}-{os.getpid()}.txt"
    try:
        write_text(path, scrub(traceback.format_exc()))
    except OSError as error:
        return f"its traceback could not be written to {path} ({os.strerror(error.errno or 0)})"
    return f"this is a bug, its traceback is in {path}"


if __name__ == "__main__":
    main()
