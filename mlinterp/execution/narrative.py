"""What a study's steps say, as sentences: each number with its interval and its null, and how it was measured.

A place stands out where its effect is beyond its null at 5 % after adjusting for all places that were looked at (`p_adj`) and its interval
leaves out zero. Where nothing does, that is what is said.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from mlinterp.execution.summary import RunSummary
from mlinterp.result import ExperimentResult, Mode, ResultTable

ALPHA = 0.05
MOST = 5
"""Places named in one sentence."""
DISAGREES = 0.1
"""Share of the gap by which a joint effect and the sum of single ones must differ, beyond the interval, to be told as a disagreement."""

Row = dict[str, Any]


class Said(NamedTuple):
    """A sentence about something that was measured otherwise than the rest of its step."""

    text: str
    mode: Mode


Sentences = list[str | Said]

_PARTS = {
    "attn_out": "the attention's outputs",
    "mlp_out": "the MLPs' outputs",
    "attn_head": "heads",
    "mlp_neuron": "neurons",
    "resid_pre": "the residual stream before a block",
    "resid_mid": "the residual stream inside a block",
    "resid_post": "the residual stream after a block",
    "sae_latent": "latents",
}


def narrative(runs: Sequence[RunSummary]) -> list[Row]:
    """Return a row for each sentence that there is to say of the steps: `step`, `mode`, `sentence`."""
    rows = []
    for run in runs:
        result = run.result
        if result is None or result.experiment_type not in _TELL:
            continue
        for each in _TELL[result.experiment_type](result):
            text, mode = each if isinstance(each, Said) else (each, result.mode)
            rows.append({"step": run.label, "mode": mode, "sentence": text})
    return rows


def _patches(result: ExperimentResult) -> Sentences:
    variables, table = result.variables, result.tables.get("patches")
    component, verb = str(variables.get("component")), "restores" if variables.get("direction") == "denoise" else "breaks"
    what = _PARTS.get(component, component)
    if variables.get("ablation", "resample") != "resample":
        what += " at zero" if variables["ablation"] == "zero" else " at their mean"
    how = "estimated from gradients; " if result.experiment_type == "attribution_patching" else ""
    gap = f"of the {variables.get('metric')} gap"
    said: Sentences = [
        *_gap(result),
        *_ranked(table, what, f"{verb} {{effect}} {gap}", _place, int(variables.get("joint", MOST)), how),
    ]
    joint = {row["places"]: row for row in _rows(result.tables.get("joint"))}
    chosen = [row for row in (joint.get(f"top{variables.get('joint')}"), joint.get("all")) if row is not None and row["effect"] is not None]
    said += [Said(_together(row, gap), "interventional") for row in {row["n_places"]: row for row in chosen}.values()]
    agreement, miss = (result.metrics.get(f"agreement/{name}") for name in ("correlation", "largest_miss"))
    if agreement is not None and miss is not None:
        told = f"Exact patches of a random sample of places correlate {agreement:.2f} with the estimates, "
        told += f"the worst of which is off by {_number(miss)} {gap}."
        said.append(Said(told, "interventional"))
    return said


def _paths(result: ExperimentResult) -> Sentences:
    verb = "restores" if result.variables.get("direction") == "denoise" else "breaks"
    gap = f"of the {result.variables.get('metric')} gap"
    return _gap(result) + _ranked(result.tables.get("paths"), "paths", f"{verb} {{effect}} {gap}", lambda row: str(row["path"]), MOST)


def _gap(result: ExperimentResult) -> Sentences:
    """Return a warning where there may be no gap to restore or break."""
    gap = result.estimates.get("baseline/gap")
    if gap is None or gap.low is None or gap.high is None or not gap.low <= 0 <= gap.high:
        return []
    size = _bounded(gap.value, gap.low, gap.high)
    return [f"The gap between clean and corrupted runs is {size}, which may be none: shares of it mean little."]


def _ranked(table: ResultTable | None, what: str, moves: str, name: Callable[[Row], str], most: int, how: str = "") -> Sentences:
    """Return what stands out among the rows of a table of effects, the largest first, or that nothing does; nothing without the table."""
    known = sorted((row for row in _rows(table) if row["adjusted"] is not None), key=lambda row: -abs(row["adjusted"]))
    if not known:
        return [] if table is None else [f"No effect of {what} is defined."]
    standing = [row for row in known if _stands_out(row)]
    first, counted = standing[0] if standing else known[0], how + (f"{len(known)} places" if len(known) > 1 else "one place")
    told = (
        f"{name(first)} {moves.format(effect=_interval(first, 'effect'))}; a step as long in a random direction {_interval(first, 'null')}"
    )
    if first["n"] < 2:
        return [f"Of {what} ({counted}), {told}. It is one prompt pair: whether that is more than chance is not known."]
    if not standing:
        adjusted = "" if first["p_adj"] is None else f" (p {first['p_adj']:.2g}, adjusted for all)"
        return [f"Nothing stands out among {what} ({counted}): the largest, {told}{adjusted}."]
    rest = "; ".join(f"{name(row)} {_interval(row, 'effect')}, random {_number(row['null'])}" for row in standing[1:most])
    text = f"Among {what} ({counted}, of which {len(standing)} stand{'s' if len(standing) == 1 else ''} out), {told}."
    return [text + (f" Then {rest}." if rest else "")]


def _stands_out(row: Row) -> bool:
    if row["p_adj"] is None or row["p_adj"] >= ALPHA or row["adjusted_low"] is None:
        return False
    return bool(row["adjusted_low"] > 0 or row["adjusted_high"] < 0)


def _together(row: Row, gap: str) -> str:
    """Return what places do together, and whether that is what they do one by one."""
    effect, singles = row["effect"], row["sum_of_singles"]
    who = f"All {row['n_places']} places" if row["places"] == "all" else f"The {row['n_places']} largest"
    text = f"{who} patched together: {_interval(row, 'effect')} {gap}, random directions {_number(row['null'])}; one by one they add up to "
    text += _number(singles)
    apart = row["effect_low"] is not None and not row["effect_low"] <= singles <= row["effect_high"]
    if not apart or abs(effect - singles) < DISAGREES:
        return f"{text}."
    why = "together they carry what none does alone" if abs(singles) < abs(effect) else "what they carry overlaps"
    return f"{text}: joint and single patches disagree, {why}."


def _place(row: Row) -> str:
    """Return a patched place in words."""
    unit = next((f"{name} {row[name]}" for name in ("head", "neuron", "latent") if row.get(name) is not None), "")
    layer = "" if row.get("layer") is None or unit.startswith("latent") else f"layer {row['layer']}"
    at = f"at {row['position']}" if row.get("position") is not None else ""
    return " ".join(part for part in (layer, unit, at) if part) or str(row["place"])


def _contributions(result: ExperimentResult) -> Sentences:
    rows = sorted((row for row in _rows(result.tables.get("components")) if row["mean"] is not None), key=lambda row: -abs(row["mean"]))
    total = result.estimates.get("dla/logit")
    if not rows or total is None:
        return []
    what = "logit difference" if result.variables.get("of") == "logit_diff" else "logit"
    texts = []
    for row in rows[:MOST]:
        other = "" if row["control"] is None else f", towards the mean of all answers {_number(row['control'])}"
        texts.append(f"{row['term']} {_bounded(row['mean'], row['low'], row['high'])}{other}")
    beyond = [row for row in rows if row["p_adj"] is not None and row["p_adj"] < ALPHA]
    shared = "" if beyond or all(row["control"] is None for row in rows) else " None is beyond what it writes whatever the answer."
    answers = list({str(row["answer"]) for row in _rows(result.tables.get("logits"))})
    named = f" of {answers[0]!r}" if len(answers) == 1 else ""
    opening = f"The {what}{named} is {_bounded(total.value, total.low, total.high)}. The largest direct contributions: "
    return [f"{opening}{'; '.join(texts)}.{shared}"]


def _circuit(result: ExperimentResult) -> Sentences:
    if "edges" not in result.tables:
        return []
    edges, every = int(result.metrics["circuit/n_edges"]), int(result.metrics["graph/n_edges"])
    method = result.variables.get("method")
    if not edges:
        return [f"{method} finds no circuit: none of {every} edges is kept."]
    found, null = (result.estimates.get(f"circuit/{name}") for name in ("faithfulness", "null_faithfulness"))
    beyond = result.estimates.get("circuit/adjusted_faithfulness")
    text = f"{method} keeps {edges} of {every} edges"
    if found is None or null is None or beyond is None:
        return [f"{text}; how faithful they are is undefined."]
    text += f"; on pairs that did not choose them they restore {_bounded(found.value, found.low, found.high)} of the gap, random circuits "
    text += f"of as many edges {_bounded(null.value, null.low, null.high)}"
    if beyond.low is not None and beyond.low <= 0:
        text += ": no more than chance"
    rows = [row for row in _rows(result.tables.get("nodes")) if row["in_circuit"] and row["adjusted"] is not None]
    largest = sorted(rows, key=lambda row: -abs(row["adjusted"]))[:MOST]
    nodes = "; ".join(f"{row['node']} {_interval(row, 'effect')}, random edges {_number(row['null'])}" for row in largest)
    return [f"{text}.", *([f"Shares of the gap lost when a node of the circuit is replaced: {nodes}."] if nodes else [])]


def _features(result: ExperimentResult) -> Sentences:
    if "latents" not in result.tables:
        return []
    rows, n = _rows(result.tables["latents"]), result.aggregates.n_samples
    firing = [row for row in rows if row["max_act"]]
    asked = bool(result.variables.get("latents"))
    if not firing:
        return [f"{'None of the latents asked about' if asked else 'No latent'} fires on the {n} prompts."]
    texts = []
    for row in firing[:MOST]:
        mean = _bounded(row["mean_act"], row["mean_act_low"], row["mean_act_high"])
        control = f", on the corrupted prompts {_number(row['control_mean'])}" if row.get("control_mean") is not None else ""
        texts.append(
            f"latent {row['latent']} ({row['max_act']:.3g} at {row['token']!r}; in {row['n_prompts']} of {n} prompts; mean {mean}{control})"
        )
    which = "of those asked about" if asked else "most strongly"
    said: Sentences = [f"{int(result.metrics['active/n_latents'])} latents fire on {n} prompts, {which} {'; '.join(texts)}."]
    if "difference" in rows[0] and n > 1:
        telling = [row for row in firing if row["p_adj"] is not None and row["p_adj"] < ALPHA]
        told = ", ".join(str(row["latent"]) for row in sorted(telling, key=lambda row: -abs(row["difference"]))[:MOST])
        count = f"{len(telling)} of {len(rows)} told fire otherwise on the corrupted prompts: {told}"
        said.append(f"{count}." if telling else "None of them fires otherwise on the corrupted prompts, as far as these pairs show.")
    return said


def _dashboard(result: ExperimentResult) -> Sentences:
    if "latents" not in result.tables:
        return []
    return [f"The page latents.html of its run shows where {len(result.tables['latents'].rows)} latents fire in the trace."]


def _rows(table: ResultTable | None) -> list[Row]:
    return [] if table is None else [dict(row) for row in table.rows]


def _interval(row: Row, name: str) -> str:
    return _bounded(row[name], row[f"{name}_low"], row[f"{name}_high"])


def _bounded(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return "an undefined share"
    return _number(value) if low is None or high is None else f"{_number(value)} [{_number(low)}, {_number(high)}]"


def _number(value: float) -> str:
    """Return a number with two decimals, or with as many as show two digits of it.

    >>> [_number(value) for value in (0.8234, 12.3456, 0.00123, 0.0, -0.5)]
    ['0.82', '12.35', '0.0012', '0', '-0.5']
    """
    if abs(value) < 1e-9:
        return "0"
    return f"{value:.2g}" if abs(value) < 0.1 else f"{value:.2f}".rstrip("0").rstrip(".")


_TELL: dict[str, Callable[[ExperimentResult], Sentences]] = {
    "activation_patching": _patches,
    "attribution_patching": _patches,
    "path_patching": _paths,
    "direct_logit_attribution": _contributions,
    "circuit_discovery": _circuit,
    "active_features": _features,
    "latent_dashboard": _dashboard,
}
"""How each type is told; the others have no sentences."""
