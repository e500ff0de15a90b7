"""Scores of attention heads as tables, figures and numbers with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from mlinterp.estimates import LEVEL, bounds, largest_of, record
from mlinterp.readouts.head_scores import KINDS, ON_REPEATS
from mlinterp.result import Estimate, ExperimentResult, Figure
from mlinterp.stats import benjamini_hochberg, mean_t_interval, mean_t_p, single_case_p

WORDS = {
    "induction": "attention to the token after the earlier copy of this one",
    "previous_token": "attention to the token before",
    "duplicate_token": "attention to the earlier copy of this token",
    "first_token": "attention to the first token",
    "current_token": "attention to the token itself",
}
MOST_HEADS = 200
"""Heads that have a metric of their own, the highest; tables hold all. A run is no place for tens of thousands of metrics."""
_ALPHA = 0.05


class Measured(NamedTuple):
    """The scores of every head, by kind: one array `[sequence, head]` for each of `layers`."""

    layers: list[int]
    own: dict[str, list[np.ndarray]]
    """On repeated tokens."""
    unrepeated: dict[str, list[np.ndarray]]
    """On tokens that do not repeat."""
    shuffled: list[dict[str, list[np.ndarray]]]
    """On repeated tokens, with the entries of every weight matrix shuffled, draw by draw."""

    def of_shuffled(self, kind: str, at: int) -> np.ndarray:
        """Return the scores of one layer with shuffled weights, mean over draws, `[sequence, head]`."""
        return np.mean([drawn[kind][at] for drawn in self.shuffled], axis=0)

    def population(self, kind: str) -> np.ndarray:
        """Return the score of every head of every draw with shuffled weights, mean over sequences, `[draw * layer * head]`."""
        return np.concatenate([scores.mean(axis=0) for drawn in self.shuffled for scores in drawn[kind]])


def fill(result: ExperimentResult, measured: Measured, threshold: float, period: int) -> ExperimentResult:
    """Put the scores into the result; a head is found where its score is above the threshold and beyond its control."""
    largest: dict[str, Estimate] = {}
    found: dict[str, Estimate] = {}
    n_detected: dict[str, float] = {}
    detected = []
    for kind in KINDS:
        heads = _heads(measured, kind)
        rows = _rows(measured, kind, heads, threshold)
        detected += [{"kind": kind, **row} for row in rows if row["detected"]]
        n_detected[f"{kind}/n_detected"] = float(sum(row["detected"] for row in rows))
        largest[f"{kind}/largest"] = largest_of(len(heads), max(heads.values(), key=lambda each: each.value))
        highest = {at for at, _ in sorted(heads.items(), key=lambda item: -item[1].value)[:MOST_HEADS]}
        found |= {f"{kind}/blocks.{layer}.head.{head}": heads[layer, head] for layer, head in heads if (layer, head) in highest}
        _add(result, kind, rows, threshold, period)
    found = largest | found
    result.metrics = {name: each.value for name, each in largest.items()} | n_detected | {name: found[name].value for name in found}
    result.add_table(
        "detected",
        detected,
        ["kind", "layer", "head", "score", "low", "high", "unrepeated", "shuffled_weights", "beyond_control", "p", "p_adj", "detected"],
        description=f"The heads whose score is above {threshold} and beyond its control (p_adj < {_ALPHA}). Observational: what a head "
        "attends to, not what the model would do without it.",
    )
    record(result, found)
    return result


def _heads(measured: Measured, kind: str) -> dict[tuple[int, int], Estimate]:
    """Return each head's score beside its control, by (layer, head)."""
    population, found = measured.population(kind), {}
    for at, layer in enumerate(measured.layers):
        control = measured.unrepeated[kind][at] if kind in ON_REPEATS else measured.of_shuffled(kind, at)
        for head, (scores, nulls) in enumerate(zip(measured.own[kind][at].T, control.T, strict=True)):
            found[layer, head] = _estimate(scores, nulls, _control(kind), population)
    return found


def _control(kind: str) -> str:
    return "the same head on tokens that do not repeat" if kind in ON_REPEATS else "the same head with shuffled weights"


def _rows(measured: Measured, kind: str, heads: Mapping[tuple[int, int], Estimate], threshold: float) -> list[dict[str, Any]]:
    adjusted = benjamini_hochberg(np.array([each.p for each in heads.values()]))
    rows: list[dict[str, Any]] = []
    for ((layer, head), each), p_adj in zip(heads.items(), adjusted.tolist(), strict=True):
        at = measured.layers.index(layer)
        shuffled = measured.of_shuffled(kind, at)
        beyond = each.value - (each.null_value or 0.0)
        rows.append(
            {
                "layer": layer,
                "head": head,
                "score": each.value,
                "low": each.low,
                "high": each.high,
                "unrepeated": float(measured.unrepeated[kind][at][:, head].mean()) if kind in ON_REPEATS else None,
                "shuffled_weights": float(shuffled[:, head].mean()),
                "beyond_control": beyond,
                "p": each.p,
                "p_adj": p_adj,
                "detected": each.value > threshold and beyond > 0 and p_adj < _ALPHA,
            }
        )
    return rows


def _estimate(scores: np.ndarray, nulls: np.ndarray, null: str, population: np.ndarray) -> Estimate:
    """Return a head's score beside its control.

    p is the larger of two: the paired t test over sequences (is it there beyond its control?), and the single-case t test against all
    heads with shuffled weights (is it more than one head at random does?): single heads differ without having learned anything.
    """
    interval = mean_t_interval(scores, LEVEL)
    return Estimate(
        value=interval.estimate,
        **bounds(interval),
        level=LEVEL,
        df=len(scores) - 1,
        n=len(scores),
        unit="sequence",
        interval="Student t over sequences",
        null=null,
        null_value=float(nulls.mean()),
        p=max(mean_t_p(scores - nulls), single_case_p(interval.estimate, population)),
    )


def _add(result: ExperimentResult, kind: str, rows: list[dict[str, Any]], threshold: float, period: int) -> None:
    result.add_table(
        kind,
        rows,
        description=f"Observational: {WORDS[kind]}, mean over positions of random tokens that repeat after {period}, with a 95 % interval "
        f"over sequences. Control: {_control(kind)}; p: the larger of a paired t test over sequences and a "
        "single-case t test against all heads with shuffled weights; p_adj: Benjamini–Hochberg over heads; detected: "
        f"above {threshold} and beyond the control.",
    )
    result.figures.append(
        Figure(
            name=kind,
            table=kind,
            kind="heatmap",
            x="head",
            y=["score"],
            series="layer",
            title=f"{kind.replace('_', ' ').capitalize()} heads: {WORDS[kind]}",
            x_label="head",
            y_label="layer",
            value_label="mean attention",
            full=1.0,
        )
    )
