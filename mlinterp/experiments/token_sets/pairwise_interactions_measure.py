"""The arithmetic of `pairwise_interactions`, in both modes."""

from __future__ import annotations

from typing import Any

import numpy as np

from mlinterp.experiments.token_sets.pairwise_interactions import InteractionVariables
from mlinterp.experiments.token_sets.pairwise_interactions_tables import (
    beside_control,
    cells,
    families_of,
    interaction_effects,
    report,
)
from mlinterp.result import ExperimentResult, Figure
from mlinterp.token_sets.effect_table import EffectTable
from mlinterp.token_sets.effects import Effect
from mlinterp.token_sets.interactions import (
    Combination,
    candidates,
    combinations,
    crossed,
    observed_interaction,
    random_items,
)
from mlinterp.token_sets.itemsets import enrichment_p
from mlinterp.token_sets.lab import Lab
from mlinterp.token_sets.slicing import Rows
from mlinterp.token_sets.telling import status


def measure(lab: Lab, variables: InteractionVariables) -> ExperimentResult:
    """Return the result: `synergies`, `redundancies` and every pair."""
    result = _observe(lab, variables) if variables.mode == "observational" else _intervene(lab, variables)
    column = "activation_interaction" if variables.mode == "observational" else "interaction"
    _add_matrix(result, column)
    result.figures.insert(
        0,
        Figure(
            name="pair_interactions",
            table="interaction_matrix",
            kind="heatmap",
            x="token_a",
            series="token_b",
            y=[column],
            title=f"Interactions of pairs on latent {lab.latent} ({result.mode})",
            x_label="token",
            y_label="token",
        ),
    )
    return result


def _add_matrix(result: ExperimentResult, column: str) -> None:
    """Add the interactions as a symmetric matrix: a pair that stands in one order only would look like one without data in the other."""
    rows = result.tables["pair_interactions"].rows
    found = {(row["token_a"], row["token_b"]): row[column] for row in rows}
    found |= {(b, a): value for (a, b), value in found.items()}
    tokens = dict.fromkeys(row[name] for name in ("token_a", "token_b") for row in rows)
    cells = [{"token_a": a, "token_b": b, column: found.get((a, b))} for a in tokens for b in tokens if a == b or (a, b) in found]
    result.add_table("interaction_matrix", cells, description="The interactions of the activation once more, in both orders.")


def effect_table(lab: Lab, variables: InteractionVariables) -> EffectTable:
    """Return the interaction of each pair, so that it can be measured again."""
    return interaction_effects(lab, *_pairs(lab, variables), variables)


def _pairs(lab: Lab, variables: InteractionVariables) -> tuple[Rows, list[Combination]]:
    """Return the observed contexts and the pairs. Two tokens of one family never make one: they exclude or imply each other."""
    rows = lab.rows if variables.mode == "interventional" else lab.holding(variables.stable_tokens)
    spare = families_of(lab, variables.stable_tokens)
    items = candidates(lab, rows, variables.candidate_tokens, variables.n_candidates, spare, whole=variables.family_mode)
    return rows, combinations(items)


def _observe(lab: Lab, variables: InteractionVariables) -> ExperimentResult:
    """Compare contexts with both tokens, one of them and neither."""
    lab.require_variation(lab.holding(variables.stable_tokens))
    rows, pairs = _pairs(lab, variables)
    table: list[dict[str, Any]] = []
    effects: list[Effect] = []
    for pair in pairs:
        held = cells(rows, pair)
        effect, pre = (observed_interaction(values, held, variables.min_n) for values in (rows.post, rows.pre))
        row = _together(pair, held, variables.min_n)
        row |= effect.columns("activation_interaction") | {"pre_interaction": pre.value, "status": status(effect.n, variables.min_n)}
        table.append(row)
        effects.append(effect)
    result = lab.result("observational", rows.post)
    about = (
        "interaction: how much more often two tokens occur together than by chance, lift - 1, which says nothing of the latent. "
        "activation_interaction: the difference between what one token goes with where the other is there and where it is not, "
        "of observed contexts, which differ in more than the two; n: contexts in the smallest of the four cells."
    )
    report(
        lab,
        result,
        "pair_interactions",
        table,
        effects,
        "activation_interaction",
        variables.top_k,
        about,
        f"The largest interactions on latent {lab.latent}",
    )
    result.aggregates.n_samples = len(rows)
    return result


def _together(pair: Combination, held: np.ndarray, min_n: int) -> dict[str, Any]:
    """Return how often two items occur together: their lift - 1 (of `max(expected, 1)`), with Fisher's two-sided p value (doubled).

    The p value is there for every pair: only those that occur together by chance reach `min_n`.
    """
    n, both = len(held), int(held.all(axis=1).sum())
    n_a, n_b = (int(count) for count in held.sum(axis=0))
    expected = n_a * n_b / n
    row: dict[str, Any] = {"token_a": pair[0].name, "token_b": pair[1].name}
    row["interaction"] = (both - expected) / max(expected, 1.0) if both >= min_n else None
    more, less = (
        float(enrichment_p(np.array([inside]), n_a, np.array([count - inside]), n - n_a)[0])
        for inside, count in ((both, n_b), (n_a - both, n - n_b))
    )
    return row | {"cooccurrence_rate": both / n, "n_both": both, "cooccurrence_p": min(1.0, 2 * min(more, less))}


def _intervene(lab: Lab, variables: InteractionVariables) -> ExperimentResult:
    """Add both tokens, one of them and neither to contexts without their families, and run the model on all four."""
    rows, pairs = _pairs(lab, variables)
    bases = lab.bases(variables.n_contexts, variables.stable_tokens)
    corners = crossed(lab, bases, pairs)
    post, pre = corners.interaction()
    known = {frozenset(item.name for item in pair) for pair in pairs}
    drawn = random_items(lab, 2, variables.controls, families_of(lab, variables.stable_tokens), known)
    control = crossed(lab, bases, drawn).interaction()[0] if drawn else np.zeros((0, len(bases)))
    if not drawn:
        lab.warn("there is no control: no other pair of tokens was added")
    table, effects = [], []
    for pair, own, own_pre in zip(pairs, post, pre, strict=True):
        held = cells(rows, pair)
        row: dict[str, Any] = {"token_a": pair[0].name, "token_b": pair[1].name, "interaction": None}
        row |= {"cooccurrence_rate": float(held.all(axis=1).mean()), "n_both": int(held.all(axis=1).sum())}
        found, effect = beside_control(own, own_pre, control, variables.min_n)
        table.append(row | found)
        effects.append(effect)
    result = lab.result("interventional", corners.post[:, :, 0][np.isfinite(corners.post[:, :, 0])])
    about = (
        "f(both) - f(one) - f(other) + f(neither) over contexts that the two families were stripped of first. std_error is that of the "
        "mean (sample, n - 1), std_error_population the same with n. control_interaction: mean over the same contexts of random pairs of "
        "tokens; control_p: how many of them interact as strongly, this pair counted among them."
    )
    report(
        lab,
        result,
        "pair_interactions",
        table,
        effects,
        "interaction",
        variables.top_k,
        about,
        f"The largest interactions on latent {lab.latent}",
    )
    result.aggregates.n_samples = int(np.isfinite(post).any(axis=0).sum())
    return result
