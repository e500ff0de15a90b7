"""How much a head does one of five simple things, read off its attention on random tokens that repeat.

A sequence is a period of L random tokens, all different, several times over. With A[i, j] what position i (counted from the first
random token) pays to j, the scores are means over the positions i named:

    induction         A[i, i − L + 1]   i ≥ L    the token after the earlier one like this (Olsson et al. 2022)
    previous_token    A[i, i − 1]       i ≥ 1
    duplicate_token   A[i, i − L]       i ≥ L    the earlier token like this
    first_token       A[i, first]       i ≥ 1    the very first token, special ones included
    current_token     A[i, i]           i ≥ 1
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mlinterp.determinism import numpy_stream
from mlinterp.halving import halved
from mlinterp.readouts.attention_patterns import Attention
from mlinterp.readouts.reading import require_finite
from mlinterp.subjects.base import IGNORED, Batch

KINDS = ("induction", "previous_token", "duplicate_token", "first_token", "current_token")
ON_REPEATS = ("induction", "duplicate_token")
"""Scores that mean nothing where tokens do not repeat: on such tokens they are their own control."""


class Sequences(NamedTuple):
    """Random tokens.

    Attributes:
        inputs: int64 `[sequence, n_prefix + repeats * period]`.
        n_prefix: special tokens at the start of each.
        period: L.
    """

    inputs: Tensor
    n_prefix: int
    period: int


def draw(tokens: Sequence[int], prefix: Sequence[int], n: int, period: int, repeats: int, seed: int, *, repeat: bool = True) -> Sequences:
    """Return `n` random sequences, a pure function of the arguments; without `repeat` every period is drawn anew after the first."""
    rng, fresh = numpy_stream(seed, "repeated tokens"), numpy_stream(seed, "fresh tokens")
    rows = []
    for _ in range(n):
        first = rng.choice(tokens, period, replace=False)
        later = [first if repeat else fresh.choice(tokens, period, replace=False) for _ in range(repeats - 1)]
        rows.append(np.concatenate([np.array(prefix, dtype=np.int64), first, *later]))
    return Sequences(torch.from_numpy(np.stack(rows)), len(prefix), period)


def measure(attention: Attention, sequences: Sequences, layers: Sequence[int], batch_size: int) -> dict[str, list[np.ndarray]]:
    """Return each score as one array `[sequence, head]` for each of `layers`, float64. A batch that does not fit in memory is halved."""

    def scored(numbers: Sequence[int]) -> dict[str, list[np.ndarray]]:
        inputs = sequences.inputs[numbers[0] : numbers[-1] + 1]
        batch = Batch(tuple(map(str, numbers)), inputs, torch.full_like(inputs, IGNORED), torch.ones_like(inputs, dtype=torch.bool))
        patterns = attention.patterns(batch)
        for layer in layers:
            require_finite(attention.subject, patterns[layer], f"attention weights of blocks.{layer}")
        prefix, period = sequences.n_prefix, sequences.period
        return {kind: [score(kind, patterns[layer], prefix, period).double().cpu().numpy() for layer in layers] for kind in KINDS}

    n = len(sequences.inputs)
    starts = range(0, n, batch_size)
    parts = [part for start in starts for part in halved(range(start, min(start + batch_size, n)), scored, "sequence")]
    return {kind: [np.concatenate(layer) for layer in zip(*(part[kind] for part in parts), strict=True)] for kind in KINDS}


def score(kind: str, pattern: Tensor, n_prefix: int, period: int) -> Tensor:
    """Return a score of each head, `[batch, head]`, from patterns `[batch, head, query, key]`."""
    start = period if kind in ON_REPEATS else 1
    query = torch.arange(n_prefix + start, pattern.shape[-1], device=pattern.device)
    key = {
        "induction": query - period + 1,
        "previous_token": query - 1,
        "duplicate_token": query - period,
        "first_token": torch.zeros_like(query),
        "current_token": query,
    }[kind]
    return pattern[:, :, query, key].mean(dim=-1)
