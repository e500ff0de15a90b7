from __future__ import annotations

import math
import random
from collections.abc import Iterator

import pytest
import recorded
from recorded import Said, estimate, record, result

import mlinterp
from mlinterp.comparison import compare, difference
from mlinterp.errors import SpecError
from mlinterp.execution.session import Session
from mlinterp.experiments.base import ResolvedInput
from mlinterp.result import ExperimentResult
from mlinterp.tracking.life import RunLife

Z = 1.959963984540054


@pytest.fixture(scope="module")
def session(tmp_path_factory) -> Iterator[Session]:
    yield from recorded.workspace(tmp_path_factory.mktemp("workspace"))


def effect(value: float, half: float, **others: float) -> ExperimentResult:
    return result({"top/effect": estimate(value, value - half, value + half)}, **others)


def two(session: Session, a: ExperimentResult, b: ExperimentResult, **asked) -> list[str]:
    return [record(session, a, variables={"examples": {"split": "test"}}), record(session, b, **asked)]


ELSEWHERE = {"variables": {"examples": {"split": "validation"}}, "seed": 1}


def test_the_difference_of_two_normal_estimates_has_the_interval_of_their_standard_errors():
    for a, se_a, b, se_b in ((1.0, 0.3, 2.0, 0.4), (-5.0, 2.0, 7.0, 0.01)):
        low, high = difference(estimate(a, a - Z * se_a, a + Z * se_a), estimate(b, b - Z * se_b, b + Z * se_b)) or (0, 0)
        half = Z * math.sqrt(se_a**2 + se_b**2)
        assert low == pytest.approx(b - a - half)
        assert high == pytest.approx(b - a + half)


def test_an_uneven_interval_counts_on_the_side_where_it_lies():
    low, high = difference(estimate(0.5, 0.4, 0.7), estimate(0.9, 0.8, 0.95)) or (0, 0)
    assert low == pytest.approx(0.4 - math.sqrt(0.1**2 + 0.2**2))
    assert high == pytest.approx(0.4 + math.sqrt(0.05**2 + 0.1**2))


def test_the_interval_of_a_difference_covers_the_true_one_at_its_level():
    draw, covered = random.Random(0), 0
    for _ in range(4000):
        a, b = draw.gauss(1.0, 0.5), draw.gauss(3.0, 1.2)
        low, high = difference(estimate(a, a - Z * 0.5, a + Z * 0.5), estimate(b, b - Z * 1.2, b + Z * 1.2)) or (0, 0)
        covered += low <= 2.0 <= high
    assert covered / 4000 == pytest.approx(0.95, abs=0.012)


@pytest.mark.parametrize("other", [estimate(2.0), estimate(2.0, 1.0, 3.0, level=0.9)])
def test_estimates_without_an_interval_of_the_same_level_have_no_interval_of_their_difference(other):
    assert difference(estimate(1.0, 0.5, 1.5), other) is None
    assert difference(other, estimate(1.0, 0.5, 1.5)) is None


@pytest.mark.parametrize(("value", "apart"), [(3.0, "difference excludes 0"), (1.5, "difference includes 0")])
def test_runs_on_other_examples_are_independent_and_their_difference_has_an_interval(session, value, apart):
    (row,) = compare(two(session, effect(1.0, 0.5), effect(value, 0.5), **ELSEWHERE), session.workspace).rows
    found = row.differences[1]
    half = math.sqrt(0.5)
    assert (found.value, found.apart) == (pytest.approx(value - 1.0), apart)
    assert (found.low, found.high) == (pytest.approx(value - 1.0 - half), pytest.approx(value - 1.0 + half))


@pytest.mark.parametrize(("value", "apart"), [(2.5, "intervals apart"), (1.5, "intervals overlap")])
def test_runs_on_the_same_examples_are_said_not_to_be_independent_and_get_no_interval(session, value, apart):
    runs = two(session, effect(1.0, 0.5), effect(value, 0.5), variables={"examples": {"split": "test", "n": 9}})
    found = compare(runs, session.workspace)
    told = found.rows[0].differences[1]
    assert (told.value, told.low, told.high, told.apart) == (value - 1.0, None, None, apart)
    assert any("not independent (A and B)" in remark for remark in found.remarks)


