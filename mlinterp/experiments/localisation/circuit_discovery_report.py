"""What `circuit_discovery` says: its tables, curves, heatmap of nodes, headline numbers with what each is judged by, and warnings."""

from __future__ import annotations

from typing import Any

import numpy as np

from mlinterp.circuits.faithfulness import Judged
from mlinterp.circuits.graph import Node
from mlinterp.circuits.held_out import pair_warnings
from mlinterp.circuits.written import SCHEMA, edges_of, pair_digests
from mlinterp.determinism import numpy_stream
from mlinterp.estimates import bounds, record
from mlinterp.experiments.base import Context
from mlinterp.experiments.localisation.circuit_discovery import CIRCUIT, CircuitDiscoveryVariables
from mlinterp.experiments.localisation.circuit_discovery_measure import Found
from mlinterp.io.atomic import write_json
from mlinterp.patching.effects import CellEffect
from mlinterp.result import Aggregates, Estimate, ExperimentResult, Figure
from mlinterp.stats import Interval, bootstrap_intervals, bootstrap_ratios

LISTED = 5000
"""Edges in the table, the largest first, besides those that are cut by themselves; `circuit.json` has all of the circuit's."""
DRAWN = 30
"""Lines of the drawn circuit."""
INCOMPLETE = 0.05
"""Error of completeness above which integrated gradients need more steps."""
_NONE = Interval(float("nan"), float("nan"), float("nan"))
_REPLACED = {
    "resample": "the corrupted run's write at the same position",
    "zero": "nothing",
    "mean": "the mean write over the corrupted prompts of the pairs that choose",
}


def report(found: Found, context: Context) -> ExperimentResult:
    """Return what was found as a result, and write the circuit down."""
    variables: CircuitDiscoveryVariables = context.variables
    result = ExperimentResult(mode="interventional", files=[CIRCUIT])
    write_json(context.workdir / CIRCUIT, _circuit(found, variables))
    exact = _ratios(found, found.exact_falls, variables.n_bootstrap, context.seed)
    _edges(result, found, variables, exact)
    _drawn(result, found)
    _nodes(result, found, variables, context.seed)
    _curve(result, found, variables)
    _figures(result)
    _numbers(result, found, variables, exact, context.seed)
    result.aggregates = Aggregates(n_samples=len(found.judging), n_conditions=found.graph.n_edges)
    result.diagnostics.n_contexts_tested = len(found.machine.pairs)
    result.diagnostics.warnings += _warnings(found, variables)
    return result


def _circuit(found: Found, variables: CircuitDiscoveryVariables) -> dict[str, Any]:
    graph, scores = found.graph, np.nan_to_num(found.search.scores)
    return {
        "schema": SCHEMA,
        "subject": found.machine.subject.name,
        "subject_sha256": found.machine.subject.digest(),
        "chosen_on": pair_digests(found.machine.pairs, found.choosing),
        "method": variables.method,
        "ablation": variables.ablation,
        "metric": {"name": found.machine.metric.name, "version": found.machine.metric.version},
        "threshold": variables.threshold,
        "target": None if variables.method == "acdc" else variables.target,
        "nodes": [graph.nodes[node].name for node in np.flatnonzero(found.circuit.any(axis=0)).tolist()],
        "edges": edges_of(graph, found.circuit, scores),
        "graph": {"nodes": len(graph.nodes), "edges": graph.n_edges},
        "faithfulness": None if found.judged.faithfulness is None else found.judged.faithfulness.effect.estimate,
    }


def _edges(result: ExperimentResult, found: Found, variables: CircuitDiscoveryVariables, exact: list[Interval]) -> None:
    graph, scores = found.graph, found.search.scores
    cut = {tuple(edge): interval for edge, interval in zip(found.exact.tolist(), exact, strict=True)}
    every = sorted(np.argwhere(graph.whole).tolist(), key=lambda edge: -abs(float(np.nan_to_num(scores[tuple(edge)]))))
    rows = []
    for rank, (read, node) in enumerate(every, start=1):
        if rank > LISTED and (read, node) not in cut:
            continue
        held_out = found.search.held_out
        rows.append(
            {
                "edge": graph.edge(read, node),
                "from": graph.nodes[node].name,
                "to": graph.reads[read].name,
                "input": graph.reads[read].kind,
                "rank": rank,
                "in_circuit": bool(found.circuit[read, node]),
                "score": scores[read, node],
                **({} if held_out is None else {"held_out_score": held_out[read, node]}),
                **_bounded("exact", cut.get((read, node), _NONE)),
            }
        )
    score = (
        "measured rise of the circuit's distance to the whole model when the edge was tried; empty where it was cut untried, because "
        "nothing reads on from it"
        if variables.method == "acdc"
        else "estimate from the gradient, on the pairs that choose (held_out_score: on the others)"
    )
    about = (
        f"Edges, the largest first ({len(rows)} of {graph.n_edges}). score: {score}. exact: interventional, share of the gap in "
        f"{found.machine.metric.name} lost when this edge alone is cut and the read sees {_REPLACED[variables.ablation]}, with a 95 % "
        "interval over held-out pairs; for the largest edges and as many random ones."
    )
    result.add_table("edges", rows, description=about)


