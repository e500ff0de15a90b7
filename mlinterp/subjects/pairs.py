"""Prompt pairs as tokens: a clean and a corrupted batch whose columns stand for the same positions.

1. Texts become tokens (with what the tokenizer puts before every text, without what it puts after); an answer must be one token.
2. The prompts of a pair must be equally long, unless `align` says which positions belong together: those equally far from the start, or
   from the end.
3. Both batches get one width, padded so that a column of the one is patched by the same column of the other: on the left where prompts
   are aligned at their ends, on the right otherwise.

The answer position is the last token of a prompt: what follows it is what is asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from tokenizers import Tokenizer
from torch import Tensor

from mlinterp.errors import SpecError
from mlinterp.subjects.base import IGNORED, Examples, Subject
from mlinterp.subjects.hooked import HookedSubject
from mlinterp.subjects.pairs_declared import Align, Prompt, PromptPair
from mlinterp.subjects.text import affixes

NO_TOKEN = -1
"""The answer, or wrong answer, of a pair that has none."""


@dataclass(frozen=True)
class Pairs:
    """Prompt pairs of one subject. Columns of both batches stand for the same positions.

    Attributes:
        clean: the prompts that show the behaviour; the one target of each is its answer, at its last token.
        corrupted: the prompts that do not; the one target of each is the wrong answer.
        answer: right token after each clean prompt, int64 `[pair]`; `NO_TOKEN` where there is none.
        wrong: the token that is wrong there, int64 `[pair]`; `NO_TOKEN` where there is none.
        align: how positions were counted: from the start (also where it is None), or from the end.
    """

    clean: Examples
    corrupted: Examples
    answer: Tensor
    wrong: Tensor
    align: Align | None = None

    def __len__(self) -> int:
        return len(self.clean)

    @property
    def ids(self) -> tuple[str, ...]:
        """The pairs' names."""
        return self.clean.ids

    @property
    def shared(self) -> Tensor:
        """True where both prompts of a pair have a token, bool `[pair, pos]`: the positions that can be patched."""
        return self.clean.mask & self.corrupted.mask

    @property
    def differs(self) -> Tensor:
        """True from the first column on where a prompt differs from its partner, bool `[pair, pos]`.

        In a model that reads from left to right, nothing before can differ between the two runs.
        """
        apart = (self.clean.inputs != self.corrupted.inputs) | (self.clean.mask != self.corrupted.mask)
        return apart.int().cumsum(dim=1) > 0

    @cached_property
    def positions(self) -> Tensor:
        """Position of each column, int64 `[pair, pos]`: from the start (0, 1, …), or from the end (-1 is the last) where aligned there."""
        columns = torch.arange(self.clean.inputs.shape[1]).expand_as(self.clean.inputs)
        return columns - self.clean.inputs.shape[1] if self.align == "end" else columns

    def labels(self, subject: Subject) -> dict[int, str]:
        """Return what stands at each position that some pair shares, in order: `3 John`, `3 John|Mary` where the prompts differ.

        Where pairs have different tokens, one that most of them have is shown with an ellipsis, and else the commonest as an example.
        """
        texts: dict[int, Counter[str]] = {}
        for row, column in self.shared.nonzero().tolist():
            tokens = dict.fromkeys(int(batch.inputs[row, column]) for batch in (self.clean, self.corrupted))
            text = "|".join(subject.token_text(token).replace("\n", "⏎").strip() or "␣" for token in tokens)
            texts.setdefault(int(self.positions[row, column]), Counter())[text] += 1
        return {at: f"{at} {_shared(found)}" for at, found in sorted(texts.items())}


def _shared(found: Counter[str]) -> str:
    text, count = found.most_common(1)[0]
    if 2 * count <= found.total() and len(found) > 1:
        return f"e.g. {text}"
    return text if len(found) == 1 else f"{text} …"


def patchable(subject: Subject) -> HookedSubject:
    """Return a subject whose activations are of single positions. Raises SpecError, naming it, for any other."""
    if isinstance(subject, HookedSubject) and not subject.is_set:
        return subject
    allowed = "one whose hook points are passed once and hold an activation for each token"
    raise SpecError(f"'{subject.name}' is a {subject.kind} subject", field="subject", allowed=allowed)


def answer_columns(batch: Examples) -> Tensor:
    """Return the column of each prompt's last token, int64 `[pair]`: where the model is asked."""
    return batch.mask.shape[1] - 1 - batch.mask.flip(1).int().argmax(dim=1)


