"""`mlinterp hypothesis …`: claims, what speaks for and against them, and what became of the runs that they rest on."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mlinterp.errors import SpecError, unknown
from mlinterp.hypotheses.declared import declare, read_declared, successor
from mlinterp.hypotheses.records import Declaration, Hypothesis, Role, Status
from mlinterp.project import choose_project, project_names
from mlinterp.terminal import show_lines

if TYPE_CHECKING:
    from mlinterp.hypotheses.ledger import Ledger

ROLES: tuple[str, ...] = typing.get_args(Role)
STATUSES: tuple[str, ...] = typing.get_args(Status)

app = typer.Typer(help="Claims, and what speaks for and against them.", short_help="Claims and their evidence.")


def _declared_ids() -> list[str]:
    try:
        return [*read_declared(choose_project(None))]
    except SpecError:
        return []


ProjectOption = Annotated[
    str | None,
    typer.Option(
        "--project", "-p", metavar="PROJECT", help="The project's folder, or its name below projects/.", autocompletion=project_names
    ),
]
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The hypothesis, such as h001.", autocompletion=_declared_ids)]
ClaimArgument = Annotated[str, typer.Argument(metavar="CLAIM", help="What is claimed, in one sentence.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or the beginning of it.")]
PredictionOption = Annotated[str | None, typer.Option("--prediction", help="What should be measured if the claim is true.")]
RefutedByOption = Annotated[str | None, typer.Option("--refuted-by", help="What measurement would refute it.")]
LevelOption = Annotated[
    Literal["causal", "correlational"] | None,
    typer.Option("--level", help="A causal claim is supported by interventions only \\[default: causal]."),
]
RequiresOption = Annotated[
    list[str] | None,
    typer.Option(
        "--requires",
        metavar="|".join(ROLES),
        help="Role of a prediction that must be supported; repeatable.",
        autocompletion=lambda: list(ROLES),
    ),
]
ConfidenceOption = Annotated[float | None, typer.Option("--confidence", help="Confidence before any evidence \\[default: 0.5].")]
AlphaOption = Annotated[float | None, typer.Option("--alpha", help="Rate at which a false claim may end up supported \\[default: 0.05].")]
FeatureOption = Annotated[int | None, typer.Option("--feature-id", help="The latent that it is about.")]
SubjectOption = Annotated[str | None, typer.Option("--subject", help="The subject that it is about.")]
TagsOption = Annotated[list[str] | None, typer.Option("--tag", metavar="TAG", help="A word to find it by; repeatable.")]


@app.callback(invoke_without_command=True)
def help_command(context: typer.Context) -> None:
    """Print the help where nothing is asked."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command("add", short_help="Add a hypothesis.")
def add_command(
    claim: ClaimArgument,
    prediction: PredictionOption = None,
    refuted_by: RefutedByOption = None,
    parent: Annotated[str | None, typer.Option("--parent", help="The hypothesis that it refines.", autocompletion=_declared_ids)] = None,
    level: LevelOption = None,
    requires: RequiresOption = None,
    confidence: ConfidenceOption = None,
    alpha: AlphaOption = None,
    feature_id: FeatureOption = None,
    subject: SubjectOption = None,
    tags: TagsOption = None,
    project: ProjectOption = None,
) -> None:
    """Add a hypothesis under the project's next free id.

    For example:

      mlinterp hypothesis add "The answer lives in z_H" --refuted-by "patching z_L moves it as much"

      mlinterp hypothesis add "Latent 12 writes the digit" --parent h001 --requires necessity --requires sufficiency
    """
    declared = declare(_given(locals()))
    _show_added(_ledger(project).add(declared), "added")


@app.command("list", short_help="List the hypotheses.")
def list_command(
    status: Annotated[
        list[str] | None,
        typer.Option(
            "--status",
            metavar="STATUS",
            help=f"Only those that are {', '.join(STATUSES)}; repeatable.",
            autocompletion=lambda: list(STATUSES),
        ),
    ] = None,
    as_json: JsonOption = False,
    project: ProjectOption = None,
) -> None:
    """List the hypotheses of a project, each judged by all evidence that there is now.

    For example:

      mlinterp hypothesis list --status supported --status refuted
    """
    from mlinterp import hypothesis_view as view

    for wanted in set(status or []) - set(STATUSES):
        raise unknown("--status", wanted, STATUSES, what="status")
    ledger = _ledger(project)
    found = [one for one in ledger.all() if not status or one.status in status]
    if as_json:
        view.show_json([view.as_json(one) for one in found])
    elif found:
        view.show_list(found)
    else:
        show_lines([f"{ledger.project} has no {' or '.join(status or [])} hypothesis".replace("  ", " ")])


