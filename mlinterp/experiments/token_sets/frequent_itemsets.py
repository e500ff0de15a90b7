"""`frequent_itemsets`: which sets of tokens stand together in the contexts that activate a latent most, and more often than elsewhere."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mlinterp.experiments.base import Context, Experiment
from mlinterp.experiments.token_sets.declared import INPUTS, LatentVariables, TokenOrFamily, check_latent, check_names
from mlinterp.result import ExperimentResult


class ItemsetVariables(LatentVariables):
    """Which sets count as frequent, and what they are compared with."""

    min_support: float = Field(0.05, gt=0, le=1, description="smallest share of the high contexts that hold a set; one context at least")
    max_size: int = Field(4, ge=2, le=6, description="tokens of the largest sets")
    collapse_families: bool = Field(False, description="sets of families, whatever their rungs")
    levels: Literal["highest", "all"] = Field(
        "highest", description="of a family that holds several rungs at once its highest token alone, or all of its tokens"
    )
    condition_on: TokenOrFamily | None = Field(
        None, description="a token or family: only contexts with it are compared, and sets are of what else they hold"
    )
    high_activation_pct: float = Field(10.0, gt=0, le=50, description="per cent of the contexts, by activation, that are the high ones")
    baseline: Literal["rest", "band"] = Field(
        "rest", description="compare with all other contexts, or with the middle half by activation (percentiles 25 to 75)"
    )
    top_k: int = Field(100, ge=1, le=10_000, description="sets that the table lists; all are counted, and p values corrected for all")


def run(context: Context) -> ExperimentResult:
    """Mine the contexts with the highest activations for sets of tokens, and count these elsewhere."""
    from mlinterp.experiments.token_sets.frequent_itemsets_measure import measure
    from mlinterp.token_sets.opening import conduct

    return conduct(context, measure)


EXPERIMENT = Experiment(
    type="frequent_itemsets",
    summary="Sets of tokens that are more common where a latent is most active than elsewhere.",
    Variables=ItemsetVariables,
    run=run,
    check=check_latent,
    check_domain=check_names,
    aliases=("token_itemsets",),
    modes=("observational",),
    inputs=INPUTS,
    headlines=("aggregates/max_lift", "aggregates/n_itemsets"),
    example={"subject": "NAME", "feature_id": 0, "variables": {"min_support": 0.05, "max_size": 3}},
)