def test_runs_on_one_trace_look_at_the_same_examples_whatever_their_split(session, tmp_path):
    trace = {"trace": ResolvedInput("latest", tmp_path, "ab" * 32)}
    a = record(session, effect(1.0, 0.5), inputs=trace, subject="one", variables={"examples": {"split": "test"}})
    b = record(session, effect(3.0, 0.5), inputs=trace, subject="two", variables={"examples": {"split": "train"}})
    assert compare([a, b], session.workspace).rows[0].differences[1].low is None


def test_predicted_metrics_come_first_then_what_all_runs_have(session):
    a = result({"top/effect": estimate(1, 0, 2), "top/own": estimate(1, 0, 2)}, base__acc=0.5, base__seconds=3.0, base__rare=1.0)
    b = result({"top/effect": estimate(1, 0, 2)}, base__acc=0.25, base__rare=2.0, base__seconds=1.0)
    runs = two(session, a, b, expect=[{"metric": "base.rare", "op": ">", "value": 0}])
    assert [row.metric for row in compare(runs, session.workspace).rows] == ["base/rare", "top/effect", "base/acc"]
    everything = [row.metric for row in compare(runs, session.workspace, everything=True).rows]
    assert {"base/seconds", "top/own", "diagnostics/n_contexts_tested"} <= set(everything)
    own = compare(runs, session.workspace, ["top/own"]).rows[0]
    assert (own.values, own.differences) == ((1.0, None), (None, None))


def test_a_number_without_an_interval_has_a_difference_without_one(session):
    runs = two(session, result({}, base__acc=0.5), result({}, base__acc=0.75))
    (row,) = compare(runs, session.workspace).rows
    assert (row.differences[1].value, row.differences[1].low, row.differences[1].apart) == (0.25, None, None)


def test_an_unknown_metric_is_refused_with_the_nearest(session):
    runs = two(session, effect(1, 1), effect(2, 1))
    with pytest.raises(SpecError, match=r"--metric: unknown metric 'top/efect'; allowed: .*; did you mean 'top/effect'\?"):
        compare(runs, session.workspace, ["top/efect"])


def test_runs_without_a_common_number_are_refused(session):
    runs = two(session, result({}, a__x=1.0), result({}, b__x=1.0))
    with pytest.raises(SpecError, match="no number in common; `--all`"):
        compare(runs, session.workspace)


def test_metrics_of_two_definitions_are_refused_naming_both_unless_that_is_wanted(session):
    a = record(session, effect(1, 1), tags={"mlinterp.metric_version": "1"})
    b = record(session, effect(2, 1), seed=1, tags={"mlinterp.metric_version": "2"})
    with pytest.raises(SpecError, match=f"runs {a[:12]} and {b[:12]} follow different definitions of metrics: version 1 and 2") as refused:
        compare([a, b], session.workspace)
    assert "\n" not in str(refused.value)
    found = compare([a, b], session.workspace, allow_mixed_metrics=True)
    assert any("A version 1, B version 2" in remark for remark in found.remarks)


def test_one_run_twice_is_no_comparison(session):
    run = record(session, effect(1, 1))
    for runs in ([run], [run, run[:10]]):
        with pytest.raises(SpecError, match="at least two runs, each named once"):
            compare(runs, session.workspace)


def test_a_run_without_a_result_is_refused(session):
    with pytest.raises(RuntimeError), RunLife(session.store, session.experiment_id, "broken", {}, session.workspace) as life:
        raise RuntimeError("no")
    with pytest.raises(SpecError, match=f"run {life.run_id[:12]} has no result to compare: it is FAILED"):
        compare([record(session, effect(1, 1)), life.run_id], session.workspace)


