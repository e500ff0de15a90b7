"""The logit lens: numbers recomputed from logits by hand, the last layer exact, padding without effect."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from watched import ARCHITECTURES, language_model, watch, write_texts

from mlinterp.errors import ExperimentError, SpecError
from mlinterp.readouts.lens import Answers, Rows, answers, chance_agreement, settled
from mlinterp.subjects.huggingface import HuggingFaceSubject


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def gpt2(root: Path) -> HuggingFaceSubject:
    return language_model(root, ARCHITECTURES["gpt2"])


def answering(agrees: list[bool], top: list[int] | None = None) -> Answers:
    empty = np.zeros(len(agrees))
    return Answers(empty, np.array(agrees), np.array(top or empty, dtype=int)[:, None], empty[:, None], empty, empty, empty, empty)


def test_numbers_of_a_layer_are_those_of_its_probabilities_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(2), math.log(5)], [math.log(4), math.log(3), 0.0]])
    final = torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.25, 0.5]]).log()
    found = answers(logits, final, torch.tensor([1, -100]), top_k=2)
    np.testing.assert_allclose(found.top_prob, [[5 / 8, 2 / 8], [4 / 8, 3 / 8]], rtol=1e-6)
    assert found.top.tolist() == [[2, 1], [0, 1]]
    assert found.agrees.tolist() == [False, False]
    np.testing.assert_allclose(found.final_prob, [1 / 8, 1 / 8], rtol=1e-6)
    assert found.final_rank.tolist() == [3, 3]
    np.testing.assert_allclose(found.target_prob, [2 / 8, np.nan], rtol=1e-6)
    assert found.target_rank[0] == 2
    assert math.isnan(found.target_rank[1])
    kl = 0.5 * math.log(0.5 * 8) + 0.25 * math.log(0.25 * 8 / 2) + 0.25 * math.log(0.25 * 8 / 5)
    assert found.kl[0] == pytest.approx(kl, rel=1e-5)


def test_of_equally_likely_tokens_every_layer_picks_the_one_that_the_model_picks() -> None:
    """Two of many thousand bfloat16 logits are often the same: the last layer must still agree with itself."""
    logits = torch.tensor([[1.0, 3.0, 3.0, 3.0, 2.0]]).repeat(3, 400)
    final = logits.log_softmax(-1)
    found = answers(logits, final, torch.full((3,), -100), top_k=4)
    assert found.agrees.tolist() == [True, True, True]
    assert found.top[:, 0].tolist() == final.argmax(-1).tolist() == [1, 1, 1]
    assert all(len(set(row)) == 4 for row in found.top.tolist())
    np.testing.assert_allclose(found.top_prob, final.topk(4).values.exp(), rtol=1e-6)


def test_in_bfloat16_the_last_layer_still_agrees_with_the_model_everywhere(root: Path, tmp_path: Path) -> None:
    subject = language_model(root, ARCHITECTURES["llama"], "bfloat16")
    last = watch("logit_lens", subject, tmp_path, {"examples": {"n": 60}, "shown": 0}).tables["layers"].rows[-1]
    assert (last["kl"], last["agreement"], last["final_rank"]) == (0.0, 1.0, 1.0)


def test_a_model_that_says_nan_is_refused_rather_than_left_out_of_the_means(root: Path, tmp_path: Path) -> None:
    subject = language_model(root, ARCHITECTURES["gpt2"])
    subject.model.transformer.h[1].mlp.c_proj.weight[0] = math.nan
    for kind in ("logit_lens", "direct_logit_attribution", "tuned_lens"):
        with pytest.raises(ExperimentError, match=r"\d+ of \d+ logits of 'toy' are NaN or infinite"):
            watch(kind, subject, tmp_path / kind)
    with pytest.raises(ExperimentError, match=r"\d+ of \d+ attention weights of blocks\.2 of 'toy' are NaN"):
        watch("head_detectors", subject, tmp_path / "heads", {"n_sequences": 4, "length": 6})


def test_chance_agreement_is_that_of_every_pairing_of_answers() -> None:
    rows = Rows(*(np.array(column) for column in ([0, 0, 1, 1], [0, 1, 0, 1], [0, 0, 0, 0], [5, 5, 6, 7], [0, 0, 0, 0])))
    tops = [5, 6, 6, 8]
    by_hand = sum(top == final for top in tops for final in rows.final.tolist()) / 16
    assert chance_agreement(rows, answering([True] * 4, tops)) == by_hand == 4 / 16


def test_a_position_is_settled_from_the_first_layer_after_which_none_disagrees() -> None:
    layers = [answering(each) for each in ([True, False, True], [False, False, True], [True, False, True], [True, True, True])]
    assert settled(layers).tolist() == [2, 3, 0]


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_last_layer_is_the_model_itself_exactly(root: Path, kind: str, tmp_path: Path) -> None:
    result = watch("logit_lens", language_model(root, ARCHITECTURES[kind]), tmp_path, {"examples": {"n": 4}, "shown": 1})
    last = result.tables["layers"].rows[-1]
    assert (last["kl"], last["agreement"], last["final_rank"]) == (0.0, 1.0, 1.0)
    assert result.tables["layers"].rows[0]["kl"] > 0.01
    assert result.mode == "observational"


def test_tokens_probabilities_and_ranks_are_those_of_the_stream_read_out_by_hand(gpt2: HuggingFaceSubject, tmp_path: Path) -> None:
    result = watch("logit_lens", gpt2, tmp_path, {"examples": {"n": 3}, "top_k": 2})
    examples = gpt2.examples("test", 3)
    with torch.no_grad():
        output = gpt2.model(input_ids=examples.inputs, output_hidden_states=True)
        lens = gpt2.model.lm_head(gpt2.model.transformer.ln_f(output.hidden_states[2])).log_softmax(-1)
    final = output.logits.log_softmax(-1)
    row = next(row for row in result.tables["tokens_2"].rows if row["layer"] == "blocks.1" and row["position"] == 4)
    own = lens[1, 4]
    assert row["token"] == f"4 {gpt2.token_text(int(examples.inputs[1, 4]))}"
    assert row["top"] == gpt2.token_text(int(own.argmax()))
    assert row["final"] == gpt2.token_text(int(final[1, 4].argmax()))
    assert row["final_prob"] == pytest.approx(float(own[final[1, 4].argmax()].exp()), rel=1e-4)
    assert row["target"] == gpt2.token_text(int(examples.inputs[1, 5]))
    assert row["target_prob"] == pytest.approx(float(own[examples.inputs[1, 5]].exp()), rel=1e-4)
    assert row["target_rank"] == 1 + int((own > own[examples.inputs[1, 5]]).sum())
    assert row["kl"] == pytest.approx(float((final[1, 4].exp() * (final[1, 4] - own)).sum()), rel=1e-3)
    mean = float((final.exp() * (final - lens)).sum(-1).mean())
    assert result.metrics["kl/blocks.1"] == pytest.approx(mean, rel=1e-4)
    at_four = next(row for row in result.tables["positions"].rows if row["layer"] == "blocks.1" and row["position"] == 4)
    assert at_four["kl"] == pytest.approx(float((final.exp() * (final - lens)).sum(-1)[:, 4].mean()), rel=1e-4)


def test_every_layer_has_intervals_and_agreement_stands_beside_chance(gpt2: HuggingFaceSubject, tmp_path: Path) -> None:
    result = watch("logit_lens", gpt2, tmp_path, {"examples": {"n": 10}})
    for row in result.tables["layers"].rows[:-1]:
        assert row["kl_low"] < row["kl"] < row["kl_high"]
        assert 0 <= row["chance_agreement"] < 0.5
        assert result.estimates[f"agreement/{row['layer']}"].null_value == row["chance_agreement"]
    assert set(result.estimates) == set(result.metrics)


def test_padding_changes_nothing_at_real_tokens(gpt2: HuggingFaceSubject, tmp_path: Path) -> None:
    short, long = {"text": "f(1, ["}, {"text": "call_1 = f(1, [g("}
    alone = watch("logit_lens", gpt2, tmp_path, {"prompts": [short]})
    beside = watch("logit_lens", gpt2, tmp_path, {"prompts": [short, long]})
    one, other = (result.tables["tokens_1"].rows for result in (alone, beside))
    assert [row["token"] for row in one] == [row["token"] for row in other]
    np.testing.assert_allclose([row["kl"] for row in one], [row["kl"] for row in other], atol=1e-5)


def test_a_prompt_without_an_answer_has_no_target_at_its_end_rather_than_a_zero(gpt2: HuggingFaceSubject, tmp_path: Path) -> None:
    result = watch("logit_lens", gpt2, tmp_path, {"prompts": [{"text": "f(1"}], "positions": "last"})
    assert {row["target_prob"] for row in result.tables["layers"].rows} == {None}
    assert not any(name.startswith("target_prob/") for name in result.metrics)
    answered = watch("logit_lens", gpt2, tmp_path, {"prompts": [{"text": "f(1", "answer": ")"}], "positions": "last"})
    assert answered.tables["tokens_1"].rows[0]["target"] == ")"


def test_positions_that_no_example_has_are_refused(gpt2: HuggingFaceSubject, tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match=r"none of the 2 examples has such a position \(positions: \[99\]\)"):
        watch("logit_lens", gpt2, tmp_path, {"examples": {"n": 2}, "positions": [99]})


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"prompts": [{"text": "f("}], "examples": {"n": 2}}, "give prompts or examples, not both"),
        ({"prompts": []}, "prompts"),
        ({"positions": "frist"}, "positions"),
        ({"prompts": [{"text": "f(", "anser": "1"}]}, "unknown key 'anser'.*did you mean 'answer'"),
    ],
)
def test_what_is_asked_wrongly_is_refused(gpt2: HuggingFaceSubject, tmp_path: Path, variables: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        watch("logit_lens", gpt2, tmp_path, variables)
