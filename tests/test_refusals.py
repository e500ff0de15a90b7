"""One line from pydantic's many: the field as the file has it, what is wrong, what is allowed, the nearest name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import AliasChoices, Field, ValidationError, model_validator

from mlinterp.frozen import Frozen
from mlinterp.refusals import describe, from_validation


class TopK(Frozen):
    kind: Literal["topk"]
    k: int = Field(8, ge=1, le=64)


class Relu(Frozen):
    kind: Literal["relu-l1"]
    l1: float = Field(0.1, gt=0)

    @model_validator(mode="after")
    def _small(self) -> Relu:
        if self.l1 > 10:
            raise ValueError(f"l1 {self.l1:g} kills every latent")
        return self


class Plain(Frozen):
    size: int = Field(ge=1)


class Block(Frozen):
    n: int = Field(ge=1, lt=100)
    mode: Literal["sup", "cycle", "latent"] = "latent"
    sae: Annotated[TopK | Relu, Field(discriminator="kind")] | None = None
    ranks: list[Annotated[int, Field(ge=0)]] = Field([], max_length=3)
    where: str | list[int] = "all"
    either: int | Literal["all"] | Plain = 1
    by_name: dict[str, TopK] = Field({})
    subject: str | None = Field(None, validation_alias=AliasChoices("subject", "model_type"))
    text: str = Field("", max_length=5)
    on: bool = False


def line(**fields: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        Block.model_validate(fields)
    return str(from_validation(caught.value, model=Block, prefix="variables"))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "variables.n: is missing; expected an integer, >= 1 and < 100"),
        ({"n": 0}, "variables.n: 0 is out of bounds; must be >= 1 and < 100"),
        ({"n": 100}, "variables.n: 100 is out of bounds; must be >= 1 and < 100"),
        ({"n": 1.5}, "variables.n: 1.5 is not an integer; must be >= 1 and < 100"),
        ({"n": "12"}, "variables.n: '12' is not an integer; write it without quotes"),
        ({"n": True}, "variables.n: true is not an integer; must be >= 1 and < 100"),
        ({"n": None}, "variables.n: null is not an integer; must be >= 1 and < 100"),
        ({"n": 1, "mode": "cycles"}, "variables.mode: unknown value 'cycles'; allowed: sup, cycle, latent; did you mean 'cycle'?"),
        ({"n": 1, "on": "no"}, "variables.on: 'no' is not true or false"),
        ({"n": 1, "text": "too long"}, "variables.text: 'too long' is too long; at most 5 characters"),
        ({"n": 1, "ranks": [1, -1]}, "variables.ranks.1: -1 is out of bounds; must be >= 0"),
        ({"n": 1, "ranks": [0] * 4}, "variables.ranks: a list of 4 is too long; at most 3 entries"),
        ({"n": 1, "ranks": {"a": 1}}, "variables.ranks: a block of one key is not a list"),
        ({"n": 1, "sae": {"kind": "tpok"}}, "variables.sae: unknown kind 'tpok'; allowed: topk, relu-l1; did you mean 'topk'?"),
        ({"n": 1, "sae": {"k": 1}}, "variables.sae: its 'kind' is missing"),
        ({"n": 1, "sae": {"kind": "topk", "k": 65}}, "variables.sae.k: 65 is out of bounds; must be >= 1 and <= 64"),
        ({"n": 1, "sae": {"kind": "topk", "kk": 6}}, "variables.sae.kk: unknown key 'kk'; allowed: kind, k; did you mean 'k'?"),
        ({"n": 1, "sae": {"kind": "relu-l1", "l1": 11.0}}, "variables.sae: l1 11 kills every latent"),
        ({"n": 1, "sae": 3}, "variables.sae: 3 is not a block of keys"),
        ({"n": 1, "where": 3}, "variables.where: 3 is not text or a list"),
        ({"n": 1, "where": [1, "b"]}, "variables.where.1: 'b' is not an integer"),
        ({"n": 1, "either": "some"}, "variables.either: 'some' is not an integer, all or a block of keys"),
        ({"n": 1, "either": {"size": 0}}, "variables.either.size: 0 is out of bounds; must be >= 1"),
        ({"n": 1, "by_name": {"a.b": {"kind": "topk", "k": 0}}}, "variables.by_name.a.b.k: 0 is out of bounds; must be >= 1 and <= 64"),
        ({"n": 1, "model_type": 3}, "variables.model_type: 3 is not text"),
    ],
)
def test_the_line_says_field_value_and_what_is_allowed(fields: dict[str, Any], expected: str) -> None:
    assert line(**fields) == expected


def test_an_unknown_key_goes_before_the_missing_one_that_it_misspells() -> None:
    assert line(nn=3).startswith("variables.nn: unknown key 'nn'; allowed: n, mode,")
    assert line(nn=3).endswith("did you mean 'n'?")


def test_aliases_count_among_the_allowed_names() -> None:
    assert line(n=1, model_typ="x").endswith("did you mean 'model_type'?")


def test_long_values_are_shortened() -> None:
    assert len(line(n=1, mode="x" * 5000)) < 200


def test_a_type_in_words() -> None:
    assert describe(Annotated[int, Field(ge=1)] | None) == "an integer, >= 1"
    assert describe(list[int] | str) == "a list or text"
    assert describe(TopK) == "a block of keys"
