"""`active_features`: which latents of an SAE fire on given prompts, how strongly, and at which token.

Of each prompt a latent has one number, its largest activation over the prompt's tokens. Padding, and tokens that stand for no text, do not
count. Where prompts come as pairs, the same latents on the corrupted prompts are the control.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from mlinterp.experiments.base import Context, Experiment
from mlinterp.experiments.localisation import activation_patching
from mlinterp.experiments.readouts.readings import ReadingVariables
from mlinterp.result import ExperimentResult

Number = Annotated[int, Field(ge=0)]


class ActiveFeaturesVariables(ReadingVariables):
    """On which prompts latents are looked at, and which of them are told."""

    latents: list[Number] | None = Field(
        None, min_length=1, max_length=1000, description="only these latents; the `most` with the largest activation where left out"
    )
    most: int = Field(200, ge=1, le=5000, description="latents in the table at most, those with the largest activation first")
    n_bootstrap: int = Field(2000, ge=100, le=100_000, description="resamples of each interval")

    @model_validator(mode="after")
    def _once(self) -> ActiveFeaturesVariables:
        if self.latents is not None and len(set(self.latents)) != len(self.latents):
            raise ValueError(f"latents {self.latents} must name each once")
        return self


def run(context: Context) -> ExperimentResult:
    """Encode every token of every prompt, and tell which latents fire where."""
    from mlinterp.experiments.readouts.active_features_measure import measure
    from mlinterp.experiments.readouts.active_features_report import report

    return report(measure(context), context.variables, context.seed)


_EXAMPLE: dict[str, Any] = {
    "subject": "NAME",
    "inputs": {"sae": "latest"},
    "variables": {"pairs": activation_patching.EXPERIMENT.example["variables"]["pairs"]},
}

EXPERIMENT = Experiment(
    type="active_features",
    summary="See which latents of an SAE fire on given prompts, how strongly and at which token, beside the corrupted prompts of pairs.",
    Variables=ActiveFeaturesVariables,
    run=run,
    inputs={"sae": True, "subject": False},
    example=_EXAMPLE,
    headlines=("active/n_latents", "active/l0"),
    ranking=("latents", "max_act"),
)
