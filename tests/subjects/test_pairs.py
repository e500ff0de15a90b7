"""Prompt pairs: how texts become columns that belong together, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from prompts import CAUSAL, transformer
from pydantic import ValidationError

from mlinterp.errors import EnvironmentFault, SpecError, UnsafeError
from mlinterp.subjects.base import IGNORED
from mlinterp.subjects.huggingface import HuggingFaceSubject
from mlinterp.subjects.pairs import NO_TOKEN, answer_columns, tokenise
from mlinterp.subjects.pairs_declared import PromptPair, read_pairs


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> HuggingFaceSubject:
    return transformer(tmp_path_factory.mktemp("project"), CAUSAL["gpt2"])


def pair(clean: Any, corrupted: Any, **rest: Any) -> PromptPair:
    return PromptPair(clean=clean, corrupted=corrupted, **rest)


def test_a_text_is_the_tokens_that_read_it_and_answers_are_single_tokens(subject):
    pairs = tokenise([pair("(1, [2", "(1, [3", answer=")", wrong="]"), pair([9, 8], [9, 7], answer=5)], subject)
    assert "".join(map(subject.token_text, pairs.clean.inputs[0][pairs.clean.mask[0]].tolist())) == "(1, [2"
    assert [subject.token_text(int(tokens[0])) for tokens in (pairs.answer, pairs.wrong)] == [")", "]"]
    assert (int(pairs.answer[1]), int(pairs.wrong[1])) == (5, NO_TOKEN)
    assert pairs.clean.targets[1].tolist() == [IGNORED, 5, *[IGNORED] * (pairs.clean.inputs.shape[1] - 2)]
    assert bool((pairs.corrupted.targets[1] == IGNORED).all())
    assert pairs.ids == ("0", "1")


def test_prompts_of_unequal_length_are_refused_with_both_lists_of_tokens(subject):
    with pytest.raises(SpecError) as refused:
        tokenise([pair("(1", "(1"), pair("(1", "(1)")], subject)
    assert str(refused.value) == (
        "variables.pairs[1]: the prompts have 2 and 3 tokens: ['(', '1'] and ['(', '1', ')']; give prompts of as many tokens, or say which "
        "positions belong together with align: end or align: start"
    )


def test_aligned_prompts_share_the_positions_that_both_have(subject):
    declared = [pair([1, 2, 3, 4], [1, 9, 4]), pair([5, 6], [5, 7])]
    end, start = tokenise(declared, subject, "end"), tokenise(declared, subject, "start")
    assert end.corrupted.inputs.tolist() == [[0, 1, 9, 4], [0, 0, 5, 7]]
    assert start.corrupted.inputs.tolist() == [[1, 9, 4, 0], [5, 7, 0, 0]]
    assert end.shared.tolist() == [[False, True, True, True], [False, False, True, True]]
    assert start.shared.tolist() == [[True, True, True, False], [True, True, False, False]]
    assert end.positions[0].tolist() == [-4, -3, -2, -1]
    assert start.positions[0].tolist() == [0, 1, 2, 3]
    assert answer_columns(end.clean).tolist() == answer_columns(end.corrupted).tolist() == [3, 3]
    assert (answer_columns(start.clean).tolist(), answer_columns(start.corrupted).tolist()) == ([3, 1], [2, 1])


def test_prompts_differ_from_the_first_token_that_differs_on(subject):
    pairs = tokenise([pair([1, 2, 3], [1, 9, 3]), pair([5, 6], [7, 6])], subject)
    assert pairs.differs.tolist() == [[False, True, True], [True, True, True]]


def test_labels_show_the_token_of_each_position_or_what_both_prompts_have_there(subject):
    one = tokenise([pair("(1, 2", "(1, 3")], subject)
    assert one.labels(subject) == {0: "0 (", 1: "1 1", 2: "2 ,", 3: "3 ␣", 4: "4 2|3"}
    many = tokenise([pair("(1", "(1"), pair("(1", "(1"), pair("[1", "[1"), pair("(2", "(2")], subject)
    assert many.labels(subject) == {0: "0 ( …", 1: "1 1 …"}
    assert tokenise([pair("(1", "(1"), pair("[2", "[2")], subject).labels(subject) == {0: "0 e.g. (", 1: "1 e.g. 1"}


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"answer": "12)"}, r"variables\.pairs\[0\]\.answer: '12\)' is 2 tokens: \['12', '\)'\]; one token, its space included"),
        ({"answer": 999}, r"variables\.pairs\[0\]\.answer: 'toy' has no token 999; 0 to 269"),
        ({"clean": [300, 1]}, r"variables\.pairs\[0\]\.clean: 'toy' has no token 300"),
        ({"answer": "1", "wrong": 51}, "answer and wrong are the same token"),
    ],
)
def test_a_token_that_does_not_exist_and_an_answer_of_several_are_refused(subject, declared, message):
    given = {"clean": "(1", "corrupted": "(2", **declared}
    if declared.get("wrong") is not None:
        given["wrong"] = subject.texts.tokenizer.token_to_id("1")
    with pytest.raises(SpecError, match=message):
        tokenise([PromptPair.model_validate(given)], subject)


def test_two_pairs_of_one_name_are_refused(subject):
    with pytest.raises(SpecError, match="two pairs are named 'a'"):
        tokenise([pair([1], [2], id="a"), pair([1], [2], id="a")], subject)


def test_a_subject_without_a_tokenizer_takes_token_ids_alone():
    from planted import planted_subject

    subject = planted_subject()
    assert len(tokenise([pair([1, 2], [2, 1])], subject)) == 1
    with pytest.raises(SpecError, match="has no tokenizer; token ids"):
        tokenise([pair("a", "b")], subject)


def test_a_pair_whose_answers_are_one_is_no_pair():
    with pytest.raises(ValidationError, match="answer and wrong are both 'a'"):
        pair("x", "y", answer="a", wrong="a")


def test_pairs_are_read_from_a_file_of_the_project(tmp_path: Path):
    (tmp_path / "pairs.jsonl").write_text('{"clean": "a", "corrupted": "b"}\n{"clean": [1], "corrupted": [2], "id": "two"}\n')
    assert [each.id for each in read_pairs("pairs.jsonl", tmp_path)] == [None, "two"]
    assert read_pairs([pair("a", "b")], None) == [pair("a", "b")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"clean": "a", "corrupted": "b"}\n{"clean": "a"}\n', "bad.jsonl:2: corrupted: Field required"),
        ('{"clean": "a", "corrupted": "b", "anwser": "c"}\n', "bad.jsonl:1: anwser: Extra inputs"),
        ("clean\n", "bad.jsonl:1: not a JSON object"),
        ("", "bad.jsonl: holds 0 pairs; 1 to 4096"),
    ],
)
def test_a_wrong_file_of_pairs_is_named_with_its_line(tmp_path: Path, text: str, message: str):
    (tmp_path / "bad.jsonl").write_text(text)
    with pytest.raises(SpecError, match=message):
        read_pairs("bad.jsonl", tmp_path)


def test_a_file_of_pairs_lies_in_the_project(tmp_path: Path):
    with pytest.raises(UnsafeError, match="leaves the project folder"):
        read_pairs("../pairs.jsonl", tmp_path)
    with pytest.raises(EnvironmentFault, match=r"'pairs\.jsonl' does not exist"):
        read_pairs("pairs.jsonl", tmp_path)
    with pytest.raises(SpecError, match="there is no project here"):
        read_pairs("pairs.jsonl", None)
