"""`circuit_discovery`: which edges between a transformer's parts carry a behaviour, and how faithful the circuit of them is.

Edge attribution patching (`eap`: Syed et al. 2023), with integrated gradients (`eap_ig`: Hanna et al. 2024), or greedy search (`acdc`:
Conmy et al. 2023). The circuit is chosen on some of the prompt pairs and judged on the others, beside random circuits of its size.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mlinterp.errors import SpecError
from mlinterp.experiments.base import Context, Experiment, Variables
from mlinterp.experiments.localisation.pair_variables import PairVariables, check_metric
from mlinterp.result import ExperimentResult
from mlinterp.spec import Spec

CIRCUIT = "circuit.json"
"""The found circuit, as a file."""
FLAT_AT_CLEAN = ("kl", "l2", "cosine")
"""Metrics that are largest in the clean run: their gradient vanishes there."""


class CircuitDiscoveryVariables(PairVariables):
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
    sizes: list[Annotated[int, Field(ge=1)]] | None = Field(
        None, min_length=1, max_length=100, description="numbers of edges of the curve's circuits; 1, 2, 5, 10, 20, … where left out"
    )
    target: float = Field(
        0.8,
        gt=0,
        le=1,
        description="eap, eap_ig: the circuit is the smallest as faithful as this on the pairs that choose it, of `sizes` if given",
    )
    held_out: float = Field(0.5, gt=0, lt=1, description="share of the pairs that judge the circuit and do not choose it")
    random_circuits: int = Field(
        5,
        ge=2,
        le=100,
        description="random circuits of each size, grown from the logits as found ones are, that faithfulness is compared with",
    )
    exact: int = Field(32, ge=2, le=1000, description="largest edges that are cut by themselves too, to see how good their scores are")
    batch_size: int = Field(
        64, ge=1, le=65_536, description="runs a batch; one that does not fit in memory is split. It changes the last digits of float32"
    )

    @model_validator(mode="after")
    def _consistent(self) -> CircuitDiscoveryVariables:
        if self.sizes is not None and len(set(self.sizes)) != len(self.sizes):
            raise ValueError(f"sizes {self.sizes} must name each once")
        if isinstance(self.pairs, list) and len(self.pairs) < 2:
            raise ValueError("pairs must be at least 2: the circuit is judged on pairs that did not choose it")
        return self


def check(_spec: Spec, variables: Variables, _roles: Collection[str]) -> None:
    """Refuse an unknown metric, one without a gradient where one is needed, and pairs that lack a token that it needs."""
    assert isinstance(variables, CircuitDiscoveryVariables)
    if variables.method == "eap" and variables.metric in FLAT_AT_CLEAN:
        raise SpecError(
            f"the gradient of {variables.metric} is zero in the clean run, and so would be every score",
            field="variables.metric",
            allowed="method: eap_ig or acdc, or another metric",
        )
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
