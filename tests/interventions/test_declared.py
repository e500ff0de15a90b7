"""What a spec may say about interventions."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from mlinterp.experiments.intervene import EXPERIMENT, InterveneVariables
from mlinterp.interventions.declared import InterventionBlock

ABLATE = {"policy": "ablate_features", "features": [1]}


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({**ABLATE, "value": 1.0}, r"ablate_features has no 'value' \(it has: baseline\)"),
        ({"policy": "clamp_features", "features": [1]}, "exactly one of value, quantile and scale"),
        ({"policy": "clamp_features", "features": [1], "value": 1.0, "scale": 2.0}, "exactly one of value, quantile and scale"),
        ({"policy": "clamp_features", "features": [1], "quantile": 1.5}, "less than or equal to 1"),
        ({"policy": "steer", "features": [1]}, "steer needs a strength"),
        ({"policy": "patch_states", "features": [1]}, "takes neither features nor mode"),
        ({"policy": "ablate_features", "features": [1, 1]}, "each once"),
        ({"policy": "ablate_features", "features": []}, "at least one latent"),
        ({"policy": "ablate_features", "features": "top:0"}, "string_pattern_mismatch|match pattern"),
        ({"policy": "patch_features", "features": [1], "baseline": "mean"}, "patch_features has no 'baseline'"),
        ({**ABLATE, "at": {"cycle": [1]}}, "cycle"),
        ({**ABLATE, "at": {"cycles": []}}, "at least 1 item"),
    ],
)
def test_a_block_that_contradicts_itself_is_refused(block: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        InterventionBlock.model_validate(block)


def test_blocks_of_one_name_and_agreement_without_patching_are_refused() -> None:
    with pytest.raises(ValidationError, match="two interventions are named 'x'"):
        InterveneVariables.model_validate({"interventions": [{**ABLATE, "name": "x"}, {**ABLATE, "name": "x"}]})
    with pytest.raises(ValidationError, match="agreement is about patching"):
        InterveneVariables.model_validate({"interventions": [ABLATE], "outcome": "agreement"})


def test_the_example_of_the_type_is_valid() -> None:
    InterveneVariables.model_validate(dict(EXPERIMENT.example["variables"]))
