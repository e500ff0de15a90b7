from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlinterp.hypotheses.online_testing import OnlineFallback

UNIT = 6 / math.pi**2


def rates(alpha: float, rejections: list[bool]) -> list[float]:
    state, found = OnlineFallback(alpha), []
    for rejected in rejections:
        found.append(state.rate)
        state = state.after(rejected)
    return found


@pytest.mark.parametrize(
    ("rejections", "units"),
    [
        ("nnnn", ["1", "1/4", "1/9", "1/16"]),
        ("rrrr", ["1", "5/4", "49/36", "205/144"]),
        ("rnrn", ["1", "5/4", "1/9", "25/144"]),
        ("nrrn", ["1", "1/4", "13/36", "61/144"]),
        ("nnrr", ["1", "1/4", "1/9", "25/144"]),
    ],
)
def test_rates_are_those_solved_by_hand_in_units_of_six_alpha_over_pi_squared(rejections: str, units: list[str]) -> None:
    expected = [0.05 * UNIT * float(Fraction(unit)) for unit in units]
    assert rates(0.05, [letter == "r" for letter in rejections]) == pytest.approx(expected, rel=1e-14)


def test_without_rejections_the_rates_of_all_tests_that_could_ever_come_add_up_to_alpha() -> None:
    spent = sum(rates(0.05, [False] * 20_000))
    assert 0.05 - 0.05 * UNIT / 19_999 < spent < 0.05


def test_a_rate_does_not_depend_on_what_comes_later() -> None:
    for later in (True, False):
        assert rates(0.1, [True, False, True, later, later])[:4] == rates(0.1, [True, False, True, False])


@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_the_largest_rates_that_true_nulls_can_get_add_up_to_at_most_alpha(is_false: list[bool]) -> None:
    """The proof of the procedure: until the first false rejection only false nulls are rejected, at best every one of them."""
    given_to_true = [rate for rate, false in zip(rates(0.05, is_false), is_false, strict=True) if not false]
    assert sum(given_to_true) <= 0.05


def test_however_unluckily_p_values_depend_on_each_other_something_is_falsely_rejected_at_most_at_alpha() -> None:
    """Each true null is rejected where no other one is, and each false one always: nothing can be falsely rejected more often."""
    alpha, is_false, draws = 0.2, [True, False, True, True, False, False], np.random.default_rng(0).random(20_000)
    highest = [0.0 if false else rate for rate, false in zip(rates(alpha, is_false), is_false, strict=True)]
    starts = np.cumsum([0.0, *highest[:-1]])

    def falsely_rejects(draw: float) -> bool:
        state = OnlineFallback(alpha)
        for start, false in zip(starts, is_false, strict=True):
            rejected = false or bool((draw - start) % 1.0 < state.rate)
            if rejected and not false:
                return True
            state = state.after(rejected)
        return False

    found = sum(map(falsely_rejects, draws)) / len(draws)
    assert found == pytest.approx(sum(highest), abs=4 * math.sqrt(0.2 * 0.8 / len(draws)))
    assert 0.5 * alpha < found < alpha
