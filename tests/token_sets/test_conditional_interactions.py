"""`conditional_interactions`: hand-solved cases, brute force over Python sets, and stated outcomes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import stats

from mlinterp.errors import ExperimentError
from mlinterp.experiments.token_sets.conditional_interactions import ConditionalVariables
from mlinterp.experiments.token_sets.conditional_interactions_measure import effect_table, measure
from mlinterp.reports.plots import draw_all
from mlinterp.result import ExperimentResult
from mlinterp.subjects.token_sets.constraints import of_each
from mlinterp.token_sets.lab import Lab
from tests.support.token_lab import TOY_BASES, computed_lab, flat, observed_lab, toy

ABCD = flat("a", "b", "c", "d")


def under(modulator: str, **given: object) -> ConditionalVariables:
    return ConditionalVariables.model_validate({"modulator_token": modulator, "min_n": 1, **given})


def only_row(result: ExperimentResult) -> dict[str, object]:
    (row,) = result.tables["conditional_interactions"].rows
    return row


def test_a_modulator_that_only_pushes_towards_the_floor_is_flagged() -> None:
    result = measure(computed_lab(toy, TOY_BASES), under("delta", candidate_tokens=["alpha_2", "gamma"], controls=0))
    row = only_row(result)
    # on {} and on {delta}, stripped: 2 with delta, 3 without; beside beta_2: 3 and 3
    assert (row["interaction_without"], row["interaction_with"]) == (3.0, pytest.approx(7 / 3))
    assert row["interaction"] == pytest.approx(-2 / 3)
    assert row["std_error"] == pytest.approx(stats.sem([-1.0, 0.0, -1.0]))
    assert (row["pre_interaction"], row["floor_artefact"], row["n"]) == (0.0, True, 3)
    assert [found["pair"] for found in result.tables["redundancies"].rows] == ["alpha_2 × gamma"]
    assert result.aggregates.custom["modulator"] == "delta"
    assert result.mode == "interventional"


def test_a_product_of_three_is_a_three_way_interaction() -> None:
    lab = computed_lab(lambda tokens, _: 1.0 + ("a" in tokens) + 2 * ({"a", "b", "c"} <= tokens), [(), ("d",), ("a", "b")], ABCD)
    result = measure(lab, under("c", candidate_tokens=["a", "b"]))
    row = only_row(result)
    assert (row["interaction_without"], row["interaction_with"], row["interaction"]) == (0.0, 2.0, 2.0)
    assert (row["pre_interaction"], row["floor_artefact"]) == (2.0, False)
    assert (row["control_interaction"], row["adjusted_interaction"], row["control_p"]) == (0.0, 2.0, 0.5)  # d, the only other, does nothing
    assert result.aggregates.custom["max_synergy"] == 2.0
    assert ExperimentResult.model_validate_json(result.model_dump_json(by_alias=True)) == result


def test_every_pair_equals_a_loop_over_python_sets() -> None:
    rng = np.random.default_rng(5)
    bases = [{token for token in ("alpha_3", "beta_1", "gamma", "delta") if rng.random() < 0.5} for _ in range(10)]
    result = measure(computed_lab(toy, bases), under("gamma", n_candidates=3, controls=0))
    rows = result.tables["conditional_interactions"].rows
    assert len(rows) == 3
    for row in rows:
        tokens = (row["token_a"], row["token_b"], "gamma")
        own = {token.split("_")[0] for token in tokens}
        found = []
        for base in bases:
            stripped = {token for token in base if token.split("_")[0] not in own}
            total = 0.0
            for size in range(4):
                total += sum(
                    (-1) ** (3 - size) * max(toy(frozenset(stripped | set(held))), 0) for held in itertools.combinations(tokens, size)
                )
            found.append(total)
        assert row["interaction"] == pytest.approx(np.mean(found))
        assert row["std_error"] == pytest.approx(stats.sem(found))


def test_observed_contexts_give_the_triple_difference() -> None:
    rng = np.random.default_rng(0)
    cells = [frozenset(held) for size in range(4) for held in itertools.combinations("abc", size)]
    rows = [(3.0 + 2 * ({"a", "b", "c"} <= cell) + ("a" in cell) + float(rng.normal()) / 10, cell) for cell in cells for _ in range(12)]
    result = measure(observed_lab(rows, ABCD), under("c", candidate_tokens=["a", "b"], mode="observational", min_n=5))
    means = {cell: np.mean([value for value, tokens in rows if tokens == cell]) for cell in cells}
    variances = [np.var([value for value, tokens in rows if tokens == cell], ddof=1) / 12 for cell in cells]
    row = only_row(result)
    assert row["interaction"] == pytest.approx(sum((-1) ** (3 - len(cell)) * mean for cell, mean in means.items()))
    assert row["std_error"] == pytest.approx(np.sqrt(sum(variances)))
    assert row["interaction"] == pytest.approx(row["interaction_with"] - row["interaction_without"])
    assert (row["n"], row["n_both"], row["status"]) == (12, 12, "ok")
    assert result.mode == "observational"


def test_a_combination_that_breaks_a_hard_constraint_is_skipped_and_counted() -> None:
    lab = computed_lab(toy, TOY_BASES)
    lab.constraints = [of_each("no_gamma_with_delta", "x", "hard", lambda c: "both" if {"gamma", "delta"} <= c.tokens else None)]
    result = measure(lab, under("delta", candidate_tokens=["alpha_2", "gamma"], controls=0))
    row = only_row(result)
    assert (row["interaction"], row["n"], row["status"]) == (None, 0, "no data")
    assert (row["interaction_without"], row["interaction_with"]) == (None, None)
    assert result.diagnostics.n_contexts_skipped == 6
    assert result.aggregates.max_delta is None


def test_too_small_a_cell_gives_no_number() -> None:
    rows = [(float(at), tokens) for at, tokens in enumerate(["", "a", "b", "c", "ab", "ac", "bc", "abc", "abc"])]
    row = only_row(measure(observed_lab(rows, ABCD), under("c", candidate_tokens=["a", "b"], mode="observational", min_n=2)))
    assert (row["interaction"], row["n"], row["status"]) == (None, 1, "too few")


def test_the_modulator_is_required_and_cannot_be_held_fixed() -> None:
    with pytest.raises(ValidationError, match="modulator_token"):
        ConditionalVariables.model_validate({})
    with pytest.raises(ExperimentError, match="delta cannot be there or not: stable_tokens holds its family fixed"):
        measure(computed_lab(toy, TOY_BASES), under("delta", stable_tokens=["delta"]))
    with pytest.raises(ExperimentError, match="needs tokens of two families, and there are: gamma"):
        measure(computed_lab(toy, TOY_BASES), under("delta", candidate_tokens=["gamma", "delta"]))


@pytest.mark.parametrize("mode", ["observational", "interventional"])
def test_its_effect_table_repeats_the_interactions_and_the_figure_is_drawn(mode: str) -> None:
    bases = [frozenset(held) for size in range(4) for held in itertools.combinations("abc", size)] * 2

    def lab() -> Lab:
        return computed_lab(lambda tokens, _: 0.5 * len(tokens) + 2 * ({"a", "b", "c"} <= tokens), bases, ABCD)

    asked = under("c", candidate_tokens=["a", "b"], mode=mode)
    result = measure(lab(), asked)
    assert effect_table(lab(), asked).values.tolist() == pytest.approx([only_row(result)["interaction"]]) == [2.0]
    assert draw_all(result)["strongest"].startswith(b"\x89PNG")
