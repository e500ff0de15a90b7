"""What goes together with the presence of a token among observed contexts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import sparse

from mlinterp.token_sets.effect_table import Effects, EffectTable
from mlinterp.token_sets.effects import NOTHING, Effect, difference, standardised
from mlinterp.token_sets.high_part import HighPart, Ratio, ratio_of
from mlinterp.token_sets.slicing import Rows


class Presence(NamedTuple):
    """Contexts with something against those without it.

    Attributes:
        n_present, n_absent: contexts with and without it.
        n_high_with: those with it among the high ones.
        mean_with, mean_without: mean activation; None with too few contexts on either side, like everything below.
        effect: their difference.
        size: the difference over the spread of both (see `effects.standardised`).
        pre: the difference on the pre-activation.
        ratio: how much likelier it is among the high contexts; None with too few contexts.
    """

    n_present: int
    n_absent: int
    n_high_with: int
    mean_with: float | None = None
    mean_without: float | None = None
    effect: Effect = NOTHING
    size: float | None = None
    pre: float | None = None
    ratio: Ratio | None = None


def presence(rows: Rows, there: np.ndarray, high: HighPart, min_n: int) -> Presence:
    """Compare the contexts that a mask chooses with the others; without a number where either side has fewer than `min_n`."""
    n_present, n_high_with = int(there.sum()), int((there & high.there).sum())
    n_absent = len(there) - n_present
    if min(n_present, n_absent) < min_n:
        return Presence(n_present, n_absent, n_high_with)
    present, absent = rows.post[there], rows.post[~there]
    return Presence(
        n_present,
        n_absent,
        n_high_with,
        float(present.mean()),
        float(absent.mean()),
        difference(present, absent),
        standardised(present, absent),
        float(rows.pre[there].mean() - rows.pre[~there].mean()),
        ratio_of(n_high_with, int(high.there.sum()), n_present - n_high_with, int((~high.there).sum())),
    )


def presence_table(labels: Sequence[str], rows: Rows, there: np.ndarray, min_n: int) -> EffectTable:
    """Return mean activation with minus without for each column of `there [n, k]`, so that it can be measured again.

    Undefined with fewer than `min_n` contexts on either side. Under the null, activations belong to contexts at random.
    """
    held, n = sparse.csr_array(there.astype(np.float64)), len(rows)

    def effects_in(post: np.ndarray) -> Effects:
        def on(index: np.ndarray) -> np.ndarray:
            times = np.bincount(index, minlength=n).astype(np.float64)
            n_present, present = times @ held, (times * post) @ held
            n_absent, absent = len(index) - n_present, post[index].sum() - present
            enough = np.minimum(n_present, n_absent) >= max(min_n, 1)
            undefined = np.full(len(labels), np.nan)
            return np.asarray(
                np.divide(present, n_present, out=undefined.copy(), where=enough) - np.divide(absent, n_absent, out=undefined, where=enough)
            )

        return on

    return EffectTable(tuple(labels), n, "observational", effects_in(rows.post), lambda stream: effects_in(stream.permutation(rows.post)))
