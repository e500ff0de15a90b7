"""Effects and their intervals, held against scipy and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from mlinterp.token_sets.effect_table import edited
from mlinterp.token_sets.effects import combined, compared, difference, mean_effect, mean_of_cells, standardised

RNG = np.random.default_rng(0)
A, B, C, D = (RNG.normal(loc, scale, n) for loc, scale, n in [(1, 1, 12), (0.3, 2, 30), (0, 0.5, 9), (2, 1, 17)])


def symmetric(values: np.ndarray) -> np.ndarray:
    """The values and their mirror images: no skewness is left."""
    return np.concatenate([values, 2 * values.mean() - values])


def test_the_mean_of_paired_changes_is_student_s_t_where_nothing_is_skewed() -> None:
    values = symmetric(A)
    effect, reference = mean_effect(values), stats.ttest_1samp(values, 0)
    assert effect.p == pytest.approx(reference.pvalue, rel=1e-9)
    assert (effect.low, effect.high) == pytest.approx(tuple(reference.confidence_interval()), rel=1e-9)
    assert effect.std_error == pytest.approx(stats.sem(values))


@pytest.mark.parametrize("group", [A, B, C, np.concatenate([np.zeros(40), D])])
def test_the_p_of_a_mean_is_where_its_interval_ends(group: np.ndarray) -> None:
    effect = mean_effect(group)
    for end in (effect.low, effect.high):
        assert mean_effect(group - end).p == pytest.approx(0.05, rel=1e-6)


def test_a_mean_of_mostly_silent_values_is_covered_as_often_as_said() -> None:
    rng, hits, plain = np.random.default_rng(3), 0, 0
    for _ in range(1000):
        values = np.where(rng.random(100) < 0.15, rng.exponential(1.0, 100), 0.0)
        effect, reference = mean_effect(values), stats.ttest_1samp(values, 0).confidence_interval()
        hits += effect.low <= 0.15 <= effect.high
        plain += reference[0] <= 0.15 <= reference[1]
    assert 0.935 <= hits / 1000 <= 0.975
    assert plain / 1000 < 0.915


def test_the_difference_of_two_groups_is_welch_s_t_where_nothing_is_skewed() -> None:
    one, other = symmetric(A), symmetric(B)
    effect, reference = difference(one, other), stats.ttest_ind(one, other, equal_var=False)
    assert effect.p == pytest.approx(reference.pvalue, rel=1e-9)
    assert (effect.low, effect.high) == pytest.approx(tuple(reference.confidence_interval()), rel=1e-9)
    assert effect.n == 24


@pytest.mark.parametrize(("active", "n"), [(0.05, 10), (0.15, 5), (0.15, 30), (0.5, 5)])
def test_a_few_silent_contexts_of_a_latent_that_is_mostly_silent_differ_from_the_rest_no_oftener_than_chance(active: float, n: int) -> None:
    rng, found = np.random.default_rng(5), []
    for _ in range(400):
        values = np.where(rng.random(600) < active, rng.exponential(1.0, 600), 0.0)
        found.append((difference(values[:n], values[n:]).p, stats.ttest_ind(values[:n], values[n:], equal_var=False).pvalue))
    mended, plain = (np.array(found) < 0.05).mean(axis=0)
    assert mended <= 0.075
    assert plain >= 0.09


def test_a_group_that_is_silent_throughout_still_differs_from_active_ones() -> None:
    values = np.where(np.arange(1000) % 6 == 0, 1.0, 0.0)
    found = difference(np.zeros(60), values)
    shared = values.var(ddof=1) * 999 / 1058
    assert found.std_error == pytest.approx(np.sqrt(shared / 60 + values.var(ddof=1) / 1000))
    assert found.p < 0.005
    assert found.high < 0


def test_a_weighted_sum_of_two_groups_is_their_difference() -> None:
    assert combined([(1, A), (-1, B)])[2:6] == pytest.approx(difference(A, B)[2:6])


def test_a_difference_of_differences_has_the_spread_of_all_four_groups() -> None:
    effect = combined([(1, A), (-1, B), (-1, C), (1, D)])
    assert effect.value == pytest.approx(A.mean() - B.mean() - C.mean() + D.mean())
    assert effect.std_error == pytest.approx(np.sqrt(sum(part.var(ddof=1) / len(part) for part in (A, B, C, D))))


def test_its_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng, hits = np.random.default_rng(1), 0
    for _ in range(400):
        parts = [rng.normal(mean, scale, n) for mean, scale, n in [(1, 1, 6), (0, 3, 15), (0, 1, 8), (0.5, 2, 9)]]
        effect = combined(list(zip([1, -1, -1, 1], parts, strict=True)))
        hits += effect.low <= 1.5 <= effect.high
    assert 0.92 <= hits / 400 <= 0.98


def test_what_is_undefined_is_none() -> None:
    assert mean_effect(np.zeros(0)).value is None
    assert mean_effect(np.ones(1))[1:6] == (None,) * 5
    assert difference(np.ones(3), np.zeros(0)).value is None
    assert difference(np.ones(3), np.ones(1)).std_error is None
    assert standardised(np.ones(4), np.ones(4)) is None
    assert standardised(np.ones(1), np.zeros(4)) is None


def test_units_that_all_agree_have_an_interval_without_width_and_the_p_of_agreeing_by_chance() -> None:
    assert mean_effect(np.full(5, 2.0))[:6] == (2.0, 0.0, 0.0, 2.0, 2.0, 2**-4)
    assert mean_effect(np.zeros(5))[3:6] == (0.0, 0.0, 1.0)
    exact = stats.permutation_test((np.ones(4), np.zeros(3)), lambda a, b: a.mean() - b.mean(), n_resamples=10_000).pvalue
    assert difference(np.ones(4), np.zeros(3)).p == pytest.approx(exact)
    assert combined([(1, np.ones(3)), (-1, np.zeros(4))])[3:6] == (1.0, 1.0, 0.25)


def test_what_agrees_but_for_rounding_is_no_evidence_of_more_than_agreement() -> None:
    noisy = np.float32(0.3) + np.float32(1e-8) * np.array([0, 1, 1], dtype=np.float32)
    assert mean_effect(noisy.astype(float)).p == 2**-2
    assert mean_effect(np.array([1.0, 1.0 + 6e-8])).p == 0.5
    same = difference(np.full(5, 0.1), np.full(7, 0.1) + 1e-17)
    assert same.p == 1.0
    assert difference(np.full(50, 0.3), np.full(70, 0.3) + 2e-16).p == 1.0
    assert mean_effect(np.array([5.0, 5.1])).p == pytest.approx(stats.ttest_1samp([5.0, 5.1], 0).pvalue)


def test_the_mean_of_cells_is_that_of_contexts_where_every_context_has_all_and_holds_its_own_interval_where_not() -> None:
    whole = RNG.normal(size=(9, 4)) + RNG.normal(size=(9, 1))
    assert mean_of_cells(whole) == pytest.approx(mean_effect(whole.mean(axis=1)))
    ragged = np.array([[1.0, np.nan], [2.0, 4.0], [np.nan, np.nan], [6.0, np.nan]])
    found = mean_of_cells(ragged)
    residuals = (np.array([1.0, 6.0, 6.0]) - np.array([1, 2, 1]) * 3.25) / (4 / 3)
    assert (found.value, found.n) == (3.25, 3)
    assert found.std_error == pytest.approx(residuals.std(ddof=1) / np.sqrt(3))
    assert found[3:] == pytest.approx(mean_effect(3.25 + residuals)[3:])
    assert mean_of_cells(np.full((3, 2), np.nan)).value is None


def test_the_mean_of_cells_covers_the_truth_where_how_much_a_context_has_goes_with_its_effect() -> None:
    rng, hits = np.random.default_rng(3), 0
    for _ in range(400):
        level = rng.normal(1.0, 1.0, size=(40, 1))
        cells = level + rng.normal(0, 0.3, size=(40, 6))
        cells[np.arange(6) >= np.where(level > 1, 6, 2)] = np.nan
        found = mean_of_cells(cells)
        high, low = 1 + 0.79788456, 1 - 0.79788456  # means of the two halves of a normal distribution
        hits += found.low <= (6 * high + 2 * low) / 8 <= found.high
    assert 0.92 <= hits / 400 <= 0.98


def test_a_group_that_is_too_small_gives_no_value_but_its_size() -> None:
    values, there = np.arange(6.0), np.array([True, True, False, False, False, False])
    assert compared(values, there, ~there, 3).value is None
    assert compared(values, there, ~there, 3).n == 2
    assert compared(values, there, ~there, 2).value == pytest.approx(0.5 - 3.5)


def test_standardised_differences_agree_with_the_hand_solved_case() -> None:
    assert standardised(np.arange(11.0, 21.0), np.arange(1.0, 11.0)) == pytest.approx(3.3887, abs=1e-4)


def test_effects_of_edits_leave_out_what_was_not_made() -> None:
    deltas = np.array([[1.0, np.nan], [3.0, np.nan], [np.nan, np.nan]])
    table = edited(["a", "b"], deltas, 1)
    assert table.values[0] == 2.0
    assert np.isnan(table.values[1])
    assert table.n_units == 3
    assert {abs(table.shuffled(np.random.default_rng(seed))[0]) for seed in range(20)} == {1.0, 2.0}
    assert np.isnan(edited(["a", "b"], deltas, 3).values).all()
