"""`family_1d_sweep`: hand-solved cases of both modes, and stated outcomes where there is nothing to measure."""

from __future__ import annotations

import numpy as np
import pytest
from token_lab import TOY_BASES, computed_lab, observed_lab, toy

from mlinterp.errors import ExperimentError
from mlinterp.experiments.token_sets.family_1d_sweep import FamilySweepVariables
from mlinterp.experiments.token_sets.family_1d_sweep_measure import effect_table, measure
from mlinterp.result import ExperimentResult

P1 = [
    *((value, ["swim_speed_up_6"]) for value in (0.2, 0.4)),
    *((value, ["run_speed_up_3"]) for value in (0.0, 0.2)),
    *((value, ["special_charge_up_3"]) for value in (0.5, 0.7)),
    *((value, ["special_charge_up_12"]) for value in (0.9, 1.1, 1.0)),
]


def sweep(**given: object) -> FamilySweepVariables:
    return FamilySweepVariables.model_validate({"family": "special_charge_up", "min_n": 1, **given})


def rows_of(result: ExperimentResult, table: str, *columns: str) -> list[tuple[object, ...]]:
    return [tuple(round(v, 4) if isinstance(v, float) else v for v in (row[c] for c in columns)) for row in result.tables[table].rows]


def test_observed_contexts_are_compared_with_those_without_the_family() -> None:
    result = measure(observed_lab(P1), sweep(rungs=[3, 12]))
    assert rows_of(result, "rung_stats", "label", "mean_activation", "std", "stderr", "n", "delta_from_baseline") == [
        ("absent", 0.2, 0.1633, 0.0816, 4, 0.0),
        ("SCU_3", 0.6, 0.1414, 0.1, 2, 0.4),
        ("SCU_12", 1.0, 0.1, 0.0577, 3, 0.8),
    ]
    aggregates = result.aggregates
    assert (round(aggregates.mean_delta, 4), round(aggregates.std_delta, 4)) == (0.64, 0.2191)
    assert (round(aggregates.max_delta, 4), round(aggregates.min_delta, 4)) == (0.8, 0.4)
    assert (aggregates.n_samples, aggregates.n_conditions, aggregates.custom["threshold_rung"]) == (9, 3, 3)
    assert (result.diagnostics.relu_floor_rate, result.diagnostics.relu_floor_detected) == (0.111, False)
    assert result.mode == "observational"
    assert result.estimates["aggregates/mean_delta"].low < 0.64 < result.estimates["aggregates/mean_delta"].high


@pytest.mark.parametrize(("values", "rate", "detected"), [([0.0, 0.05, 0.1, 0.3], 0.5, False), ([0.0, 0.05, 0.09, 0.1, 1.0], 0.6, True)])
def test_the_floor_is_detected_where_more_than_half_lies_below_a_tenth(values: list[float], rate: float, detected: bool) -> None:
    contexts = [["special_charge_up_3"], *([["run_speed_up_3"]] * (len(values) - 1))]
    result = measure(observed_lab(list(zip(values, contexts, strict=True))), sweep())
    assert (result.diagnostics.relu_floor_rate, result.diagnostics.relu_floor_detected) == (rate, detected)


def test_a_binary_family_is_swept_like_any_other() -> None:
    result = measure(observed_lab([(0.1, []), (0.3, []), (0.8, ["comeback"]), (1.0, ["comeback"])]), sweep(family="comeback"))
    assert rows_of(result, "rung_deltas", "rung", "mean_delta", "n") == [(10, 0.7, 2)]


def test_a_thermometer_stands_at_its_highest_token() -> None:
    lab = observed_lab([(0.0, []), (0.0, []), (1.0, ["special_charge_up_3", "special_charge_up_57"]), (1.0, ["special_charge_up_57"])])
    result = measure(lab, sweep())
    assert [(row["rung"], row["n"], row["status"]) for row in result.tables["rung_stats"].rows] == [
        (0, 2, "ok"),
        *((rung, 0, "no data") for rung in (3, 6, 12, 29)),
        (57, 2, "ok"),
    ]


def test_a_rung_that_is_not_listed_counts_as_neither_absent_nor_present() -> None:
    result = measure(observed_lab(P1), sweep(rungs=[3]))
    assert rows_of(result, "rung_stats", "label", "n") == [("absent", 4), ("SCU_3", 2)]
    assert any("3 contexts hold special_charge_up at a rung that is not listed" in text for text in result.diagnostics.warnings)


def test_too_few_contexts_give_no_number() -> None:
    result = measure(observed_lab(P1), sweep(rungs=[3, 12], min_n=3))
    assert rows_of(result, "rung_deltas", "mean_delta", "n") == [(None, 2), (0.8, 3)]
    assert rows_of(result, "rung_stats", "status") == [("ok",), ("too few",), ("ok",)]
    assert result.aggregates.mean_delta == pytest.approx(0.8)


def test_stable_tokens_restrict_what_is_observed() -> None:
    rows = [(0.0, ["comeback"]), (1.0, ["comeback", "special_charge_up_3"]), (9.0, ["special_charge_up_3"]), (5.0, [])]
    result = measure(observed_lab(rows), sweep(stable_tokens=["comeback"], rungs=[3]))
    assert rows_of(result, "rung_deltas", "mean_delta", "n") == [(1.0, 1)]


