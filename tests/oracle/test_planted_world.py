"""Known answers: the planted cause is found, the planted decoy is not, and what must be zero is exactly zero."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from planted import CAUSE, DECOY, SITE, cause_or_decoy, intervene, planted_sae, planted_subject

from mlinterp.result import ExperimentResult

TESTED = [CAUSE, DECOY, 2, 3, 4]


@pytest.fixture(name="found", scope="module")
def _found(tmp_path_factory: pytest.TempPathFactory) -> tuple[ExperimentResult, Path]:
    folder = tmp_path_factory.mktemp("planted")
    return intervene(
        planted_subject(), {"interventions": [{"policy": "ablate_features", "features": TESTED}]}, folder, planted_sae()
    ), folder


def test_the_cause_ranks_first_with_a_small_adjusted_p_and_an_interval_beyond_its_controls(found: tuple[ExperimentResult, Path]) -> None:
    first = found[0].tables["top_causal_features"].rows[0]
    assert (first["rank"], first["feature"]) == (1, CAUSE)
    assert first["p_adj"] < 0.01
    assert first["adjusted_high"] < first["control_low"] < 0
    assert first["specificity"] > 0.8


def test_the_decoy_travels_with_the_cause_yet_is_told_apart_from_it(found: tuple[ExperimentResult, Path]) -> None:
    rows = {row["feature"]: row for row in found[0].tables["top_causal_features"].rows}
    table = planted_subject().model.hidden.weight
    assert np.corrcoef(table[:, CAUSE], table[:, DECOY])[0, 1] > 0.99
    for latent in TESTED[1:]:
        row = rows[latent]
        assert row["effect"] == 0.0
        assert row["adjusted_low"] <= 0.0 <= row["adjusted_high"]
        assert row["control_low"] <= row["effect"] <= row["control_high"]
        assert row["p_adj"] > 0.2


def test_examples_alone_would_have_called_the_decoy_significant(found: tuple[ExperimentResult, Path]) -> None:
    """Why p takes the spread of the controls into account: a few random directions happen to overlap with the cause."""
    decoy = {row["feature"]: row for row in found[0].tables["top_causal_features"].rows}[DECOY]
    assert decoy["p_examples"] < 0.01 < decoy["p_controls"]


def test_the_effect_of_the_cause_is_the_one_that_the_readout_gives(found: tuple[ExperimentResult, Path]) -> None:
    h = planted_subject().model.hidden.weight
    evidence = 4 * torch.tanh(h[:, CAUSE] - 1) + h[:, 15]
    without = 4 * torch.tanh(torch.tensor(-1.0)) + h[:, 15]
    sign = torch.where(evidence > 0, 1.0, -1.0)  # the margin of the right answer, which is the untouched one
    expected = float((sign * (without - evidence)).double().mean())
    assert found[0].metrics[f"effect/ablate_features_0-l{CAUSE}"] == pytest.approx(expected, rel=1e-5)


def test_identity_controls_change_nothing_at_all(found: tuple[ExperimentResult, Path]) -> None:
    report = json.loads((found[1] / "work" / "report.json").read_text())
    identity = next(entry for entry in report["controls"] if entry["kind"] == "identity")
    assert identity["n_edits"] == 0
    assert identity["kl"] == 0.0
    assert {name: identity[name] for name in ("margin", "log_prob", "exact")} == {
        name: report["baseline"][name] for name in ("margin", "log_prob", "exact")
    }


def test_behind_an_or_gate_single_ablations_do_nothing_and_the_joint_one_does_everything(tmp_path: Path) -> None:
    blocks = [
        {"policy": "ablate_features", "features": [CAUSE, DECOY]},
        {"policy": "ablate_features", "features": [CAUSE, DECOY], "each": False, "name": "both"},
    ]
    metrics = intervene(planted_subject(readout=cause_or_decoy), {"interventions": blocks}, tmp_path, planted_sae()).metrics
    fires = float((planted_subject().model.hidden.weight[:, CAUSE] > 1).double().mean())
    assert metrics[f"effect/ablate_features_0-l{CAUSE}"] == metrics[f"effect/ablate_features_0-l{DECOY}"] == 0.0
    assert metrics["effect/both"] == pytest.approx(-4 * fires, rel=1e-6)


def test_patching_every_activation_carries_the_sources_answer_over_whole(tmp_path: Path) -> None:
    result = intervene(planted_subject(), {"interventions": [{"policy": "patch_states", "at": {"site": SITE}}]}, tmp_path)
    row = result.tables["interventions"].rows[0]
    assert result.metrics["agreement/patch_states_0"] == 1.0
    assert row["delta_agreement"] > 0.3


def test_patching_the_cause_carries_the_answer_as_far_as_the_source_fires(tmp_path: Path) -> None:
    blocks = [{"policy": "patch_features", "features": [latent], "name": f"l{latent}", "each": False} for latent in (CAUSE, DECOY)]
    metrics = intervene(planted_subject(), {"interventions": blocks, "outcome": "agreement"}, tmp_path, planted_sae()).metrics
    assert metrics["agreement/l0"] > 0.95
    assert metrics["effect/l1"] == 0.0


@pytest.mark.slow
def test_over_many_worlds_the_cause_is_always_found_and_latents_without_effect_hardly_ever_called_causal(tmp_path: Path) -> None:
    called, missed = 0, 0
    for seed in range(10):
        subject = planted_subject(seed=seed)
        blocks = {"interventions": [{"policy": "ablate_features", "features": TESTED}]}
        rows = intervene(subject, blocks, tmp_path / str(seed), planted_sae(), seed=seed).tables["top_causal_features"].rows
        missed += rows[0]["feature"] != CAUSE or rows[0]["p_adj"] > 0.05
        called += sum(row["p_adj"] < 0.05 for row in rows if row["feature"] != CAUSE)
    assert missed == 0
    assert called <= 3  # of 40
