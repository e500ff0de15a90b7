"""`path_patching`: let one reader of the residual stream see one writer as in the other prompt's run, and measure what that path carries.

Every sender with every receiver (Wang et al. 2022; Goldowsky-Dill et al. 2023): the receiver alone sees the change.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from mlinterp.experiments.base import Context, Experiment, Variables
from mlinterp.experiments.localisation import activation_patching
from mlinterp.experiments.localisation.pair_variables import PatchVariables, check_metric
from mlinterp.patching.path_names import receiver, sender
from mlinterp.result import ExperimentResult
from mlinterp.spec import Spec

Name = Annotated[str, StringConstraints(min_length=1, max_length=80)]
Group = Annotated[list[Name], Field(min_length=1, max_length=1000)]


class PathPatchingVariables(PatchVariables):
    """Which paths are patched between which prompts, and what is measured."""

    senders: list[Name | Group] | None = Field(
        None,
        min_length=1,
        description="what writes to the stream: embedding, blocks.N.head.H or blocks.N.mlp; a list of them is patched together; where "
        "left out all, each by itself, or those of inputs.circuit",
    )
    receivers: list[Name | Group] | None = Field(
        None,
        min_length=1,
        description="what reads it: blocks.N.head.H.q (or .k, .v), blocks.N.mlp or logits; a list of them is patched together; where left "
        "out the logits, or those of inputs.circuit. Without senders too, the paths are the circuit's edges",
    )
    positions: Literal["each", "all", "answer"] | list[int] = Field(
        "all", description="where the path begins: all positions at once, each by itself, the last token (answer), or position numbers"
    )
    batch_size: int = Field(
        256, ge=1, le=65_536, description="paths a batch; one that does not fit in memory is halved. It changes the last digits of float32"
    )

    @model_validator(mode="after")
    def _once(self) -> PathPatchingVariables:
        for name in ("senders", "receivers", "positions"):
            chosen = getattr(self, name)
            if isinstance(chosen, list) and any(chosen.count(each) > 1 for each in chosen):
                raise ValueError(f"{name} must name each once")
            if chosen == []:
                raise ValueError(f"{name} must name at least one")
        return self


def members(group: str | list[str]) -> list[str]:
    """Return the names in a group; a name alone is a group of one."""
    return [group] if isinstance(group, str) else group


def check(_spec: Spec, variables: Variables, _roles: Collection[str]) -> None:
    """Refuse a name that is neither sender nor receiver, an unknown metric, and one that lacks a token."""
    assert isinstance(variables, PathPatchingVariables)
    for field, groups, read in (("senders", variables.senders or [], sender), ("receivers", variables.receivers or [], receiver)):
        for group in groups:
            for name in members(group):
                read(name, f"variables.{field}")
    check_metric(variables.metric, variables.pairs)


def run(context: Context) -> ExperimentResult:
    """Patch every path in every pair, beside its nulls, and report effects with intervals."""
    from mlinterp.experiments.localisation.path_patching_measure import measure
    from mlinterp.experiments.localisation.path_patching_report import report

    return report(measure(context), context.variables, context.seed)


_EXAMPLE: dict[str, Any] = {
    "subject": "NAME",
    "variables": {
        "pairs": activation_patching.EXPERIMENT.example["variables"]["pairs"],
        "senders": ["embedding", "blocks.0.head.0", "blocks.0.mlp"],
        "receivers": ["blocks.1.head.0.q", "blocks.1.head.0.k", "blocks.1.head.0.v", "logits"],
    },
}

EXPERIMENT = Experiment(
    type="path_patching",
    summary="Let one reader of the stream (a head's query, key or value, an MLP, the logits) see one writer as in the other prompt's run.",
    Variables=PathPatchingVariables,
    run=run,
    check=check,
    modes=("interventional",),
    inputs={"subject": False, "circuit": False},
    example=_EXAMPLE,
    headlines=("top/null_effect", "top/effect", "top/adjusted_effect"),
    ranking=("paths", "adjusted"),
)
