"""Which logits are taken apart: a position of an example, the token whose logit it is, and the token that it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from mlinterp.halving import halved
from mlinterp.readouts.logit_attribution import Attribution, Attributor
from mlinterp.readouts.prompts import Asked
from mlinterp.subjects.base import IGNORED, Examples, Subject

Found = TypeVar("Found")


class LogitRows(NamedTuple):
    """Logits, one a row."""

    chosen: Tensor
    """Which positions are rows, bool `[example, pos]`; rows go through it example by example."""
    answer: Tensor
    """Whose logit, int64 `[row]`."""
    wrong: Tensor | None
    """The token whose logit is taken away, int64 `[row]`; None for plain logits."""

    def __len__(self) -> int:
        return len(self.answer)

    @property
    def example(self) -> np.ndarray:
        """Which example each row is of, int64 `[row]`."""
        return self.chosen.nonzero()[:, 0].numpy()


@torch.no_grad()
def chosen_rows(
    subject: Subject,
    reading: Asked,
    positions: str | Sequence[int],
    answer: Literal["target", "model"],
    of: Literal["logit", "logit_diff"],
    batch_size: int,
) -> LogitRows:
    """Return the rows of a spec; positions without a target are none where targets are asked for.

    A batch that does not fit in memory is halved.
    """
    examples = reading.examples
    whole = examples.take(range(len(examples)))
    chosen = subject.positions(whole, positions)[:, subject.n_prefix :]
    if answer == "target":
        chosen = chosen & whole.scored

    def best(numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        batch, here = examples.take(numbers), chosen[numbers[0] : numbers[-1] + 1]
        outputs = subject.forward(batch)
        assert outputs is not None
        logits = outputs.logits[here].float().cpu()
        own = batch.targets[here] if answer == "target" else logits.argmax(dim=-1)
        return own, logits.scatter(1, own[:, None], -torch.inf).argmax(dim=-1)

    own_answers, rivals = map(torch.cat, zip(*_in_batches(len(examples), batch_size, best), strict=True))
    given = reading.wrong[chosen]
    none_given = (given == IGNORED) | (given == own_answers)  # the model's own answer may be the wrong one: less itself it would be zero
    return LogitRows(chosen, own_answers, torch.where(none_given, rivals, given) if of == "logit_diff" else None)


def taken_apart(attributor: Attributor, examples: Examples, rows: LogitRows, batch_size: int) -> Attribution:
    """Return the terms of every row, and beside them those towards the answers of all rows, NaN where all answers are alike.

    A batch that does not fit in memory is halved.
    """
    every, example = attributor.towards_all(rows.answer, rows.wrong), torch.from_numpy(rows.example)

    def apart(numbers: Sequence[int]) -> Attribution | None:
        batch, here = examples.take(numbers), rows.chosen[numbers[0] : numbers[-1] + 1]
        at = ((example >= numbers[0]) & (example <= numbers[-1])).nonzero()[:, 0]
        if not len(at):
            return None
        return attributor.attribute(batch, here, rows.answer[at], None if rows.wrong is None else rows.wrong[at], every)

    parts = [part for part in _in_batches(len(examples), batch_size, apart) if part is not None]
    found = Attribution(*map(torch.cat, zip(*parts, strict=True)))
    return found if len(rows.answer.unique()) > 1 else found._replace(beside=torch.full_like(found.beside, torch.nan))


def _in_batches(n: int, batch_size: int, run: Callable[[Sequence[int]], Found]) -> Iterator[Found]:
    for start in range(0, n, batch_size):
        yield from halved(range(start, min(start + batch_size, n)), run, "example")
