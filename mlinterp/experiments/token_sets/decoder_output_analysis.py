"""`decoder_output_analysis`: which outputs a latent's direction pushes up and down."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mlinterp.experiments.base import Context, Experiment
from mlinterp.experiments.token_sets.declared import INPUTS, LatentVariables, check_latent, check_names
from mlinterp.result import ExperimentResult


class DecoderOutputVariables(LatentVariables):
    """Which outputs are shown, and whether weights are read or logits measured."""

    mode: Literal["observational", "interventional"] = Field(
        "observational",
        description="multiply the latent's direction with the weights that read it, or raise the latent and measure the logits",
    )
    top_k_promoted: int = Field(15, ge=0, le=10_000, description="rows of the table of outputs that it raises")
    top_k_suppressed: int = Field(15, ge=0, le=10_000, description="rows of the table of outputs that it lowers")
    group_by_family: bool = Field(True, description="whether outputs that are tokens are summed up by family")
    include_ap_level: bool = Field(True, description="whether they are summed up by rung")
    exclude_special_tokens: bool = Field(True, description="whether special tokens are left out")
    n_contexts: int = Field(200, ge=2, le=100_000, description="interventional: contexts in which the latent is raised")
    controls: int = Field(20, ge=0, le=1000, description="interventional: random directions of the same length, as a control")


def run(context: Context) -> ExperimentResult:
    """Follow a latent's direction to the logits."""
    from mlinterp.experiments.token_sets.decoder_output_analysis_measure import measure
    from mlinterp.token_sets.opening import conduct

    return conduct(context, measure)


EXPERIMENT = Experiment(
    type="decoder_output_analysis",
    summary="Which outputs a latent's direction pushes up and down.",
    Variables=DecoderOutputVariables,
    run=run,
    check=check_latent,
    check_domain=check_names,
    aliases=("output_attribution",),
    modes=("observational", "interventional"),
    inputs=INPUTS,
    headlines=("aggregates/top_promoted_value", "aggregates/top_suppressed_value"),
    example={"subject": "NAME", "feature_id": 0},
)
