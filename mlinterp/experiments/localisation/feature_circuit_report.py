"""What `feature_circuit` says: its tables, the drawn circuit, the curves, and the circuit as a file."""

from __future__ import annotations

from typing import Any

import numpy as np

from mlinterp.circuits.latent_edges import OUTPUT
from mlinterp.circuits.latent_faithfulness import Judged
from mlinterp.circuits.written import pair_digests
from mlinterp.determinism import numpy_stream
from mlinterp.estimates import bounds
from mlinterp.experiments.base import Context
from mlinterp.experiments.localisation.circuit_discovery import CIRCUIT
from mlinterp.experiments.localisation.feature_circuit import FeatureCircuitVariables
from mlinterp.experiments.localisation.feature_circuit_measure import Edges, Exact, Found
from mlinterp.experiments.localisation.feature_circuit_numbers import tell_numbers, warnings_of
from mlinterp.io.atomic import write_json
from mlinterp.patching.effects import CellEffect
from mlinterp.result import Aggregates, ExperimentResult, Figure
from mlinterp.stats import Interval, benjamini_hochberg, bootstrap_ratios

LISTED = 5000
"""Nodes and edges in the tables, the largest first, besides those that are patched exactly."""
DRAWN, BARS = 40, 15
"""Edges of the drawn circuit, and latents of the bar figure."""
_NONE = Interval(float("nan"), float("nan"), float("nan"))
_REPLACED = {
    "resample": "its value in the corrupted run, at the same position",
    "zero": "zero (errors too: what is left is the decoder's bias)",
    "mean": "its mean over all tokens of the corrupted prompts of the pairs that choose",
}


def report(found: Found, context: Context) -> ExperimentResult:
    """Return what was found as a result, and write the circuit down."""
    variables: FeatureCircuitVariables = context.variables
    result = ExperimentResult(mode="interventional", files=[CIRCUIT])
    exact = _exact(found, found.exact, variables.n_bootstrap, context.seed)
    _nodes(result, found, variables, exact)
    exact_edges: list[Interval] = []
    if found.edges is not None:
        exact_edges = _exact(found, found.edges.exact, variables.n_bootstrap, context.seed)
        _edges(result, found, found.edges, variables, exact_edges, context.seed)
    _curve(result, found, variables)
    _figures(result, found)
    tell_numbers(result, found, variables, exact, exact_edges, context.seed)
    write_json(context.workdir / CIRCUIT, _circuit(found, variables))
    result.aggregates = Aggregates(n_samples=len(found.judging), n_conditions=len(found.scored.nodes))
    result.diagnostics.n_contexts_tested = len(found.machine.pairs)
    result.diagnostics.warnings += warnings_of(found, variables)
    return result


def _circuit(found: Found, variables: FeatureCircuitVariables) -> dict[str, Any]:
    nodes, share = found.machine.nodes, _shares(found)
    members = sorted(np.flatnonzero(found.circuit).tolist(), key=lambda node: -abs(share[node]))
    edges = [] if found.edges is None else [(*edge, weight) for edge, weight in _kept(found.edges, variables)]
    metric = found.machine.metric
    return {
        "schema": "mlinterp.feature_circuit.v1",
        "subject": found.machine.subject.name,
        "subject_sha256": found.machine.subject.digest(),
        "chosen_on": pair_digests(found.machine.pairs, found.choosing),
        "saes": [
            {"input": role, "site": place.site, "latents": place.n_latents, "sha256": digest}
            for role, place, digest in zip(found.roles, nodes.places, found.digests, strict=True)
        ],
        "method": variables.method,
        "ablation": variables.ablation,
        "positions": "summed",
        "metric": {"name": metric.name, "version": metric.version},
        "threshold": None if variables.top is not None else variables.share,
        "top": variables.top,
        "edge_threshold": variables.edge_threshold if variables.edges else None,
        "nodes": [
            {"name": nodes.name(node), "site": nodes.places[nodes.place_of[node]].site, "latent": nodes.latent(node), "score": share[node]}
            for node in members
        ],
        "errors": [{"name": nodes.name(node), "score": share[node]} for node in nodes.errors.tolist()],
        "edges": [{"from": nodes.name(up), "to": _name(found, down), "weight": weight} for up, down, weight in edges],
        "faithfulness": {
            "errors_in_the_circuit": _estimate(found.own[0].faithfulness),
            "errors_ablated": _estimate(found.own[1].faithfulness),
        },
    }


def _shares(found: Found) -> dict[int, float]:
    return dict(zip(found.scored.nodes.tolist(), found.scored.shares.tolist(), strict=True))


def _name(found: Found, node: int) -> str:
    return "metric" if node == OUTPUT else found.machine.nodes.name(node)


def _kept(edges: Edges, variables: FeatureCircuitVariables) -> list[tuple[tuple[int, int], float]]:
    """Return the circuit's edges with their weights, the largest first."""
    large = [
        (edge, share) for edge, share in zip(edges.edges, edges.shares.tolist(), strict=True) if abs(share) >= variables.edge_threshold
    ]
    return sorted(large, key=lambda each: -abs(each[1]))


