"""`shuffle_null`: whether the effects of an experiment are larger than those of data in which there is nothing to find."""

from __future__ import annotations

from pydantic import Field

from mlinterp.experiments.base import Context, Experiment
from mlinterp.experiments.token_sets.declared import INPUTS
from mlinterp.experiments.token_sets.effect_object import ObjectVariables, check_object, check_object_names
from mlinterp.result import ExperimentResult


class ShuffleNullVariables(ObjectVariables):
    """What is compared with its null, and with how many draws of it."""

    n_shuffles: int = Field(100, ge=1, le=1_000_000, description="draws under the null; the smallest p value is one in so many and one")


def run(context: Context) -> ExperimentResult:
    """Measure effects on the contexts, and on draws in which activations or signs are shuffled."""
    from mlinterp.experiments.token_sets.shuffle_null_measure import measure
    from mlinterp.token_sets.opening import conduct

    return conduct(context, measure)


EXPERIMENT = Experiment(
    type="shuffle_null",
    summary="Whether the effects of an experiment are larger than chance makes them: a permutation test.",
    Variables=ShuffleNullVariables,
    run=run,
    check=check_object,
    check_domain=check_object_names,
    modes=("observational", "interventional"),
    inputs=INPUTS,
    headlines=("aggregates/p_value",),
    example={
        "subject": "NAME",
        "feature_id": 0,
        "variables": {"object": {"type": "family_1d_sweep", "variables": {"family": "FAMILY"}}},
    },
)
