"""The arithmetic of `family_1d_sweep`, in both modes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mlinterp.experiments.token_sets.family_1d_sweep import FamilySweepVariables
from mlinterp.result import ExperimentResult, Figure
from mlinterp.subjects.token_sets.vocabulary import Family
from mlinterp.token_sets.counterfactual import Changes, beyond_controls, control_draws, family_changes
from mlinterp.token_sets.effect_table import EffectTable, column_means, edited, observed
from mlinterp.token_sets.effects import NOTHING, Effect, compared, mean_effect, mean_of_cells
from mlinterp.token_sets.lab import Lab
from mlinterp.token_sets.slicing import Rows
from mlinterp.token_sets.telling import adjust, flag_artefacts, judge, status

NOTABLE = 0.1
"""A change of more than this is said to have crossed the threshold."""


def measure(lab: Lab, variables: FamilySweepVariables) -> ExperimentResult:
    """Return the sweep's result: `rung_stats`, `rung_deltas`, a curve, and the mean change over all rungs."""
    if variables.mode == "observational":
        return _observe(lab, variables)
    return _intervene(lab, variables)


def effect_table(lab: Lab, variables: FamilySweepVariables) -> EffectTable:
    """Return the sweep's effects, rung by rung, so that they can be measured again."""
    family = lab.vocabulary.family(variables.family)
    rungs = _there(family, variables.rungs)
    labels = [lab.vocabulary.label(family.name, rung) for rung in rungs]
    if variables.mode == "interventional":
        post = family_changes(lab, lab.bases(variables.n_contexts, variables.stable_tokens), family, rungs).post
        return edited(labels, post, variables.min_n)

    def effects_of(rows: Rows) -> np.ndarray:
        at = rows.table.rungs(family.name)
        means = [rows.post[at == rung].mean() if (at == rung).sum() >= variables.min_n else np.nan for rung in [0, *rungs]]
        return np.array(means[1:]) - means[0]

    return observed(labels, lab.holding(variables.stable_tokens), effects_of)


def _observe(lab: Lab, variables: FamilySweepVariables) -> ExperimentResult:
    """Compare the contexts at each rung with those without the family. The rung of a context is its highest."""
    family = lab.vocabulary.family(variables.family)
    rows = lab.holding(variables.stable_tokens)
    lab.require_variation(rows)
    lab.require_family(family.name, rows)
    asked = list(dict.fromkeys(variables.rungs or family.levels))
    at = rows.table.rungs(family.name)
    absent, listed = at == 0, np.isin(at, asked)
    if absent.sum() < variables.min_n:
        lab.warn(f"{int(absent.sum())} contexts without {family.name} (min_n is {variables.min_n}): there is nothing to compare with")
    if (elsewhere := int((~absent & ~listed).sum())) > 0:
        lab.warn(f"{elsewhere} contexts hold {family.name} at a rung that is not listed: they count neither as absent nor at another rung")
    stats, deltas, effects = [], [], []
    if variables.include_absent:
        stats.append(_stats_row(0, "absent", rows, absent, absent, variables.min_n))
    for rung in asked:
        there, label = at == rung, lab.vocabulary.label(family.name, rung)
        stats.append(_stats_row(rung, label, rows, there, absent, variables.min_n))
        effect = compared(rows.post, there, absent, variables.min_n)
        pre = compared(rows.pre, there, absent, variables.min_n).value
        effects.append(effect)
        deltas.append({"rung": rung, "label": label, **effect.columns("mean_delta"), "pre_delta": pre})
    result = lab.result("observational", rows.post)
    _tables(result, lab, family, deltas, stats)
    aggregates = result.aggregates
    aggregates.base_activation_mean = float(rows.post[absent].mean()) if absent.any() else None
    aggregates.base_activation_std = float(rows.post[absent].std(ddof=1)) if absent.sum() > 1 else None
    aggregates.n_samples = int(listed.sum() + (absent.sum() if variables.include_absent else 0))
    aggregates.n_conditions = sum(row["n"] > 0 for row in stats)
    measured = np.isin(at, [rung for rung, effect in zip(asked, effects, strict=True) if effect.value is not None])
    overall = compared(rows.post, measured, absent, variables.min_n)
    if overall.value is not None:
        each = np.repeat([effect.value or 0.0 for effect in effects], [effect.n * (effect.value is not None) for effect in effects])
        aggregates.mean_delta = overall.value
        aggregates.std_delta = float(each.std(ddof=1)) if len(each) > 1 else None
        judge(result, "aggregates/mean_delta", overall, "contexts without the family")
    _extremes(result, asked, effects)
    return result


