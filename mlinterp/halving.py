"""Batches that are halved until they fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from mlinterp.errors import EnvironmentFault

Item = TypeVar("Item")
Found = TypeVar("Found")


def halved(items: Sequence[Item], run: Callable[[Sequence[Item]], Found], what: str) -> Iterator[Found]:
    """Yield what `run` makes of items, in order: of all of them at once, or in halves where they do not fit in memory."""
    try:
        found = run(items)
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        if len(items) == 1:
            raise EnvironmentFault(f"not even one {what} fits in memory") from error
    else:
        yield found
        return
    middle = len(items) // 2
    yield from halved(items[:middle], run, what)
    yield from halved(items[middle:], run, what)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that something did not fit in memory."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error)
