"""The numbers of `feature_circuit` that a prediction can be judged by, each with its interval and null, and what a reader is warned of."""

from __future__ import annotations

from typing import Any

import numpy as np

from mlinterp.circuits.held_out import pair_warnings
from mlinterp.determinism import numpy_stream
from mlinterp.estimates import bounds, record
from mlinterp.experiments.localisation.feature_circuit import FeatureCircuitVariables
from mlinterp.experiments.localisation.feature_circuit_measure import EDGED, Exact, Found
from mlinterp.patching.effects import CellEffect, patch_effect
from mlinterp.result import Estimate, ExperimentResult
from mlinterp.stats import Interval, bootstrap_intervals

NOTABLE = 0.1
"""Share of the gap by which scores of a hook point may miss what ablating all of it does."""
MOST = 0.5
"""Share of the behaviour below which what it is a share of must be said."""


def tell_numbers(
    result: ExperimentResult,
    found: Found,
    variables: FeatureCircuitVariables,
    exact: list[Interval],
    exact_edges: list[Interval],
    seed: int,
) -> None:
    """Put them into a result.

    Args:
        result: what they are put into.
        found: what was measured.
        variables: of the spec.
        exact: intervals of the nodes that were ablated alone, as shares of the gap.
        exact_edges: of the edges that were patched alone.
        seed: of resampling.
    """
    estimates = _baseline(found, variables, seed)
    null = f"as many random latents at each hook point ({variables.random_circuits} draws)"
    for stage, judged in (("circuit", found.own[0]), ("circuit_without_errors", found.own[1])):
        for name, effect in (("faithfulness", judged.faithfulness), ("completeness", judged.completeness)):
            if effect is not None:
                estimates |= _compared(stage, name, effect, null)
    for stage, judged in (("all_latents", found.ends[1]), ("errors", found.ends[2])):
        if judged.faithfulness is not None:
            interval = judged.faithfulness.effect
            estimates[f"{stage}/faithfulness"] = _over_pairs(found, interval)
    estimates["top/exact_effect"] = _alone(found, found.exact, exact, "random latents ablated alone")
    metrics: dict[str, float | None] = {name: each.value for name, each in estimates.items()}
    metrics |= {
        "circuit/n_latents": float(found.circuit.sum()),
        "nodes/n_differing": float(len(found.scored.nodes) - len(found.machine.sites)),
        "nodes/n_latents": float(len(found.machine.nodes) - len(found.machine.sites)),
        "pairs/choosing": float(len(found.choosing)),
        "pairs/held_out": float(len(found.judging)),
    }
    estimated = dict(zip(found.scored.nodes.tolist(), (found.scored.falls.sum(axis=0) / found.gaps.sum()).tolist(), strict=True))
    metrics |= _agreement("nodes", [estimated[node] for node in found.exact.which], exact)
    if found.scored.missed is not None:
        metrics["nodes/largest_completeness_error"] = max(abs(each) for each in found.scored.missed)
    if found.edges is not None:
        metrics["circuit/n_edges"] = float((np.abs(found.edges.shares) >= variables.edge_threshold).sum())
    if found.edges is not None and exact_edges:
        shares = found.edges.falls.sum(axis=0) / found.gaps.sum()
        metrics |= _agreement("edges", [float(shares[at]) for at in found.edges.exact.which], exact_edges)
        estimates["top_edge/exact_effect"] = _alone(found, found.edges.exact, exact_edges, "random edges patched alone")
        metrics["top_edge/exact_effect"] = estimates["top_edge/exact_effect"].value
    result.metrics |= {name: float(value) for name, value in metrics.items() if value is not None and np.isfinite(value)}
    record(result, {name: each for name, each in estimates.items() if name in result.metrics})


def _over_pairs(found: Found, interval: Interval, how: str = "bootstrap over held-out pairs", **more: Any) -> Estimate:
    n = len(found.judging)
    return Estimate(value=interval.estimate, **bounds(interval), df=n - 1, n=n, unit="pair", interval=how, **more)


def _alone(found: Found, exact: Exact, intervals: list[Interval], what: str) -> Estimate:
    """Return what patching the one that is ranked first does, beside random ones."""
    rest = [interval.estimate for interval in intervals[exact.n_largest : exact.n_largest + exact.n_random]]
    null: dict[str, Any] = {"null": f"{what} ({len(rest)})", "null_value": float(np.mean(rest))} if rest else {}
    return _over_pairs(found, intervals[0], **null)


