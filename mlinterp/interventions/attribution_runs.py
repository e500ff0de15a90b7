"""What runs of prompt pairs are read by: a metric at the answer positions, and batches that are halved until they fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from mlinterp.errors import EnvironmentFault
from mlinterp.interventions.metrics import Metric, Token
from mlinterp.subjects.pairs import NO_TOKEN, Pairs

Item = TypeVar("Item")
Found = TypeVar("Found")


def tokens_asked(pairs: Pairs, metric: Metric, device: torch.device) -> Tensor:
    """Return each pair's answer and wrong answer, int64 `[pair, 2]`. Raises SpecError for a pair that lacks one that the metric needs."""
    missing: dict[Token, str | None] = {}
    for name in metric.needs:
        without = (getattr(pairs, name) == NO_TOKEN).nonzero()[:, 0].tolist()
        missing[name] = pairs.ids[without[0]] if without else None
    metric.require(missing)
    return torch.stack([pairs.answer, pairs.wrong], dim=1).to(device)


def measured(metric: Metric, logits: Tensor, clean: Tensor, tokens: Tensor) -> Tensor:
    """Return the metric of each row, `[row]`.

    Args:
        metric: what is read.
        logits: at the answer positions, `[row, vocab]`; of the two tokens alone, `[row, 2]`, where the metric reads no others.
        clean: the clean run's, `[row, vocab]`.
        tokens: answer and wrong answer, int64 `[row, 2]`.
    """
    answer, wrong = tokens.unbind(dim=1)
    if not metric.named_only:
        return metric.measure(logits, clean, answer, wrong)
    both = logits if logits.shape[1] == 2 != clean.shape[1] else logits.gather(1, tokens)
    return metric.measure(both, clean.gather(1, tokens), torch.zeros_like(answer), torch.ones_like(wrong))


def at_answers(logits: Tensor, columns: Tensor) -> Tensor:
    """Return `[row, vocab]` of logits `[row, pos, vocab]`, in float32 at least; logits of one position are those of the answer already."""
    at = columns.to(logits.device) if logits.shape[1] > 1 else torch.zeros_like(columns, device=logits.device)
    found = logits[torch.arange(len(at), device=logits.device), at]
    return found.to(torch.promote_types(found.dtype, torch.float32))


@contextmanager
def answers_only(head: nn.Module | None, columns: Tensor) -> Iterator[None]:
    """Let the unembedding read the answer positions alone as long as the block lasts, int64 `[row]`; nothing changes where it is None."""

    def cut(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        stream = args[0]
        return (stream[torch.arange(len(columns), device=stream.device), columns.to(stream.device)][:, None], *args[1:])

    with ExitStack() as hooks:
        if head is not None:
            hooks.callback(head.register_forward_pre_hook(cut).remove)
        yield


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