def _estimate(effect: CellEffect | None) -> float | None:
    return None if effect is None else effect.effect.estimate


def _bounded(name: str, interval: Interval) -> dict[str, Any]:
    return {name: interval.estimate, **{f"{name}_{bound}": value for bound, value in bounds(interval).items()}}


def _intervals(effect: CellEffect | None) -> tuple[Interval, Interval, Interval]:
    return (_NONE, _NONE, _NONE) if effect is None else (effect.effect, effect.null, effect.adjusted)


def _nodes(result: ExperimentResult, found: Found, variables: FeatureCircuitVariables, exact: list[Interval]) -> None:
    nodes, scored = found.machine.nodes, found.scored
    patched, p_adj = dict(zip(found.exact.which, exact, strict=True)), _p_adj(found)
    rows = []
    for rank, at in enumerate(np.argsort(-np.abs(scored.shares), kind="stable").tolist(), start=1):
        node = int(scored.nodes[at])
        if rank > LISTED and node not in patched:
            continue
        row: dict[str, Any] = {
            "node": nodes.name(node),
            "site": nodes.places[nodes.place_of[node]].site,
            "kind": "error" if nodes.is_error[node] else "latent",
            "latent": nodes.latent(node),
            "token": found.top_tokens.get(node),
            "rank": rank,
            "in_circuit": None if nodes.is_error[node] else bool(found.circuit[node]),
            "score": scored.shares[at],
        }
        for name, interval in zip(("effect", "null", "adjusted"), _intervals(scored.effects[at]), strict=True):
            row |= _bounded(name, interval)
        rows.append({**row, "p_adj": p_adj.get(node), **_bounded("exact", patched.get(node, _NONE))})
    how = "observational: slopes in the clean run"
    if variables.method == "integrated":
        how = f"interventional: mean slopes over {variables.ig_steps} points between ablated and clean, all nodes of a hook point together"
    about = (
        f"Latents and errors that differ from what stands in their place, the largest first ({len(rows)} of {len(scored.nodes)}; all "
        f"others change nothing). score: estimate ({how}) of the share of the gap in {found.machine.metric.name} that is lost when the "
        f"node alone is replaced by {_REPLACED[variables.ablation]}, at all positions together, on the pairs that choose; effect: the same "
        "on held-out pairs, with 95 % intervals; null: steps as long in random directions; adjusted: effect - null; p_adj: "
        "Benjamini-Hochberg over the circuit's latents and the errors, which other pairs chose. exact: interventional, that ablation "
        "itself, for the errors, the largest latents and as many at random. error: what the SAE leaves unexplained, a node of its own; "
        "circuits are judged with it and without. token: what the latent is most active on in the clean prompts."
    )
    result.add_table("nodes", rows, description=about)
    largest = [row for row in rows if row["kind"] == "error" or row["in_circuit"]][:BARS]
    compared = [
        {"node": _label(row["node"], row["token"]), "which": which, **_bounded_as(row, name)}
        for row in largest
        for which, name in (("node", "effect"), ("random direction", "null"))
    ]
    columns = ["node", "which", "effect", "effect_low", "effect_high"]
    about = "The circuit's largest latents, and the errors, beside steps as long in random directions (held-out pairs)."
    result.add_table("largest_nodes", compared, columns, description=about)


def _p_adj(found: Found) -> dict[int, float]:
    """Return the adjusted p values of the circuit's latents and the errors: other pairs chose them, and nothing else is tested."""
    tested = {
        int(node): effect.p
        for node, effect in zip(found.scored.nodes, found.scored.effects, strict=True)
        if effect is not None and effect.n > 1 and (found.circuit[node] or found.machine.nodes.is_error[node])
    }
    return dict(zip(tested, benjamini_hochberg(np.array(list(tested.values()))).tolist(), strict=True)) if tested else {}


def _bounded_as(row: dict[str, Any], name: str) -> dict[str, Any]:
    return {f"effect{bound}": row[f"{name}{bound}"] for bound in ("", "_low", "_high")}


def _label(name: str, token: str | None) -> str:
    return name if token is None else f"{name} {token!r}"


