"""What every number that a prediction can name is judged by: intervals and nulls, made in one way wherever a number comes from."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from mlinterp.estimates import PerExample, largest_of, means, over_seeds, record, share
from mlinterp.interventions.estimates import CHANCE, report_estimates
from mlinterp.interventions.tables import fill_result
from mlinterp.result import Estimate, ExperimentResult


def effect(p: float = 0.02, **changes: float) -> dict:
    plain = {
        "effect": -0.5,
        "control_effect": -0.1,
        "adjusted_effect": -0.4,
        "p_examples": p,
        "p_controls": p,
        "p_adj": p,
        "specificity": 0.8,
    }
    return {**plain, "p": p, "effect_ci95": [-0.6, -0.4], "control_ci95": [-0.2, 0.0], "ci95": [-0.7, -0.1], **changes}


def item(name: str, effect: dict | None, agreement: float | None = None) -> dict:
    outcomes = dict.fromkeys(("exact", "token_acc", "margin", "log_prob", "kl"), None)
    return {
        "id": name,
        "policy": "ablate_features",
        "at": "z",
        "source": None,
        "features": [1],
        "n_edits": 3,
        "active_fraction": 1.0,
        "edit_norm": {"mean_relative": 0.1},
        "outcome": {**outcomes, "agreement": agreement},
        "delta": {**outcomes, "agreement": None if agreement is None else agreement - 0.25},
        "ci95": {**dict.fromkeys(outcomes), "agreement": None if agreement is None else [0.2, 0.9]},
        "chance_agreement": None if agreement is None else 0.25,
        "flips": {"right_to_wrong": 0, "wrong_to_right": 0, "changed_tokens": 0, "per_sup_step": None},
        "effect": effect,
    }


def report(*items: dict, n: int = 40, primary: str = "margin") -> dict:
    controls = [
        {
            "kind": kind,
            "of": [each["id"] for each in items],
            "features": None,
            "n_edits": 3,
            "edit_norm": {"mean_relative": 0.1},
            "effect": 0.0,
        }
        | dict.fromkeys(("exact", "token_acc", "margin", "log_prob", "kl", "agreement"))
        for kind in ("identity", "random_feature", "random_feature", "matched_frequency", "shuffled_source")
    ]
    baseline = {"n": n, "exact": 0.75, "token_acc": 0.9}
    return {
        "primary_outcome": primary,
        "baseline": baseline,
        "interventions": list(items),
        "controls": controls,
        "top_causal_features": [],
        "warnings": [],
    }


def test_an_effect_is_judged_beside_its_matched_controls() -> None:
    found = report_estimates(report(item("a", effect())))
    adjusted, plain, control = found["adjusted/a"], found["effect/a"], found["control/a"]
    assert (adjusted.value, adjusted.low, adjusted.high, adjusted.null_value, adjusted.p, adjusted.n) == (-0.4, -0.7, -0.1, 0.0, 0.02, 40)
    assert (plain.value, plain.low, plain.high, plain.null_value, plain.p) == (-0.5, -0.6, -0.4, -0.1, 0.02)
    assert adjusted.null == plain.null == "matched controls (3 draws)"
    assert (control.low, control.high, control.null, control.p) == (-0.2, 0.0, None, None)
    assert report_estimates(report(item("a", effect()), primary="agreement"))["effect/a"].null == "matched controls (4 draws)"


def test_the_largest_of_several_effects_pays_for_having_been_looked_for() -> None:
    found = report_estimates(report(item("a", effect(0.02)), item("b", effect(0.4, adjusted_effect=-0.2)), item("gone", None)))
    top, own = found["top/adjusted_effect"], found["adjusted/a"]
    factor = scipy_stats.t.ppf(1 - 0.025 / 2, 39) / scipy_stats.t.ppf(0.975, 39)  # n is 40
    assert top.value == own.value == -0.4
    assert top.p == pytest.approx(0.04)
    assert (top.low, top.high) == pytest.approx((-0.4 - 0.3 * factor, -0.4 + 0.3 * factor))
    assert "largest of 2 (Bonferroni)" in top.interval
    assert top.level == 0.95
    assert report_estimates(report(item("b", effect(0.7)), item("c", effect(0.7))))["top/effect"].p == 1.0
    alone = report_estimates(report(item("a", effect())))
    assert alone["top/effect"] == alone["effect/a"]


def test_the_intervals_of_the_largest_of_many_that_do_nothing_hold_zero_as_often_as_they_say() -> None:
    draws, held = np.random.default_rng(0), 0
    for _ in range(400):
        means_, n = draws.normal(0.0, 1 / np.sqrt(50), size=12), 50
        best = means_[np.argmax(np.abs(means_))]
        half = scipy_stats.norm.ppf(0.975) / np.sqrt(n)
        top = largest_of(12, Estimate(value=best, low=best - half, high=best + half, n=n, interval="normal"))
        assert top.low is not None
        assert top.high is not None
        held += top.low <= 0.0 <= top.high
    assert held / 400 >= 0.925


def test_agreement_with_a_source_is_judged_beside_chance_and_stays_a_share() -> None:
    found = report_estimates(report(item("a", effect(), agreement=0.8)))["agreement/a"]
    assert (found.value, found.low, found.high) == (0.8, pytest.approx(0.45), 1.0)
    assert (found.null, found.null_value, found.p) == (CHANCE, 0.25, None)


def test_a_single_example_has_no_intervals() -> None:
    one = {"effect_ci95": None, "control_ci95": None, "ci95": None}
    single = item("a", {**effect(), **one}, agreement=1.0)
    single["ci95"]["agreement"] = [None, None]
    found = report_estimates(report(single, n=1))
    assert all(found[f"{name}/a"].low is None and found[f"{name}/a"].n == 1 for name in ("effect", "control", "adjusted", "agreement"))


def test_every_estimate_of_a_report_is_the_interval_of_a_number_of_the_result() -> None:
    given = report(item("a", effect(), agreement=0.8), item("b", effect(0.4)), item("gone", None))
    result = fill_result(ExperimentResult(), given)
    assert result.estimates == report_estimates(given)
    assert {name: each.value for name, each in result.estimates.items()} == {name: result.numbers()[name] for name in result.estimates}
    table = result.tables["estimates"]
    assert [row["metric"] for row in table.rows] == list(result.estimates)
    assert "gone" not in str(table.rows)


def test_a_share_of_examples_has_wilsons_interval_even_where_every_one_is_right() -> None:
    found = means({"all": PerExample(np.ones(30), np.ones(30), is_share=True)}, seed=0)["all"]
    exact = scipy_stats.binomtest(30, 30).proportion_ci(method="wilson")
    assert (found.value, found.low, found.high, found.n) == (1.0, pytest.approx(exact.low), pytest.approx(exact.high), 30)
    assert share(8, 10) == means({"x": PerExample(np.repeat([1.0, 0.0], [8, 2]), np.ones(10), is_share=True)}, seed=0)["x"]
    tokens = PerExample(np.array([5.0, 9.0, 2.0]), np.array([5.0, 9.0, 2.0]), is_share=True)
    assert means({"x": tokens}, seed=0)["x"] == share(3, 3)


def test_a_share_of_tokens_and_a_loss_are_resampled_by_whole_examples() -> None:
    draws = np.random.default_rng(1)
    weight = draws.integers(5, 20, size=50).astype(float)
    total = np.round(weight * draws.uniform(0.3, 0.9, size=50))
    found = means({"acc": PerExample(total, weight, is_share=True), "loss": PerExample(total, weight)}, seed=3)
    assert found["acc"] == found["loss"]
    assert found["acc"].value == pytest.approx(total.sum() / weight.sum())
    spread = np.std(total - found["acc"].value * weight, ddof=1) * np.sqrt(50) / weight.sum()  # the delta method
    assert found["acc"].low is not None
    assert found["acc"].high is not None
    assert (found["acc"].high - found["acc"].low) / (2 * 1.96) == pytest.approx(spread, rel=0.15)
    assert found["acc"].interval == "bootstrap over examples"


def test_scores_of_different_examples_have_the_interval_that_each_would_have_alone() -> None:
    rng = np.random.default_rng(0)
    losses = {f"of_{n}": PerExample(rng.normal(size=n), np.ones(n)) for n in (40, 25)}
    found = means(losses, seed=0)
    assert found == {name: means({name: score}, seed=0)[name] for name, score in losses.items()}
    assert [estimate.n for estimate in found.values()] == [40, 25]


def test_a_mean_over_nothing_is_left_out() -> None:
    found = means({"none": PerExample(np.zeros(4), np.zeros(4)), "some": PerExample(np.arange(4.0), np.ones(4))}, seed=0)
    assert list(found) == ["some"]


def own(value: float, null: float | None = None) -> Estimate:
    words = None if null is None else "controls"
    return Estimate(value=value, low=value - 1, high=value + 1, n=9, interval="its own", null=words, null_value=null)


def test_several_seeds_have_students_interval_and_the_paired_t_test_against_their_nulls() -> None:
    values, nulls = [1.0, 1.4, 0.9, 1.6], [0.2, 0.3, 0.1, 0.2]
    found = over_seeds(values, [own(*pair) for pair in zip(values, nulls, strict=True)])
    assert found is not None
    expected = scipy_stats.t.interval(0.95, 3, loc=np.mean(values), scale=scipy_stats.sem(values))
    assert (found.low, found.high) == pytest.approx(expected, rel=1e-12)
    assert (found.df, found.n, found.unit, found.null) == (3, 4, "seed", "controls")
    assert found.null_value == pytest.approx(0.2)
    assert found.p == pytest.approx(scipy_stats.ttest_rel(values, nulls).pvalue, rel=1e-12)


def test_seeds_without_a_null_each_have_none_together() -> None:
    found = over_seeds([1.0, 2.0], [own(1.0, 0.0), own(2.0)])
    assert found is not None
    assert (found.null, found.null_value, found.p) == (None, None, None)
    bare = over_seeds([1.0, 2.0], [None, None])
    assert bare is not None
    assert bare.df == 1


def test_one_seed_and_seeds_that_only_repeat_a_run_have_that_runs_estimate() -> None:
    assert over_seeds([1.0], [own(1.0, 0.0)]) == own(1.0, 0.0)
    assert over_seeds([1.0, 1.0 + 1e-15, 1.0], [own(1.0), own(1.0), own(1.0)]) == own(1.0)
    assert over_seeds([0.0, 0.0], [None, None]) is None


def test_recorded_estimates_stand_in_a_table_that_grows() -> None:
    result = ExperimentResult()
    record(result, {})
    assert not result.tables
    record(result, {"a/b": own(1.0)})
    record(result, {"a/c": own(2.0, 0.5)})
    rows = result.tables["estimates"].rows
    assert [(row["metric"], row["value"], row["null"], row["null_value"]) for row in rows] == [
        ("a/b", 1.0, None, None),
        ("a/c", 2.0, "controls", 0.5),
    ]
