"""From a spec to its latent: by number, by concept, of an SAE or a neuron; and what is refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import token_sets
import torch
from sae_kinds import random_sae

from mlinterp.errors import ExperimentError, SpecError
from mlinterp.project import find_project
from mlinterp.token_sets.feature import LatentReader
from mlinterp.token_sets.opening import choose, constraints_of, reader_of


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return find_project(token_sets.make(tmp_path_factory.mktemp("fighters"))).load_subject("planted")


def test_without_an_sae_a_latent_is_a_neuron_at_the_readout(subject: Any) -> None:
    reader, table = LatentReader(subject), subject.package.contexts("test")
    power = table.incidence[:, subject.package.vocabulary.span("power")].sum(axis=1)
    np.testing.assert_array_equal(reader.feature_activation(table, 0), np.maximum(power - 1.0, 0))
    assert reader.n_latents == 5
    with pytest.raises(SpecError, match="latent 5 does not exist; 'planted' has neurons 0-4 at pooled"):
        reader.feature(5)


def test_with_an_sae_a_latent_is_one_of_its_own_with_its_pre_activation(subject: Any) -> None:
    sae, table = random_sae(d_in=5, dtype=torch.float32, activation="jumprelu", site="pooled"), subject.package.contexts("test")
    reader = LatentReader(subject, sae)
    h = torch.from_numpy(subject.activations(table, "pooled"))
    with torch.no_grad():
        pre, post = sae.pre_acts(h).numpy(), sae.encode(h).numpy()
    np.testing.assert_allclose(reader.everything(table), post, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(reader.feature_activation(table, 3, pre=True), pre[:, 3], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(reader.feature_activation(table, 3), post[:, 3], rtol=1e-5, atol=1e-6)


def test_a_concept_names_the_latent_that_correlates_best_with_it(subject: Any) -> None:
    reader, package = LatentReader(subject), subject.package
    table = package.contexts("train")
    latents = reader.everything(table)
    for concept, values in package.concepts(table).items():
        with np.errstate(invalid="ignore"):
            expected = [np.corrcoef(values, column)[0, 1] if np.ptp(column) else np.nan for column in latents.T]
        latent, found = choose(reader, package, None, concept)
        assert latent == np.nanargmax(expected)
        assert found == {"feature": concept, "feature_correlation": pytest.approx(np.nanmax(expected), rel=1e-5)}


def test_a_concept_that_no_latent_goes_with_is_said(subject: Any) -> None:
    flat = SimpleNamespace(contexts=subject.package.contexts, concepts=lambda table: {"always": np.ones(len(table))})
    with pytest.raises(ExperimentError, match="no latent varies together with 'always' on 200 contexts of the train split"):
        choose(LatentReader(subject), flat, None, "always")  # type: ignore[arg-type]


def test_a_spec_that_names_no_constraint_keeps_to_every_hard_one(subject: Any) -> None:
    assert [found.id for found in constraints_of(subject.package, [])] == ["one_rung_per_family"]
    assert [found.id for found in constraints_of(subject.package, ["no_fast_axe"])] == ["no_fast_axe"]


def test_a_subject_that_is_about_no_token_sets_is_refused() -> None:
    from tiny import TinySubject

    context = SimpleNamespace(load_subject=TinySubject, spec=SimpleNamespace(type="family_1d_sweep"), inputs={})
    with pytest.raises(SpecError, match="family_1d_sweep is about token sets, and 'tiny' is a factory subject"):
        reader_of(context)  # type: ignore[arg-type]
