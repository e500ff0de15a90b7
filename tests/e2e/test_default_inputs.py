"""What a subject's specs take where they name nothing themselves, and that a project's own files are part of what a run is about."""

from __future__ import annotations

from pathlib import Path

import pytest
import token_sets

import mlinterp
from mlinterp.errors import SpecError
from mlinterp.execution.composite import Composite
from mlinterp.execution.inputs import with_defaults
from mlinterp.project import find_project
from mlinterp.spec import Spec

SWEEP = {"type": "family_1d_sweep", "subject": "learned", "feature_id": 1, "variables": {"family": "power"}}
TRAINED = {**token_sets.LEARNED, "inputs": {"subject": "latest", "sae": "latest"}}
STUDY = {
    "type": "study",
    "subject": "learned",
    "steps": [
        {"name": "fit", "type": "subject_fit", "variables": {"steps": 20}},
        {"name": "trace", "type": "trace", "inputs": {"subject": "@fit"}, "variables": {"sites": ["pooled"], "examples": {"n": 200}}},
        {
            "name": "sae",
            "type": "sae_fit",
            "inputs": {"trace": "@trace", "subject": "@fit"},
            "variables": {"activation": "batchtopk", "k": 2, "d_sae": 24, "steps": 40, "batch_size": 64},
        },
        {**SWEEP, "name": "sweep", "inputs": {"subject": "@fit", "sae": "@sae"}},
    ],
}


def test_a_spec_takes_what_its_subject_says_and_what_it_names_itself_comes_first(tmp_path: Path) -> None:
    project = find_project(token_sets.make(tmp_path, learned=TRAINED))
    assert with_defaults(Spec.model_validate(SWEEP), project).inputs == {"subject": "latest", "sae": "latest"}
    own = Spec.model_validate({**SWEEP, "inputs": {"sae": "models:/mine@champion"}})
    assert with_defaults(own, project).inputs == {"subject": "latest", "sae": "models:/mine@champion"}
    fit = Spec.model_validate({"type": "subject_fit", "subject": "learned", "variables": {"steps": 1}})
    assert with_defaults(fit, project).inputs == {}
    steps = with_defaults(Spec.model_validate({"type": "study", "steps": [{**SWEEP, "name": "a"}]}), project).steps
    assert steps[0].inputs == {"subject": "latest", "sae": "latest"}


def test_nothing_trained_yet_is_said_and_the_newest_is_taken_once_there_is_one(tmp_path: Path) -> None:
    project = token_sets.make(tmp_path, learned=TRAINED)
    with pytest.raises(SpecError, match="no finished run that still stands has produced a"):
        mlinterp.run_spec(Spec.model_validate(SWEEP), project=project)
    study = mlinterp.run_spec(Spec.model_validate(STUDY), project=project)
    step = next(child for child in study.children if child.label == "sweep")
    alone = mlinterp.run_spec(Spec.model_validate(SWEEP), project=project)
    assert alone.result is not None
    assert step.result is not None
    assert alone.result.inputs == step.result.inputs
    assert alone.result.inputs.keys() == {"subject", "sae"}
    assert alone.result.tables == step.result.tables
    swept = mlinterp.run_spec(Spec.model_validate({**SWEEP, "subject": None, "matrix": {"subject": ["learned"]}}), project=project)
    assert swept.children[0].result is not None
    assert swept.children[0].result.tables == step.result.tables
    assert swept.result is not None
    assert swept.result.metrics["aggregates/mean_delta"] == step.result.aggregates.mean_delta


def test_in_a_sweep_over_subjects_each_takes_what_its_own_says(tmp_path: Path) -> None:
    other = {**token_sets.LEARNED, "inputs": {"sae": "models:/other@champion"}}
    project = find_project(token_sets.make(tmp_path, learned=TRAINED, other=other))
    block = {**SWEEP, "matrix": {"subject": ["learned", "other", "planted"]}}
    study = with_defaults(Spec.model_validate({"type": "study", "subject": "learned", "steps": [{**block, "name": "a"}]}), project)
    for swept in (with_defaults(Spec.model_validate(block), project), Composite(study).complete_children(project)[0].spec):
        children = Composite(swept).complete_children(project)
        assert [child.spec.inputs for child in children] == [TRAINED["inputs"], other["inputs"], {}]


def test_what_specs_take_is_no_part_of_a_subject_but_the_files_that_its_python_names_are(tmp_path: Path) -> None:
    project = token_sets.make(tmp_path, learned=TRAINED)
    (project / "truth.yaml").write_text("a: 1")
    (project / "study.yaml").write_text("type: study")
    package = project / "package.py"
    package.write_text(package.read_text() + '\nTRUTH = "truth.yaml"\n')
    before = find_project(project).subject_identity("learned")
    assert "inputs" not in before
    assert sorted(before["files"]) == ["package.py", "truth.yaml"]
    (project / "truth.yaml").write_text("a: 2")
    assert find_project(project).subject_identity("learned")["files"] != before["files"]


