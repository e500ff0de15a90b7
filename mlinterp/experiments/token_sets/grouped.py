"""What the types share that compare groups of contexts."""

from __future__ import annotations

from typing import Literal

from pydantic import AliasChoices, Field

from mlinterp.experiments.token_sets.declared import LatentVariables, TokenName


class GroupVariables(LatentVariables):
    """A question about groups that can be asked of observed contexts and of contexts that are put into other groups."""

    mode: Literal["observational", "interventional"] = Field(
        "observational", description="compare the groups' own contexts, or put contexts into other groups and run the model on both"
    )
    stable_tokens: list[TokenName] = Field(
        [], max_length=32, description="tokens that every context holds: the observed ones that do, or added to each that is edited"
    )
    n_contexts: int = Field(200, ge=2, le=1_000_000, description="interventional: observed contexts that are put into every group")
    min_examples: int = Field(
        10,
        ge=1,
        validation_alias=AliasChoices("min_examples", "min_n"),
        description="contexts that a mean needs; with fewer it is left out",
    )
