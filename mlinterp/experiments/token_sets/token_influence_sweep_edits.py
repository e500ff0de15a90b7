"""What adding and removing every token does to a latent, beside what the other tokens do in the same contexts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from mlinterp.subjects.token_sets import edits
from mlinterp.subjects.token_sets.table import ContextTable
from mlinterp.token_sets.counterfactual import Changes, Edit, beyond_controls, changes
from mlinterp.token_sets.effect_table import column_means
from mlinterp.token_sets.effects import NOTHING, Effect, mean_effect
from mlinterp.token_sets.lab import Lab


class Influence(NamedTuple):
    """What one edit with a token does, over contexts.

    Attributes:
        effect: the mean change of the activation.
        pre: the same of the pre-activation; None where the effect has no value.
        control: mean change by the same edit with the other tokens, in the same contexts; None where no other could be edited.
        beyond: the effect minus that.
    """

    effect: Effect
    pre: float | None = None
    control: float | None = None
    beyond: Effect = NOTHING


class Both(NamedTuple):
    """What putting a token in and taking it out does."""

    add: Influence
    remove: Influence


def sweep(lab: Lab, bases: ContextTable, names: Sequence[str], collapse: bool, min_n: int) -> tuple[list[Both], np.ndarray]:
    """Return what adding and removing each family (`collapse`) or token does, and the latent on the contexts as they were."""
    parts = [added(lab, bases, names, collapse), removed(lab, bases, names, collapse)]
    add, remove = ([_influence(part, column, min_n) for column in range(len(names))] for part in parts)
    return [Both(*pair) for pair in zip(add, remove, strict=True)], parts[0].before


def added(lab: Lab, bases: ContextTable, names: Sequence[str], collapse: bool) -> Changes:
    """Put each family or token into the contexts without its family, and return what that changes; NaN in the others.

    A token of a thermometer brings the lower ones with it. A family is put in at each of its rungs in turn, and the mean taken.
    """
    families = [lab.vocabulary.family(name if collapse else lab.vocabulary.parse(name)[0]) for name in names]
    tokens = [family.tokens if collapse else (name,) for family, name in zip(families, names, strict=True)]
    absent = bases.levels[:, [lab.vocabulary.family_number(family.name) for family in families]] == 0
    ends = np.cumsum([0, *map(len, tokens)])
    wanted = [_adding(token) for each in tokens for token in each]
    made = changes(lab, bases, wanted, np.repeat(absent, np.diff(ends), axis=1))
    spans = [slice(*pair) for pair in pairwise(ends.tolist())]
    post, pre = (np.column_stack([column_means(part[:, span].T) for span in spans]) for part in (made.post, made.pre))
    return Changes(made.before, post, pre)


def removed(lab: Lab, bases: ContextTable, names: Sequence[str], collapse: bool) -> Changes:
    """Take each family or token out of the contexts that hold it, and return what that changes; NaN in the others.

    A token of a thermometer takes the higher ones with it: the family stands at the rung below.
    """
    if collapse:
        there = bases.levels[:, [lab.vocabulary.family_number(name) for name in names]] > 0
    else:
        there = bases.incidence[:, lab.vocabulary.numbers(names)]
    return changes(lab, bases, [_removing(name, collapse) for name in names], there)


def _adding(token: str) -> Edit:
    return lambda table: edits.add_token(table, token)


def _removing(name: str, collapse: bool) -> Edit:
    return lambda table: edits.strip_family(table, name) if collapse else edits.remove_token(table, name)


def _influence(made: Changes, column: int, min_n: int) -> Influence:
    """Return one edit's effect beside the mean of the others', context by context."""
    post, others = made.post[:, column], np.delete(made.post, column, axis=1)
    known = np.isfinite(post)
    if known.sum() < min_n:
        return Influence(NOTHING._replace(n=int(known.sum())))
    found = Influence(mean_effect(post[known]), float(made.pre[known, column].mean()))
    paired = beyond_controls(post[:, None], others.T[:, :, None])
    return found if paired is None else found._replace(control=paired[0], beyond=paired[1])
