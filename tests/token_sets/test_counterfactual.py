"""Edits of contexts: what is compared with what, which contexts are left out, and what controls may and may not say."""

from __future__ import annotations

import numpy as np
import pytest
from token_lab import TOY, TOY_BASES, computed_lab, toy

from mlinterp.errors import ExperimentError
from mlinterp.experiments.token_sets.family_1d_sweep import FamilySweepVariables
from mlinterp.experiments.token_sets.family_1d_sweep_measure import effect_table, measure
from mlinterp.result import Diagnostics
from mlinterp.stats import single_case_p
from mlinterp.subjects.token_sets.constraints import of_each
from mlinterp.subjects.token_sets.vocabulary import Family, Vocabulary
from mlinterp.token_sets.counterfactual import beyond_controls, control_draws, family_changes
from mlinterp.token_sets.effects import mean_of_cells
from mlinterp.token_sets.floor import artefact, check_floor

MANY = Vocabulary(tuple(Family(name, kind="binary") for name in "abcdefgh"))
BASES = [tuple("abcdefgh"[k] for k in range(8) if number >> k & 1) for number in range(0, 256, 5)]


def weighted(**weights: float):
    """A latent that is a sum over what a context holds, high above the floor."""
    return lambda tokens, _group: 10.0 + sum(weights.get(token, 0.0) for token in tokens)


def swept(lab, **given):
    return measure(lab, FamilySweepVariables.model_validate({"family": "a", "mode": "interventional", **given}))


def test_a_start_that_breaks_a_hard_constraint_is_neither_computed_nor_counted_as_the_latent_without_the_family() -> None:
    def compute(tokens: frozenset[str], _group: str | None) -> float:
        assert "alpha_1" in tokens or "gamma" in tokens, "a forbidden context was computed"
        return toy(tokens)

    lab = computed_lab(compute, [("alpha_1", "gamma"), ("alpha_1", "delta"), ("alpha_1", "gamma", "beta_2")])
    lab.constraints = [of_each("something", "x", "hard", lambda c: None if c.tokens & {"alpha_1", "gamma"} else "nothing to see")]
    made = family_changes(lab, lab.rows.table, TOY.family("alpha"), [1])
    assert np.isnan(made.before).tolist() == np.isnan(made.post[:, 0]).tolist() == [False, True, False]
    assert (lab.diagnostics.n_contexts_tested, lab.diagnostics.n_contexts_skipped) == (4, 1)
    result = measure(lab, FamilySweepVariables(family="alpha", mode="interventional", controls=0, min_n=1))
    absent = result.tables["rung_stats"].rows[0]
    assert (absent["label"], absent["n"], absent["mean_activation"]) == ("absent", 2, 0.0)
    assert result.diagnostics.relu_floor_rate == 1.0


def test_the_mean_over_contexts_and_rungs_has_the_interval_of_that_mean_where_edits_were_skipped() -> None:
    lab = computed_lab(toy, [*TOY_BASES, ("beta_1",), ("gamma",)])
    lab.constraints = [of_each("low_with_delta", "x", "hard", lambda c: "too much" if {"alpha_3", "delta"} <= c.tokens else None)]
    result = measure(lab, FamilySweepVariables(family="alpha", mode="interventional", controls=0, min_n=1))
    made = family_changes(lab, lab.rows.table, TOY.family("alpha"), [1, 2, 3])
    found, expected = result.estimates["aggregates/mean_delta"], mean_of_cells(made.post)
    assert np.isnan(made.post).sum() == 1
    assert (found.value, found.low, found.high) == (expected.value, expected.low, expected.high)
    assert found.value == result.aggregates.mean_delta == np.nanmean(made.post)


def test_fewer_contexts_than_asked_for_give_no_mean() -> None:
    result = measure(computed_lab(toy, TOY_BASES), FamilySweepVariables(family="alpha", mode="interventional", min_n=4))
    assert result.aggregates.mean_delta is None
    assert (
        result.tables["rung_stats"].rows[0] | {"n": 3, "status": "too few", "mean_activation": None, "delta_from_baseline": None}
        == (result.tables["rung_stats"].rows[0])
    )
    assert np.isnan(effect_table(computed_lab(toy, TOY_BASES), FamilySweepVariables(family="alpha", mode="interventional")).values).all()


