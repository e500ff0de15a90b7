"""What specs about prompt pairs have in common: the pairs, what is measured on them, and what every effect stands beside."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from mlinterp.errors import SpecError
from mlinterp.experiments.base import Variables
from mlinterp.patching.metrics import BUILT_IN, MetricRegistry
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


class CircuitVariables(PairVariables):
    """How a circuit, chosen on some of the pairs, is judged on the others."""

    sizes: list[Annotated[int, Field(ge=1)]] | None = Field(
        None,
        min_length=1,
        max_length=100,
        description="sizes of the curve's circuits, in edges (feature_circuit: in latents); 1, 2, 5, 10, 20, … where left out",
    )
    held_out: float = Field(0.5, gt=0, lt=1, description="share of the pairs that judge the circuit and do not choose it")
    batch_size: int = Field(
        64, ge=1, le=65_536, description="runs a batch; one that does not fit in memory is split. It changes the last digits of float32"
    )

    @model_validator(mode="after")
    def _can_be_judged(self) -> CircuitVariables:
        if self.sizes is not None and len(set(self.sizes)) != len(self.sizes):
            raise ValueError(f"sizes {self.sizes} must name each once")
        if isinstance(self.pairs, list) and len(self.pairs) < 2:
            raise ValueError("pairs must be at least 2: the circuit is judged on pairs that did not choose it")
        return self


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


FLAT_AT_CLEAN = tuple(metric.name for metric in BUILT_IN if not metric.needs)
"""Metrics of how near the clean run a run is: they are largest there, and their gradient vanishes."""


def refuse_flat(metric: str, allowed: str) -> None:
    """Refuse a metric whose gradient in the clean run is zero; `allowed` says what to do instead."""
    if metric in FLAT_AT_CLEAN:
        problem = f"the gradient of {metric} is zero in the clean run, and so would be every score"
        raise SpecError(problem, field="variables.metric", allowed=allowed)


def check_metric(name: str, pairs: list[PromptPair] | str) -> None:
    """Refuse an unknown metric by name, and, where the pairs are in the spec, one that lacks a token the metric needs."""
    if ".py:" in name:
        return
    metric = MetricRegistry().get(name)
    if not isinstance(pairs, str):
        for token in metric.needs:
            missing = next((pair.id or str(at) for at, pair in enumerate(pairs) if getattr(pair, token) is None), None)
            metric.require({token: missing})
