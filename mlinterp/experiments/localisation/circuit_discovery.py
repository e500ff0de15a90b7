"""`circuit_discovery`: which edges between a transformer's parts carry a behaviour, and how faithful the circuit of them is.

Edge attribution patching (`eap`: Syed et al. 2023), with integrated gradients (`eap_ig`: Hanna et al. 2024), or greedy search (`acdc`:
Conmy et al. 2023). The circuit is chosen on some of the prompt pairs and judged on the others, beside random circuits of its size.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

from pydantic import Field

from mlinterp.experiments.base import Context, Experiment, Variables
from mlinterp.experiments.localisation.pair_variables import CircuitVariables, check_metric, refuse_flat
from mlinterp.result import ExperimentResult
from mlinterp.spec import Spec

CIRCUIT = "circuit.json"
"""The found circuit, as a file."""


class CircuitDiscoveryVariables(CircuitVariables):
    """Which behaviour the circuit is of, how it is searched, and how it is judged."""

    method: Literal["eap", "eap_ig", "acdc"] = Field(
        "eap_ig",
        description="eap: gradients in the clean run; eap_ig: their mean along the way from the ablated to the clean embedding; acdc: "
        "edges cut one by one",
    )
    ablation: Literal["resample", "zero", "mean"] = Field(
        "resample",
        description="what stands in the place of a cut edge: the corrupted run's write, nothing, or its mean over the corrupted prompts",
    )
    ig_steps: int = Field(20, ge=2, le=1000, description="eap_ig: points of the way on which gradients are taken")
    threshold: float = Field(
        0.01, gt=0, le=1, description="share of the gap that an edge must matter: by it acdc keeps edges, and minimality counts them"
    )
    target: float = Field(
        0.8,
        gt=0,
        le=1,
        description="eap, eap_ig: the circuit is the smallest as faithful as this on the pairs that choose it, of `sizes` if given",
    )
    random_circuits: int = Field(
        5,
        ge=2,
        le=100,
        description="random circuits of each size, grown from the logits as found ones are, that faithfulness is compared with",
    )
    exact: int = Field(32, ge=2, le=1000, description="largest edges that are cut by themselves too, to see how good their scores are")


def check(_spec: Spec, variables: Variables, _roles: Collection[str]) -> None:
    """Refuse an unknown metric, one without a gradient where one is needed, and pairs that lack a token that it needs."""
    assert isinstance(variables, CircuitDiscoveryVariables)
    if variables.method == "eap":
        refuse_flat(variables.metric, "method: eap_ig or acdc, or another metric")
    check_metric(variables.metric, variables.pairs)


def run(context: Context) -> ExperimentResult:
    """Score every edge, choose the circuit, judge it on other pairs beside random circuits, and write it down."""
    from mlinterp.experiments.localisation.circuit_discovery_measure import measure
    from mlinterp.experiments.localisation.circuit_discovery_report import report

    return report(measure(context), context)


_EXAMPLE: dict[str, Any] = {
    "subject": "NAME",
    "variables": {
        "pairs": [
            {
                "clean": f"When {one} and {other} went out, {other} gave milk to",
                "corrupted": f"When {one} and {other} went out, {one} gave milk to",
                "answer": f" {one}",
                "wrong": f" {other}",
            }
            for one, other in (("Mary", "John"), ("Anne", "Paul"))
        ],
        "method": "eap_ig",
        "ablation": "resample",
    },
}

EXPERIMENT = Experiment(
    type="circuit_discovery",
    summary="Find the edges between heads and MLPs that carry a behaviour, and judge them on prompts that did not choose them.",
    Variables=CircuitDiscoveryVariables,
    run=run,
    check=check,
    modes=("interventional",),
    inputs={"subject": False},
    produces="circuit",
    example=_EXAMPLE,
    headlines=("circuit/null_faithfulness", "circuit/faithfulness", "circuit/adjusted_faithfulness"),
    ranking=("edges", "score"),
    frontiers=(("circuit/n_edges", "circuit/faithfulness"),),
)
