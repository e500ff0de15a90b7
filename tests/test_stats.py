"""Statistics against scipy, closed forms and cases solved by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from mlinterp.stats import (
    Clusters,
    Interval,
    benjamini_hochberg,
    bootstrap_intervals,
    bootstrap_means,
    bootstrap_ratios,
    clustered_share,
    control_adjusted,
    few_units,
    interval_p,
    mean_t_interval,
    mean_t_p,
    sign_flip_p,
    single_case_p,
    stretched,
    widened,
    wilson_interval,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_the_bootstrap_interval_is_scipys_bca_interval_of_the_same_resamples_stretched_for_forty_units() -> None:
    values = rng(1).exponential(size=(40, 1))
    resampled = bootstrap_means(values, 999, rng(2))
    done = scipy_stats.bootstrap((values[:, 0],), np.mean, n_resamples=999, method="BCa", rng=rng(3))
    done.bootstrap_distribution = resampled[:, 0]
    expected = scipy_stats.bootstrap((values[:, 0],), np.mean, n_resamples=0, method="BCa", bootstrap_result=done).confidence_interval
    (got,) = bootstrap_intervals(values, 999, rng=rng(2))
    assert got.estimate == pytest.approx(values.mean(), rel=1e-12)
    plain = values.mean() + (np.array(got[1:]) - values.mean()) / few_units(40)
    assert plain == pytest.approx((expected.low, expected.high), rel=1e-9)


@pytest.mark.parametrize("n", [2, 3, 5, 8])
def test_bootstrap_intervals_of_few_units_hold_the_truth_as_often_as_they_say(n: int) -> None:
    draws, gaps = rng(40).normal(1.0, 1.0, size=(n, 600)), 1.0 + 0.2 * rng(41).random((n, 600))
    for found in (bootstrap_intervals(draws, 400, rng=rng(42)), bootstrap_ratios(draws * gaps, gaps, 400, rng=rng(43))):
        assert 0.92 <= np.mean([low <= 1.0 <= high for _, low, high in found]) <= 0.985


def test_a_stretched_interval_of_normal_means_is_students() -> None:
    values = rng(44).normal(size=6)
    spread = values.std() / math.sqrt(6) * scipy_stats.norm.ppf(0.975)  # how far quantiles of normal resamples lie from the mean
    got = stretched(values.mean(), np.array([values.mean() - spread, values.mean() + spread]), 6)
    assert got == pytest.approx(mean_t_interval(values)[1:], rel=1e-12)


def test_a_bound_of_a_stretched_interval_has_the_p_value_of_its_level_and_one_that_nobody_stretched_has_the_same_p() -> None:
    plain = Interval(1.0, 0.4, 1.9)
    wide = Interval(1.0, *stretched(1.0, np.array(plain[1:]), 7))
    assert interval_p(wide, wide.low, 7, df=6) == pytest.approx(0.05, rel=1e-9)
    assert interval_p(wide, 0.0, 7, df=6) == pytest.approx(interval_p(plain, 0.0, 7), rel=1e-12)


def test_bootstrap_means_have_the_mean_and_spread_that_theory_gives() -> None:
    values = rng(4).normal(2.0, 3.0, size=(50, 1))
    means = bootstrap_means(values, 20_000, rng(5))
    assert means.mean() == pytest.approx(values.mean(), abs=0.02)
    assert means.std() == pytest.approx(values.std() / math.sqrt(50), rel=0.03)


def test_columns_share_their_resamples_so_a_shifted_column_has_a_shifted_interval() -> None:
    values = rng(6).normal(size=(30, 1))
    first, second = bootstrap_intervals(np.hstack([values, values + 5.0]), 500, rng=rng(7))
    assert second == pytest.approx([x + 5.0 for x in first], abs=1e-9)


def test_resamples_do_not_depend_on_how_many_are_drawn_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    values = rng(8).normal(size=(25, 2))
    whole = bootstrap_means(values, 300, rng(9))
    monkeypatch.setattr("mlinterp.stats._BLOCK", 25 * 7)
    np.testing.assert_allclose(bootstrap_means(values, 300, rng(9)), whole, rtol=1e-12)


def test_a_column_that_never_varies_has_an_interval_of_width_zero_and_one_row_has_none() -> None:
    assert bootstrap_intervals(np.zeros((12, 1)), 100, rng=rng()) == [Interval(0.0, 0.0, 0.0)]
    (single,) = bootstrap_intervals(np.array([[3.0]]), 100, rng=rng())
    assert single.estimate == 3.0
    assert math.isnan(single.low)
    assert math.isnan(single.high)


def test_the_bootstrap_interval_covers_a_skewed_mean_about_as_often_as_it_says() -> None:
    draws = rng(10).exponential(size=(60, 400))
    covered = [low <= 1.0 <= high for _, low, high in bootstrap_intervals(draws, 600, rng=rng(11))]
    assert np.mean(covered) > 0.89


def test_non_finite_or_misshapen_differences_are_refused() -> None:
    for bad in (np.array([[1.0], [np.nan]]), np.array([1.0, 2.0]), np.empty((0, 1))):
        with pytest.raises(ValueError, match="finite"):
            bootstrap_intervals(bad, 10, rng=rng())


def test_sign_flip_p_of_three_equal_signs_is_two_patterns_of_eight() -> None:
    assert sign_flip_p(np.array([[1.0], [2.0], [3.0]]), rng=rng()).tolist() == [2 / 8]
    assert sign_flip_p(np.array([[1.0], [-1.0]]), rng=rng()).tolist() == [1.0]


def test_the_exact_sign_flip_p_is_scipys() -> None:
    values = rng(12).normal(0.4, 1.0, size=9)
    expected = scipy_stats.permutation_test((values,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
    assert sign_flip_p(values[:, None], rng=rng())[0] == pytest.approx(expected, abs=1e-12)


def test_the_monte_carlo_p_is_near_the_exact_one_and_never_zero() -> None:
    values = rng(13).normal(0.5, 1.0, size=(12, 1))
    exact = sign_flip_p(values, rng=rng())
    assert sign_flip_p(values, 4000, rng=rng(14)) == pytest.approx(exact, abs=0.03)
    assert sign_flip_p(np.ones((200, 1)), 999, rng=rng(15)).tolist() == [1 / 1000]
    assert sign_flip_p(np.zeros((200, 1)), 99, rng=rng(16)).tolist() == [1.0]


def test_sign_flip_p_is_uniform_when_nothing_is_there() -> None:
    p = sign_flip_p(rng(17).normal(size=(40, 600)), 999, rng=rng(18))
    assert np.mean(p <= 0.05) == pytest.approx(0.05, abs=0.03)
    assert np.mean(p <= 0.5) == pytest.approx(0.5, abs=0.07)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
@settings(max_examples=100, deadline=None)
def test_benjamini_hochberg_is_scipys(p: list[float]) -> None:
    np.testing.assert_allclose(benjamini_hochberg(np.array(p)), scipy_stats.false_discovery_control(p), atol=1e-12)


def test_the_t_interval_is_the_textbook_one() -> None:
    values = np.array([1.0, 2.0, 3.0, 4.0])
    mean, low, high = mean_t_interval(values)
    half = 3.182446305284263 * math.sqrt(5 / 3) / 2  # t(0.975, 3) s / sqrt n
    assert (mean, low, high) == pytest.approx((2.5, 2.5 - half, 2.5 + half), rel=1e-12)
    assert math.isnan(mean_t_interval(np.array([7.0])).low)


def test_the_wilson_interval_solves_its_defining_equation() -> None:
    share, low, high = wilson_interval(8, 10)
    z = 1.959963984540054
    assert share == 0.8
    for bound in (low, high):
        assert abs(0.8 - bound) == pytest.approx(z * math.sqrt(bound * (1 - bound) / 10), rel=1e-9)
    assert wilson_interval(0, 5).low == 0.0
    with pytest.raises(ValueError, match="6 successes of 5"):
        wilson_interval(6, 5)


def test_a_change_is_compared_with_single_controls_solved_by_hand_for_two_that_never_vary() -> None:
    control, adjusted = control_adjusted(np.full(8, 3.0), np.tile([0.0, 1.0], (8, 1)), 500, rng=rng())
    half = 0.5 * few_units(8)
    assert control == pytest.approx((0.5, 0.5 - half, 0.5 + half))
    assert adjusted == pytest.approx((2.5, 2.5 - half, 2.5 + half))


def test_without_spread_between_controls_the_adjusted_interval_is_the_paired_percentile_interval() -> None:
    changes, shared = rng(20).normal(1.0, 1.0, size=40), rng(21).normal(size=40)
    _, adjusted = control_adjusted(changes, np.tile(shared[:, None], (1, 5)), 4000, rng=rng(22))
    resampled = bootstrap_means((changes - shared)[:, None], 4000, rng(22))
    mean = (changes - shared).mean()
    assert adjusted == pytest.approx([mean, *stretched(mean, np.quantile(resampled, [0.025, 0.975]), 40)], abs=1e-9)


def test_one_more_control_is_inside_the_interval_of_the_others_about_as_often_as_it_says() -> None:
    inside = 0
    for seed in range(200):
        effects = rng(seed).normal(size=16)
        per_example = effects + 0.1 * rng(seed + 1000).normal(size=(30, 16))
        _, adjusted = control_adjusted(per_example[:, 0], per_example[:, 1:], 200, rng=rng(seed + 2000))
        inside += adjusted.low <= 0 <= adjusted.high
    assert inside >= 165


def test_the_single_case_p_is_the_two_sample_t_test_with_one_case() -> None:
    case, controls = 4.0, np.array([1.0, 2.0, 3.0, 2.5])
    t = (case - controls.mean()) / (controls.std(ddof=1) * math.sqrt(1 + 1 / 4))
    assert single_case_p(case, controls) == pytest.approx(2 * scipy_stats.t.sf(t, 3), rel=1e-12)
    assert single_case_p(1.0, np.array([0.0, 0.0, 0.0])) == 0.0
    assert single_case_p(0.0, np.array([0.0, 0.0, 0.0])) == 1.0
    assert single_case_p(9.0, np.array([1.0])) == 1.0


def test_the_single_case_p_is_uniform_when_the_case_is_one_of_the_controls() -> None:
    p = [single_case_p(draw[0], draw[1:]) for draw in rng(23).normal(size=(2000, 6))]
    assert scipy_stats.kstest(p, "uniform").pvalue > 0.01


def test_the_p_value_over_seeds_is_scipys_one_sample_t_test() -> None:
    values = rng(30).normal(0.4, 1.0, size=7)
    assert mean_t_p(values) == pytest.approx(scipy_stats.ttest_1samp(values, 0.0).pvalue, rel=1e-12)
    assert [mean_t_p([3.0]), mean_t_p([2.0, 2.0]), mean_t_p([0.0, 0.0])] == [1.0, 0.0, 1.0]


def test_a_ratio_with_equal_weights_has_the_percentile_interval_of_the_mean() -> None:
    values = rng(31).exponential(size=(40, 2))
    got = bootstrap_ratios(values, np.full_like(values, 3.0), 400, rng=rng(32))
    resampled = bootstrap_means(values, 400, rng(32)) / 3.0
    for column, at in enumerate(got):
        mean = values[:, column].mean() / 3.0
        assert at == pytest.approx([mean, *stretched(mean, np.quantile(resampled[:, column], [0.025, 0.975]), 40)], rel=1e-12)


def test_a_ratio_of_resampled_sums_is_covered_about_as_often_as_it_says_although_rows_within_an_example_are_alike() -> None:
    covered = 0
    for seed in range(300):
        draws = rng(1000 + seed)
        rows = draws.integers(1, 6, size=60)
        means = draws.normal(2.0, 1.0, size=60)  # all rows of an example share its mean
        (at,) = bootstrap_ratios((means * rows)[:, None], rows[:, None].astype(float), 300, rng=draws)
        covered += at.low <= 2.0 <= at.high
    assert 0.90 <= covered / 300 <= 0.985


def test_a_ratio_without_a_second_unit_or_with_weights_that_change_sign_has_no_interval() -> None:
    (single,) = bootstrap_ratios(np.array([[3.0]]), np.array([[2.0]]), rng=rng())
    assert single.estimate == 1.5
    assert math.isnan(single.low)
    unsure, empty = bootstrap_ratios(np.ones((4, 2)), np.array([[1.0, 0.0], [-0.9, 0.0], [1.0, 0.0], [-0.9, 0.0]]), rng=rng())
    assert unsure.estimate == pytest.approx(20.0)
    assert math.isnan(unsure.low)
    assert all(map(math.isnan, empty))
    with pytest.raises(ValueError, match="finite"):
        bootstrap_ratios(np.ones((2, 1)), np.ones((3, 1)), rng=rng())


def test_an_interval_widened_to_another_level_is_the_one_that_the_distribution_gives_at_that_level() -> None:
    values = rng(33).normal(size=6)
    narrow, wide = mean_t_interval(values, 0.9), mean_t_interval(values, 0.99)
    assert widened(narrow, 0.9, 0.99, df=5) == pytest.approx(wide, rel=1e-12)
    skewed = widened(Interval(1.0, 0.9, 1.4), 0.95, 0.99)
    factor = scipy_stats.norm.ppf(0.995) / scipy_stats.norm.ppf(0.975)
    assert skewed == pytest.approx((1.0, 1.0 - 0.1 * factor, 1.0 + 0.4 * factor), rel=1e-12)


def test_a_share_whose_clusters_are_single_trials_has_wilsons_interval():
    hits, n = 37, 4000
    found, wanted = clustered_share(Clusters(n, n, n, hits, hits, hits)), wilson_interval(hits, n)
    assert found == pytest.approx(wanted, rel=2e-3)


def test_a_share_of_clusters_that_agree_within_themselves_is_as_sure_as_its_clusters():
    size, n, hits = 50, 200, 30
    found = clustered_share(Clusters(n, n * size, n * size**2, hits * size, hits * size**2, hits * size**2))
    assert found == pytest.approx(wilson_interval(hits, n), rel=2e-2)


@pytest.mark.parametrize("hits", [0, 10])
def test_a_share_without_variance_is_as_sure_as_its_clusters(hits):
    found = clustered_share(Clusters(10, 100, 1000, 10 * hits, 10 * hits**2, 100 * hits))
    assert found.estimate == hits / 10
    assert found[1:] == pytest.approx(wilson_interval(hits, 10)[1:], abs=0.07), "but for Student's quantile"
    assert 0 <= found.low <= found.high <= 1


def test_a_share_of_one_cluster_has_no_interval():
    assert np.isnan(clustered_share(Clusters(1, 10, 100, 3, 9, 30))[1:]).all()


@pytest.mark.parametrize(("rate", "n"), [(0.3, 40), (0.02, 300)])
def test_the_interval_of_a_clustered_share_covers_the_truth_as_often_as_it_says(rate, n):
    """Beta-binomial clusters of unequal sizes, whose trials are alike: Wilson's interval over trials covers half of the time here."""
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(1500):
        sizes = rng.integers(10, 40, size=n)
        hits = rng.binomial(sizes, rng.beta(3 * rate, 3 * (1 - rate), size=n))
        sums = (n, sizes.sum(), (sizes**2).sum(), hits.sum(), (hits**2).sum(), (hits * sizes).sum())
        _, low, high = clustered_share(Clusters(*map(int, sums)))
        covered.append(low <= rate <= high)
    assert 0.92 <= np.mean(covered) <= 0.985
