"""Groups of contexts: how a latent differs between them, as observed, and what putting contexts into other groups does to it.

Both answer for any partition of the groups: each by itself, or put together by the values of attributes. The number is the same in
both, `delta_from_global`: observed, the mean over a group's contexts minus that over all contexts; edited, a context in that group
minus the mean of the same context in every group, so that chance alone has no say in which contexts a group has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from mlinterp.errors import ExperimentError
from mlinterp.result import Mode
from mlinterp.subjects.token_sets import edits
from mlinterp.subjects.token_sets.package import DataPackage
from mlinterp.token_sets.counterfactual import Changes, changes
from mlinterp.token_sets.effect_table import EffectTable, column_means, edited, observed
from mlinterp.token_sets.effects import NOTHING, Effect, difference, mean_effect
from mlinterp.token_sets.lab import Lab
from mlinterp.token_sets.slicing import Rows

GATING = "no_group_gating_if_relu_floor"
"""The constraint that no claim is made of groups where the latent sits on its floor."""


@dataclass(frozen=True)
class Partition:
    """Groups put together.

    Attributes:
        labels: what each part is called: a group's key, or a value of each attribute.
        part: number of the part that each group of the package belongs to, int64 `[n_groups]`; -1 for none.
    """

    labels: tuple[tuple[str, ...], ...]
    part: np.ndarray

    def of(self, group: np.ndarray) -> np.ndarray:
        """Return the part of each context from the number of its group; -1 where it has none."""
        return np.where(group >= 0, self.part[group], -1)

    def size(self, number: int, groups: np.ndarray) -> int:
        """Return how many of some groups belong to a part."""
        return int((self.part[groups] == number).sum())


def each_group(package: DataPackage) -> Partition:
    """Return the partition into single groups."""
    return Partition(tuple((key,) for key in package.group_keys), np.arange(len(package.group_keys)))


def by_attributes(package: DataPackage, names: Sequence[str]) -> Partition:
    """Return the partition by equal values of attributes; a group that lacks one of them belongs to no part."""
    values = [tuple(row) for row in np.column_stack([package.attribute_of(name) for name in names]).tolist()]
    labels = sorted({row for row in values if None not in row})
    number = {row: at for at, row in enumerate(labels)}
    return Partition(tuple(labels), np.array([number.get(row, -1) for row in values], dtype=np.int64))


class Part(NamedTuple):
    """What was measured of one part of a partition.

    Attributes:
        number: its number in the partition.
        activation: the latent's mean activation in it.
        delta: how far that lies from the mean everywhere.
        pre_delta: the same of the pre-activation; None where undefined.
        n_groups: groups that belong to it.
        more: further columns of tables.
    """

    number: int
    activation: Effect
    delta: Effect
    pre_delta: float | None
    n_groups: int
    more: dict[str, float | None]

    def columns(self) -> dict[str, Any]:
        """Return it as cells of a table."""
        effect = self.delta.columns("delta_from_global")
        cells = {"mean_activation": self.activation.value, "std": self.activation.std, "n": self.activation.n}
        cells |= {name: effect[name] for name in ("delta_from_global", "std_error", "low", "high", "p")}
        return cells | {"pre_delta": self.pre_delta, "n_groups": self.n_groups, **self.more}


@dataclass(frozen=True)
class ObservedGroups:
    """Groups as the observed contexts have them."""

    rows: Rows

    @property
    def base(self) -> np.ndarray:
        """The latent on each context before anything is done to it, float64 `[n]`."""
        return self.rows.post

    @cached_property
    def groups(self) -> np.ndarray:
        """Numbers of the groups that there are contexts of."""
        found = np.unique(self.rows.table.group)
        return found[found >= 0]

    def parts(self, partition: Partition, min_n: int) -> list[Part]:
        """Return every part that at least `min_n` contexts belong to, the one farthest above the mean of all first."""
        at, found = partition.of(self.rows.table.group), []
        for number in range(len(partition.labels)):
            there = at == number
            if there.sum() >= min_n:
                pre = _from_all(self.rows.pre, there)
                found.append(
                    Part(
                        number,
                        mean_effect(self.rows.post[there]),
                        _from_all(self.rows.post, there),
                        pre.value,
                        partition.size(number, self.groups),
                        {},
                    )
                )
        return _ranked(found)

    def effect_table(self, partitions: Sequence[Partition], min_n: int) -> EffectTable:
        """Return how far each part of some partitions lies from the mean everywhere, so that it can be measured again."""

        def effects_of(rows: Rows) -> np.ndarray:
            return np.concatenate([_part_means(rows, partition, min_n) for partition in partitions]) - rows.post.mean()

        return observed(_labels(partitions), self.rows, effects_of)


def _part_means(rows: Rows, partition: Partition, min_n: int) -> np.ndarray:
    """Return the mean activation of each part, float64 `[n_parts]`; NaN for one with fewer than `min_n` contexts."""
    at = partition.of(rows.table.group)
    n = np.bincount(at[at >= 0], minlength=len(partition.labels))
    total = np.bincount(at[at >= 0], rows.post[at >= 0], minlength=len(partition.labels))
    return np.where(n >= min_n, total / np.maximum(n, 1), np.nan)


def _from_all(values: np.ndarray, there: np.ndarray) -> Effect:
    """Return the mean of some values minus that of all: what lies between them and the others (Welch), times the others' share."""
    gap, others = difference(values[there], values[~there]), float(1 - there.mean())
    value, error, low, high = (None if part is None else part * others for part in (gap.value, gap.std_error, gap.low, gap.high))
    return gap._replace(value=value, std_error=error, low=low, high=high)


