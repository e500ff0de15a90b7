"""`conditional_interactions`: how a third token changes what pairs of tokens do to a latent together."""

from __future__ import annotations

from pydantic import Field

from mlinterp.experiments.base import Context, Experiment
from mlinterp.experiments.token_sets.declared import INPUTS, TokenOrFamily, check_latent, check_names
from mlinterp.experiments.token_sets.pairwise_interactions import InteractionVariables
from mlinterp.result import ExperimentResult


class ConditionalVariables(InteractionVariables):
    """Which token modulates the interactions of which others."""

    modulator_token: TokenOrFamily = Field(description="the token (or family, at any rung) that is there or not")
    n_candidates: int = Field(8, ge=2, le=100, description="how many tokens are paired, where candidate_tokens is left out")
    controls: int = Field(5, ge=0, le=100, description="interventional: other random modulators, as a control")


def run(context: Context) -> ExperimentResult:
    """Cross each pair with the modulator, by editing contexts or among contexts as they were observed."""
    from mlinterp.experiments.token_sets.conditional_interactions_measure import measure
    from mlinterp.token_sets.opening import conduct

    return conduct(context, measure)


EXPERIMENT = Experiment(
    type="conditional_interactions",
    summary="How a third token changes the interactions of pairs of tokens.",
    Variables=ConditionalVariables,
    run=run,
    check=check_latent,
    check_domain=check_names,
    aliases=("modulated_interactions",),
    modes=("observational", "interventional"),
    inputs=INPUTS,
    headlines=("aggregates/max_delta", "aggregates/min_delta"),
    example={"subject": "NAME", "feature_id": 0, "variables": {"modulator_token": "TOKEN"}},
)
