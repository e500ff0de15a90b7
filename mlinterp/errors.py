"""Every error mlinterp raises on purpose, and the exit code each one ends the process with.

MlinterpError
├── SpecError            2  a spec, project file or command line is wrong; nothing was run
├── EnvironmentFault     3  something outside is missing or too small (a model, an extra, disk space)
├── VerificationError    4  data does not match its digest, its schema or its declared shape
├── UnsafeError          5  a file or path was refused because opening it could harm
├── TrackingError        6  the results are complete but the tracking store could not be reached
├── ExperimentError      7  the experiment cannot answer on this input (no active latent, one group only)
└── PromotionError       8  an SAE did not get an alias: a gate was not passed, or another promotion came first

Interrupted            128+n  a signal asked the process to stop; a BaseException, so that no handler swallows it
Anything else            1  a bug of ours
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any


class MlinterpError(Exception):
    """An expected failure: printed as one line, ends the process with `exit_code`."""

    exit_code = 1


class SpecError(MlinterpError):
    """A declared thing is wrong.

    The message has one shape: `file:line: field: what is wrong, with the value; what is allowed; did you mean 'x'?`
    """

    exit_code = 2

    def __init__(
        self,
        problem: str,
        *,
        field: str | None = None,
        allowed: str | None = None,
        nearest: str | None = None,
        file: str | None = None,
        line: int | None = None,
    ) -> None:
        self.problem, self.field, self.allowed, self.nearest = problem, field, allowed, nearest
        self.file, self.line = file, line
        super().__init__(problem)

    def __str__(self) -> str:
        place = self.file or ""
        if self.file and self.line is not None:
            place = f"{self.file}:{self.line}"
        text = ": ".join(part for part in (place, self.field, self.problem) if part)
        if self.allowed:
            text += f"; {self.allowed}"
        if self.nearest:
            text += f"; did you mean '{self.nearest}'?"
        return text

    def at(self, file: str | None, line: int | None = None) -> SpecError:
        """Return the same error with its place filled in where it was unknown."""
        return SpecError(
            self.problem,
            field=self.field,
            allowed=self.allowed,
            nearest=self.nearest,
            file=self.file or file,
            line=self.line if self.line is not None else line,
        )


class EnvironmentFault(MlinterpError):  # noqa: N818 - EnvironmentError is a builtin
    """Something outside mlinterp is missing or too small."""

    exit_code = 3


class VerificationError(MlinterpError):
    """Data does not match its digest, its schema or its declared shape."""

    exit_code = 4


class UnsafeError(MlinterpError):
    """A file or a path was refused because opening it could harm."""

    exit_code = 5


class TrackingError(MlinterpError):
    """The tracking store could not be reached."""

    exit_code = 6


class ExperimentError(MlinterpError):
    """The experiment cannot answer its question on this input."""

    exit_code = 7


class PromotionError(MlinterpError):
    """An SAE did not get an alias. Nothing was moved, and the attempt is recorded. `outcomes` are those of its gates."""

    exit_code = 8

    def __init__(self, message: str, outcomes: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.outcomes = tuple(outcomes)


class Interrupted(BaseException):
    """A signal asked the process to stop."""

    def __init__(self, signum: int) -> None:
        self.signum = signum
        self.exit_code = 128 + signum
        super().__init__(f"stopped by signal {signum}")


def nearest(value: str, allowed: Iterable[str]) -> str | None:
    """Return the allowed name closest to `value`, or None where none is close.

    >>> nearest("tpok", ["relu-l1", "topk", "batchtopk"])
    'topk'
    """
    found = difflib.get_close_matches(str(value), [str(name) for name in allowed], n=1, cutoff=0.5)
    return found[0] if found else None


def unknown(field: str, value: str, allowed: Iterable[str], *, what: str = "name") -> SpecError:
    """Build the SpecError for a name that is not among the allowed ones."""
    names = [str(name) for name in allowed]
    return SpecError(
        f"unknown {what} '{value}'",
        field=field,
        allowed=f"allowed: {listed(names)}" if names else "none is defined",
        nearest=nearest(value, names),
    )


def listed(names: Sequence[str], width: int = 120) -> str:
    """Return names with commas between, no more than fit into so many characters: the nearest one comes last, and must not be cut off.

    >>> listed(["power", "speed", "shield"], width=14)
    'power, speed, …'
    """
    shown: list[str] = []
    for name in names:
        if shown and len(", ".join([*shown, name])) > width:
            break
        shown.append(name)
    return ", ".join(shown) + (", …" if len(shown) < len(names) else "")