def _bounded(name: str, interval: Interval) -> dict[str, Any]:
    return {name: interval.estimate, **{f"{name}_{bound}": value for bound, value in bounds(interval).items()}}


def _drawn(result: ExperimentResult, found: Found) -> None:
    """Say the circuit's largest edges node by node, as the figure draws them: a line for all inputs of a head."""
    graph, scores, lines = found.graph, np.nan_to_num(found.search.scores), dict[tuple[str, str], float]()
    for read, node in sorted(np.argwhere(found.circuit).tolist(), key=lambda edge: -abs(float(scores[tuple(edge)]))):
        for end in [_place(graph.nodes[each]) for each in graph.reads[read].feeds] or ["logits"]:
            lines.setdefault((_place(graph.nodes[node]), end), float(scores[read, node]))
    order = {name: number for number, name in enumerate((*map(_place, graph.nodes), "logits"))}
    largest = sorted(list(lines.items())[:DRAWN], key=lambda line: (order[line[0][1]], order[line[0][0]]))
    rows = [{"from": one, "to": other, "score": score} for (one, other), score in largest]
    about = (
        f"The circuit's largest edges as drawn, {len(rows)} of {len(lines)} between two nodes; of several inputs of a head the largest "
        "(score: as in the table of edges)."
    )
    result.add_table("drawn_edges", rows, ["from", "to", "score"], description=about)


def _place(node: Node) -> str:
    """Return a node's name in the figure, where heads of one layer share a column."""
    if node.kind == "embed":
        return "embed"
    return f"mlp {node.layer}" if node.head is None else f"L{node.layer}/h{node.head}"


def _nodes(result: ExperimentResult, found: Found, variables: CircuitDiscoveryVariables, seed: int) -> None:
    graph = found.graph
    own, null = found.falls[: len(graph.nodes)], found.null_falls
    falls, nulls, beyond = (_ratios(found, each, variables.n_bootstrap, seed) for each in (own, null, own - null))
    rows = []
    for number, node in enumerate(graph.nodes):
        inputs = [read for read, each in enumerate(graph.reads) if number in each.feeds]
        rows.append(
            {
                "node": node.name,
                "layer": None if node.kind == "embed" else node.layer,
                "part": node.kind if node.head is None else f"head {node.head}",
                "in_circuit": bool(found.circuit[:, number].any()),
                "edges_in": int(found.circuit[inputs].sum()),
                "edges_out": int(found.circuit[:, number].sum()),
                **_bounded("effect", falls[number]),
                **_bounded("null", nulls[number]),
                **_bounded("adjusted", beyond[number]),
            }
        )
    about = (
        f"Nodes. effect: interventional, share of the gap in {found.machine.metric.name} lost when all that the node writes is replaced by "
        f"{_REPLACED[variables.ablation]}, with a 95 % interval over held-out pairs; null: when as many edges at "
        "random are cut; adjusted: effect - null. edges_in, edges_out: its edges in the circuit."
    )
    result.add_table("nodes", rows, description=about)
    placed = [row for row in rows if row["layer"] is not None]
    result.add_table("placed_nodes", placed, description="The nodes that have a layer, as the heatmap shows them.")


