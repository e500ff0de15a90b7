"""What a spec says about the text that a model reads while it is only watched: prompts of its own, or examples of a split."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from mlinterp.errors import ExperimentError
from mlinterp.experiments.base import Variables
from mlinterp.experiments.trace import ExampleChoice
from mlinterp.readouts.prompts import Asked, Prompt, asked
from mlinterp.subjects.pairs_declared import PairsVariable, PromptPair, read_pairs

if TYPE_CHECKING:
    from mlinterp.subjects.base import Subject

Positions = Literal["tokens", "answer", "last"] | Annotated[list[int], Field(min_length=1, max_length=4096)]


class ReadingVariables(Variables):
    """What is read."""

    prompts: list[Prompt] | None = Field(
        None, min_length=1, max_length=4096, description="texts, each with its right answer where there is one; instead of examples"
    )
    pairs: PairsVariable | None = Field(
        None, description="prompt pairs, or a .jsonl file of the project that holds them; their clean prompts are read, instead of examples"
    )
    examples: ExampleChoice | None = Field(None, description="which of the subject's examples are read; 64 of split test where left out")
    batch_size: int = Field(
        8, ge=1, le=4096, description="examples a forward pass; part of the result, since batch size changes float32 numbers"
    )

    @model_validator(mode="after")
    def _one_source(self) -> ReadingVariables:
        given = [name for name in ("prompts", "pairs", "examples") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"give {given[0]} or {given[1]}, not both")
        return self


def read(subject: Subject, variables: ReadingVariables, root: Path | None = None) -> Asked:
    """Return the chosen examples; `root` is the project's folder, for a file of pairs. Raises ExperimentError where a split holds none."""
    import torch

    from mlinterp.subjects.base import IGNORED

    if variables.prompts is not None:
        return asked(subject, variables.prompts)
    if variables.pairs is not None:
        return read_clean(subject, variables.pairs, root)
    choice = variables.examples or ExampleChoice(n=64)
    examples = subject.examples(choice.split, choice.n, choice.seed, **choice.options)
    if not len(examples):
        raise ExperimentError(f"the {choice.split} split of '{subject.name}' holds no example")
    return Asked(examples, torch.full_like(examples.targets, IGNORED))


def read_clean(subject: Subject, pairs: list[PromptPair] | str, root: Path | None) -> Asked:
    """Return the clean prompts of pairs: each one's target is its answer, after its last token."""
    import torch

    from mlinterp.subjects.base import IGNORED
    from mlinterp.subjects.pairs import NO_TOKEN, tokenise

    found = tokenise(read_pairs(pairs, root), subject, "start")
    wrong = torch.full_like(found.clean.targets, IGNORED)
    last = found.clean.mask.sum(dim=1) - 1
    known = found.wrong != NO_TOKEN
    wrong[known, last[known]] = found.wrong[known]
    return Asked(found.clean, wrong)


def warnings_of(n: int) -> list[str]:
    """Return what is to be said where only `n` examples were read."""
    if n == 1:
        return ["1 example: nothing has an interval or a p value, and what is found may be about this one alone"]
    return [f"{n} examples: intervals and p values are coarse"] if n < 20 else []