def _stats_row(rung: int, label: str, rows: Rows, there: np.ndarray, absent: np.ndarray, min_n: int) -> dict[str, Any]:
    n = int(there.sum())
    row: dict[str, Any] = {"rung": rung, "label": label, "mean_activation": None, "std": None, "stderr": None, "n": n}
    row |= {"delta_from_baseline": None, "mean_pre": None, "status": status(n, min_n)}
    if n >= min_n:
        own = mean_effect(rows.post[there])
        row |= {"mean_activation": own.value, "std": own.std, "stderr": own.std_error, "mean_pre": float(rows.pre[there].mean())}
        row["delta_from_baseline"] = 0.0 if rung == 0 else compared(rows.post, there, absent, min_n).value
    return row


def _intervene(lab: Lab, variables: FamilySweepVariables) -> ExperimentResult:
    """Strip the family from contexts, set each rung, and compare the model's latent on both."""
    family = lab.vocabulary.family(variables.family)
    asked = list(dict.fromkeys(variables.rungs or family.levels))
    rungs = _there(family, variables.rungs)
    for rung in asked:
        if rung not in rungs:
            lab.warn(f"{rung} is no rung of {family.name} ({', '.join(map(str, family.levels))}): there is no such token to add")
    bases = lab.bases(variables.n_contexts, variables.stable_tokens)
    made = family_changes(lab, bases, family, rungs)
    spare = [lab.vocabulary.parse(token)[0] for token in variables.stable_tokens]
    controls = control_draws(lab, bases, family, rungs, variables.controls, spare)
    control = None if controls is None else column_means(controls)
    if control is None:
        lab.warn("there is no control: no other family of the kind was edited")
    deltas, stats, effects = [], [], []
    for rung in asked:
        label = lab.vocabulary.label(family.name, rung)
        row, effect = _rung_row(rung, label, made, control, rungs, variables.min_n)
        deltas.append(row)
        effects.append(effect)
        stats.append(_after_row(rung, label, made, rungs, effect))
    if variables.include_absent:
        before, min_n = made.before[np.isfinite(made.before)], variables.min_n
        own = mean_effect(before) if len(before) >= min_n else NOTHING._replace(n=len(before))
        stats.insert(0, {"rung": 0, "label": "absent", "mean_activation": own.value, "std": own.std, "stderr": own.std_error, "n": own.n})
        stats[0] |= {"delta_from_baseline": None if own.value is None else 0.0, "status": status(own.n, min_n)}
    result = lab.result("interventional", made.before)
    _tables(result, lab, family, deltas, stats)
    _sum_up(result, made, controls, variables.min_n)
    _extremes(result, asked, effects)
    return result


def _there(family: Family, rungs: Sequence[int] | None) -> list[int]:
    """Return those of the rungs asked for that the family has."""
    return [rung for rung in dict.fromkeys(rungs or family.levels) if rung in family.levels]


def _rung_row(
    rung: int, label: str, made: Changes, control: np.ndarray | None, rungs: list[int], min_n: int
) -> tuple[dict[str, Any], Effect]:
    column = rungs.index(rung) if rung in rungs else None
    post = np.zeros(0) if column is None else made.post[:, column]
    known = np.isfinite(post)
    effect = mean_effect(post[known]) if known.sum() >= min_n else NOTHING._replace(n=int(known.sum()))
    row: dict[str, Any] = {"rung": rung, "label": label, **effect.columns("mean_delta"), "pre_delta": None}
    if column is None or effect.value is None:
        return row, effect
    row["pre_delta"] = float(made.pre[known, column].mean())
    if control is not None:
        both = known & np.isfinite(control[:, column])
        beyond = mean_effect(post[both] - control[both, column])
        row |= {"control_delta": float(control[both, column].mean()) if both.any() else None, "adjusted_delta": beyond.value}
        row |= {"adjusted_low": beyond.low, "adjusted_high": beyond.high}
    return row, effect


