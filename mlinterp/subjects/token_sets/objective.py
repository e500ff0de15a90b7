"""How a token-set subject is trained: mean cross-entropy of the package's targets, each training context once an epoch.

Dropout, where a project's own network has it, stays off: the loss of step k depends on the weights and (seed, k)
alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mlinterp.determinism import numpy_stream
from mlinterp.estimates import PerExample
from mlinterp.subjects.token_sets.config import TokenSetFitOptions
from mlinterp.subjects.token_sets.package import DataPackage
from mlinterp.subjects.token_sets.table import ContextTable

_SCORED_AT_ONCE = 4096

Answered = tuple[ContextTable, np.ndarray]
"""Contexts and the right output of each, int64 `[n]`."""


class TokenSetObjective:
    """Trains `module` on `train` and scores it on `held_out` (see `subjects.base.Objective`).

    Args:
        module: the parameters; thawed here.
        logits: the module's logits `[n, n_outputs]` of encoded contexts.
        package: encodes contexts.
        train: what is learned.
        held_out: what is scored.
    """

    def __init__(
        self,
        module: nn.Module,
        logits: Callable[[np.ndarray], Tensor],
        package: DataPackage,
        train: Answered,
        held_out: Answered,
        options: TokenSetFitOptions,
        seed: int,
    ) -> None:
        self.module: nn.Module = module.requires_grad_(True)
        self.optimizer: Mapping[str, Any] = options.model_dump(exclude={"batch_size", "eval_contexts"})
        self.logits, self.package, self.train, self.held_out, self.seed = logits, package, train, held_out, seed
        self.batch_size = min(options.batch_size, len(train[0]))
        self._order: tuple[int, np.ndarray] = (-1, np.zeros(0, dtype=np.int64))

    def rows(self, step: int) -> np.ndarray:
        """Return the contexts of a step. An epoch visits every one once, in its own order; a rest smaller than a batch is left out."""
        n = len(self.train[0])
        epoch, at = divmod(step, n // self.batch_size)
        if self._order[0] != epoch:
            self._order = (epoch, numpy_stream(self.seed, "epoch", epoch).permutation(n))
        return self._order[1][at * self.batch_size : (at + 1) * self.batch_size]

    def loss(self, step: int) -> tuple[Tensor, Mapping[str, float]]:
        """Return the mean cross-entropy (nats a context) of step `step`."""
        self.module.eval()
        table, targets = self.train
        rows = self.rows(step)
        logits = self.logits(self.package.encode(table.take(rows)))
        return cross_entropy(logits.float(), torch.from_numpy(targets[rows]).to(logits.device)), {}

    def carry(self) -> dict[str, Tensor]:
        """Return nothing: every step stands alone."""
        return {}

    def load_carry(self, carry: Mapping[str, Tensor]) -> None:
        """Take over nothing."""

    def evaluate(self) -> dict[str, float]:
        """Return the means of `scores`."""
        return {name: score.value for name, score in self.scores().items()}

    @torch.no_grad()
    def scores(self) -> dict[str, PerExample]:
        """Return `ce_loss` (nats a context) and `accuracy` (the likeliest output is the right one) as what each held-out context adds."""
        self.module.eval()
        table, targets = self.held_out
        losses, right = [], []
        for start in range(0, len(table), _SCORED_AT_ONCE):
            at = slice(start, start + _SCORED_AT_ONCE)
            logits = self.logits(self.package.encode(table.take(at))).double().cpu()
            wanted = torch.from_numpy(targets[at])
            losses.append(cross_entropy(logits, wanted, reduction="none").numpy())
            right.append((logits.argmax(dim=1) == wanted).double().numpy())
        each = np.ones(len(table))
        return {
            "ce_loss": PerExample(np.concatenate(losses), each),
            "accuracy": PerExample(np.concatenate(right), each, is_share=True),
        }