def _curve(result: ExperimentResult, found: Found, variables: CircuitDiscoveryVariables) -> None:
    rows = [
        {"n_edges": judged.n_edges, "ablation": variables.ablation, "on_choosing_pairs": chosen, **_judged(judged)}
        for judged, chosen in zip(found.curve, found.chosen_by, strict=True)
    ]
    about = (
        "Interventional: circuits of the edges ranked first, all other edges cut (the read sees "
        f"{_REPLACED[variables.ablation]}), on held-out pairs with 95 % intervals. faithfulness: share of the gap in "
        f"{found.machine.metric.name} that the circuit restores; completeness: share lost when the circuit is cut and all else kept; null: "
        "of random circuits of as many edges, grown from the logits too; adjusted: less these; minimality: share of (at most 32) edges "
        f"whose cut changes faithfulness by {variables.threshold:g} or more; on_choosing_pairs: faithfulness on the pairs that chose."
    )
    result.add_table("curve", rows, description=about)
    compared = []
    for judged in found.curve:
        for at, which in enumerate(("found", "random, as many edges")):
            row: dict[str, Any] = {"n_edges": judged.n_edges, "circuit": which}
            for name, effect in (("faithfulness", judged.faithfulness), ("completeness", judged.completeness)):
                row |= _bounded(name, _intervals(effect)[at])
            compared.append(row)
    result.add_table("compared", compared, description="The curve's circuits beside random ones, one row each.")


def _judged(judged: Judged) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, effect in (("faithfulness", judged.faithfulness), ("completeness", judged.completeness)):
        for prefix, interval in zip(("", "null_", "adjusted_"), _intervals(effect), strict=True):
            row |= _bounded(f"{prefix}{name}", interval)
    row["p_adj"] = None if judged.faithfulness is None else judged.faithfulness.p_adj
    return {**row, "minimality": judged.minimality}


def _intervals(effect: CellEffect | None) -> tuple[Interval, Interval, Interval]:
    return (_NONE, _NONE, _NONE) if effect is None else (effect.effect, effect.null, effect.adjusted)


def _figures(result: ExperimentResult) -> None:
    title = "The circuit: which part reads what which other writes (shares of the gap)"
    result.figures.append(Figure(name="circuit", table="drawn_edges", kind="graph", x="from", series="to", y=["score"], title=title))
    edges: dict[str, Any] = {"kind": "line", "x": "n_edges", "x_label": "edges of the circuit", "log_x": True}
    for name, title in (
        ("faithfulness", "What circuits restore of the behaviour, on held-out prompts"),
        ("completeness", "What is lost of the behaviour when circuits are cut, on held-out prompts"),
    ):
        bounded = {"y": [name], "low": f"{name}_low", "high": f"{name}_high", "series": "circuit"}
        result.figures.append(Figure(name=name, table="compared", **bounded, **edges, title=title, y_label=name))
    result.figures += [
        Figure(name="minimality", table="curve", **edges, y=["minimality"], title="The share of edges that matters", y_label="minimality"),
        Figure(
            name="nodes",
            table="placed_nodes",
            kind="heatmap",
            x="part",
            y=["effect"],
            series="layer",
            title="Share of the behaviour lost when all that a head or MLP writes is replaced",
            x_label="head or MLP",
            y_label="layer",
            value_label="share lost",
        ),
    ]


def _numbers(result: ExperimentResult, found: Found, variables: CircuitDiscoveryVariables, exact: list[Interval], seed: int) -> None:
    graph = found.graph
    estimates = _baseline(found, variables, seed)
    null = f"random circuits of as many edges ({variables.random_circuits} draws)"
    for name, effect in (("faithfulness", found.judged.faithfulness), ("completeness", found.judged.completeness)):
        if effect is not None:
            estimates |= _compared(name, effect, null)
    for judged in found.curve:
        if judged.faithfulness is not None:
            estimates |= {
                key.replace("circuit/", "curve/") + f"/{judged.n_edges}": each
                for key, each in _compared("faithfulness", judged.faithfulness, null).items()
                if "null" not in key
            }
    estimates["top/exact_effect"] = _alone(found, exact)
    result.metrics |= {name: each.value for name, each in estimates.items()}
    result.metrics |= {
        "circuit/n_edges": float(found.circuit.sum()),
        "circuit/n_nodes": float(found.circuit.any(axis=0).sum()),
        "circuit/share_of_edges": float(found.circuit.sum()) / graph.n_edges,
        "graph/n_edges": float(graph.n_edges),
        "graph/n_nodes": float(len(graph.nodes)),
        "pairs/choosing": float(len(found.choosing)),
        "pairs/held_out": float(len(found.judging)),
    }
    optional = {
        "circuit/minimality": found.judged.minimality,
        "scores/completeness": found.search.completeness,
        "search/runs": found.search.runs,
        **_agreement(found, exact),
    }
    result.metrics |= {name: float(value) for name, value in optional.items() if value is not None}
    record(result, estimates)


