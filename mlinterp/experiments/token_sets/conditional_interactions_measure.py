"""The arithmetic of `conditional_interactions`: three-way interactions, in both modes."""

from __future__ import annotations

from typing import Any

import numpy as np

from mlinterp.errors import ExperimentError
from mlinterp.experiments.token_sets.conditional_interactions import ConditionalVariables
from mlinterp.experiments.token_sets.pairwise_interactions_tables import (
    beside_control,
    cells,
    families_of,
    interaction_effects,
    report,
)
from mlinterp.result import ExperimentResult
from mlinterp.subjects.token_sets.table import ContextTable
from mlinterp.token_sets.effect_table import EffectTable
from mlinterp.token_sets.effects import Effect
from mlinterp.token_sets.interactions import (
    Combination,
    candidates,
    combinations,
    crossed,
    item_of,
    observed_interaction,
    random_items,
    signs,
)
from mlinterp.token_sets.lab import Lab
from mlinterp.token_sets.slicing import Rows
from mlinterp.token_sets.telling import status


def measure(lab: Lab, variables: ConditionalVariables) -> ExperimentResult:
    """Return the result: how the modulator changes each pair's interaction; those that it raises, and those that it lowers."""
    result = _observe(lab, variables) if variables.mode == "observational" else _intervene(lab, variables)
    result.aggregates.custom["modulator"] = variables.modulator_token
    return result


def effect_table(lab: Lab, variables: ConditionalVariables) -> EffectTable:
    """Return the three-way interaction of each pair with the modulator, so that it can be measured again."""
    return interaction_effects(lab, *_triples(lab, variables), variables)


def _triples(lab: Lab, variables: ConditionalVariables) -> tuple[Rows, list[Combination]]:
    """Return the observed contexts, and every pair with the modulator last."""
    rows = lab.rows if variables.mode == "interventional" else lab.holding(variables.stable_tokens)
    modulator = item_of(lab, rows, variables.modulator_token, whole=variables.family_mode)
    stable = families_of(lab, variables.stable_tokens)
    if modulator.family in stable:
        raise ExperimentError(f"{modulator.name} cannot be there or not: stable_tokens holds its family fixed")
    spare = stable | {modulator.family}
    items = candidates(lab, rows, variables.candidate_tokens, variables.n_candidates, spare, whole=variables.family_mode)
    return rows, [(*pair, modulator) for pair in combinations(items)]


def _title(lab: Lab, variables: ConditionalVariables) -> str:
    return f"What {variables.modulator_token} adds to interactions on latent {lab.latent}"


def _first_cells(triple: Combination, held: np.ndarray) -> dict[str, Any]:
    """Return the cells that both modes begin with. How often the tokens occur together is of all three."""
    together = held.all(axis=1)
    row: dict[str, Any] = {"token_a": triple[0].name, "token_b": triple[1].name, "interaction": None}
    return row | {"cooccurrence_rate": float(together.mean()), "n_both": int(together.sum()), "modulator": triple[2].name}


def _observe(lab: Lab, variables: ConditionalVariables) -> ExperimentResult:
    """Compare the pair's difference of differences among contexts with the modulator with that among those without."""
    lab.require_variation(lab.holding(variables.stable_tokens))
    rows, triples = _triples(lab, variables)
    table: list[dict[str, Any]] = []
    effects: list[Effect] = []
    for triple in triples:
        held = cells(rows, triple)
        there = held[:, 2]
        effect, pre = (observed_interaction(values, held, variables.min_n) for values in (rows.post, rows.pre))
        parts = (observed_interaction(rows.post[mask], held[mask, :2], variables.min_n).value for mask in (~there, there))
        row = _first_cells(triple, held) | dict(zip(("interaction_without", "interaction_with"), parts, strict=True))
        table.append(row | effect.columns("interaction") | {"pre_interaction": pre.value, "status": status(effect.n, variables.min_n)})
        effects.append(effect)
    result = lab.result("observational", rows.post)
    about = (
        "Interaction of the pair (difference of differences) in observed contexts with the modulator, minus that in those without it. "
        "n: contexts in the smallest of the eight cells; n_both: those with all three tokens. The contexts differ in more than the three."
    )
    report(lab, result, "conditional_interactions", table, effects, "interaction", variables.top_k, about, _title(lab, variables))
    result.aggregates.n_samples = len(rows)
    return result


def _intervene(lab: Lab, variables: ConditionalVariables) -> ExperimentResult:
    """Cross both tokens and the modulator on contexts without their families, and run the model on all eight."""
    rows, triples = _triples(lab, variables)
    bases = lab.bases(variables.n_contexts, variables.stable_tokens)
    corners = crossed(lab, bases, triples)
    post, pre = corners.interaction()
    without, with_it = (corners.post[:, :, part] @ signs(2) for part in (slice(4), slice(4, 8)))
    table, effects = [], []
    controls = _controls(lab, variables, bases, triples)
    for at, triple in enumerate(triples):
        found, effect = beside_control(post[at], pre[at], controls[at], variables.min_n)
        known = np.isfinite(post[at]) if effect.value is not None else np.zeros(len(bases), dtype=bool)
        row = _first_cells(triple, cells(rows, triple))
        for name, values in (("interaction_without", without[at]), ("interaction_with", with_it[at])):
            row[name] = float(values[known].mean()) if known.any() else None
        table.append(row | found)
        effects.append(effect)
    result = lab.result("interventional", corners.post[:, :, 0][np.isfinite(corners.post[:, :, 0])])
    about = (
        "f_ijk - f_ij - f_ik - f_jk + f_i + f_j + f_k - f of the pair i, j and the modulator k over contexts that the three families were "
        "stripped of first: the pair's interaction with the modulator minus that without it. control_interaction: mean over the same "
        "contexts of random other modulators; control_p: how many of them modulate as strongly, this one counted among them."
    )
    report(lab, result, "conditional_interactions", table, effects, "interaction", variables.top_k, about, _title(lab, variables))
    result.aggregates.n_samples = int(np.isfinite(post).any(axis=0).sum())
    return result


def _controls(lab: Lab, variables: ConditionalVariables, bases: ContextTable, triples: list[Combination]) -> list[np.ndarray]:
    """Return what random other modulators do to each pair, `[n_controls, n_bases]` each; of other families than the pair's own."""
    spare = families_of(lab, variables.stable_tokens) | {triples[0][2].family}
    drawn = [modulator for (modulator,) in random_items(lab, 1, variables.controls, spare)]
    wanted = [
        (at, (*triple[:2], modulator))
        for at, triple in enumerate(triples)
        for modulator in drawn
        if modulator.family not in {item.family for item in triple}
    ]
    if not wanted:
        lab.warn("there is no control: no other token was tried as a modulator")
        return [np.zeros((0, len(bases)))] * len(triples)
    found = crossed(lab, bases, [triple for _, triple in wanted]).interaction()[0]
    belongs = np.array([at for at, _ in wanted])
    return [found[belongs == at] for at in range(len(triples))]
