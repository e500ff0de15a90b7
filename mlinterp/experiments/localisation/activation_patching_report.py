"""What `activation_patching` says: its tables, heatmaps, headline numbers with what each is judged by, and warnings."""

from __future__ import annotations

from typing import Any

import numpy as np

from mlinterp.determinism import numpy_stream
from mlinterp.estimates import bounds, largest_of, record
from mlinterp.experiments.localisation.activation_patching import ActivationPatchingVariables
from mlinterp.experiments.localisation.activation_patching_measure import Cell, Joint, Sweep
from mlinterp.patching.components import SAE_LATENT
from mlinterp.patching.effects import CellEffect
from mlinterp.result import Aggregates, Estimate, ExperimentResult, Figure
from mlinterp.stats import Interval, bootstrap_intervals, mean_t_interval
from mlinterp.subjects.base import Examples
from mlinterp.subjects.hooked import HookedSubject
from mlinterp.subjects.pairs import NO_TOKEN, Pairs

LISTED = 48
"""Places whose numbers become metrics, the largest first; the table has all of them."""
SHOWN = 12
"""Places in the figure of the largest ones."""
MAPPED = 24
"""Latents in the heatmap over positions, those with the largest effects."""
UNITS = {"attn_head": "head", "mlp_neuron": "neuron", SAE_LATENT: "latent"}
"""What one part of a component is called."""
OTHERS = "others: mean effect of the latents that are active nearly as often, without its own; "
NOTABLE = 0.1
"""A joint effect below this is not worth a warning."""


def report(sweep: Sweep, variables: ActivationPatchingVariables, seed: int) -> ExperimentResult:
    """Return a sweep as a result."""
    result = ExperimentResult(mode="interventional")
    known = [(cell, effect) for cell, effect in zip(sweep.cells, sweep.effects, strict=True) if effect is not None]
    ranked = sorted(known, key=lambda item: -abs(item[1].adjusted.estimate))
    _tables(result, sweep, variables, ranked)
    _figures(result, sweep, variables)
    if sweep.places.component == SAE_LATENT and sweep.cells[0].position is not None:
        _map_of_latents(result, sweep, variables, ranked)
    _numbers(result, sweep, variables, ranked, seed)
    effects = [effect.effect.estimate for _, effect in known]
    result.aggregates = Aggregates(
        n_samples=len(sweep.pairs),
        n_conditions=len(sweep.cells),
        mean_delta=float(np.mean(effects)) if effects else None,
        max_delta=max(effects, default=None),
        min_delta=min(effects, default=None),
    )
    result.diagnostics.n_contexts_tested = len(sweep.pairs)
    result.diagnostics.warnings += _warnings(sweep, variables)
    return result


def _tables(result: ExperimentResult, sweep: Sweep, variables: ActivationPatchingVariables, ranked: list[tuple[Cell, CellEffect]]) -> None:
    metric, unit = sweep.metric, sweep.metric.unit or "the metric"
    about = (
        f"Interventional: {done_to(sweep, variables)}, place by place. effect: share of the gap in "
        f"{metric.name} (version {metric.version}: {metric.description}) between the two runs; null: the same step in a random direction "
        f"(of a neuron: in another one); adjusted: effect - null, with 95 % intervals over pairs; change: in {unit}; elsewhere: mean "
        f"effect at the layer's other positions; {OTHERS if sweep.others else ''}untrained: in the model with random weights."
    )
    rows = [_row(sweep, at) for at in range(len(sweep.cells))]
    result.add_table("patches", rows, description=about)
    top = [{"place": place_name(sweep, cell), **effect_columns(effect)} for cell, effect in ranked[:SHOWN] if effect.adjusted.estimate]
    result.add_table("largest", top, description="The places with the largest adjusted effect, and the same step in random directions.")
    joint = [
        {
            "places": group.name,
            "n_places": len(group.cells),
            **effect_columns(group.effect),
            "sum_of_singles": group.singles,
            "largest_single": group.largest,
        }
        for group in sweep.joints
    ]
    if joint:
        result.add_table("joint", joint, description="Several places patched together, beside what each of them does alone.")
    result.add_table(
        "pairs",
        pair_rows(sweep.subject, sweep.pairs, sweep.m_clean, sweep.m_corrupted),
        description="The prompts, and the metric of each run.",
    )