@app.command("show", short_help="Show one hypothesis with its evidence.")
def show_command(name: IdArgument, as_json: JsonOption = False, project: ProjectOption = None) -> None:
    """Show a hypothesis: its claim, where it stands and why, and every run that speaks for or against it.

    For example:

      mlinterp hypothesis show h001
    """
    from mlinterp import hypothesis_view as view
    from mlinterp.tracking import links

    ledger = _ledger(project)
    one = ledger.get(name)
    if as_json:
        view.show_json(view.as_json(one))
        return
    address = links.absolute(_server(ledger), links.run(one.experiment_id, one.run_id))
    view.show_hypothesis(one, {other.id: other for other in ledger.all()}, address)


@app.command("tree", short_help="Show what refines what.")
def tree_command(project: ProjectOption = None) -> None:
    """Show the hypotheses of a project as a tree: each below the one that it refines or replaces.

    For example:

      mlinterp hypothesis tree --project trm_sudoku
    """
    from mlinterp import hypothesis_view as view

    ledger = _ledger(project)
    view.show_tree(ledger.project, ledger.all())


@app.command("supersede", short_help="Replace a hypothesis by a new one.")
def supersede_command(
    name: IdArgument,
    claim: ClaimArgument,
    prediction: PredictionOption = None,
    refuted_by: RefutedByOption = None,
    level: LevelOption = None,
    requires: RequiresOption = None,
    confidence: ConfidenceOption = None,
    alpha: AlphaOption = None,
    feature_id: FeatureOption = None,
    subject: SubjectOption = None,
    tags: TagsOption = None,
    project: ProjectOption = None,
) -> None:
    """Replace a hypothesis by a new one, its child. The evidence stays with the old claim; what it is about is the same unless told.

    For example:

      mlinterp hypothesis supersede h001 "The answer lives in z_H from the second step on"
    """
    given, ledger = _given(locals()), _ledger(project)
    _show_added(ledger.supersede(name, successor(ledger.get(name).declared, given)), f"takes the place of {name}")


@app.command("close", short_help="Take no more evidence for a hypothesis.")
def close_command(
    name: IdArgument,
    why: Annotated[str, typer.Option("--why", help="The reason, which everybody will read.")],
    project: ProjectOption = None,
) -> None:
    """Take no more evidence for a hypothesis. Where it stands stays.

    For example:

      mlinterp hypothesis close h003 --why "the task has changed"
    """
    _show_standing(_ledger(project).close(name, why))


@app.command("reopen", short_help="Take evidence again.")
def reopen_command(name: IdArgument, project: ProjectOption = None) -> None:
    """Take evidence again for a hypothesis that was closed.

    For example:

      mlinterp hypothesis reopen h003
    """
    _show_standing(_ledger(project).reopen(name))


@app.command("import", short_help="Bring in state files of mechinterp-runner.")
def import_command(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="State files: feature_ID_MODEL.json.")],
    project: ProjectOption = None,
) -> None:
    """Bring in the hypotheses of state files; each keeps its id where that is free. A file brought in twice changes nothing.

    For example:

      mlinterp hypothesis import state/feature_18712_ultra.json
    """
    from mlinterp.hypotheses.exchange import import_state

    ledger = _ledger(project)
    for file in files:
        for theirs, ours in import_state(ledger, file).items():
            show_lines([f"{file.name}: {theirs} -> {ours.id}: {ours.declared.claim}"])


@app.command("export", short_help="Write a state file of mechinterp-runner.")
def export_command(
    feature_id: Annotated[int, typer.Option("--feature-id", help="The latent.")],
    subject: Annotated[str, typer.Option("--subject", help="The subject.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write there \\[default: feature_ID_SUBJECT.json].")
    ] = None,
    project: ProjectOption = None,
) -> None:
    """Write what is believed about one latent as a state file: claims, evidence, status, confidence.

    For example:

      mlinterp hypothesis export --feature-id 18712 --subject ultra
    """
    from mlinterp.hypotheses.exchange import export_state

    state = export_state(_ledger(project), feature_id, subject)
    path = output or Path(state.to_filename())
    if output is None and path.exists():
        raise SpecError(f"'{path}' exists already", field="--output", allowed="name a file; one that is named is overwritten")
    show_lines([str(state.save(path))])