def _baseline(found: Found, variables: FeatureCircuitVariables, seed: int) -> dict[str, Estimate]:
    machine = found.machine
    clean, corrupted, empty = (values[found.judging] for values in (machine.m_clean, machine.m_corrupted, machine.m_empty))
    estimates = {}
    for name, values in (("clean", clean), ("corrupted", corrupted), ("empty", empty), ("gap", clean - empty)):
        interval = bootstrap_intervals(values[:, None], variables.n_bootstrap, rng=numpy_stream(seed, "baseline"))[0]
        mode = "observational" if name in ("clean", "corrupted") else "interventional"
        estimates[f"baseline/{name}"] = _over_pairs(found, interval, mode=mode)
    return estimates


def _compared(stage: str, name: str, effect: CellEffect, null: str) -> dict[str, Estimate]:
    p, both = effect.p if effect.n > 1 else None, "bootstrap over held-out pairs and draws"

    def estimate(interval: Interval, how: str, **compared: Any) -> Estimate:
        return Estimate(value=interval.estimate, **bounds(interval), df=effect.n - 1, n=effect.n, unit="pair", interval=how, **compared)

    return {
        f"{stage}/{name}": estimate(effect.effect, "bootstrap over held-out pairs", null=null, null_value=effect.null.estimate, p=p),
        f"{stage}/null_{name}": estimate(effect.null, both),
        f"{stage}/adjusted_{name}": estimate(effect.adjusted, both, null=null, null_value=0.0, p=p),
    }


def _agreement(what: str, estimated: list[float], exact: list[Interval]) -> dict[str, float | None]:
    """Return how well gradients estimate exact patches, on held-out pairs; the correlation is undefined where either never varies."""
    one, other = np.array(estimated), np.array([each.estimate for each in exact])
    varies = len(one) > 2 and np.isfinite(other).all() and np.ptp(one) > 0 and np.ptp(other) > 0
    return {
        f"{what}/correlation_with_exact": float(np.corrcoef(one, other)[0, 1]) if varies else None,
        f"{what}/largest_miss": float(np.abs(one - other).max()),
    }


def warnings_of(found: Found, variables: FeatureCircuitVariables) -> list[str]:
    """Return what a reader must know to trust the circuit."""
    machine = found.machine
    said = pair_warnings(machine.pairs, found.choosing, found.judging, found.gaps, machine.metric.name, "ablated")
    carried = patch_effect(found.gaps, (machine.m_clean - machine.m_corrupted)[found.judging])
    if variables.ablation == "resample" and carried is not None and abs(carried) < MOST:
        said.append(
            f"ablating every node moves {machine.metric.name} by {carried:.3g} of what the corrupted prompts do: the rest of the behaviour "
            "passes these hook points by, and faithfulness says nothing of it"
        )
    if not found.circuit.any():
        said.append(f"the circuit is empty: no latent carries {variables.share:g} of the gap")
    alone = found.ends[1].faithfulness
    if alone is not None and alone.effect.estimate < MOST:
        said.append(
            f"all latents without the errors restore {alone.effect.estimate:.3g} of the behaviour: most of it lies in what the SAEs leave "
            "unexplained, which no circuit of latents can show"
        )
    worst = max(found.scored.missed or [0.0], key=abs)
    if abs(worst) > NOTABLE:
        said.append(
            f"the scores of a hook point miss what ablating all of it does by {worst:.3g} of the gap: raise ig_steps above "
            f"{variables.ig_steps}"
        )
    said += [
        f"the {each.n_latents} latents of {each.site} ablated together carry {each.together:.3g} of the gap, one by one they add up to "
        f"{each.singles:.3g} ({each.n_measured} measured, the rest estimated): latents "
        + ("stand in for each other (an OR), and single ablations hide them" if each.is_measured else "may stand in for each other (an OR)")
        for each in found.joints
        if each.hides
    ]
    if found.edges is not None and found.edges.left_out:
        said.append(f"edges are measured between the {EDGED} largest latents; {found.edges.left_out} more are in the circuit")
    return said
