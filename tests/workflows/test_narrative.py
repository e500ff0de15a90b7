"""The sentences of a study: what stands out, that nothing does, that joint and single patches disagree, and how it was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlinterp.execution.narrative import narrative
from mlinterp.execution.summary import RunSummary
from mlinterp.result import Estimate, ExperimentResult


def effect(value: float, half: float = 0.05, null: float = 0.01, **columns: Any) -> dict[str, Any]:
    """A row of a patching table: an effect with its interval, beside a null."""
    row: dict[str, Any] = {"n": 20, **columns}
    for name, middle in (("effect", value), ("null", null), ("adjusted", value - null)):
        row |= {name: middle, f"{name}_low": middle - half, f"{name}_high": middle + half}
    return {"p": 0.001, "p_adj": 0.004 if abs(value - null) > half else 0.6, **row}


def told(result: ExperimentResult) -> list[dict[str, Any]]:
    run = RunSummary("0" * 32, "run", "FINISHED", "sqlite:///x", Path("."), result=result, label="step")
    return narrative([run])


def patches(rows: list[dict[str, Any]], kind: str = "activation_patching", **variables: Any) -> ExperimentResult:
    asked = {"component": "attn_out", "direction": "denoise", "metric": "logit_diff", "joint": 2, **variables}
    result = ExperimentResult(mode="interventional", experiment_type=kind, variables=asked)
    result.add_table("patches", rows)
    return result


def test_what_stands_out_is_told_with_interval_and_null() -> None:
    rows = [effect(0.02, place="L0", layer=0), effect(0.82, place="L5", layer=5), effect(-0.2, place="L3", layer=3)]
    assert told(patches(rows)) == [
        {
            "step": "step",
            "mode": "interventional",
            "sentence": "Among the attention's outputs (3 places, of which 2 stand out), layer 5 restores 0.82 [0.77, 0.87] of the "
            "logit_diff gap; a step as long in a random direction 0.01 [-0.04, 0.06]. Then layer 3 -0.2 [-0.25, -0.15], random 0.01.",
        }
    ]


def test_it_says_so_when_nothing_stands_out_though_something_is_the_largest() -> None:
    (only,) = told(patches([effect(0.05, place="L0", layer=0), effect(0.04, place="L1", layer=1)]))
    assert only["sentence"].startswith("Nothing stands out among the attention's outputs (2 places): the largest, layer 0 restores 0.05")
    assert only["sentence"].endswith("(p 0.6, adjusted for all).")


def test_a_single_pair_is_told_without_a_claim() -> None:
    row = {**effect(0.9, place="L0.u1", layer=0, head=1), "n": 1, "p": None, "p_adj": None}
    row |= {f"{name}_{end}": None for name in ("effect", "null", "adjusted") for end in ("low", "high")}
    (only,) = told(patches([row], component="attn_head"))
    assert "layer 0 head 1 restores 0.9 of the logit_diff gap" in only["sentence"]
    assert only["sentence"].endswith("It is one prompt pair: whether that is more than chance is not known.")


@pytest.mark.parametrize(
    ("together", "singles", "words"),
    [
        (0.9, 0.1, "joint and single patches disagree, together they carry what none does alone."),
        (0.9, 1.6, "joint and single patches disagree, what they carry overlaps."),
        (0.9, 0.88, "one by one they add up to 0.88."),
    ],
)
def test_joint_patches_stand_beside_the_sum_of_single_ones(together: float, singles: float, words: str) -> None:
    result = patches([effect(0.5, place="L0", layer=0), effect(0.4, place="L1", layer=1)])
    joint = {"n_places": 2, "sum_of_singles": singles, "largest_single": 0.5}
    result.add_table("joint", [effect(together, places="top2", **joint), effect(together, places="all", **joint)])
    sentences = [row["sentence"] for row in told(result)]
    assert len(sentences) == 2
    assert sentences[1].startswith("All 2 places patched together: 0.9 [0.85, 0.95] of the logit_diff gap, random directions 0.01;")
    assert sentences[1].endswith(words)


def test_estimates_from_gradients_are_observational_and_their_exact_patches_interventional() -> None:
    result = patches([effect(0.5, place="L0", layer=0)], "attribution_patching")
    result.mode = "observational"
    result.metrics |= {"agreement/correlation": 0.97, "agreement/largest_miss": 0.68}
    assert [row["mode"] for row in told(result)] == ["observational", "interventional"]
    assert "estimated from gradients" in told(result)[0]["sentence"]
    agreement = told(result)[1]["sentence"]
    assert agreement.endswith("correlate 0.97 with the estimates, the worst of which is off by 0.68 of the logit_diff gap.")


def test_a_gap_that_may_be_none_is_told_first() -> None:
    result = patches([effect(0.5, place="L0", layer=0)])
    result.estimates["baseline/gap"] = Estimate(value=0.1, low=-0.2, high=0.4, n=20, interval="made for a test")
    assert told(result)[0]["sentence"].startswith("The gap between clean and corrupted runs is 0.1 [-0.2, 0.4], which may be none")


def test_an_empty_circuit_and_one_no_better_than_chance_are_told_as_that() -> None:
    result = ExperimentResult(mode="interventional", experiment_type="circuit_discovery", variables={"method": "acdc"})
    result.add_table("edges", [])
    result.metrics = {"circuit/n_edges": 0.0, "graph/n_edges": 40.0}
    assert [row["sentence"] for row in told(result)] == ["acdc finds no circuit: none of 40 edges is kept."]
    result.metrics["circuit/n_edges"] = 3.0
    for name, low, high in (("faithfulness", 0.1, 0.5), ("null_faithfulness", 0.1, 0.4), ("adjusted_faithfulness", -0.1, 0.2)):
        result.estimates[f"circuit/{name}"] = Estimate(value=(low + high) / 2, low=low, high=high, n=9, interval="made for a test")
    assert told(result)[0]["sentence"] == (
        "acdc keeps 3 of 40 edges; on pairs that did not choose them they restore 0.3 [0.1, 0.5] of the gap, random circuits of as many "
        "edges 0.25 [0.1, 0.4]: no more than chance."
    )


def contribution(term: str, mean: float, control: float | None, p_adj: float | None) -> dict[str, Any]:
    return {"term": term, "mean": mean, "low": mean - 0.1, "high": mean + 0.1, "control": control, "p_adj": p_adj}


def test_direct_contributions_stand_beside_their_control_and_are_denied_where_none_is_beyond_it() -> None:
    result = ExperimentResult(experiment_type="direct_logit_attribution", variables={"of": "logit_diff"})
    result.estimates["dla/logit"] = Estimate(value=3.0, low=2.5, high=3.5, n=9, interval="made for a test")
    result.add_table("components", [contribution("embedding", 0.2, 0.1, 0.5), contribution("blocks.1.attention", -2.0, 0.3, 0.001)])
    result.add_table("logits", [{"answer": " Mary"}, {"answer": " Mary"}])
    expected = (
        "The logit difference of ' Mary' is 3 [2.5, 3.5]. The largest direct contributions: blocks.1.attention -2 [-2.1, -1.9], towards "
        "the mean of all answers 0.3; embedding 0.2 [0.1, 0.3], towards the mean of all answers 0.1."
    )
    assert [row["sentence"] for row in told(result)] == [expected]
    result.tables["components"].rows[1]["p_adj"] = 0.2
    assert told(result)[0]["sentence"] == f"{expected} None is beyond what it writes whatever the answer."


def test_latents_that_fire_are_told_with_their_token_and_the_corrupted_prompts_and_silent_ones_as_silent() -> None:
    result = ExperimentResult(experiment_type="active_features", metrics={"active/n_latents": 7.0})
    result.aggregates.n_samples = 4
    row = {"latent": 12, "max_act": 3.4, "token": " Mary", "n_prompts": 4, "mean_act": 3.1, "mean_act_low": 2.9, "mean_act_high": 3.3}
    row |= {"control_mean": 0.2, "difference": 2.9, "p_adj": 0.001}
    result.add_table("latents", [row])
    assert [each["sentence"] for each in told(result)] == [
        "7 latents fire on 4 prompts, most strongly latent 12 (3.4 at ' Mary'; in 4 of 4 prompts; mean 3.1 [2.9, 3.3], on the corrupted "
        "prompts 0.2).",
        "1 of 1 told fire otherwise on the corrupted prompts: 12.",
    ]
    result.tables["latents"].rows[0] |= {"max_act": 0.0, "p_adj": None}
    assert [each["sentence"] for each in told(result)] == ["No latent fires on the 4 prompts."]
    result.variables = {"latents": [12]}
    assert [each["sentence"] for each in told(result)] == ["None of the latents asked about fires on the 4 prompts."]


def test_types_without_sentences_and_results_without_tables_say_nothing() -> None:
    assert told(ExperimentResult(experiment_type="trace")) == []
    for kind in ("activation_patching", "path_patching", "circuit_discovery", "active_features", "latent_dashboard"):
        assert told(ExperimentResult(experiment_type=kind)) == []
    assert told(ExperimentResult(experiment_type="direct_logit_attribution")) == []
