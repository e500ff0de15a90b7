"""What runs of prompt pairs are read by: a metric at the answer positions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from mlinterp.patching.metrics import Metric, Token
from mlinterp.subjects.pairs import NO_TOKEN, Pairs


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
