"""Each prediction beside what was measured: on which side of it the number lies, and how surely.

A prediction is a region: everything above or below a value, or within a tolerance of one. The number must be clear of the region's
edge, by its interval. Where "nothing to find" lies outside the region, the prediction claims an effect, and the number must be clear
of that null too. It must pass both tests, so the p value of a prediction that holds is the larger of the two (an intersection-union
test, Berger 1982). The rule for users is docs/verdicts.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from mlinterp.errors import nearest
from mlinterp.hypotheses.records import Judgement
from mlinterp.result import Estimate, ExperimentResult
from mlinterp.spec import Expectation
from mlinterp.stats import Interval, interval_p, unanimous_p


def judge(expect: Sequence[Expectation], result: ExperimentResult) -> list[Judgement]:
    """Judge each prediction by itself, in the order given."""
    return [_judge(item, result) for item in expect]


def _judge(expect: Expectation, result: ExperimentResult) -> Judgement:
    found = result.number_named(expect.metric)
    if found is None:
        near = nearest(expect.metric, result.numbers())
        return _unjudged(expect, None, "the result has no such number" + (f"; did you mean '{near}'?" if near else ""))
    expect = expect.model_copy(update={"metric": found[0]})
    estimate = result.estimates.get(expect.metric)
    if estimate is None:
        return _unjudged(expect, None, "it has no interval")
    if estimate.n < 2:
        return _unjudged(expect, estimate, f"a single {estimate.unit} has no interval")
    if estimate.low is None or estimate.high is None or not all(map(math.isfinite, (estimate.value, estimate.low, estimate.high))):
        return _unjudged(expect, estimate, "its interval is undefined")
    interval = Interval(estimate.value, estimate.low, estimate.high)
    inside = _contains(expect, estimate.value)
    p_bound = _p_of_bound(expect, estimate, interval)
    p_null = _p_of_null(expect, estimate, interval) if inside else None
    return Judgement(
        metric=expect.metric,
        predicted=str(expect),
        role=expect.role,
        side="inside" if inside else "outside",
        p=p_bound if p_null is None else max(p_bound, p_null),
        p_bound=p_bound,
        p_null=p_null,
        estimate=estimate,
    )


def _unjudged(expect: Expectation, estimate: Estimate | None, reason: str) -> Judgement:
    return Judgement(metric=expect.metric, predicted=str(expect), role=expect.role, estimate=estimate, reason=reason)


def _edges(expect: Expectation) -> list[float]:
    return [expect.value - expect.tolerance, expect.value + expect.tolerance] if expect.op == "==" else [expect.value]


def _contains(expect: Expectation, value: float) -> bool:
    """Return whether a value is as predicted."""
    if expect.op == "==":
        low, high = _edges(expect)
        return low <= value <= high
    if value == expect.value:
        return expect.op in (">=", "<=")
    return (value > expect.value) == (expect.op in (">", ">="))


def _p_of_bound(expect: Expectation, estimate: Estimate, interval: Interval) -> float:
    """Return the p value of the true value lying on the other side of the region's edge: of the nearest one, which is the largest."""
    if interval.low == interval.high:
        return unanimous_p(estimate.n)
    return max(interval_p(interval, edge, estimate.n, estimate.level, estimate.df) for edge in _edges(expect))


def _p_of_null(expect: Expectation, estimate: Estimate, interval: Interval) -> float | None:
    """Return the p value of the null where the prediction claims an effect: where its region leaves the null out, or just touches it."""
    null = estimate.null_value
    if null is not None and _contains(expect, null) and (expect.op == "==" or null != expect.value):
        return None
    if estimate.p is not None:
        return estimate.p if math.isfinite(estimate.p) else 1.0
    return None if null is None else interval_p(interval, null, estimate.n, estimate.level, estimate.df)
