"""`family_1d_sweep`: how a latent responds to one family of tokens, rung by rung."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from mlinterp.experiments.base import Context, Experiment
from mlinterp.experiments.token_sets.declared import INPUTS, FamilyName, ModedVariables, check_latent, check_names, check_stable
from mlinterp.result import ExperimentResult
from mlinterp.spec import Spec

if TYPE_CHECKING:
    from mlinterp.subjects.token_sets.package import DataPackage


class FamilySweepVariables(ModedVariables):
    """Which family is swept over which rungs."""

    family: FamilyName = Field(description="the family that is swept")
    rungs: list[Annotated[int, Field(ge=1)]] | None = Field(
        None, min_length=1, max_length=200, description="its rungs, all of them where left out; without the family (0) is always looked at"
    )
    include_absent: bool = Field(
        True, description="whether the table shows the contexts without the family, which the others are compared with"
    )


def check_domain(spec: Spec, variables: FamilySweepVariables, package: DataPackage) -> None:
    """Refuse what the domain does not have, and a stable token of the family that is swept."""
    check_names(spec, variables, package)
    check_stable(variables, package, {variables.family})


def run(context: Context) -> ExperimentResult:
    """Compare contexts at each rung with contexts without the family, or set each rung in contexts and run the model on both."""
    from mlinterp.experiments.token_sets.family_1d_sweep_measure import measure
    from mlinterp.token_sets.opening import conduct

    return conduct(context, measure)


EXPERIMENT = Experiment(
    type="family_1d_sweep",
    summary="How a latent responds to one family of tokens, rung by rung.",
    Variables=FamilySweepVariables,
    run=run,
    check=check_latent,
    check_domain=check_domain,
    aliases=("family_sweep",),
    modes=("observational", "interventional"),
    inputs=INPUTS,
    headlines=("aggregates/mean_delta", "aggregates/max_delta"),
    example={"subject": "NAME", "feature_id": 0, "variables": {"family": "FAMILY", "mode": "interventional"}},
)