def done_to(sweep: Sweep, variables: ActivationPatchingVariables) -> str:
    """Return in words what a patch does: whose activation is put where."""
    source, base = ("clean", "corrupted") if variables.direction == "denoise" else ("corrupted", "clean")
    put = {
        "resample": f"the {source} run's activation",
        "zero": "zero",
        "mean": f"the mean activation of the {source} runs at its position",
    }[variables.ablation]
    where = f"in the place of a latent's activation in the {base} run, the SAE's error kept"
    return f"{put} put {where if sweep.latents else f'into the {base} run'}"


def _row(sweep: Sweep, at: int) -> dict[str, Any]:
    cell, effect = sweep.cells[at], sweep.effects[at]
    row: dict[str, Any] = {"place": cell.name, "layer": cell.layer}
    if cell.position is not None:
        row["position"] = sweep.labels[cell.position]
    if cell.unit is not None:
        row[unit_of(sweep)] = cell.unit
    row |= effect_columns(effect)
    if cell.position is not None:
        row["elsewhere"] = sweep.elsewhere[at]
    if sweep.others is not None:
        row["others"] = sweep.others[at]
    if sweep.untrained is not None:
        row["untrained"] = sweep.untrained[at]
    return row


def effect_columns(effect: CellEffect | None) -> dict[str, Any]:
    """Return a place's numbers as columns of a table, each interval as two; None where undefined."""
    names = ("effect", "null", "adjusted")
    if effect is None:
        empty: dict[str, Any] = {f"{name}{bound}": None for name in names for bound in ("", "_low", "_high")}
        return {"n": 0, **empty, "p": None, "p_adj": None, "change": None}
    found: dict[str, Any] = {"n": effect.n}
    for name in names:
        interval: Interval = getattr(effect, name)
        found |= {name: interval.estimate, **{f"{name}_{bound}": value for bound, value in bounds(interval).items()}}
    return {**found, "p": effect.p, "p_adj": effect.p_adj, "change": effect.change}


def pair_rows(subject: HookedSubject, pairs: Pairs, m_clean: np.ndarray, m_corrupted: np.ndarray) -> list[dict[str, Any]]:
    """Return the rows of the table of prompts, with the metric of each run, `[pair]` both."""

    def text(batch: Examples, row: int) -> str:
        return "".join(subject.token_text(token) for token in batch.inputs[row][batch.mask[row]].tolist())

    def token(given: int) -> str | None:
        return None if given == NO_TOKEN else subject.token_text(given)

    return [
        {
            "pair": pairs.ids[row],
            "clean": text(pairs.clean, row),
            "corrupted": text(pairs.corrupted, row),
            "answer": token(int(pairs.answer[row])),
            "wrong": token(int(pairs.wrong[row])),
            "clean_metric": m_clean[row],
            "corrupted_metric": m_corrupted[row],
        }
        for row in range(len(pairs))
    ]


def unit_of(sweep: Sweep) -> str:
    """Return what one part of the component is called."""
    return UNITS.get(sweep.places.component, "unit")


def place_name(sweep: Sweep, cell: Cell) -> str:
    """Return a place as people read it."""
    parts = [f"layer {cell.layer}"]
    parts += [] if cell.unit is None else [f"{unit_of(sweep)} {cell.unit}"]
    parts += [] if cell.position is None else [f"at {sweep.labels[cell.position]}"]
    return " ".join(parts)


