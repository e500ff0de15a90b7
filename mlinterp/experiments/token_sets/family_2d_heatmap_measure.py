"""The tables and headline numbers of `family_2d_heatmap`, in both modes."""

from __future__ import annotations

from typing import Any

import numpy as np

from mlinterp.errors import ExperimentError
from mlinterp.experiments.token_sets.family_2d_heatmap import HeatmapVariables
from mlinterp.experiments.token_sets.family_2d_heatmap_cells import (
    Cell,
    Cells,
    Grid,
    Response,
    cell_changes,
    edited_cells,
    observed_cells,
    observed_deltas,
)
from mlinterp.result import ExperimentResult, Figure
from mlinterp.subjects.token_sets import edits
from mlinterp.subjects.token_sets.table import ContextTable
from mlinterp.token_sets.effect_table import EffectTable, edited, observed
from mlinterp.token_sets.lab import Lab
from mlinterp.token_sets.slicing import Rows
from mlinterp.token_sets.telling import adjust, flag_artefacts, judge, status


def measure(lab: Lab, variables: HeatmapVariables) -> ExperimentResult:
    """Return the result: `heatmap`, `interactions`, a picture of each, the mean change and the interaction in the far corner."""
    grid = _grid(lab, variables)
    if variables.mode == "observational":
        rows = _rows(lab, variables)
        lab.require_variation(rows)
        for family in (grid.x, grid.y):
            lab.require_family(family.name, rows)
        if (elsewhere := int((grid.numbers_of(rows.table) < 0).sum())) > 0:
            lab.warn(f"{elsewhere} contexts hold {grid.x.name} or {grid.y.name} at a rung that is not listed: they are in no cell")
        found = observed_cells(rows, grid, variables.min_n)
        if found.cells[0].own.value is None:
            missing = f"{found.cells[0].own.n} contexts without {grid.x.name} and {grid.y.name} (min_n is {variables.min_n})"
            lab.warn(f"{missing}: there is nothing to compare with")
        result = lab.result("observational", found.compared)
    else:
        _warn_of_missing_rungs(lab, grid)
        spare = [lab.vocabulary.parse(token)[0] for token in variables.stable_tokens]
        found = edited_cells(lab, _bases(lab, variables), grid, variables.min_n, variables.controls, spare)
        if all(cell.delta.beyond is None for cell in found.cells):
            lab.warn("there is no control: no other pair of families of the kinds was edited")
        result = lab.result("interventional", found.compared)
    _tables(result, lab, grid, found.cells, variables.min_n)
    _sum_up(result, grid, found)
    _say_interactions(result, found.cells)
    return result


def effect_table(lab: Lab, variables: HeatmapVariables) -> EffectTable:
    """Return the change in every cell against the cell of neither family, so that it can be measured again."""
    grid = _grid(lab, variables)
    labels = [f"{grid.x.short_code}_{x} {grid.y.short_code}_{y}" for x, y in grid.cells[1:]]
    if variables.mode == "interventional":
        return edited(labels, cell_changes(lab, _bases(lab, variables), grid)[0][:, 1:], variables.min_n)
    return observed(labels, _rows(lab, variables), lambda rows: observed_deltas(rows, grid, variables.min_n))


def _grid(lab: Lab, variables: HeatmapVariables) -> Grid:
    x, y = (lab.vocabulary.family(name) for name in (variables.family_x, variables.family_y))
    return Grid.of(x, y, variables.rungs_x, variables.rungs_y)


def _rows(lab: Lab, variables: HeatmapVariables) -> Rows:
    """Return the observed contexts with the stable tokens, of the base group where one is given; ExperimentError where there is none."""
    rows = lab.holding(variables.stable_tokens)
    if variables.base_weapon is None:
        return rows
    number = lab.package.group_number(variables.base_weapon, "variables.base_weapon")
    kept = rows.take(rows.table.group == number)
    if not len(kept):
        raise ExperimentError(f"none of {len(rows)} contexts is of {lab.package.group_word} '{lab.package.group_keys[number]}'")
    return kept


def _bases(lab: Lab, variables: HeatmapVariables) -> ContextTable:
    """Return the contexts to edit, in the base group where one is given."""
    bases = lab.bases(variables.n_contexts, variables.stable_tokens)
    if variables.base_weapon is None:
        return bases
    return edits.swap_group(bases, lab.package.group_keys[lab.package.group_number(variables.base_weapon, "variables.base_weapon")])


def _warn_of_missing_rungs(lab: Lab, grid: Grid) -> None:
    for family, rungs in ((grid.x, grid.rungs_x), (grid.y, grid.rungs_y)):
        for rung in rungs:
            if rung not in (0, *family.levels):
                there = ", ".join(map(str, family.levels))
                lab.warn(f"{rung} is no rung of {family.name} ({there}): there is no such token to add")


