"""`feature_circuit`: which SAE latents carry a behaviour, how they act on each other, and how faithful the circuit of them is.

Sparse feature circuits (Marks et al. 2024, arXiv 2403.19647) over the SAEs of one to eight hook points, with what each SAE leaves
unexplained as a node of its own. The circuit is chosen on some of the prompt pairs and judged on the others, with the errors in it and
without, beside random latents of the same number.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from pydantic import Field, model_validator

from mlinterp.experiments.base import Context, Experiment, Variables
from mlinterp.experiments.localisation import circuit_discovery
from mlinterp.experiments.localisation.pair_variables import CircuitVariables, check_metric, refuse_flat
from mlinterp.experiments.sae_evaluate import OTHERS
from mlinterp.result import ExperimentResult
from mlinterp.spec import Spec

SAES = ("sae", *OTHERS)
"""Roles of the SAEs, each of another hook point of the same model."""
THRESHOLD = 0.01
"""Share of the gap that a latent must carry where a spec does not say."""


class FeatureCircuitVariables(CircuitVariables):
    """Which behaviour the circuit is of, which latents and edges are in it, and how it is judged."""

    method: Literal["gradient", "integrated"] = Field(
        "integrated",
        description="gradient: slopes in the clean run; integrated: their mean while all nodes of a hook point move from ablated to clean",
    )
    ig_steps: int = Field(10, ge=2, le=1000, description="integrated: points of the way on which slopes are taken")
    ablation: Literal["resample", "zero", "mean"] = Field(
        "resample",
        description="what stands in the place of an ablated latent or error: its value in the corrupted run, zero, or its mean over the "
        "corrupted prompts",
    )
    threshold: float | None = Field(
        None, gt=0, le=1, description=f"share of the gap that a latent must carry to be in the circuit; {THRESHOLD} without top"
    )
    top: int | None = Field(None, ge=1, le=1000, description="the circuit is this many latents of largest score instead")
    edges: bool = Field(True, description="whether edges between the circuit's latents, the errors and the metric are measured")
    edge_threshold: float = Field(0.01, gt=0, le=1, description="share of the gap that an edge must carry to be in the circuit")
    random_circuits: int = Field(5, ge=2, le=100, description="random circuits of each size that faithfulness is compared with")
    controls: int = Field(10, ge=2, le=50, description="draws of random directions that each score is compared with")
    exact: int = Field(
        16,
        ge=2,
        le=1000,
        description="largest latents, and edges, that are patched exactly too, with as many at random: how good scores are",
    )

    @property
    def share(self) -> float:
        """Share of the gap that a latent must carry, where no number of them is given."""
        return THRESHOLD if self.threshold is None else self.threshold

    @model_validator(mode="after")
    def _consistent(self) -> FeatureCircuitVariables:
        if self.threshold is not None and self.top is not None:
            raise ValueError("threshold and top both say which latents are in the circuit: give one")
        return self


def check(_spec: Spec, variables: Variables, _roles: Collection[str]) -> None:
    """Refuse an unknown metric, one without a slope where one is needed, and pairs that lack a token that it needs."""
    assert isinstance(variables, FeatureCircuitVariables)
    if variables.method == "gradient":
        refuse_flat(variables.metric, "method: integrated, or another metric")
    check_metric(variables.metric, variables.pairs)


def run(context: Context) -> ExperimentResult:
    """Score every latent and error, choose the circuit, judge it on other pairs beside random ones, and write it down."""
    from mlinterp.experiments.localisation.feature_circuit_measure import measure
    from mlinterp.experiments.localisation.feature_circuit_report import report

    return report(measure(context), context)


EXPERIMENT = Experiment(
    type="feature_circuit",
    summary="Find the SAE latents that carry a behaviour and what they do to each other, errors included, judged on other prompts.",
    Variables=FeatureCircuitVariables,
    run=run,
    check=check,
    modes=("interventional",),
    inputs={"sae": True, **dict.fromkeys(OTHERS, False), "subject": False},
    example={
        "subject": "NAME",
        "inputs": {"sae": "latest", "subject": "latest"},
        "variables": {"pairs": circuit_discovery.EXPERIMENT.example["variables"]["pairs"], "method": "integrated", "ablation": "resample"},
    },
    headlines=("circuit/null_faithfulness", "circuit/faithfulness", "circuit/adjusted_faithfulness"),
    frontiers=(("circuit/n_latents", "circuit/faithfulness"),),
    ranking=("nodes", "score"),
)