def _edges(
    result: ExperimentResult, found: Found, edges: Edges, variables: FeatureCircuitVariables, exact: list[Interval], seed: int
) -> None:
    patched = dict(zip(edges.exact.which, exact, strict=True))
    held_out = _ratios(found, edges.falls, variables.n_bootstrap, seed)
    rows = []
    for rank, at in enumerate(np.argsort(-np.abs(edges.shares), kind="stable").tolist(), start=1):
        if rank > LISTED and at not in patched:
            continue
        up, down = edges.edges[at]
        rows.append(
            {
                "from": _name(found, up),
                "to": _name(found, down),
                "rank": rank,
                "in_circuit": bool(abs(edges.shares[at]) >= variables.edge_threshold),
                "weight": edges.shares[at],
                **_bounded("held_out", held_out[at]),
                **_bounded("exact", held_out[at] if down == OUTPUT else patched.get(at, _NONE)),
            }
        )
    about = (
        f"Edges between the circuit's latents, the errors and the metric, the largest first ({len(rows)} of {len(edges.edges)}). exact: "
        f"interventional, share of the gap in {found.machine.metric.name} that is lost when the one node alone sees the other ablated, all "
        "hook points between at their clean activations (held-out pairs); for the largest edges, as many at random, and all into the "
        "metric. weight: estimate of that (on the pairs that choose; held_out: on the others, with 95 % intervals), in which what the one "
        "node sees is measured, and what it does with it follows from the slope of its score; into the metric it is measured as a whole."
    )
    result.add_table("edges", rows, description=about)
    drawn = [
        {
            "from": _label(_name(found, up), found.top_tokens.get(up)),
            "to": _label(_name(found, down), found.top_tokens.get(down)),
            "weight": weight,
        }
        for (up, down), weight in _kept(edges, variables)[:DRAWN]
    ]
    about = f"The circuit's largest edges, as drawn: at most {DRAWN}."
    result.add_table("drawn_edges", drawn, ["from", "to", "weight"], description=about)


def _curve(result: ExperimentResult, found: Found, variables: FeatureCircuitVariables) -> None:
    rows, compared = [], []
    for judged in found.curve:
        row: dict[str, Any] = {"n_latents": judged.n_latents, "errors": _where(judged), "ablation": variables.ablation}
        for name, effect in (("faithfulness", judged.faithfulness), ("completeness", judged.completeness)):
            for prefix, interval in zip(("", "null_", "adjusted_"), _intervals(effect), strict=True):
                row |= _bounded(f"{prefix}{name}", interval)
        rows.append({**row, "p_adj": None if judged.faithfulness is None else judged.faithfulness.p_adj})
        for at, which in enumerate(("found", "random")):
            one: dict[str, Any] = {"n_latents": judged.n_latents, "latents": f"{which}, errors {_where(judged)}"}
            for name, effect in (("faithfulness", judged.faithfulness), ("completeness", judged.completeness)):
                one |= _bounded(name, _intervals(effect)[at])
            compared.append(one)
    about = (
        f"Interventional: the latents ranked first, every other latent replaced by {_REPLACED[variables.ablation]}, on held-out pairs with "
        f"95 % intervals. errors: whether what the SAEs leave unexplained is kept or ablated too. faithfulness: share of the gap in "
        f"{found.machine.metric.name} that is restored; completeness: share lost when these latents (and the errors, where kept) are "
        "ablated and all else kept; null: of as many random latents at each hook point, of those that differ at all; adjusted: less these."
    )
    result.add_table("curve", rows, description=about)
    result.add_table("compared", compared, description="The curve's circuits beside random latents, one row each.")


def _where(judged: Judged) -> str:
    return "kept" if judged.errors_in else "ablated"


def _figures(result: ExperimentResult, found: Found) -> None:
    if found.edges is not None:
        title = "The circuit: how latents and errors act on each other and on the metric (shares of the gap)"
        result.figures.append(Figure(name="circuit", table="drawn_edges", kind="graph", x="from", series="to", y=["weight"], title=title))
    title = "Share of the behaviour that is lost when a node is ablated (estimates, held-out prompts)"
    bars = {"x": "node", "y": ["effect"], "low": "effect_low", "high": "effect_high", "series": "which", "y_label": "share of the gap"}
    result.figures.append(Figure(name="largest_nodes", table="largest_nodes", kind="bar", title=title, **bars))
    line: dict[str, Any] = {"kind": "line", "table": "compared", "x": "n_latents", "x_label": "latents of the circuit", "log_x": True}
    for name, title in (
        ("faithfulness", "What circuits of latents restore of the behaviour, on held-out prompts"),
        ("completeness", "What is lost of the behaviour when circuits are ablated, on held-out prompts"),
    ):
        bounded = {"y": [name], "low": f"{name}_low", "high": f"{name}_high", "series": "latents"}
        result.figures.append(Figure(name=name, **bounded, **line, title=title, y_label=name))


def _exact(found: Found, exact: Exact, n_bootstrap: int, seed: int) -> list[Interval]:
    return _ratios(found, exact.falls, n_bootstrap, seed)


def _ratios(found: Found, falls: np.ndarray, n_bootstrap: int, seed: int) -> list[Interval]:
    """Return the share of the gap that each column of falls `[held-out pair, one]` is, with its interval; NaN where the metric is."""
    defined = np.isfinite(falls).all(axis=0)
    weights = np.repeat(found.gaps[:, None], int(defined.sum()), axis=1)
    rng = numpy_stream(seed, "ablated")
    known = iter(bootstrap_ratios(falls[:, defined], weights, n_bootstrap, rng=rng) if defined.any() else ())
    return [next(known) if each else _NONE for each in defined]
