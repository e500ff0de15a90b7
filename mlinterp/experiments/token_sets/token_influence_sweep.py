"""`token_influence_sweep`: which of all tokens enhance a latent, and which suppress it."""

from __future__ import annotations

from pydantic import Field

from mlinterp.experiments.base import Context, Experiment
from mlinterp.experiments.token_sets.declared import INPUTS, HighPercentile, SweepVariables, check_latent, check_names
from mlinterp.result import ExperimentResult


class TokenInfluenceVariables(SweepVariables):
    """How tokens are counted, and what makes one a suppressor or an enhancer."""

    collapse_families: bool = Field(
        True, description="whether a family counts as one thing, present or absent, instead of each of its tokens"
    )
    min_samples: int = Field(50, ge=1, description="observational: contexts with a token, and without it, that a number needs")
    min_n: int = Field(5, ge=1, description="interventional: contexts that a mean needs; with fewer there is no number")
    high_percentile: HighPercentile = Field(
        0.995, description="observational: where the high activations begin, as a fraction (0.5, 1] or a percentage (50, 100]"
    )
    suppressor_threshold: float = Field(
        0.8, gt=0, le=1, description="observational: a token is a suppressor below this ratio of its shares of high and of low contexts"
    )
    enhancer_threshold: float = Field(1.2, ge=1, le=1e6, description="observational: a token is an enhancer above this ratio")


def run(context: Context) -> ExperimentResult:
    """Compare contexts with each token and without it, or put it into contexts, take it out, and run the model on both."""
    from mlinterp.experiments.token_sets.token_influence_sweep_measure import measure
    from mlinterp.token_sets.opening import conduct

    return conduct(context, measure)


EXPERIMENT = Experiment(
    type="token_influence_sweep",
    summary="Which of all tokens enhance a latent, and which suppress it.",
    Variables=TokenInfluenceVariables,
    run=run,
    check=check_latent,
    check_domain=check_names,
    aliases=("token_influence",),
    modes=("observational", "interventional"),
    inputs=INPUTS,
    headlines=("aggregates/max_delta", "aggregates/min_delta"),
    example={"subject": "NAME", "feature_id": 0, "variables": {"mode": "interventional"}},
)
