"""From a spec to its latent: by number, by concept, of an SAE or a neuron; and what is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import token_sets
import torch
from sae_kinds import random_sae

from mlinterp.errors import ExperimentError, SpecError
from mlinterp.experiments.base import Context
from mlinterp.project import find_project
from mlinterp.spec import Spec
from mlinterp.token_sets import feature as feature_module
from mlinterp.token_sets.feature import LatentReader
from mlinterp.token_sets.opening import _correlations, choose, constraints_of, open_lab, reader_of


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return find_project(token_sets.make(tmp_path_factory.mktemp("fighters"))).load_subject("planted")


def warnings_of(subject: Any, **given: Any) -> list[str]:
    spec = Spec.model_validate({"type": "family_1d_sweep", "subject": "planted", **given})
    return open_lab(Context(spec, SimpleNamespace(feature="power"), Path(), lambda: subject)).diagnostics.warnings


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


def test_a_neuron_that_is_always_the_same_but_for_rounding_goes_with_no_concept() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=400)
    latents = np.full((400, 3), 5.0, dtype=np.float32)
    latents[::7, 0] += np.float32(5e-7)
    latents[:, 1] += (0.001 * values).astype(np.float32)
    latents[:, 2] = 0.0
    found = _correlations(latents, values)
    assert np.isnan(found).tolist() == [True, False, True]
    assert found[1] == pytest.approx(np.corrcoef(latents[:, 1].astype(float), values)[0, 1], abs=1e-6)


@pytest.mark.parametrize("n_known", [0, 1])
def test_a_concept_that_is_defined_nowhere_goes_with_no_latent(subject: Any, n_known: int) -> None:
    undefined = SimpleNamespace(
        contexts=subject.package.contexts, concepts=lambda table: {"unknown": np.where(np.arange(len(table)) < n_known, 1.0, np.nan)}
    )
    with pytest.raises(ExperimentError, match="no latent varies together with 'unknown'"):
        choose(LatentReader(subject), undefined, None, "unknown")  # type: ignore[arg-type]


def test_a_latent_chosen_and_measured_on_the_same_split_is_said_to_be_flattered(subject: Any) -> None:
    assert warnings_of(subject, dataset_slice={"split": "test"}) == []
    assert any("that flatters it" in text for text in warnings_of(subject, dataset_slice={"split": "train"}))


def test_hard_constraints_that_a_spec_leaves_out_are_said_to_be(subject: Any) -> None:
    assert warnings_of(subject, constraints=["no_fast_axe", "one_rung_per_family"]) == []
    found = warnings_of(subject, constraints=["no_fast_axe"])
    assert "the spec names constraints, and one_rung_per_family is not among them: contexts that break it are used" in found


@pytest.mark.parametrize("activation", ["topk", "jumprelu"])
def test_latents_are_the_same_whatever_the_number_computed_at_a_time(
    subject: Any, activation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sae, table = random_sae(d_in=5, dtype=torch.float32, activation=activation, site="pooled"), subject.package.contexts("test")
    whole, alone = LatentReader(subject, sae).everything(table), LatentReader(subject, sae).feature_activation(table, 3)
    monkeypatch.setattr(feature_module, "_CHUNK", 16)
    monkeypatch.setattr(feature_module, "_NUMBERS", 7 * sae.config.d_sae)
    np.testing.assert_allclose(LatentReader(subject, sae).everything(table), whole, atol=1e-6)
    np.testing.assert_allclose(LatentReader(subject, sae).feature_activation(table, 3), alone, atol=1e-6)


def test_a_spec_that_names_no_constraint_keeps_to_every_hard_one(subject: Any) -> None:
    assert [found.id for found in constraints_of(subject.package, [])] == ["one_rung_per_family"]
    assert [found.id for found in constraints_of(subject.package, ["no_fast_axe"])] == ["no_fast_axe"]


def test_a_subject_that_is_about_no_token_sets_is_refused() -> None:
    from tiny import TinySubject

    context = SimpleNamespace(load_subject=TinySubject, spec=SimpleNamespace(type="family_1d_sweep"), inputs={})
    with pytest.raises(SpecError, match="family_1d_sweep is about token sets, and 'tiny' is a factory subject"):
        reader_of(context)  # type: ignore[arg-type]
