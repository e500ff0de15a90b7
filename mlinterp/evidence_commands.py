"""`mlinterp report | compare | reproduce | verify`: what runs say, side by side, once more, and whether they still hold it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlinterp.command_line import supervise
from mlinterp.errors import VerificationError
from mlinterp.experiment_commands import QuietOption
from mlinterp.progress import Reporter, Silent
from mlinterp.project import choose_project, find_workspace, project_names
from mlinterp.terminal import TerminalReporter, show_lines, show_table

if TYPE_CHECKING:
    from mlinterp.comparison import Comparison
    from mlinterp.reproduction import Reproduction
    from mlinterp.verification import Verification

MOST = 20
"""Differences that are printed; the rest are counted."""

FolderOption = Annotated[Path | None, typer.Option("-o", "--output", metavar="FOLDER", help="Write there.", show_default=False)]


def add_evidence_commands(app: typer.Typer) -> None:
    """Add the four verbs to an app."""
    app.command("report", short_help="Write the report of a run, a study or a hypothesis.")(report_command)
    app.command("compare", short_help="Show runs side by side, with intervals.")(compare_command)
    app.command("reproduce", short_help="Execute a run again and say whether it is the same.")(reproduce_command)
    app.command("verify", short_help="Hash the artifacts of runs again.")(verify_command)


def report_command(
    reference: Annotated[
        str, typer.Argument(metavar="RUN|HYPOTHESIS", help="A run or study, by the beginning of its id, or a hypothesis such as h001.")
    ],
    folder: FolderOption = None,
    project: Annotated[
        str | None,
        typer.Option("--project", "-p", metavar="PROJECT", help="The hypothesis's project.", autocompletion=project_names),
    ] = None,
    stdout: Annotated[bool, typer.Option("--stdout", help="Print the Markdown instead of writing files.")] = False,
) -> None:
    """Write the report of a run, a study, a sweep or a hypothesis as Markdown and as one self-contained HTML file.

    Numbers and figures are those that were recorded; verdicts are as the evidence stands now. Without -o the files go to `reports/`.

    For example:

      mlinterp report 3f2a91

      mlinterp report h001 --project trm_sudoku -o /tmp/h001

      mlinterp report h001 --stdout
    """
    from mlinterp.reporting import HYPOTHESIS, generate

    chosen = choose_project(project) if project is not None or HYPOTHESIS.fullmatch(reference) else None
    report = generate(reference, chosen.workspace if chosen else find_workspace("."), chosen)
    if stdout:
        sys.stdout.write(report.markdown)
        return
    paths = report.save(folder or Path("reports") / report.name)
    show_lines([report.title, report.summary, *(str(path) for path in paths[:2])])


def compare_command(
    runs: Annotated[list[str], typer.Argument(metavar="RUN", help="Two or more runs, each by the beginning of its id.")],
    metrics: Annotated[
        list[str] | None, typer.Option("--metric", "-m", metavar="NAME", help="Compare this metric; repeatable.", show_default=False)
    ] = None,
    folder: FolderOption = None,
    everything: Annotated[bool, typer.Option("--all", help="Compare every number that any of the runs has.")] = False,
    mixed: Annotated[
        bool, typer.Option("--allow-mixed-metrics", help="Compare even runs whose metrics follow different definitions.")
    ] = False,
) -> None:
    """Show runs side by side: what each measured with its interval, how far it lies from the first, what was asked differently.

    By default the metrics are those that a spec predicted, then the headline ones that all runs have.

    For example:

      mlinterp compare 3f2a91 77bc02

      mlinterp compare 3f2a91 77bc02 -m top/adjusted_effect -o comparison
    """
    from mlinterp.comparison import compare

    found = compare(runs, find_workspace("."), metrics or (), everything=everything, allow_mixed_metrics=mixed)
    if folder is not None:
        show_lines(str(path) for path in found.save(folder)[:2])
        return
    _show_comparison(found)


def reproduce_command(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A finished run, by the beginning of its id.")], quiet: QuietOption = False
) -> None:
    """Execute a run again from its own record and say, number by number and file by file, whether it comes out the same.

    It takes the inputs that the run really took, whatever `latest` or an alias means by now. The new run is no evidence. Studies and
    sweeps are executed whole. Exit code 0: the same; 4: it differs.

    For example:

      mlinterp reproduce 3f2a91
    """
    workspace = find_workspace(".")

    def work() -> None:
        from mlinterp.reproduction import reproduce

        found = reproduce(run, workspace, _reporter(quiet))
        _show_reproduction(found)
        if not found.same:
            raise VerificationError(f"run {found.original[:12]} does not come out the same")

    supervise(work, workspace)


def verify_command(
    runs: Annotated[list[str], typer.Argument(metavar="RUN", help="Finished runs, each by the beginning of its id.")],
    quiet: QuietOption = False,
) -> None:
    """Hash the artifacts of runs again and compare them with what was recorded, those of a study's steps and a sweep's cells included.

    Exit code 0: everything is as it was recorded; 4: something is missing, altered, or lies there unsigned.

    For example:

      mlinterp verify 3f2a91 77bc02
    """
    from mlinterp.verification import verify

    workspace, reporter = find_workspace("."), _reporter(quiet)
    found = [verify(run, workspace, reporter) for run in runs]
    show_table(["", "run", "id", "files", "size"], [row for one in found for row in _verified(one)])
    show_lines(f"{one.run_id[:12]}: {one.remark}" for top in found for one in top.family() if one.remark)
    problems = [(one, problem) for top in found for one in top.family() for problem in one.problems]
    show_lines(f"{one.run_id[:12]}: {problem}" for one, problem in problems)
    if problems:
        wrong = list(dict.fromkeys(one.run_id[:12] for one, _ in problems))
        raise VerificationError(f"{_count(len(problems), 'problem')} in {_count(len(wrong), 'run')}: {', '.join(wrong)}")


def _reporter(quiet: bool) -> Reporter:
    return Silent() if quiet else TerminalReporter()


def _show_comparison(found: Comparison) -> None:
    from mlinterp.reports.comparison import measured, told
    from mlinterp.reports.document import shown
    from mlinterp.reports.verdicts import between

    show_table(["", "run", "id", "mode", "verdict"], [(run.key, run.name, run.run_id[:12], run.mode, run.verdict) for run in found.runs])
    keys = [run.key for run in found.runs]
    rows = [
        (
            row.metric,
            *(shown(measured(value, between(estimate))) for value, estimate in zip(row.values, row.estimates, strict=True)),
            *(told(difference) for difference in row.differences[1:]),
        )
        for row in found.rows
    ]
    show_lines([""])
    show_table(["metric", *keys, *(f"{key} − {keys[0]}" for key in keys[1:])], rows)
    for title, changed in (("asked differently", found.asked), ("inputs", found.inputs), ("versions", found.surroundings)):
        if changed:
            show_lines([""])
            show_table([title, *keys], [(one.name, *one.values) for one in changed])
    show_lines(["", *(f"note: {remark}" for remark in found.remarks), f"in MLflow: {found.address}"])


def _show_reproduction(found: Reproduction) -> None:
    parts = [one for one in found.family() if one.label is not None]
    if parts:
        show_table(["", "", "numbers", "files"], [(one.label, *_outcome(one)) for one in parts])
    for one in found.family():
        where = f"{one.label}: " if one.label else ""
        show_lines(f"{where}{line}" for line in _differences(one))
    show_lines([f"{change.name}: {change.before} → {change.now}" for change in found.changes])
    show_lines([found.line(), *(f"{title}: {address}" for title, address in found.links.items())])


def _outcome(one: Reproduction) -> tuple[str, str, str]:
    numbers, files = (
        f"{len(wrong)} of {n} differ" if wrong else f"{n} equal" for wrong, n in ((one.numbers, one.n_numbers), (one.files, one.n_files))
    )
    return "same" if one.same else "differs", numbers, files


def _differences(one: Reproduction) -> Iterator[str]:
    if one.problem:
        yield one.problem
    for number in one.numbers[:MOST]:
        by = f", by {number.absolute:.3g}" if number.absolute is not None else ""
        share = f" ({number.relative:.2g} of what it was)" if number.relative is not None else ""
        yield f"{number.name}: {_exact(number.before)} → {_exact(number.now)}{by}{share}"
    for file in one.files[:MOST]:
        yield f"{file.name} {file.what}"
    for what, wrong in (("number", one.numbers), ("file", one.files)):
        if len(wrong) > MOST:
            yield f"… and {_count(len(wrong) - MOST, what)} more"


def _exact(value: float | None) -> str:
    return "none" if value is None else repr(value)


def _verified(found: Verification, depth: int = 0) -> Iterator[tuple[str, str, str, str, str]]:
    outcome = _count(len(found.problems), "problem") if found.problems else "–" if found.remark else "ok"
    size = f"{found.n_bytes / 2**20:.1f} MiB" if found.n_files else ""
    yield outcome, "  " * depth + (found.label or found.run_name), found.run_id[:12], str(found.n_files or ""), size
    for child in found.children:
        yield from _verified(child, depth + 1)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
