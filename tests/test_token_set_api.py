"""Token-set experiments from Python: specs, contexts, runners, and results that are those of a spec file."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import token_sets
import yaml
from token_set_types import types

import mlinterp
from mlinterp import ExperimentSpec, ExperimentType, get_runner_for_type, list_available_runners, load_context
from mlinterp.errors import SpecError
from mlinterp.project import load_spec
from mlinterp.tracking.store import open_store

SWEEP: dict[str, Any] = {"type": "family_1d_sweep", "feature_id": 0, "model_type": "planted", "variables": {"family": "power"}}


@pytest.fixture
def project(tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with a project of token sets, which is the working folder."""
    shutil.copyfile(template, tmp_path / "mlruns.db")
    folder = token_sets.make(tmp_path)
    monkeypatch.chdir(folder)
    return folder


def n_runs(project: Path) -> int:
    store = open_store(project.parents[1])
    return len(store.client.search_runs([store.experiment_id("fighters")]))


def test_a_spec_says_what_it_is_called_and_what_its_variables_are(tmp_path: Path) -> None:
    spec = ExperimentSpec(**{**SWEEP, "type": ExperimentType.FAMILY_1D_SWEEP, "id": "20260101_120000"})
    assert spec.to_filename() == "20260101_120000__f0__family-1d-sweep.json"
    assert (spec.model_type, spec.subject) == ("planted", "planted")
    assert spec.get_typed_variables().include_absent is True
    nameless = ExperimentSpec(**SWEEP)
    assert nameless.to_filename() == f"{nameless.sha256()[:12]}__f0__family-1d-sweep.json"
    path = tmp_path / nameless.to_filename()
    path.write_text(nameless.model_dump_json())
    assert ExperimentSpec.model_validate_json(path.read_text()) == nameless
    assert load_spec(path).spec.sha256() == nameless.sha256()


def test_the_documented_example_is_a_valid_spec_as_it_stands() -> None:
    path = Path(mlinterp.__file__).parents[1] / "projects" / "splatoon" / "specs" / "example.json"
    spec = ExperimentSpec.model_validate_json(path.read_text())
    assert (spec.type, spec.model_type, spec.feature_id) == (ExperimentType.FAMILY_1D_SWEEP, "ultra", 18712)
    assert mlinterp.validate_spec(path).sha256() == spec.sha256()
    assert spec.get_typed_variables().stable_tokens == ["comeback"]


def test_the_names_of_token_sets_import_nothing_heavy() -> None:
    code = (
        "import sys, mlinterp\n"
        "mlinterp.ExperimentSpec(type=mlinterp.ExperimentType.KIT_SWEEP).get_typed_variables()\n"
        "mlinterp.get_runner_for_type('kit_sweep'), mlinterp.list_available_runners(), mlinterp.load_context\n"
        "print([name for name in ('torch', 'lightning', 'mlflow', 'pandas', 'scipy', 'networkx', 'numba') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr


def test_typed_variables_refuse_what_is_misspelt_and_what_is_out_of_bounds() -> None:
    with pytest.raises(SpecError, match=r"variables\.famly: unknown key 'famly'; .*did you mean 'family'\?"):
        ExperimentSpec(**{**SWEEP, "variables": {"famly": "power"}}).get_typed_variables()
    with pytest.raises(SpecError, match=r"variables\.min_n: 0 is out of bounds; must be >= 1"):
        ExperimentSpec(**{**SWEEP, "variables": {"family": "power", "min_n": 0}}).get_typed_variables()


def test_every_token_set_type_has_a_runner_and_a_member() -> None:
    found = list_available_runners()
    assert set(found) == {experiment.type for experiment in types()} == set(ExperimentType)
    for experiment in types():
        assert {get_runner_for_type(name).name for name in found[experiment.type]} == {experiment.type}
    assert get_runner_for_type(ExperimentType.FAMILY_1D_SWEEP).name == "family_1d_sweep"


def test_an_unknown_type_and_one_of_other_subjects_have_no_runner() -> None:
    with pytest.raises(SpecError, match=r"unknown token-set experiment type 'famly_sweep'; .*did you mean 'family_sweep'\?"):
        get_runner_for_type("famly_sweep")
    with pytest.raises(SpecError, match="unknown token-set experiment type 'trace'"):
        get_runner_for_type("trace")


def test_a_runner_makes_an_mlflow_run_whose_result_is_that_of_the_spec_file(project: Path) -> None:
    (project / "sweep.json").write_text(json.dumps(SWEEP))
    summary = mlinterp.run_spec(project / "sweep.json")
    runner, context = get_runner_for_type("family_1d_sweep"), load_context("planted")
    assert runner.run(ExperimentSpec(**SWEEP), context) == summary.result
    assert n_runs(project) == 1

    described = ExperimentSpec(**SWEEP, description="computed anew, since the question differs in a word")
    result = runner.run(described, context)
    assert n_runs(project) == 2
    assert (result.numbers(), result.tables) == (summary.result.numbers(), summary.result.tables)
    assert result.aggregates.mean_delta == pytest.approx(result.numbers()["aggregates/mean_delta"])
    assert result.get_summary().startswith("family_1d_sweep (observational)\n")
    assert result.to_filename() == f"{described.sha256()[:12]}__result.json"


def test_a_question_without_an_answer_is_a_result_that_says_why_and_a_failed_run(project: Path) -> None:
    spec = ExperimentSpec(**SWEEP, dataset_slice={"activation_threshold": 99.0})
    result = get_runner_for_type(spec.type).run(spec, load_context("planted"))
    assert (result.success, result.subject) == (False, "planted")
    assert "leaves none of 120 contexts" in result.get_summary()
    store = open_store(project.parents[1])
    (run,) = store.client.search_runs([store.experiment_id("fighters")])
    assert run.info.status == "FAILED"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"type": "trace", "variables": {"sites": ["pooled"]}}, "type: is 'trace'; this runner runs family_1d_sweep"),
        ({"model_type": "learned"}, "subject: is 'learned'; the context is of 'planted'"),
        ({"variables": {"family": "powr"}}, "unknown family 'powr'; allowed: power, speed, shield; did you mean 'power'?"),
        ({"feature_id": None}, "feature_id: names no latent"),
        ({"feature_id": 99}, "feature_id: latent 99 does not exist; 'planted' has neurons 0-4 at pooled"),
    ],
)
def test_a_runner_refuses_what_is_wrong(project: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError) as refused:
        get_runner_for_type("family_1d_sweep").run(ExperimentSpec(**{**SWEEP, **changes}), load_context("planted"))
    assert words in str(refused.value)