@dataclass(frozen=True)
class SwappedGroups:
    """Contexts in every group: their own, and by an edit each of the others.

    Attributes:
        groups: numbers of the groups, int64 `[n_groups]`.
        own: which of them each context came from, int64 `[n]`.
        made: what each group does to each context, against its own.
        empty: the latent on the context without tokens in each group, float64 `[n_groups]`; NaN where a hard constraint forbids it.
    """

    groups: np.ndarray
    own: np.ndarray
    made: Changes
    empty: np.ndarray

    @property
    def base(self) -> np.ndarray:
        """The latent on each context before anything is done to it, float64 `[n]`."""
        return self.made.before

    def _from_global(self, partition: Partition, number: int, changed: np.ndarray) -> np.ndarray:
        """Return each context in a part minus the mean of it in all groups, float64 `[n]`."""
        return _row_means(changed[:, partition.part[self.groups] == number]) - _row_means(changed)

    def parts(self, partition: Partition, min_n: int) -> list[Part]:
        """Return every part that at least `min_n` contexts could be put into, the one farthest above the mean of all first."""
        found = []
        for number in range(len(partition.labels)):
            delta = self._from_global(partition, number, self.made.post)
            known = np.isfinite(delta)
            if not known.any() or known.sum() < min_n:
                continue
            members = partition.part[self.groups] == number
            activation = mean_effect((self.made.before + _row_means(self.made.post[:, members]))[known])
            pre = self._from_global(partition, number, self.made.pre)[known].mean()
            more = self._swap(members, min_n) | {"empty_context_activation": _mean_or_none(self.empty[members])}
            found.append(Part(number, activation, mean_effect(delta[known]), float(pre), int(members.sum()), more))
        return _ranked(found)

    def _swap(self, members: np.ndarray, min_n: int) -> dict[str, float | None]:
        """Return what putting contexts of other groups into some groups does, beside what putting them into any third one does."""
        elsewhere = ~members[self.own]
        moved = self.made.post[elsewhere].copy()
        moved[np.arange(len(moved)), self.own[elsewhere]] = np.nan
        there, control = _row_means(moved[:, members]), _row_means(moved[:, ~members])
        known = np.isfinite(there)
        swap = mean_effect(there[known]) if known.sum() >= min_n else NOTHING
        return {
            "swap_delta": swap.value,
            "swap_low": swap.low,
            "swap_high": swap.high,
            "control_delta": _mean_or_none(control[known]) if swap.value is not None else None,
        }

    def effect_table(self, partitions: Sequence[Partition], min_n: int) -> EffectTable:
        """Return how far each part of some partitions lies from the mean over all groups, so that it can be measured again."""
        every = [(partition, number) for partition in partitions for number in range(len(partition.labels))]
        columns = np.column_stack([self._from_global(partition, number, self.made.post) for partition, number in every])
        return edited(_labels(partitions), columns, min_n)


def compare_groups(lab: Lab, mode: Mode, n_contexts: int, stable_tokens: Sequence[str]) -> ObservedGroups | SwappedGroups:
    """Return the groups as they were observed, or with `n_contexts` contexts put into each.

    Raises ExperimentError for fewer than two groups, and for a latent that is constant on what was observed.
    """
    groups = lab.groups
    if mode == "observational":
        lab.require_variation(lab.rows)
        return ObservedGroups(lab.rows)
    bases = lab.bases(n_contexts, stable_tokens)
    grouped = bases.group >= 0
    if not grouped.all():
        word = lab.package.group_word
        lab.warn(f"{int((~grouped).sum())} of {len(bases)} contexts have no {word} to be swapped, and were left out")
        bases = bases.take(grouped)
    if not len(bases):
        raise ExperimentError(f"none of the contexts that were drawn has a {lab.package.group_word}")
    wanted = [lambda table, key=lab.package.group_keys[number]: edits.swap_group(table, key) for number in groups]
    made = changes(lab, bases, wanted)
    bare = bases.take(np.zeros(1, dtype=np.int64))
    bare = bare.with_incidence(np.zeros_like(bare.incidence))
    nothing = changes(lab, bare, wanted)
    return SwappedGroups(groups, np.searchsorted(groups, bases.group), made, nothing.before[0] + nothing.post[0])


def warn_of_gating(lab: Lab) -> None:
    """Warn where a constraint forbids claims about groups and the floor has been detected."""
    forbidden = {GATING, f"no_{lab.package.group_word}_gating_if_relu_floor"}
    if lab.diagnostics.relu_floor_detected and any(constraint.id in forbidden for constraint in lab.constraints):
        lab.warn(
            f"the latent sits on its ReLU floor: that it is silent for a {lab.package.group_word} is no evidence that the "
            f"{lab.package.group_word} gates it"
        )


def _ranked(parts: list[Part]) -> list[Part]:
    return sorted(parts, key=lambda part: -(part.delta.value or 0.0))


def _row_means(values: np.ndarray) -> np.ndarray:
    return column_means(values.T)


def _mean_or_none(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None


def _labels(partitions: Sequence[Partition]) -> list[str]:
    return [" + ".join(label) for partition in partitions for label in partition.labels]
