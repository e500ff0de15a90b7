"""`weapon_group_analysis`: which groups the highest activations come from, against the lowest."""

from __future__ import annotations

from pydantic import Field

from mlinterp.experiments.base import Context, Experiment
from mlinterp.experiments.token_sets.declared import INPUTS, LatentVariables, check_latent, check_names
from mlinterp.result import ExperimentResult


class WeaponGroupVariables(LatentVariables):
    """Which contexts count as high and as low."""

    high_percentile: float = Field(
        10.0, ge=1, le=50, description="how many percent of the contexts, from the highest activation down, are high"
    )
    low_percentile: float = Field(10.0, ge=1, le=50, description="how many percent, from the lowest activation up, are low")


def run(context: Context) -> ExperimentResult:
    """Count each group among the contexts with the highest and with the lowest activations."""
    from mlinterp.experiments.token_sets.weapon_group_analysis_measure import measure
    from mlinterp.token_sets.opening import conduct

    return conduct(context, measure)


EXPERIMENT = Experiment(
    type="weapon_group_analysis",
    summary="Which groups the highest activations of a latent come from, against the lowest.",
    Variables=WeaponGroupVariables,
    run=run,
    check=check_latent,
    check_domain=check_names,
    aliases=("group_contrast",),
    inputs=INPUTS,
    headlines=("aggregates/most_enriched_log_odds",),
    example={"subject": "NAME", "feature_id": 0, "variables": {"high_percentile": 10}},
)
