"""What a prediction about interventions can be judged by: effects with their intervals, beside matched controls and chance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlinterp.estimates import largest_of, share
from mlinterp.interventions.controls import matched
from mlinterp.result import Estimate

CHANCE = "chance agreement: the untouched answers with the source's"


def report_estimates(report: dict[str, Any]) -> dict[str, Estimate]:
    """Return the estimates of a report, named like the metrics that `tables.fill_result` makes of it.

    The largest effect, and the largest of a latent alone, was found by looking at all of them, so it counts as one of that many.
    """
    n, found = report["baseline"]["n"], dict[str, Estimate]()
    applied = [item for item in report["interventions"] if item["effect"] is not None]
    for stage, items in (("top", applied), ("top_latent", single_latents(report))):
        if items:
            top = largest(items)
            for name in ("adjusted_effect", "effect"):
                found[f"{stage}/{name}"] = largest_of(len(items), _effects(top, n, _controls(report, top["id"]))[name])
    for item in applied:
        own = _effects(item, n, _controls(report, item["id"]))
        found[f"effect/{item['id']}"] = own["effect"]
        found[f"control/{item['id']}"] = own["control_effect"]
        found[f"adjusted/{item['id']}"] = own["adjusted_effect"]
        if item["outcome"]["agreement"] is not None:
            found[f"agreement/{item['id']}"] = _agreement(item, n)
    if report["baseline"]["exact"] is not None:
        found["baseline/exact"] = share(round(report["baseline"]["exact"] * n), n)
    return found


def single_latents(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the interventions on one latent alone that were applied."""
    ranked = {entry["intervention"] for entry in report["top_causal_features"]}
    return [item for item in report["interventions"] if item["id"] in ranked]


def largest(applied: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the intervention with the largest effect beyond its controls."""
    return max(applied, key=lambda item: abs(item["effect"]["adjusted_effect"]))


def _effects(item: dict[str, Any], n: int, n_controls: int) -> dict[str, Estimate]:
    effect, null = item["effect"], f"matched controls ({n_controls} draws)"

    def estimate(name: str, interval: str, how: str, **compared: Any) -> Estimate:
        low, high = effect[interval] or (None, None)
        return Estimate(value=effect[name], low=low, high=high, df=n - 1, n=n, interval=how, **compared)

    both = "bootstrap over examples and controls"
    return {
        "effect": estimate(
            "effect", "effect_ci95", "bootstrap over examples", null=null, null_value=effect["control_effect"], p=effect["p"]
        ),
        "control_effect": estimate("control_effect", "control_ci95", both),
        "adjusted_effect": estimate("adjusted_effect", "ci95", both, null=null, null_value=0.0, p=effect["p"]),
    }


def _agreement(item: dict[str, Any], n: int) -> Estimate:
    chance, interval = item["chance_agreement"], item["ci95"]["agreement"]
    low, high = (None, None) if interval is None or None in interval else (min(1.0, max(0.0, chance + bound)) for bound in interval)
    how = "bootstrap over examples of the difference from chance"
    return Estimate(value=item["outcome"]["agreement"], low=low, high=high, df=n - 1, n=n, interval=how, null=CHANCE, null_value=chance)


def _controls(report: dict[str, Any], name: str) -> int:
    """Return how many draws of matched controls an intervention's effect is compared with."""
    kinds = matched(report["primary_outcome"])
    return sum(entry["kind"] in kinds and name in entry["of"] for entry in report["controls"])
