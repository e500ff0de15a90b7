"""A latent on contexts: each distinct one is computed once, and one latent alone is the same as that latent among all."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sae_kinds import ACTIVATIONS, random_sae, rows
from token_lab import TOY, toy

from mlinterp.subjects.token_sets.table import ContextTable
from mlinterp.token_sets import feature as feature_module
from mlinterp.token_sets.feature import Activations, Feature
from mlinterp.token_sets.one_latent import _of_part, latent_of

CONTEXTS = [(), ("alpha_1",), ("alpha_2", "gamma"), ("beta_2",), ("alpha_2", "gamma"), (), ("delta",), ("alpha_1",)]


def table(contexts: list[tuple[str, ...]]) -> ContextTable:
    return ContextTable.of(TOY, ("x", "y"), [(tokens, "xy"[len(tokens) % 2]) for tokens in contexts])


class Counted:
    def __init__(self) -> None:
        self.computed: list[str] = []
        self.feature = Feature(self.compute)

    def compute(self, contexts: ContextTable) -> Activations:
        self.computed += [contexts.shown(row) for row in range(len(contexts))]
        pre = np.array([toy(contexts.context(row).tokens) for row in range(len(contexts))])
        return Activations(pre, np.maximum(pre, 0))


def direct(contexts: list[tuple[str, ...]]) -> list[float]:
    return [max(toy(frozenset(tokens)), 0.0) for tokens in contexts]


def test_each_distinct_context_is_computed_once_whatever_asks_for_it() -> None:
    counted = Counted()
    assert counted.feature(table(CONTEXTS)).post.tolist() == direct(CONTEXTS)
    assert sorted(counted.computed) == sorted(set(counted.computed))
    assert len(counted.computed) == 5
    more = [*CONTEXTS[::-1], ("alpha_3",)]
    assert counted.feature(table(more)).post.tolist() == direct(more)
    assert len(counted.computed) == 6
    assert (counted.feature.n_asked, counted.feature.n_computed) == (17, 6)
    assert counted.feature.hit_rate == pytest.approx(11 / 17)


def test_contexts_that_differ_in_the_group_alone_are_two() -> None:
    counted = Counted()
    counted.feature(ContextTable.of(TOY, ("x", "y"), [(("alpha_1",), group) for group in ("x", "y", None)]))
    assert len(counted.computed) == 3


@pytest.mark.parametrize("collide", ["all", "with what is known"])
def test_contexts_that_share_a_hash_still_get_their_own_numbers(monkeypatch: pytest.MonkeyPatch, collide: str) -> None:
    counted = Counted()
    if collide == "with what is known":
        counted.feature(table([("alpha_3",)]))
        monkeypatch.setattr(feature_module, "_hashed", lambda words: np.full(len(words), counted.feature._codes[0]))
        assert counted.feature(table([("alpha_3",)])).post.tolist() == direct([("alpha_3",)])
        assert counted.feature(table([("alpha_2",)])).post.tolist() == direct([("alpha_2",)])
    else:
        monkeypatch.setattr(feature_module, "_hashed", lambda words: np.zeros(len(words), dtype=np.uint64))
        assert counted.feature(table(CONTEXTS)).post.tolist() == direct(CONTEXTS)


def test_no_context_at_all_gives_no_number() -> None:
    counted = Counted()
    assert len(counted.feature(table([])).post) == 0
    counted.feature(table(CONTEXTS))
    assert len(counted.feature(table([])).post) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activation", ["topk", "jumprelu"])
def test_one_latent_keeps_none_of_the_others_in_memory(activation: str, dtype: torch.dtype) -> None:
    sae = random_sae(activation=activation, dtype=dtype)
    for found in _of_part(sae, 3, rows().to(dtype).numpy()):
        assert found.flags.owndata
        assert found.dtype == np.float64


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_one_latent_alone_is_that_latent_among_all(activation: str) -> None:
    sae = random_sae(activation=activation)
    h = rows()
    with torch.no_grad():
        pre, post = sae.pre_acts(h).numpy(), sae.encode(h).numpy()
    assert (post > 0).any()
    for latent in range(sae.config.d_sae):
        found = latent_of(sae, latent, [h[:20].numpy(), h[20:].numpy()])
        np.testing.assert_allclose(found.pre, pre[:, latent], rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(found.post, post[:, latent], rtol=1e-12, atol=1e-12)
