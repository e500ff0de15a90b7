"""What the variables of the token-set types share, and how the names in them are checked against a domain before anything runs."""

from __future__ import annotations

import typing
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field

from mlinterp.errors import SpecError
from mlinterp.experiments.base import Variables
from mlinterp.spec import Spec

if TYPE_CHECKING:
    from mlinterp.subjects.token_sets.package import DataPackage

INPUTS = {"sae": False, "subject": False}
"""What the types take: an SAE whose latent is studied (else a neuron at the subject's readout), and the subject's trained weights."""


@dataclass(frozen=True)
class Names:
    """Marks a field whose texts name something of the domain."""

    what: Literal["family", "token", "token_or_family", "attribute"]


FamilyName = Annotated[str, Names("family")]
TokenName = Annotated[str, Names("token")]
TokenOrFamily = Annotated[str, Names("token_or_family")]
AttributeName = Annotated[str, Names("attribute")]
Rung = Annotated[int, Field(ge=0)]


def _as_share(percentile: float) -> float:
    if 0.5 < percentile <= 1:
        return percentile
    if 50 < percentile <= 100:
        return percentile / 100
    raise ValueError(f"{percentile:g} is neither a fraction in (0.5, 1] nor a percentage in (50, 100]")


HighPercentile = Annotated[float, AfterValidator(_as_share)]
"""Where the high activations begin: a fraction in (0.5, 1], or a percentage in (50, 100], which is kept as a fraction."""


class LatentVariables(Variables):
    """Which latent is studied, and what every type has to know of its contexts."""

    feature: str | None = Field(
        None,
        max_length=200,
        description="a concept of the data package, instead of the spec's feature_id: the latent that best correlates with it in training",
    )


class SweepVariables(LatentVariables):
    """A question that can be asked of observed contexts and of edited ones, where the edits are each other's control."""

    mode: Literal["observational", "interventional"] = Field(
        "observational", description="compare contexts as they were observed, or edit them and run the model on both"
    )
    stable_tokens: list[TokenName] = Field(
        [], max_length=32, description="tokens that every context holds: the observed ones that do, or added to each that is edited"
    )
    n_contexts: int = Field(200, ge=2, le=1_000_000, description="interventional: observed contexts that are edited")
    min_n: int = Field(5, ge=1, description="contexts that a mean needs; with fewer there is no number")


class ModedVariables(SweepVariables):
    """A question that can be asked of observed contexts and of edited ones, beside edits of others as a control."""

    controls: int = Field(5, ge=0, le=100, description="interventional: other families that get the same treatment, as a control")


def check_latent(spec: Spec, variables: LatentVariables, roles: Collection[str]) -> None:  # noqa: ARG001 - the shape of every type's check
    """Refuse a spec that names no latent, or two."""
    if (spec.feature_id is None) == (variables.feature is None):
        problem = "names no latent" if spec.feature_id is None else f"{spec.feature_id} is given, and variables.feature too"
        raise SpecError(problem, field="feature_id", allowed="a latent's number, or variables.feature: a concept of the data package")


def check_names(spec: Spec, variables: Variables, package: DataPackage) -> None:
    """Refuse what a domain does not have, with the nearest name: a family, token, attribute, rung, constraint or group."""
    for field, text, what in _named(variables):
        if what == "attribute":
            package.require_attribute(text, field)
        elif what == "family" or (what == "token_or_family" and any(family.name == text for family in package.vocabulary.families)):
            package.vocabulary.family(text, field)
        else:
            package.vocabulary.number(text, field)
    _check_one_token_each(getattr(variables, "stable_tokens", []), package)
    for suffix in ("", "_x", "_y"):
        _check_rungs(variables, f"family{suffix}", f"rungs{suffix}", package)
    _check_rungs(variables, "primary_family", "primary_rungs", package)
    for index, name in enumerate(spec.constraints):
        package.constraint(name, f"constraints[{index}]")
    cut = spec.dataset_slice
    for field, groups in (("weapon_filter", cut.weapon_filter), ("weapon_exclude", cut.weapon_exclude)):
        for index, group in enumerate(groups or ()):
            package.group_number(group, f"dataset_slice.{field}[{index}]")
    for index, family in enumerate(cut.family_filter or ()):
        package.vocabulary.family(family, f"dataset_slice.family_filter[{index}]")


def _check_one_token_each(stable: Sequence[str], package: DataPackage) -> None:
    """Refuse two stable tokens of one family: it stands at one rung, and which of them is added last must not decide."""
    families = [package.vocabulary.parse(token)[0] for token in stable]
    for index, family in enumerate(families):
        if family in families[:index]:
            problem = f"'{stable[index]}' is a second token of '{family}'"
            raise SpecError(problem, field=f"variables.stable_tokens[{index}]", allowed="one token of a family")


def check_stable(variables: SweepVariables, package: DataPackage, families: Collection[str]) -> None:
    """Refuse stable tokens of families that are edited themselves, or whose rungs are compared."""
    for index, token in enumerate(variables.stable_tokens):
        if package.vocabulary.parse(token)[0] in families:
            problem = f"'{token}' cannot stay: its family is looked at"
            raise SpecError(problem, field=f"variables.stable_tokens[{index}]", allowed="tokens of other families")


def _check_rungs(variables: Variables, family: str, rungs: str, package: DataPackage) -> None:
    """Refuse a rung above the family's ladder; one between two of its rungs has no data, which the result says."""
    name, listed = getattr(variables, family, None), getattr(variables, rungs, None)
    if name is None or listed is None:
        return
    levels = package.vocabulary.family(name).levels
    for index, rung in enumerate(listed):
        if rung > levels[-1]:
            allowed = f"its rungs: {', '.join(map(str, levels))}"
            raise SpecError(f"{rung} is above every rung of '{name}'", field=f"variables.{rungs}[{index}]", allowed=allowed)


def _named(variables: Variables) -> Iterator[tuple[str, str, str]]:
    """Yield (field, text, what it names) for every text of the variables that names something of the domain."""
    for name, info in type(variables).model_fields.items():
        marks = [mark for mark in info.metadata if isinstance(mark, Names)] + list(_marks(info.annotation))
        if not marks:
            continue
        value = getattr(variables, name)
        if isinstance(value, str):
            yield f"variables.{name}", value, marks[0].what
        elif isinstance(value, list):
            yield from ((f"variables.{name}[{index}]", text, marks[0].what) for index, text in enumerate(value))


def _marks(annotation: Any) -> Iterator[Names]:
    for part in typing.get_args(annotation):
        if isinstance(part, Names):
            yield part
        else:
            yield from _marks(part)
