"""What long work says while it runs: step metrics and progress bars.

An experiment only knows a `Reporter`. Who listens (a terminal, MLflow, nobody) is decided above.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[float], None]
"""Told how much more of some work is done."""


def unheard(_amount: float) -> None:
    """Be told of progress, and tell nobody."""


class Task(Protocol):
    """One bar of progress."""

    def advance(self, amount: float = 1, note: str = "") -> None:
        """Move on by `amount`; `note` is a short text shown beside the bar, such as the current loss."""


class Reporter(Protocol):
    """Where step metrics and progress go."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Record numbers of one step, named `stage/name`."""

    def task(self, description: str, total: float) -> AbstractContextManager[Task]:
        """Open a bar of `total` units; use as a context manager."""

    def flush(self) -> None:
        """Make the numbers so far durable: a checkpoint follows, and what resumes from it repeats no earlier step."""


class _SilentTask:
    def advance(self, amount: float = 1, note: str = "") -> None:
        pass


class Silent:
    """A Reporter that says nothing."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Drop the numbers."""

    @contextmanager
    def task(self, description: str, total: float) -> Iterator[Task]:
        """Open a bar that nobody sees."""
        yield _SilentTask()

    def flush(self) -> None:
        """Have nothing to keep."""