def test_setting_each_rung_gives_the_hand_solved_changes() -> None:
    result = measure(computed_lab(toy, TOY_BASES), sweep(family="alpha", mode="interventional"))
    assert rows_of(result, "rung_deltas", "rung", "mean_delta", "std_error", "n") == [
        (1, 0.3333, 0.3333, 3),
        (2, 1.0, 0.5774, 3),
        (3, 1.6667, 0.8819, 3),
    ]
    assert (result.aggregates.mean_delta, round(result.aggregates.std_delta, 4)) == (1.0, 1.118)
    assert (result.diagnostics.relu_floor_rate, result.diagnostics.relu_floor_detected) == (1.0, True)
    assert result.mode == "interventional"


def test_stable_tokens_are_added_to_every_edited_context() -> None:
    result = measure(computed_lab(toy, TOY_BASES), sweep(family="alpha", mode="interventional", stable_tokens=["gamma"]))
    assert rows_of(result, "rung_deltas", "mean_delta", "std_error") == [(0.3333, 0.3333), (3.6667, 0.8819), (4.6667, 0.8819)]
    assert (round(result.aggregates.mean_delta, 4), round(result.aggregates.std_delta, 4)) == (2.8889, 2.2608)


def test_the_control_is_the_same_treatment_of_other_families() -> None:
    result = measure(computed_lab(toy, TOY_BASES), sweep(family="alpha", mode="interventional", controls=1))
    # beta is the only other ordered family: its rungs at the heights of alpha's three are 1, 1 (round half to even) and 2
    control = {
        rung: np.mean([max(0.5 * at - 1 + base, 0) - max(base - 1, 0) for base in (0, 0, -2)]) for rung, at in {1: 1, 2: 1, 3: 2}.items()
    }
    assert [row["control_delta"] for row in result.tables["rung_deltas"].rows] == pytest.approx([control[rung] for rung in (1, 2, 3)])
    assert result.metrics["effect/adjusted_delta"] == pytest.approx(1.0 - np.mean(list(control.values())))


def test_an_edit_that_breaks_a_hard_constraint_is_skipped_counted_and_listed() -> None:
    from mlinterp.subjects.token_sets.constraints import of_each

    lab = computed_lab(toy, TOY_BASES)
    lab.constraints = [
        of_each("no_three_with_delta", "x", "hard", lambda c: "alpha_3 beside delta" if {"alpha_3", "delta"} <= c.tokens else None)
    ]
    result = measure(lab, sweep(family="alpha", mode="interventional", min_n=2, controls=0))
    assert rows_of(result, "rung_deltas", "rung", "n", "mean_delta") == [(1, 3, 0.3333), (2, 3, 1.0), (3, 2, 2.5)]
    assert result.diagnostics.n_contexts_skipped == 1
    assert result.diagnostics.constraint_violations == ["no_three_with_delta: alpha_3 beside delta"]


def test_a_soft_constraint_warns_and_skips_nothing() -> None:
    from mlinterp.subjects.token_sets.constraints import of_each

    lab = computed_lab(toy, TOY_BASES)
    lab.constraints = [of_each("odd", "x", "soft", lambda c: "odd" if "alpha_3" in c.tokens else None)]
    result = measure(lab, sweep(family="alpha", mode="interventional", controls=0))
    assert [row["n"] for row in result.tables["rung_deltas"].rows] == [3, 3, 3]
    assert "odd: 3 contexts broke it and were used all the same" in result.diagnostics.warnings


def test_what_cannot_be_answered_is_said() -> None:
    with pytest.raises(ExperimentError, match="family 'special_charge_up' occurs in none of 2 contexts"):
        measure(observed_lab([(0.1, ["comeback"]), (0.2, [])]), sweep())
    with pytest.raises(ExperimentError, match=r"latent 0 has the same activation, 0.5, in all 2 contexts"):
        measure(observed_lab([(0.5, ["special_charge_up_3"]), (0.5, [])]), sweep())
    with pytest.raises(ExperimentError, match=r"the dataset slice \(activation_threshold 9.0\) leaves none of 9 contexts"):
        measure(observed_lab(P1, spec={"dataset_slice": {"activation_threshold": 9.0}}), sweep())


@pytest.mark.parametrize("mode", ["observational", "interventional"])
def test_its_effect_table_repeats_the_deltas(mode: str) -> None:
    lab = computed_lab(toy, [*TOY_BASES, ("alpha_1",), ("alpha_2", "beta_1"), ("alpha_3",)])
    variables = sweep(family="alpha", mode=mode)
    table = effect_table(lab, variables)
    result = measure(computed_lab(toy, [*TOY_BASES, ("alpha_1",), ("alpha_2", "beta_1"), ("alpha_3",)]), variables)
    assert table.values.tolist() == pytest.approx([row["mean_delta"] for row in result.tables["rung_deltas"].rows])
    assert table.labels == ("A_1", "A_2", "A_3")


def test_a_result_round_trips_through_json() -> None:
    result = measure(observed_lab(P1), sweep())
    assert ExperimentResult.model_validate_json(result.model_dump_json(by_alias=True)) == result
