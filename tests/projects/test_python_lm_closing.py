"""Bracket closing in python_lm: prompt pairs that differ in the bracket alone, from files that nobody trained on; and the known answer."""

import json
from collections import Counter
from pathlib import Path

import pytest

from mlinterp.determinism import settle
from mlinterp.experiments.base import Context
from mlinterp.experiments.catalog import find, typed_variables
from mlinterp.io.pyfile import load_function
from mlinterp.io.specfile import read_document
from mlinterp.progress import Silent
from mlinterp.project import read_project
from mlinterp.spec import Spec
from mlinterp.subjects.fit import SubjectFit
from mlinterp.subjects.huggingface_config import Bpe
from mlinterp.subjects.text import Document, python_stdlib, split_of, train_bpe
from mlinterp.trainer import fit

ROOT = Path(__file__).parents[2] / "projects" / "python_lm"
CLOSES = {"(": ")", "[": "]", "{": "}"}
NAMES = ("near", "far", "inner")


def function(name):
    return load_function(ROOT, f"closing.py:{name}", "test")


def shipped(name):
    return [json.loads(line) for line in (ROOT / "pairs" / f"{name}.jsonl").read_text().splitlines()]


def changes(pair):
    return [(at, old, new) for at, (old, new) in enumerate(zip(pair["clean"], pair["corrupted"], strict=True)) if old != new]


@pytest.fixture(scope="module")
def library():
    return {document.name: document.text for document in python_stdlib()}


@pytest.fixture(scope="module")
def tokenizer():
    text = "\n".join(f"def name_{n}(self, value): return [item for item in values if item] or {{'key': {n}}}" for n in range(50))
    return train_bpe([text], Bpe(vocab_size=320, isolate="()[]{}"))


@pytest.mark.parametrize("name", NAMES)
def test_there_are_enough_pairs_of_several_brackets_both_ways(name):
    pairs = shipped(name)
    assert len(pairs) >= 64
    assert len({pair["id"] for pair in pairs}) == len(pairs)
    assert {pair["answer"] for pair in pairs} == {pair["wrong"] for pair in pairs} == set(")]}")
    assert max(Counter(pair["answer"] for pair in pairs).values()) <= 32


@pytest.mark.parametrize("name", ["near", "far"])
def test_the_open_bracket_is_all_that_differs_and_the_answer_closes_it(name):
    for pair in shipped(name):
        ((at, old, new),) = changes(pair)
        assert (CLOSES[old], CLOSES[new]) == (pair["answer"], pair["wrong"])
        assert function("spans")(f"f{pair['clean'][at:]}{pair['answer']}")[0].end == len(pair["clean"]) - at + 1


def test_the_control_replaces_a_pair_that_is_closed_already_in_the_same_prompts():
    for pair, partner in zip(shipped("inner"), shipped("far"), strict=True):
        assert {key: pair[key] for key in ("id", "clean", "answer", "wrong")} == {
            key: partner[key] for key in ("id", "clean", "answer", "wrong")
        }
        (opened, old, new), (closed, old_end, new_end) = changes(pair)
        assert (CLOSES[old], CLOSES[new]) == (old_end, new_end)
        assert new_end == pair["wrong"]
        ((at, _, _),) = changes(partner)
        assert at < opened < closed < len(pair["clean"]) - 1


@pytest.mark.parametrize("name", NAMES)
def test_both_prompts_have_as_many_tokens_whatever_the_tokenizer_learned(name, tokenizer):
    for pair in shipped(name):
        clean, corrupted = (tokenizer.encode(pair[side], add_special_tokens=False).ids for side in ("clean", "corrupted"))
        assert len(clean) == len(corrupted)
        assert sum(one != other for one, other in zip(clean, corrupted, strict=True)) == len(changes(pair))


@pytest.mark.parametrize("name", NAMES)
def test_the_code_is_from_held_out_files_where_the_answer_follows_it(name, library):
    trained_on = "\0".join(text for file, text in library.items() if split_of(file, 0.05, 0.1) == "train")
    found = 0
    for pair in shipped(name):
        source = pair["id"].split(":")[0]
        assert split_of(source, 0.05, 0.1) != "train"
        assert pair["clean"] not in trained_on
        found += pair["clean"] + pair["answer"] in library.get(source, "")
    if found < len(shipped(name)):
        pytest.skip(f"another release of Python's library: {found} of {len(shipped(name))} prompts are in it")


