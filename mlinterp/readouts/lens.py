"""What each layer's residual stream would answer if it were read out at once (nostalgebraist 2020, "interpreting GPT: the logit lens").

The stream after a layer goes through the model's own final norm and unembedding. Nothing is edited: every number is observational.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from mlinterp.estimates import PerExample
from mlinterp.halving import halved
from mlinterp.readouts.reading import Readout, require_finite, states_of
from mlinterp.subjects.base import IGNORED, Batch, Examples, Subject

Reading = Callable[[str, Tensor], Tensor]
"""From a layer's hook point and its stream `[batch, pos, d]` to logits `[batch, pos, vocab]`."""


class Answers(NamedTuple):
    """What one layer would answer at the chosen positions (rows), beside what the model answers in the end."""

    kl: np.ndarray
    """KL(final ‖ layer) in nats, float64 `[row]`."""
    agrees: np.ndarray
    """Whether the layer's top token is the final one, bool `[row]`."""
    top: np.ndarray
    """The layer's likeliest tokens, int64 `[row, k]`."""
    top_prob: np.ndarray
    """Their probabilities, float64 `[row, k]`."""
    final_prob: np.ndarray
    """Probability of the model's own final token, float64 `[row]`."""
    final_rank: np.ndarray
    """Its rank, 1 for the likeliest, int64 `[row]`."""
    target_prob: np.ndarray
    """Probability of the target, float64 `[row]`; NaN where nothing is scored."""
    target_rank: np.ndarray
    """The target's rank, float64 `[row]`; NaN where nothing is scored."""


class Rows(NamedTuple):
    """The chosen positions, example by example."""

    example: np.ndarray
    """Which example, int64 `[row]`."""
    position: np.ndarray
    """Which of its tokens, counted from the first real one, int64 `[row]`."""
    token: np.ndarray
    """The token there, int64 `[row]`."""
    final: np.ndarray
    """The model's own top token, int64 `[row]`."""
    target: np.ndarray
    """The target, int64 `[row]`; `IGNORED` where nothing is scored."""

    def per_example(self, values: np.ndarray, n: int, *, is_share: bool = False) -> PerExample:
        """Return the mean of `values [row]` as what each of `n` examples adds; rows without a number count for nothing."""
        known = np.isfinite(values)
        total = np.bincount(self.example[known], weights=values[known].astype(float), minlength=n)
        return PerExample(total, np.bincount(self.example[known], minlength=n).astype(float), is_share)


Parts = TypeVar("Parts", Rows, Answers)


def plain(readout: Readout) -> Reading:
    """Return the logit lens itself: every layer through the same readout."""
    return lambda _site, stream: readout.logits(stream)


@torch.no_grad()
def look(
    subject: Subject, readout: Readout, reading: Reading, examples: Examples, positions: str | Sequence[int], top_k: int, batch_size: int
) -> tuple[Rows, dict[str, Answers]]:
    """Return the chosen rows and what each layer would answer there, by the layer's name.

    A batch that does not fit in memory is halved.
    """
    rows: list[Rows] = []
    found: dict[str, list[Answers]] = {name: [] for name in readout.names}

    def looked(numbers: Sequence[int]) -> tuple[Rows, dict[str, Answers]]:
        batch = examples.take(numbers)
        chosen = subject.positions(batch, positions)[:, subject.n_prefix :]
        states, logits = states_of(subject, batch, readout.sites)
        # Layers are read out in the shape in which the model reads out its last: the same rows, the same bits.
        require_finite(subject, logits[chosen])
        final = logits[chosen].float().log_softmax(dim=-1)
        return _rows(batch, chosen, final, numbers[0]), {
            name: answers(reading(site, states[site])[chosen].float(), final, batch.targets[chosen], top_k) for name, site in readout.layers
        }

    for start in range(0, len(examples), batch_size):
        for some, layers in halved(range(start, min(start + batch_size, len(examples))), looked, "example"):
            rows.append(some)
            for name, layer in layers.items():
                found[name].append(layer)
    return _joined(rows), {name: _joined(parts) for name, parts in found.items()}


def answers(logits: Tensor, final: Tensor, targets: Tensor, top_k: int) -> Answers:
    """Return what logits `[row, vocab]` say, beside the final log-probabilities `[row, vocab]` and targets `[row]`."""
    log_probs = logits.log_softmax(dim=-1)
    kl = (final.exp() * (final - log_probs)).sum(dim=-1)
    top_prob, top = log_probs.topk(min(top_k, logits.shape[-1]), dim=-1)
    likeliest, token = log_probs.argmax(dim=-1), final.argmax(dim=-1)
    # Of equally likely tokens, common in bfloat16, topk picks any and argmax the first: the two readings must pick alike.
    top = torch.cat([likeliest[:, None], torch.where(top == likeliest[:, None], top[:, :1], top)[:, 1:]], dim=1)
    known = (targets != IGNORED).numpy()
    target_prob, target_rank = _place(log_probs, targets.clamp_min(0).to(logits.device))
    final_prob, final_rank = _place(log_probs, token)
    return Answers(
        kl.double().cpu().numpy(),
        (likeliest == token).cpu().numpy(),
        top.cpu().numpy(),
        top_prob.double().exp().cpu().numpy(),
        final_prob,
        final_rank,
        np.where(known, target_prob, np.nan),
        np.where(known, target_rank, np.nan),
    )


def _place(log_probs: Tensor, tokens: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return a token's probability and rank in each row; tokens that are as likely share the better rank."""
    own = log_probs.gather(1, tokens[:, None])
    return own[:, 0].double().exp().cpu().numpy(), (1 + (log_probs > own).sum(dim=1)).cpu().numpy()


def _rows(batch: Batch, chosen: Tensor, final: Tensor, start: int) -> Rows:
    example, column = chosen.nonzero(as_tuple=True)
    first = batch.mask.int().argmax(dim=1)
    return Rows(
        (start + example).numpy(),
        (column - first[example]).numpy(),
        batch.inputs[chosen].numpy(),
        final.argmax(dim=-1).cpu().numpy(),
        batch.targets[chosen].numpy(),
    )


def _joined(parts: Sequence[Parts]) -> Parts:
    return type(parts[0])(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def settled(layers: Sequence[Answers]) -> np.ndarray:
    """Return the number of the first layer from which on every layer's top token is the final one, float64 `[row]`."""
    agrees = np.array([each.agrees for each in layers])
    return len(layers) - np.cumprod(agrees[::-1], axis=0).sum(axis=0).astype(float)


def chance_agreement(rows: Rows, layer: Answers) -> float:
    """Return how often a layer's top token would be the final one if its answers were dealt out to other rows at random."""
    tokens, counts = np.unique(rows.final, return_counts=True)
    how_often = dict(zip(tokens.tolist(), counts.tolist(), strict=True))
    return float(sum(how_often.get(token, 0) for token in layer.top[:, 0].tolist()) / len(rows.final) ** 2)
