"""`core_coverage_analysis`: the hand-solved case, a count over sets as a second opinion, and stated outcomes."""

from __future__ import annotations

import numpy as np
import pytest

from mlinterp.errors import ExperimentError
from mlinterp.experiments.token_sets.core_coverage_analysis import CoreCoverageVariables
from mlinterp.experiments.token_sets.core_coverage_analysis_measure import carried, effect_table, measure
from mlinterp.result import ExperimentResult
from mlinterp.stats import wilson_interval
from tests.support.token_lab import flat, observed_lab

P10 = [*[(1.0, ["t"], "1")] * 4, *[(0.5, ["t"], "2")] * 2, *[(0.5, ["u"], "2")] * 8, *[(0.1, [], "3")] * 6]
FLAT = flat("t", "u")


def coverage(**given: object) -> CoreCoverageVariables:
    return CoreCoverageVariables.model_validate(given)


def test_tokens_are_counted_in_the_core_and_in_the_tail() -> None:
    result = measure(observed_lab(P10, FLAT), coverage(tokens_to_check=["t"]))
    (row,) = result.tables["token_coverage"].rows
    columns = ("token", "core_coverage_pct", "tail_coverage_pct", "tail_enrichment", "is_tail_marker")
    assert tuple(row[name] for name in columns) == ("t", 20.0, 100.0, 5.0, True)
    assert (row["n_core_with_token"], row["n_tail_with_token"]) == (2, 4)
    _, low, high = wilson_interval(2, 10)
    assert (row["core_low"], row["core_high"]) == (pytest.approx(100 * low), pytest.approx(100 * high))
    custom = result.aggregates.custom
    assert (custom["effective_max"], custom["n_core_examples"], custom["n_tail_examples"]) == (1.0, 10, 4)
    assert (custom["core_region"], custom["n_tail_markers"], custom["n_primary_drivers"]) == ("25%-75%", 1, 0)
    assert (custom["top_tail_marker"], custom["top_tail_marker_enrichment"]) == ("t", 5.0)
    assert any(text.startswith("all 1 tokens are tail markers") for text in result.diagnostics.warnings)


@pytest.mark.parametrize(("activation", "n_core"), [(0.25, 0), (0.2501, 1), (0.75, 1), (0.7501, 0)])
def test_the_core_begins_above_its_lower_bound_and_ends_with_its_upper_one(activation: float, n_core: int) -> None:
    result = measure(observed_lab([(1.0, ["t"], "1")] * 300 + [(activation, ["t"], "1")], FLAT), coverage(tokens_to_check=["t"]))
    assert result.aggregates.custom["n_core_examples"] == n_core


def test_groups_are_counted_too_unless_they_are_left_out() -> None:
    result = measure(observed_lab(P10, FLAT), coverage(tokens_to_check=["t"]))
    columns = ("weapon", "weapon_id", "core_coverage_pct", "tail_coverage_pct", "tail_enrichment", "is_flanderized", "n_core", "n_tail")
    assert result.tables["weapon_coverage"].columns[:8] == list(columns)
    assert [tuple(row[name] for name in columns) for row in result.tables["weapon_coverage"].rows] == [
        ("1", 0, 0.0, 100.0, None, True, 0, 4),
        ("2", 1, 100.0, 0.0, 0.0, False, 10, 0),
    ]
    assert "weapon_coverage" not in measure(observed_lab(P10, FLAT), coverage(include_weapons=False)).tables


def test_a_token_that_drives_the_core_is_told_with_its_coverage() -> None:
    result = measure(observed_lab(P10, FLAT), coverage(tokens_to_check=["t", "u"]))
    assert [row["token"] for row in result.tables["token_coverage"].rows] == ["t", "u"]
    custom = result.aggregates.custom
    assert (custom["best_primary_driver"], custom["best_driver_coverage"], custom["n_primary_drivers"]) == ("u", 0.8, 1)
    assert result.estimates["aggregates/best_driver_coverage"].low < 0.8


