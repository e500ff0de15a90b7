"""Effects over pairs against closed forms: ratios of sums, paired intervals, nulls, and what is undefined."""

from __future__ import annotations

import numpy as np
import pytest

from mlinterp.patching.effects import cell_effects
from mlinterp.stats import drawn_anew_p, single_case_p

RNG = np.random.default_rng(0)
GAPS = 2.0 + RNG.random(40)
NULLS = 0.02 * RNG.standard_normal((3, 40, 4))


def test_an_effect_is_the_ratio_of_sums_and_the_adjusted_one_what_is_left_beyond_the_null():
    changes = np.column_stack([GAPS, 0.5 * GAPS, np.zeros(40), -0.25 * GAPS])
    found = cell_effects(changes, NULLS, GAPS, 500, seed=0)
    assert [effect.effect.estimate for effect in found] == pytest.approx([1.0, 0.5, 0.0, -0.25])
    for cell, effect in enumerate(found):
        null = NULLS[:, :, cell].sum(axis=1).mean() / GAPS.sum()
        assert effect.null.estimate == pytest.approx(null)
        assert effect.adjusted.estimate == pytest.approx(effect.effect.estimate - null)
        assert effect.change == pytest.approx(changes[:, cell].mean())
        assert effect.n == 40
        # Changes in proportion to the gaps have the same ratio in every resample of whole pairs.
        assert (effect.effect.low, effect.effect.high) == pytest.approx((effect.effect.estimate,) * 2)


def test_changes_of_the_null_s_size_are_not_significant_and_large_ones_are():
    changes = np.column_stack([0.8 * GAPS, 0.02 * RNG.standard_normal((40, 3))])
    large, *small = cell_effects(changes, NULLS, GAPS, 500, seed=0)
    assert large.p_adj < 0.01
    assert large.adjusted.low > 0.7
    assert all(effect.p_adj > 0.05 for effect in small)
    assert all(effect.p_adj >= effect.p for effect in (large, *small))


@pytest.mark.parametrize("n", [3, 5, 8, 40])
def test_intervals_over_few_and_over_many_pairs_cover_as_often_as_they_say(n):
    rng = np.random.default_rng(n)
    gaps = 1.0 + rng.random(n)
    changes = 0.4 * gaps[:, None] + 0.2 * rng.standard_normal((n, 500))
    nulls = 0.05 * rng.standard_normal((1, n, 500)).repeat(3, axis=0)  # draws that agree: what the null is does not vary but over pairs
    found = cell_effects(changes, nulls, gaps, 300, seed=0)
    for name in ("effect", "adjusted"):
        bounds = np.array([getattr(effect, name)[1:] for effect in found])
        assert 0.90 <= np.mean((bounds[:, 0] <= 0.4) & (bounds[:, 1] >= 0.4)) <= 0.985


def test_how_many_cells_are_resampled_at_a_time_changes_no_number(monkeypatch):
    changes = 0.5 * GAPS[:, None] + RNG.standard_normal((40, 4))
    whole = cell_effects(changes, NULLS, GAPS, 200, seed=0)
    monkeypatch.setattr("mlinterp.patching.effects._RESAMPLED", 3 * 200 * 4)
    for one, other in zip(whole, cell_effects(changes, NULLS, GAPS, 200, seed=0), strict=True):
        np.testing.assert_allclose(np.hstack(one), np.hstack(other), rtol=1e-12)


def test_a_cell_that_some_pairs_do_not_have_is_about_the_others():
    changes = np.column_stack([GAPS, np.where(np.arange(40) < 10, 0.5 * GAPS, np.nan), np.full(40, np.nan)])
    both, some, none = cell_effects(changes, NULLS[:, :, :3], GAPS, 200, seed=0)
    assert (both.n, some.n, none) == (40, 10, None)
    assert some.effect.estimate == pytest.approx(0.5)


def test_one_pair_has_an_effect_without_interval_or_significance():
    (effect,) = cell_effects(np.array([[1.0]]), np.zeros((2, 1, 1)), np.array([2.0]), 200, seed=0)
    assert effect.effect.estimate == 0.5
    assert np.isnan([effect.effect.low, effect.adjusted.high]).all()
    assert effect.p == 1.0


