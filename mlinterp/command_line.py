"""The edge of every command line: runs an app, prints each error as one line, turns every ending into its exit code.

Whatever goes wrong ends as one line `mlinterp: …` on stderr and the exit code that `mlinterp.errors` lists; an unexpected exception
leaves its traceback in a file that the line names.
"""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer

from mlinterp.errors import Interrupted, MlinterpError
from mlinterp.project import find_workspace
from mlinterp.terminal import one_line

UsageError: Any = typer.BadParameter.__base__
"""What typer raises for a command line that it cannot read."""

BROKEN_PIPE = 141


class CollectedError(MlinterpError):
    """Errors of several files; each is printed on its own line."""

    def __init__(self, errors: list[MlinterpError]) -> None:
        self.errors = errors
        self.exit_code = errors[0].exit_code
        super().__init__(f"{len(errors)} errors")


def run_app(app: typer.Typer, name: str, argv: list[str] | None = None) -> None:
    """Run a command line; returns on success and raises SystemExit with the exit code otherwise."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if f"_{name.upper()}_COMPLETE" in os.environ:
        app(prog_name=name)
    code = _guarded(lambda: _invoke(app, name, sys.argv[1:] if argv is None else argv))
    if code:
        raise SystemExit(code)


def _invoke(app: typer.Typer, name: str, arguments: list[str]) -> None:
    command = typer.main.get_command(app)
    with command.make_context(name, list(arguments)) as context:
        command.invoke(context)


def supervise(work: Callable[[], None], workspace: Path) -> None:
    """Work in a child process, so that even a child that is killed leaves no run open; its exit code becomes ours."""
    if "torch" in sys.modules:  # a process with torch's threads in it must not fork
        work()
        return
    from mlinterp.tracking.supervise import supervised

    code = supervised(lambda: _guarded(work), workspace)
    if code:
        raise typer.Exit(code)


def _guarded(work: Callable[[], None]) -> int:
    """Do some work and return the exit code that it ends with, with every error printed."""
    try:
        work()
        sys.stdout.flush()
    except typer.Exit as stop:
        return stop.exit_code
    except UsageError as error:
        return _say([error.format_message()], 2)
    except (KeyboardInterrupt, typer.Abort):
        return _say(["stopped"], 130)
    except Interrupted as stop:
        return _say([f"{stop}; `mlinterp runs` names the run, `mlinterp resume RUN` goes on with it"], stop.exit_code)
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