def _after_row(rung: int, label: str, made: Changes, rungs: list[int], effect: Effect) -> dict[str, Any]:
    row: dict[str, Any] = {"rung": rung, "label": label, "mean_activation": None, "std": None, "stderr": None, "n": effect.n}
    row |= {"delta_from_baseline": effect.value, "status": "ok" if effect.value is not None else "too few" if effect.n else "no data"}
    if effect.value is not None:
        known = np.isfinite(made.post[:, rungs.index(rung)])
        after = mean_effect(made.before[known] + made.post[known, rungs.index(rung)])
        row |= {"mean_activation": after.value, "std": after.std, "stderr": after.std_error}
    return row


def _sum_up(result: ExperimentResult, made: Changes, controls: np.ndarray | None, min_n: int) -> None:
    """Fill in the mean change over contexts and rungs, and how far it lies beyond the controls."""
    known, before = np.isfinite(made.post), mean_effect(made.before[np.isfinite(made.before)])
    aggregates = result.aggregates
    aggregates.base_activation_mean, aggregates.base_activation_std = before.value, before.std
    aggregates.n_samples, aggregates.n_conditions = int(known.any(axis=1).sum()), int(known.any(axis=0).sum())
    if aggregates.n_samples < min_n:
        return
    overall = mean_of_cells(made.post)
    aggregates.mean_delta = overall.value
    aggregates.std_delta = float(made.post[known].std(ddof=1)) if known.sum() > 1 else None
    beyond = None if controls is None else beyond_controls(made.post, controls)
    if beyond is None:
        judge(result, "aggregates/mean_delta", overall, "no edit")
        return
    control, adjusted = beyond
    judge(result, "aggregates/mean_delta", overall, "the same edits of other families", control, beyond=adjusted)
    result.metrics |= {"effect/control_delta": control, "effect/adjusted_delta": adjusted.value or 0.0}
    judge(result, "effect/adjusted_delta", adjusted, "the same edits of other families")


def _extremes(result: ExperimentResult, rungs: Sequence[int], effects: Sequence[Effect]) -> None:
    """Fill in the largest and smallest change, and the first rung whose change is notable."""
    known = [(rung, effect) for rung, effect in zip(rungs, effects, strict=True) if effect.value is not None]
    if not known:
        return
    values = [effect.value for _, effect in known if effect.value is not None]
    aggregates = result.aggregates
    aggregates.max_delta, aggregates.min_delta, aggregates.median_delta = max(values), min(values), float(np.median(values))
    top_rung, top = known[int(np.argmax(values))]
    aggregates.custom |= {"max_rung": top_rung, "max_rung_delta": max(values)}
    beyond = [rung for rung, effect in known if abs(effect.value or 0.0) > NOTABLE]
    if beyond:
        aggregates.custom["threshold_rung"] = beyond[0]
    judge(result, "aggregates/max_delta", top, "no difference", of=len(known))


def _tables(result: ExperimentResult, lab: Lab, family: Family, deltas: list[dict[str, Any]], stats: list[dict[str, Any]]) -> None:
    adjust(deltas)
    flag_artefacts(lab, deltas, "mean_delta", "pre_delta")
    how = "set by editing contexts" if result.mode == "interventional" else "of observed contexts, which differ in more than the family"
    result.add_table(
        "rung_deltas", deltas, description=f"Change of the activation at each rung {how}, against contexts without {family.name}."
    )
    result.add_table("rung_stats", stats, description="The activation at each rung.")
    result.figures.append(
        Figure(
            name="rung_deltas",
            table="rung_deltas",
            kind="line",
            x="rung",
            y=["mean_delta", *(["control_delta"] if any("control_delta" in row for row in deltas) else [])],
            low="low",
            high="high",
            title=f"Latent {lab.latent} by rung of {family.name} ({result.mode})",
            x_label=f"rung of {family.name}",
            y_label="change of the activation",
            reference=0.0,
        )
    )