def _figures(result: ExperimentResult, sweep: Sweep, variables: ActivationPatchingVariables) -> None:
    what = f"What {named(sweep, variables)} {'restores' if variables.direction == 'denoise' else 'breaks'} of the {sweep.metric.name} gap"
    by_position, by_unit = sweep.cells[0].position is not None, sweep.cells[0].unit is not None
    axes = [("position", "position and token")] if by_position else []
    axes += [(unit_of(sweep), unit_of(sweep))] if by_unit else []
    axes = axes if sweep.latents is None else []
    for column, label in axes:
        for value, words in (("adjusted", "less the same step in random directions"), ("effect", "as measured")):
            name = f"{value}_by_{column}"
            title = f"{what}, {words}"
            figure = Figure(name=name, table="patches", kind="heatmap", x=column, y=[value], series="layer", title=title)
            result.figures.append(figure.model_copy(update={"x_label": label, "y_label": "layer", "value_label": "share of the gap"}))
    result.figures.append(
        Figure(
            name="largest",
            table="largest",
            kind="bar",
            x="place",
            y=["adjusted"],
            low="adjusted_low",
            high="adjusted_high",
            title=f"The places of {named(sweep, variables)} with the largest effect beyond random directions",
            x_label="place",
            y_label="effect - null",
            reference=0.0,
        )
    )


def named(sweep: Sweep, variables: ActivationPatchingVariables) -> str:
    """Return what is patched, with how where that is no other prompt's run."""
    site = f" ({next(iter(sweep.places.sites.values()))})" if sweep.latents else ""
    return sweep.places.component + site + ("" if variables.ablation == "resample" else f" by {variables.ablation} ablation")


def _map_of_latents(
    result: ExperimentResult, sweep: Sweep, variables: ActivationPatchingVariables, ranked: list[tuple[Cell, CellEffect]]
) -> None:
    """Add the heatmap of the latents with the largest effects over positions; where a latent does not move its effect is exactly 0."""
    latents = list(dict.fromkeys(cell.unit for cell, _ in ranked))[:MAPPED]
    found = {(cell.unit, cell.position): effect.adjusted.estimate for cell, effect in ranked}
    positions = [at for at in sweep.labels if any(cell.position == at for cell in sweep.cells)]
    rows = [
        {"latent": f"latent {latent}", "position": sweep.labels[at], "adjusted": found.get((latent, at), 0.0)}
        for latent in latents
        for at in positions
    ]
    about = f"The {len(latents)} latents with the largest adjusted effects, by position; 0 where a latent does not move in any pair."
    result.add_table("latents", rows, description=about)
    title = f"Where {named(sweep, variables)} matters for {sweep.metric.name}, beyond random directions"
    figure = Figure(name="latents_by_position", table="latents", kind="heatmap", x="position", y=["adjusted"], series="latent", title=title)
    result.figures.append(figure.model_copy(update={"x_label": "position and token", "y_label": "latent"}))


def _numbers(
    result: ExperimentResult, sweep: Sweep, variables: ActivationPatchingVariables, ranked: list[tuple[Cell, CellEffect]], seed: int
) -> None:
    found = baselines(sweep.m_clean, sweep.m_corrupted, variables.n_bootstrap, seed)
    for number, (cell, effect) in enumerate(ranked[:LISTED]):
        own = estimates_of(effect, variables.controls)
        if not number:
            found |= {
                f"top/{name}_effect" if name != "effect" else "top/effect": largest_of(len(ranked), each) for name, each in own.items()
            }
        found |= {f"{name}/{cell.name}": each for name, each in own.items()}
    for group in sweep.joints:
        if group.effect is not None:
            found |= {f"joint_{name}/{group.name}": each for name, each in estimates_of(group.effect, variables.controls).items()}
    result.metrics |= {name: each.value for name, each in found.items()}
    if sweep.latents is not None:
        result.metrics |= {"latents/asked": float(sweep.latents.asked), "latents/patched": float(sweep.latents.patched)}
    record(result, found)


