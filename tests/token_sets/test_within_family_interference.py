"""`within_family_interference`: hand-solved cases of both modes, and stated outcomes where there is nothing to measure."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from pydantic import ValidationError

from mlinterp.errors import ExperimentError, SpecError
from mlinterp.experiments.token_sets.within_family_interference import InterferenceVariables, check_interference
from mlinterp.experiments.token_sets.within_family_interference_measure import measure
from mlinterp.result import ExperimentResult
from tests.support.token_lab import BUILDS, LADDER, computed_lab, observed_lab

SCU = "special_charge_up"
ALONE, BOTH = [f"{SCU}_29"], [f"{SCU}_3", f"{SCU}_29"]
P11 = [*[(0.6, ALONE)] * 5, *[(0.4, BOTH)] * 5]


def interference(**given: object) -> InterferenceVariables:
    return InterferenceVariables.model_validate({"family": SCU, **given} if "modulator_token" not in given else given)


def rows_of(result: ExperimentResult, table: str, *columns: str) -> list[tuple[object, ...]]:
    return [tuple(round(v, 4) if isinstance(v, float) else v for v in (row[c] for c in columns)) for row in result.tables[table].rows]


def test_a_lower_token_beside_a_higher_one_is_compared_with_the_higher_one_alone() -> None:
    result = measure(observed_lab(P11), interference())
    assert rows_of(result, "interference_matrix", *result.tables["interference_matrix"].columns[:8]) == [
        (29, 3, 0.6, 0.4, -0.2, 5, 5, "reduction")
    ]
    assert result.aggregates.custom["strongest_interference"] == {"low_rung": 3, "high_rung": 29, "delta": pytest.approx(-0.2)}
    assert (result.aggregates.custom["n_reductions"], result.aggregates.custom["n_enhancements"]) == (1, 0)
    assert "strongest_enhancement" not in result.aggregates.custom
    assert (result.aggregates.n_conditions, result.aggregates.min_delta) == (1, pytest.approx(-0.2))
    assert result.mode == "observational"


@pytest.mark.parametrize("kept", [P11[1:], P11[:-1]])
def test_four_contexts_on_either_side_give_no_row(kept: list[tuple[float, list[str]]]) -> None:
    result = measure(observed_lab(kept), interference())
    assert result.tables["interference_matrix"].rows == []
    missing = {(row["high_rung"], row["low_rung"]): row["status"] for row in result.tables["unmeasured_pairs"].rows}
    assert missing[(29, 3)] == "too few"
    assert missing[(57, 3)] == "no data"
    assert "10 of 10 pairs of rungs have too few contexts for a number (min_n is 5)" in result.diagnostics.warnings
    assert result.aggregates.min_delta is None


def test_a_token_stands_for_its_family() -> None:
    by_token = measure(observed_lab(P11), interference(modulator_token=f"{SCU}_12"))
    assert by_token.tables == measure(observed_lab(P11), interference()).tables


def test_observed_pairs_agree_with_sets_counted_one_by_one() -> None:
    rng = np.random.default_rng(5)
    rows = []
    for value in rng.normal(size=400):
        tokens = [f"{SCU}_{rung}" for rung in LADDER[: rng.integers(0, 6)] if rng.random() < 0.7]
        rows.append((float(value) + len(tokens), tokens, str(rng.integers(1, 4))))
    result = measure(observed_lab(rows), interference())

    def delta(low: int, high: int, weapon: str | None = None) -> float:
        of = [(v, set(t)) for v, t, w in rows if f"{SCU}_{high}" in t and weapon in (None, w)]
        both, alone = ([v for v, t in of if (f"{SCU}_{low}" in t) is there] for there in (True, False))
        return sum(both) / len(both) - sum(alone) / len(alone)

    pairs = rows_of(result, "interference_matrix", "low_rung", "high_rung", "delta")
    assert len(pairs) == 10
    assert [d for *_, d in pairs] == sorted(d for *_, d in pairs)
    for low, high, found in pairs:
        assert found == pytest.approx(delta(low, high), abs=1e-4)
    groups = rows_of(result, "weapon_interference", "weapon", "low_rung", "high_rung", "delta")
    assert {weapon for weapon, *_ in groups} == {"1", "2", "3"}
    for weapon, low, high, found in groups:
        assert found == pytest.approx(delta(low, high, weapon), abs=1e-4)


def test_the_strongest_reduction_is_shown_with_its_most_active_contexts() -> None:
    rows = [(0.6 + i / 100, ALONE, "1") for i in range(5)] + [(0.4 - i / 100, BOTH, "2") for i in range(5)]
    shown = rows_of(measure(observed_lab(rows), interference()), "interference_examples", "type", "activation", "family_tokens", "weapon")
    assert shown == [
        *(("alone", value, f"{SCU}_29", "1") for value in (0.64, 0.63, 0.62)),
        *(("with_low", value, f"{SCU}_3 + {SCU}_29", "2") for value in (0.4, 0.39, 0.38)),
    ]


def masked(tokens: frozenset[str], group: str | None = None) -> float:
    """Seeing SCU 3 beside SCU 29 takes away 0.5, more so for weapon 2; a lower token of another family adds 0.1."""
    dampened = {f"{SCU}_3", f"{SCU}_29"} <= tokens
    return 2 + len(tokens) / 100 - (1.0 if group == "2" else 0.5) * dampened + 0.1 * ("run_speed_up_3" in tokens)


def test_the_lower_token_is_put_in_and_taken_out_of_the_same_contexts() -> None:
    result = measure(computed_lab(masked, [ALONE, BOTH, [*BOTH, f"{SCU}_12"], []], BUILDS), interference(mode="interventional", min_n=1))
    found = {(high, low): rest for high, low, *rest in rows_of(result, "interference_matrix", "high_rung", "low_rung", "delta", "n_alone")}
    assert found == {(29, 3): [-0.49, 1], (29, 6): [0.01, 3], (29, 12): [0.01, 2], (12, 3): [-0.49, 0], (12, 6): [0.01, 1]}
    missing = rows_of(result, "unmeasured_pairs", "high_rung", "status")
    assert missing == [(6, "no data"), *[(57, "no data")] * 4]
    assert result.mode == "interventional"
    assert any(text.startswith("there is no control") for text in result.diagnostics.warnings)


def test_the_control_is_the_same_treatment_of_another_family_in_the_same_contexts() -> None:
    contexts = [[*BOTH, "run_speed_up_57"], [*ALONE, "run_speed_up_3", "run_speed_up_6"], ALONE]
    result = measure(computed_lab(masked, contexts, BUILDS), interference(mode="interventional", min_n=1, rungs=[3, 29]))
    assert rows_of(result, "interference_matrix", "delta", "control_delta", "adjusted_delta", "adjusted_n") == [(-0.49, 0.11, -0.6, 2)]
    estimate = result.estimates["aggregates/min_delta"]
    assert (estimate.null, estimate.null_value) == ("the same edit of other families", pytest.approx(0.11))
    assert estimate.p == 1.0  # one other family does not say how much families differ


def test_every_group_with_enough_contexts_has_a_row() -> None:
    from mlinterp.subjects.token_sets.table import TokenContext

    contexts = [TokenContext(frozenset([*ALONE, *more]), group) for more, group in itertools.product(((), ("comeback",)), ("1", "2", "3"))]
    lab = computed_lab(masked, [*contexts, TokenContext(frozenset(ALONE))], BUILDS)
    result = measure(lab, interference(mode="interventional", min_n=2, rungs=[3, 29]))
    assert rows_of(result, "weapon_interference", "weapon", "delta", "n") == [("2", -0.99, 2), ("1", -0.49, 2), ("3", -0.49, 2)]


def test_a_context_that_may_not_hold_two_rungs_is_skipped_and_counted() -> None:
    contexts = [("alpha_2",), ("alpha_3",), ("alpha_2", "gamma")]
    result = measure(computed_lab(lambda tokens, group: 1.0, contexts), interference(family="alpha", mode="interventional", min_n=1))
    assert result.tables["interference_matrix"].rows == []
    assert result.diagnostics.n_contexts_skipped == 4
    assert "one_rung_per_family: 4 contexts broke it and were skipped" in result.diagnostics.warnings


def test_what_cannot_be_answered_is_said() -> None:
    with pytest.raises(ExperimentError, match="family 'special_charge_up' occurs in none of 2 contexts"):
        measure(observed_lab([(0.1, ["comeback"]), (0.2, [])]), interference())
    with pytest.raises(ExperimentError, match="family 'special_charge_up' occurs in none of 1 contexts"):
        measure(computed_lab(masked, [["comeback"]], BUILDS), interference(mode="interventional"))
    with pytest.raises(ExperimentError, match=r"latent 0 has the same activation, 0.5, in all 2 contexts"):
        measure(observed_lab([(0.5, ALONE), (0.5, BOTH)]), interference())
    with pytest.raises(ValidationError, match="give family, or modulator_token whose family is meant"):
        InterferenceVariables.model_validate({})
    lab = observed_lab(P11)
    for given, text in (
        ({"family": "comeback"}, "variables.family: 'comeback' is binary; an ordered family"),
        ({"rungs": [3, 7]}, f"variables.rungs: names fewer than two rungs of '{SCU}'; its rungs: 3, 6"),
        ({"stable_tokens": [f"{SCU}_3"]}, r"variables.stable_tokens\[0\]: 'special_charge_up_3' cannot stay"),
        ({"modulator_token": f"{SCU}_4"}, f"variables.modulator_token: unknown token '{SCU}_4'.*did you mean '{SCU}_6'"),
    ):
        with pytest.raises(SpecError, match=text):
            check_interference(lab.spec, interference(**given), lab.package)


def test_a_result_round_trips_through_json() -> None:
    result = measure(observed_lab(P11), interference())
    assert ExperimentResult.model_validate_json(result.model_dump_json(by_alias=True)) == result
