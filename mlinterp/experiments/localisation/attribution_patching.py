"""`attribution_patching`: estimate from gradients what patching each place would do, and check the estimate on a sample of places.

Two forward passes and one backward pass give every layer, position, head, neuron or SAE latent of a component at once (Nanda 2023); with
`method: integrated` the gradient is averaged on the way between the two runs (Sundararajan et al. 2017).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

from pydantic import Field

from mlinterp.errors import SpecError
from mlinterp.experiments.base import Context, Experiment, Variables
from mlinterp.experiments.localisation import activation_patching
from mlinterp.experiments.localisation.activation_patching import ActivationPatchingVariables
from mlinterp.experiments.localisation.pair_variables import FLAT_AT_CLEAN
from mlinterp.result import ExperimentResult
from mlinterp.spec import Spec


class AttributionPatchingVariables(ActivationPatchingVariables):
    """Which patches are estimated between which prompts, how, and on how many of them the estimate is checked."""

    method: Literal["gradient", "integrated"] = Field(
        "gradient", description="gradient: the slope at the run that is patched; integrated: its mean on the way between the two runs"
    )
    ig_steps: int = Field(8, ge=1, le=1000, description="integrated: parts of the way, each a forward and a backward pass a layer")
    check_exact: int = Field(
        32, ge=0, le=10_000, description="places at which the runs differ, drawn at random, that are patched exactly too"
    )
    joint: int = Field(
        5, ge=2, le=100, description="how many of the largest places are patched together, exactly, beside the sum of estimates"
    )
    batch_size: int = Field(
        256, ge=1, le=65_536, description="pairs a batch; one that does not fit in memory is halved. It changes the last digits of float32"
    )


def check(spec: Spec, variables: Variables, roles: Collection[str]) -> None:
    """Refuse what `activation_patching` refuses, and a metric whose slope is zero at the run that is patched."""
    assert isinstance(variables, AttributionPatchingVariables)
    activation_patching.check(spec, variables, roles)
    if variables.metric in FLAT_AT_CLEAN and variables.direction == "noise" and variables.method == "gradient":
        raise SpecError(
            f"{variables.metric} is largest at the clean run, so it has no slope there",
            field="variables.metric",
            allowed="method: integrated, direction: denoise, or a metric of the answer (logit_diff, prob, ce_diff)",
        )


def run(context: Context) -> ExperimentResult:
    """Estimate every patch, beside its nulls, check a sample exactly, and report effects with intervals."""
    from mlinterp.experiments.localisation.attribution_patching_measure import measure
    from mlinterp.experiments.localisation.attribution_patching_report import report

    return report(measure(context), context.variables, context.seed)


_EXAMPLE: dict[str, Any] = {
    "subject": "NAME",
    "variables": {**activation_patching.EXPERIMENT.example["variables"], "method": "gradient"},
}

EXPERIMENT = Experiment(
    type="attribution_patching",
    summary="Estimate from gradients what patching every place would do, all at once, and check some of them exactly.",
    Variables=AttributionPatchingVariables,
    run=run,
    check=check,
    modes=("observational", "interventional"),
    inputs={"subject": False, "sae": False},
    example=_EXAMPLE,
    headlines=("top/null_effect", "top/effect", "top/adjusted_effect", "agreement/correlation"),
    ranking=("patches", "adjusted"),
)
