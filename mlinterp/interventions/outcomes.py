"""What a forward pass answered, example by example."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mlinterp.errors import ExperimentError
from mlinterp.subjects.base import Batch, Outputs

VALUES = ("exact", "token_acc", "margin", "log_prob", "kl", "halt_step", "q_right")
"""Columns of `outcome_values`: NaN where a subject has none."""

_ELEMENTS = 2**24
"""Logits turned into float64 at a time."""


@dataclass(frozen=True)
class Answer:
    """What is kept of a baseline forward pass to compare others with it.

    Attributes:
        logits: at the scored positions, `[scored, vocab]`, as the model gave them.
        preds: most likely token at every position, int64 `[batch, pos]` (CPU).
        step_preds: the same after each supervision step, `[sup_step, batch, pos]` (CPU); no steps for feed-forward subjects.
    """

    logits: Tensor
    preds: Tensor
    step_preds: Tensor


def read_answer(batch: Batch, outputs: Outputs) -> Answer:
    """Return what later comparisons need. Raises ExperimentError for logits that are NaN or infinite."""
    logits = outputs.logits[batch.scored.to(outputs.logits.device)]
    if not bool(torch.isfinite(logits).all()):
        raise ExperimentError(f"the model's logits are NaN or infinite (batch beginning with example {batch.ids[0]})")
    preds = outputs.logits.argmax(dim=-1).cpu()
    steps = torch.empty(0, *preds.shape, dtype=torch.long) if outputs.step_preds is None else outputs.step_preds.cpu()
    return Answer(logits, preds, steps)


def outcome_values(batch: Batch, outputs: Outputs, answer: Answer, baseline: Answer) -> Tensor:
    """Return float64 `[batch, len(VALUES)]` (CPU).

    `exact`: every scored position right. `token_acc`: share right. Means over scored positions: `margin`, logit of the right
    token minus the largest other logit; `log_prob` of the right token in nats; `kl`, KL(baseline || this) in nats.
    `halt_step`: first supervision step with a positive halting logit, the last one where none is; `q_right`: whether the last
    halting logit's sign says if the answer is right.
    """
    scored = batch.scored
    truth = batch.targets[scored].to(answer.logits.device)
    counts = scored.sum(dim=1)

    def per_example(values: Tensor) -> Tensor:
        dense = torch.zeros(scored.shape, dtype=torch.float64)
        dense[scored] = values.double().cpu()
        return dense.sum(dim=1) / counts

    parts = [_per_position(*part) for part in _parts(answer.logits, baseline.logits, truth)]
    margin, log_prob, kl = (torch.cat(columns) for columns in zip(*parts, strict=True))
    right = answer.preds == batch.targets
    exact = (right | ~scored).all(dim=1).double()
    columns = [exact, per_example(right[scored]), per_example(margin), per_example(log_prob), per_example(kl), *_halting(outputs, exact)]
    return torch.stack(columns, dim=1)


def _parts(logits: Tensor, baseline: Tensor, truth: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    size = max(1, _ELEMENTS // logits.shape[-1])
    return zip(logits.split(size), baseline.split(size), truth.split(size), strict=True)


def _per_position(logits: Tensor, baseline: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    logits, baseline, at = logits.double(), baseline.double(), truth[:, None]
    margin = (logits.gather(1, at) - logits.scatter(1, at, float("-inf")).amax(dim=1, keepdim=True))[:, 0]
    log_p, log_q = baseline.log_softmax(dim=-1), logits.log_softmax(dim=-1)
    return margin, log_q.gather(1, at)[:, 0], (log_p.exp() * (log_p - log_q)).sum(dim=-1)


def _halting(outputs: Outputs, exact: Tensor) -> list[Tensor]:
    if outputs.q_halt is None:
        undefined = torch.full_like(exact, float("nan"))
        return [undefined, undefined]
    halts = outputs.q_halt.cpu() > 0
    last = torch.full_like(exact, len(halts) - 1)
    first = torch.where(halts.any(dim=0), halts.int().argmax(dim=0).double(), last)
    return [first, (halts[-1] == exact.bool()).double()]
