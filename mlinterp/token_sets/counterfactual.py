"""Counterfactuals: what edits of contexts do to a latent, context by context, beside what edits of other families do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mlinterp.stats import single_case_p
from mlinterp.subjects.token_sets import edits
from mlinterp.subjects.token_sets.table import ContextTable
from mlinterp.subjects.token_sets.vocabulary import Family
from mlinterp.token_sets.effect_table import column_means
from mlinterp.token_sets.effects import Effect, mean_of_cells
from mlinterp.token_sets.lab import Lab

Edit = Callable[[ContextTable], ContextTable]


@dataclass(frozen=True)
class Changes:
    """What several edits did to each context.

    Attributes:
        before: the latent on each context that the edits start from, float64 `[n]`; NaN where that breaks a hard constraint.
        post: change of the activation, float64 `[n, n_edits]`; NaN where the context or the edited one breaks a hard constraint.
        pre: change of the pre-activation, likewise.
    """

    before: np.ndarray
    post: np.ndarray
    pre: np.ndarray


def changes(lab: Lab, start: ContextTable, wanted: Sequence[Edit], where: np.ndarray | None = None) -> Changes:
    """Make each edit in each context that admits it, all in one batch, and return what changed.

    `where`, bool `[n, n_edits]`: in which contexts an edit is wanted at all; the change is NaN in the others.
    """
    allowed = lab.admit(start)
    kept, admitted = [], []
    for column, edit in enumerate(wanted):
        rows = np.flatnonzero(allowed if where is None else allowed & where[:, column])
        table = edit(start).take(rows)
        passed = lab.admit(table)
        kept.append(table.take(passed))
        admitted.append(rows[passed])
    everything = lab.activations(ContextTable.stack([start.take(allowed), *kept]))
    base = np.full((2, len(start)), np.nan)
    base[:, allowed] = everything.take(slice(at := int(allowed.sum())))
    post, pre = (np.full((len(start), len(wanted)), np.nan) for _ in range(2))
    for column, rows in enumerate(admitted):
        found = everything.take(slice(at, at := at + len(rows)))
        pre[rows, column], post[rows, column] = np.asarray(found) - base[:, rows]
    return Changes(base[1], post, pre)


def family_changes(lab: Lab, bases: ContextTable, family: Family, rungs: Sequence[int]) -> Changes:
    """Return what setting a family to each of its rungs does, compared with the same context without the family."""
    start = edits.strip_family(bases, family.name)
    return changes(lab, start, [lambda table, rung=rung: edits.set_rung(table, family.name, rung) for rung in rungs])  # type: ignore[misc]


def control_draws(
    lab: Lab, bases: ContextTable, family: Family, rungs: Sequence[int], draws: int, spare: Sequence[str]
) -> np.ndarray | None:
    """Return what the same treatment with each of at most `draws` other families does, float64 `[n_families, n, n_rungs]`.

    Families of the same kind are drawn without replacement by the spec's seed (`spare` ones are left alone); of an ordered one each
    rung of `rungs` is matched by the rung at the same height of its own ladder. None where there is no other family of the kind.
    """
    others = [other for other in lab.vocabulary.families if other.kind == family.kind and other.name not in {family.name, *spare}]
    if not others or not draws:
        return None
    picked = lab.stream("controls", family.name).permutation(len(others))[:draws]
    found = []
    for number in sorted(picked.tolist()):
        ladder = others[number].levels
        found.append(family_changes(lab, bases, others[number], [matched_rung(family.levels, ladder, rung) for rung in rungs]).post)
    return np.stack(found)


def beyond_controls(post: np.ndarray, controls: np.ndarray) -> tuple[float, Effect] | None:
    """Return the mean change by the controls where `post [n, k]` has one too, and how far `post` goes beyond it; None where nothing pairs.

    The interval is over contexts, against the mean of `controls [n_families, n, k]`. The p value is the larger of that one's and of the
    change belonging to the population of which the controls are a few (`stats.single_case_p`): which of them were drawn is no effect.
    """
    mean = column_means(controls)
    both = np.isfinite(post) & np.isfinite(mean)
    if not both.any():
        return None
    beyond = mean_of_cells(np.where(both, post - mean, np.nan))
    each = column_means(np.where(both, controls, np.nan).reshape(len(controls), -1).T)
    p = single_case_p(float(post[both].mean()), each[np.isfinite(each)])
    return float(mean[both].mean()), beyond._replace(p=None if beyond.p is None else max(beyond.p, p))


def matched_rung(ladder: Sequence[int], other: Sequence[int], rung: int) -> int:
    """Return the rung of another ladder at the same height."""
    height = ladder.index(rung) / max(1, len(ladder) - 1)
    return other[round(height * (len(other) - 1))]
