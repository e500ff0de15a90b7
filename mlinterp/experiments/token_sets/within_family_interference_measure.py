"""The arithmetic of `within_family_interference`, in both modes.

A thermometer holds every token up to its rung, so a higher token without a lower one is found only where contexts are masked: models
are trained on builds of which some tokens are hidden. Both versions of a context then stand for the same build, and the effect of the
lower token says what *seeing* it changes, not what another build would do. A one-hot family holds one token at a time; where the
constraint `one_rung_per_family` is kept to, no context holds two, and none is edited into holding them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from mlinterp.experiments.token_sets.within_family_interference import InterferenceVariables, family_of, rungs_of
from mlinterp.result import ExperimentResult, Figure
from mlinterp.subjects.token_sets import edits
from mlinterp.subjects.token_sets.table import ContextTable
from mlinterp.subjects.token_sets.vocabulary import Family
from mlinterp.token_sets.counterfactual import beyond_controls, changes, matched_rung
from mlinterp.token_sets.effects import NOTHING, Effect, difference, mean_effect
from mlinterp.token_sets.lab import Lab
from mlinterp.token_sets.slicing import Rows
from mlinterp.token_sets.telling import adjust, flag_artefacts, judge, status

NEUTRAL = 0.01
"""Changes up to this size are said to be neutral."""
EXAMPLES = 3
"""Contexts of either side that are shown of the strongest reduction."""


class Pair(NamedTuple):
    """What a lower token does beside a higher one.

    Attributes:
        low, high: their rungs.
        n_alone, n_with: observed contexts that hold the higher one without and with the lower one (of those edited, where they are).
        alone, both: mean activation without and with the lower one; None where there are too few contexts.
        effect: the difference, with minus without.
        pre: the same on the pre-activation.
        by_group: the difference in each group that has enough contexts: number of the group, contexts in it, difference.
        control: what a lower token of other families changes in the same contexts; None without a control.
        beyond: the effect minus that.
    """

    low: int
    high: int
    n_alone: int
    n_with: int
    alone: float | None = None
    both: float | None = None
    effect: Effect = NOTHING
    pre: float | None = None
    by_group: tuple[tuple[int, int, Effect], ...] = ()
    control: float | None = None
    beyond: Effect | None = None

    @property
    def kind(self) -> str:
        """What the lower token does, in a word."""
        value = self.effect.value or 0.0
        return "reduction" if value < -NEUTRAL else "enhancement" if value > NEUTRAL else "neutral"


def measure(lab: Lab, variables: InterferenceVariables) -> ExperimentResult:
    """Return the result: `interference_matrix`, its picture, what was not measured, and the same for each group."""
    family = family_of(variables, lab.vocabulary)
    rungs = rungs_of(variables, family)
    if variables.mode == "observational":
        rows = lab.holding(variables.stable_tokens)
        lab.require_variation(rows)
        lab.require_family(family.name, rows)
        pairs = [_observed(rows, family, low, high, variables.min_n) for low, high in _below(rungs)]
        floor = rows.post
    else:
        lab.require_family(family.name, lab.rows)
        pairs, floor = _edited(lab, family, rungs, variables)
    result = lab.result(variables.mode, floor)
    measured = sorted((pair for pair in pairs if pair.effect.value is not None), key=lambda pair: pair.effect.value or 0.0)
    _tables(result, lab, family, measured, [pair for pair in pairs if pair.effect.value is None], variables.min_n)
    _sum_up(result, measured)
    if variables.mode == "observational" and measured and measured[0].kind == "reduction":
        _examples(result, rows, family, measured[0])
    return result


def _below(rungs: list[int]) -> Iterator[tuple[int, int]]:
    return ((low, high) for high in rungs for low in rungs if low < high)


def _observed(rows: Rows, family: Family, low: int, high: int, min_n: int) -> Pair:
    """Compare observed contexts; a side with fewer than `min_n` gives no number."""
    holds_low, holds_high = (_held(rows.table, family, rung) for rung in (low, high))
    alone, both = np.flatnonzero(holds_high & ~holds_low), np.flatnonzero(holds_high & holds_low)
    if min(len(alone), len(both)) < min_n:
        return Pair(low, high, len(alone), len(both))
    means = [float(values[side].mean()) for values in (rows.post, rows.pre) for side in (alone, both)]
    effect = difference(rows.post[both], rows.post[alone])
    n_groups = len(rows.table.groups)
    counts = [np.bincount(group[group >= 0], minlength=n_groups) for group in (rows.table.group[alone], rows.table.group[both])]
    by_group = []
    for number in np.flatnonzero(np.minimum(*counts) >= min_n).tolist():
        sides = [side[rows.table.group[side] == number] for side in (both, alone)]
        by_group.append((number, int(counts[0][number] + counts[1][number]), difference(rows.post[sides[0]], rows.post[sides[1]])))
    return Pair(low, high, len(alone), len(both), means[0], means[1], effect, means[3] - means[2], tuple(by_group))


def _held(table: ContextTable, family: Family, rung: int) -> np.ndarray:
    """Return which contexts hold a token, bool `[n]`."""
    return np.asarray(table.incidence[:, table.vocabulary.number(table.vocabulary.token(family.name, rung))])


def _edited(lab: Lab, family: Family, rungs: list[int], variables: InterferenceVariables) -> tuple[list[Pair], np.ndarray]:
    """Take the lower token out of contexts that hold the higher one, put it in, and compare the model's latent.

    One of the two versions of each context is the observed one. The other tokens of the family stay as they are: this goes around
    setting a rung, which would change them too. Returns the pairs, and the latent on every version without the lower token.
    """
    spare = [family.name, *(lab.vocabulary.parse(token)[0] for token in variables.stable_tokens)]
    pairs, before = [], []
    for high in rungs[1:]:
        bases = _bases(lab, family, high, variables)
        for low in rungs[: rungs.index(high)]:
            post, pre, start = _toggled(lab, bases, lab.vocabulary.token(family.name, low))
            before.append(start)
            known, holds_low = np.isfinite(post), _held(bases, family, low)
            pair = Pair(low, high, int((known & ~holds_low).sum()), int((known & holds_low).sum()))
            if known.sum() >= variables.min_n:
                means = float(start[known].mean()), float((start + post)[known].mean())
                groups = ((group, post[known & (bases.group == group)]) for group in np.unique(bases.group[bases.group >= 0]).tolist())
                by_group = tuple((group, len(of_it), mean_effect(of_it)) for group, of_it in groups if len(of_it) >= variables.min_n)
                pair = Pair(*pair[:4], *means, mean_effect(post[known]), float(pre[known].mean()), by_group)
                control = _control(lab, bases, family, low, variables.controls, spare)
                if (beyond := None if control is None else beyond_controls(post[:, None], control[..., None])) is not None:
                    pair = pair._replace(control=beyond[0], beyond=beyond[1])
            pairs.append(pair)
    if all(pair.beyond is None for pair in pairs):
        lab.warn("there is no control: no context holds another such family whose lower token could be taken out or put in")
    return pairs, np.concatenate(before)


def _bases(lab: Lab, family: Family, high: int, variables: InterferenceVariables) -> ContextTable:
    """Return contexts of the slice that hold the higher token, drawn by the spec's seed, with the stable tokens added."""
    held = np.flatnonzero(_held(lab.rows.table, family, high))
    drawn = lab.stream("interference", family.name, high).permutation(held)[: variables.n_contexts]
    table = lab.rows.table.take(np.sort(drawn))
    for token in variables.stable_tokens:
        table = edits.add_token(table, token)
    return table


