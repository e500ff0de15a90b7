"""How prompt pairs are declared: as a list, or as a JSON-lines file of the project. Reading them needs no torch.

pairs:
  - {clean: "When Mary and John went out, John gave milk to", corrupted: "When Mary and John went out, Mary gave milk to",
     answer: " Mary", wrong: " John"}
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, ValidationError, model_validator

from mlinterp.errors import EnvironmentFault, SpecError
from mlinterp.frozen import Frozen
from mlinterp.io.paths import resolve_inside

Align = Literal["start", "end"]
TokenId = Annotated[int, Field(ge=0)]
Prompt = (
    Annotated[str, StringConstraints(min_length=1, max_length=100_000)] | Annotated[list[TokenId], Field(min_length=1, max_length=100_000)]
)
MAX_PAIRS = 4096


class PromptPair(Frozen):
    """Two prompts that differ in what is asked about, and the tokens that the clean one should and should not be continued with."""

    clean: Prompt = Field(description="the prompt that shows the behaviour, as text or as token ids")
    corrupted: Prompt = Field(description="the prompt that does not, of as many tokens")
    answer: str | TokenId | None = Field(None, description="right token after the clean prompt, as text (one token, space included) or id")
    wrong: str | TokenId | None = Field(None, description="right token after the corrupted prompt, which is wrong after the clean one")
    id: str | None = Field(None, min_length=1, max_length=120, description="its name in tables; its number where left out")

    @model_validator(mode="after")
    def _two_tokens(self) -> PromptPair:
        if self.answer is not None and self.answer == self.wrong:
            raise ValueError(f"answer and wrong are both {self.answer!r}")
        return self


PairsVariable = (
    Annotated[list[PromptPair], Field(min_length=1, max_length=MAX_PAIRS)] | Annotated[str, StringConstraints(min_length=1, max_length=300)]
)
"""What a spec's `pairs` may be: the pairs, or a `.jsonl` file of the project that holds one a line."""


def read_pairs(declared: list[PromptPair] | str, root: Path | None) -> list[PromptPair]:
    """Return the pairs of a spec; a file's name is relative to the project's folder `root`.

    Raises UnsafeError for a file outside `root`, EnvironmentFault for one that is not there, and SpecError, with its line, for one that
    holds something else than pairs or has another ending.
    """
    if not isinstance(declared, str):
        return declared
    if root is None:
        raise SpecError(f"'{declared}' is a file of a project, and there is no project here", field="variables.pairs")
    if not declared.endswith(".jsonl"):
        raise SpecError(f"'{declared}' is no list of pairs", field="variables.pairs", allowed="pairs, or a .jsonl file of the project")
    path = resolve_inside(root, declared)
    if not path.is_file():
        raise EnvironmentFault(f"file of prompt pairs '{declared}' does not exist in the project's folder '{root.name}'")
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            found.append(PromptPair.model_validate(json.loads(line)))
        except ValidationError as error:
            first = error.errors()[0]
            raise SpecError(first["msg"], field=".".join(map(str, first["loc"])) or None, file=declared, line=number) from error
        except ValueError as error:
            raise SpecError("not a JSON object", file=declared, line=number) from error
    if not 1 <= len(found) <= MAX_PAIRS:
        raise SpecError(f"holds {len(found)} pairs", file=declared, allowed=f"1 to {MAX_PAIRS}")
    return found
