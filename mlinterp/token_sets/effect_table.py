"""The effects that an experiment measures, as something that can be measured again: on half of its units, or under the null."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mlinterp.result import Mode
from mlinterp.token_sets.slicing import Rows

Effects = Callable[[np.ndarray], np.ndarray]
"""Effects as some units give them: their numbers, int64, to float64 `[n_labels]`; NaN where undefined."""


@dataclass(frozen=True)
class EffectTable:
    """Several effects of one experiment.

    Attributes:
        labels: what each effect is of, such as `SCU_12`.
        n_units: independent units behind them.
        mode: how they were measured.
        on: the effects as some of the units give them.
        null: draws data in which there is nothing to find; the same effects of those data.
    """

    labels: tuple[str, ...]
    n_units: int
    mode: Mode
    on: Effects
    null: Callable[[np.random.Generator], Effects]

    @property
    def values(self) -> np.ndarray:
        """The effects as all units together give them, float64 `[n_labels]`."""
        return self.on(np.arange(self.n_units))

    def shuffled(self, stream: np.random.Generator) -> np.ndarray:
        """Return one draw of the effects under the null, float64 `[n_labels]`."""
        return self.null(stream)(np.arange(self.n_units))


def observed(labels: Sequence[str], rows: Rows, effects_of: Callable[[Rows], np.ndarray]) -> EffectTable:
    """Return effects that are a function of observed contexts. Under the null, activations belong to contexts at random.

    The contexts of the last two indices are remembered: what is asked of two halves for one draw is asked for the next one too.
    """
    recent: list[tuple[np.ndarray, Rows]] = []

    def part(index: np.ndarray) -> Rows:
        for known, found in recent:
            if known is index:
                return found
        recent[:] = [*recent[-1:], (index, rows.take(index))]
        return recent[-1][1]

    def effects_in(post: np.ndarray) -> Effects:
        return lambda index: effects_of(part(index).with_post(post[index]))

    def null(stream: np.random.Generator) -> Effects:
        return effects_in(stream.permutation(rows.post))

    _ = rows.table.levels  # from here on, contexts that are taken from the table bring their levels along
    return EffectTable(tuple(labels), len(rows), "observational", effects_in(rows.post), null)


def edited(labels: Sequence[str], deltas: np.ndarray, min_n: int) -> EffectTable:
    """Return the mean effects of edits from what each did to each context, `[n_contexts, n_labels]`, NaN where it was not made.

    An effect that fewer than `min_n` contexts tell is undefined. Under the null each context's changes are as likely to be negative as
    positive, all of them together.
    """
    deltas = np.where(np.isfinite(deltas).sum(axis=0) < min_n, np.nan, deltas)

    def means_of(found: np.ndarray) -> Effects:
        return lambda index: column_means(found[index])

    def null(stream: np.random.Generator) -> Effects:
        return means_of(deltas * stream.choice([-1.0, 1.0], size=(len(deltas), 1)))

    return EffectTable(tuple(labels), len(deltas), "interventional", means_of(deltas), null)


def column_means(values: np.ndarray) -> np.ndarray:
    """Return the mean of each column (of any shape) over its finite entries; NaN where there is none."""
    known = np.isfinite(values)
    count = known.sum(axis=0)
    total = np.where(known, values, 0.0).sum(axis=0)
    return np.divide(total, count, out=np.full(values.shape[1:], np.nan), where=count > 0)