def test_a_context_knows_its_domain_and_its_latents(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = load_context("planted")
    assert [family.name for family in context.families] == ["power", "speed", "shield"]
    assert context.groups["axe"] == {"class": "melee", "size": "large"}
    assert [context.id_to_token(context.token_to_id(token)) for token in ("power_6", "shield")] == ["power_6", "shield"]
    assert context.get_feature_ids() == range(5)
    full = ({"power_3", "power_6", "power_12"}, "bow")
    assert context.feature_activation([full, ((), None)], 0).tolist() == [2.0, 0.0]
    table = context.package.contexts("test")
    count = table.incidence[:, 0:3].sum(axis=1)
    np.testing.assert_array_equal(context.feature_activation(table, 0), np.maximum(count - 1, 0))
    with pytest.raises(SpecError, match="did you mean 'power_6'"):
        context.token_to_id("powr_6")
    with pytest.raises(SpecError, match="there is no token number 7; 0 to 6"):
        context.id_to_token(7)


def test_a_context_is_found_by_subject_or_by_project_and_subject(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.parents[1])
    assert load_context("fighters/planted").project.root == project
    assert load_context("planted").project.root == project
    (project / "project.yaml").write_text(
        yaml.safe_dump(
            {"name": "fighters", "subjects": {"planted": token_sets.PLANTED, "trm": {"kind": "trm", "task": {"name": "sudoku4"}}}}
        )
    )
    for name, words in {
        "plantd": "unknown subject 'plantd'; allowed: planted, trm; did you mean 'planted'?",
        "fightrs/planted": "unknown project 'fightrs'; allowed: fighters; did you mean 'fighters'?",
        "trm": "subject: 'trm' is a trm subject",
    }.items():
        with pytest.raises(SpecError) as refused:
            load_context(name)
        assert words in str(refused.value)


def test_the_latents_of_a_context_are_those_of_the_sae_that_its_subject_takes(project: Path) -> None:
    """What specs on a subject take where they name nothing, its context takes too."""
    declared = yaml.safe_load((project / "project.yaml").read_text())
    declared["subjects"]["learned"]["inputs"] = {"subject": "latest", "sae": "latest"}
    (project / "project.yaml").write_text(yaml.safe_dump(declared))
    with pytest.raises(SpecError, match="no finished run that still stands has produced a"):
        load_context("learned").get_feature_ids()
    study = {
        "type": "study",
        "subject": "learned",
        "steps": [
            {"name": "fit", "type": "subject_fit", "variables": {"steps": 5, "eval_every": 5}},
            {
                "name": "trace",
                "type": "trace",
                "inputs": {"subject": "@fit"},
                "variables": {"sites": ["pooled"], "examples": {"split": "train", "n": 128}},
            },
            {
                "name": "sae",
                "type": "sae_fit",
                "inputs": {"subject": "@fit", "trace": "@trace"},
                "variables": {"site": "pooled", "activation": "relu-l1", "d_sae": 24, "steps": 5, "batch_size": 32},
            },
        ],
    }
    (project / "study.yaml").write_text(yaml.safe_dump(study))
    assert mlinterp.run_spec(project / "study.yaml").n_failed == 0
    context = load_context("learned")
    assert context.get_feature_ids() == range(24)
    active = context.feature_activation(context.package.contexts("test"), 3)
    result = get_runner_for_type("family_1d_sweep").run(
        ExperimentSpec(type="family_1d_sweep", feature_id=3, variables={"family": "power", "min_n": 1}), context
    )
    assert {"sae", "subject"} <= result.inputs.keys()
    assert result.diagnostics.base_activation_range == (active.min(), active.max())
