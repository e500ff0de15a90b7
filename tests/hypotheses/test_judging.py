"""Judgements against t tests, normal tables and cases solved by hand."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from mlinterp.hypotheses.judging import judge
from mlinterp.hypotheses.records import Judgement
from mlinterp.result import Aggregates, Estimate, ExperimentResult
from mlinterp.spec import Expectation
from mlinterp.stats import Interval, interval_p, mean_t_interval

MANY = 10**9
"""Units enough for a normal distribution."""
Z = scipy_stats.norm.isf(0.025)


def measured(value: float, low: float | None, high: float | None, n: int = MANY, **more: Any) -> Estimate:
    return Estimate(value=value, low=low, high=high, n=n, interval="made for a test", **more)


def judged(estimate: Estimate, op: str, value: float, **more: Any) -> Judgement:
    expect = Expectation.model_validate({"metric": "m/x", "op": op, "value": value, **more})
    (found,) = judge([expect], ExperimentResult(metrics={"m/x": estimate.value}, estimates={"m/x": estimate}))
    return found


def around(value: float, se: float = 0.5, **more: Any) -> Estimate:
    return measured(value, value - Z * se, value + Z * se, **more)


@pytest.mark.parametrize(("op", "edge"), [(">", 0.1), (">=", -0.3), ("<", 0.1), ("<=", 1.4), (">", 2.0)])
@pytest.mark.parametrize("n", [3, 8, 40])
@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_on_a_t_interval_p_is_that_of_the_t_test(op: str, edge: float, n: int, level: float) -> None:
    data = np.random.default_rng(n).normal(0.7, 1.0, size=n)
    interval = mean_t_interval(data, level)
    found = judged(measured(*interval, n=n, df=n - 1, level=level), op, edge)
    assert found.p == found.p_bound == pytest.approx(scipy_stats.ttest_1samp(data, edge).pvalue, rel=1e-9)
    assert found.side == ("inside" if (data.mean() > edge) == (op[0] == ">") else "outside")


def test_equality_within_a_tolerance_is_two_one_sided_tests() -> None:
    data = np.random.default_rng(1).normal(0.1, 0.4, size=30)
    estimate = measured(*mean_t_interval(data), n=30, df=29)
    both = [scipy_stats.ttest_1samp(data, edge).pvalue for edge in (-0.5, 0.5)]
    inside = judged(estimate, "==", 0.0, tolerance=0.5)
    assert (inside.side, inside.p) == ("inside", pytest.approx(max(both), rel=1e-9))
    outside = judged(estimate, "==", 2.0, tolerance=0.5)
    assert (outside.side, outside.p) == ("outside", pytest.approx(scipy_stats.ttest_1samp(data, 1.5).pvalue, rel=1e-9))


@pytest.mark.parametrize("z", [0.0, 0.5, 1.0, 2.0, 4.0, 8.0])
def test_of_many_units_p_is_that_of_the_normal_table(z: float) -> None:
    assert judged(around(1.0 + z / 2), ">", 1.0).p == pytest.approx(2 * scipy_stats.norm.sf(z), rel=1e-5)
    assert judged(around(1.0 - z / 2), "<", 1.0).p == pytest.approx(2 * scipy_stats.norm.sf(z), rel=1e-5)


def test_of_few_units_a_bootstrap_is_corrected_by_the_t_distribution_and_for_its_narrowness() -> None:
    expected = 2 * scipy_stats.t.sf(3.0 / math.sqrt(6 / 5), 5)
    assert judged(around(1.5, n=6), ">", 0.0).p == pytest.approx(expected, rel=1e-9)


def test_the_side_of_the_interval_that_faces_the_bound_decides() -> None:
    skewed = measured(0.0, -Z, 3 * Z)
    assert judged(skewed, ">", -2.0).p == pytest.approx(2 * scipy_stats.norm.sf(2.0), rel=1e-5)
    assert judged(skewed, "<", 2.0).p == pytest.approx(2 * scipy_stats.norm.sf(2.0 / 3), rel=1e-5)


def test_a_side_without_width_borrows_the_other() -> None:
    assert judged(measured(1.0, 1.0 - Z, 1.0), "<", 3.0).p == pytest.approx(2 * scipy_stats.norm.sf(2.0), rel=1e-5)
    assert judged(measured(1.0, 1.1, 1.0 + Z), ">", -1.0).p == pytest.approx(2 * scipy_stats.norm.sf(2.0), rel=1e-5)


@pytest.mark.parametrize(
    ("op", "value", "side"),
    [
        (">", 0.5, "inside"),
        (">", 1.0, "outside"),
        (">=", 1.0, "inside"),
        ("<", 1.0, "outside"),
        ("<=", 1.0, "inside"),
        ("==", 1.0, "inside"),
        ("==", 1.5, "outside"),
    ],
)
def test_where_nothing_varies_only_the_number_of_units_speaks_as_in_a_sign_test(op: str, value: float, side: str) -> None:
    found = judged(measured(1.0, 1.0, 1.0, n=11), op, value)
    assert (found.side, found.p) == (side, 2**-10)


def test_a_number_on_the_bound_itself_says_nothing() -> None:
    assert (judged(around(1.0), ">", 1.0).side, judged(around(1.0), ">", 1.0).p) == ("outside", 1.0)
    assert (judged(around(1.0), ">=", 1.0).side, judged(around(1.0), ">=", 1.0).p) == ("inside", 1.0)
    assert (judged(around(1.0), "==", 1.0).side, judged(around(1.0), "==", 1.0).p) == ("inside", 1.0)


def test_an_effect_must_be_clear_of_its_null_as_well_as_of_the_bound() -> None:
    """An interval far from the bound, and controls that do as much in 3 of 10 draws."""
    found = judged(around(-28.0, null="matched controls", null_value=0.0, p=0.3), "<", -5.0)
    assert found.p_bound is not None
    assert found.p_bound < 1e-9
    assert (found.side, found.p_null, found.p) == ("inside", 0.3, 0.3)
    found = judged(around(-28.0, null_value=0.0, p=1e-6), "<", -27.0)
    assert found.p == found.p_bound == pytest.approx(2 * scipy_stats.norm.sf(2.0), rel=1e-5)


def test_a_null_without_a_p_value_is_excluded_by_the_interval() -> None:
    found = judged(around(3.0, null_value=2.0), ">", 2.5)
    assert found.p_bound == pytest.approx(2 * scipy_stats.norm.sf(1.0), rel=1e-5)
    assert found.p_null == pytest.approx(2 * scipy_stats.norm.sf(2.0), rel=1e-5)
    assert found.p == found.p_bound


def test_no_effect_beyond_something_is_judged_by_the_bound_alone() -> None:
    assert judged(around(0.1, null_value=0.0, p=0.8), ">", -1.0).p_null is None
    assert judged(around(0.1, null_value=0.0, p=0.8), "==", 0.0, tolerance=2.0).p_null is None
    assert judged(around(0.1), ">", -1.0).p_null is None


@pytest.mark.parametrize(("op", "more"), [(">", {}), (">=", {}), ("==", {"tolerance": 0.5})])
def test_a_prediction_that_only_touches_the_null_claims_an_effect_too(op: str, more: dict[str, float]) -> None:
    value = {">": 0.0, ">=": 0.0, "==": 3.0}[op]
    assert judged(around(3.0, null_value=0.0, p=0.04), op, value, **more).p_null == 0.04


def test_outside_the_null_does_not_matter() -> None:
    found = judged(around(1.0, null_value=0.0, p=0.9), ">", 2.0)
    assert (found.side, found.p_null, found.p) == ("outside", None, found.p_bound)


def test_a_p_value_that_is_undefined_excludes_nothing() -> None:
    assert judged(around(3.0, null_value=0.0, p=math.nan), ">", 1.0).p == 1.0


@pytest.mark.parametrize(
    ("estimate", "reason"),
    [
        (measured(1.0, None, None), "its interval is undefined"),
        (measured(1.0, math.nan, 2.0), "its interval is undefined"),
        (measured(1.0, 0.9, 1.1, n=1), "a single example has no interval"),
        (measured(1.0, None, None, n=1, unit="seed"), "a single seed has no interval"),
    ],
)
def test_a_bare_number_is_never_judged(estimate: Estimate, reason: str) -> None:
    found = judged(estimate, ">", 0.0)
    assert (found.side, found.p, found.reason) == (None, 1.0, reason)


def test_a_number_without_an_estimate_and_a_number_that_there_is_not_are_not_judged() -> None:
    result = ExperimentResult(metrics={"top/effect": 1.0})
    known, unknown, strange = judge(
        [Expectation(metric=name, op=">", value=0.0) for name in ("top/effect", "top/efect", "zzzzzzzzz")], result
    )
    assert (known.side, known.reason) == (None, "it has no interval")
    assert unknown.reason == "the result has no such number; did you mean 'top/effect'?"
    assert strange.reason == "the result has no such number"


def test_a_dotted_name_is_the_number_of_that_stage() -> None:
    estimate = around(3.0)
    result = ExperimentResult(aggregates=Aggregates(mean_delta=3.0, custom={"a.b": 2.0}), estimates={"aggregates/mean_delta": estimate})
    found = judge([Expectation(metric="aggregates.mean_delta", op=">", value=1.0)], result)[0]
    assert (found.metric, found.predicted, found.side) == ("aggregates/mean_delta", "aggregates/mean_delta > 1", "inside")
    assert result.number_named("aggregates.a.b") == ("aggregates/a.b", 2.0)
    assert result.number_named("aggregates/max_delta") is None


def test_a_judgement_survives_the_store() -> None:
    for found in (judged(around(3.0, null_value=0.0), ">", 1.0, role="necessity"), judged(measured(1.0, None, None), "==", 1.0)):
        kept = json.dumps(found.model_dump(mode="json", exclude_none=True))
        assert Judgement.model_validate(json.loads(kept)) == found


numbers = st.floats(-10, 10)
widths = st.floats(0.01, 10)


@given(numbers, widths, widths, numbers, st.floats(0, 10), st.integers(2, 300), st.sampled_from([None, 1, 2, 30]))
def test_further_inside_never_has_a_larger_p_and_a_wider_interval_never_a_smaller_one(
    edge: float, below: float, above: float, depth: float, step: float, n: int, df: float | None
) -> None:
    at = edge + abs(depth)
    near = judged(measured(at, at - below, at + above, n=n, df=df), ">=", edge)
    further = judged(measured(at + step, at + step - below, at + step + above, n=n, df=df), ">=", edge)
    wider = judged(measured(at, at - below - step, at + above, n=n, df=df), ">=", edge)
    assert near.side == further.side == wider.side == "inside"
    assert 0 <= further.p <= near.p * (1 + 1e-9) <= wider.p * (1 + 2e-9) <= 1 + 1e-8


@given(numbers, widths, widths, numbers, st.integers(2, 300))
def test_a_prediction_and_its_mirror_image_are_judged_alike(edge: float, below: float, above: float, at: float, n: int) -> None:
    one = judged(measured(at, at - below, at + above, n=n), ">", edge)
    mirrored = judged(measured(-at, -at - above, -at + below, n=n), "<", -edge)
    assert (one.side, one.p) == (mirrored.side, mirrored.p)


@given(numbers, widths, widths, numbers, st.integers(2, 300))
def test_a_number_is_inside_one_and_outside_the_other_of_two_opposite_predictions_with_one_p(
    edge: float, below: float, above: float, at: float, n: int
) -> None:
    estimate = measured(at, at - below, at + above, n=n)
    one, other = judged(estimate, ">=", edge), judged(estimate, "<", edge)
    assert {one.side, other.side} == {"inside", "outside"}
    assert one.p_bound == other.p_bound


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.999])
@pytest.mark.parametrize("df", [1, 5, 100])
def test_at_the_bound_of_a_t_interval_p_is_one_minus_its_level(level: float, df: int) -> None:
    interval = Interval(1.0, 0.2, 4.0)
    assert interval_p(interval, 0.2, df + 1, level, df) == pytest.approx(1 - level, rel=1e-9)
    assert interval_p(interval, 4.0, df + 1, level, df) == pytest.approx(1 - level, rel=1e-9)
