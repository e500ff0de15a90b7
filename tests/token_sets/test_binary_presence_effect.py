"""`binary_presence_effect`: hand-solved cases of both modes, oracles of its statistics, and stated outcomes."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import stats

from mlinterp.errors import ExperimentError, SpecError
from mlinterp.experiments.token_sets.binary_presence_effect import BinaryEffectVariables, check_binary
from mlinterp.experiments.token_sets.binary_presence_effect_measure import effect_table, measure
from mlinterp.result import ExperimentResult
from mlinterp.token_sets.high_part import high_part, ratio_of
from tests.support.token_lab import TOY_BASES, computed_lab, observed_lab, toy

P9 = [
    *[(1.0, ["comeback", "special_charge_up_12"])] * 5,
    *[(0.5, ["special_charge_up_12"])] * 5,
    *[(0.3, ["comeback"])] * 5,
    *[(0.1, ["run_speed_up_3"])] * 5,
]


def binary(**given: object) -> BinaryEffectVariables:
    return BinaryEffectVariables.model_validate({"min_samples": 5, "high_percentile": 0.75, **given})


def on_toy(**given: object) -> BinaryEffectVariables:
    return binary(**{"mode": "interventional", "min_n": 1, **given})


def rows_of(result: ExperimentResult, table: str, *columns: str) -> list[tuple[object, ...]]:
    return [tuple(round(v, 4) if isinstance(v, float) else v for v in (row[c] for c in columns)) for row in result.tables[table].rows]


def test_observed_contexts_with_a_token_are_compared_with_those_without() -> None:
    result = measure(observed_lab(P9), binary(binary_tokens=["comeback"], primary_family="special_charge_up", primary_rungs=[0, 12, 57]))
    assert rows_of(result, "binary_effects", *result.tables["binary_effects"].columns[:8]) == [
        ("comeback", 0.35, 1.1795, 1.0, 0.65, 0.3, 10, 5)
    ]
    assert rows_of(result, "conditional_effects", *result.tables["conditional_effects"].columns[:7], "status") == [
        ("comeback", 0, 0.2, 0.3, 0.1, 5, 5, "ok"),
        ("comeback", 12, 0.5, 1.0, 0.5, 5, 5, "ok"),
        ("comeback", 57, None, None, None, 0, 0, "no data"),
    ]
    custom = result.aggregates.custom
    assert (custom["high_threshold"], custom["n_high_examples"]) == (0.5, 10)
    assert (custom["top_effect_ability"], round(custom["top_effect_delta"], 4)) == ("comeback", 0.35)
    assert (custom["most_enriched"], custom["most_enriched_ratio"]) == ("comeback", 1.0)
    found = result.estimates["aggregates/top_effect_delta"]
    assert found.low < 0.35 < found.high
    assert result.mode == "observational"


def test_every_binary_family_is_looked_at_and_one_without_contexts_has_no_number() -> None:
    result = measure(observed_lab(P9), binary())
    assert rows_of(result, "binary_effects", "binary_ability", "delta", "enrichment", "status") == [
        ("comeback", 0.35, 1.0, "ok"),
        ("ninja_squid", None, None, "no data"),
    ]
    assert [row["status"] for row in measure(observed_lab(P9), binary(min_samples=11)).tables["binary_effects"].rows] == [
        "too few",
        "no data",
    ]


@pytest.mark.parametrize(("given", "share"), [(0.9, 0.9), (90, 0.9), (90.0, 0.9), (1, 1.0), (99.5, 0.995)])
def test_a_percentile_is_a_fraction_or_a_percentage(given: float, share: float) -> None:
    assert binary(high_percentile=given).high_percentile == pytest.approx(share)


@pytest.mark.parametrize("given", [0.5, 0.1, 1.5, 50, 101, 0, -90])
def test_a_percentile_that_is_neither_is_refused(given: float) -> None:
    with pytest.raises(ValidationError, match=r"is neither a fraction in \(0.5, 1\] nor a percentage in \(50, 100\]"):
        binary(high_percentile=given)


def test_the_high_part_has_the_tenth_that_was_asked_for() -> None:
    found = high_part(np.arange(20.0), 0.9)
    assert (found.threshold, found.there.sum()) == (17.0, 3)
    assert high_part(np.array([3.0]), 0.9).threshold == 3.0
    assert high_part(np.arange(5.0), 1.0).threshold == 3.0


def test_of_a_latent_that_is_mostly_silent_the_active_contexts_are_the_high_ones() -> None:
    rows = [(1.0, ["comeback"]), (2.0, ["comeback"]), (3.0, []), *[(0.0, [])] * 96, (0.0, ["comeback"])]
    result = measure(observed_lab(rows), binary(binary_tokens=["comeback"], high_percentile=0.9, min_samples=1))
    assert (result.aggregates.custom["n_high_examples"], result.aggregates.custom["high_threshold"]) == (3, 1.0)
    assert result.tables["binary_effects"].rows[0]["enrichment"] == pytest.approx((2 / 3) / 0.03)
    assert "3 of 100 contexts lie above the lowest activation, 0: these are the high ones, and no 0.1 of all" in result.diagnostics.warnings
    assert high_part(np.array([0.0, 0.0, 1.0]), 0.6).warning is not None
    assert high_part(np.ones(3), 0.6) == (1.0, pytest.approx(np.ones(3, dtype=bool)), None)


def test_the_effect_is_welchs_with_cohens_d() -> None:
    rng = np.random.default_rng(0)
    present, absent = ((mean + scale * np.outer([1, -1], rng.normal(size=half))).ravel() for mean, scale, half in ((1, 2, 20), (0, 1, 35)))
    lab = observed_lab([*((float(v), ["comeback"]) for v in present), *((float(v), []) for v in absent)])
    row = measure(lab, binary(binary_tokens=["comeback"])).tables["binary_effects"].rows[0]
    welch = stats.ttest_ind(present, absent, equal_var=False)
    assert (row["delta"], row["p"]) == (pytest.approx(present.mean() - absent.mean()), pytest.approx(welch.pvalue))
    assert (row["low"], row["high"]) == pytest.approx(tuple(welch.confidence_interval()))
    spread = np.sqrt((present.var(ddof=1) * 40 + absent.var() * 70) / 110)
    assert row["effect_size"] == pytest.approx((present.mean() - absent.mean()) / spread)


def test_a_ratio_of_shares_has_its_logarithmic_interval() -> None:
    found = ratio_of(30, 60, 20, 80)
    interval = stats.contingency.relative_risk(30, 60, 20, 80).confidence_interval()
    assert (found.value, found.bounds) == (2.0, pytest.approx((interval.low, interval.high)))
    enrichment, low, high = found.enrichment(60 / 140)
    assert enrichment == pytest.approx((30 / 60) / (50 / 140))
    assert low < enrichment < high
    assert (ratio_of(5, 10, 0, 10).value, ratio_of(5, 10, 0, 10).note, ratio_of(5, 10, 0, 10).enrichment(0.5)[0]) == (
        None,
        "never in low",
        2,
    )
    assert (ratio_of(0, 10, 4, 10).value, ratio_of(0, 10, 4, 10).bounds) == (0.0, None)
    assert (ratio_of(4, 10, 0, 0).value, ratio_of(4, 10, 0, 0).note) == (None, "undefined")


def test_putting_a_token_into_contexts_gives_the_hand_solved_changes() -> None:
    contexts = [("alpha_3",), ("alpha_2", "gamma"), ("alpha_3", "beta_2", "delta")]
    result = measure(computed_lab(toy, contexts), on_toy())
    # gamma adds 3 everywhere but beside nothing below zero; delta takes 2 away down to the floor
    gamma, delta = np.array([5 - 2, 4 - 1, 4 - 1]), np.array([0 - 2, 2 - 4, 1 - 3])
    assert rows_of(result, "binary_effects", "binary_ability", "delta", "mean_with", "mean_without", "n") == [
        ("gamma", gamma.mean(), round(13 / 3, 4), round(4 / 3, 4), 3),
        ("delta", delta.mean(), 1.0, 3.0, 3),
    ]
    rows = {row["binary_ability"]: row for row in result.tables["binary_effects"].rows}
    assert (rows["gamma"]["control_delta"], rows["gamma"]["adjusted_delta"]) == (-2.0, 5.0)
    assert result.metrics == {"effect/control_delta": -2.0, "effect/adjusted_delta": 5.0}
    assert (result.aggregates.max_delta, result.aggregates.min_delta, result.mode) == (3.0, -2.0, "interventional")


def test_effects_are_measured_at_each_rung_of_a_primary_family() -> None:
    result = measure(computed_lab(toy, TOY_BASES), on_toy(binary_tokens=["gamma"], primary_family="alpha", controls=0))
    assert rows_of(result, "conditional_effects", "primary_rung", "delta", "n_with", "pre_delta", "floor_artefact") == [
        (0, 0.0, 3, 0.0, False),
        (1, 0.0, 3, 0.0, False),
        (2, 2.6667, 3, 3.0, False),
        (3, 3.0, 3, 3.0, False),
    ]
    assert "there is no control: no other binary family was edited" in result.diagnostics.warnings


def test_stable_tokens_are_held_fixed() -> None:
    result = measure(computed_lab(toy, TOY_BASES), on_toy(stable_tokens=["alpha_3", "gamma"]))
    assert rows_of(result, "binary_effects", "binary_ability", "mean_without") == [("delta", round((5 + 6 + 5) / 3, 4))]


@pytest.mark.parametrize("mode", ["observational", "interventional"])
def test_its_effect_table_repeats_the_effects(mode: str) -> None:
    contexts = [*TOY_BASES, ("alpha_1",), ("alpha_2", "gamma"), ("alpha_3", "gamma", "delta"), ("gamma",)]
    variables = on_toy(mode=mode, min_samples=1)
    table = effect_table(computed_lab(toy, contexts), variables)
    rows = {row["binary_ability"]: row["delta"] for row in measure(computed_lab(toy, contexts), variables).tables["binary_effects"].rows}
    assert dict(zip(table.labels, table.values, strict=True)) == pytest.approx(rows)


def test_what_cannot_be_answered_is_said() -> None:
    with pytest.raises(ExperimentError, match="none of the 2 binary tokens occurs in any of 2 contexts"):
        measure(observed_lab([(0.1, ["special_charge_up_3"]), (0.2, [])]), binary())
    with pytest.raises(ExperimentError, match=r"latent 0 has the same activation, 0.5, in all 2 contexts"):
        measure(observed_lab([(0.5, ["comeback"]), (0.5, [])]), binary())
    with pytest.raises(ExperimentError, match="family 'run_speed_up' occurs in none of 2 contexts"):
        measure(observed_lab([(0.5, ["comeback"]), (0.6, [])]), binary(primary_family="run_speed_up"))
    with pytest.raises(ValidationError, match="primary_rungs are rungs of primary_family, which is missing"):
        binary(primary_rungs=[0])
    lab = observed_lab(P9)
    for given, text in (
        ({"binary_tokens": ["comebac"]}, r"variables.binary_tokens\[0\]: unknown family 'comebac'.*did you mean 'comeback'"),
        ({"binary_tokens": ["run_speed_up"]}, r"variables.binary_tokens\[0\]: 'run_speed_up' has rungs; a binary family: comeback"),
        ({"binary_tokens": ["comeback"], "primary_family": "comeback"}, "'comeback' is the primary family too"),
        ({"binary_tokens": ["comeback"], "stable_tokens": ["comeback"]}, r"variables.stable_tokens\[0\]: 'comeback' cannot stay"),
    ):
        with pytest.raises(SpecError, match=text):
            check_binary(lab.spec, binary(**given), lab.package)


def test_a_result_round_trips_through_json() -> None:
    result = measure(observed_lab(P9), binary(primary_family="special_charge_up"))
    assert ExperimentResult.model_validate_json(result.model_dump_json(by_alias=True)) == result
