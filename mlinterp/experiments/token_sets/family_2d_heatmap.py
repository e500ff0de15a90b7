"""`family_2d_heatmap`: how a latent responds to two families of tokens together, and whether one changes what the other does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import AliasChoices, Field, model_validator

from mlinterp.experiments.base import Context, Experiment
from mlinterp.experiments.token_sets.declared import INPUTS, FamilyName, ModedVariables, Rung, check_latent, check_names, check_stable
from mlinterp.result import ExperimentResult
from mlinterp.spec import Spec

if TYPE_CHECKING:
    from mlinterp.subjects.token_sets.package import DataPackage


class HeatmapVariables(ModedVariables):
    """Which two families span the grid, and over which rungs."""

    family_x: FamilyName = Field(description="the family along x")
    family_y: FamilyName = Field(description="the family along y")
    rungs_x: list[Rung] | None = Field(
        None, min_length=1, max_length=200, description="rungs of family_x beside 0, absent, which is always there; all where left out"
    )
    rungs_y: list[Rung] | None = Field(None, min_length=1, max_length=200, description="rungs of family_y, likewise")
    base_weapon: int | str | None = Field(
        None,
        validation_alias=AliasChoices("base_weapon", "base_group"),
        description="a group by name or number: look at its contexts only, or put every edited context into it",
    )

    @model_validator(mode="after")
    def _two_families(self) -> HeatmapVariables:
        if self.family_x == self.family_y:
            raise ValueError(f"a grid needs two families, and both are {self.family_x}: family_1d_sweep looks at one")
        return self


def check_heatmap(spec: Spec, variables: HeatmapVariables, package: DataPackage) -> None:
    """Refuse what the domain does not have, and stable tokens of a family that is swept."""
    check_names(spec, variables, package)
    if variables.base_weapon is not None:
        package.group_number(variables.base_weapon, "variables.base_weapon")
    check_stable(variables, package, {variables.family_x, variables.family_y})


def run(context: Context) -> ExperimentResult:
    """Compare contexts in each cell of the grid, or put contexts into each cell and run the model on all of them."""
    from mlinterp.experiments.token_sets.family_2d_heatmap_measure import measure
    from mlinterp.token_sets.opening import conduct

    return conduct(context, measure)


EXPERIMENT = Experiment(
    type="family_2d_heatmap",
    summary="How a latent responds to two families of tokens together, and how they interact.",
    Variables=HeatmapVariables,
    run=run,
    check=check_latent,
    check_domain=check_heatmap,
    aliases=("family_heatmap",),
    modes=("observational", "interventional"),
    inputs=INPUTS,
    headlines=("aggregates/mean_delta", "aggregates/max_delta", "interaction/corner"),
    example={"subject": "NAME", "feature_id": 0, "variables": {"family_x": "FAMILY", "family_y": "FAMILY2", "mode": "interventional"}},
)
