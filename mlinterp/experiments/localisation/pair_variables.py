"""What specs about prompt pairs have in common: the pairs, what is measured on them, and what every effect stands beside."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from mlinterp.experiments.base import Variables
from mlinterp.patching.metrics import MetricRegistry
from mlinterp.subjects.pairs_declared import Align, PairsVariable, PromptPair


class PairVariables(Variables):
    """Prompt pairs and a metric of what the model says after them."""

    pairs: PairsVariable = Field(
        description="clean and corrupted prompts with their answers, or a .jsonl file of the project that holds them"
    )
    metric: Annotated[str, StringConstraints(max_length=300)] = Field(
        "logit_diff", description="logit_diff, prob, ce_diff, kl, l2, cosine, or a function of the project, FILE.py:FUNCTION"
    )
    n_bootstrap: int = Field(2000, ge=100, le=100_000, description="resamples of each interval")


class PatchVariables(PairVariables):
    """What is patched between the prompts of each pair, and the nulls beside it."""

    direction: Literal["denoise", "noise"] = Field(
        "denoise", description="denoise: clean activations into the corrupted run (what suffices); noise: the reverse (what is needed)"
    )
    align: Align | None = Field(
        None, description="which positions of prompts of unequal length belong together: end or start; refused where left out"
    )
    controls: int = Field(3, ge=2, le=50, description="draws of norm-matched random directions, each of which is another sweep")
    untrained: bool = Field(True, description="whether the sweep is run on the same model with random weights too")


def check_metric(name: str, pairs: list[PromptPair] | str) -> None:
    """Refuse an unknown metric by name, and, where the pairs are in the spec, one that lacks a token the metric needs."""
    if ".py:" in name:
        return
    metric = MetricRegistry().get(name)
    if not isinstance(pairs, str):
        for token in metric.needs:
            missing = next((pair.id or str(at) for at, pair in enumerate(pairs) if getattr(pair, token) is None), None)
            metric.require({token: missing})
