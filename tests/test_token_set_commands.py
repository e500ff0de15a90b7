"""The command line of token sets: flags, what they mean, and what is printed and written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import token_sets
import yaml
from recorded import Said

import mlinterp
from mlinterp.experiments import catalog
from mlinterp.project import find_project
from mlinterp.result import ExperimentResult
from mlinterp.result_files import write_results
from mlinterp.token_set_commands import COMMANDS, Command, spec_of
from mlinterp.tracking.store import open_store

SWEEP = ["family-sweep", "-f", "0", "-m", "planted", "--family", "power", "--quiet"]


@pytest.fixture
def project(tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with a project of token sets, which is the working folder."""
    shutil.copyfile(template, tmp_path / "mlruns.db")
    folder = token_sets.make(tmp_path)
    monkeypatch.chdir(folder)
    return folder


def spec_said(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    said = Said(capsys, *arguments, "--dry-run", "--format", "json")
    assert (said.code, said.err) == (0, "")
    return dict(json.loads(said.out))


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_flag_sets_a_variable_of_its_type(command: Command) -> None:
    fields = catalog.find(command.type).Variables.model_fields
    assert [name for name in ("feature", *(flag.field for flag in command.flags)) if name not in fields] == []


@pytest.mark.parametrize(
    ("line", "variables"),
    [
        ("family-sweep --family power", {"family": "power"}),
        (
            "family-sweep --family power --rungs 3,6 --no-absent --mode interventional",
            {"family": "power", "rungs": [3, 6], "include_absent": False, "mode": "interventional"},
        ),
        (
            "heatmap --family-x power --family-y speed --rungs-x 3,6 --rungs-y 1",
            {"family_x": "power", "family_y": "speed", "rungs_x": [3, 6], "rungs_y": [1]},
        ),
        (
            "weapon-sweep --top-k 2 --min-examples 3 --condition-family speed",
            {"top_k_weapons": 2, "min_examples": 3, "condition_family": "speed"},
        ),
        ("kit-sweep --combinations", {"analyze_combinations": True, "top_k": 15}),
        ("kit-sweep --analyze-combinations --top-k 3", {"analyze_combinations": True, "top_k": 3}),
        (
            "binary --tokens shield --primary-family power --min-samples 12 --high-percentile 95",
            {"binary_tokens": ["shield"], "primary_family": "power", "min_samples": 12, "high_percentile": 0.95},
        ),
        ("binary", {"min_samples": 20}),
        (
            "coverage --tokens shield,power --threshold 0.2 --no-weapons",
            {"tokens_to_check": ["shield", "power"], "coverage_threshold": 0.2, "include_weapons": False},
        ),
        ("token-influence", {"high_percentile": 0.9}),
        (
            "token-influence --high-percentile 0.995 --no-collapse --min-samples 30",
            {"high_percentile": 0.995, "collapse_families": False, "min_samples": 30},
        ),
    ],
)
def test_flags_mean_the_spec_that_a_file_would_hold(
    project: Path, capsys: pytest.CaptureFixture[str], line: str, variables: dict[str, Any]
) -> None:
    name, *flags = line.split()
    found = spec_said(capsys, name, "--feature-id", "1", "--model", "planted", *flags)
    command = next(command for command in COMMANDS if command.name == name)
    assert found == {"type": command.type, "subject": "planted", "feature_id": 1, "variables": variables}


def test_a_percentile_is_the_same_as_a_share(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    percent, share = (
        spec_said(capsys, "token-influence", "-f", "0", "-m", "planted", "--high-percentile", given) for given in ("90", "0.9")
    )
    assert percent == share


def test_set_reaches_every_field_of_the_spec(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = spec_said(capsys, *SWEEP, "--set", "seed=3", "--set", "variables.min_n=2", "--set", "dataset_slice.sample_size=50")
    assert (found["seed"], found["variables"]["min_n"], found["dataset_slice"]) == (3, 2, {"sample_size": 50})


def test_a_concept_may_stand_in_for_the_latent(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = spec_said(capsys, "family-sweep", "--feature", "guarded", "-m", "planted", "--family", "power")
    assert ("feature_id" in found, found["variables"]) == (False, {"family": "power", "feature": "guarded"})


def test_the_subject_is_ultra_or_the_only_one_of_token_sets(tmp_path: Path) -> None:
    command = COMMANDS[0]
    folder = token_sets.make(tmp_path, ultra=token_sets.LEARNED)
    assert spec_of(command, {"feature_id": 0, "flag_0": "power"}, find_project(folder)).subject == "ultra"
    trm = {"kind": "trm", "task": {"name": "sudoku4"}}
    (folder / "project.yaml").write_text(yaml.safe_dump({"name": "one", "subjects": {"trm": trm, "only": token_sets.PLANTED}}))
    assert spec_of(command, {"feature_id": 0, "flag_0": "power"}, find_project(folder)).subject == "only"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*SWEEP, "--rungs", "3,x"], "--rungs: 'x' is no rung; whole numbers with commas between, such as 3,6,12"),
        ([*SWEEP, "--rungs", "3,,6"], "--rungs: '3,,6' has an empty place"),
        ([*SWEEP, "--mode", "guess"], "Invalid value for '--mode'"),
        ([*SWEEP, "--format", "yaml"], "Invalid value for '--format'"),
        ([*SWEEP, "--rungz", "3"], "No such option: --rungz"),
        (
            ["family-sweep", "-f", "0", "--family", "power"],
            "--model: project 'fighters' has 2 subjects of token sets; name one: learned, planted",
        ),
        (
            ["family-sweep", "-f", "0", "-m", "plantd", "--family", "power"],
            "subject: unknown subject 'plantd'; allowed: learned, planted; did",
        ),
        (["family-sweep", "-f", "0", "-m", "planted", "--family", "powr"], "variables.family: unknown family 'powr'"),
        (["family-sweep", "-f", "0", "-m", "planted"], "variables.family: is missing"),
        (["family-sweep", "-m", "planted", "--family", "power"], "feature_id: names no latent"),
        (["family-sweep", "-f", "many"], "Invalid value for '--feature-id'"),
        ([*SWEEP, "--rungs", "3,99"], "variables.rungs[1]: 99 is above every rung of 'power'; its rungs: 3, 6, 12"),
    ],
)
@pytest.mark.parametrize("dry", [["--dry-run"], []], ids=["dry run", "run"])
def test_a_wrong_command_line_is_one_line_before_a_run_exists(
    project: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str, dry: list[str]
) -> None:
    said = Said(capsys, *arguments, *dry)
    assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert words in said.err
    assert not (project.parents[1] / ".mlinterp").exists()