def _alone(found: Found, exact: list[Interval]) -> Estimate:
    """Return what cutting the edge that is ranked first does, beside random ones."""
    rest = [interval.estimate for interval in exact[found.n_largest :]]
    compared = {"null": f"random edges cut alone ({len(rest)})", "null_value": float(np.mean(rest))} if rest else {}
    return _over_pairs(exact[0], len(found.judging), **compared)


def _baseline(found: Found, variables: CircuitDiscoveryVariables, seed: int) -> dict[str, Estimate]:
    clean, empty = (values[found.judging] for values in (found.machine.m_clean, found.machine.m_empty))
    estimates = {}
    for name, values in (("clean", clean), ("empty", empty), ("gap", clean - empty)):
        interval = bootstrap_intervals(values[:, None], variables.n_bootstrap, rng=numpy_stream(seed, "baseline"))[0]
        mode = "observational" if name == "clean" else "interventional"
        estimates[f"baseline/{name}"] = _over_pairs(interval, len(values), mode=mode)
    return estimates


def _over_pairs(interval: Interval, n: int, **more: Any) -> Estimate:
    how = "bootstrap over held-out pairs"
    return Estimate(value=interval.estimate, **bounds(interval), df=n - 1, n=n, unit="pair", interval=how, **more)


def _compared(name: str, effect: CellEffect, null: str) -> dict[str, Estimate]:
    p, both = effect.p if effect.n > 1 else None, "bootstrap over held-out pairs and draws"

    def estimate(interval: Interval, how: str, **compared: Any) -> Estimate:
        return Estimate(value=interval.estimate, **bounds(interval), df=effect.n - 1, n=effect.n, unit="pair", interval=how, **compared)

    return {
        f"circuit/{name}": estimate(effect.effect, "bootstrap over held-out pairs", null=null, null_value=effect.null.estimate, p=p),
        f"circuit/null_{name}": estimate(effect.null, both),
        f"circuit/adjusted_{name}": estimate(effect.adjusted, both, null=null, null_value=0.0, p=p),
    }


def _agreement(found: Found, exact: list[Interval]) -> dict[str, float | None]:
    """Return how well gradients estimate what cutting single edges does, on held-out pairs; undefined where either never varies."""
    if found.search.held_out is None:
        return {}
    estimated, measured = found.search.held_out[tuple(found.exact.T)], np.array([each.estimate for each in exact])
    varies = np.ptp(estimated) > 0 and np.ptp(measured) > 0
    return {
        "scores/correlation_with_exact": float(np.corrcoef(estimated, measured)[0, 1]) if varies else None,
        "scores/largest_miss": float(np.abs(estimated - measured).max()),
    }


def _ratios(found: Found, falls: np.ndarray, n_bootstrap: int, seed: int) -> list[Interval]:
    """Return the share of the gap that each row of falls `[cut, held-out pair]` is, with its interval; NaN where the metric is."""
    defined = np.isfinite(falls).all(axis=1)
    weights = np.repeat(found.gaps[:, None], int(defined.sum()), axis=1)
    known = iter(bootstrap_ratios(falls[defined].T, weights, n_bootstrap, rng=numpy_stream(seed, "cut")) if defined.any() else ())
    return [next(known) if each else _NONE for each in defined]


def _warnings(found: Found, variables: CircuitDiscoveryVariables) -> list[str]:
    said = pair_warnings(found.machine.pairs, found.choosing, found.judging, found.gaps, found.machine.metric.name, "cut")
    if not found.circuit.any():
        said.append("the circuit is empty: no edge matters by more than the threshold, or no way leads from the embedding to the logits")
    if not found.reached:
        said.append(f"no circuit that was tried is as faithful as {variables.target:g} on the pairs that choose: the largest one is taken")
    completeness = found.search.completeness
    if completeness is not None and abs(completeness - 1) > INCOMPLETE:
        said.append(
            f"integrated gradients add up to {completeness:.3g} of what they must: the metric bends sharply on the way; raise ig_steps "
            f"above {variables.ig_steps}, or search with acdc"
        )
    said += [
        f"the {group.n_edges} edges {group.name} cut together carry {group.together:.3g} of the gap, one by one they add up to "
        f"{group.singles:.3g} (largest {group.largest:.3g}): parallel parts stand in for each other (an OR), and single cuts hide them"
        for group in found.hidden
    ]
    return said
