"""`split_half`: whether one half of the contexts shows the same effects as the other."""

from __future__ import annotations

from pydantic import Field

from mlinterp.experiments.base import Context, Experiment
from mlinterp.experiments.token_sets.declared import INPUTS
from mlinterp.experiments.token_sets.effect_object import ObjectVariables, check_object, check_object_names
from mlinterp.result import ExperimentResult


class SplitHalfVariables(ObjectVariables):
    """What is split, and how often."""

    n_splits: int = Field(10, ge=1, le=10_000, description="random halvings")
    n_shuffles: int = Field(100, ge=1, le=100_000, description="draws under the null whose stability is compared")


def run(context: Context) -> ExperimentResult:
    """Measure effects on random halves of the contexts, and correlate the halves."""
    from mlinterp.experiments.token_sets.split_half_measure import measure
    from mlinterp.token_sets.opening import conduct

    return conduct(context, measure)


EXPERIMENT = Experiment(
    type="split_half",
    summary="Whether the effects of an experiment are the same in random halves of its contexts.",
    Variables=SplitHalfVariables,
    run=run,
    check=check_object,
    check_domain=check_object_names,
    modes=("observational", "interventional"),
    inputs=INPUTS,
    headlines=("aggregates/mean_correlation",),
    example={
        "subject": "NAME",
        "feature_id": 0,
        "variables": {"object": {"type": "family_1d_sweep", "variables": {"family": "FAMILY"}}},
    },
)