def test_a_dry_run_says_what_would_run_and_runs_nothing(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "sweep.json").write_text(
        json.dumps({"type": "family_1d_sweep", "model_type": "planted", "feature_id": 0, "variables": {"family": "power"}})
    )
    own, of_file = Said(capsys, *SWEEP, "--dry-run"), Said(capsys, "run", "--spec-path", "sweep.json", "--dry-run")
    assert own.out.startswith("family_1d_sweep  planted  1 cell  ")
    assert of_file.out == f"sweep.json: {own.out}"
    (project / "sweep.json").write_text(
        json.dumps({"type": "family_1d_sweep", "model_type": "planted", "feature_id": 0, "variables": {"famly": "power"}})
    )
    wrong = Said(capsys, "run", "--spec-path", "sweep.json", "--dry-run")
    assert (wrong.code, "variables.famly: unknown key 'famly'" in wrong.err, "did you mean 'family'?" in wrong.err) == (2, True, True)
    assert not (project.parents[1] / ".mlinterp").exists()


def test_the_result_is_written_printed_and_that_of_the_spec_file(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "sweep.json").write_text(
        json.dumps({"id": "first", "type": "family_1d_sweep", "model_type": "planted", "feature_id": 0, "variables": {"family": "power"}})
    )
    of_file = Said(capsys, "run", "--spec-path", "sweep.json", "--output-dir", "out", "--quiet")
    assert (of_file.code, "wrote out/first__result.json" in of_file.out) == (0, True)
    written = ExperimentResult.model_validate_json((project / "out" / "first__result.json").read_bytes())
    assert (written.subject, written.variables["family"], written.hypothesis, written.dataset_slice["split"]) == (
        "planted",
        "power",
        None,
        "test",
    )
    assert {"rung_stats", "rung_deltas"} <= written.tables.keys()
    assert written.versions["mlinterp"] == mlinterp.__version__

    printed = Said(capsys, *SWEEP, "--format", "json", "--output-dir", "out")
    assert ExperimentResult.model_validate_json(printed.out) == written  # the same question, so the same run
    assert printed.err == "wrote out/first__result.json\n"
    assert Said(capsys, *SWEEP, "--format", "markdown").out.startswith("# family_1d_sweep · planted · latent 0\n\n**Observational.**")
    seen = Said(capsys, *SWEEP).out
    assert "FINISHED, as before" in seen
    assert "POW_12" in seen
    assert "\nobservational: " in seen


def test_a_result_file_of_another_question_is_kept(project: Path) -> None:
    data = {"id": "mine", "type": "family_1d_sweep", "subject": "planted", "feature_id": 0}
    first, other = (
        mlinterp.run_spec(mlinterp.ExperimentSpec.model_validate({**data, "variables": {"family": family}}), project=project)
        for family in ("power", "speed")
    )
    folder = project / "out"
    assert [path.name for path in write_results(first, folder)] == ["mine__result.json"]
    before = (folder / "mine__result.json").read_bytes()
    assert other.result is not None
    assert [path.name for path in write_results(other, folder)] == [f"{other.result.spec_sha256[:12]}__mine__result.json"]
    assert [path.name for path in write_results(first, folder)] == ["mine__result.json"]
    assert (folder / "mine__result.json").read_bytes() == before


def test_types_describes_a_type_with_its_variables(capsys: pytest.CaptureFixture[str]) -> None:
    text = Said(capsys, "types", "family_sweep").out
    assert text.startswith("family_1d_sweep: How a latent responds")
    assert "modes: observational, interventional" in text
    assert "an integer, >= 1" in text
    found = json.loads(Said(capsys, "types", "family_1d_sweep", "--json").out)
    assert next(entry for entry in found["variables"] if entry["name"] == "family")["required"]
    assert "did you mean 'family_1d_sweep'?" in Said(capsys, "types", "family_1d_swep").err
    assert Said(capsys, "--list-types").out == Said(capsys, "types").out


def test_subjects_complete_by_tab(project: Path) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(mlinterp.__file__).parents[1]),
        "_MLINTERP_COMPLETE": "complete_bash",
        "COMP_WORDS": "mlinterp family-sweep --model pl",
        "COMP_CWORD": "3",
    }
    done = subprocess.run([sys.executable, "-m", "mlinterp.cli"], capture_output=True, text=True, cwd=project, env=environment, check=False)
    assert done.stdout.split() == ["planted"], done.stderr


def test_a_run_that_cannot_answer_ends_with_its_code(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = Said(capsys, *SWEEP, "--set", "dataset_slice.activation_threshold=99")
    assert (said.code, said.out) == (7, "")
    assert "the dataset slice (activation_threshold 99.0) leaves none of 120 contexts" in said.err
    (run,) = open_store(project.parents[1]).client.search_runs([open_store(project.parents[1]).experiment_id("fighters")])
    assert run.info.status == "FAILED"
