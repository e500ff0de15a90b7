"""`split_half`: correlations against scipy's, halves that agree and halves that cannot, and stated outcomes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from mlinterp.errors import ExperimentError
from mlinterp.experiments.token_sets.split_half import SplitHalfVariables
from mlinterp.experiments.token_sets.split_half_measure import agreement, measure, spearman_brown, token_frequencies
from mlinterp.result import ExperimentResult
from mlinterp.token_sets.lab import Lab
from tests.support.token_lab import LADDER, computed_lab, flat, observed_lab

SWEEP: dict[str, Any] = {"type": "family_1d_sweep", "variables": {"family": "special_charge_up", "min_n": 1}}


def split(**given: object) -> SplitHalfVariables:
    return SplitHalfVariables.model_validate({"n_shuffles": 19, **given})


def ladder(slope: float, noise: float, n: int = 30) -> Lab:
    """Contexts at each rung, whose activation rises by the slope from rung to rung."""
    rng = np.random.default_rng(0)
    rows = [
        (slope * step + noise * float(rng.normal()), [f"special_charge_up_{LADDER[step - 1]}"] if step else [])
        for step in range(6)
        for _ in range(n)
    ]
    return observed_lab(rows)


def test_effects_that_are_there_are_the_same_in_both_halves() -> None:
    result = measure(ladder(slope=1.0, noise=0.5), split(object=SWEEP))
    custom = result.aggregates.custom
    assert custom["mean_correlation"] > 0.95
    assert (custom["stability_passed"], custom["p_value"]) == (1, 1 / 20)
    assert abs(custom["null_correlation"]) < 0.4
    assert custom["spearman_brown"] == pytest.approx(2 * custom["mean_correlation"] / (1 + custom["mean_correlation"]))
    estimate = result.estimates["aggregates/mean_correlation"]
    assert estimate.low <= estimate.value <= estimate.high
    assert estimate.null_value == custom["null_correlation"]
    assert result.mode == "observational"


def test_noise_is_not_stable() -> None:
    result = measure(ladder(slope=0.0, noise=1.0), split(object=SWEEP))
    assert result.aggregates.custom["stability_passed"] == 0
    assert result.aggregates.custom["p_value"] > 0.05
    assert any("below 0.7: the effects are not stable" in text for text in result.diagnostics.warnings)


def test_each_split_is_scipys_correlation_of_its_halves() -> None:
    lab = ladder(slope=0.3, noise=1.0)
    result = measure(lab, split(object=SWEEP, n_splits=3))
    first, second = ([row[half] for row in result.tables["effects"].rows] for half in ("first_half", "second_half"))
    row = result.tables["split_correlations"].rows[0]
    assert result.tables["split_correlations"].columns[:2] == ["split", "correlation"]
    assert (row["split"], row["n_labels"]) == (1, 5)
    assert row["correlation"] == pytest.approx(stats.pearsonr(first, second).statistic)
    assert row["spearman"] == pytest.approx(stats.spearmanr(first, second).statistic)
    order = lab.stream("halves").permutation(180)
    at, post = lab.rows.table.rungs("special_charge_up"), lab.rows.post
    for half, part in ((first, order[:90]), (second, order[90:])):
        means = [post[part][at[part] == rung].mean() for rung in (0, *LADDER)]
        assert half == pytest.approx(np.array(means[1:]) - means[0])


def test_halves_that_do_not_vary_have_no_correlation() -> None:
    rows = [(1.0, ["a", "b", "c"]), (2.0, ["a", "b", "c"])] * 10
    result = measure(observed_lab(rows, flat("a", "b", "c")), split(statistic="token_frequency"))
    assert {row["correlation"] for row in result.tables["split_correlations"].rows} == {None}
    assert result.aggregates.custom == {"mean_correlation": None, "stability_passed": None}
    assert any(text.startswith("the correlation of 10 of 10 splits is undefined") for text in result.diagnostics.warnings)
    assert "aggregates/mean_correlation" not in result.numbers()


@pytest.mark.parametrize("other", [[1.0, 1.0, 1.0], [np.nan, 1.0, 2.0]])
def test_a_correlation_needs_three_effects_that_vary(other: list[float]) -> None:
    assert np.isnan(agreement(np.array([1.0, 2.0, 3.0]), np.array(other)).pearson)


def test_wholes_agree_better_than_their_halves() -> None:
    assert spearman_brown(0.5) == pytest.approx(2 / 3)
    assert np.isnan(spearman_brown(-1.0))
    assert np.isnan(spearman_brown(-0.5))


def test_spearman_brown_predicts_what_twice_the_contexts_give() -> None:
    rng = np.random.default_rng(0)
    truth, noise = rng.normal(size=20_000), rng.normal(size=(4, 20_000))
    halves = [truth + one for one in noise]
    r = agreement(halves[0], halves[1]).pearson
    wholes = agreement((halves[0] + halves[1]) / 2, (halves[2] + halves[3]) / 2).pearson
    assert spearman_brown(r) == pytest.approx(wholes, abs=0.01)


def test_the_token_frequency_is_the_share_of_the_activation() -> None:
    assert split(metric="token_frequency_correlation").object is None
    lab = observed_lab([(2.0, ["a", "b"]), (1.0, ["a"]), (0.0, ["c"]), (3.0, [])], flat("a", "b", "c"))
    assert token_frequencies(lab).values[:2].tolist() == [0.6, 0.4]
    assert np.isnan(token_frequencies(lab).values[2])
    assert token_frequencies(lab).on(np.array([0])).tolist()[:2] == [0.5, 0.5]


def test_that_popularity_is_stable_whatever_the_latent_does_is_warned_of() -> None:
    rng = np.random.default_rng(0)
    names = [f"t{at}" for at in range(8)]
    rows = [(float(rng.random()), [name for at, name in enumerate(names) if rng.random() < (at + 1) / 9]) for _ in range(200)]
    result = measure(observed_lab(rows, flat(*names)), split())
    assert result.aggregates.custom["mean_correlation"] > 0.9
    assert result.aggregates.custom["p_value"] > 0.05
    assert any("stability says nothing about this latent" in text for text in result.diagnostics.warnings)


def test_an_intervention_stays_one() -> None:
    sweep = {"type": "family_1d_sweep", "variables": {"family": "alpha", "mode": "interventional", "min_n": 1}}

    def rising(tokens: frozenset[str], group: str | None) -> float:
        return 1.0 + 2 * ("alpha_1" in tokens) + ("alpha_3" in tokens) + ("beta_1" in tokens) * len(tokens)

    contexts = [["beta_1"], ["gamma"], ["delta"], ["beta_1", "delta"], [], ["gamma", "delta"]]
    result = measure(computed_lab(rising, contexts), split(object=sweep))
    assert result.mode == "interventional"
    assert result.aggregates.custom["mean_correlation"] > 0.9
    assert any("a correlation over 3 effects says little" in text for text in result.diagnostics.warnings)


def test_what_cannot_be_answered_is_said() -> None:
    with pytest.raises(ExperimentError, match="3 contexts make no halves of two"):
        measure(observed_lab([(0.0, []), (1.0, ["special_charge_up_3"]), (2.0, [])]), split(object=SWEEP))
    with pytest.raises(ExperimentError, match="the same activation"):
        measure(observed_lab([(1.0, [])] * 4), split(object=SWEEP))


def test_a_result_round_trips_through_json() -> None:
    result = measure(ladder(slope=1.0, noise=0.5), split(object=SWEEP, n_splits=2))
    assert ExperimentResult.model_validate_json(result.model_dump_json(by_alias=True)) == result
