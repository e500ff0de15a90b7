"""What the terminal shows: one safe line for a message, bars on a terminal, lines elsewhere, a table at the end."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

import mlinterp.terminal
from mlinterp.execution.summary import RunSummary
from mlinterp.result import ExperimentResult
from mlinterp.terminal import TerminalReporter, one_line, show_summary, show_table


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """A clock that is moved by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(mlinterp.terminal.time, "monotonic", lambda: self.now)


def test_a_message_is_one_printable_line_of_bounded_length() -> None:
    assert one_line("a\n  b\t\x1b[31mc\u202e") == "a b \\x1b[31mc\\u202e"
    assert len(one_line("x" * 1000)) == 300
    assert one_line("x" * 1000).endswith("…")
    assert len(one_line("\x00" * 1000)) == 300


def test_where_there_is_no_terminal_a_line_appears_every_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, stream = Clock(monkeypatch), io.StringIO()
    with TerminalReporter(stream).task("sae_fit", 100) as task:
        for _ in range(50):
            clock.now += 1
            task.advance(1, "loss 0.5\x1b[0m")
    assert stream.getvalue().splitlines() == [
        "sae_fit 10/100 (10%), 0:01:30 left, loss 0.5\\x1b[0m",
        "sae_fit 20/100 (20%), 0:01:20 left, loss 0.5\\x1b[0m",
        "sae_fit 30/100 (30%), 0:01:10 left, loss 0.5\\x1b[0m",
        "sae_fit 40/100 (40%), 0:01:00 left, loss 0.5\\x1b[0m",
        "sae_fit 50/100 (50%), 0:00:50 left, loss 0.5\\x1b[0m",
        "sae_fit done in 0:00:50",
    ]


def test_what_a_resumed_stage_found_done_does_not_count_as_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, stream = Clock(monkeypatch), io.StringIO()
    with TerminalReporter(stream).task("fit", 1000) as task:
        task.advance(900)
        clock.now += 10
        task.advance(10)
    assert stream.getvalue().splitlines()[0] == "fit 910/1000 (91%), 0:01:30 left"


def test_short_work_says_nothing_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    with TerminalReporter(stream).task("quick", 2) as task:
        task.advance()
        task.advance()
    assert stream.getvalue() == ""


def test_a_terminal_shows_nested_bars_and_is_left_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    stream = Tty()
    reporter = TerminalReporter(stream)
    with reporter.task("study", 2) as outer:
        with reporter.task("fit [bold]", 10) as inner:
            inner.advance(10, "loss 0.25")
            inner.advance(0, "loss\x07 [red]")
        outer.advance(2, "fit")
    text = stream.getvalue()
    assert "study" in text
    assert "100%" in text
    assert "\x07" not in text
    assert text.endswith("\x1b[?25h")


def test_a_failing_task_leaves_the_terminal_clean() -> None:
    stream = Tty()
    reporter = TerminalReporter(stream)
    with pytest.raises(ValueError, match="stop"), reporter.task("a", 1), reporter.task("b", 1):
        raise ValueError("stop")
    assert stream.getvalue().endswith("\x1b[?25h")
    with reporter.task("again", 1) as task:
        task.advance(1)
    assert "again" in stream.getvalue()


def test_tables_hold_any_text_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    show_table(["name", "value"], [["[red]x[/red]", 0.123456], ["a\nb\x1b[2J", None], ["=1+1", True]])
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["name", "value"],
        ["[red]x[/red]", "0.1235"],
        ["a\\nb\\x1b[2J"],
        ["=1+1", "True"],
    ]


def summary(**fields: object) -> RunSummary:
    result = ExperimentResult(metrics={"fit/seconds": 3.0, "fit/fvu": 0.12345, "fit/l0": 8.0})
    result.diagnostics.warnings.append("3 states were\x1b[31m left out")
    base = {
        "run_id": "0" * 32,
        "run_name": "sae_fit · trm4",
        "status": "FINISHED",
        "store_uri": "sqlite:///x.db",
        "workspace": Path("/w"),
        "result": result,
    }
    return RunSummary(**{**base, **fields})  # type: ignore[arg-type]


def test_a_summary_shows_numbers_children_warnings_and_links(capsys: pytest.CaptureFixture[str]) -> None:
    children = [summary(label="seed=0", reused=True), summary(label="seed=1", status="FAILED", result=None, error="no latent fires")]
    show_summary(summary(children=children, links={"run": "/#/experiments/1/runs/0?workflowType=machine_learning"}))
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "run status numbers",
        "sae_fit · trm4 FINISHED fit/fvu 0.1235 fit/l0 8",
        "seed=0 FINISHED, as before fit/fvu 0.1235 fit/l0 8",
        "seed=1 FAILED no latent fires",
        "warning: 3 states were\\x1b[31m left out",
        "look at it: mlinterp ui --store sqlite:///x.db (in /w)",
        "run: http://127.0.0.1:5000/#/experiments/1/runs/0?workflowType=machine_learning",
    ]


def test_the_workspace_s_own_store_needs_no_option(capsys: pytest.CaptureFixture[str]) -> None:
    show_summary(summary(store_uri="sqlite:////w/mlruns.db"))
    assert "look at it: mlinterp ui   (in /w)" in capsys.readouterr().out


def test_links_of_a_tracking_server_lead_there(capsys: pytest.CaptureFixture[str]) -> None:
    show_summary(summary(store_uri="https://host/mlflow/", links={"run": "#/experiments/1"}))
    assert capsys.readouterr().out.splitlines()[-1] == "run: https://host/mlflow/#/experiments/1"
