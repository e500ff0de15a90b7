"""Rulings, status and confidence against cases solved by hand."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlinterp.hypotheses.evaluation import evaluate
from mlinterp.hypotheses.judging import judge
from mlinterp.hypotheses.records import Declaration, Evaluation, Evidence, Judgement, Role, Standing
from mlinterp.result import Estimate, ExperimentResult
from mlinterp.spec import Expectation

UNIT = 0.05 * 6 / math.pi**2
"""What the first test is judged at: 0.0304."""
SURE, CLEAR, VAGUE = 1e-6, 0.02, 0.2
"""P values that pass everywhere, in the first place only, and nowhere."""


def claim(**more: Any) -> Declaration:
    return Declaration(claim="the last state holds the whole answer", **more)


_measured = itertools.count()


def said(side: str | None, p: float = 1.0, role: Role | None = None, null: float | None = 0.0) -> Judgement:
    value = 1.0 + next(_measured) * 1e-6  # no two runs measure the same to the last digit
    estimate = Estimate(value=value, low=0.5, high=1.5, n=100, interval="bootstrap", null_value=null)
    return Judgement(
        metric="m/x", predicted="m/x > 0", role=role, side=side, p=p, p_bound=p, estimate=estimate, reason="it has no interval"
    )


def run(
    *judgements: Judgement, name: str = "run", mode: Any = "interventional", standing: Standing = "counted", why: str | None = None
) -> Evidence:
    return Evidence(name, "1", name, 0, mode, judgements, standing, why)


def inside(p: float = SURE, **more: Any) -> Evidence:
    return run(said("inside", p), **more)


def outside(p: float = SURE, **more: Any) -> Evidence:
    return run(said("outside", p), **more)


def verdicts(found: Evaluation) -> list[str]:
    return [ruling.verdict for ruling in found.rulings]


def rates(found: Evaluation) -> list[float]:
    return [rate / UNIT for ruling in found.rulings for _, _, _, rate in ruling.tests]


def test_without_evidence_a_claim_is_proposed_at_the_confidence_that_was_declared() -> None:
    found = evaluate(claim(confidence=0.3), [])
    assert (found.status, found.confidence, found.rulings, found.text) == ("proposed", 0.3, (), "no evidence yet")


@pytest.mark.parametrize(
    ("evidence", "status", "text"),
    [
        ([inside()], "supported", "1 run supports it, none refutes it; error rate 0.05 over 1 test"),
        ([inside(), inside(VAGUE)], "supported", "1 run supports it, none refutes it; error rate 0.05 over 2 tests"),
        ([outside()], "refuted", "1 run refutes it, none supports it"),
        ([outside(), outside()], "refuted", "2 runs refute it, none supports it"),
        ([inside(VAGUE)], "testing", "undecided by 1 run"),
        ([inside(), outside()], "testing", "contested: 1 run supports and 1 run refutes it"),
        ([run()], "testing", "undecided by 1 run"),
        ([inside(standing="retracted"), outside(standing="stale")], "proposed", "nothing counts: 1 retracted, 1 stale"),
    ],
)
def test_the_status_follows_from_the_runs_that_count(evidence: list[Evidence], status: str, text: str) -> None:
    found = evaluate(claim(), evidence)
    assert (found.status, found.text) == (status, text)


def test_all_predictions_of_a_test_must_hold_and_the_least_sure_of_them_decides() -> None:
    for p, verdict in ((CLEAR, "supports"), (VAGUE, "inconclusive")):
        ruling = evaluate(claim(), [run(said("inside", SURE), said("inside", p))]).rulings[0]
        assert (ruling.verdict, ruling.tests[0][2]) == (verdict, p)


def test_one_prediction_that_fails_refutes_corrected_for_how_many_there_are() -> None:
    for p, verdict in ((0.01, "refutes"), (0.011, "inconclusive")):
        ruling = evaluate(claim(), [run(said("inside", SURE), said("outside", 0.5), said("outside", p))]).rulings[0]
        assert (ruling.verdict, ruling.tests[0][2]) == (verdict, pytest.approx(3 * p))


def test_a_prediction_that_cannot_be_judged_leaves_a_test_open_unless_another_one_fails() -> None:
    unjudged = said(None)
    open_, failed = evaluate(claim(), [run(said("inside", SURE), unjudged)]), evaluate(claim(), [run(said("outside", CLEAR), unjudged)])
    assert open_.rulings[0].tests == ((None, "inconclusive", 1.0, pytest.approx(UNIT)),)
    assert failed.rulings[0].tests == ((None, "refutes", CLEAR, pytest.approx(UNIT)),)


@pytest.mark.parametrize(
    ("evidence", "expected"),
    [
        ([inside(VAGUE)] * 4, [1, 1 / 4, 1 / 9, 1 / 16]),
        ([inside()] * 3, [1, 5 / 4, 49 / 36]),
        ([inside(), inside(VAGUE), inside()], [1, 5 / 4, 1 / 9]),
        ([outside(), outside(), inside()], [1, 5 / 4, 1 / 9]),
        ([inside(), outside(), inside()], [1, 1 / 4, 1 / 9]),
        ([run(said(None)), inside()], [1, 1]),
        ([run(said("inside", SURE, "sufficiency"), said("inside", SURE, "necessity")), inside(VAGUE)], [1, 5 / 4, 49 / 36]),
    ],
)
def test_each_test_is_judged_at_the_rate_of_its_place_solved_by_hand(evidence: list[Evidence], expected: list[float]) -> None:
    assert rates(evaluate(claim(), evidence)) == pytest.approx(expected, rel=1e-12)


def test_the_same_p_value_supports_in_the_first_place_and_no_longer_in_the_second() -> None:
    assert verdicts(evaluate(claim(), [inside(CLEAR)])) == ["supports"]
    assert verdicts(evaluate(claim(), [inside(VAGUE), inside(CLEAR)])) == ["inconclusive", "inconclusive"]
    assert verdicts(evaluate(claim(alpha=0.2), [inside(VAGUE), inside(CLEAR)])) == ["inconclusive", "supports"]


@pytest.mark.parametrize("standing", ["retracted", "stale", "unregistered"])
def test_what_does_not_count_keeps_its_place_and_leaves_no_rate_behind(standing: Standing) -> None:
    found = evaluate(claim(), [inside(standing=standing, why="the wrong split"), inside(CLEAR)])
    assert rates(found) == pytest.approx([1, 1 / 4])
    assert verdicts(found) == ["supports", "inconclusive"]
    assert [ruling.likelihood_ratio for ruling in found.rulings] == [1.0, 1.0]
    assert (found.status, found.confidence) == ("testing", 0.5)
    assert found.rulings[0].text.startswith(f"supports, but {standing} (the wrong split): m/x = 1")


def test_a_duplicate_takes_no_place_and_adds_nothing() -> None:
    once, again = evaluate(claim(), [inside(), inside(CLEAR)]), evaluate(claim(), [inside(), inside(standing="duplicate"), inside(CLEAR)])
    assert rates(again)[::2] == rates(once)
    assert (again.status, again.confidence, again.text) == (once.status, once.confidence, once.text)


def test_a_claim_that_requires_two_roles_is_supported_once_both_are() -> None:
    needs = claim(requires=["necessity", "sufficiency"])
    plain, first, second = inside(), run(said("inside", SURE, "necessity")), run(said("inside", SURE, "sufficiency"))
    assert evaluate(needs, [plain]).text == "no test of necessity supports it; no test of sufficiency supports it"
    assert evaluate(needs, [plain, first]).text == "no test of sufficiency supports it"
    assert evaluate(needs, [first, second]).status == "supported"
    assert evaluate(needs, [run(*first.judgements, *second.judgements)]).status == "supported"


def test_a_run_whose_tests_disagree_refutes_and_lowers_confidence() -> None:
    found = evaluate(claim(), [run(said("inside", SURE, "necessity"), said("outside", CLEAR, "sufficiency"))])
    assert [verdict for _, verdict, _, _ in found.rulings[0].tests] == ["supports", "inconclusive"]
    found = evaluate(claim(), [run(said("outside", 1e-3, "necessity"), said("inside", SURE, "sufficiency"))])
    assert (found.status, found.rulings[0].verdict) == ("refuted", "refutes")
    assert found.rulings[0].likelihood_ratio == pytest.approx(2 * math.sqrt(1e-3))


def test_observing_cannot_support_a_causal_claim_and_does_support_a_correlational_one() -> None:
    seen = inside(mode="observational")
    causal = evaluate(claim(), [seen])
    assert (causal.status, causal.text) == ("testing", "observational evidence cannot support a causal claim (1 run)")
    assert causal.rulings[0].likelihood_ratio == 3.0
    correlational = evaluate(claim(level="correlational"), [seen])
    assert (correlational.status, correlational.rulings[0].likelihood_ratio) == ("supported", 20.0)
    assert evaluate(claim(), [seen, inside()]).status == "supported"
    refuted = evaluate(claim(), [seen, outside()])
    assert refuted.status == "refuted"
    assert refuted.text == "1 run refutes it, none supports it; observational evidence cannot support a causal claim (1 run)"
    assert evaluate(claim(), [outside(mode="observational")]).status == "refuted"


def test_an_intervention_without_a_control_cannot_support_a_causal_claim() -> None:
    found = evaluate(claim(), [run(said("inside", SURE, null=None))])
    assert (found.status, found.text) == ("testing", "an intervention without a control cannot support a causal claim (1 run)")
    assert found.rulings[0].likelihood_ratio == 3.0
    assert evaluate(claim(), [run(said("inside", SURE, null=None), said("inside", SURE, "necessity"))]).status == "supported"


@pytest.mark.parametrize(
    ("p", "ratio"), [(0.03, 2.8868), (0.01, 5.0), (0.0025, 10.0), (0.001, 15.811), (0.000625, 20.0), (1e-9, 20.0), (0.0, 20.0)]
)
def test_the_likelihood_ratio_is_the_one_of_the_table(p: float, ratio: float) -> None:
    up, down = evaluate(claim(confidence=0.2), [inside(p)]), evaluate(claim(confidence=0.2), [outside(p)])
    assert up.rulings[0].likelihood_ratio == pytest.approx(ratio, rel=1e-4)
    assert down.rulings[0].likelihood_ratio == pytest.approx(1 / ratio, rel=1e-4)
    assert up.confidence == pytest.approx(0.25 * ratio / (1 + 0.25 * ratio), rel=1e-4)
    assert down.confidence == pytest.approx(0.25 / ratio / (1 + 0.25 / ratio), rel=1e-4)


def test_the_calibrator_is_an_e_value_its_mean_under_the_null_is_one() -> None:
    """The mean over p uniform on (0, 1) of 1 / (2 sqrt p), here without its cap and on a fine grid."""
    n = 10**6
    assert sum(0.5 / math.sqrt((i + 0.5) / n) for i in range(n)) / n == pytest.approx(1.0, abs=1e-3)


def test_confidence_after_each_run_is_that_of_the_odds_and_support_and_refutation_of_one_strength_cancel() -> None:
    found = evaluate(claim(), [inside(0.01), outside(0.001), inside(VAGUE), outside(0.002)])
    odds = [5.0, 5.0 * 2 * math.sqrt(0.001), 5.0 * 2 * math.sqrt(0.001), 5.0 * 2 * math.sqrt(0.001)]
    assert [ruling.confidence for ruling in found.rulings] == pytest.approx(
        [value / (1 + value) for value in odds[:3]] + [found.confidence]
    )
    assert evaluate(claim(confidence=0.37), [inside(), outside()]).confidence == pytest.approx(0.37, rel=1e-12)
    assert evaluate(claim(), [inside() for _ in range(2000)]).confidence == 1.0


def test_a_ruling_names_its_test_its_interval_and_its_null() -> None:
    estimate = Estimate(
        value=-28.31, low=-30.08, high=-26.55, n=128, interval="bootstrap over examples", null="matched controls", null_value=0.0, p=1e-4
    )
    result = ExperimentResult(mode="interventional", metrics={"adjusted/a": -28.31, "b/c": 1.0}, estimates={"adjusted/a": estimate})

    def text(*expect: dict[str, Any]) -> str:
        judgements = judge([Expectation.model_validate(item) for item in expect], result)
        return evaluate(claim(), [inside(VAGUE), run(*judgements)]).rulings[1].text

    at, made = "adjusted/a = -28.31 [-30.08, -26.55]", "95% bootstrap over examples, n 128"
    below = {"metric": "adjusted/a", "op": "<", "value": -25}
    assert text(below) == (f"supports: {at} is < -25 (p 0.00035; matched controls excluded, p 0.0001; {made}; test 2, judged at 0.0076)")
    assert (
        text({**below, "value": 5})
        == f"supports: {at} is < 5 (p < 1e-06; matched controls would be as predicted, too; {made}; test 2, judged at 0.0076)"
    )
    assert text({**below, "value": -30}) == f"inconclusive: {at} is not < -30 (p 0.065; {made}; test 2, judged at 0.0076)"
    assert text({**below, "role": "necessity"}, {"metric": "b.c", "op": ">", "value": 0}) == (
        "inconclusive: without role (inconclusive): b/c > 0 cannot be judged: it has no interval; no test, so it takes no place; "
        f"necessity (supports): {at} is < -25 (p 0.00035; matched controls excluded, p 0.0001; {made}; test 2, judged at 0.0076)"
    )
    assert text(below, {**below, "value": -26.5}).endswith("; test 2, judged at 0.0076, p 0.047 together")


pieces = st.builds(
    lambda sides, mode, standing: run(*sides, mode=mode, standing=standing),
    st.lists(
        st.builds(
            said,
            st.sampled_from(["inside", "inside", "outside", None]),
            st.sampled_from([0.0, 1e-4, 0.002, 0.02, 0.3, 1.0]),
            st.sampled_from([None, "necessity", "sufficiency"]),
            st.sampled_from([None, 0.0]),
        ),
        max_size=4,
    ),
    st.sampled_from(["interventional", "observational"]),
    st.sampled_from(["counted", "counted", "counted", "retracted", "stale", "unregistered", "duplicate"]),
)
claims = st.builds(
    lambda level, requires, alpha: claim(level=level, requires=requires, alpha=alpha),
    st.sampled_from(["causal", "correlational"]),
    st.sampled_from([[], ["necessity"], ["necessity", "sufficiency"]]),
    st.sampled_from([0.01, 0.05, 0.5]),
)


@given(claims, st.lists(pieces, max_size=8), st.lists(pieces, max_size=4))
def test_later_evidence_never_changes_an_earlier_ruling(declared: Declaration, before: list[Evidence], after: list[Evidence]) -> None:
    assert evaluate(declared, [*before, *after]).rulings[: len(before)] == evaluate(declared, before).rulings


@given(claims, st.lists(pieces, max_size=6), st.randoms())
def test_the_order_of_the_predictions_of_a_run_makes_no_difference(declared: Declaration, evidence: list[Evidence], dice: Any) -> None:
    shuffled = [dataclasses.replace(item, judgements=tuple(dice.sample(item.judgements, len(item.judgements)))) for item in evidence]
    one, other = evaluate(declared, evidence), evaluate(declared, shuffled)
    assert (one.status, one.confidence, one.text) == (other.status, other.confidence, other.text)
    assert [ruling.tests for ruling in one.rulings] == [ruling.tests for ruling in other.rulings]


@given(claims, st.lists(pieces, min_size=1, max_size=8), st.data())
def test_withdrawing_a_run_never_makes_another_one_say_more(declared: Declaration, evidence: list[Evidence], data: Any) -> None:
    gone = data.draw(st.integers(0, len(evidence) - 1))
    if evidence[gone].standing == "duplicate":
        return
    withdrawn = [dataclasses.replace(item, standing="retracted") if i == gone else item for i, item in enumerate(evidence)]
    for i, (before, after) in enumerate(zip(verdicts(evaluate(declared, evidence)), verdicts(evaluate(declared, withdrawn)), strict=True)):
        assert i == gone or after in (before, "inconclusive")


@given(claims, st.lists(pieces, max_size=8))
def test_status_confidence_and_verdicts_agree_with_each_other(declared: Declaration, evidence: list[Evidence]) -> None:
    found = evaluate(declared, evidence)
    counted = [ruling for ruling in found.rulings if ruling.evidence.standing == "counted"]
    assert (found.status == "proposed") == (not counted)
    assert found.status != "supported" or {ruling.verdict for ruling in counted} & {"supports", "refutes"} == {"supports"}
    assert found.status != "refuted" or any(ruling.verdict == "refutes" for ruling in counted)
    before = declared.confidence
    for ruling in found.rulings:
        moved = math.copysign(1, ruling.likelihood_ratio - 1) if ruling.likelihood_ratio != 1 else 0
        assert (ruling.confidence > before) - (ruling.confidence < before) == moved
        assert moved == 0 or (moved > 0) == (ruling.verdict == "supports")
        assert 1 / 20 <= ruling.likelihood_ratio <= 20
        assert "\n" not in ruling.text
        before = ruling.confidence


def test_the_example_of_the_documentation_is_what_happens() -> None:
    page = (Path(__file__).parents[2] / "docs" / "verdicts.md").read_text()
    told = page.split("```text\n")[1].split("```")[0].splitlines()
    evidence = []
    for value, low, high, p in ((-28.3, -30.1, -26.6, 1.1e-4), (-6.2, -8.9, -3.4, 0.004), (-2.1, -3.2, -1.1, 0.004)):
        estimate = Estimate(value=value, low=low, high=high, n=128, interval="bootstrap", null="matched controls", null_value=0.0, p=p)
        result = ExperimentResult(metrics={"adjusted/zh-last": value}, estimates={"adjusted/zh-last": estimate})
        evidence.append(run(*judge([Expectation(metric="adjusted/zh-last", op="<", value=-5.0)], result)))
    found = [evaluate(claim(), evidence[:n]) for n in (1, 2, 3)]
    assert [one.rulings[-1].text for one in found] == told
    assert [one.status for one in found] == ["supported", "supported", "testing"]
    assert [round(one.confidence, 2) for one in found] == [0.95, 0.95, 0.5]
    withdrawn = evaluate(claim(), [*evidence[:2], dataclasses.replace(evidence[2], standing="retracted"), inside()])
    assert (withdrawn.status, round(withdrawn.rulings[-1].tests[0][3], 4)) == ("supported", 0.0019)


def test_the_rates_of_the_documentation_are_those_that_tests_are_judged_at() -> None:
    page = (Path(__file__).parents[2] / "docs" / "verdicts.md").read_text()
    for start, p in (("| judged at, if none", VAGUE), ("| judged at, if all", SURE)):
        row = next(line for line in page.splitlines() if line.startswith(start))
        shown = [float(cell) for cell in row.split("|")[2:-1]]
        assert [round(rate * UNIT, 4) for rate in rates(evaluate(claim(), [inside(p)] * 6))] == shown


def test_what_was_measured_before_to_the_last_digit_moves_confidence_once_however_it_is_predicted():
    first = inside(0.001)
    renamed = [item.model_copy(update={"metric": "step/m.x", "predicted": "step/m.x > 0.1"}) for item in first.judgements]
    found = evaluate(claim(), [first, run(*renamed), inside(0.001)])
    assert [ruling.likelihood_ratio for ruling in found.rulings] == pytest.approx([15.81, 1.0, 15.81], rel=1e-3)


def test_a_number_that_a_study_took_from_an_observational_step_cannot_support_a_causal_claim():
    observed = said("inside", SURE)
    estimate = observed.estimate.model_copy(update={"mode": "observational"})
    found = evaluate(claim(), [run(observed.model_copy(update={"estimate": estimate}))])
    assert (found.status, found.rulings[0].likelihood_ratio) == ("testing", 3.0)
