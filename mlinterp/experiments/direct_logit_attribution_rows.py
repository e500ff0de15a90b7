"""Which logits are taken apart: a position of an example, the token whose logit it is, and the token that it is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mlinterp.determinism import numpy_stream
from mlinterp.interventions.logit_attribution import Attribution, Attributor
from mlinterp.interventions.prompts import Asked
from mlinterp.subjects.base import IGNORED, Examples, Subject


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
    """Return the rows of a spec; positions without a target are none where targets are asked for."""
    examples = reading.examples
    whole = examples.take(range(len(examples)))
    chosen = subject.positions(whole, positions)[:, subject.n_prefix :]
    if answer == "target":
        chosen = chosen & whole.scored
    answers, rivals = [], []
    for start, batch in zip(range(0, len(examples), batch_size), examples.batches(batch_size), strict=True):
        here = chosen[start : start + len(batch)]
        outputs = subject.forward(batch)
        assert outputs is not None
        logits = outputs.logits[here].float().cpu()
        own = batch.targets[here] if answer == "target" else logits.argmax(dim=-1)
        answers.append(own)
        rivals.append(logits.scatter(1, own[:, None], -torch.inf).argmax(dim=-1))
    given = reading.wrong[chosen]
    wrong = torch.where(given == IGNORED, torch.cat(rivals), given) if of == "logit_diff" else None
    return LogitRows(chosen, torch.cat(answers), wrong)


def taken_apart(attributor: Attributor, examples: Examples, rows: LogitRows, batch_size: int, seed: int) -> tuple[Attribution, Tensor]:
    """Return the terms of every row, and the terms `[row, term]` of another row's answer in its place, NaN where all answers are alike."""
    other = another_answer(rows.answer, seed)
    own, others, done = [], [], 0
    for start, batch in zip(range(0, len(examples), batch_size), examples.batches(batch_size), strict=True):
        here = rows.chosen[start : start + len(batch)]
        at = torch.arange(done, done + int(here.sum()))
        done += len(at)
        if not len(at):
            continue
        of_other = other[at].clamp_min(0)
        own.append(attributor.attribute(batch, here, rows.answer[at], None if rows.wrong is None else rows.wrong[at]))
        control = attributor.attribute(batch, here, rows.answer[of_other], None if rows.wrong is None else rows.wrong[of_other])
        others.append(torch.where(other[at, None] < 0, torch.nan, control.values))
    return Attribution(torch.cat([each.values for each in own]), torch.cat([each.logit for each in own])), torch.cat(others)


def another_answer(answers: Tensor, seed: int) -> Tensor:
    """Return for each row a row with another answer, drawn by the seed, int64 `[row]`; -1 where there is none."""
    rng, found = numpy_stream(seed, "another answer"), torch.full_like(answers, -1)
    for token in answers.unique().tolist():
        same, different = (answers == token).nonzero()[:, 0], (answers != token).nonzero()[:, 0]
        if len(different):
            found[same] = different[torch.from_numpy(rng.integers(0, len(different), size=len(same)))]
    return found
