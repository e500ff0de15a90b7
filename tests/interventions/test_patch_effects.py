"""Effects over pairs against closed forms: ratios of sums, paired intervals, nulls, and what is undefined."""

from __future__ import annotations

import numpy as np
import pytest

from mlinterp.interventions.patch_effects import cell_effects

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


def test_the_interval_of_a_ratio_covers_as_often_as_it_says():
    covered = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        gaps = 1.0 + 0.3 * rng.standard_normal(40)
        changes = 0.4 * gaps + 0.2 * rng.standard_normal(40)
        effect = cell_effects(changes[:, None], np.zeros((2, 40, 1)), gaps, 300, seed)[0]
        covered += effect.effect.low <= 0.4 <= effect.effect.high
    assert 0.88 <= covered / 200 <= 0.99


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