def test_a_family_is_there_at_any_rung() -> None:
    rows = [(1.0, ["special_charge_up_3"], "1"), *[(0.5, [f"special_charge_up_{rung}"], "1") for rung in (3, 6, 12)], (0.0, [], "1")]
    result = measure(observed_lab(rows), coverage(tokens_to_check=["special_charge_up", "special_charge_up_6"]))
    assert {row["token"]: row["n_core_with_token"] for row in result.tables["token_coverage"].rows} == {
        "special_charge_up": 3,
        "special_charge_up_6": 1,
    }


def test_families_are_found_by_the_activation_that_goes_with_them() -> None:
    rng = np.random.default_rng(0)
    rows = [
        (float(max(rng.normal(0.3, 0.5), 0)), [name for name in ("comeback", "ninja_squid", "run_speed_up_3") if rng.random() < 0.4], "1")
        for _ in range(60)
    ]
    counts = {
        name: sum(max(1, int(10 * value)) for value, tokens, _ in rows if value > 0 and name in {t.removesuffix("_3") for t in tokens})
        for name in ("comeback", "ninja_squid", "run_speed_up")
    }
    assert carried(observed_lab(rows), 3) == sorted(counts, key=lambda name: -counts[name])
    assert carried(observed_lab(rows), 1) == [max(counts, key=lambda name: counts[name])]


def test_a_part_without_contexts_has_no_coverage() -> None:
    result = measure(observed_lab([(1.0, ["t"], "1")] * 3 + [(0.0, [], "2")], FLAT), coverage(tokens_to_check=["t"]))
    (row,) = result.tables["token_coverage"].rows
    assert (row["core_coverage_pct"], row["tail_enrichment"], row["is_tail_marker"], row["p"]) == (None, None, None, None)
    assert any(text.startswith("no context lies in the core") for text in result.diagnostics.warnings)


def test_what_cannot_be_answered_is_said() -> None:
    with pytest.raises(ExperimentError, match="latent 0 is active in none of 2 contexts"):
        measure(observed_lab([(-1.0, ["t"], "1"), (-2.0, [], "1")], FLAT), coverage())
    with pytest.raises(ExperimentError, match="no context on which latent 0 is active holds a token"):
        measure(observed_lab([(1.0, [], "1"), (0.0, ["t"], "1")], FLAT), coverage())
    with pytest.raises(ExperimentError, match="the same activation"):
        measure(observed_lab([(1.0, ["t"], "1"), (1.0, [], "1")], FLAT), coverage())


def test_its_effect_table_repeats_the_differences_of_shares() -> None:
    asked = coverage(tokens_to_check=["t", "u"])
    table = effect_table(observed_lab(P10, FLAT), asked)
    rows = {row["token"]: row for row in measure(observed_lab(P10, FLAT), asked).tables["token_coverage"].rows}
    assert dict(zip(table.labels, table.values, strict=True)) == {
        name: pytest.approx((row["tail_coverage_pct"] - row["core_coverage_pct"]) / 100) for name, row in rows.items()
    }


def test_a_result_round_trips_through_json() -> None:
    result = measure(observed_lab(P10, FLAT), coverage())
    assert ExperimentResult.model_validate_json(result.model_dump_json(by_alias=True)) == result


def test_what_is_measured_again_was_not_chosen_by_looking() -> None:
    rng, found = np.random.default_rng(2), []
    names = [f"t{at}" for at in range(12)]
    for _ in range(40):
        rows = [(float(value), [name for name in names if rng.random() < 0.3]) for value in rng.random(120)]
        table = effect_table(observed_lab(rows, flat(*names)), CoreCoverageVariables(top_k=1))
        assert table.labels == tuple(names)
        sizes = [np.abs(table.values).max(), *(np.abs(table.shuffled(rng)).max() for _ in range(19))]
        found.append(np.mean(np.array(sizes) >= sizes[0]))
    assert 0.35 < np.mean(found) < 0.7
