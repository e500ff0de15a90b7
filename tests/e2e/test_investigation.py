"""An investigation from the first claim to the report, on the real project and a model trained for it: nothing is replaced."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

import mlinterp
from mlinterp.errors import SpecError
from mlinterp.hypotheses.ledger import Ledger
from mlinterp.hypotheses.records import Declaration
from mlinterp.project import find_project

PROJECT = Path(__file__).parents[2] / "projects" / "trm_sudoku"
FIT = {"type": "subject_fit", "subject": "trm4", "variables": {"steps": 160, "eval_every": 80, "options": {"batch_size": 64, "lr": 2e-3}}}
EXPECTED = {"carries_last": "supports", "carries_first": "refutes", "carries_some": "inconclusive"}


@dataclass
class Investigation:
    """A copy of the project with a trained model, its ledger, and the three runs of its first question."""

    folder: Path
    ledger: Ledger
    fit: str
    runs: dict[str, Any]


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> Investigation:
    root = tmp_path_factory.mktemp("investigation")
    folder = root / "projects" / "trm_sudoku"
    shutil.copytree(PROJECT, folder)
    (folder / "specs" / "fit.yaml").write_text(yaml.safe_dump(FIT))
    with pytest.MonkeyPatch.context() as alone:
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"):
            alone.delenv(name, raising=False)
        fit = mlinterp.run_spec(folder / "specs" / "fit.yaml")
        runs = {name: mlinterp.run_spec(folder / "specs" / f"{name}.yaml") for name in EXPECTED}
        return Investigation(folder, Ledger.open(find_project(folder)), fit.run_id, runs)


def test_three_specs_of_one_hypothesis_say_three_different_things(told):
    assert {name: run.verdict for name, run in told.runs.items()} == EXPECTED
    assert told.ledger.get("h001").status == "testing"
    assert "contested" in told.ledger.get("h001").evaluation.text
    for name, run in told.runs.items():
        tags = told.ledger.store.client.get_run(run.run_id).data.tags
        assert (tags["mlinterp.verdict"], tags["mlinterp.mode"]) == (EXPECTED[name], "interventional")


def test_a_verdict_names_its_test_its_interval_and_its_null(told):
    said = told.runs["carries_last"].ruling
    assert "agreement/zh-last" in said
    assert "> 0.9" in said
    assert "[" in said
    assert "chance" in said


def test_the_rest_of_the_story_superseded_supported_retracted_reported_reproduced(told, tmp_path):
    ledger = told.ledger
    child = ledger.supersede("h001", Declaration(claim="Only the last evaluation of z_H carries the whole answer."))
    assert ledger.get("h001").status == "superseded"
    spec = yaml.safe_load((told.folder / "specs" / "carries_last.yaml").read_text()) | {"hypothesis": child.id, "seed": 1}
    path = told.folder / "specs" / "child.yaml"
    path.write_text(yaml.safe_dump(spec))
    run = mlinterp.run_spec(path)
    assert (run.verdict, ledger.get(child.id).status) == ("supports", "supported")

    ledger.retract(run.run_id, "the seed was chosen by hand")
    assert ledger.get(child.id).status == "proposed"
    ledger.restore(run.run_id)
    against = told.runs["carries_first"].run_id
    ledger.retract(against, "the first evaluation was not meant")
    assert ledger.get("h001").evaluation.status == "supported"
    assert "retracted" in ledger.store.client.get_run(against).data.tags["mlinterp.standing"]

    report = mlinterp.generate_report(child.id, project=told.folder)
    assert "Only the last evaluation" in report.markdown
    assert "supports" in report.markdown
    assert all(file.stat().st_size > 0 for file in mlinterp.save_report(child.id, tmp_path, project=told.folder))

    reproduction = mlinterp.reproduce_run(run.run_id, workspace=told.folder)
    assert reproduction.same
    assert ledger.get(child.id).evaluation.rulings[-1].evidence.run_id == run.run_id


def test_what_rests_on_the_model_is_stale_once_it_is_withdrawn_and_sound_again_afterwards(told):
    before = {one.id: one.evaluation.status for one in told.ledger.all()}
    stale = told.ledger.retract(told.fit, "trained on the test split")
    assert {run.run_id for run in told.runs.values()} <= {item.run_id for item in stale}
    assert {one.evaluation.status for one in told.ledger.all()} == {"proposed"}
    told.ledger.restore(told.fit)
    assert {one.id: one.evaluation.status for one in told.ledger.all()} == before


def test_a_withdrawn_model_is_neither_the_latest_nor_a_named_input_and_its_answers_are_not_reused(told):
    spec, path = yaml.safe_load((told.folder / "specs" / "carries_last.yaml").read_text()), told.folder / "specs" / "again.yaml"
    path.write_text(yaml.safe_dump({**spec, "hypothesis": "h003"}))
    told.ledger.retract(told.fit, "trained on the test split")
    with pytest.raises(SpecError, match="no finished run that still stands has produced a subject"):
        mlinterp.run_spec(path)
    path.write_text(yaml.safe_dump({**spec, "hypothesis": "h003", "inputs": {"subject": f"run:{told.fit}"}}))
    with pytest.raises(SpecError, match=r"inputs.subject: run \w+ was retracted: trained on the test split; `mlinterp restore"):
        mlinterp.run_spec(path)
    told.ledger.restore(told.fit)
    first = mlinterp.run_spec(path)
    assert mlinterp.run_spec(path).run_id == first.run_id
    told.ledger.retract(first.run_id, "the machine was faulty")
    assert mlinterp.run_spec(path).run_id != first.run_id
