"""A latent's direction written into the running model, and what that does to the logits."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mlinterp.subjects.base import Address
from mlinterp.subjects.token_sets.table import ContextTable
from mlinterp.token_sets.feature import LatentReader

_CHUNK = 1024
"""Contexts in a forward pass; bounds memory."""


@torch.inference_mode()
def raised(reader: LatentReader, contexts: ContextTable, amount: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Return the change of the logits where a direction is added at the site that the latents read, float64 `[n, n_outputs]`.

    Everything else at the site stays, what the SAE cannot reconstruct too.

    Args:
        reader: the model and its site.
        contexts: where it is added.
        amount: how much of it in each context, `[n]`.
        direction: `[d]`.
    """
    found = []
    for start in range(0, len(contexts), _CHUNK):
        rows = slice(start, start + _CHUNK)
        added = torch.from_numpy(amount[rows, None] * direction[None])
        batch = reader.subject.batch_of(contexts.take(rows))

        def write(_address: Address, h: Tensor, added: Tensor = added) -> Tensor:
            return h + added.to(h.device, h.dtype)[:, None]

        before, after = reader.subject.forward(batch), reader.subject.forward(batch, write, [reader.site])
        assert before is not None
        assert after is not None
        found.append((after.logits[:, 0].double() - before.logits[:, 0].double()).cpu().numpy())
    return np.concatenate(found)