def baselines(m_clean: np.ndarray, m_corrupted: np.ndarray, n_bootstrap: int, seed: int) -> dict[str, Estimate]:
    """Return the means over pairs of the untouched runs' metric, and of the gap between them, with intervals."""
    found = {}
    for name, values in (("clean", m_clean), ("corrupted", m_corrupted), ("gap", m_clean - m_corrupted)):
        interval = bootstrap_intervals(values[:, None], n_bootstrap, rng=numpy_stream(seed, "baseline"))[0]
        found[f"baseline/{name}"] = Estimate(
            value=interval.estimate,
            **bounds(interval),
            df=len(values) - 1,
            n=len(values),
            unit="pair",
            interval="bootstrap over pairs",
            mode="observational",
        )
    return found


def estimates_of(effect: CellEffect, draws: int) -> dict[str, Estimate]:
    """Return `effect`, `null` and `adjusted` of a place with what each is judged by."""
    null, both = f"norm-matched random directions ({draws} draws)", "bootstrap over pairs and draws"

    def estimate(interval: Interval, how: str, **compared: Any) -> Estimate:
        return Estimate(value=interval.estimate, **bounds(interval), df=effect.n - 1, n=effect.n, unit="pair", interval=how, **compared)

    # A single pair has no interval, and no p value either.
    p = effect.p if effect.n > 1 else None
    return {
        "effect": estimate(effect.effect, "bootstrap over pairs", null=null, null_value=effect.null.estimate, p=p),
        "null": estimate(effect.null, both),
        "adjusted": estimate(effect.adjusted, both, null=null, null_value=0.0, p=p),
    }


def pair_warnings(m_clean: np.ndarray, m_corrupted: np.ndarray, metric: str) -> list[str]:
    """Return what there is to beware of in the prompts themselves."""
    found, n, gaps = [], len(m_clean), m_clean - m_corrupted
    if n == 1:
        found.append("1 prompt pair: nothing has an interval or a p value, and what is found may be about this prompt alone")
    elif n < 20:
        found.append(f"{n} prompt pairs: intervals and p values are coarse")
    low, high = mean_t_interval(gaps)[1:]
    if low <= 0 <= high:
        found.append(
            f"the mean gap in {metric} between clean and corrupted runs is {gaps.mean():.3g} [{low:.3g}, {high:.3g}], which may be none: "
            "shares of it mean little"
        )
    against = int((gaps * gaps.sum() <= 0).sum())
    if against:
        found.append(f"in {against} of {n} pairs {metric} does not fall from clean to corrupted as it does on average")
    return found


def _warnings(sweep: Sweep, variables: ActivationPatchingVariables) -> list[str]:
    found = pair_warnings(sweep.m_clean, sweep.m_corrupted, sweep.metric.name)
    if variables.untrained and sweep.untrained is None:
        found.append(f"there is no untrained control: it is not known how the model of a {sweep.subject.kind} subject is made")
    found += [_hidden(group, sweep.estimated, variables) for group in sweep.joints if hides(group)]
    if variables.ablation != "resample":
        found.append(f"ablation: {variables.ablation}: {done_to(sweep, variables)}, which no prompt may ever bring about")
    if sweep.latents is not None and (silent := sweep.latents.asked - sweep.latents.patched):
        found.append(f"{silent} of {sweep.latents.asked} latents move at no patched position: their effect is exactly 0, without a row")
    return found


def hides(group: Joint) -> bool:
    """Return whether places do together, beyond random directions, what they do not do one by one."""
    if group.effect is None or group.singles is None:
        return False
    together, way = group.effect.effect.estimate, np.sign(group.effect.effect.estimate)
    notable = min(together * way, group.effect.adjusted.estimate * way) >= NOTABLE
    return bool(notable and group.singles * way < together * way / 2)


def _hidden(group: Joint, estimated: bool, variables: ActivationPatchingVariables) -> str:
    assert group.effect is not None
    together = group.effect.effect.estimate
    gate = "need each other (an AND)" if variables.direction == "denoise" else "stand in for each other (an OR)"
    why = f"they may {gate}, or gradients miss what they do" if estimated else f"they {gate}, and single patches hide it"
    return (
        f"the {len(group.cells)} places of {group.name} together have an effect of {together:.3g}; one by one they add up to "
        f"{group.singles:.3g} (largest {group.largest:.3g}): {why}"
    )
