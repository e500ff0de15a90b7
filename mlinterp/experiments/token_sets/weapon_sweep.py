"""`weapon_sweep`: how a latent differs between groups of contexts."""

from __future__ import annotations

from pydantic import AliasChoices, Field

from mlinterp.experiments.base import Context, Experiment
from mlinterp.experiments.token_sets.declared import INPUTS, FamilyName, check_latent, check_names
from mlinterp.experiments.token_sets.grouped import GroupVariables
from mlinterp.result import ExperimentResult


class WeaponSweepVariables(GroupVariables):
    """Which contexts are compared, and how many groups are shown."""

    condition_family: FamilyName | None = Field(None, description="look only at contexts that hold this family")
    top_k_weapons: int = Field(
        20,
        ge=1,
        le=10_000,
        validation_alias=AliasChoices("top_k_weapons", "top_k_groups", "top_k"),
        description="groups that the table shows, of those with the highest means",
    )


def run(context: Context) -> ExperimentResult:
    """Compare groups by their contexts, or put the same contexts into every group and run the model on them."""
    from mlinterp.experiments.token_sets.weapon_sweep_measure import measure
    from mlinterp.token_sets.opening import conduct

    return conduct(context, measure)


EXPERIMENT = Experiment(
    type="weapon_sweep",
    summary="How a latent differs between groups of contexts, and whether one of them dominates.",
    Variables=WeaponSweepVariables,
    run=run,
    check=check_latent,
    check_domain=check_names,
    aliases=("group_sweep",),
    modes=("observational", "interventional"),
    inputs=INPUTS,
    headlines=("aggregates/top_weapon_delta", "aggregates/min_delta"),
    example={"subject": "NAME", "feature_id": 0, "variables": {"mode": "interventional"}},
)
