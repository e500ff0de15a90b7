"""The command line: thin verbs over the package, and the only place that prints errors.

Whatever goes wrong ends as one line `mlinterp: …` on stderr and the exit code that `mlinterp.errors` lists; an unexpected exception
leaves its traceback in a file that the line names.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlinterp import __version__
from mlinterp.command_line import CollectedError, run_app, supervise
from mlinterp.errors import MlinterpError, SpecError
from mlinterp.evidence_commands import add_evidence_commands
from mlinterp.experiment_commands import AgainOption, QuietOption, SetOption, add_experiment_command, overrides
from mlinterp.experiments import catalog
from mlinterp.hypothesis_commands import add_hypothesis_commands
from mlinterp.progress import Reporter, Silent
from mlinterp.project import LoadedSpec, Project, find_project, find_workspace, load_spec
from mlinterp.result_files import write_results
from mlinterp.sae_commands import add_sae_commands
from mlinterp.spec import Spec
from mlinterp.terminal import TerminalReporter, show_lines, show_summary, show_table
from mlinterp.token_set_commands import add_token_set_commands
from mlinterp.type_pages import show_type, show_types
from mlinterp.workflow_commands import add_workflow_commands

if TYPE_CHECKING:
    from mlinterp.execution.summary import RunSummary

app = typer.Typer(
    name="mlinterp",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Ask questions of models: every question is a spec, every spec an MLflow run, every run evidence.",
    epilog="Start with: mlinterp new study -o study.yaml; mlinterp validate study.yaml; mlinterp run study.yaml; mlinterp ui",
)

SpecsArgument = Annotated[list[Path] | None, typer.Argument(metavar="SPEC...", help="Spec files: YAML, JSON or TOML.", show_default=False)]
SpecOption = Annotated[
    list[Path] | None, typer.Option("--spec", "--spec-path", metavar="SPEC", help="A spec file, as MLproject entry points pass it.")
]
OutputOption = Annotated[
    Path | None, typer.Option("--output-dir", metavar="FOLDER", help="Write {spec_id}__result.json there, too.", show_default=False)
]

ExpectOption = Annotated[
    str | None, typer.Option("--expect-type", metavar="TYPE", help="Refuse specs of another type, as MLproject entry points do.")
]


@app.command("run", short_help="Run specs, each as an MLflow run.")
def run_command(
    specs: SpecsArgument = None,
    spec: SpecOption = None,
    values: SetOption = None,
    expected: ExpectOption = None,
    output_dir: OutputOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and run nothing, as `mlinterp validate` does.")] = False,
    again: AgainOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run specs, each as an MLflow run. All are checked before the first one starts.

    For example:

      mlinterp run projects/trm_sudoku/study.yaml

      mlinterp run fit.yaml --set variables.k=32 --set seed=1

      mlinterp run --spec-path sweep.json --output-dir results
    """
    checked = _checked(_files(specs, spec), values, show=dry_run)
    for loaded, _ in checked:
        if expected and catalog.find(loaded.spec.type).type != catalog.find(expected).type:
            raise loaded.place(SpecError(f"is '{loaded.spec.type}'", field="type", allowed=f"expected {expected} here"))
    if dry_run:
        return

    def work() -> None:
        from mlinterp import run

        for loaded, project in checked:
            document = None if loaded.overrides else (loaded.document.text, loaded.document.path.suffix)
            summary = run.run(loaded.spec, project=project, document=document, again=again, reporter=_reporter(quiet))
            show_summary(summary)
            if output_dir is not None:
                show_lines(f"wrote {path}" for path in write_results(summary, output_dir))

    supervise(work, checked[0][1].workspace)


@app.command("validate", short_help="Check specs without running them.")
def validate_command(specs: SpecsArgument = None, spec: SpecOption = None, values: SetOption = None) -> None:
    """Check specs without running them: every field, subject, input, step and cell of a sweep.

    For example:

      mlinterp validate projects/trm_sudoku/specs/*.yaml
    """
    _checked(_files(specs, spec), values, show=True)


@app.command("types", short_help="List the experiment types, or describe one.")
def types_command(
    type_name: Annotated[str | None, typer.Argument(metavar="[TYPE]", autocompletion=lambda: _type_names())] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the experiment types there are, with their aliases and modes; of one, its variables with their bounds and defaults.

    For example:

      mlinterp types

      mlinterp types intervene

      mlinterp types --json
    """
    if type_name is None:
        show_types(as_json)
    else:
        show_type(catalog.find(type_name), as_json)


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
        str,
        typer.Argument(
            metavar="TYPE", help="An experiment type, study or hypotheses.", autocompletion=lambda: [*_type_names(), "study", "hypotheses"]
        ),
    ],
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write there instead of printing.")] = None,
) -> None:
    """Write a commented spec to start from.

    For example:

      mlinterp new trace -o projects/trm_sudoku/specs/trace.yaml

      mlinterp new study

      mlinterp new hypotheses -o projects/trm_sudoku/hypotheses.yaml
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
    workspace = find_workspace(".")

    def work() -> None:
        from mlinterp import run

        show_summary(run.resume(run_id, workspace=workspace, reporter=_reporter(quiet)))

    supervise(work, workspace)


@app.command("ui", short_help="Open the MLflow UI on this workspace.")
def ui_command(
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port on 127.0.0.1.")] = 5000,
    store: Annotated[str | None, typer.Option("--store", metavar="URI", help="Another tracking store than the workspace's own.")] = None,
) -> None:
    """Open the MLflow UI on this workspace, on this machine only.

    For example:

      mlinterp ui --port 5001
    """
    from mlinterp.hypotheses.ledger import refresh_all
    from mlinterp.tracking.server import serve

    serve(find_workspace("."), store, port, say=lambda text: show_lines([text]), prepare=refresh_all)


@app.command("runs", short_help="List recent runs.")
def runs_command(limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="How many.")] = 20) -> None:
    """List recent runs of this workspace with their status, newest first.

    For example:

      mlinterp runs -n 5
    """
    from mlinterp.tracking.queries import recent_runs

    found = recent_runs(find_workspace("."), limit)
    columns = list(dict.fromkeys(name for row in found for name in row if name != "link"))
    show_table(columns or ["no runs yet"], [[row.get(name) for name in columns] for row in found])


@app.callback(invoke_without_command=True)
def top(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    list_types: Annotated[bool, typer.Option("--list-types", help="List the experiment types and exit, as `mlinterp types` does.")] = False,
) -> None:
    """Print the version or the experiment types, or the help where nothing is asked."""
    if version:
        show_lines([f"mlinterp {__version__}"])
    elif list_types:
        show_types()
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _run_built(spec: Spec, project: Project, again: bool, quiet: bool, tell: Callable[[RunSummary], None] = show_summary) -> None:
    """Check and run a spec that the command line declared, and tell what came of it."""
    from mlinterp.validation import check_spec

    check_spec(spec, project)

    def work() -> None:
        from mlinterp import run

        tell(run.run(spec, project=project, again=again, reporter=_reporter(quiet)))

    supervise(work, project.workspace)


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
add_token_set_commands(app, _run_built)
add_workflow_commands(app, _run_built)
add_sae_commands(app)
add_hypothesis_commands(app)
add_evidence_commands(app)


def main(argv: list[str] | None = None) -> None:
    """Run a command line; returns on success and raises SystemExit with the exit code otherwise."""
    run_app(app, "mlinterp", argv)


if __name__ == "__main__":
    main()