def test_controls_are_other_families_than_the_swept_and_the_stable_ones_and_a_function_of_the_seed_alone() -> None:
    lab = computed_lab(weighted(b=1, c=2, d=3, e=4, f=5, g=6, h=7), BASES, MANY)
    drawn = control_draws(lab, lab.rows.table, MANY.family("a"), [1], 3, ["b", "c"])
    assert drawn is not None
    effects = drawn.mean(axis=(1, 2))
    assert len(set(effects)) == 3
    assert set(effects) <= {3.0, 4.0, 5.0, 6.0, 7.0}
    again = control_draws(lab, lab.rows.table, MANY.family("a"), [1], 3, ["b", "c"])
    np.testing.assert_array_equal(drawn, again)
    assert control_draws(lab, lab.rows.table, MANY.family("a"), [1], 3, list("bcdefgh")) is None


def test_a_family_like_any_other_is_not_beyond_its_controls_however_many_contexts_were_edited() -> None:
    """Its effect is not the mean of the controls' effects, which by themselves are as far from it."""
    alike = swept(computed_lab(weighted(a=1, b=0.2, c=-0.5, d=1.4, e=0.6, f=0.9, g=-0.1, h=0.3), BASES, MANY))
    assert alike.metrics["effect/adjusted_delta"] > 0.3
    assert alike.estimates["aggregates/mean_delta"].p > 0.05
    assert alike.estimates["effect/adjusted_delta"].p > 0.05
    special = swept(computed_lab(weighted(a=9, b=0.2, c=-0.5, d=1.4, e=0.6, f=0.9, g=-0.1, h=0.3), BASES, MANY))
    assert special.estimates["aggregates/mean_delta"].p < 0.001
    assert special.estimates["aggregates/mean_delta"].null_value == pytest.approx(special.metrics["effect/control_delta"])


def test_beyond_the_controls_is_the_paired_difference_and_no_surer_than_the_controls_are_alike() -> None:
    rng = np.random.default_rng(0)
    post, controls = rng.normal(2, 1, (30, 2)), rng.normal(0, 1, (4, 30, 2)) + np.array([0.5, -0.5, 1.0, 0.0])[:, None, None]
    controls[0, :10], controls[:, 0, 0] = np.nan, np.nan
    value, effect = beyond_controls(post, controls)
    known = np.isfinite(controls)
    mean = np.where(known, controls, 0).sum(axis=0)[1:] / known.sum(axis=0)[1:]
    assert value == pytest.approx(np.append(mean.ravel(), np.nanmean(controls[:, 0, 1])).mean())
    assert effect.p == pytest.approx(single_case_p(np.delete(post.ravel(), 0).mean(), np.nanmean(controls, axis=(1, 2))))
    assert beyond_controls(post, np.full((2, 30, 2), np.nan)) is None


def test_a_latent_that_is_not_finite_is_no_skipped_edit() -> None:
    with pytest.raises(ExperimentError, match="the latent is not finite on 1 of 6 contexts, such as alpha_3"):
        swept(computed_lab(lambda tokens, _: np.inf if tokens == {"alpha_3"} else toy(tokens), [(), ("beta_1",)]), family="alpha")


def test_a_neuron_that_goes_below_zero_has_no_floor_there() -> None:
    found = Diagnostics()
    assert not check_floor(np.array([-3.0, -1.0, -0.05, 2.0, np.nan]), found)
    assert found.relu_floor_rate == 0.25


def test_an_effect_beside_which_the_pre_activation_moves_by_rounding_alone_is_an_artefact() -> None:
    assert artefact(0.5, 3e-8)
    assert artefact(-0.5, -3e-8)
    assert not artefact(0.5, 0.1)
    assert not artefact(3e-10, 1e-12)
    assert not artefact(0.5, None)
