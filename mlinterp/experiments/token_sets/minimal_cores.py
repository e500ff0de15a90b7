"""`minimal_cores`: the smallest parts of contexts that still activate a latent."""

from __future__ import annotations

from typing import Literal

from pydantic import AliasChoices, Field

from mlinterp.experiments.base import Context, Experiment
from mlinterp.experiments.token_sets.declared import INPUTS, FamilyName, LatentVariables, check_latent, check_names
from mlinterp.result import ExperimentResult


class MinimalCoreVariables(LatentVariables):
    """Which contexts are reduced, and how much of the activation has to stay."""

    mode: Literal["observational", "interventional"] = Field(
        "interventional", description="take tokens away and run the model on what is left, or count tokens where the latent is most active"
    )
    retention_threshold: float = Field(0.5, gt=0, le=1, description="interventional: share of a context's activation that a core keeps")
    clamp_families: list[FamilyName] = Field([], max_length=200, description="interventional: families that are never taken away")
    exclude_families: list[FamilyName] = Field([], max_length=200, description="families that are taken out of every context first")
    max_examples: int = Field(
        100,
        ge=1,
        le=10_000,
        validation_alias=AliasChoices("max_examples", "n_examples"),
        description="how many contexts, those of highest activation; equal ones count once where they are edited",
    )
    controls: int = Field(20, ge=1, le=1000, description="interventional: random parts of the same size, as a control")


def run(context: Context) -> ExperimentResult:
    """Take families away from the contexts that activate a latent most, until no more can go."""
    from mlinterp.experiments.token_sets.minimal_cores_measure import measure
    from mlinterp.token_sets.opening import conduct

    return conduct(context, measure)


EXPERIMENT = Experiment(
    type="minimal_cores",
    summary="Irreducible sets of tokens that activate a latent.",
    Variables=MinimalCoreVariables,
    run=run,
    check=check_latent,
    check_domain=check_names,
    aliases=("irreducible_cores",),
    modes=("observational", "interventional"),
    inputs=INPUTS,
    headlines=("aggregates/mean_core_size", "aggregates/mean_retention"),
    example={"subject": "NAME", "feature_id": 0, "variables": {"retention_threshold": 0.5}},
)
