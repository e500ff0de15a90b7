"""Prompts that stop before a closing bracket, each beside itself with one opening bracket of another kind.

    python projects/python_lm/closing.py

writes the three files in `pairs/`. All prompts are code of files that the model was not trained on, cut before a closing bracket:

- `near.jsonl`: the bracket that it closes stands exactly `NEAR` tokens before it, so that every position means the same in all prompts;
- `far.jsonl`: it stands `FAR` tokens before it, with a whole pair of brackets, and more, between the two;
- `inner.jsonl`: the prompts of `far.jsonl`, but what is replaced is such a pair, which is closed already: the answer stays what it was.

Brackets are found by Python's own tokenizer, so none of them stands in a string or comment. They are tokens of their own for the model
too, so both prompts of a pair have as many tokens and differ in nothing but the replaced brackets. No code is used twice.
"""

from __future__ import annotations

import json
import tokenize
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import accumulate
from pathlib import Path

from tokenizers import Tokenizer

from mlinterp.determinism import numpy_stream
from mlinterp.io.atomic import write_text
from mlinterp.project import read_project
from mlinterp.subjects.huggingface import HuggingFaceSubject
from mlinterp.subjects.huggingface_config import TextData
from mlinterp.subjects.text import Document, python_stdlib, split_of

ROOT = Path(__file__).parent
CLOSES = {"(": ")", "[": "]", "{": "}"}
NEAR = 8
"""Tokens from the opening bracket to the closing one, in `near.jsonl`."""
FAR = range(10, 41)
"""The same, in the other two."""
LENGTH = 48
"""Tokens of a prompt."""
A_KIND = 32
"""Most prompts of a file whose answer is the same bracket."""
A_FILE = 12
"""Most prompts of a file that come from the same source file."""
SEED = 0


@dataclass(frozen=True)
class Span:
    """A pair of brackets of a text, by the places of both characters and which bracket opens it."""

    kind: str
    start: int
    end: int


@dataclass(frozen=True)
class Closing:
    """A prompt that stops before a closing bracket.

    Attributes:
        source: the file it is from.
        place: line and column, from 1, of the closing bracket in it.
        text: the prompt.
        kind: the bracket that is to be closed.
        at: where in the text that bracket stands.
        distance: tokens from it to its partner.
        inner: whole pairs of brackets after it, but for one that the prompt ends with, which would change what the model reads last.
    """

    source: str
    place: str
    text: str
    kind: str
    at: int
    distance: int
    inner: tuple[Span, ...]

    @property
    def code(self) -> str:
        """What tells it from others: the code from its bracket on, leaving space aside."""
        return "".join(self.text[self.at :].split())


def spans(text: str) -> list[Span]:
    """Return every pair of brackets in the code of a Python file, by where it opens; none where the file is no Python."""
    starts = [0, *accumulate(map(len, StringIO(text, newline="")))]  # Python's lines, which a form feed does not end
    found, opened = [], []
    try:
        for token in tokenize.generate_tokens(StringIO(text, newline="").readline):
            place = starts[token.start[0] - 1] + token.start[1]
            if token.type == tokenize.OP and token.string in CLOSES:
                opened.append((token.string, place))
            elif token.type == tokenize.OP and token.string in CLOSES.values():
                kind, start = opened.pop()
                found.append(Span(kind, start, place))
    except (tokenize.TokenError, SyntaxError, IndexError):
        return []
    return sorted(found, key=lambda span: span.start)


def closings(document: Document, tokenizer: Tokenizer) -> Iterator[Closing]:
    """Yield a prompt for every closing bracket that has `LENGTH` tokens before it and its partner among them."""
    encoded, every = tokenizer.encode(document.text, add_special_tokens=False), spans(document.text)
    token_at = {start: token for token, (start, _) in enumerate(encoded.offsets)}
    for span in every:
        opening, closing = token_at[span.start], token_at[span.end]
        if closing < LENGTH or closing - opening >= LENGTH:
            continue
        begin = encoded.offsets[closing - LENGTH][0]
        text = document.text[begin : span.end]
        if tokenizer.encode(text, add_special_tokens=False).ids != encoded.ids[closing - LENGTH : closing]:
            continue  # cut through a character or a word, it would read otherwise
        inner = tuple(
            Span(each.kind, each.start - begin, each.end - begin) for each in every if span.start < each.start and each.end < span.end - 1
        )
        line = document.text.count("\n", 0, span.end) + 1
        place = f"{line}:{span.end - document.text.rfind(chr(10), 0, span.end)}"
        yield Closing(document.name, place, text, span.kind, span.start - begin, closing - opening, inner)


