"""`pairwise_interactions`: which pairs of tokens do more, or less, to a latent together than the sum of what they do apart."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mlinterp.experiments.base import Context, Experiment
from mlinterp.experiments.token_sets.declared import INPUTS, ModedVariables, TokenOrFamily, check_latent, check_names
from mlinterp.result import ExperimentResult


class InteractionVariables(ModedVariables):
    """Which tokens are combined, and on which contexts."""

    mode: Literal["observational", "interventional"] = Field(
        "interventional", description="edit contexts and run the model on each corner, or compare contexts as they were observed"
    )
    candidate_tokens: list[TokenOrFamily] | None = Field(
        None,
        min_length=2,
        max_length=200,
        description="tokens, or families, to combine; left out: those whose presence goes most with the activation, one a family",
    )
    n_candidates: int = Field(20, ge=2, le=200, description="how many, where candidate_tokens is left out")
    family_mode: bool = Field(False, description="combine whole families: there at any rung, or set to the rung that they most often have")
    n_contexts: int = Field(50, ge=2, le=100_000, description="interventional: observed contexts that are edited")
    controls: int = Field(20, ge=0, le=1000, description="interventional: random combinations that get the same treatment, as a control")
    top_k: int = Field(30, ge=1, le=1000, description="rows of the tables synergies and redundancies")


def run(context: Context) -> ExperimentResult:
    """Add tokens to contexts one by one and together, or compare contexts with both, one and neither of them."""
    from mlinterp.experiments.token_sets.pairwise_interactions_measure import measure
    from mlinterp.token_sets.opening import conduct

    return conduct(context, measure)


EXPERIMENT = Experiment(
    type="pairwise_interactions",
    summary="Pairs of tokens that act on a latent together beyond what they do apart.",
    Variables=InteractionVariables,
    run=run,
    check=check_latent,
    check_domain=check_names,
    aliases=("pair_interactions",),
    modes=("observational", "interventional"),
    inputs=INPUTS,
    headlines=("aggregates/max_delta", "aggregates/min_delta"),
    example={"subject": "NAME", "feature_id": 0, "variables": {"n_candidates": 10}},
)