def _toggled(lab: Lab, bases: ContextTable, token: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what a token changes of the activation and the pre-activation, with minus without, and the activation without it.

    float64 `[n]` each; the changes are NaN where either version breaks a hard constraint.
    """
    number = lab.vocabulary.number(token)

    def having(there: bool) -> ContextTable:
        incidence = bases.incidence.copy()
        incidence[:, number] = there
        return bases.with_incidence(incidence)

    made = changes(lab, having(False), [lambda _: having(True)])
    return made.post[:, 0], made.pre[:, 0], made.before


def _control(lab: Lab, bases: ContextTable, family: Family, low: int, draws: int, spare: list[str]) -> np.ndarray | None:
    """Return what the lower token of at most `draws` other families of the encoding changes in the same contexts, float64 `[k, n]`.

    The token stands at the same height of the other's ladder, and is taken out or put in where the context holds a higher one of it.
    NaN where a context holds none; None where no context holds any.
    """
    alike = [other for other in lab.vocabulary.families if not other.is_binary and other.encoding == family.encoding]
    others = [other for other in alike if other.name not in spare]
    found = []
    for picked in sorted(lab.stream("controls", family.name).permutation(len(others))[:draws].tolist()):
        other = others[picked]
        token = lab.vocabulary.token(other.name, matched_rung(family.levels, other.levels, low))
        above = slice(lab.vocabulary.number(token) + 1, lab.vocabulary.span(other.name).stop)
        there = np.asarray(bases.incidence[:, above].any(axis=1), dtype=bool)
        if there.any():
            post = np.full(len(bases), np.nan)
            post[there] = _toggled(lab, bases.take(there), token)[0]
            found.append(post)
    return np.stack(found) if found else None


def _tables(result: ExperimentResult, lab: Lab, family: Family, measured: list[Pair], missing: list[Pair], min_n: int) -> None:
    rows = [_row(pair) for pair in measured]
    adjust(rows)
    flag_artefacts(lab, rows, "delta", "pre_delta")
    how = "observed contexts that hold the higher token with the lower one, against others without it, which differ in more"
    if result.mode == "interventional":
        how = "contexts that hold the higher token, with the lower one put in, against the same contexts with it taken out"
    about = f"Change of the activation of {how}; of {family.name}."
    columns = [*dict.fromkeys(name for row in [_row(Pair(0, 0, 0, 0)), *rows] for name in row), "p_adj", "floor_artefact"]
    result.add_table("interference_matrix", rows, columns, about)
    if missing:
        counts = [{"high_rung": pair.high, "low_rung": pair.low, "n_alone": pair.n_alone, "n_with_low": pair.n_with} for pair in missing]
        for row, pair in zip(counts, missing, strict=True):
            least = pair.n_alone + pair.n_with if result.mode == "interventional" else min(pair.n_alone, pair.n_with)
            row["status"] = status(least, min_n)  # type: ignore[assignment]
        result.add_table("unmeasured_pairs", counts, description=f"Pairs of tokens of {family.name} without enough contexts for a number.")
        lab.warn(f"{len(missing)} of {len(missing) + len(measured)} pairs of rungs have too few contexts for a number (min_n is {min_n})")
    _group_table(result, lab, measured)
    if measured:
        result.figures.append(
            Figure(
                name="interference",
                table="interference_matrix",
                kind="heatmap",
                x="low_rung",
                series="high_rung",
                y=["delta"],
                title=f"Latent {lab.latent}: a lower token of {family.name} beside a higher one ({result.mode})",
                x_label="rung of the lower token",
                y_label="rung of the higher one",
            )
        )


def _row(pair: Pair) -> dict[str, Any]:
    row: dict[str, Any] = {"high_rung": pair.high, "low_rung": pair.low, "high_alone_mean": pair.alone, "high_with_low_mean": pair.both}
    row |= {"delta": pair.effect.value, "n_alone": pair.n_alone, "n_with_low": pair.n_with, "interference_type": pair.kind}
    row |= {name: value for name, value in pair.effect.columns("delta").items() if name not in {"delta", "n"}}
    row["pre_delta"] = pair.pre
    if pair.beyond is not None and pair.effect.value is not None:
        row |= {"control_delta": pair.control, "adjusted_delta": pair.beyond.value}
        row |= {"adjusted_low": pair.beyond.low, "adjusted_high": pair.beyond.high, "adjusted_n": pair.beyond.n}
    return row


def _group_table(result: ExperimentResult, lab: Lab, measured: list[Pair]) -> None:
    """Add the change in each group and pair that have enough contexts, the strongest reduction first."""
    rows = []
    for pair in measured:
        for group, n, effect in pair.by_group:
            at = {"weapon": lab.package.group_keys[group], "high_rung": pair.high, "low_rung": pair.low}
            rows.append({**at, "delta": effect.value, **effect.columns("delta"), "n": n})
    if not rows:
        return
    adjust(rows)
    rows.sort(key=lambda row: row["delta"])
    order = ["weapon", "high_rung", "low_rung", "delta", "n", "std_error", "low", "high", "p", "p_adj"]
    result.add_table("weapon_interference", rows, order, f"The same within each {lab.package.group_word} that has enough contexts.")


def _sum_up(result: ExperimentResult, measured: list[Pair]) -> None:
    """Fill in the strongest reduction and enhancement among the pairs, the first of which is the most negative."""
    aggregates = result.aggregates
    aggregates.n_conditions = len(measured)
    aggregates.custom |= {
        "n_reductions": sum(pair.kind == "reduction" for pair in measured),
        "n_enhancements": sum(pair.kind == "enhancement" for pair in measured),
    }
    if not measured:
        return
    least, most = measured[0], measured[-1]
    aggregates.min_delta, aggregates.max_delta = least.effect.value, most.effect.value
    for name, pair, kind in (("strongest_interference", least, "reduction"), ("strongest_enhancement", most, "enhancement")):
        if pair.kind == kind:
            aggregates.custom[name] = {"low_rung": pair.low, "high_rung": pair.high, "delta": pair.effect.value}
    for name, pair in (("aggregates/min_delta", least), ("aggregates/max_delta", most)):
        null = "the higher token alone" if pair.beyond is None else "the same edit of other families"
        judge(result, name, pair.effect, null, pair.control or 0.0, of=len(measured), beyond=pair.beyond)


def _examples(result: ExperimentResult, rows: Rows, family: Family, pair: Pair) -> None:
    """Add the contexts of either side of a pair on which the latent is most active."""
    holds_low, holds_high = (_held(rows.table, family, rung) for rung in (pair.low, pair.high))
    listed = []
    for name, side in (("alone", holds_high & ~holds_low), ("with_low", holds_high & holds_low)):
        at = np.flatnonzero(side)
        for row in at[np.argsort(-rows.post[at], kind="stable")[:EXAMPLES]].tolist():
            held = rows.table.context(row)
            tokens = " + ".join(token for token in family.tokens if token in held.tokens)
            listed.append({"type": name, "activation": float(rows.post[row]), "family_tokens": tokens, "weapon": held.group})
    about = f"Contexts with the highest activation that hold {family.name} at {pair.high}, without and with {pair.low}."
    result.add_table("interference_examples", listed, description=about)
