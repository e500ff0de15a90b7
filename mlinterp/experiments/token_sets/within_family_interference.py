"""`within_family_interference`: whether a lower token of a family changes what a higher one does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from mlinterp.errors import SpecError
from mlinterp.experiments.base import Context, Experiment
from mlinterp.experiments.token_sets.declared import (
    INPUTS,
    FamilyName,
    ModedVariables,
    Rung,
    TokenOrFamily,
    check_latent,
    check_names,
    check_stable,
)
from mlinterp.result import ExperimentResult
from mlinterp.spec import Spec

if TYPE_CHECKING:
    from mlinterp.subjects.token_sets.package import DataPackage
    from mlinterp.subjects.token_sets.vocabulary import Family, Vocabulary


class InterferenceVariables(ModedVariables):
    """Whose tokens are looked at, two at a time."""

    family: FamilyName | None = Field(None, description="the ordered family whose tokens are looked at")
    modulator_token: TokenOrFamily | None = Field(None, description="instead of family: a token of it")
    rungs: list[Rung] | None = Field(None, min_length=2, max_length=200, description="its rungs; all of them where left out")

    @model_validator(mode="after")
    def _names_a_family(self) -> InterferenceVariables:
        if (self.family is None) == (self.modulator_token is None):
            raise ValueError("give family, or modulator_token whose family is meant, and not both")
        return self


def family_of(variables: InterferenceVariables, vocabulary: Vocabulary) -> Family:
    """Return the family that is meant."""
    name = variables.family or variables.modulator_token or ""
    known = any(family.name == name for family in vocabulary.families)
    return vocabulary.family(name if known else vocabulary.parse(name)[0])


def rungs_of(variables: InterferenceVariables, family: Family) -> list[int]:
    """Return the rungs that are meant and that the family has, ascending."""
    return [rung for rung in family.rungs if variables.rungs is None or rung in variables.rungs]


def check_interference(spec: Spec, variables: InterferenceVariables, package: DataPackage) -> None:
    """Refuse what the domain does not have, and families without two rungs to compare."""
    check_names(spec, variables, package)
    family = family_of(variables, package.vocabulary)
    check_stable(variables, package, {family.name})
    if family.is_binary:
        raise SpecError(f"'{family.name}' is binary", field="variables.family", allowed="an ordered family, which has several tokens")
    if len(rungs_of(variables, family)) < 2:
        there = ", ".join(map(str, family.rungs))
        raise SpecError(f"names fewer than two rungs of '{family.name}'", field="variables.rungs", allowed=f"its rungs: {there}")


def run(context: Context) -> ExperimentResult:
    """Compare contexts that hold a higher token without and with a lower one, or take the lower one out and put it in."""
    from mlinterp.experiments.token_sets.within_family_interference_measure import measure
    from mlinterp.token_sets.opening import conduct

    return conduct(context, measure)


EXPERIMENT = Experiment(
    type="within_family_interference",
    summary="Whether a lower token of a family changes what a higher one does.",
    Variables=InterferenceVariables,
    run=run,
    check=check_latent,
    check_domain=check_interference,
    modes=("observational", "interventional"),
    inputs=INPUTS,
    headlines=("aggregates/min_delta", "aggregates/max_delta"),
    example={"subject": "NAME", "feature_id": 0, "variables": {"family": "FAMILY"}},
)
