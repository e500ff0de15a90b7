"""Prompts that a spec writes out, and the examples they become (no torch until they do: specs are validated without it)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field

from mlinterp.errors import SpecError
from mlinterp.frozen import Frozen
from mlinterp.subjects.pairs_declared import Prompt as Text
from mlinterp.subjects.pairs_declared import TokenId

if TYPE_CHECKING:
    from torch import Tensor

    from mlinterp.subjects.base import Examples, Subject


class Prompt(Frozen):
    """A text, and what may follow it."""

    text: Text = Field(description="what the model reads, as text or as token ids")
    answer: str | TokenId | None = Field(None, description="the right next token, as text (one token, its space included) or id")
    wrong: str | TokenId | None = Field(None, description="a token that the answer is compared with")


class Asked(NamedTuple):
    """Examples with the token that each right answer is compared with."""

    examples: Examples
    wrong: Tensor
    """int64 `[example, pos]`; `IGNORED` where a prompt names none."""


def asked(subject: Subject, prompts: Sequence[Prompt]) -> Asked:
    """Return prompts as examples, padded on the right.

    Targets are the tokens that follow in the text, and at its end the prompt's answer, where it has one.
    Raises SpecError, naming the prompt, for a text without tokens, for an answer that is not one token and for one that is wrong too.
    """
    import torch

    from mlinterp.subjects.base import IGNORED, Examples
    from mlinterp.subjects.pairs import NO_TOKEN, one_token, tokens_of

    texts = [tokens_of(prompt.text, subject, f"variables.prompts[{number}].text") for number, prompt in enumerate(prompts)]
    empty = next((number for number, tokens in enumerate(texts) if not tokens), None)
    if empty is not None:
        raise SpecError("holds no token", field=f"variables.prompts[{empty}].text")
    shape = (len(texts), max(map(len, texts)))
    inputs, targets, wrong = torch.zeros(shape, dtype=torch.long), torch.full(shape, IGNORED), torch.full(shape, IGNORED)
    mask = torch.zeros(shape, dtype=torch.bool)
    for row, (prompt, tokens) in enumerate(zip(prompts, texts, strict=True)):
        inputs[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = True
        targets[row, : len(tokens) - 1] = torch.tensor(tokens[1:])
        for name, place in (("answer", targets), ("wrong", wrong)):
            token = one_token(getattr(prompt, name), subject, f"variables.prompts[{row}].{name}")
            place[row, len(tokens) - 1] = IGNORED if token == NO_TOKEN else token
        if prompt.answer is not None and targets[row, len(tokens) - 1] == wrong[row, len(tokens) - 1]:
            raise SpecError("answer and wrong are the same token", field=f"variables.prompts[{row}]")
    ids = tuple(f"prompt {number}" for number in range(1, len(texts) + 1))
    return Asked(Examples(ids, inputs, targets, mask), wrong)