FILLER = "value = name\n" * 40


def test_brackets_are_those_of_the_code_and_each_has_its_own_partner():
    text = "a = f('(', [1, {2: x[3]}])  # :-)\n"
    assert [(span.kind, text[span.start], text[span.end]) for span in function("spans")(text)] == [
        (kind, kind, CLOSES[kind]) for kind in "([{["
    ]
    assert [span.start for span in function("spans")(text)] == [5, 11, 15, 20]
    assert function("spans")("a = 1\n\x0c\nf(a)\n")[0].start == 9  # a form feed ends no line
    assert function("spans")("a = (\n") == function("spans")("a = )\n") == []


def test_prompts_stop_before_a_closing_bracket_and_count_tokens_from_its_partner(tokenizer):
    text = FILLER + "a = f(x[1], (2))\n"
    found = {closing.text[closing.at :]: closing for closing in function("closings")(Document("a.py", text), tokenizer)}
    assert set(found) == {"(x[1], (2)", "[1", "(2"}
    outer = found["(x[1], (2)"]
    assert [outer.text[span.start : span.end + 1] for span in outer.inner] == ["[1]"]  # (2) is where the prompt ends
    assert outer.place == "41:16"
    for code, closing in found.items():
        assert len(tokenizer.encode(closing.text, add_special_tokens=False).ids) == 48
        assert len(tokenizer.encode(code, add_special_tokens=False).ids) == closing.distance


def test_the_same_seed_draws_the_same_prompts_no_code_twice_and_none_that_was_trained_on(tokenizer):
    documents = [Document(f"{n}.py", FILLER + "".join(f"f(x[{n}], {i % 30})\n" for i in range(40))) for n in range(3)]
    every = [closing for document in documents for closing in function("closings")(document, tokenizer)]
    chosen = function("chosen")
    found = chosen(every, "", "near")
    assert found == chosen(list(every), "", "near")
    assert found != chosen(every, "", "far")
    assert len({closing.code for closing in found}) == len(found)
    assert max(Counter(closing.kind for closing in found).values()) <= 32
    assert max(Counter(closing.source for closing in found).values()) <= 12
    assert chosen(every, "\0".join(document.text for document in documents), "near") == []


@pytest.fixture(scope="module")
def study():
    return Spec.model_validate(read_document(ROOT / "closing.yaml").data)


def step(study, name):
    return study.step_spec(next(step for step in study.steps if step.name == name))


def test_the_study_asks_of_the_model_that_the_other_study_trains():
    studies = [Spec.model_validate(read_document(ROOT / name).data) for name in ("study.yaml", "closing.yaml")]
    assert len({step(each, "fit").sha256() for each in studies}) == 1


@pytest.fixture(scope="module")
def trained(study, tmp_path_factory):
    """A model of another seed than the README's; the second test's line was drawn after a look at it when 3,000 steps were done."""
    settle(1, threads=1)
    subject, asked = read_project(ROOT / "project.yaml").load_subject("gpt"), step(study, "fit").variables
    module = SubjectFit(subject, subject.objective(asked["options"], 1), asked["steps"], eval_every=asked["steps"])
    fit(module, tmp_path_factory.mktemp("fit"), Silent(), checkpoint_every=asked["steps"])
    module.finish()
    return subject


@pytest.fixture
def measured(study, trained, tmp_path):
    def measure(name):
        spec = step(study, name)
        context = Context(spec, typed_variables(spec), tmp_path, lambda: trained, root=ROOT)
        return find(spec.type).run(context).estimates

    return measure


@pytest.mark.slow
def test_which_bracket_is_open_moves_from_that_bracket_to_where_it_closes(measured):
    for name in ("stream", "stream-needed"):
        found = measured(name)
        assert found["adjusted/L3.p-1"].low > 0.8
        assert found["effect/L3.p-8"].high < 0.2
        assert max(found[f"effect/L3.p-{at}"].high for at in (2, 3, 4, 5, 6, 7, 9, 10)) < 0.1


@pytest.mark.slow
def test_two_heads_bring_most_of_it_however_far_back_it_stands(measured):
    for name in ("heads", "heads-needed", "heads-far"):
        assert measured(name)["joint_adjusted/top2"].low > 0.5