def test_pairs_whose_gaps_cancel_have_no_effect():
    (effect,) = cell_effects(np.array([[1.0], [1.0]]), np.zeros((2, 2, 1)), np.array([1.0, -1.0]), 200, seed=0)
    assert effect is None
    (wobbly,) = cell_effects(np.array([[1.0], [1.0]]), np.zeros((2, 2, 1)), np.array([3.0, -1.0]), 200, seed=0)
    assert wobbly.effect.estimate == 1.0
    assert np.isnan(wobbly.effect.low), "a resample of the second pair alone has the other sign"


def test_a_few_draws_are_enough_to_tell_a_large_effect_where_every_pair_has_its_own():
    """Three draws that all pairs share have two degrees of freedom: no effect among fifty places could ever stand out."""
    rng = np.random.default_rng(1)
    gaps, nulls = 2.0 + rng.random(12), 1.6 * rng.standard_normal((3, 12, 50))
    changes = np.column_stack([0.9 * gaps, 1.6 * rng.standard_normal((12, 49))])
    shared = cell_effects(changes, nulls, gaps, 200, seed=0)
    own = cell_effects(changes, nulls, gaps, 200, seed=0, drawn_anew=True)
    assert own[0].p_adj < 0.05
    assert all(effect.p_adj > 0.05 for effect in own[1:])
    assert shared[0].p_adj > 0.05
    assert [effect.effect for effect in own] == [effect.effect for effect in shared]


def test_effects_that_are_draws_of_the_null_themselves_are_significant_no_more_often_than_the_level_says():
    rng, scales = np.random.default_rng(2), np.exp(np.random.default_rng(3).standard_normal((1, 9, 1)))
    own, *nulls = scales * rng.standard_normal((4, 9, 2000))
    found = cell_effects(own, np.stack(nulls), np.ones(9), 100, seed=0, drawn_anew=True)
    assert np.mean([effect.p < 0.05 for effect in found]) < 0.05
    assert 0.03 < np.mean(drawn_anew_p(own, np.stack(nulls)) < 0.05) < 0.08, "units differ in size by more than ten times"


def test_a_patch_that_restores_every_pair_is_significant_also_where_some_gaps_are_the_other_way_round():
    """The change of such a pair has the other sign: counted as it is, it would look as if the patch worked in some pairs alone."""
    rng = np.random.default_rng(5)
    gaps = np.where(np.arange(12) < 3, -1.0, 1.0) * (1.0 + rng.random(12))
    (effect,) = cell_effects((0.9 * gaps)[:, None], 0.1 * rng.standard_normal((3, 12, 1)), gaps, 200, seed=0, drawn_anew=True)
    assert effect.effect.estimate == pytest.approx(0.9)
    assert effect.p < 0.01


def test_places_at_which_nothing_changes_are_no_tests_that_others_pay_for():
    rng = np.random.default_rng(6)
    changes, nulls = rng.standard_normal((9, 3)) + np.array([2.0, 0.0, 0.0]), rng.standard_normal((3, 9, 3))
    alone = cell_effects(changes, nulls, np.ones(9), 100, seed=0, drawn_anew=True)
    wide = [np.concatenate([each, np.zeros((*each.shape[:-1], 40))], axis=-1) for each in (changes, nulls)]
    beside = cell_effects(*wide, np.ones(9), 100, seed=0, drawn_anew=True)
    assert [effect.p_adj for effect in beside] == [*(effect.p_adj for effect in alone), *[1.0] * 40]
    assert alone[0].p < alone[0].p_adj


def test_draws_of_a_single_pair_are_judged_as_a_single_case():
    rng = np.random.default_rng(4)
    case, controls = rng.standard_normal((1, 5)), rng.standard_normal((4, 1, 5))
    expected = [single_case_p(float(case[0, at]), controls[:, 0, at]) for at in range(5)]
    assert drawn_anew_p(case, controls) == pytest.approx(expected)
    assert drawn_anew_p(np.array([[1.0, 0.0]]), np.zeros((3, 1, 2))).tolist() == [0.0, 1.0]
    assert drawn_anew_p(case, controls[:1]).tolist() == [1.0] * 5