def _tables(result: ExperimentResult, lab: Lab, grid: Grid, cells: list[Cell], min_n: int) -> None:
    names = [f"{family.short_code}_rung" for family in (grid.x, grid.y)]
    if names[0] == names[1]:
        names = [f"{family.name}_rung" for family in (grid.x, grid.y)]
    heatmap, interactions = [], []
    for cell in cells:
        at = {names[0]: cell.x, names[1]: cell.y}
        heatmap.append({**at, **_own_columns(cell), **cell.delta.columns("delta"), "status": status(cell.own.n, min_n)})
        if cell.interaction is not None:
            effect = cell.interaction.effect
            row = {**at, **cell.interaction.columns("interaction"), "n": effect.n, "status": status(effect.n, min_n)}
            interactions.append(row)
    for rows, name in ((heatmap, "delta"), (interactions, "interaction")):
        adjust(rows)
        flag_artefacts(lab, rows, name, f"pre_{name}")
    edited_here = result.mode == "interventional"
    how = "contexts put into each cell by editing them" if edited_here else "observed contexts, which differ in more than the two families"
    against = f"against those without {grid.x.name} and {grid.y.name}; rung 0 is absent"
    result.add_table("heatmap", heatmap, _columns(heatmap), f"The activation of {how}, {against}.")
    about = "Difference of differences, (x, y) - (x, 0) - (0, y) + (0, 0): what both do beyond the sum of what each does alone"
    result.add_table("interactions", interactions, _columns(interactions), f"{about}, of {how}.")
    both = f"{grid.x.name} and {grid.y.name}"
    for table, column, title in (
        ("heatmap", "mean_activation", f"Latent {lab.latent} by {both} ({result.mode})"),
        ("interactions", "interaction", f"Interaction of {both} on latent {lab.latent} ({result.mode})"),
    ):
        labels = {"x_label": f"rung of {grid.x.name}", "y_label": f"rung of {grid.y.name}"}
        result.figures.append(
            Figure(name=table, table=table, kind="heatmap", x=names[0], series=names[1], y=[column], title=title, **labels)
        )


def _own_columns(cell: Cell) -> dict[str, Any]:
    own = cell.own
    return {"mean_activation": own.value, "std": own.std, "stderr": own.std_error, "n": own.n, "mean_pre": cell.mean_pre}


def _columns(rows: list[dict[str, Any]]) -> list[str]:
    """Return every column that a row has, in order, with what was found last at the end."""
    names = dict.fromkeys(name for row in rows for name in row)
    last = ["p_adj", "floor_artefact", "status"]
    return [*(name for name in names if name not in last), *last]


def _sum_up(result: ExperimentResult, grid: Grid, found: Cells) -> None:
    """Fill in the mean change, its extremes among the cells that have a number, and the cell where the latent peaks."""
    aggregates, first = result.aggregates, found.cells[0]
    aggregates.base_activation_mean, aggregates.base_activation_std = first.own.value, first.own.std
    aggregates.n_conditions = sum(cell.own.n > 0 for cell in found.cells)
    aggregates.n_samples = len(found.compared) if result.mode == "interventional" else sum(cell.own.n for cell in found.cells)
    with_mean = [cell for cell in found.cells if cell.own.value is not None]
    if with_mean:
        peak = max(with_mean, key=lambda cell: cell.own.value or 0.0)
        aggregates.custom |= {"peak_x": peak.x, "peak_y": peak.y, "peak_activation": peak.own.value}
    changed = [cell for cell in found.cells[1:] if cell.delta.effect.value is not None]
    if not changed:
        return
    values = np.array([cell.delta.effect.value for cell in changed], dtype=np.float64)
    aggregates.max_delta, aggregates.min_delta, aggregates.median_delta = float(values.max()), float(values.min()), float(np.median(values))
    aggregates.mean_delta, aggregates.std_delta = found.overall.effect.value, found.spread
    nothing = f"no {grid.x.name} and no {grid.y.name}"
    _judge_beside(result, "aggregates/mean_delta", found.overall, nothing, ("effect/control_delta", "effect/adjusted_delta"))
    _judge_beside(result, "aggregates/max_delta", changed[int(values.argmax())].delta, nothing, of=len(changed))


def _say_interactions(result: ExperimentResult, cells: list[Cell]) -> None:
    """Record the interaction in the far corner (of the cells that have one, the highest rung of x, then of y), and the largest of all."""
    known = [(cell, cell.interaction) for cell in cells if cell.interaction is not None and cell.interaction.effect.value is not None]
    if not known:
        return
    corner, response = known[-1]
    result.aggregates.custom |= {"corner_x": corner.x, "corner_y": corner.y}
    result.metrics |= {"interaction/corner": response.effect.value or 0.0, "interaction/corner_pre": response.pre or 0.0}
    beside = ("interaction/corner_control", "interaction/corner_adjusted")
    _judge_beside(result, "interaction/corner", response, "effects that add up", beside)
    largest = max((each for _, each in known), key=lambda each: abs(each.effect.value or 0.0))
    result.metrics["interaction/largest"] = largest.effect.value or 0.0
    _judge_beside(result, "interaction/largest", largest, "effects that add up", of=len(known))


def _judge_beside(
    result: ExperimentResult, name: str, response: Response, nothing: str, beside: tuple[str, str] | None = None, of: int = 1
) -> None:
    """Judge an effect: against `nothing`, or where there is a control against that.

    `beside` names the metrics of the control and of the effect beyond it; `of`: the effect was chosen as the largest of so many.
    """
    if response.beyond is None or response.control is None:
        judge(result, name, response.effect, nothing, of=of)
        return
    same = "the same edits of other families"
    judge(result, name, response.effect, same, response.control, of=of, beyond=response.beyond)
    if beside is not None:
        result.metrics |= {beside[0]: response.control, beside[1]: response.beyond.value or 0.0}
        judge(result, beside[1], response.beyond, same)