def tokenise(pairs: Sequence[PromptPair], subject: Subject, align: Align | None = None) -> Pairs:
    """Return prompt pairs as tokens of a subject.

    Raises SpecError for texts where the subject has no tokenizer, for a token that it does not have, for an answer that is not one
    token, and, showing both lists of tokens, for prompts of unequal length where `align` does not say how they belong together.
    """
    prompts = [
        (
            tokens_of(pair.clean, subject, f"variables.pairs[{i}].clean"),
            tokens_of(pair.corrupted, subject, f"variables.pairs[{i}].corrupted"),
        )
        for i, pair in enumerate(pairs)
    ]
    for i, (clean, corrupted) in enumerate(prompts):
        if len(clean) != len(corrupted) and align is None:
            raise SpecError(
                f"the prompts have {len(clean)} and {len(corrupted)} tokens: {_shown(clean, subject)} and {_shown(corrupted, subject)}",
                field=f"variables.pairs[{i}]",
                allowed="give prompts of as many tokens, or say which positions belong together with align: end or align: start",
            )
    answer = [one_token(pair.answer, subject, f"variables.pairs[{i}].answer") for i, pair in enumerate(pairs)]
    wrong = [one_token(pair.wrong, subject, f"variables.pairs[{i}].wrong") for i, pair in enumerate(pairs)]
    for i, (right, other) in enumerate(zip(answer, wrong, strict=True)):
        if right == other != NO_TOKEN:
            raise SpecError("answer and wrong are the same token", field=f"variables.pairs[{i}]")
    ids = tuple(pair.id or str(i) for i, pair in enumerate(pairs))
    twice = next((name for name, count in Counter(ids).items() if count > 1), None)
    if twice is not None:
        raise SpecError(f"two pairs are named '{twice}'", field="variables.pairs")
    width, left = max(len(tokens) for both in prompts for tokens in both), align == "end"
    batches = [_batch(ids, [both[side] for both in prompts], asked, width, left=left) for side, asked in enumerate((answer, wrong))]
    return Pairs(batches[0], batches[1], torch.tensor(answer), torch.tensor(wrong), align)


def tokens_of(prompt: Prompt, subject: Subject, field: str) -> list[int]:
    """Return a prompt's tokens: a text's begin with what the tokenizer puts before every text. Raises SpecError, naming `field`."""
    if isinstance(prompt, str):
        tokenizer = _tokenizer(subject, field)
        tokens = [*affixes(tokenizer)[0], *tokenizer.encode(prompt, add_special_tokens=False).ids]
    else:
        tokens = list(prompt)
    if hasattr(subject, "texts"):  # another subject may read more tokens than it has output classes
        _check_known(tokens, subject, field)
    return tokens


def _check_known(tokens: Sequence[int], subject: Subject, field: str) -> None:
    for token in tokens:
        if token >= subject.vocab:
            raise SpecError(f"'{subject.name}' has no token {token}", field=field, allowed=f"0 to {subject.vocab - 1}")


def one_token(given: str | int | None, subject: Subject, field: str) -> int:
    """Return the one token that a text or id is, `NO_TOKEN` for None. Raises SpecError, showing its tokens, for a text of several."""
    if given is None:
        return NO_TOKEN
    if isinstance(given, int):
        _check_known([given], subject, field)
        return given
    found = _tokenizer(subject, field).encode(given, add_special_tokens=False).ids
    if len(found) != 1:
        raise SpecError(f"{given!r} is {len(found)} tokens: {_shown(found, subject)}", field=field, allowed="one token, its space included")
    return int(found[0])


def _tokenizer(subject: Subject, field: str) -> Tokenizer:
    tokenizer = getattr(getattr(subject, "texts", None), "tokenizer", None)
    if not isinstance(tokenizer, Tokenizer):
        raise SpecError(f"'{subject.name}' ({subject.kind}) has no tokenizer", field=field, allowed="token ids")
    return tokenizer


def _shown(tokens: Sequence[int], subject: Subject) -> str:
    return "[" + ", ".join(repr(subject.token_text(token)) for token in tokens) + "]"


def _batch(ids: tuple[str, ...], prompts: Sequence[Sequence[int]], asked: Sequence[int], width: int, *, left: bool) -> Examples:
    inputs = torch.zeros(len(prompts), width, dtype=torch.long)
    targets = torch.full_like(inputs, IGNORED)
    mask = torch.zeros(len(prompts), width, dtype=torch.bool)
    for row, tokens in enumerate(prompts):
        start = width - len(tokens) if left else 0
        inputs[row, start : start + len(tokens)] = torch.tensor(tokens)
        mask[row, start : start + len(tokens)] = True
        targets[row, start + len(tokens) - 1] = IGNORED if asked[row] == NO_TOKEN else asked[row]
    return Examples(ids, inputs, targets, mask)
