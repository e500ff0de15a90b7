"""`shuffle_null`: every permutation of tiny data as the truth, p values that are uniform where there is nothing, and stated outcomes."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from scipy import stats

from mlinterp.errors import ExperimentError, SpecError
from mlinterp.experiments.token_sets.effect_object import check_object, check_object_names
from mlinterp.experiments.token_sets.shuffle_null import ShuffleNullVariables
from mlinterp.experiments.token_sets.shuffle_null_measure import Draws, drawn, each_effect, exceeded, high_shares, measure, statistics
from mlinterp.result import ExperimentResult
from mlinterp.token_sets.effect_table import edited
from tests.support.token_lab import TOY_BASES, computed_lab, flat, observed_lab, toy

SWEEP: dict[str, Any] = {"type": "family_1d_sweep", "variables": {"family": "special_charge_up", "min_n": 1}}
TINY = [
    (0.1, []),
    (0.4, []),
    (0.2, ["special_charge_up_3"]),
    (0.9, ["special_charge_up_3"]),
    (1.3, ["special_charge_up_12"]),
    (0.7, ["special_charge_up_12"]),
]


def null(**given: object) -> ShuffleNullVariables:
    return ShuffleNullVariables.model_validate(given)


def root_mean_square(values: Any) -> float:
    """The effects of TINY by hand: the means of the second and third pair minus that of the first."""
    at = np.array(values)
    return float(np.sqrt(np.mean([(at[2:4].mean() - at[:2].mean()) ** 2, (at[4:].mean() - at[:2].mean()) ** 2])))


def test_p_is_that_of_all_permutations() -> None:
    values = [value for value, _ in TINY]
    every = [root_mean_square(order) for order in itertools.permutations(values)]
    exact = np.mean([found >= root_mean_square(values) - 1e-12 for found in every])
    result = measure(observed_lab(TINY), null(object=SWEEP, n_shuffles=4000))
    (row,) = result.tables["null_distribution"].rows
    assert row["observed"] == pytest.approx(root_mean_square(values))
    assert row["null_mean"] == pytest.approx(np.mean(every), abs=4 * np.std(every) / np.sqrt(4000))
    assert row["p_value"] == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 4000))
    estimate = result.estimates["aggregates/p_value"]
    assert estimate.low < exact < estimate.high
    assert result.tables["null_distribution"].columns[:4] == ["observed", "null_mean", "null_std", "p_value"]


def test_p_counts_the_data_as_one_of_the_draws() -> None:
    strong = [(0.0, [])] * 20 + [(1.0, ["special_charge_up_3"])] * 20
    result = measure(observed_lab(strong), null(object=SWEEP, n_shuffles=19))
    assert result.aggregates.custom["p_value"] == 1 / 20
    assert result.aggregates.custom["significant"] == 0
    assert measure(observed_lab(strong), null(object=SWEEP, n_shuffles=99)).aggregates.custom["significant"] == 1


def test_p_is_uniform_where_there_is_nothing_to_find() -> None:
    rng = np.random.default_rng(0)
    contexts = [["special_charge_up_3"]] * 6 + [["special_charge_up_12"]] * 6 + [[]] * 6
    found = []
    for seed in range(200):
        lab = observed_lab(list(zip(rng.exponential(size=18), contexts, strict=True)), spec={"seed": seed})
        found.append(measure(lab, null(object=SWEEP, n_shuffles=19)).aggregates.custom["p_value"])
    assert stats.kstest(np.array(found) - 0.025, "uniform").pvalue > 0.01  # p is one of 1/20 … 20/20: from the middle of each step
    assert np.mean(np.array(found) <= 0.05) == pytest.approx(0.05, abs=0.04)


def test_each_effect_has_its_p_and_one_for_having_looked_at_all() -> None:
    rng = np.random.default_rng(1)
    draws = Draws(np.array([4.5, 0.1, 5.0, 1.0]), np.column_stack([rng.normal(size=(199, 3)), np.ones(199)]) * [1, 1, 10, 1])
    p, p_adj = each_effect(draws)
    assert p[0] == 1 / 200
    assert p[0] <= p_adj[0] < 0.05
    assert p[1] > 0.5
    assert np.isnan(p[3])  # never anything else
    assert (p_adj[:3] >= p[:3]).all()
    everything = np.vstack([draws.observed, draws.null])[:, :3]
    scaled = np.abs(everything - everything.mean(axis=0)) / everything.std(axis=0)
    assert p_adj[2] == pytest.approx(np.mean([row.max() >= scaled[0, 2] for row in scaled]))


def test_adjusted_p_values_keep_the_error_rate_of_the_family() -> None:
    rng = np.random.default_rng(2)
    wrong = [np.nanmin(each_effect(Draws(rng.normal(size=10) * 2, rng.normal(size=(39, 10)) * 2))[1]) <= 0.05 for _ in range(300)]
    assert np.mean(wrong) == pytest.approx(0.05, abs=0.035)


def test_edited_contexts_have_their_signs_flipped() -> None:
    deltas = np.array([[1.0, 0.5], [2.0, 0.1], [0.3, -0.2], [1.5, 0.4]])
    table = edited(["a", "b"], deltas, 1)
    lab = observed_lab(TINY)
    every = [np.sqrt(np.mean((deltas * np.array(signs)[:, None]).mean(axis=0) ** 2)) for signs in itertools.product([1, -1], repeat=4)]
    exact = np.mean([found >= every[0] - 1e-12 for found in every])
    assert exact == 1 / 8
    assert exceeded(statistics(drawn(table, lab, 3000))[0]) == pytest.approx(exact, abs=0.025)


def test_an_intervention_stays_one() -> None:
    sweep = {"type": "family_1d_sweep", "variables": {"family": "alpha", "mode": "interventional", "min_n": 1}}
    result = measure(computed_lab(toy, [*TOY_BASES, ["gamma"], ["beta_1"], ["gamma", "beta_2"]]), null(object=sweep, n_shuffles=49))
    assert result.mode == "interventional"
    assert {row["label"] for row in result.tables["effects"].rows} == {"A_1", "A_2", "A_3"}


def test_the_token_frequency_is_the_share_of_the_most_frequent_token_among_the_highest() -> None:
    rows = [(float(20 - at), ["a"] if at < 2 else ["b", "c"] if at % 2 else ["c"]) for at in range(20)]
    lab = observed_lab(rows, flat("a", "b", "c"))
    assert dict(zip("abc", high_shares(lab).values, strict=True)) == {"a": 1.0, "b": 0.0, "c": 0.0}
    result = measure(lab, null(statistic="token_frequency", n_shuffles=399))
    custom = result.aggregates.custom
    assert (custom["observed_stat"], result.tables["null_distribution"].rows[0]["statistic"]) == (1.0, "largest effect")
    # two of twenty are the highest: they share their only token where both hold a alone, or both c alone
    exact = (1 + 9 * 8 / 2) / 190
    assert custom["p_value"] == pytest.approx(exact, abs=0.07)
    assert measure(lab, null(n_shuffles=9)).aggregates.custom["observed_stat"] == 1.0


def test_a_pattern_that_chance_makes_too_is_warned_of() -> None:
    result = measure(observed_lab(TINY), null(object=SWEEP, n_shuffles=50))
    assert any("the pattern may be chance" in text for text in result.diagnostics.warnings)


def test_the_seed_decides_the_draws() -> None:
    first, again, other = (
        measure(observed_lab(TINY, spec={"seed": seed}), null(object=SWEEP, n_shuffles=20)).tables["shuffles"].rows for seed in (0, 0, 1)
    )
    assert first == again != other


def refusal(**given: object) -> str:
    lab, variables = observed_lab(TINY), null(**given)
    try:
        check_object(lab.spec, variables, ())
        check_object_names(lab.spec, variables, lab.package)
    except SpecError as error:
        return str(error)
    return "accepted"


def test_an_object_is_refused_like_a_spec_of_its_type() -> None:
    assert refusal(object={"type": "family_1d_swep"}).startswith(
        "variables.object.type: unknown type whose effects can be measured again 'family_1d_swep'; allowed: "
    )
    assert "did you mean 'family_1d_sweep'?" in refusal(object={"type": "family_1d_swep"})
    for kind in ("shuffle_null", "trace"):
        assert f"unknown type whose effects can be measured again '{kind}'" in refusal(object={"type": kind})
    assert "variables.object.variables.family: is missing" in refusal(object={"type": "family_1d_sweep"})
    wrong = {"type": "family_1d_sweep", "variables": {"family": "special_charge_up", "min_m": 2}}
    assert "variables.object.variables.min_m: unknown key 'min_m'" in refusal(object=wrong)
    unknown = {"type": "family_sweep", "variables": {"family": "special_charge"}}
    assert refusal(object=unknown).startswith("variables.object.variables.family: unknown family 'special_charge'")
    own = {"type": "family_1d_sweep", "variables": {"family": "special_charge_up", "feature": "x"}}
    assert "variables.object.variables.feature: the latent is that of the whole spec" in refusal(object=own)


def test_a_good_object_passes_with_a_feature_too() -> None:
    lab = observed_lab(TINY)
    check_object(lab.spec, null(object=SWEEP), ())
    check_object_names(lab.spec, null(object=SWEEP), lab.package)
    check_object(lab.spec.model_copy(update={"feature_id": None}), null(object=SWEEP, feature="power"), ())
    with pytest.raises(ValueError, match="one thing can be measured again"):
        null(object=SWEEP, statistic="token_frequency")


def test_what_cannot_be_answered_is_said() -> None:
    with pytest.raises(ExperimentError, match="none of the effects is defined"):
        measure(observed_lab([(0.0, []), (1.0, [])]), null(object=SWEEP))
    for asked in (null(object=SWEEP), null()):
        with pytest.raises(ExperimentError, match="the same activation"):
            measure(observed_lab([(1.0, []), (1.0, ["special_charge_up_3"])]), asked)


def test_a_result_round_trips_through_json() -> None:
    result = measure(observed_lab(TINY), null(object=SWEEP, n_shuffles=10))
    assert ExperimentResult.model_validate_json(result.model_dump_json(by_alias=True)) == result
