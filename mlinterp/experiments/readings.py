"""What a spec says about the text that a model reads while it is only watched: prompts of its own, or examples of a split."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from mlinterp.errors import ExperimentError
from mlinterp.experiments.base import Variables
from mlinterp.experiments.trace import ExampleChoice
from mlinterp.interventions.prompts import Asked, Prompt, asked

if TYPE_CHECKING:
    from mlinterp.subjects.base import Subject

Positions = Literal["tokens", "answer", "last"] | Annotated[list[int], Field(min_length=1, max_length=4096)]


class ReadingVariables(Variables):
    """What is read."""

    prompts: list[Prompt] | None = Field(
        None, min_length=1, max_length=4096, description="texts, each with its right answer where there is one; instead of examples"
    )
    examples: ExampleChoice | None = Field(None, description="which of the subject's examples are read; 64 of split test where left out")
    batch_size: int = Field(
        8, ge=1, le=4096, description="examples a forward pass; part of the result, since batch size changes float32 numbers"
    )

    @model_validator(mode="after")
    def _one_source(self) -> ReadingVariables:
        if self.prompts is not None and self.examples is not None:
            raise ValueError("give prompts or examples, not both")
        return self


def read(subject: Subject, variables: ReadingVariables) -> Asked:
    """Return the chosen examples. Raises ExperimentError where a split holds none."""
    import torch

    from mlinterp.subjects.base import IGNORED

    if variables.prompts is not None:
        return asked(subject, variables.prompts)
    choice = variables.examples or ExampleChoice(n=64)
    examples = subject.examples(choice.split, choice.n, choice.seed, **choice.options)
    if not len(examples):
        raise ExperimentError(f"the {choice.split} split of '{subject.name}' holds no example")
    return Asked(examples, torch.full_like(examples.targets, IGNORED))
