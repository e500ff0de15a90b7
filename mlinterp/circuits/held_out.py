"""What circuits are judged on: which prompt pairs choose and which judge, and how large the circuits of the curve are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mlinterp.circuits.written import pair_digests
from mlinterp.determinism import numpy_stream
from mlinterp.errors import SpecError
from mlinterp.stats import mean_t_interval
from mlinterp.subjects.hooked import HookedSubject
from mlinterp.subjects.pairs import Pairs, tokenise, tokens_of
from mlinterp.subjects.pairs_declared import PromptPair

FEW = 20
"""Held-out pairs below which intervals and p values are coarse."""


def tokenised(given: Sequence[PromptPair], subject: HookedSubject) -> Pairs:
    """Return prompt pairs as tokens.

    Raises SpecError for a single pair, since some choose and others judge, and for prompts of unequal length: what stands in the place of
    a cut edge or an ablated latent must stand at one position in both.
    """
    if len(given) < 2:
        allowed = "2 or more: the circuit is judged on pairs that did not choose it"
        raise SpecError(f"{len(given)} prompt pair", field="variables.pairs", allowed=allowed)
    for number, pair in enumerate(given):
        field = f"variables.pairs[{number}]"
        clean, corrupted = (len(tokens_of(prompt, subject, field)) for prompt in (pair.clean, pair.corrupted))
        if clean != corrupted:
            raise SpecError(f"the prompts have {clean} and {corrupted} tokens", field=field, allowed="prompts of as many tokens")
    return tokenise(given, subject)


def split_pairs(n: int, held_out: float, seed: int) -> tuple[list[int], list[int]]:
    """Return which pairs choose and which judge; at least one each."""
    n_judging = min(max(1, round(n * held_out)), n - 1)
    order = numpy_stream(seed, "held_out").permutation(n).tolist()
    return sorted(order[n_judging:]), sorted(order[:n_judging])


def pair_warnings(pairs: Pairs, choosing: Sequence[int], judging: Sequence[int], gaps: np.ndarray, metric: str, emptied: str) -> list[str]:
    """Return what there is to beware of in the pairs themselves.

    Args:
        pairs: all of them.
        choosing: those that choose the circuit.
        judging: the held-out ones.
        gaps: of these, the metric of the clean run less that of the empty circuit.
        metric: its name.
        emptied: what was done to everything in the empty circuit: `cut`, `ablated`.
    """
    found, n, known = [], len(judging), set(pair_digests(pairs, choosing))
    if again := sum(digest in known for digest in pair_digests(pairs, judging)):
        found.append(f"{again} of {n} held-out pairs are among those that choose the circuit, word for word: they judge it by nothing new")
    if n == 1:
        found.append("1 held-out pair: nothing has an interval or a p value")
    elif n < FEW:
        found.append(f"{n} held-out pairs: intervals and p values are coarse")
    low, high = mean_t_interval(gaps)[1:]
    if low <= 0 <= high:
        found.append(
            f"the mean gap in {metric} between the clean run and the one with everything {emptied} is {gaps.mean():.3g} [{low:.3g}, "
            f"{high:.3g}] on held-out pairs, which may be none: shares of it mean little"
        )
    if against := int((gaps * gaps.sum() <= 0).sum()):
        found.append(f"in {against} of {n} held-out pairs {metric} does not fall with everything {emptied} as it does on average")
    return found


def curve_sizes(asked: Sequence[int] | None, most: int) -> list[int]:
    """Return the curve's sizes: as asked or 1, 2, 5, 10, …, none above `most`, which is the last one where nothing was asked.

    >>> curve_sizes(None, 70), curve_sizes([4, 99], 30)
    ([1, 2, 5, 10, 20, 50, 70], [4, 30])
    """
    steps = [digit * 10**power for power in range(len(str(most))) for digit in (1, 2, 5)] + [most] if asked is None else asked
    return sorted({min(size, most) for size in steps})
