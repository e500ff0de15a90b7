"""The arithmetic of `decoder_output_analysis`: a latent's direction times the weights that read it, or raised in the running model.

One unit of a latent adds its decoder row d to the site that the SAE reads (a neuron is a direction of its own). Where the logits are a
linear map W of that site, the unit adds W d to them, in every context alike. Where they are not, that has to be measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlinterp.errors import ExperimentError
from mlinterp.estimates import largest_of, record
from mlinterp.experiments.token_sets.decoder_output_analysis import DecoderOutputVariables
from mlinterp.result import ExperimentResult, Figure
from mlinterp.stats import single_case_p
from mlinterp.token_sets.effects import Effect, mean_effect
from mlinterp.token_sets.feature import LatentReader
from mlinterp.token_sets.lab import Lab
from mlinterp.token_sets.raising import raised
from mlinterp.token_sets.telling import adjust, judge

_ROUNDING = 1e-5
"""Changes of logits that differ by this share of the largest are equal: they are differences of float32 numbers."""
_LEAST_RISE = 0.01
"""A context in which the latent can rise by less than this share of the largest rise tells of rounding, by which it would be divided."""


@dataclass(frozen=True)
class Attribution:
    """What one unit of a latent adds to each output.

    Attributes:
        names: of the outputs.
        contribution: logits a unit, float64 `[n_outputs]`.
        magnitude: length of the latent's direction.
        effects: where it was measured, the same with its interval over contexts.
        control: where it was measured, the same of random directions of that length, float64 `[n_controls, n_outputs]`.
    """

    names: Sequence[str]
    contribution: np.ndarray
    magnitude: float
    effects: Sequence[Effect] = ()
    control: np.ndarray | None = None


def measure(lab: Lab, variables: DecoderOutputVariables) -> ExperimentResult:
    """Return the result: `promoted_tokens`, `suppressed_tokens`, and what they share by family and rung."""
    assert lab.reader is not None
    found = _measured(lab, lab.reader, variables) if variables.mode == "interventional" else _read(lab, lab.reader)
    return told(lab, variables, found)


def direct(names: Sequence[str], weights: np.ndarray, direction: np.ndarray) -> Attribution:
    """Return what a direction `[d]` adds to outputs that read it by `weights [n_outputs, d]`."""
    contribution = weights.astype(np.float64) @ direction.astype(np.float64)
    return Attribution(names, contribution, float(np.linalg.norm(direction)))


def _read(lab: Lab, reader: LatentReader) -> Attribution:
    """Return the attribution by weights. Raises SpecError where the way to the logits is not linear."""
    names, weights = reader.subject.output_weights(reader.site)
    return direct(names, weights, reader.direction(lab.latent))


def _measured(lab: Lab, reader: LatentReader, variables: DecoderOutputVariables) -> Attribution:
    """Raise the latent to its largest activation in the slice, and return the change of the logits for each unit of the rise."""
    bases = lab.bases(variables.n_contexts)
    direction, top = reader.direction(lab.latent), float(lab.rows.post.max())
    rise = top - lab.activations(bases).post
    below = rise > max(_LEAST_RISE * rise.max(), 1e-6 * abs(top), 1e-18)
    if not below.any():
        raise ExperimentError(
            f"latent {lab.latent} is at its largest activation, {top:g}, in all {len(bases)} contexts: it cannot be raised"
        )
    if not below.all():
        lab.warn(f"{int((~below).sum())} contexts have the largest activation already, or nearly, and were left out")
    bases, rise = bases.take(below), rise[below]
    change = _settled(raised(reader, bases, rise, direction) / rise[:, None])
    control = None
    if variables.controls:
        stream = lab.stream("directions")
        drawn = stream.standard_normal((variables.controls, len(direction)))
        drawn *= np.linalg.norm(direction) / np.linalg.norm(drawn, axis=1, keepdims=True)
        control = np.stack([(raised(reader, bases, rise, one) / rise[:, None]).mean(axis=0) for one in drawn])
    effects = [mean_effect(column) for column in change.T]
    names = tuple(reader.subject.package.outputs)
    return Attribution(names, change.mean(axis=0), float(np.linalg.norm(direction)), effects, control)


def _settled(change: np.ndarray) -> np.ndarray:
    """Return the changes without what float32 adds: none where they are next to nothing, the mean where contexts agree but for it."""
    rounding = _ROUNDING * np.abs(change).max()
    change = np.where(np.abs(change) <= rounding, 0.0, change)
    return np.where(np.ptp(change, axis=0) <= rounding, change.mean(axis=0), change)


def told(lab: Lab, variables: DecoderOutputVariables, found: Attribution) -> ExperimentResult:
    """Return the result of an attribution."""
    rows = _rows(lab, variables, found)
    if not rows:
        raise ExperimentError("every output is a special token: set exclude_special_tokens to false")
    promoted = sorted((row for row in rows if row["contribution"] > 0), key=lambda row: -row["contribution"])
    suppressed = sorted((row for row in rows if row["contribution"] < 0), key=lambda row: row["contribution"])
    result = lab.result("interventional" if found.effects else "observational")
    how = "measured by raising it in contexts" if found.effects else "by the weights alone: no model is run with the latent changed"
    about = f"Logits that one unit of the latent adds, {how}. centred: less the mean over all outputs, which a softmax does not see."
    if found.control is not None:
        about += (
            " p: that the logit does not change, which any direction makes it do; control_contribution: the root mean square of random"
            " directions of the same length, with the sign of the contribution; control_p: how many of them move the output as far, this"
            " one counted among them."
        )
    columns = list(rows[0])
    for name, part, k in (
        ("promoted_tokens", promoted, variables.top_k_promoted),
        ("suppressed_tokens", suppressed, variables.top_k_suppressed),
    ):
        result.add_table(name, part[:k], columns, description=about)
        if part[:k]:
            result.figures.append(_bars(lab, result, name))
    if variables.group_by_family:
        _by_family(result, rows)
    if variables.include_ap_level:
        _by_rung(result, rows)
    custom = result.aggregates.custom
    custom |= {"n_promoted": len(promoted), "n_suppressed": len(suppressed), "decoder_magnitude": found.magnitude}
    custom |= {"total_positive": sum(row["contribution"] for row in promoted)}
    custom |= {"total_negative": sum(row["contribution"] for row in suppressed)}
    for name, part in (("top_promoted", promoted), ("top_suppressed", suppressed)):
        custom |= {name: part[0]["token"] if part else None, f"{name}_value": part[0]["contribution"] if part else None}
        if part and found.effects:
            _judge_top(result, f"aggregates/{name}_value", found, part[0]["token"], [row["token"] for row in rows])
    result.aggregates.n_conditions = len(rows)
    return result


def _judge_top(result: ExperimentResult, name: str, found: Attribution, top: str, shown: Sequence[str]) -> None:
    """Record the change of the output that was chosen as the largest (smallest) of those shown.

    Any direction changes some logit, in much the same way in every context: what is compared is the largest change by random ones.
    """
    at = [list(found.names).index(each) for each in shown]
    effect = found.effects[list(found.names).index(top)]
    if found.control is None or len(found.control) < 2 or effect.p is None:
        judge(result, name, effect, "no change of the logit", of=len(shown))
        return
    largest = found.control[:, at].max(axis=1) if (effect.value or 0.0) > 0 else found.control[:, at].min(axis=1)
    p = max(effect.p, single_case_p(effect.value or 0.0, largest))
    estimate = effect.estimate("context", "the largest change by random directions of its length", float(largest.mean()), p)
    assert estimate is not None
    record(result, {name: largest_of(len(shown), estimate).model_copy(update={"p": p})})


def _rows(lab: Lab, variables: DecoderOutputVariables, found: Attribution) -> list[dict[str, Any]]:
    vocabulary = lab.vocabulary
    tokens, special = set(vocabulary.tokens), vocabulary.special if variables.exclude_special_tokens else ()
    mean = float(found.contribution.mean())
    rows = []
    for at, (name, value) in enumerate(zip(found.names, found.contribution.tolist(), strict=True)):
        if name in special:
            continue
        family, rung = vocabulary.parse(name) if name in tokens else (None, None)
        row = {"token": name, "contribution": value, "family": family, "ap_level": "binary" if family and rung is None else rung}
        row["centred"] = value - mean
        if found.effects:
            row |= {key: cell for key, cell in found.effects[at].columns("contribution").items() if key != "contribution"}
        if found.control is not None:
            beyond = np.abs(found.control[:, at]) >= abs(value)
            row |= {"control_contribution": float(np.copysign(np.sqrt((found.control[:, at] ** 2).mean()), value))}
            row |= {"control_p": (1 + int(beyond.sum())) / (1 + len(beyond))}
        rows.append(row)
    if found.effects:
        adjust(rows)
    return rows


def _by_family(result: ExperimentResult, rows: list[dict[str, Any]]) -> None:
    summed = []
    for family in dict.fromkeys(row["family"] for row in rows if row["family"]):
        values = [row["contribution"] for row in rows if row["family"] == family]
        summed.append({"family": family, "mean_contribution": float(np.mean(values)), "max_contribution": max(values)})
        summed[-1] |= {"min_contribution": min(values), "n_tokens": len(values)}
    columns = ["family", "mean_contribution", "max_contribution", "min_contribution", "n_tokens"]
    summed.sort(key=lambda row: -row["mean_contribution"])
    result.add_table("family_summary", summed, columns, description="The same by family, of outputs that are tokens of one.")


def _by_rung(result: ExperimentResult, rows: list[dict[str, Any]]) -> None:
    levels = {row["ap_level"] for row in rows if row["family"]}
    summed = []
    for level in sorted(levels, key=lambda level: -1 if level == "binary" else level):
        values = [row["contribution"] for row in rows if row["family"] and row["ap_level"] == level]
        summed.append({"ap_level": level, "mean_contribution": float(np.mean(values)), "n_tokens": len(values)})
    columns = ["ap_level", "mean_contribution", "n_tokens"]
    result.add_table("ap_level_patterns", summed, columns, description="The same by rung, over all families.")


def _bars(lab: Lab, result: ExperimentResult, table: str) -> Figure:
    control = "control_contribution" in result.tables[table].columns
    return Figure(
        name=table,
        table=table,
        kind="bar",
        x="token",
        y=["contribution", *(["control_contribution"] if control else [])],
        title=f"Outputs that latent {lab.latent} {'raises' if table.startswith('promoted') else 'lowers'} most ({result.mode})",
        y_label="logits for each unit",
    )
