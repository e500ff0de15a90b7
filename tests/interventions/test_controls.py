"""How controls are drawn."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mlinterp.interventions.controls import derangement, matched_latents, random_latents


@given(st.integers(2, 60), st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_a_derangement_is_a_permutation_that_leaves_nobody_in_place(n: int, seed: int) -> None:
    partner = derangement(n, np.random.default_rng(seed))
    assert sorted(partner.tolist()) == list(range(n))
    assert not (partner == np.arange(n)).any()


@given(st.sets(st.integers(0, 40), min_size=1), st.sets(st.integers(0, 40), max_size=5), st.integers(1, 4), st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_random_latents_are_alive_untested_and_never_drawn_twice(alive: set[int], tested: set[int], size: int, draws: int) -> None:
    sets = random_latents(sorted(alive), tested, size, draws, np.random.default_rng(0))
    flat = [latent for chosen in sets for latent in chosen]
    assert len(set(flat)) == len(flat)
    assert set(flat) <= alive - tested
    assert all(len(chosen) == size for chosen in sets)
    assert len(sets) == min(draws, len(alive - tested) // size)


def test_matched_latents_are_the_nearest_in_log_density_in_order_of_draws() -> None:
    density = np.array([0.1, 0.06, 0.0, 0.3, 0.11, 0.2, 0.5])
    assert matched_latents(density, [0], [0], 3) == [(4,), (1,), (5,)]  # log ratios .10, .51, .69
    assert matched_latents(density, [0, 3], [0, 3], 2) == [(4, 5), (1, 6)]
    assert matched_latents(density, [0], [0, 1, 3, 4, 5, 6], 2) == []


def test_a_latent_that_never_fires_is_matched_with_the_rarest_others() -> None:
    assert matched_latents(np.array([0.0, 0.5, 0.01, 0.2]), [0], [0], 2) == [(2,), (3,)]