def chosen(candidates: Sequence[Closing], trained_on: str, name: str) -> list[Closing]:
    """Draw prompts: at most `A_KIND` of a bracket and `A_FILE` of a source file, no code twice, none that is in the training text."""
    drawn = [candidates[at] for at in numpy_stream(SEED, "closing", name).permutation(len(candidates))]
    common = Counter(each.kind for each in drawn)
    found, kinds, files, seen = [], Counter[str](), Counter[str](), set[str]()
    for each in sorted(drawn, key=lambda each: common[each.kind]):  # rare brackets first, before a file has given all that it may
        if kinds[each.kind] < A_KIND and files[each.source] < A_FILE and each.code not in seen and each.text not in trained_on:
            found.append(each)
            kinds[each.kind], files[each.source] = kinds[each.kind] + 1, files[each.source] + 1
            seen.add(each.code)
    return sorted(found, key=lambda each: (each.kind, each.source, each.place))


def replaced(closing: Closing, places: Sequence[int], kind: str) -> str:
    """Return the prompt with the brackets at some places exchanged for those of another kind."""
    letters = list(closing.text)
    for at in places:
        letters[at] = kind if letters[at] in CLOSES else CLOSES[kind]
    return "".join(letters)


def pair(closing: Closing, places: Sequence[int], kind: str) -> dict[str, str]:
    """Return a prompt pair as a line of a file."""
    return {
        "id": f"{closing.source}:{closing.place}",
        "clean": closing.text,
        "corrupted": replaced(closing, places, kind),
        "answer": CLOSES[closing.kind],
        "wrong": CLOSES[kind],
    }


def files(tokenizer: Tokenizer, documents: Sequence[Document], data: TextData) -> dict[str, list[dict[str, str]]]:
    """Return the pairs of every file, by its name."""
    split = {document.name: split_of(document.name, data.validation, data.test) for document in documents}
    trained_on = "\0".join(document.text for document in documents if split[document.name] == "train")
    every = [found for document in documents if split[document.name] != "train" for found in closings(document, tokenizer)]
    near = chosen([each for each in every if each.distance == NEAR], trained_on, "near")
    far = chosen([each for each in every if each.distance in FAR and each.inner], trained_on, "far")
    pairs: dict[str, list[dict[str, str]]] = {"near": [], "far": [], "inner": []}
    for turn, each in enumerate(near):
        others = [kind for kind in CLOSES if kind != each.kind]
        pairs["near"].append(pair(each, [each.at], others[turn % 2]))
    for turn, each in enumerate(far):
        inner = each.inner[-1]
        others = [kind for kind in CLOSES if kind not in (each.kind, inner.kind)]
        other = others[turn % len(others)]
        pairs["far"].append(pair(each, [each.at], other))
        pairs["inner"].append(pair(each, [inner.start, inner.end], other))
    return pairs


def main() -> None:
    """Write the files beside this one."""
    subject = read_project(ROOT / "project.yaml").load_subject("gpt")
    assert isinstance(subject, HuggingFaceSubject)
    data = TextData.model_validate(subject.config["data"])
    for name, pairs in files(subject.texts.tokenizer, python_stdlib(), data).items():
        write_text(ROOT / "pairs" / f"{name}.jsonl", "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in pairs))
        counts = Counter(f"{each['answer']} not {each['wrong']}" for each in pairs)
        print(f"pairs/{name}.jsonl: {len(pairs)} pairs; " + ", ".join(f"{count} {what}" for what, count in sorted(counts.items())))


if __name__ == "__main__":
    main()
