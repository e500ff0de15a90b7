"""`family_2d_heatmap`: hand-solved grids of both modes, a brute-force oracle, and stated outcomes where there is nothing to measure."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from pydantic import ValidationError

from mlinterp.errors import ExperimentError, SpecError
from mlinterp.experiments.token_sets.family_2d_heatmap import HeatmapVariables, check_heatmap
from mlinterp.experiments.token_sets.family_2d_heatmap_cells import _apart_first
from mlinterp.experiments.token_sets.family_2d_heatmap_measure import effect_table, measure
from mlinterp.result import ExperimentResult
from mlinterp.subjects.token_sets.constraints import of_each
from mlinterp.subjects.token_sets.table import TokenContext
from tests.support.token_lab import BUILDS, TOY_BASES, computed_lab, flat, observed_lab, toy

P4 = [
    (0.1, ["run_speed_up_3"]),
    (0.3, ["comeback"]),
    (0.5, ["special_charge_up_6"]),
    *((value, ["special_charge_up_6", "comeback"]) for value in (1.3, 1.1)),
]


def grid(**given: object) -> HeatmapVariables:
    return HeatmapVariables.model_validate({"family_x": "special_charge_up", "family_y": "comeback", "min_n": 1, **given})


def on_toy(**given: object) -> HeatmapVariables:
    return grid(**{"family_x": "alpha", "family_y": "gamma", "mode": "interventional", **given})


def cells(result: ExperimentResult, table: str, *columns: str) -> dict[tuple[object, object], tuple[object, ...]]:
    found = result.tables[table]
    keys = found.columns[:2]
    return {
        (row[keys[0]], row[keys[1]]): tuple(round(v, 4) if isinstance(v, float) else v for v in (row[c] for c in columns))
        for row in found.rows
    }


def test_a_binary_family_spans_a_grid_with_an_ordered_one() -> None:
    result = measure(observed_lab(P4), grid())
    assert result.tables["heatmap"].columns[:6] == ["SCU_rung", "CB_rung", "mean_activation", "std", "stderr", "n"]
    found = cells(result, "heatmap", "mean_activation", "stderr", "n", "delta")
    assert found[(0, 0)] == (0.1, None, 1, 0.0)
    assert found[(0, 10)] == (0.3, None, 1, 0.2)
    assert found[(6, 0)] == (0.5, None, 1, 0.4)
    assert found[(6, 10)] == (1.2, 0.1, 2, 1.1)
    aggregates = result.aggregates
    assert (aggregates.mean_delta, aggregates.max_delta) == (pytest.approx(0.7), pytest.approx(1.1))
    assert aggregates.custom == {"peak_x": 6, "peak_y": 10, "peak_activation": pytest.approx(1.2), "corner_x": 6, "corner_y": 10}
    assert cells(result, "interactions", "interaction", "n")[(6, 10)] == (0.5, 1)
    assert result.metrics["interaction/corner"] == pytest.approx(0.5)
    assert (aggregates.base_activation_mean, aggregates.n_samples, aggregates.n_conditions) == (0.1, 5, 4)
    assert result.mode == "observational"


@pytest.mark.parametrize("mode", ["observational", "interventional"])
def test_the_cell_that_others_are_compared_with_differs_by_nothing_and_is_not_tested(mode: str) -> None:
    contexts = [*TOY_BASES, ("alpha_2",), ("alpha_2", "gamma"), ("gamma",)]
    row = measure(computed_lab(toy, contexts), on_toy(mode=mode)).tables["heatmap"].rows[0]
    assert [row[name] for name in ("delta", "pre_delta", "std_error", "low", "high", "p", "p_adj")] == [0.0, 0.0, *[None] * 5]


def test_every_cell_is_there_and_one_without_contexts_has_no_number_rather_than_zero() -> None:
    result = measure(observed_lab(P4), grid(min_n=2))
    found = cells(result, "heatmap", "status", "mean_activation", "n")
    assert list(found) == list(itertools.product((0, 3, 6, 12, 29, 57), (0, 10)))
    assert found[(57, 10)] == ("no data", None, 0)
    assert found[(6, 0)] == ("too few", None, 1)
    assert found[(6, 10)] == ("ok", 1.2, 2)
    assert result.aggregates.mean_delta is None
    assert "interaction/corner" not in result.metrics
    assert "1 contexts without special_charge_up and comeback (min_n is 2): there is nothing to compare with" in result.diagnostics.warnings


def test_the_rungs_asked_for_are_the_grid_and_other_contexts_are_in_no_cell() -> None:
    result = measure(observed_lab([*P4, (7.0, ["special_charge_up_57"])]), grid(rungs_x=[6, 0]))
    assert list(cells(result, "heatmap")) == [(0, 0), (0, 10), (6, 0), (6, 10)]
    assert result.aggregates.base_activation_mean == pytest.approx(0.1)
    assert any(
        text.startswith("1 contexts hold special_charge_up or comeback at a rung that is not listed")
        for text in result.diagnostics.warnings
    )


def test_a_thermometer_stands_at_its_highest_token() -> None:
    rows = [*P4, (2.0, ["special_charge_up_3", "special_charge_up_57"]), (4.0, ["special_charge_up_57", "special_charge_up_3"])]
    assert cells(measure(observed_lab(rows), grid()), "heatmap", "mean_activation", "n")[(57, 0)] == (3.0, 2)


def test_observed_cells_agree_with_sets_counted_one_by_one() -> None:
    rng = np.random.default_rng(3)
    ladder = (3, 6, 12, 29, 57)
    rows = []
    for value in rng.normal(size=300):
        scu, rsu = rng.integers(0, 4, 2)
        tokens = {f"special_charge_up_{r}" for r in ladder[:scu]} | {f"run_speed_up_{r}" for r in ladder[:rsu]}
        rows.append((float(value), sorted(tokens)))
    result = measure(observed_lab(rows), grid(family_y="run_speed_up", min_n=2))

    def mean(x: int, y: int) -> float:
        at = [v for v, t in rows if _top(t, "special_charge_up") == x and _top(t, "run_speed_up") == y]
        return sum(at) / len(at)

    for (x, y), (activation, delta) in cells(result, "heatmap", "mean_activation", "delta").items():
        if activation is not None:
            assert (activation, delta) == (pytest.approx(mean(x, y), abs=1e-4), pytest.approx(mean(x, y) - mean(0, 0), abs=1e-4))
    for (x, y), (value,) in cells(result, "interactions", "interaction").items():
        if value is not None:
            assert value == pytest.approx(mean(x, y) - mean(x, 0) - mean(0, y) + mean(0, 0), abs=1e-4)
    assert sum(row["status"] == "ok" for row in result.tables["interactions"].rows) == 9
    table = effect_table(observed_lab(rows), grid(family_y="run_speed_up", min_n=2))
    deltas = [np.nan if row["delta"] is None else row["delta"] for row in result.tables["heatmap"].rows[1:]]
    assert table.values.tolist() == pytest.approx(deltas, nan_ok=True)
    assert table.labels[:2] == ("SCU_0 RSU_3", "SCU_0 RSU_6")


def _top(tokens: list[str], family: str) -> int:
    return max((int(token.rpartition("_")[2]) for token in tokens if token.startswith(family)), default=0)


def test_the_interval_of_an_observed_interaction_covers_the_truth_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        rows = []
        for x, y in itertools.product((0, 1), (0, 1)):
            tokens = ["special_charge_up_6"] * x + ["comeback"] * y
            rows += [(float(v), tokens) for v in 10 + x + 2 * y + 1.5 * x * y + rng.normal(scale=1 + x, size=12)]
        found = measure(observed_lab(rows), grid(rungs_x=[6])).estimates["interaction/corner"]
        covered += found.low <= 1.5 <= found.high
    assert 88 <= covered <= 99


def test_putting_a_context_into_every_cell_gives_the_hand_solved_grid() -> None:
    result = measure(computed_lab(toy, [()]), on_toy())
    found = cells(result, "heatmap", "mean_activation")
    assert [(found[(a, 0)][0], found[(a, 1)][0]) for a in range(4)] == [(0.0, 0.0), (0.0, 0.0), (1.0, 4.0), (2.0, 5.0)]
    assert result.mode == "interventional"


def test_interactions_are_differences_of_differences_within_each_context() -> None:
    result = measure(computed_lab(toy, TOY_BASES), on_toy(controls=0))
    assert cells(result, "interactions", "interaction", "std_error", "n", "pre_interaction") == {
        (1, 1): (0.0, 0.0, 3, 0.0),
        (2, 1): (2.6667, 0.3333, 3, 3.0),
        (3, 1): (3.0, 0.0, 3, 3.0),
    }
    assert (result.aggregates.n_samples, result.aggregates.custom["corner_x"], result.aggregates.custom["corner_y"]) == (3, 3, 1)
    assert result.metrics["interaction/corner"] == pytest.approx(3.0)
    assert "there is no control: no other pair of families of the kinds was edited" in result.diagnostics.warnings


def test_the_control_is_another_pair_of_families_at_matched_rungs() -> None:
    result = measure(computed_lab(toy, TOY_BASES), on_toy())

    def f(beta: int, delta: bool) -> float:  # beta and delta are the only other pair: neither context holds alpha or gamma
        return max(0.5 * beta - 2 * delta - 1, 0)

    matched = {1: 1, 2: 1, 3: 2}
    found = cells(result, "heatmap", "control_delta")
    for (a, g), (control,) in found.items():
        expected = f(matched.get(a, 0), bool(g)) - f(0, False)
        assert control is None if (a, g) == (0, 0) else control == pytest.approx(expected)
    assert result.metrics["interaction/corner_control"] == 0.0
    assert result.metrics["interaction/corner_adjusted"] == pytest.approx(3.0)
    assert result.estimates["aggregates/mean_delta"].null == "the same edits of other families"


def test_an_interaction_that_clipping_makes_is_flagged() -> None:
    def additive(tokens: frozenset[str], group: str | None) -> float:
        return ("gamma" in tokens) + ("delta" in tokens) - 1.5

    result = measure(computed_lab(additive, [(), ("alpha_1",)]), on_toy(family_x="delta"))
    assert cells(result, "interactions", "interaction", "pre_interaction", "floor_artefact") == {(1, 1): (0.5, 0.0, True)}
    assert any("clipping at the ReLU floor made it" in text for text in result.diagnostics.warnings)


def test_a_base_group_restricts_what_is_observed_and_receives_what_is_edited() -> None:
    rows = [(value, tokens, weapon) for weapon, shift in (("1", 0.0), ("2", 10.0)) for value, tokens in ((v + shift, t) for v, t in P4)]
    observed = measure(observed_lab(rows), grid(base_weapon="2"))
    assert (observed.aggregates.n_samples, observed.aggregates.base_activation_mean) == (5, pytest.approx(10.1))

    def gated(tokens: frozenset[str], group: str | None) -> float:
        return toy(tokens) * (2 if group == "2" else 1)

    contexts = [TokenContext(frozenset(), "1"), TokenContext(frozenset(), "3")]
    edited = measure(computed_lab(gated, contexts), on_toy(base_group=1))
    assert cells(edited, "heatmap", "mean_activation")[(3, 1)] == (10.0,)


def test_contexts_that_an_edit_may_not_make_are_skipped_and_counted() -> None:
    lab = computed_lab(toy, TOY_BASES)
    lab.constraints = [of_each("no", "x", "hard", lambda c: "together" if {"alpha_3", "delta"} <= c.tokens else None)]
    result = measure(lab, on_toy(controls=0))
    assert cells(result, "heatmap", "n")[(3, 1)] == (2,)
    assert result.diagnostics.n_contexts_skipped == 2
    lab = computed_lab(toy, [("alpha_1",)])
    lab.constraints = [of_each("no", "x", "hard", lambda c: None if c.tokens else "empty")]
    with pytest.raises(ExperimentError, match="without alpha and gamma, every context breaks a hard constraint"):
        measure(lab, on_toy())


def test_a_rung_that_the_family_does_not_have_has_no_data() -> None:
    lab = computed_lab(toy, TOY_BASES)
    result = measure(lab, on_toy(family_y="beta", rungs_x=[1, 2], rungs_y=[2]))
    assert list(cells(result, "heatmap")) == [(0, 0), (0, 2), (1, 0), (1, 2), (2, 0), (2, 2)]
    lab = computed_lab(lambda tokens, group: float(len(tokens)), [()], BUILDS)
    result = measure(lab, grid(mode="interventional", rungs_x=[6, 7]))
    assert cells(result, "heatmap", "status")[(7, 10)] == ("no data",)
    assert "7 is no rung of special_charge_up (3, 6, 12, 29, 57): there is no such token to add" in result.diagnostics.warnings


@pytest.mark.parametrize("mode", ["observational", "interventional"])
def test_its_effect_table_repeats_the_deltas(mode: str) -> None:
    contexts = [*TOY_BASES, ("alpha_1",), ("alpha_2", "gamma"), ("alpha_3", "beta_1"), ("gamma",)]
    variables = on_toy(mode=mode)
    table = effect_table(computed_lab(toy, contexts), variables)
    rows = measure(computed_lab(toy, contexts), variables).tables["heatmap"].rows[1:]
    assert table.values.tolist() == pytest.approx([np.nan if row["delta"] is None else row["delta"] for row in rows], nan_ok=True)
    assert table.labels[0] == "A_0 G_1"


def test_what_cannot_be_answered_is_said() -> None:
    with pytest.raises(ExperimentError, match="family 'comeback' occurs in none of 2 contexts"):
        measure(observed_lab([(0.1, ["special_charge_up_3"]), (0.2, [])]), grid())
    with pytest.raises(ExperimentError, match=r"latent 0 has the same activation, 0.5, in all 2 contexts"):
        measure(observed_lab([(0.5, ["special_charge_up_3"]), (0.5, ["comeback"])]), grid())
    with pytest.raises(ExperimentError, match="none of 5 contexts is of weapon '3'"):
        measure(observed_lab(P4), grid(base_weapon="3"))
    with pytest.raises(ValidationError, match="a grid needs two families, and both are comeback"):
        grid(family_x="comeback")


def test_what_the_domain_does_not_have_is_refused_with_the_nearest_name() -> None:
    lab = observed_lab(P4)
    for given, text in (
        ({"family_x": "special_charge"}, "did you mean 'special_charge_up'"),
        ({"rungs_x": [3, 58]}, r"variables.rungs_x\[1\]: 58 is above every rung"),
        ({"base_weapon": "4"}, "variables.base_weapon: unknown weapon '4'"),
        ({"stable_tokens": ["comeback"]}, r"variables.stable_tokens\[0\]: 'comeback' cannot stay"),
    ):
        with pytest.raises(SpecError, match=text):
            check_heatmap(lab.spec, grid(**given), lab.package)


def test_a_result_round_trips_through_json() -> None:
    result = measure(computed_lab(toy, TOY_BASES), on_toy())
    assert ExperimentResult.model_validate_json(result.model_dump_json(by_alias=True)) == result


def test_the_mean_change_is_over_all_that_was_changed_where_contexts_cannot_be_put_into_every_cell() -> None:
    lab = computed_lab(toy, [*TOY_BASES, ("beta_1",)])
    lab.constraints = [of_each("no", "", "hard", lambda held: "no" if "delta" in held.tokens and "gamma" in held.tokens else None)]
    result = measure(lab, on_toy(controls=0))
    changes = []
    for start in ((), ("beta_2",), ("delta",), ("beta_1",)):
        for x, y in itertools.product((0, 1, 2, 3), (0, 1)):
            if (x or y) and not ("delta" in start and y):
                tokens = frozenset([*start, *([f"alpha_{x}"] if x else []), *(["gamma"] if y else [])])
                changes.append(max(toy(tokens), 0.0) - max(toy(frozenset(start)), 0.0))
    assert result.aggregates.mean_delta == pytest.approx(np.mean(changes))
    assert result.aggregates.std_delta == pytest.approx(np.std(changes, ddof=1))


def test_an_effect_no_larger_than_those_of_a_few_other_pairs_is_not_told_from_them() -> None:
    """Every family adds its own amount in every context, which leaves nothing uncertain but which families were drawn."""
    names = "abcdefgh"
    worth = dict(zip(names, (1.0, 1.1, 0.2, 1.9, 0.4, 1.4, 0.8, 1.2), strict=True))
    contexts = [[name for at, name in enumerate(names) if row >> at & 1] for row in range(40)]
    lab = computed_lab(lambda tokens, _: 1 + sum(worth[token] for token in tokens), contexts, flat(*names))
    result = measure(lab, grid(family_x="a", family_y="b", mode="interventional", controls=8))
    assert result.estimates["aggregates/mean_delta"].p > 0.1
    assert result.estimates["effect/adjusted_delta"].p > 0.1
    assert result.estimates["aggregates/max_delta"].null == "the same edits of other families"
    assert result.estimates["aggregates/max_delta"].p > 0.1


def test_pairs_of_controls_share_as_few_families_as_there_are() -> None:
    a, b, c, d = flat("a", "b", "c", "d").families
    assert _apart_first([(a, b), (b, a), (a, c), (c, d), (d, b)]) == [(a, b), (c, d), (b, a), (a, c), (d, b)]
