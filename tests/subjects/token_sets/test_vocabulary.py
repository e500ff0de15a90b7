"""Vocabularies: a token is what its family declares, whatever its name looks like."""

from __future__ import annotations

import pytest
import token_sets

from mlinterp.errors import SpecError
from mlinterp.subjects.token_sets.vocabulary import Family, Vocabulary

VOCABULARY = Vocabulary(
    (
        Family("power", "POW", rungs=(3, 6, 12)),
        Family("power_up", rungs=(3, 6), encoding="one_hot"),
        Family("area_51", "A51", "binary", present=10),
    ),
    special=("<null>",),
    empty="<null>",
)


def test_tokens_are_numbered_family_by_family_from_the_lowest_rung():
    assert VOCABULARY.tokens == ("power_3", "power_6", "power_12", "power_up_3", "power_up_6", "area_51")
    assert VOCABULARY.starts.tolist() == [0, 3, 5, 6]
    assert VOCABULARY.family_of.tolist() == [0, 0, 0, 1, 1, 2]
    assert [VOCABULARY.number(token) for token in VOCABULARY.tokens] == list(range(len(VOCABULARY)))
    assert VOCABULARY.span("power_up") == slice(3, 5)


@pytest.mark.parametrize("token", [*VOCABULARY.tokens, *token_sets.Fighters().vocabulary.tokens])
def test_every_token_is_the_token_of_what_it_parses_to(token):
    vocabulary = VOCABULARY if token in VOCABULARY.tokens else token_sets.Fighters().vocabulary
    assert vocabulary.token(*vocabulary.parse(token)) == token


def test_a_token_is_parsed_by_declaration_and_not_by_the_digits_at_its_end():
    assert VOCABULARY.parse("power_up_3") == ("power_up", 3)
    assert VOCABULARY.parse("power_3") == ("power", 3)
    assert VOCABULARY.parse("area_51") == ("area_51", None)


def test_a_binary_family_has_one_token_with_or_without_its_rung():
    assert VOCABULARY.token("area_51") == VOCABULARY.token("area_51", 10) == "area_51"
    assert VOCABULARY.family("area_51").levels == (10,)


def test_labels_are_short_codes_with_their_rung():
    assert [VOCABULARY.label("power", 12), VOCABULARY.label("power_up", 3), VOCABULARY.label("area_51")] == ["POW_12", "POWER_UP_3", "A51"]


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda: VOCABULARY.number("powr_6"), r"^token: unknown token 'powr_6'; .* did you mean 'power_6'\?$"),
        (lambda: VOCABULARY.numbers(["power_3", "power_7"], "tokens"), r"^tokens\[1\]: unknown token 'power_7'"),
        (lambda: VOCABULARY.number("<null>"), "unknown token '<null>'"),
        (lambda: VOCABULARY.family("pwer", "family_x"), r"^family_x: unknown family 'pwer'; .* did you mean 'power'\?$"),
        (lambda: VOCABULARY.parse("power"), "unknown token 'power'"),
        (lambda: VOCABULARY.token("power", 4), r"^rung: 4 is no rung of 'power'; its rungs: 3, 6, 12$"),
        (lambda: VOCABULARY.token("power"), "None is no rung of 'power'"),
        (lambda: VOCABULARY.token("area_51", 3), "is binary and has no rungs"),
    ],
)
def test_what_is_not_in_the_vocabulary_is_refused_with_what_is_nearest(ask, words):
    with pytest.raises(SpecError, match=words):
        ask()


@pytest.mark.parametrize(
    "wrong", [{"rungs": ()}, {"rungs": (3, 3)}, {"rungs": (6, 3)}, {"rungs": (0, 3)}, {"kind": "binary", "rungs": (3,)}]
)
def test_a_family_that_makes_no_sense_cannot_be_declared(wrong):
    with pytest.raises(ValueError, match="ascending rungs from 1 on"):
        Family("power", **wrong)


def test_a_special_token_is_no_family_s():
    with pytest.raises(ValueError, match="'shield' is a special token and a family's"):
        Vocabulary((Family("shield", kind="binary"),), special=("shield",))


def test_families_that_share_a_token_or_an_empty_token_that_is_not_special_cannot_be_declared():
    with pytest.raises(ValueError, match="share a name or a token"):
        Vocabulary((Family("a", rungs=(1,)), Family("a_1", kind="binary")))
    with pytest.raises(ValueError, match="not among the special ones"):
        Vocabulary((Family("a", kind="binary"),), empty="<null>")
