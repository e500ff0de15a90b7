"""`binary_presence_effect`: what the presence of each binary token does to a latent, also at each rung of another family."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from mlinterp.errors import SpecError
from mlinterp.experiments.base import Context, Experiment
from mlinterp.experiments.token_sets.declared import (
    INPUTS,
    FamilyName,
    HighPercentile,
    ModedVariables,
    Rung,
    check_latent,
    check_names,
    check_stable,
)
from mlinterp.result import ExperimentResult
from mlinterp.spec import Spec

if TYPE_CHECKING:
    from mlinterp.subjects.token_sets.package import DataPackage


class BinaryEffectVariables(ModedVariables):
    """Which binary tokens are looked at, and beside what."""

    binary_tokens: list[FamilyName] | None = Field(
        None, min_length=1, max_length=1000, description="binary families; all of the domain where left out"
    )
    primary_family: FamilyName | None = Field(None, description="a family at each rung of which the effects are measured again")
    primary_rungs: list[Rung] | None = Field(
        None, min_length=1, max_length=200, description="its rungs, 0 for absent; all of them where left out"
    )
    min_samples: int = Field(
        30, ge=1, description="observational: contexts with a token, and without it, that a number needs (at one rung: min_n)"
    )
    min_n: int = Field(5, ge=1, description="contexts that a mean needs, of edited ones or at one rung; with fewer there is no number")
    high_percentile: HighPercentile = Field(
        0.9, description="observational: where the high activations begin, as a fraction (0.5, 1] or a percentage (50, 100]"
    )

    @model_validator(mode="after")
    def _rungs_of_a_family(self) -> BinaryEffectVariables:
        if self.primary_rungs is not None and self.primary_family is None:
            raise ValueError("primary_rungs are rungs of primary_family, which is missing")
        return self


def check_binary(spec: Spec, variables: BinaryEffectVariables, package: DataPackage) -> None:
    """Refuse what the domain does not have, families with rungs, and tokens that are held fixed."""
    check_names(spec, variables, package)
    binary = [family.name for family in package.vocabulary.families if family.is_binary]
    if not binary:
        raise SpecError(f"data package '{package.name}' has no binary family", field="variables.binary_tokens")
    for index, name in enumerate(variables.binary_tokens or ()):
        field = f"variables.binary_tokens[{index}]"
        if name not in binary:
            raise SpecError(f"'{name}' has rungs", field=field, allowed=f"a binary family: {', '.join(binary)}")
        if name == variables.primary_family:
            raise SpecError(f"'{name}' is the primary family too", field=field, allowed="another one")
    check_stable(variables, package, {*(variables.binary_tokens or ()), variables.primary_family or ""})


def run(context: Context) -> ExperimentResult:
    """Compare contexts with each token and without it, or put the token into contexts and run the model on both."""
    from mlinterp.experiments.token_sets.binary_presence_effect_measure import measure
    from mlinterp.token_sets.opening import conduct

    return conduct(context, measure)


EXPERIMENT = Experiment(
    type="binary_presence_effect",
    summary="What the presence of each binary token does to a latent.",
    Variables=BinaryEffectVariables,
    run=run,
    check=check_latent,
    check_domain=check_binary,
    aliases=("binary_effect",),
    modes=("observational", "interventional"),
    inputs=INPUTS,
    headlines=("aggregates/top_effect_delta", "aggregates/max_delta", "aggregates/min_delta"),
    ranking=("binary_effects", "delta"),
    example={"subject": "NAME", "feature_id": 0, "variables": {"mode": "interventional"}},
)
