"""`token_influence_sweep`: hand-solved cases of both modes, brute-force oracles, and stated outcomes."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from mlinterp.errors import ExperimentError
from mlinterp.experiments.token_sets.token_influence_sweep import TokenInfluenceVariables
from mlinterp.experiments.token_sets.token_influence_sweep_measure import effect_table, measure
from mlinterp.result import ExperimentResult
from mlinterp.subjects.token_sets.constraints import of_each
from mlinterp.token_sets.presence import presence_table
from tests.support.token_lab import BUILDS, LADDER, TOY_BASES, computed_lab, flat, observed_lab, toy

P8 = [(float(20 - i), [*("a" if i < 10 else "b"), *(["c"] if i % 2 == 0 else [])]) for i in range(20)]


def influence(**given: object) -> TokenInfluenceVariables:
    return TokenInfluenceVariables.model_validate({"min_samples": 5, "high_percentile": 0.75, **given})


def on_toy(**given: object) -> TokenInfluenceVariables:
    return influence(**{"mode": "interventional", "min_n": 1, **given})


def by_token(result: ExperimentResult, *columns: str, table: str = "all_tokens") -> dict[str, tuple[object, ...]]:
    rows = result.tables[table].rows
    return {row["token"]: tuple(round(v, 4) if isinstance(v, float) else v for v in (row[c] for c in columns)) for row in rows}


def test_tokens_of_high_contexts_are_told_from_tokens_of_the_rest() -> None:
    result = measure(observed_lab(P8, flat("a", "b", "c")), influence())
    assert by_token(result, "high_rate_ratio", "delta", "effect_size", "n_present", "n_high_with_token") == {
        "a": (3.5, 10.0, 3.3887, 10, 6),
        "b": (0.0, -10.0, -3.3887, 10, 0),
        "c": (1.0, 1.0, by_token(result, "effect_size")["c"][0], 10, 3),
    }
    custom = result.aggregates.custom
    assert (custom["high_threshold"], custom["n_high_examples"], custom["n_low_examples"]) == (15.0, 6, 14)
    assert (custom["n_suppressors"], custom["top_suppressor"], custom["top_suppressor_ratio"]) == (1, "b", 0.0)
    assert (custom["n_enhancers"], custom["top_enhancer"], custom["top_enhancer_ratio"]) == (1, "a", 3.5)
    assert list(by_token(result, table="suppressors")) == ["b"]
    assert list(by_token(result, table="enhancers")) == ["a"]
    assert (result.aggregates.max_delta, result.aggregates.min_delta, result.mode) == (10.0, -10.0, "observational")
    assert result.estimates["aggregates/max_delta"].null == "contexts without the token"


def test_a_token_that_stands_in_high_contexts_only_has_no_ratio_and_is_the_first_enhancer() -> None:
    rows = [(value, ["a", *(["d"] if value > 14 else [])]) if value > 10 else (value, ["b"]) for value, _ in P8]
    result = measure(observed_lab(rows, flat("a", "b", "d")), influence(min_samples=6))
    assert by_token(result, "high_rate_ratio", "ratio_note", "ratio_low")["d"] == (None, "never in low", None)
    assert list(by_token(result, table="enhancers")) == ["d", "a"]
    assert (result.aggregates.custom["top_enhancer"], "top_enhancer_ratio" in result.aggregates.custom) == ("d", False)


def test_too_few_contexts_give_no_number() -> None:
    result = measure(observed_lab(P8, flat("a", "b", "c", "e")), influence(min_samples=11))
    assert by_token(result, "status", "delta", "high_rate_ratio", "n_present") == {
        **dict.fromkeys("abc", ("too few", None, None, 10)),
        "e": ("no data", None, None, 0),
    }
    assert result.aggregates.max_delta is None


def test_families_count_once_unless_tokens_are_asked_for() -> None:
    rows = [(float(20 - i), [f"special_charge_up_{r}" for r in LADDER[: 5 - i // 4]]) for i in range(20)]
    collapsed = measure(observed_lab(rows), influence(min_samples=1))
    assert list(by_token(collapsed, "n_present")) == ["special_charge_up", "run_speed_up", "swim_speed_up", "comeback", "ninja_squid"]
    single = by_token(measure(observed_lab(rows), influence(min_samples=1, collapse_families=False)), "n_present", "delta")
    assert single["special_charge_up_29"] == (8, 10.0)
    assert len(single) == 17


def test_observed_effects_agree_with_sets_counted_one_by_one() -> None:
    rng = np.random.default_rng(1)
    names = "abcdefgh"
    rows = [(float(v), [n for n in names if rng.random() < 0.4]) for v in rng.normal(size=300)]
    variables = influence(min_samples=10, high_percentile=90)
    result = measure(observed_lab(rows, flat(*names)), variables)
    limit = sorted((v for v, _ in rows), reverse=True)[30]
    for name, (ratio, delta) in by_token(result, "high_rate_ratio", "delta").items():
        high, low = ([name in t for v, t in rows if (v >= limit) is side] for side in (True, False))
        assert ratio == pytest.approx((sum(high) / len(high)) / (sum(low) / len(low)), abs=1e-4)
        mean_with, mean_without = (np.mean([v for v, t in rows if (name in t) is side]) for side in (True, False))
        assert delta == pytest.approx(mean_with - mean_without, abs=1e-4)
    table = effect_table(observed_lab(rows, flat(*names)), variables)
    deltas = by_token(result, "delta")
    assert table.values.tolist() == pytest.approx([deltas[name][0] for name in table.labels], abs=1e-4)


def test_adding_a_token_gives_the_hand_solved_changes() -> None:
    result = measure(computed_lab(toy, [("alpha_2",), ("alpha_2", "delta"), ("beta_2",)]), on_toy(collapse_families=False))
    found = by_token(result, "add_delta", "add_n", "remove_delta", "remove_n")
    # alone: f = 1, 0 and 0; gamma lifts the first two by 3 and by 2, and the third not at all
    assert found["gamma"] == (round(5 / 3, 4), 3, None, 0)
    assert found["delta"] == (-0.5, 2, 1.0, 1)
    assert found["alpha_2"] == (2.0, 1, -0.5, 2)
    assert found["alpha_3"] == (3.0, 1, None, 0)
    assert found["beta_2"] == (0.5, 2, 0.0, 1)
    assert result.mode == "interventional"
    assert (result.aggregates.max_delta, result.aggregates.min_delta) == (3.0, -0.5)


def test_a_family_is_added_at_each_rung_in_turn_and_removed_whole() -> None:
    result = measure(computed_lab(toy, [(), ("alpha_3", "gamma")]), on_toy())
    found = by_token(result, "add_delta", "add_n", "remove_delta", "remove_n")
    assert found["alpha"] == (1.0, 1, -5.0, 1)
    assert found["beta"] == (0.375, 2, None, 0)
    assert found["gamma"] == (0.0, 1, -3.0, 1)
    assert found["delta"] == (-1.0, 2, None, 0)


def test_the_control_is_the_other_tokens_in_the_same_contexts() -> None:
    result = measure(computed_lab(toy, [(), ("alpha_3", "gamma")]), on_toy())
    found = by_token(result, "add_control_delta", "add_adjusted_delta", "remove_control_delta")
    assert found["alpha"] == (0.0, 1.0, -3.0)
    assert found["beta"] == (round((1 / 3 - 2) / 2, 4), round(0.375 - (1 / 3 - 2) / 2, 4), None)


def test_a_clear_effect_of_either_edit_makes_an_enhancer_or_a_suppressor() -> None:
    contexts = [*[("alpha_2", "gamma", "delta")] * 8, *[("alpha_3", "gamma")] * 6, ("alpha_3",), ("alpha_3", "beta_1")]
    result = measure(computed_lab(toy, contexts), on_toy())
    enhancers, suppressors = ({(row["token"], row["edit"]) for row in result.tables[name].rows} for name in ("enhancers", "suppressors"))
    assert enhancers == {("alpha", "remove"), ("beta", "add"), ("gamma", "remove")}
    assert suppressors == {("delta", "add"), ("delta", "remove")}
    # both additions of gamma lift by the same amount, and two contexts that agree prove nothing
    assert by_token(result, "add_delta", "add_p")["gamma"] == (3.0, 0.5)
    custom = result.aggregates.custom
    assert (custom["n_enhancers"], custom["n_suppressors"], custom["top_enhancer"], custom["top_suppressor"]) == (3, 1, "alpha", "delta")


def test_an_edit_that_breaks_a_hard_constraint_is_skipped_and_counted() -> None:
    lab = computed_lab(toy, [(), ("beta_2",)])
    lab.constraints = [of_each("no", "x", "hard", lambda c: "gamma beside beta" if {"gamma", "beta_2"} <= c.tokens else None)]
    result = measure(lab, on_toy())
    assert by_token(result, "add_n")["gamma"] == (1,)
    assert result.diagnostics.n_contexts_skipped == 1


def test_a_thermometer_is_added_up_to_a_rung_and_removed_from_one_on() -> None:
    lab = computed_lab(lambda tokens, group: float(len(tokens)), [(), tuple(f"run_speed_up_{r}" for r in LADDER[:4])], BUILDS)
    found = by_token(measure(lab, on_toy(collapse_families=False)), "add_delta", "remove_delta")
    assert found["run_speed_up_12"] == (3.0, -2.0)


@pytest.mark.parametrize("collapse", [True, False])
def test_its_effect_table_repeats_the_additions(collapse: bool) -> None:
    contexts = [*TOY_BASES, ("alpha_1",), ("alpha_2", "gamma")]
    variables = on_toy(collapse_families=collapse)
    table = effect_table(computed_lab(toy, contexts), variables)
    found = by_token(measure(computed_lab(toy, contexts), variables), "add_delta")
    assert table.values.tolist() == pytest.approx([found[name][0] for name in table.labels], abs=1e-4)


def test_stable_tokens_are_held_fixed() -> None:
    result = measure(computed_lab(toy, TOY_BASES), on_toy(stable_tokens=["alpha_3"]))
    assert set(by_token(result)) == {"beta", "gamma", "delta"}
    assert by_token(result, "add_delta")["gamma"] == (round((3 + 3 + 3) / 3, 4),)


def test_what_cannot_be_answered_is_said() -> None:
    with pytest.raises(ExperimentError, match=r"latent 0 has the same activation, 0.5, in all 2 contexts"):
        measure(observed_lab([(0.5, ["comeback"]), (0.5, [])]), influence())
    for given in ({"suppressor_threshold": 1.1}, {"enhancer_threshold": 0.9}, {"min_samples": 0}, {"high_percentile": 0.4}):
        with pytest.raises(ValidationError):
            influence(**given)


@pytest.mark.parametrize("mode", ["observational", "interventional"])
def test_a_result_round_trips_through_json(mode: str) -> None:
    result = measure(computed_lab(toy, [*TOY_BASES, ("alpha_3",)]), influence(mode=mode, min_samples=1))
    assert ExperimentResult.model_validate_json(result.model_dump_json(by_alias=True)) == result


def test_what_is_measured_again_is_what_a_loop_over_the_contexts_at_hand_finds() -> None:
    rng = np.random.default_rng(4)
    there, post = rng.random((60, 3)) < np.array([0.5, 0.3, 0.02]), rng.random(60)
    rows = observed_lab(
        [(float(value), [name for name, held in zip("abc", row, strict=True) if held]) for value, row in zip(post, there, strict=True)],
        flat("a", "b", "c"),
    ).rows
    table, index = presence_table(["a", "b", "c"], rows, there, 4), rng.permutation(60)[:40]
    for column, found in enumerate(table.on(index)):
        present, absent = ([post[row] for row in index if there[row, column] == held] for held in (True, False))
        expected = np.mean(present) - np.mean(absent) if min(len(present), len(absent)) >= 4 else np.nan
        assert found == pytest.approx(expected, nan_ok=True)
    assert np.isnan(table.on(index)).tolist() == [False, False, True]
    assert sorted(table.null(rng)(np.arange(60))[:2]) != pytest.approx(sorted(table.values[:2]))
