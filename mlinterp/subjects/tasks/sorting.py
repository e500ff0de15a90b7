"""Sorting: the input is `length` numbers below `numbers`, repeats allowed; the target is the same numbers in ascending order."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from mlinterp.subjects.tasks.base import Ints, Split, Task, TaskOptions, in_split


class SortOptions(TaskOptions):
    """Which sequences are drawn."""

    name: Literal["sort"]
    length: int = Field(10, ge=2, le=64, description="numbers in a sequence")
    numbers: int = Field(16, ge=2, le=256, description="numbers to draw from: 0 to `numbers` - 1")


class Sort(Task):
    """Sort a sequence. Splits share no sorted sequence."""

    Options: ClassVar[type[TaskOptions]] = SortOptions
    name = "sort"

    def __init__(self, options: SortOptions) -> None:
        super().__init__(options)
        self.length = options.length
        self.vocab = options.numbers

    def _draw(self, split: Split, rng: np.random.Generator, n: int) -> tuple[Ints, Ints]:
        inputs = rng.integers(self.vocab, size=(n, self.length))
        targets = np.sort(inputs, axis=1)
        mine = in_split(targets, split)
        return inputs[mine], targets[mine]

    def token_text(self, token: int) -> str:
        """Return the number."""
        return str(token)

    def render(self, tokens: Ints) -> str:
        """Return the numbers in one line."""
        return " ".join(str(int(token)) for token in tokens)
