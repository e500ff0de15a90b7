"""`weapon_group_analysis`: hand-solved counts, scipy's odds, and stated outcomes where there is nothing to contrast."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from mlinterp.errors import ExperimentError
from mlinterp.experiments.token_sets.weapon_group_analysis import WeaponGroupVariables
from mlinterp.experiments.token_sets.weapon_group_analysis_measure import effect_table, measure
from mlinterp.result import ExperimentResult
from tests.support.token_lab import observed_lab

ROWS = [(float(20 - at), ["special_charge_up_3", "comeback"], group) for at, group in enumerate("11112" + "13" * 5 + "22223")]


def contrast(**given: object) -> WeaponGroupVariables:
    return WeaponGroupVariables.model_validate({"high_percentile": 25.0, "low_percentile": 25.0, **given})


def by_weapon(result: ExperimentResult) -> dict[object, dict[str, object]]:
    return {row["weapon"]: row for row in result.tables["weapon_enrichment"].rows}


def test_groups_are_counted_among_the_highest_and_the_lowest() -> None:
    result = measure(observed_lab(ROWS), contrast())
    rows = result.tables["weapon_enrichment"].rows
    columns = ("weapon", "weapon_class", "high_count", "low_count", "high_pct", "low_pct", "enrichment_ratio", "only_high")
    assert [tuple(row[name] for name in columns) for row in rows] == [
        ("1", "shooter", 4, 0, 80.0, 0.0, None, True),
        ("3", "shooter", 0, 1, 0.0, 20.0, 0.0, False),
        ("2", "roller", 1, 4, 20.0, 80.0, 0.25, False),
    ]
    assert result.tables["weapon_enrichment"].columns[:7] == list(columns[:7])
    assert (result.aggregates.custom["high_group_size"], result.aggregates.custom["low_group_size"]) == (5, 5)
    assert result.mode == "observational"


def test_p_values_are_fishers_and_the_odds_ratio_is_finite_where_a_count_is_zero() -> None:
    found = by_weapon(measure(observed_lab(ROWS), contrast()))["1"]
    assert found["p"] == pytest.approx(stats.fisher_exact([[4, 1], [0, 5]]).pvalue)
    assert found["log_odds_ratio"] == pytest.approx(np.log((4.5 * 5.5) / (1.5 * 0.5)))
    half = 1.959964 * np.sqrt(1 / 4.5 + 1 / 5.5 + 1 / 1.5 + 1 / 0.5)
    assert (found["log_odds_low"], found["log_odds_high"]) == (
        pytest.approx(found["log_odds_ratio"] - half),
        pytest.approx(found["log_odds_ratio"] + half),
    )
    assert found["p_adj"] == pytest.approx(min(3 * stats.fisher_exact([[4, 1], [0, 5]]).pvalue, 0.206349), abs=1e-5)


def test_a_group_that_only_the_highest_have_can_be_the_most_enriched() -> None:
    result = measure(observed_lab(ROWS), contrast())
    assert result.aggregates.custom["most_enriched_weapon"] == "1"
    estimate = result.estimates["aggregates/most_enriched_log_odds"]
    assert estimate.low < estimate.value < estimate.high
    assert "largest of 3" in estimate.interval


def test_one_context_alone_does_not_beat_many() -> None:
    high = ["1"] * 9 + ["3"]
    rows = [(2.0, [], group) for group in high] + [(1.0, [], group) for group in ["1"] + ["2"] * 9]
    result = measure(observed_lab(rows), contrast(high_percentile=50.0, low_percentile=50.0))
    assert by_weapon(result)["3"]["only_high"] is True
    assert result.aggregates.custom["most_enriched_weapon"] == "1"


def test_the_highest_contexts_are_shown() -> None:
    samples = measure(observed_lab(ROWS), contrast()).tables["high_activation_samples"]
    assert samples.columns == ["activation", "weapon", "tokens"]
    assert samples.rows[0] == {"activation": 20.0, "weapon": "1", "tokens": "special_charge_up_3 + comeback"}
    assert len(samples.rows) == 5


def test_that_chance_decides_between_equal_activations_is_said_and_the_seed_decides_it() -> None:
    rows = [(1.0, [], "1"), *[(0.0, [], group) for group in "12" * 10]]
    first, again = (measure(observed_lab(rows), contrast()) for _ in range(2))
    assert any("activation 0 are in the high and in the low part" in text for text in first.diagnostics.warnings)
    assert first.tables == again.tables


def test_what_cannot_be_answered_is_said() -> None:
    with pytest.raises(ExperimentError, match="have only 1"):
        measure(observed_lab([(0.1, [], "1"), (0.2, [], "1")]), contrast())
    with pytest.raises(ExperimentError, match="the same activation"):
        measure(observed_lab([(0.1, [], "1"), (0.1, [], "2")]), contrast())


def test_its_effect_table_repeats_the_differences_of_shares() -> None:
    table = effect_table(observed_lab(ROWS), contrast())
    rows = by_weapon(measure(observed_lab(ROWS), contrast()))
    assert dict(zip(table.labels, table.values, strict=True)) == {
        name: pytest.approx((row["high_pct"] - row["low_pct"]) / 100) for name, row in rows.items()
    }


def test_a_result_round_trips_through_json() -> None:
    result = measure(observed_lab(ROWS), contrast())
    assert ExperimentResult.model_validate_json(result.model_dump_json(by_alias=True)) == result
