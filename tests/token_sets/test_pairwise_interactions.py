"""`pairwise_interactions`: the worked cases, brute force over Python sets, and stated outcomes where there is nothing to combine."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from mlinterp.errors import ExperimentError
from mlinterp.experiments.token_sets.pairwise_interactions import InteractionVariables
from mlinterp.experiments.token_sets.pairwise_interactions_measure import effect_table, measure
from mlinterp.reports.plots import draw_all
from mlinterp.result import ExperimentResult
from mlinterp.subjects.token_sets.constraints import of_each
from mlinterp.subjects.token_sets.vocabulary import Family, Vocabulary
from tests.support.token_lab import BUILDS, TOY, TOY_BASES, computed_lab, flat, observed_lab, toy

ABC = flat("a", "b", "c")


def pairs(**given: object) -> InteractionVariables:
    return InteractionVariables.model_validate({"min_n": 1, **given})


def rows_of(result: ExperimentResult, table: str, *columns: str) -> list[tuple[object, ...]]:
    return [tuple(round(v, 4) if isinstance(v, float) else v for v in (row[c] for c in columns)) for row in result.tables[table].rows]


@pytest.mark.parametrize("min_n", [1, 2])
def test_the_worked_synergy_is_found_with_both_standard_errors(min_n: int) -> None:
    lab = computed_lab(toy, TOY_BASES)
    result = measure(lab, pairs(candidate_tokens=["alpha_2", "gamma"], min_n=min_n))
    columns = ("token_a", "token_b", "interaction", "std_error", "std_error_population", "n")
    assert rows_of(result, "synergies", *columns) == [("alpha_2", "gamma", 2.6667, 0.3333, 0.2722, 3)]
    assert result.tables["redundancies"].rows == []
    assert result.mode == "interventional"
    assert result.aggregates.custom["max_synergy"] == pytest.approx(8 / 3)
    assert result.aggregates.custom["max_redundancy"] is None
    assert result.estimates["aggregates/max_delta"].value == pytest.approx(8 / 3)
    assert (result.diagnostics.relu_floor_rate, result.diagnostics.relu_floor_detected) == (1.0, True)
    assert ExperimentResult.model_validate_json(result.model_dump_json(by_alias=True)) == result


def test_a_synergy_that_clipping_made_is_flagged() -> None:
    lab = computed_lab(lambda tokens, _: ("a" in tokens) + ("b" in tokens) - 1.0, [(), ("c",), ("a",)], ABC)
    result = measure(lab, pairs(candidate_tokens=["a", "b"]))
    assert rows_of(result, "synergies", "interaction", "pre_interaction", "floor_artefact") == [(1.0, 0.0, True)]
    assert any("clipping at the ReLU floor" in text for text in result.diagnostics.warnings)


def test_an_additive_latent_has_no_interaction() -> None:
    lab = computed_lab(lambda tokens, _: 5.0 + 2 * ("a" in tokens) - ("b" in tokens), [(), ("c",), ("a",)], ABC)
    result = measure(lab, pairs(candidate_tokens=["a", "b"]))
    assert rows_of(result, "pair_interactions", "interaction", "floor_artefact") == [(0.0, False)]
    assert result.tables["synergies"].rows == result.tables["redundancies"].rows == []


def test_every_default_pair_equals_a_loop_over_python_sets() -> None:
    rng = np.random.default_rng(1)
    bases = [{token for token in ("alpha_3", "beta_1", "gamma", "delta") if rng.random() < 0.5} for _ in range(12)]
    lab = computed_lab(toy, bases)
    result = measure(lab, pairs(n_candidates=4, controls=3))
    assert len(result.tables["pair_interactions"].rows) == 6

    def f(tokens: frozenset[str]) -> float:
        return max(toy(tokens), 0.0)

    for row in result.tables["pair_interactions"].rows:
        i, j = row["token_a"], row["token_b"]
        own = {i.split("_")[0], j.split("_")[0]}
        stripped = [frozenset(token for token in base if token.split("_")[0] not in own) for base in bases]
        found = np.array([f(base | {i, j}) - f(base | {i}) - f(base | {j}) + f(base) for base in stripped])
        assert row["interaction"] == pytest.approx(found.mean())
        assert row["std_error"] == pytest.approx(stats.sem(found))
        assert row["n"] == 12


def test_the_control_is_what_random_pairs_do_on_the_same_bases() -> None:
    lab = computed_lab(toy, TOY_BASES)
    result = measure(lab, pairs(candidate_tokens=["alpha_2", "gamma"], controls=200))
    row = result.tables["pair_interactions"].rows[0]

    def f(*tokens: str) -> float:
        return max(toy(frozenset(tokens)), 0.0)

    families = {"alpha": ("alpha_1", "alpha_2", "alpha_3"), "beta": ("beta_1", "beta_2"), "gamma": ("gamma",), "delta": ("delta",)}
    tokens = [(name, token) for name, held in families.items() for token in held]
    means = []
    for at, (family, i) in enumerate(tokens):
        for other, j in tokens[at + 1 :]:
            if family == other or {i, j} == {"alpha_2", "gamma"}:
                continue
            stripped = [[token for token in base if token.split("_")[0] not in (family, other)] for base in TOY_BASES]
            means.append(np.mean([f(*base, i, j) - f(*base, i) - f(*base, j) + f(*base) for base in stripped]))
    assert row["control_interaction"] == pytest.approx(np.mean(means))
    assert row["adjusted_interaction"] == pytest.approx(8 / 3 - np.mean(means))
    assert row["control_p"] == pytest.approx((1 + sum(abs(mean) >= 8 / 3 - 1e-9 for mean in means)) / (1 + len(means)))


def test_a_corner_that_breaks_a_hard_constraint_takes_its_base_out_and_is_counted() -> None:
    lab = computed_lab(toy, TOY_BASES)
    lab.constraints = [of_each("no_gamma_with_delta", "x", "hard", lambda c: "both" if {"gamma", "delta"} <= c.tokens else None)]
    result = measure(lab, pairs(candidate_tokens=["alpha_2", "gamma"], controls=0))
    assert rows_of(result, "synergies", "interaction", "n") == [(3.0, 2)]
    assert result.diagnostics.n_contexts_skipped == 2
    assert "no_gamma_with_delta: both" in result.diagnostics.constraint_violations


def co_occurring(*parts: tuple[int, str]) -> list[tuple[float, str]]:
    rng = np.random.default_rng(0)
    return [(1.0 + float(rng.random()), tokens) for n, tokens in parts for _ in range(n)]


@pytest.mark.parametrize(
    ("parts", "table", "interaction"),
    [(((8, "ab"), (2, "ac"), (2, "b"), (8, "c")), "synergies", 0.6), (((5, "ab"), (10, "a"), (5, "b")), "redundancies", -0.3333)],
)
def test_the_worked_co_occurrences_are_found(parts: tuple[tuple[int, str], ...], table: str, interaction: float) -> None:
    result = measure(observed_lab(co_occurring(*parts), ABC), pairs(mode="observational", min_n=5))
    assert rows_of(result, table, "token_a", "token_b", "interaction") == [("a", "b", interaction)]
    assert result.aggregates.custom["n_pairs_analyzed"] == 1
    assert result.mode == "observational"


def test_observed_activations_give_the_difference_of_differences() -> None:
    rng = np.random.default_rng(4)
    rows = [
        (1.0 + 2 * ("a" in tokens) + 3 * ("a" in tokens and "b" in tokens) + float(rng.normal()) / 10, tokens)
        for tokens in ("", "a", "b", "ab")
        for _ in range(20)
    ]
    result = measure(observed_lab(rows, ABC), pairs(mode="observational", candidate_tokens=["a", "b"]))
    (row,) = result.tables["pair_interactions"].rows
    cells = {name: np.array([value for value, tokens in rows if tokens == name]) for name in ("", "a", "b", "ab")}
    wanted = cells["ab"].mean() - cells["a"].mean() - cells["b"].mean() + cells[""].mean()
    assert row["activation_interaction"] == pytest.approx(wanted)
    assert row["std_error"] == pytest.approx(np.sqrt(sum(values.var(ddof=1) / 20 for values in cells.values())))
    assert row["low"] < 3.0 < row["high"]
    assert (row["n"], row["status"], row["interaction"]) == (20, "ok", 0.0)
    assert row["cooccurrence_p"] == pytest.approx(1.0)
    assert result.estimates["aggregates/max_delta"].value == row["activation_interaction"]


def test_the_matrix_has_every_pair_in_both_orders() -> None:
    result = measure(computed_lab(toy, TOY_BASES), pairs(candidate_tokens=["alpha_2", "gamma", "delta"]))
    cells = {(row["token_a"], row["token_b"]): row["interaction"] for row in result.tables["interaction_matrix"].rows}
    assert [cells[name, name] for name in ("alpha_2", "gamma", "delta")] == [None] * 3
    assert len(cells) == 9
    assert all(cells[b, a] == value for (a, b), value in cells.items())
    assert cells["gamma", "alpha_2"] == pytest.approx(8 / 3)


def test_signs_that_noise_gave_are_no_artefact_of_the_floor() -> None:
    rng = np.random.default_rng(0)
    contexts = [frozenset(token for token in "abcdefgh" if rng.random() < 0.5) for _ in range(400)]
    noise = dict(zip(contexts, rng.normal(size=400), strict=True))
    lab = computed_lab(lambda tokens, _: float(noise[tokens]), contexts, flat(*"abcdefgh"))
    rows = measure(lab, pairs(mode="observational")).tables["pair_interactions"].rows
    flipped = [row for row in rows if row["activation_interaction"] * row["pre_interaction"] < 0]
    assert flipped
    assert not any(row["floor_artefact"] for row in flipped if row["low"] < 0.0 < row["high"])


def test_co_occurrence_has_fishers_p_value_doubled() -> None:
    result = measure(observed_lab(co_occurring((8, "ab"), (2, "ac"), (2, "b"), (8, "c")), ABC), pairs(mode="observational", min_n=5))
    row = result.tables["synergies"].rows[0]
    one_sided = [stats.fisher_exact([[8, 2], [2, 8]], alternative=side).pvalue for side in ("greater", "less")]
    assert row["cooccurrence_p"] == pytest.approx(2 * min(one_sided))
    assert (row["activation_interaction"], row["status"]) == (None, "too few")
    few = [row for row in result.tables["pair_interactions"].rows if row["n_both"] < 5]
    assert [(row["interaction"], row["cooccurrence_p"] is None) for row in few] == [(None, False)] * 2


THERMOMETER = [
    (float(at % 7), ["special_charge_up_3", "special_charge_up_6"][: 1 + at % 2] + ["comeback"] * (at % 3 == 0)) for at in range(40)
]


def test_two_rungs_of_one_family_are_no_pair_and_families_count_once() -> None:
    asked = {"candidate_tokens": ["special_charge_up_3", "special_charge_up_6", "comeback"]}
    result = measure(observed_lab(THERMOMETER, BUILDS), pairs(mode="observational", **asked))
    assert {(row["token_a"], row["token_b"]) for row in result.tables["pair_interactions"].rows} == {
        ("special_charge_up_3", "comeback"),
        ("special_charge_up_6", "comeback"),
    }
    result = measure(observed_lab(THERMOMETER, BUILDS), pairs(mode="observational", family_mode=True, **asked))
    assert [row["token_a"] for row in result.tables["pair_interactions"].rows] == ["special_charge_up"]


def test_a_family_is_set_to_the_rung_that_it_most_often_has() -> None:
    vocabulary = Vocabulary((Family("x", rungs=(1, 2, 3)), Family("y", kind="binary")))
    lab = computed_lab(
        lambda tokens, _: len([t for t in tokens if t[0] == "x"]) * ("y" in tokens), [("x_1", "x_2"), ("x_1", "x_2"), ("x_1",)], vocabulary
    )
    result = measure(lab, pairs(candidate_tokens=["x", "y"], controls=0))
    assert rows_of(result, "synergies", "token_a", "interaction") == [("x", 2.0)]


def test_candidates_default_to_the_most_influential_token_of_each_family() -> None:
    contexts = [set(tokens) for tokens in (("alpha_3",), ("alpha_3", "beta_1"), ("alpha_2",), ("beta_1", "delta"), ("gamma",), ())] * 3
    lab = computed_lab(lambda tokens, _: 3.0 * ("alpha_3" in tokens) + 1.0 + 0.5 * ("beta_1" in tokens), contexts)
    result = measure(lab, pairs(n_candidates=2, controls=0))
    assert rows_of(result, "pair_interactions", "token_a", "token_b") == [("alpha_3", "beta_1")]


def test_stable_tokens_are_held_and_never_varied() -> None:
    lab = computed_lab(toy, TOY_BASES)
    result = measure(lab, pairs(candidate_tokens=["alpha_2", "gamma", "beta_2"], stable_tokens=["beta_1"], controls=5))
    assert {(row["token_a"], row["token_b"]) for row in result.tables["pair_interactions"].rows} == {("alpha_2", "gamma")}
    assert "beta_2 is not varied: its family is held fixed" in result.diagnostics.warnings


def test_too_few_bases_give_no_number() -> None:
    result = measure(computed_lab(toy, TOY_BASES), pairs(candidate_tokens=["alpha_2", "gamma"], min_n=4))
    (row,) = result.tables["pair_interactions"].rows
    assert (row["interaction"], row["n"], row["status"]) == (None, 3, "too few")
    assert result.aggregates.max_delta is None
    assert "aggregates/max_delta" not in result.estimates


def test_what_cannot_be_combined_is_said() -> None:
    with pytest.raises(ExperimentError, match="needs tokens of two families, and there are: alpha_1, alpha_2"):
        measure(computed_lab(toy, TOY_BASES), pairs(candidate_tokens=["alpha_1", "alpha_2"]))
    with pytest.raises(ExperimentError, match="same activation"):
        measure(observed_lab([(1.0, "ab"), (1.0, "a")], ABC), pairs(mode="observational"))


@pytest.mark.parametrize("mode", ["observational", "interventional"])
def test_its_effect_table_repeats_the_interactions(mode: str) -> None:
    bases = [base for base in ((), ("alpha_2",), ("gamma",), ("alpha_2", "gamma"), ("beta_2",), ("alpha_2", "beta_2")) for _ in range(2)]
    asked = pairs(mode=mode, candidate_tokens=["alpha_2", "gamma"])
    table = effect_table(computed_lab(toy, bases), asked)
    row = measure(computed_lab(toy, bases), asked).tables["pair_interactions"].rows[0]
    assert table.values.tolist() == pytest.approx([row["activation_interaction" if mode == "observational" else "interaction"]])
    assert table.labels == ("alpha_2 × gamma",)


@pytest.mark.parametrize("mode", ["observational", "interventional"])
def test_figures_are_drawn_from_the_tables(mode: str) -> None:
    bases = [{token for token in TOY.tokens if rng.random() < 0.4} for rng in [np.random.default_rng(2)] for _ in range(60)]
    result = measure(computed_lab(toy, [one for one in bases if sum(t.startswith("alpha") for t in one) < 2]), pairs(mode=mode))
    assert set(draw_all(result)) == {"pair_interactions", "strongest"}