def test_what_was_asked_differently_and_which_inputs_differ_is_listed(session, tmp_path):
    sae = [{"sae": ResolvedInput("latest", tmp_path, digest * 32)} for digest in ("ab", "cd")]
    a = record(session, effect(1, 1), inputs=sae[0], variables={"score": "blank", "k": [1, 2]})
    b = record(session, effect(2, 1), inputs=sae[1], variables={"score": "all", "k": [1, 2]}, seed=3)
    found = compare([a, b], session.workspace)
    assert {(one.name, one.values) for one in found.asked} == {("variables.score", ("blank", "all")), ("seed", ("0", "3"))}
    assert [(one.name, one.values) for one in found.inputs] == [("sae", ("ab" * 8, "cd" * 8))]
    assert found.surroundings == ()


def test_steps_of_studies_are_compared_by_name(session):
    step = {"name": "look", "type": "trace", "variables": {"n": 1}}
    a = record(session, effect(1, 1), type="study", steps=[step])
    b = record(session, effect(2, 1), type="study", steps=[{**step, "variables": {"n": 2}}])
    assert [(one.name, one.values) for one in compare([a, b], session.workspace).asked] == [("steps.look.variables.n", ("1", "2"))]


def test_observing_and_intervening_are_not_compared_silently(session):
    seen = effect(1, 1).model_copy(update={"mode": "observational"})
    found = compare(two(session, effect(1, 1), seen), session.workspace)
    assert any("A interventional, B observational" in remark for remark in found.remarks)


def test_a_retracted_run_is_named_as_one(session):
    a, b = two(session, effect(1, 1), effect(2, 1))
    session.store.client.set_tag(b, "mlinterp.retracted", "wrong split")
    assert "B is retracted: wrong split" in compare([a, b], session.workspace).remarks


def test_the_frame_has_a_row_for_each_metric_and_run(session):
    frame = mlinterp.compare_runs(two(session, effect(1.0, 0.5, base__acc=0.5), effect(3.0, 0.5, base__acc=0.25), **ELSEWHERE)).to_frame()
    assert list(zip(frame.metric, frame.run, strict=True)) == [
        ("top/effect", "A"),
        ("top/effect", "B"),
        ("base/acc", "A"),
        ("base/acc", "B"),
    ]
    assert frame.value.tolist() == [1.0, 3.0, 0.5, 0.25]
    assert frame.low.tolist()[:2] == [0.5, 2.5]
    assert frame.difference.tolist()[1::2] == [2.0, -0.25]


def test_the_page_holds_a_figure_numbers_and_differences_and_loads_nothing(session, tmp_path):
    hostile = "<script>alert(1)</script>"
    runs = two(session, effect(1.0, 0.5), effect(3.0, 0.5), variables={"examples": {"split": "validation"}, "score": hostile})
    written = compare(runs, session.workspace).save(tmp_path / "out")
    assert [path.name for path in written] == ["compare.md", "compare.html", "compare.png"]
    page, text = written[1].read_text(), written[0].read_text()
    assert hostile not in page
    assert hostile not in text.replace(f"`{hostile}`", "")
    assert page.count("data:image/png;base64,") == 1
    for part in ("1 (0.5 to 1.5, 95%)", "+2 (1.293 to 2.707): difference excludes 0"):
        assert part in page
        assert part in text


def test_the_command_prints_the_runs_their_numbers_and_where_to_look(session, tmp_path, capsys):
    runs = two(session, effect(1.0, 0.5), effect(1.5, 0.5))
    said = Said(capsys, "compare", runs[0][:10], runs[1][:10])
    assert said.code == 0
    for part in ("1 (0.5 to 1.5, 95%)", "+0.5: intervals overlap", "B − A", "not independent", "#/compare-runs?runs=", runs[1]):
        assert part in said.out, part
    said = Said(capsys, "compare", *runs, "-o", str(tmp_path / "out"))
    assert said.out.split() == [str(tmp_path / "out" / "compare.md"), str(tmp_path / "out" / "compare.html")]


def test_the_command_refuses_on_one_line(session, capsys):
    said = Said(capsys, "compare", record(session, effect(1, 1)))
    assert (said.code, said.err.count("\n")) == (2, 1)
