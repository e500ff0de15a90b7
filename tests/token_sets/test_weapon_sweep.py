"""`weapon_sweep`: hand-solved cases of both modes, and stated outcomes where there is nothing to compare."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from mlinterp.errors import ExperimentError
from mlinterp.experiments.token_sets.weapon_sweep import WeaponSweepVariables
from mlinterp.experiments.token_sets.weapon_sweep_measure import effect_table, measure
from mlinterp.result import ExperimentResult
from mlinterp.subjects.token_sets.constraints import no_group_gating_if_relu_floor, of_each
from mlinterp.subjects.token_sets.table import TokenContext
from mlinterp.token_sets.lab import Lab
from tests.support.token_lab import computed_lab, observed_lab

P7 = [*[(1.0, [], "1")] * 10, *[(0.4, [], "2")] * 10, *[(0.1, [], "3")] * 10]


def sweep(**given: object) -> WeaponSweepVariables:
    return WeaponSweepVariables.model_validate(given)


def rows_of(result: ExperimentResult, table: str, *columns: str) -> list[tuple[object, ...]]:
    return [tuple(round(v, 4) if isinstance(v, float) else v for v in (row[c] for c in columns)) for row in result.tables[table].rows]


def gated(tokens: frozenset[str], group: str | None) -> float:
    """Weapon 1 gives 2, weapon 2 gives 1, weapon 3 nothing; gamma doubles what a weapon gives; no floor is in reach."""
    return 1 + {"1": 2.0, "2": 1.0, "3": 0.0, None: 0.5}[group] * (2 if "gamma" in tokens else 1)


def crossed() -> Lab:
    return computed_lab(gated, [TokenContext(frozenset(tokens), group) for tokens in ((), ("gamma",)) for group in "123"])


def test_groups_are_compared_with_the_mean_of_all_contexts() -> None:
    result = measure(observed_lab(P7), sweep())
    assert rows_of(result, "weapon_stats", "weapon_name", "weapon_class", "mean_activation", "std", "n", "delta_from_global") == [
        ("1", "shooter", 1.0, 0.0, 10, 0.5),
        ("2", "roller", 0.4, 0.0, 10, -0.1),
        ("3", "shooter", 0.1, 0.0, 10, -0.4),
    ]
    assert rows_of(result, "class_stats", "weapon_class", "mean_activation", "n", "delta_from_global") == [
        ("shooter", 0.55, 20, 0.05),
        ("roller", 0.4, 10, -0.1),
    ]
    assert (result.aggregates.base_activation_mean, result.aggregates.n_conditions) == (pytest.approx(0.5), 3)
    custom = result.aggregates.custom
    assert (custom["top_weapon"], custom["bottom_weapon"], custom["top_class"]) == ("1", "3", "shooter")
    assert (custom["weapon_range"], custom["top_weapon_delta"]) == (pytest.approx(0.9), pytest.approx(0.5))
    assert result.mode == "observational"


def test_a_dominant_group_is_told_with_what_to_run_next() -> None:
    result = measure(observed_lab(P7), sweep())
    custom = result.aggregates.custom
    assert custom["dominant_weapon_detected"] is True
    assert custom["dominant_weapon_ratio"] == pytest.approx(5.0)
    assert custom["recommended_followup"] == "kit_sweep"
    assert any(
        text.startswith("DOMINANT WEAPON: 1 has 5x the delta of second weapon (2). Run kit_sweep") for text in result.diagnostics.warnings
    )


@pytest.mark.parametrize(
    ("means", "counts", "dominant", "ratio"),
    [
        ((0.9, 0.7, 0.2), (10, 10, 10), "3", 4.0),
        ((1.0, 0.4, 0.4), (10, 10, 10), None, None),
        ((0.8, 0.6, 0.4), (10, 10, 10), None, None),
        ((0.9, 0.5, 0.3), (10, 20, 20), "1", None),
    ],
    ids=["the lowest is the farthest", "exactly twice", "both ends are as far", "the next lies at the mean"],
)
def test_the_group_farthest_from_the_mean_is_compared_with_the_next_from_its_end(
    means: tuple[float, ...], counts: tuple[int, ...], dominant: str | None, ratio: float | None
) -> None:
    rows = [(mean, [], group) for mean, group, n in zip(means, "123", counts, strict=True) for _ in range(n)]
    custom = measure(observed_lab(rows), sweep()).aggregates.custom
    assert custom.get("dominant_weapon") == dominant
    assert custom.get("dominant_weapon_ratio") == (None if ratio is None else pytest.approx(ratio))
    assert ("recommended_followup" in custom) == (dominant is not None)


def test_the_interval_is_that_of_the_groups_share_of_a_welch_test() -> None:
    symmetric = np.arange(12) - 5.5  # without skewness the interval is Welch's own
    rows = [(float(3 * (group == "1") + value), [], group) for group in "1123" for value in symmetric * (2 if group == "1" else 1)]
    row = measure(observed_lab(rows), sweep()).tables["weapon_stats"].rows[0]
    own, others = ([value for value, _, group in rows if (group == "1") == want] for want in (True, False))
    test = stats.ttest_ind(own, others, equal_var=False)
    assert row["delta_from_global"] == pytest.approx(np.mean(own) - np.mean(own + others))
    assert row["p"] == pytest.approx(test.pvalue)
    interval = test.confidence_interval(0.95)
    assert (row["low"], row["high"]) == (pytest.approx(interval.low / 2), pytest.approx(interval.high / 2))


def test_a_condition_holds_for_the_mean_of_all_and_for_the_classes_too() -> None:
    held = [(1.0, ["comeback"], "1")] * 5 + [(0.0, ["comeback"], "2")] * 5
    result = measure(observed_lab(held + [(9.0, [], "1"), (9.0, [], "3")] * 5), sweep(condition_family="comeback", min_examples=5))
    assert result.aggregates.base_activation_mean == 0.5
    assert rows_of(result, "weapon_stats", "weapon_name", "delta_from_global") == [("1", 0.5), ("2", -0.5)]
    assert rows_of(result, "class_stats", "weapon_class", "delta_from_global", "n") == [("shooter", 0.5, 5), ("roller", -0.5, 5)]


def test_a_class_is_an_attribute_and_no_part_of_a_name() -> None:
    groups = {"1": {"class": "shot"}, "2": {"class": "slingshot"}}
    rows = [(1.0, [], "1")] * 5 + [(0.0, [], "2")] * 5
    result = measure(observed_lab(rows, groups=groups), sweep(min_examples=5))
    assert rows_of(result, "class_stats", "weapon_class", "n") == [("shot", 5), ("slingshot", 5)]


def test_the_bottom_is_the_bottom_of_all_and_not_of_those_shown() -> None:
    result = measure(observed_lab(P7), sweep(top_k_weapons=1))
    assert [row["weapon_name"] for row in result.tables["weapon_stats"].rows] == ["1"]
    assert (result.aggregates.custom["bottom_weapon"], result.aggregates.custom["weapon_range"]) == ("3", pytest.approx(0.9))


def test_groups_with_few_contexts_are_left_out_and_counted() -> None:
    result = measure(observed_lab([*P7[:20], (7.0, [], "3")]), sweep())
    assert [row["weapon_name"] for row in result.tables["weapon_stats"].rows] == ["1", "2"]
    assert "1 of 3 weapons have fewer than 10 contexts and are left out" in result.diagnostics.warnings


def test_the_same_contexts_in_every_group_show_what_the_group_does() -> None:
    result = measure(crossed(), sweep(mode="interventional", min_examples=1))
    # each of the six contexts has f = 1 + give * (2 with gamma): from the mean over weapons +1, 0, -1, twice that with gamma
    columns = ("weapon_name", "mean_activation", "n", "delta_from_global", "swap_delta", "control_delta", "empty_context_activation")
    assert rows_of(result, "weapon_stats", *columns) == [
        ("1", 4.0, 6, 1.5, 2.25, 0.0, 3.0),
        ("2", 2.5, 6, 0.0, 0.0, 0.0, 2.0),
        ("3", 1.0, 6, -1.5, -2.25, 0.0, 1.0),
    ]
    row = result.tables["weapon_stats"].rows[0]
    deltas = [1, 1, 1, 2, 2, 2]
    assert row["std_error"] == pytest.approx(np.std(deltas, ddof=1) / np.sqrt(6))
    assert row["p"] == pytest.approx(stats.ttest_1samp(deltas, 0).pvalue)
    assert result.mode == "interventional"


def test_a_swap_does_not_see_what_contexts_of_a_group_have_besides() -> None:
    confounded = [TokenContext(frozenset(["gamma"] if group == "1" else []), group) for group in "123" for _ in range(4)]

    def by_token(tokens: frozenset[str], group: str | None) -> float:
        return 1.0 + ("gamma" in tokens)

    seen = measure(computed_lab(by_token, confounded), sweep(min_examples=1))
    made = measure(computed_lab(by_token, confounded), sweep(mode="interventional", min_examples=1))
    assert seen.aggregates.custom["top_weapon_delta"] == pytest.approx(2 / 3)
    assert [row["delta_from_global"] for row in made.tables["weapon_stats"].rows] == [0, 0, 0]
    assert made.aggregates.custom["top_weapon_delta"] == 0


def test_contexts_without_a_group_are_not_swapped() -> None:
    contexts = [TokenContext(frozenset(), group) for group in ("1", "2", None)]
    result = measure(computed_lab(gated, contexts), sweep(mode="interventional", min_examples=1))
    assert result.aggregates.n_samples == 2
    assert "1 of 3 contexts have no weapon to be swapped, and were left out" in result.diagnostics.warnings


def test_on_the_floor_the_constraint_against_gating_warns() -> None:
    lab = observed_lab([(0.0, [], "1")] * 10 + [(0.0, [], "2")] * 9 + [(5.0, [], "2")])
    lab.constraints = [no_group_gating_if_relu_floor()]
    assert any("is no evidence that the weapon gates it" in text for text in measure(lab, sweep()).diagnostics.warnings)
    assert not any("gates it" in text for text in measure(observed_lab(P7), sweep()).diagnostics.warnings)


def test_what_cannot_be_answered_is_said() -> None:
    with pytest.raises(ExperimentError, match="comparing weapons needs two of them, and the 2 contexts of the slice have only 1"):
        measure(observed_lab([(0.1, [], "1"), (0.2, [], "1")]), sweep())
    with pytest.raises(ExperimentError, match="family 'comeback' occurs in none of 30 contexts"):
        measure(observed_lab(P7), sweep(condition_family="comeback"))
    with pytest.raises(ExperimentError, match="no weapon has 11 contexts"):
        measure(observed_lab(P7), sweep(min_examples=11))
    with pytest.raises(ExperimentError, match="the same activation"):
        measure(observed_lab([(0.5, [], "1"), (0.5, [], "2")]), sweep())


@pytest.mark.parametrize("mode", ["observational", "interventional"])
def test_its_effect_table_repeats_the_deltas(mode: str) -> None:
    result = measure(crossed(), sweep(mode=mode, min_examples=1))
    table = effect_table(crossed(), sweep(mode=mode, min_examples=1))
    assert dict(zip(table.labels, table.values, strict=True)) == {
        row["weapon_name"]: pytest.approx(row["delta_from_global"]) for row in result.tables["weapon_stats"].rows
    }


def test_a_result_round_trips_through_json() -> None:
    for lab, mode in ((observed_lab(P7), "observational"), (crossed(), "interventional")):
        result = measure(lab, sweep(mode=mode, min_examples=1))
        assert ExperimentResult.model_validate_json(result.model_dump_json(by_alias=True)) == result


def test_edited_groups_are_ranked_by_what_they_change_and_not_by_the_contexts_that_they_admit() -> None:
    """Weapon 1 raises most, and takes none of the contexts on which the latent is highest anyway."""

    def gated_and_high(tokens: frozenset[str], group: str | None) -> float:
        return 1 + {"1": 2.0, "2": 1.0, "3": 0.0, None: 0.0}[group] + 10 * ("gamma" in tokens)

    plain, high = frozenset[str](), frozenset({"gamma"})
    lab = computed_lab(gated_and_high, [TokenContext(plain, group) for group in "123"] + [TokenContext(high, group) for group in "23"])
    check = of_each("no_gamma_on_1", "", "hard", lambda context: "no" if "gamma" in context.tokens and context.group == "1" else None)
    lab.constraints = [*lab.constraints, check]
    result = measure(lab, sweep(mode="interventional", min_examples=1))
    expected = [("1", 1.0, 3), ("2", 0.2, 5), ("3", -0.8, 5)]
    assert rows_of(result, "weapon_stats", "weapon_name", "delta_from_global", "n") == expected
    assert (result.aggregates.max_delta, result.aggregates.min_delta) == (1.0, pytest.approx(-0.8))
    assert result.aggregates.custom["weapon_range"] == pytest.approx(1.8)
    assert result.estimates["aggregates/max_delta"].null == "the mean over all groups"
