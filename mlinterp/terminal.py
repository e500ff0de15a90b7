"""What the command line shows: progress while work runs, and tables once it is done. Results go to stdout, everything else to stderr.

Names, notes and messages may come from a model's vocabulary or a stranger's file, so every text passes `visible` (no control or
bidirectional characters) and none is read as markup.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from mlinterp.io.text import scrub, visible

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress, TaskID
    from rich.text import Text

    from mlinterp.execution.summary import RunSummary

LINE_LIMIT = 300
LINE_SECONDS = 10.0
"""Seconds between two progress lines where there is no terminal to draw a bar on."""

_TESTS = re.compile(r"(?=\b(?:without role|necessity|sufficiency) \()")
_ROUTINE = ("seconds", "n_states", "n_examples")


def one_line(text: str) -> str:
    """Return a message as one printable line of at most 300 characters, without secrets."""
    line = visible(" ".join(scrub(text).split()))
    return line if len(line) <= LINE_LIMIT else line[: LINE_LIMIT - 1] + "…"


class TerminalReporter:
    """Progress on stderr: bars on a terminal, a line every ten seconds elsewhere. Step metrics are left to the run's record."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._progress: Progress | None = None
        self._depth = 0

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Leave step metrics to others; a bar's note shows the newest ones."""

    def flush(self) -> None:
        """Have nothing to keep."""

    @contextmanager
    def task(self, description: str, total: float) -> Iterator[_Bar | _Lines]:
        """Open a bar; bars opened inside it stand below it until they are done."""
        indent, description = "  " * self._depth, visible(description)
        self._depth += 1
        try:
            if not self._stream.isatty():
                lines = _Lines(self._stream, description, total)
                yield lines
                lines.finish()
                return
            outermost = self._progress is None
            progress = self._progress or self._start()
            bar = progress.add_task(indent + description, total=total, note="")
            try:
                yield _Bar(progress, bar)
            finally:
                if outermost:
                    progress.stop()
                    self._progress = None
                else:
                    progress.remove_task(bar)
        finally:
            self._depth -= 1

    def _start(self) -> Progress:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left", style="dim"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False, style="dim"),
            console=_console(self._stream),
        )
        self._progress.start()
        return self._progress


class _Bar:
    """A bar on a terminal."""

    def __init__(self, progress: Progress, bar: TaskID) -> None:
        self._progress, self._bar = progress, bar

    def advance(self, amount: float = 1, note: str = "") -> None:
        self._progress.update(self._bar, advance=amount, note=visible(note)[:80])


class _Lines:
    """A line now and then."""

    def __init__(self, stream: TextIO, description: str, total: float) -> None:
        self._stream, self._description, self._total = stream, description, total
        self._done = 0.0
        self._skipped = 0.0
        self._started = self._said = time.monotonic()

    def advance(self, amount: float = 1, note: str = "") -> None:
        now = time.monotonic()
        if self._done == 0 and now - self._started < 1:  # what a resumed stage found done; it says nothing about the speed
            self._skipped = amount
        self._done += amount
        if now - self._said < LINE_SECONDS:
            return
        self._said = now
        share = self._done / self._total if self._total else 1.0
        rate = (self._done - self._skipped) / (now - self._started)
        left = f", {_clock((self._total - self._done) / rate)} left" if rate > 0 else ""
        told = f", {visible(note)}" if note else ""
        self._say(f"{self._description} {self._done:g}/{self._total:g} ({share:.0%}){left}{told}")

    def finish(self) -> None:
        if self._said > self._started:
            self._say(f"{self._description} done in {_clock(time.monotonic() - self._started)}")

    def _say(self, text: str) -> None:
        self._stream.write(one_line(text) + "\n")
        self._stream.flush()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def show_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str | None = None) -> None:
    """Print a table to stdout."""
    from rich.table import Table

    table = Table(title=safe(title) if title else None, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(safe(column), overflow="fold")
    for row in rows:
        table.add_row(*map(safe, row))
    show(table)


def safe(cell: Any, style: str = "") -> Text:
    """Return a value as text without markup that is safe to show; what is such a text stays as it is."""
    from rich.text import Text

    return cell if isinstance(cell, Text) else Text(visible(scrub(_text(cell))), style)


def show(what: RenderableType) -> None:
    """Print what is made of `safe` texts to stdout."""
    _console(sys.stdout).print(what)


def show_summary(summary: RunSummary) -> None:
    """Print what came of a run: its numbers and those of its children, warnings, and how to look at it."""
    show_table(
        ["run", "status", "numbers"], [(_name(summary, depth), _status(summary), _headline(summary)) for depth, summary in _family(summary)]
    )
    for _, child in _family(summary):
        show_lines(_ruling(child))
    show_lines(summary.standings)
    show_lines(summary.result.sentences() if summary.result else [])
    for warning in (summary.result.diagnostics.warnings if summary.result else [])[:10]:
        show_lines([f"warning: {warning}"])
    server = summary.store_uri if summary.store_uri.startswith(("http://", "https://")) else None
    base = (server or "http://127.0.0.1:5000").rstrip("/")
    own = f"sqlite:///{summary.workspace / 'mlruns.db'}"
    command = "mlinterp ui" if summary.store_uri == own else f"mlinterp ui --store {summary.store_uri}"
    show_lines([] if server else [f"look at it: {command}   (in {summary.workspace})"])
    show_lines(f"{title}: {link if '://' in link else base + '/' + link.lstrip('/')}" for title, link in summary.links.items())


def show_lines(lines: Iterable[str]) -> None:
    """Print lines to stdout, each made safe."""
    for line in lines:
        sys.stdout.write(visible(scrub(line)) + "\n")


def _family(summary: RunSummary, depth: int = 0) -> Iterator[tuple[int, RunSummary]]:
    yield depth, summary
    for child in summary.children:
        yield from _family(child, depth + 1)


def _name(summary: RunSummary, depth: int) -> str:
    return "  " * depth + (summary.label if depth and summary.label else summary.run_name)


def _status(summary: RunSummary) -> str:
    verdict = f", {summary.verdict}" if summary.verdict else ""
    return summary.status + (", as before" if summary.reused else "") + verdict


def _ruling(summary: RunSummary) -> list[str]:
    """Return a ruling with a line for each of its tests."""
    said = _TESTS.split(summary.ruling or "")
    return (
        [f"{summary.label or summary.run_name} {said[0].rstrip(': ')}", *(f"  {test.rstrip('; ')}" for test in said[1:])] if said[0] else []
    )


def _headline(summary: RunSummary) -> str:
    if summary.result is None or not summary.result.success:
        return summary.error or (summary.result.error_message if summary.result else None) or ""
    everything = summary.result.numbers()
    estimated = {name: everything[name] for name in summary.result.estimates if name in everything}
    numbers = summary.result.metrics or estimated or everything
    telling = [name for name in numbers if not name.endswith(_ROUTINE) and not name.startswith("diagnostics/")]
    return "  ".join(f"{name} {numbers[name]:.4g}" for name in telling[:4])


def _text(cell: Any) -> str:
    if cell is None:
        return ""
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def _console(stream: TextIO) -> Console:
    from rich.console import Console

    class Output(Console):
        """Leaves a reader that went away to the command line's own edge."""

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    return Output(file=stream, width=None if stream.isatty() else 160, highlight=False, markup=False, emoji=False)
