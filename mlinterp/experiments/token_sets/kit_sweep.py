"""`kit_sweep`: how a latent differs by what groups of contexts have in common."""

from __future__ import annotations

from pydantic import AliasChoices, Field

from mlinterp.experiments.base import Context, Experiment
from mlinterp.experiments.token_sets.declared import INPUTS, AttributeName, check_latent, check_names
from mlinterp.experiments.token_sets.grouped import GroupVariables
from mlinterp.result import ExperimentResult


class KitSweepVariables(GroupVariables):
    """Which attributes of the groups are compared."""

    attributes: list[AttributeName] | None = Field(
        None, min_length=1, max_length=16, description="which attributes; sub and special where groups have them, else all"
    )
    top_k: int = Field(10, ge=1, le=10_000, description="values that each table shows, of those with the highest means")
    analyze_combinations: bool = Field(
        False,
        validation_alias=AliasChoices("analyze_combinations", "combinations"),
        description="whether combinations of the attributes' values are compared too",
    )


def run(context: Context) -> ExperimentResult:
    """Compare attributes by the contexts of the groups that have them, or put the same contexts into those groups and run the model."""
    from mlinterp.experiments.token_sets.kit_sweep_measure import measure
    from mlinterp.token_sets.opening import conduct

    return conduct(context, measure)


EXPERIMENT = Experiment(
    type="kit_sweep",
    summary="How a latent differs by the attributes of groups of contexts.",
    Variables=KitSweepVariables,
    run=run,
    check=check_latent,
    check_domain=check_names,
    aliases=("attribute_sweep",),
    modes=("observational", "interventional"),
    inputs=INPUTS,
    headlines=("aggregates/max_delta",),
    example={"subject": "NAME", "feature_id": 0, "variables": {"mode": "interventional"}},
)