def retract_command(
    run: RunArgument,
    why: Annotated[str, typer.Option("--why", help="The reason, which everybody will read.")],
    replaced_by: Annotated[str | None, typer.Option("--replaced-by", metavar="RUN", help="The run that takes its place.")] = None,
    project: ProjectOption = None,
) -> None:
    """Withdraw a run: it is no evidence any more, nor is what rests on it. Every hypothesis is judged anew.

    For example:

      mlinterp retract 3f2a91 --why "trained on the wrong split"
    """
    ledger = _ledger_of(run, project)
    before = ledger.all()
    stale = ledger.retract(run, why, replaced_by)
    show_lines([f"retracted {run}: {why}"])
    _show_after(ledger, before, stale)


def restore_command(run: RunArgument, project: ProjectOption = None) -> None:
    """Take back a retraction. Every hypothesis is judged anew.

    For example:

      mlinterp restore 3f2a91
    """
    ledger = _ledger_of(run, project)
    before = ledger.all()
    stale = ledger.restore(run)
    show_lines([f"restored {run}"])
    _show_after(ledger, before, stale)


def stale_command(as_json: JsonOption = False, project: ProjectOption = None) -> None:
    """List what rests on something gone (deleted, retracted or replaced), with the filter that finds it in the UI.

    For example:

      mlinterp stale --json
    """
    from dataclasses import asdict

    from mlinterp import hypothesis_view as view

    found = _ledger(project).stale()
    if as_json:
        view.show_json([asdict(one) for one in found])
    else:
        view.show_stale(found)


def lineage_command(
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="Write there.")] = Path("lineage.html"),
    server: Annotated[str | None, typer.Option("--server", metavar="URL", help="The MLflow server that the page's links lead to.")] = None,
    project: ProjectOption = None,
) -> None:
    """Write the lineage of a project as one interactive HTML file: hypotheses, runs, models and data, and what rests on what.

    For example:

      mlinterp lineage --project trm_sudoku -o lineage.html
    """
    from mlinterp.hypotheses.lineage import project_lineage
    from mlinterp.io.atomic import write_text
    from mlinterp.reports.lineage_page import lineage_html

    ledger = _ledger(project)
    lineage = project_lineage(ledger.store, ledger.experiment_id)
    show_lines([str(write_text(output, lineage_html(lineage, base_url=server or _server(ledger))))])


def add_hypothesis_commands(top: typer.Typer) -> None:
    """Add the commands to the app: `hypothesis …`, and beside it those about runs that hypotheses rest on."""
    panel = "Hypotheses"
    top.add_typer(app, name="hypothesis", rich_help_panel=panel)
    top.command("retract", short_help="Withdraw a run as evidence.", rich_help_panel=panel)(retract_command)
    top.command("restore", short_help="Take back a retraction.", rich_help_panel=panel)(restore_command)
    top.command("stale", short_help="List what rests on something gone.", rich_help_panel=panel)(stale_command)
    top.command("lineage", short_help="Write the lineage as an HTML page.", rich_help_panel=panel)(lineage_command)


def _ledger(project: str | None) -> Ledger:
    from mlinterp.hypotheses.ledger import Ledger

    return Ledger.open(choose_project(project))


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was given of a declaration; the commands' parameters are named as its fields."""
    return {name: options[name] for name in Declaration.model_fields if options.get(name) not in (None, [])}


def _show_added(one: Hypothesis, what: str) -> None:
    show_lines([f"{one.id} {what}: {one.declared.claim}"])
    show_lines(
        [
            "",
            "in a spec:",
            f"  hypothesis: {one.id}",
            '  expect: [{metric: …, op: ">", value: …}]   # predicted before the run, it decides the verdict',
        ]
    )


def _show_standing(one: Hypothesis) -> None:
    shut = f", closed: {one.closed}" if one.closed else ""
    show_lines([f"{one.id} {one.status}, confidence {one.evaluation.confidence:.3g}{shut}: {one.declared.claim}"])


def _ledger_of(run: str, project: str | None) -> Ledger:
    """Return the project's ledger: the one that is named, or the run's own."""
    from mlinterp.hypotheses.ledger import Ledger
    from mlinterp.project import find_workspace
    from mlinterp.tracking.store import open_store

    return _ledger(project) if project else Ledger.of_run(open_store(find_workspace(".")), run)


def _show_after(ledger: Ledger, before: list[Hypothesis], stale: Any) -> None:
    from mlinterp import hypothesis_view as view

    view.show_changes(before, ledger.all())
    show_lines([""])
    view.show_stale(stale)


def _server(ledger: Ledger) -> str:
    uri = ledger.store.shown_uri
    return uri if uri.startswith(("http://", "https://")) else "http://127.0.0.1:5000"
