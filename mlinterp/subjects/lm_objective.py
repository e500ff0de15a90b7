"""How a language model is trained: mean cross-entropy of the scored tokens, each training context once an epoch.

A model that reads both ways is trained on hidden tokens, every other one on the next token. Dropout stays off, so the loss of
step k depends on the weights and (seed, k) alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mlinterp.determinism import numpy_stream
from mlinterp.errors import SpecError, nearest
from mlinterp.estimates import PerExample
from mlinterp.subjects.base import Batch, Examples


class LmOptions(BaseModel):
    """Settings of a language model's training."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    batch_size: int = Field(32, ge=1, le=65_536, description="contexts a step")
    lr: float = Field(1e-3, gt=0, description="learning rate after the warm-up")
    betas: list[float] = Field([0.9, 0.95], min_length=2, max_length=2, description="decay of AdamW's two moments")
    weight_decay: float = Field(0.1, ge=0, description="AdamW's weight decay")
    warmup_steps: int = Field(100, ge=0, description="steps over which the learning rate grows linearly")
    grad_clip: float = Field(1.0, gt=0, description="largest norm of a step's gradient")
    ema: float | None = Field(None, gt=0, lt=1, description="decay of the averaged weights, which are then the ones scored and kept")
    eval_contexts: int = Field(256, ge=1, description="held-out contexts in a score")

    @classmethod
    def read(cls, options: Mapping[str, Any]) -> LmOptions:
        """Check options. Raises SpecError for the first thing wrong."""
        try:
            return cls.model_validate(dict(options))
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0])
            if first["type"] == "extra_forbidden":
                raise SpecError(f"unknown option '{name}'", field="variables.options", nearest=nearest(name, cls.model_fields)) from None
            raise SpecError(f"{first['msg']}, not {first['input']!r}", field=f"variables.options.{name}") from None


class LmObjective:
    """Trains `module` on the contexts of `train` and scores it on `held_out` (see `subjects.base.Objective`).

    Args:
        module: the parameters; thawed here.
        logits: the module's logits `[batch, pos, vocab]` for a batch.
        train: what is learned.
        held_out: contexts of other files, as they are scored.
        prepare: changes a training batch as step k wants it; the identity for next-token prediction.
    """

    def __init__(
        self,
        module: nn.Module,
        logits: Callable[[Batch], Tensor],
        train: Examples,
        held_out: Examples,
        options: LmOptions,
        seed: int,
        prepare: Callable[[Batch, int], Batch] = lambda batch, _step: batch,
    ) -> None:
        self.module: nn.Module = module.requires_grad_(True)
        self.optimizer: Mapping[str, Any] = options.model_dump(exclude={"eval_contexts"})
        self.logits, self.train, self.prepare, self.seed = logits, train, prepare, seed
        self.held_out = held_out
        self.batch_size = min(options.batch_size, len(train))
        self._order: tuple[int, list[int]] = (-1, [])

    def batch(self, step: int) -> Batch:
        """Return the batch of a step. An epoch visits every context once, in its own order; a rest smaller than a batch is left out."""
        a_epoch = len(self.train) // self.batch_size
        epoch, at = divmod(step, a_epoch)
        if self._order[0] != epoch:
            self._order = (epoch, numpy_stream(self.seed, "epoch", epoch).permutation(len(self.train)).tolist())
        rows = self._order[1][at * self.batch_size : (at + 1) * self.batch_size]
        return self.prepare(self.train.take(rows), step)

    def loss(self, step: int) -> tuple[Tensor, Mapping[str, float]]:
        """Return the mean cross-entropy (nats a scored token) of step `step`."""
        self.module.eval()
        batch = self.batch(step)
        logits = self.logits(batch)
        scored = batch.scored.to(logits.device)
        loss = cross_entropy(logits[scored].float(), batch.targets.to(logits.device)[scored])
        return loss, {}

    def carry(self) -> dict[str, Tensor]:
        """Return nothing: every step stands alone."""
        return {}

    def load_carry(self, carry: Mapping[str, Tensor]) -> None:
        """Take over nothing."""

    def evaluate(self) -> dict[str, float]:
        """Return `ce_loss` (nats a token), `perplexity` and `token_acc` over the held-out contexts."""
        means = {name: score.value for name, score in self.scores().items()}
        return {"ce_loss": means["ce_loss"], "perplexity": math.exp(min(means["ce_loss"], 700.0)), "token_acc": means["token_acc"]}

    @torch.no_grad()
    def scores(self) -> dict[str, PerExample]:
        """Return `ce_loss` and `token_acc` as what each held-out context adds."""
        self.module.eval()
        sums = []
        for batch in self.held_out.batches(self.batch_size):
            logits = self.logits(batch)
            scored = batch.scored.to(logits.device)
            answers, targets = logits[scored].float(), batch.targets.to(logits.device)[scored]
            added = torch.stack(
                [cross_entropy(answers, targets, reduction="none"), answers.argmax(dim=-1) == targets, torch.ones(len(targets)).to(answers)]
            )
            each = torch.zeros(3, len(scored), dtype=torch.float64, device=logits.device)
            sums.append(each.index_add_(1, scored.nonzero()[:, 0], added.double()).cpu().numpy())
        loss, right, count = np.concatenate(sums, axis=1)
        return {"ce_loss": PerExample(loss, count), "token_acc": PerExample(right, count, is_share=True)}
