"""What `split_half` and `shuffle_null` measure again: the effects of another experiment, or how often tokens occur."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Literal

from pydantic import AliasChoices, Field, ValidationError, model_validator

from mlinterp.errors import SpecError, unknown
from mlinterp.experiments import catalog
from mlinterp.experiments.base import Experiment
from mlinterp.experiments.token_sets.declared import LatentVariables, check_latent, check_names
from mlinterp.frozen import Frozen
from mlinterp.refusals import from_validation
from mlinterp.spec import Name, Spec

if TYPE_CHECKING:
    from mlinterp.subjects.token_sets.package import DataPackage
    from mlinterp.token_sets.effect_table import EffectTable
    from mlinterp.token_sets.lab import Lab

FIELD = "variables.object"


class EffectObject(Frozen):
    """An experiment whose effects are measured again."""

    type: Name = Field(description="a type of token-set experiment")
    variables: dict[str, Any] = Field({}, description="its variables; the latent is that of the whole spec")


class ObjectVariables(LatentVariables):
    """What is measured again."""

    object: EffectObject | None = Field(
        None, description="an experiment {type, variables} whose effects are looked at; where left out, how often tokens occur"
    )
    statistic: Literal["token_frequency", "token_frequency_correlation"] | None = Field(
        None,
        validation_alias=AliasChoices("statistic", "metric"),
        description="without an object: token_frequency, how often tokens occur where the latent is active",
    )

    @model_validator(mode="after")
    def _one_thing(self) -> ObjectVariables:
        if self.object is not None and self.statistic is not None:
            raise ValueError("`object` and `statistic` are given, and one thing can be measured again: keep one of them")
        return self


def check_object(spec: Spec, variables: ObjectVariables, roles: Collection[str]) -> None:
    """Refuse a spec that names no latent, and an object that its own type would refuse or that has no effects."""
    check_latent(spec, variables, roles)
    if variables.object is None:
        return
    experiment, own = _typed(variables.object)
    if getattr(own, "feature", None) is not None:
        raise SpecError("the latent is that of the whole spec", field=f"{FIELD}.variables.feature", allowed="variables.feature instead")
    if experiment.check is not None:
        try:
            experiment.check(spec.model_copy(update={"feature_id": spec.feature_id or 0}), own, roles)
        except SpecError as error:
            raise _inside(error) from None


def check_object_names(spec: Spec, variables: ObjectVariables, package: DataPackage) -> None:
    """Refuse what a domain does not have, in the object's variables too."""
    check_names(spec, variables, package)
    if variables.object is None:
        return
    experiment, own = _typed(variables.object)
    try:
        if experiment.check_domain is not None:
            experiment.check_domain(spec, own, package)
    except SpecError as error:
        raise _inside(error) from None


def table_of(lab: Lab, wanted: EffectObject) -> EffectTable:
    """Return the effects of another experiment on the contexts of this lab.

    Raises ExperimentError where it observes a latent that is constant, and what that experiment raises.
    """
    experiment, own = _typed(wanted)
    table: EffectTable = _measures(experiment.type).effect_table(lab, own)
    if table.mode == "observational":
        lab.require_variation(lab.rows)
    return table


def _typed(wanted: EffectObject) -> tuple[Experiment, Any]:
    """Return an object's type and its variables in that type's own model. Raises SpecError for the first thing wrong."""
    try:
        experiment = catalog.find(wanted.type)
    except SpecError:
        experiment = None
    if experiment is None or not hasattr(_measures(experiment.type), "effect_table"):
        raise unknown(f"{FIELD}.type", wanted.type, _having_effects(), what="type whose effects can be measured again")
    try:
        return experiment, experiment.Variables.model_validate(wanted.variables)
    except ValidationError as error:
        raise from_validation(error, prefix=f"{FIELD}.variables", model=experiment.Variables) from None


def _measures(kind: str) -> Any:
    """Return the module with a type's arithmetic; None for a type that is not about token sets."""
    name = f"{__package__}.{kind}_measure"
    return importlib.import_module(name) if importlib.util.find_spec(name) is not None else None


def _having_effects() -> list[str]:
    return [kind for kind in catalog.experiments() if hasattr(_measures(kind), "effect_table")]


def _inside(error: SpecError) -> SpecError:
    """Return an error of the object's own check with the field that it has in the whole spec."""
    field = error.field
    if field is not None and field.startswith("variables"):
        field = f"{FIELD}.{field}"
    return SpecError(error.problem, field=field, allowed=error.allowed, nearest=error.nearest)
