"""`decoder_output_analysis`: the worked case, raised latents against the weights that they are read by, and stated outcomes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import token_sets
import torch
from sae_kinds import random_sae

from mlinterp.errors import ExperimentError, SpecError
from mlinterp.experiments.base import Context
from mlinterp.experiments.token_sets.decoder_output_analysis import DecoderOutputVariables
from mlinterp.experiments.token_sets.decoder_output_analysis_measure import direct, measure, told
from mlinterp.project import find_project
from mlinterp.reports.plots import draw_all
from mlinterp.result import ExperimentResult
from mlinterp.spec import Spec
from mlinterp.subjects.token_sets.vocabulary import Family, Vocabulary
from mlinterp.token_sets.feature import LatentReader
from mlinterp.token_sets.lab import Lab
from mlinterp.token_sets.opening import open_lab
from tests.support.token_lab import flat, observed_lab

W_OUT = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, -1.0]])
D = np.array([0.6, 0.8])


def outputs(**given: object) -> DecoderOutputVariables:
    return DecoderOutputVariables.model_validate(given)


def worked(vocabulary: Vocabulary, names: tuple[str, ...], weights: np.ndarray = W_OUT, **given: object) -> ExperimentResult:
    lab = observed_lab([(1.0, []), (0.0, [])], vocabulary)
    return told(lab, outputs(**given), direct(names, weights, D))


def values(result: ExperimentResult, table: str, key: str = "token", value: str = "contribution") -> list[tuple[object, object]]:
    return [(row[key], pytest.approx(row[value])) for row in result.tables[table].rows]


def test_the_worked_case_has_its_contributions() -> None:
    result = worked(flat("t0", "t1", "t2"), ("t0", "t1", "t2"))
    assert values(result, "promoted_tokens") == [("t1", 0.8), ("t0", 0.6)]
    assert values(result, "suppressed_tokens") == [("t2", -0.2)]
    custom = result.aggregates.custom
    assert (custom["top_promoted"], custom["top_suppressed"], custom["n_promoted"], custom["n_suppressed"]) == ("t1", "t2", 2, 1)
    assert (custom["decoder_magnitude"], custom["total_positive"], custom["total_negative"]) == pytest.approx((1.0, 1.4, -0.2))
    assert [row["centred"] for row in result.tables["promoted_tokens"].rows] == pytest.approx([0.4, 0.2])
    assert result.mode == "observational"
    assert ExperimentResult.model_validate_json(result.model_dump_json(by_alias=True)) == result
    assert set(draw_all(result)) == {"promoted_tokens", "suppressed_tokens"}


LADDER = Vocabulary((Family("x", rungs=(3, 6)), Family("y", rungs=(3, 6)), Family("z", kind="binary")), special=("<NULL>",))


def test_outputs_that_are_tokens_are_summed_up_by_family_and_rung() -> None:
    names = ("x_3", "x_6", "y_3", "y_6", "z", "<NULL>", "elsewhere")
    weights = np.array([[1.0, 0], [2, 0], [3, 0], [4, 0], [-5, 0], [9, 0], [7, 0]]) / 0.6
    result = worked(LADDER, names, weights)
    assert values(result, "family_summary", "family", "mean_contribution") == [("y", 3.5), ("x", 1.5), ("z", -5.0)]
    assert values(result, "ap_level_patterns", "ap_level", "mean_contribution") == [("binary", -5.0), (3, 2.0), (6, 3.0)]
    rows = {row["token"]: (row["family"], row["ap_level"]) for row in result.tables["promoted_tokens"].rows}
    assert rows == {"elsewhere": (None, None), "y_6": ("y", 6), "y_3": ("y", 3), "x_6": ("x", 6), "x_3": ("x", 3)}
    shown = worked(LADDER, names, weights, exclude_special_tokens=False, top_k_promoted=1, group_by_family=False, include_ap_level=False)
    assert values(shown, "promoted_tokens") == [("<NULL>", 9.0)]
    assert {"family_summary", "ap_level_patterns"}.isdisjoint(shown.tables)
    assert shown.aggregates.custom["n_promoted"] == 6


def test_outputs_that_are_all_special_are_said() -> None:
    with pytest.raises(ExperimentError, match="every output is a special token"):
        worked(LADDER, ("<NULL>",), W_OUT[:1])


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    nowhere = {**token_sets.LEARNED, "readout": "embed"}
    return token_sets.make(tmp_path_factory.mktemp("fighters"), nowhere=nowhere)


def lab_of(project: Path, name: str, latent: int, asked: DecoderOutputVariables) -> Lab:
    subject = find_project(project).load_subject(name)
    spec = Spec.model_validate({"type": "decoder_output_analysis", "subject": name, "feature_id": latent})
    return open_lab(Context(spec, asked, project, lambda: subject))


def column(result: ExperimentResult, name: str = "contribution") -> dict[str, Any]:
    return {row["token"]: row[name] for table in ("promoted_tokens", "suppressed_tokens") for row in result.tables[table].rows}


def test_raising_a_neuron_moves_the_logits_by_the_heads_weights(project: Path) -> None:
    read = measure(lab_of(project, "planted", 0, outputs()), outputs())
    head = torch.arange(20.0).reshape(4, 5)[:, 0] / 10 - 1
    wanted = dict(zip(("weak", "strong", "guarded", "berserk"), head.tolist(), strict=True))
    assert column(read) == pytest.approx({name: value for name, value in wanted.items() if value})
    asked = outputs(mode="interventional", controls=3)
    result = measure(lab_of(project, "planted", 0, asked), asked)
    assert column(result) == pytest.approx({name: value for name, value in wanted.items() if abs(value) > 1e-9}, rel=1e-4)
    assert result.mode == "interventional"
    assert any("have the largest activation already, or nearly, and were left out" in text for text in result.diagnostics.warnings)
    assert result.estimates["aggregates/top_suppressed_value"].value == pytest.approx(-1.0, rel=1e-4)
    judged = result.estimates["aggregates/top_suppressed_value"]
    assert judged.null == "the largest change by random directions of its length"
    assert judged.null_value < 0.0 < judged.p  # a neuron's weights are no larger than those of random directions
    beside = column(result, "control_contribution")
    assert all(beside[name] * value > 0 for name, value in column(result).items())
    assert all(0.25 <= value <= 1.0 for value in column(result, "control_p").values())


def test_raising_a_latent_of_an_sae_moves_the_logits_as_its_decoder_says(project: Path) -> None:
    asked = outputs(mode="interventional", controls=0)
    lab = lab_of(project, "planted", 0, asked)
    assert lab.reader is not None
    sae = random_sae(d_in=5, dtype=torch.float32, activation="topk", site="pooled")
    reader = LatentReader(lab.reader.subject, sae)
    active = int(np.argmax(np.ptp(reader.everything(lab.rows.table), axis=0)))
    feature = reader.feature(active)
    changed = Lab(lab.spec, lab.package, feature, active, type(lab.rows)(lab.rows.table, feature(lab.rows.table)), reader=reader)
    head = lab.reader.subject.model.head.weight.detach().numpy()
    with torch.no_grad():
        unit = sae.decode(torch.eye(sae.config.d_sae)[active]) - sae.decode(torch.zeros(sae.config.d_sae))
    wanted = head @ unit.numpy()
    found = column(measure(changed, asked))
    assert [found[name] for name in lab.package.outputs] == pytest.approx(wanted.tolist(), rel=1e-3, abs=1e-5)


def test_a_way_to_the_logits_that_is_not_linear_is_refused_and_can_be_measured(project: Path) -> None:
    with pytest.raises(SpecError, match="the way from embed to the logits of 'nowhere' is not linear"):
        measure(lab_of(project, "nowhere", 0, outputs()), outputs())
    asked = outputs(mode="interventional", n_contexts=50, controls=2)
    result = measure(lab_of(project, "nowhere", 0, asked), asked)
    assert all(row["std_error"] > 0 and row["low"] < row["contribution"] < row["high"] for row in result.tables["promoted_tokens"].rows)


def test_a_latent_that_never_moves_cannot_be_raised(project: Path) -> None:
    asked = outputs(mode="interventional")
    with pytest.raises(ExperimentError, match="latent 4 is at its largest activation, 0, in all 120 contexts: it cannot be raised"):
        measure(lab_of(project, "planted", 4, asked), asked)
