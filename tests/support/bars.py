"""A reporter that adds up what its bars are told."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from mlinterp.progress import Silent, Task


class Bars(Silent):
    """Knows of every bar how much it was to be told, and how much it was."""

    def __init__(self) -> None:
        self.asked: dict[str, float] = {}
        self.told: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def task(self, description: str, total: float) -> Iterator[Task]:
        self.asked[description] = total
        told = self.told

        class Bar:
            def advance(self, amount: float = 1, note: str = "") -> None:
                told[description] += amount

        yield Bar()
