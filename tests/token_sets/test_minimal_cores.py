"""`minimal_cores`: the worked cases of both modes, brute force over Python sets, greedy against exhaustive, and stated outcomes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from mlinterp.errors import ExperimentError
from mlinterp.experiments.token_sets import minimal_cores_search
from mlinterp.experiments.token_sets.minimal_cores import MinimalCoreVariables
from mlinterp.experiments.token_sets.minimal_cores_measure import measure
from mlinterp.reports.plots import draw_all
from mlinterp.result import ExperimentResult
from mlinterp.subjects.token_sets.constraints import of_each
from mlinterp.subjects.token_sets.table import TokenContext
from mlinterp.subjects.token_sets.vocabulary import Family, Vocabulary
from tests.support.token_lab import TOY_BASES, computed_lab, flat, observed_lab, toy

WHOLE = ("alpha_3", "beta_2", "gamma")


def cores(**given: object) -> MinimalCoreVariables:
    return MinimalCoreVariables.model_validate(given)


def core_of(result: ExperimentResult) -> tuple[object, ...]:
    (row,) = result.tables["minimal_cores"].rows
    return row["minimal_tokens"], round(row["retention_ratio"], 4)


@pytest.mark.parametrize("exhaustive", [12, 0])
@pytest.mark.parametrize(
    ("given", "tokens", "retention"),
    [
        ({"retention_threshold": 0.3}, "alpha_3", 0.3333),
        ({"retention_threshold": 0.5}, "alpha_3 + gamma", 0.8333),
        ({"retention_threshold": 0.8}, "alpha_3 + gamma", 0.8333),
        ({"retention_threshold": 0.9}, "alpha_3 + beta_2 + gamma", 1.0),
        ({"retention_threshold": 0.5, "clamp_families": ["beta"]}, "alpha_3 + beta_2", 0.5),
    ],
)
def test_the_worked_context_has_its_cores(
    given: dict[str, object], tokens: str, retention: float, exhaustive: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(minimal_cores_search, "EXHAUSTIVE", exhaustive)
    result = measure(computed_lab(toy, [WHOLE]), cores(**given))
    assert core_of(result) == (tokens, retention)
    row = result.tables["minimal_cores"].rows[0]
    assert (row["original_activation"], row["irreducible"]) == (6.0, True)
    assert row["search"] == ("exhaustive" if exhaustive else "greedy")
    assert result.mode == "interventional"


VOCABULARY = flat(*"abcdefg")


def odd(tokens: frozenset[str], group: str | None = None) -> float:
    """Return a latent of which greedy elimination does not always find the smallest cores."""
    return 0.2 * len(tokens) + 2.0 * ({"a", "b"} <= tokens) + 1.5 * ({"c", "d", "e"} <= tokens) - 0.7 * ("f" in tokens)


def brute(context: frozenset[str], threshold: float) -> tuple[int, float, int, float]:
    """Return the size of the smallest subsets that keep enough, the most that one keeps, how many do, and the mean of that size."""
    whole = max(odd(context), 0.0)
    for size in range(len(context) + 1):
        kept = [max(odd(frozenset(subset)), 0.0) / whole for subset in itertools.combinations(sorted(context), size)]
        enough = [share for share in kept if share >= threshold - 1e-6]
        if enough:
            return size, max(enough), len(enough), float(np.mean(kept))
    raise AssertionError("the whole context keeps everything")


@pytest.mark.parametrize("threshold", [0.25, 0.5, 0.75, 1.0])
def test_exhaustive_cores_are_the_smallest_that_loops_over_sets_find(threshold: float) -> None:
    rng = np.random.default_rng(0)
    contexts = [frozenset(token for token in "abcdefg" if rng.random() < 0.7) for _ in range(25)]
    result = measure(computed_lab(odd, contexts, VOCABULARY), cores(retention_threshold=threshold))
    rows = result.tables["minimal_cores"].rows
    assert len(rows) == len({context for context in contexts if odd(context) > 0})
    for row in rows:
        size, best, alike, control = brute(frozenset(row["original_tokens"].split(" + ")), threshold)
        assert (row["size"], row["n_alike"]) == (size, alike)
        assert (row["retention_ratio"], row["control_retention"]) == (pytest.approx(best), pytest.approx(control))


def test_greedy_cores_are_irreducible_but_need_not_be_smallest(monkeypatch: pytest.MonkeyPatch) -> None:
    contexts = [frozenset(tokens) for tokens in ("abcde", "abcdefg", "cdefg", "abc", "abfg")]
    smallest = {row["original_tokens"]: row["size"] for row in _rows(contexts)}
    monkeypatch.setattr(minimal_cores_search, "EXHAUSTIVE", 0)
    greedy = {row["original_tokens"]: row for row in _rows(contexts)}
    assert all(row["irreducible"] for row in greedy.values())
    assert all(row["size"] >= smallest[name] for name, row in greedy.items())
    for name, row in greedy.items():
        whole, kept = max(odd(frozenset(name.split(" + "))), 0.0), set(row["minimal_tokens"].split(" + "))
        assert max(odd(frozenset(kept)), 0.0) >= 0.4 * whole - 1e-6
        assert all(max(odd(frozenset(kept - {token})), 0.0) < 0.4 * whole for token in kept)


def _rows(contexts: list[frozenset[str]]) -> list[dict[str, object]]:
    return measure(computed_lab(odd, contexts, VOCABULARY), cores(retention_threshold=0.4)).tables["minimal_cores"].rows


def test_a_context_with_many_families_is_searched_greedily_and_says_so() -> None:
    names = [f"t{number}" for number in range(15)]
    lab = computed_lab(lambda tokens, _: 1.0 * ({"t3", "t7"} <= tokens) + 0.01 * len(tokens), [names, names[:8]], flat(*names))
    result = measure(lab, cores(retention_threshold=0.8))
    found = {row["original_size"]: row for row in result.tables["minimal_cores"].rows}
    assert (found[15]["search"], found[15]["minimal_tokens"], found[15]["n_alike"]) == ("greedy", "t3 + t7", None)
    assert (found[8]["search"], found[8]["minimal_tokens"]) == ("exhaustive", "t3 + t7")
    assert any("1 of 2 contexts were too large to try every subset" in text for text in result.diagnostics.warnings)
    (pair,) = [row for row in result.tables["common_cores"].rows if row["size"] == 2]
    assert (pair["tokens"], pair["count"], pair["share"], pair["n_whole"]) == ("t3 + t7", 2, 1.0, 2)
    assert (result.aggregates.custom["top_core"], result.aggregates.custom["mean_core_size"]) == ("t3 + t7", 2.0)
    assert result.metrics["effect/adjusted_retention"] > 0.5
    assert ExperimentResult.model_validate_json(result.model_dump_json(by_alias=True)) == result


def noise(tokens: frozenset[str], group: str | None = None) -> float:
    """Return a number that no part of a context explains: what holds in one group says nothing of another."""
    assert group is not None
    return float(np.random.default_rng([int(group), *sorted(map(ord, tokens))]).random()) * len(tokens)


def test_cores_of_a_latent_without_structure_keep_no_more_than_chance_elsewhere() -> None:
    contexts = [TokenContext(frozenset("abcdef"), str(group)) for group in range(60)]
    lab = computed_lab(noise, contexts, VOCABULARY, groups={str(group): {} for group in range(60)})
    result = measure(lab, cores(retention_threshold=0.5))
    assert all(row["retention_ratio"] > row["control_retention"] for row in result.tables["minimal_cores"].rows)  # by choice
    retention, beyond = result.estimates["aggregates/mean_retention"], result.estimates["effect/adjusted_retention"]
    assert retention.p == beyond.p > 0.05
    assert beyond.low < 0.0 < beyond.high


def test_what_a_context_keeps_of_another_core_equals_a_loop_over_python_sets() -> None:
    contexts = [frozenset(tokens) for tokens in ("abcde", "abcdefg", "cdefg", "abfg", "bcg")]
    rows = measure(computed_lab(odd, contexts, VOCABULARY), cores(retention_threshold=0.4, controls=1000)).tables["minimal_cores"].rows
    for at, row in enumerate(rows):
        whole = frozenset(row["original_tokens"].split(" + "))
        others = [set(other["minimal_tokens"].split(" + ")) for other in [*rows[at + 1 :], *rows[:at]]]
        kept = whole & next((core for core in others if core <= whole), others[0])
        assert row["transfer_retention"] == pytest.approx(max(odd(kept), 0.0) / max(odd(whole), 0.0))
        alike = [max(odd(frozenset(part)), 0.0) / odd(whole) for part in itertools.combinations(sorted(whole), len(kept))]
        assert row["transfer_control"] == pytest.approx(np.mean(alike), abs=0.05)


def test_a_single_core_is_compared_with_nothing() -> None:
    result = measure(computed_lab(toy, [WHOLE]), cores())
    row = result.tables["minimal_cores"].rows[0]
    assert (row["transfer_retention"], row["transfer_control"]) == (None, None)
    assert result.estimates["aggregates/mean_retention"].p is None
    assert "effect/adjusted_retention" not in result.metrics


def test_a_thermometer_goes_as_a_whole() -> None:
    vocabulary = Vocabulary((Family("x", rungs=(1, 2, 3)), Family("y", kind="binary")))
    lab = computed_lab(lambda tokens, _: float(sum(t[0] == "x" for t in tokens)), [("x_1", "x_2", "x_3", "y")], vocabulary)
    assert core_of(measure(lab, cores(retention_threshold=0.3))) == ("x_3", 1.0)


def test_an_activation_that_needs_nothing_has_an_empty_core_and_a_warning() -> None:
    result = measure(computed_lab(lambda tokens, _: 2.0 + ("a" in tokens), ["ab"], VOCABULARY), cores())
    assert core_of(result) == ("(empty)", 0.6667)
    assert any("in 1 of 1 contexts enough of the activation is left without any token" in text for text in result.diagnostics.warnings)


def test_a_part_that_breaks_a_hard_constraint_is_no_core() -> None:
    lab = computed_lab(toy, [WHOLE])
    lab.constraints = [
        of_each("gamma_needs_beta", "x", "hard", lambda c: "bare" if "gamma" in c.tokens and "beta_2" not in c.tokens else None)
    ]
    assert core_of(measure(lab, cores(retention_threshold=0.8))) == ("alpha_3 + beta_2 + gamma", 1.0)
    assert lab.diagnostics.n_contexts_skipped > 0


def test_excluded_families_are_taken_out_first() -> None:
    result = measure(computed_lab(toy, [WHOLE, ("beta_2", "gamma")]), cores(exclude_families=["gamma"]))
    row = result.tables["minimal_cores"].rows[0]
    assert (row["original_tokens"], row["original_activation"]) == ("alpha_3 + beta_2", 3.0)
    with pytest.raises(ExperimentError, match="silent wherever alpha is taken out"):
        measure(computed_lab(toy, [WHOLE]), cores(exclude_families=["alpha"]))


def test_a_silent_latent_has_no_cores() -> None:
    with pytest.raises(ExperimentError, match="latent 0 is silent in all 3 contexts: there is nothing to keep"):
        measure(computed_lab(toy, TOY_BASES), cores())


P13 = [
    *((1.0, ["a", "b_3", "c"]) for _ in range(2)),
    (0.9, ["a", "b_6"]),
    (0.8, ["a", "d"]),
    *((0.1, ["c", "d"]) for _ in range(6)),
]
LETTERS = Vocabulary((*(Family(name, kind="binary") for name in "acd"), Family("b", rungs=(3, 6, 9))))


def frequencies(result: ExperimentResult, table: str, name: str) -> dict[str, float]:
    return {row[name]: row["frequency"] for row in result.tables[table].rows}


def test_the_worked_frequencies_are_counted() -> None:
    result = measure(observed_lab(P13, LETTERS), cores(mode="observational", max_examples=4))
    assert frequencies(result, "token_frequency", "token") == {"a": 1.0, "b_3": 0.5, "c": 0.5, "b_6": 0.25, "d": 0.25}
    assert [row["token"] for row in result.tables["token_frequency"].rows if row["is_core"]] == ["a", "c", "b_3"]
    assert frequencies(result, "family_frequency", "family")["b"] == 0.75
    custom = result.aggregates.custom
    assert (custom["n_core_tokens"], custom["top_token"], custom["top_token_freq"]) == (3, "a", 1.0)
    assert result.mode == "observational"
    without = measure(observed_lab(P13, LETTERS), cores(mode="observational", max_examples=4, exclude_families=["b"]))
    assert [row["token"] for row in without.tables["token_frequency"].rows if row["is_core"]] == ["a", "c"]
    a = result.tables["token_frequency"].rows[0]
    assert a["p"] == pytest.approx(stats.fisher_exact([[4, 0], [0, 6]], alternative="greater").pvalue)


def test_a_family_with_several_rungs_at_once_counts_once() -> None:
    rows = [(1.0, ["b_3", "b_6", "b_9"]), (0.9, ["b_3", "b_6", "b_9"]), (0.1, ["a"])]
    result = measure(observed_lab(rows, LETTERS), cores(mode="observational", n_examples=2))
    assert frequencies(result, "family_frequency", "family") == {"b": 1.0}


def test_figures_are_drawn_from_the_tables() -> None:
    assert set(draw_all(measure(computed_lab(toy, [WHOLE, ("alpha_3", "delta")]), cores()))) == {"core_families"}
    assert set(draw_all(measure(observed_lab(P13, LETTERS), cores(mode="observational", max_examples=4)))) == {"family_frequency"}
