"""`core_coverage_analysis`: whether tokens go with a latent's usual activations, or with its most extreme ones alone."""

from __future__ import annotations

from pydantic import AliasChoices, Field, model_validator

from mlinterp.experiments.base import Context, Experiment
from mlinterp.experiments.token_sets.declared import INPUTS, LatentVariables, TokenOrFamily, check_latent, check_names
from mlinterp.result import ExperimentResult


class CoreCoverageVariables(LatentVariables):
    """What is looked for, and which activations are core and tail."""

    tokens_to_check: list[TokenOrFamily] | None = Field(
        None,
        min_length=1,
        max_length=1000,
        validation_alias=AliasChoices("tokens_to_check", "tokens"),
        description="tokens, or families at any rung; where left out, the families that the latent's activation goes with most",
    )
    top_k: int = Field(10, ge=1, le=1000, description="how many families are looked for where none is named")
    coverage_threshold: float = Field(
        0.30,
        gt=0,
        le=1,
        validation_alias=AliasChoices("coverage_threshold", "threshold"),
        description="a token with a smaller share of the core is a tail marker",
    )
    include_weapons: bool = Field(
        True, validation_alias=AliasChoices("include_weapons", "include_groups"), description="whether groups are looked for too"
    )
    core_lower_pct: float = Field(0.25, ge=0, le=0.5, description="the core begins above this share of the effective maximum")
    core_upper_pct: float = Field(0.75, ge=0.5, le=1, description="the core ends with this share of it")
    effective_max_percentile: float = Field(
        0.995, gt=0.9, le=1, description="the effective maximum is this quantile of activations above 0"
    )

    @model_validator(mode="after")
    def _a_region(self) -> CoreCoverageVariables:
        if self.core_lower_pct == self.core_upper_pct:
            raise ValueError(f"the core from {self.core_lower_pct:g} to {self.core_upper_pct:g} is empty")
        return self


def run(context: Context) -> ExperimentResult:
    """Count tokens and groups among the contexts in the core and in the tail of the activations."""
    from mlinterp.experiments.token_sets.core_coverage_analysis_measure import measure
    from mlinterp.token_sets.opening import conduct

    return conduct(context, measure)


EXPERIMENT = Experiment(
    type="core_coverage_analysis",
    summary="Whether tokens cover a latent's usual activations, or mark its most extreme ones alone.",
    Variables=CoreCoverageVariables,
    run=run,
    check=check_latent,
    check_domain=check_names,
    aliases=("core_coverage",),
    inputs=INPUTS,
    headlines=("aggregates/best_driver_coverage", "aggregates/top_tail_marker_coverage"),
    example={"subject": "NAME", "feature_id": 0, "variables": {"tokens_to_check": ["FAMILY"]}},
)
