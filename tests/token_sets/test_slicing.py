"""The dataset slice: every field of it, and what is said where nothing is left."""

from __future__ import annotations

import numpy as np
import pytest
from token_lab import observed_lab

from mlinterp.errors import ExperimentError, SpecError
from mlinterp.token_sets.lab import Lab


def ten(**cut: object) -> Lab:
    tokens = [["special_charge_up_3"], ["comeback"], []]
    return observed_lab([(float(i), tokens[i % 3], "123"[i % 3]) for i in range(10)], spec={"dataset_slice": cut})


def kept(**cut: object) -> list[float]:
    return ten(**cut).rows.post.tolist()


def test_percentiles_are_of_rows_ascending_by_activation() -> None:
    assert kept(percentile_min=10, percentile_max=90) == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    assert np.mean(kept(percentile_min=10, percentile_max=90)) == 4.5
    assert kept(percentile_min=29, percentile_max=57) == [2.0, 3.0, 4.0]  # 10 * 57 / 100 is 5.699999… in floats


def test_every_filter_is_honoured() -> None:
    assert kept(activation_threshold=7) == [7.0, 8.0, 9.0]
    assert kept(weapon_filter=["1"]) == kept(group_filter=[0]) == [0.0, 3.0, 6.0, 9.0]
    assert kept(weapon_exclude=[0, "2"]) == [2.0, 5.0, 8.0]
    assert kept(family_filter=["comeback", "special_charge_up"]) == [0.0, 1.0, 3.0, 4.0, 6.0, 7.0, 9.0]


def test_filters_come_before_percentiles() -> None:
    assert kept(family_filter=["comeback"], percentile_min=50) == [4.0, 7.0]


def test_a_sample_is_what_its_own_seed_says_and_seed_0_is_a_seed() -> None:
    assert kept(sample_size=4) == kept(sample_size=4, random_seed=42)
    draws = {tuple(kept(sample_size=4, random_seed=seed)) for seed in range(8)}
    assert len(draws) > 4
    assert kept(sample_size=4, random_seed=0) != kept(sample_size=4)
    assert kept(sample_size=10) == kept()


def test_an_empty_slice_says_what_left_nothing() -> None:
    with pytest.raises(
        ExperimentError, match=r"the dataset slice \(activation_threshold 99\.0, sample_size 5\) leaves none of 10 contexts"
    ):
        ten(activation_threshold=99, sample_size=5)


@pytest.mark.parametrize(
    ("cut", "words"),
    [
        ({"family_filter": ["comebak"]}, r"dataset_slice.family_filter: unknown family 'comebak'.*did you mean 'comeback'\?"),
        ({"weapon_filter": [9]}, "dataset_slice.weapon_filter: there is no weapon number 9; 0 to 2, or its name"),
        ({"weapon_exclude": ["4"]}, "dataset_slice.weapon_exclude: unknown weapon '4'; allowed: 1, 2, 3"),
    ],
)
def test_a_name_that_the_domain_does_not_have_is_refused(cut: dict[str, object], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        ten(**cut)
