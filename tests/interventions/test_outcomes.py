"""Outcomes of single examples, computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from mlinterp.errors import ExperimentError
from mlinterp.interventions import outcomes
from mlinterp.interventions.outcomes import VALUES, outcome_values, read_answer
from mlinterp.subjects.base import IGNORED, Batch, Outputs

LOGITS = torch.tensor([[[2.0, 0.0, -1.0], [0.0, 1.0, 0.0], [5.0, 5.0, 0.0]], [[0.0, 0.0, 3.0], [1.0, 0.0, 0.0], [0.0, 4.0, 0.0]]])
BATCH = Batch(
    ids=("a", "b"),
    inputs=torch.zeros(2, 3, dtype=torch.long),
    targets=torch.tensor([[0, 0, IGNORED], [2, IGNORED, 1]]),
    mask=torch.ones(2, 3, dtype=torch.bool),
)


def values(logits: torch.Tensor, baseline: torch.Tensor, **outputs: torch.Tensor) -> dict[str, list[float]]:
    answer = read_answer(BATCH, Outputs(logits, **outputs))
    found = outcome_values(BATCH, Outputs(logits, **outputs), answer, read_answer(BATCH, Outputs(baseline)))
    return dict(zip(VALUES, found.T.tolist(), strict=True))


def test_margin_log_probability_and_accuracy_are_means_over_scored_positions() -> None:
    found = values(LOGITS, LOGITS)
    assert found["exact"] == [0.0, 1.0]
    assert found["token_acc"] == [0.5, 1.0]
    assert found["margin"] == [(2.0 - 1.0) / 2, (3.0 + 4.0) / 2]
    log_probs = [2 - math.log(math.e**2 + 1 + math.e**-1), -math.log(2 + math.e)]
    assert found["log_prob"][0] == pytest.approx(sum(log_probs) / 2, rel=1e-12)


def test_the_divergence_from_itself_is_exactly_zero_and_otherwise_kl_of_baseline_from_this() -> None:
    assert values(LOGITS, LOGITS)["kl"] == [0.0, 0.0]
    p, q = LOGITS[0, :2].double().softmax(-1), torch.full((2, 3), 1 / 3, dtype=torch.float64)
    expected = float((p * (p / q).log()).sum(-1).mean())
    assert values(torch.zeros(2, 3, 3), LOGITS)["kl"][0] == pytest.approx(expected, rel=1e-12)


def test_values_do_not_depend_on_how_many_logits_are_widened_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = values(LOGITS, LOGITS.flip(0))
    monkeypatch.setattr(outcomes, "_ELEMENTS", 3)
    assert str(values(LOGITS, LOGITS.flip(0))) == str(whole)  # as text, since NaN is not equal to itself


def test_the_halting_step_is_the_first_positive_one_else_the_last() -> None:
    q = torch.tensor([[-1.0, -1.0], [2.0, -1.0], [-3.0, -2.0]])
    found = values(LOGITS, LOGITS, q_halt=q, step_preds=torch.zeros(3, 2, 3, dtype=torch.long))
    assert found["halt_step"] == [1.0, 2.0]
    assert found["q_right"] == [1.0, 0.0]  # last logits negative; a is wrong, b is right
    assert all(math.isnan(value) for value in values(LOGITS, LOGITS)["halt_step"])


def test_logits_that_are_not_finite_are_refused_with_the_first_example() -> None:
    bad = LOGITS.clone()
    bad[1, 0, 0] = float("nan")
    with pytest.raises(ExperimentError, match="beginning with example a"):
        read_answer(BATCH, Outputs(bad))