def test_a_package_that_fails_is_said_to_and_where(tmp_path: Path) -> None:
    project = find_project(token_sets.make(tmp_path, broken={**token_sets.PLANTED, "options": {"colour": "red"}}))
    with pytest.raises(SpecError, match=r"subjects.broken.package: package.py:build raised AssertionError at package.py:\d+: .*colour"):
        project.data_package("broken")


def test_a_change_of_the_project_s_own_python_is_another_question(tmp_path: Path) -> None:
    project = token_sets.make(tmp_path)
    asked = Spec.model_validate({**SWEEP, "subject": "planted"})
    first = mlinterp.run_spec(asked, project=project)
    assert mlinterp.run_spec(asked, project=project).reused
    package = project / "package.py"
    package.write_text(package.read_text().replace('"test": 120', '"test": 60'))
    second = mlinterp.run_spec(asked, project=project)
    assert not second.reused
    assert (first.result.diagnostics.n_contexts_tested, second.result.diagnostics.n_contexts_tested) == (120, 60)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"variables": {"family": "pwer"}}, "variables.family: unknown family 'pwer'.*did you mean 'power'"),
        (
            {"variables": {"family": "power", "rungs": [3, 13]}},
            r"variables.rungs\[1\]: 13 is above every rung of 'power'; its rungs: 3, 6, 12",
        ),
        (
            {"variables": {"family": "power", "stable_tokens": ["sheild"]}},
            r"stable_tokens\[0\]: unknown token 'sheild'.*did you mean 'shield'",
        ),
        (
            {"variables": {"family": "power", "stable_tokens": ["speed_1", "speed_2"]}},
            r"stable_tokens\[1\]: 'speed_2' is a second token of 'speed'",
        ),
        ({"variables": {"family": "power", "stable_tokens": ["power_3"]}}, r"stable_tokens\[0\]: 'power_3' cannot stay"),
        ({"variables": {"family": "power", "rungs": [0, 3]}}, r"variables.rungs.0: 0 is out of bounds; must be >= 1"),
        ({"constraints": ["one_rung"]}, r"constraints\[0\]: unknown constraint 'one_rung'.*did you mean 'one_rung_per_family'"),
        ({"dataset_slice": {"weapon_filter": ["bo"]}}, r"dataset_slice.weapon_filter\[0\]: unknown weapon 'bo'.*did you mean 'bow'"),
        ({"dataset_slice": {"family_filter": ["x"]}}, r"dataset_slice.family_filter\[0\]: unknown family 'x'"),
        ({"feature_id": None}, "feature_id: names no latent"),
        ({"variables": {"family": "power", "feature": "power"}}, "feature_id: 1 is given, and variables.feature too"),
        ({"variables": {"familly": "power"}}, "variables.familly: unknown key 'familly'.*did you mean 'family'"),
    ],
)
def test_what_the_domain_does_not_have_is_refused_before_a_run_exists(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    from mlinterp.validation import check_spec

    project = token_sets.make(tmp_path)
    spec = Spec.model_validate({**SWEEP, "subject": "planted", **changes})
    with pytest.raises(SpecError, match=words):
        check_spec(spec, find_project(project))
    with pytest.raises(SpecError, match=words):
        mlinterp.run_spec(spec, project=project)
    from mlinterp.tracking.store import open_store

    assert open_store(tmp_path).client.search_runs([open_store(tmp_path).experiment_id("fighters")]) == []


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"sae": "@sae"}, "subjects.learned.inputs.sae: '@sae' names a step, and a subject is part of no study"),
        ({"sae": "newest"}, "subjects.learned.inputs.sae: 'newest' is not allowed"),
        ({"soe": "latest"}, "subjects.learned.inputs.soe: unknown value 'soe'; allowed: 'subject' or 'sae'"),
    ],
)
def test_what_no_spec_could_take_is_refused_where_the_subject_says_it(tmp_path: Path, inputs: dict[str, str], words: str) -> None:
    from mlinterp.validation import check_spec

    folder = token_sets.make(tmp_path, learned={**token_sets.LEARNED, "inputs": inputs})
    for spec in (SWEEP, {"type": "study", "steps": [{**SWEEP, "name": "a"}]}):
        with pytest.raises(SpecError, match=words):
            check_spec(Spec.model_validate(spec), find_project(folder))
