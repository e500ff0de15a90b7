"""`kit_sweep`: hand-solved cases of both modes, and stated outcomes where there is nothing to compare."""

from __future__ import annotations

import numpy as np
import pytest

from mlinterp.errors import ExperimentError, SpecError
from mlinterp.experiments.token_sets.declared import check_names
from mlinterp.experiments.token_sets.kit_sweep import KitSweepVariables
from mlinterp.experiments.token_sets.kit_sweep_measure import effect_table, measure
from mlinterp.result import ExperimentResult
from mlinterp.subjects.token_sets.table import TokenContext
from mlinterp.token_sets.lab import Lab
from tests.support.token_lab import computed_lab, observed_lab

P7 = [*[(1.0, [], "1")] * 10, *[(0.4, [], "2")] * 10, *[(0.1, [], "3")] * 10]


def sweep(**given: object) -> KitSweepVariables:
    return KitSweepVariables.model_validate(given)


def rows_of(result: ExperimentResult, table: str, *columns: str) -> list[tuple[object, ...]]:
    return [tuple(round(v, 4) if isinstance(v, float) else v for v in (row[c] for c in columns)) for row in result.tables[table].rows]


def by_sub(tokens: frozenset[str], group: str | None) -> float:
    """Sub A (weapons 1 and 2) gives 3, weapon 1 another 1."""
    return 1.0 + 3 * (group in ("1", "2")) + (group == "1")


def crossed() -> Lab:
    return computed_lab(by_sub, [TokenContext(frozenset(tokens), group) for tokens in ((), ("gamma",)) for group in "123"])


def test_attributes_are_compared_with_the_mean_of_all_contexts() -> None:
    result = measure(observed_lab(P7), sweep(analyze_combinations=True))
    assert rows_of(result, "sub_stats", "sub", "mean_activation", "std", "n", "delta_from_global") == [
        ("A", 0.7, 0.3078, 20, 0.2),
        ("B", 0.1, 0.0, 10, -0.4),
    ]
    assert rows_of(result, "special_stats", "special", "mean_activation", "delta_from_global") == [("X", 0.55, 0.05), ("Y", 0.4, -0.1)]
    assert rows_of(result, "combo_stats", "sub", "special", "mean_activation") == [("A", "X", 1.0), ("A", "Y", 0.4), ("B", "X", 0.1)]
    custom = result.aggregates.custom
    assert (custom["top_sub"], custom["top_sub_mean"], custom["top_sub_delta"]) == ("A", pytest.approx(0.7), pytest.approx(0.2))
    assert (custom["top_special"], result.aggregates.n_conditions) == ("X", 4)


def test_combinations_have_another_name_and_are_left_out_unless_asked_for() -> None:
    assert sweep(combinations=True).analyze_combinations
    assert "combo_stats" not in measure(observed_lab(P7), sweep()).tables


def test_an_attribute_that_one_group_alone_has_cannot_be_told_from_it() -> None:
    warnings = measure(observed_lab(P7), sweep()).diagnostics.warnings
    assert "1 of 2 values of sub belong to a single weapon: they cannot be told from that weapon" in warnings


def test_a_package_that_has_neither_sub_nor_special_is_compared_by_what_it_has() -> None:
    groups = {"1": {"Hand class": "pair"}, "2": {"Hand class": "flush"}, "3": {}}
    result = measure(observed_lab(P7, groups=groups), sweep())
    assert rows_of(result, "hand_class_stats", "Hand class", "n") == [("pair", 10), ("flush", 10)]
    assert result.aggregates.custom["top_hand_class"] == "pair"


def test_swapping_contexts_into_groups_shows_what_their_attribute_does() -> None:
    result = measure(crossed(), sweep(mode="interventional", min_examples=1))
    # a context has f = 5, 4, 1 in weapons 1, 2, 3: sub A is 4.5 on average, and the mean of all 10 / 3
    assert rows_of(result, "sub_stats", "sub", "mean_activation", "n", "delta_from_global", "swap_delta", "control_delta") == [
        ("A", 4.5, 6, round(4.5 - 10 / 3, 4), 3.5, None),
        ("B", 1.0, 6, round(1 - 10 / 3, 4), -3.5, 0.0),
    ]


def test_swaps_agree_with_one_context_at_a_time() -> None:
    rng = np.random.default_rng(1)
    contexts = [
        TokenContext(frozenset(token for token in ("alpha_1", "beta_2", "gamma") if rng.random() < 0.5), str(rng.integers(1, 4)))
        for _ in range(30)
    ]

    def pre(tokens: frozenset[str], group: str | None) -> float:
        return len(tokens) * {"1": 1.0, "2": -2.0, "3": 0.5, None: 0.0}[group]

    result = measure(computed_lab(pre, contexts), sweep(mode="interventional", min_examples=1, attributes=["special"], n_contexts=30))
    rows = {row["special"]: row for row in result.tables["special_stats"].rows}
    for value, members in {"X": "13", "Y": "2"}.items():

        def f(context: TokenContext, groups: str) -> float:
            return float(np.mean([max(pre(context.tokens, group), 0.0) for group in groups]))

        deltas = [f(context, members) - f(context, "123") for context in contexts]
        moved = [f(context, members) - f(context, str(context.group)) for context in contexts if context.group not in members]
        assert rows[value]["delta_from_global"] == pytest.approx(np.mean(deltas))
        assert rows[value]["std_error"] == pytest.approx(np.std(deltas, ddof=1) / np.sqrt(30))
        assert rows[value]["swap_delta"] == pytest.approx(np.mean(moved))


@pytest.mark.parametrize("mode", ["observational", "interventional"])
def test_its_effect_table_repeats_the_deltas(mode: str) -> None:
    asked = sweep(mode=mode, min_examples=1)
    found, tables = effect_table(crossed(), asked), measure(crossed(), asked).tables
    assert dict(zip(found.labels, found.values, strict=True)) == {
        f"{name}={row[name]}": pytest.approx(row["delta_from_global"])
        for name in ("sub", "special")
        for row in tables[f"{name}_stats"].rows
    }


def test_what_cannot_be_answered_is_said() -> None:
    with pytest.raises(ExperimentError, match="the weapons of 'by hand' have no attributes to compare"):
        measure(observed_lab(P7, groups={"1": {}, "2": {}, "3": {}}), sweep())
    with pytest.raises(ExperimentError, match="no value of sub, special has 99 contexts"):
        measure(observed_lab(P7), sweep(min_examples=99))
    lab = observed_lab(P7)
    with pytest.raises(SpecError, match=r"variables.attributes\[0\]: unknown attribute of a weapon 'speciall'; .*did you mean 'special'"):
        check_names(lab.spec, sweep(attributes=["speciall"]), lab.package)


def test_a_result_round_trips_through_json() -> None:
    result = measure(observed_lab(P7), sweep(analyze_combinations=True))
    assert ExperimentResult.model_validate_json(result.model_dump_json(by_alias=True)) == result
