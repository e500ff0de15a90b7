"""The command line: light, typed, and honest about what went wrong."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

import mlinterp.errors
from mlinterp.cli import main
from mlinterp.errors import Interrupted, SpecError, VerificationError
from mlinterp.experiment_commands import build_spec, overrides
from mlinterp.experiments import catalog
from mlinterp.experiments.base import Experiment
from mlinterp.io.specfile import read_document
from mlinterp.project import load_spec

PROJECT = """\
name: small
subjects:
  trm4: {kind: trm, task: {name: sudoku4}, model: {d_model: 8, n_layers: 1, H_cycles: 1, L_cycles: 1, n_sup: 1}}
  trm6: {kind: trm, task: {name: sudoku6}}
"""
TINY = {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 1, "n_positions": 8}
TRACE = "type: trace\nsubject: trm4\nvariables:\n  sites: [z_L]\n  examples: {n: 4}\n"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "projects" / "small"
    folder.mkdir(parents=True)
    (folder / "project.yaml").write_text(PROJECT)
    (folder / "trace.yaml").write_text(TRACE)
    monkeypatch.chdir(folder)
    return folder


class Said:
    """What a command line printed, and its exit code."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> None:
        self.code = 0
        try:
            main(list(arguments))
        except SystemExit as stop:
            self.code = int(stop.code or 0)
        self.out, self.err = capsys.readouterr()


def shell(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    package = Path(mlinterp.errors.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=cwd, env=environment, check=False)


@pytest.mark.parametrize("arguments", [["--help"], ["types"], ["validate", "trace.yaml"], ["schema", "trace"], ["new", "trace"]])
def test_light_commands_import_nothing_heavy(root: Path, arguments: list[str]) -> None:
    code = (
        "import sys, time; from mlinterp.cli import main\n"
        f"main({arguments!r})\n"
        "heavy = [m for m in ('torch', 'lightning', 'transformers', 'mlflow', 'pandas', 'scipy', 'matplotlib') if m in sys.modules]\n"
        "print(heavy, time.process_time(), file=sys.stderr)"
    )
    done = shell("-c", code, cwd=root)
    heavy, _, seconds = done.stderr.strip().rpartition(" ")
    assert (done.returncode, heavy) == (0, "[]")
    assert float(seconds) < 1.5


def test_validate_says_type_subject_cells_and_digest(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "sweep.yaml").write_text(TRACE + "matrix: {seed: [0, 1, 2], subject: [trm4, trm6]}\n")
    (root / "study.yaml").write_text(
        "type: study\nsubject: trm4\nsteps:\n- {name: a, type: trace, variables: {sites: [z_L]}}\n"
        "- {name: b, type: trace, subject: trm6, variables: {sites: [z_H]}, matrix: {seed: [1, 2]}}\n"
    )
    said = Said(capsys, "validate", "trace.yaml", "sweep.yaml", "study.yaml")
    digests = [load_spec(root / name).spec.sha256()[:12] for name in ("trace.yaml", "sweep.yaml", "study.yaml")]
    assert said.out.splitlines() == [
        f"trace.yaml: trace  trm4  1 cell  {digests[0]}",
        f"sweep.yaml: trace  trm4, trm6  6 cells  {digests[1]}",
        f"study.yaml: study  trm4, trm6  2 steps  3 cells  {digests[2]}",
    ]
    assert (said.code, said.err) == (0, "")


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("type: trace", "type: trase", "spec.yaml:1: type: unknown experiment type 'trase'; allowed: "),
        ("subject: trm4", "subject: trm5", "spec.yaml:2: subject: unknown subject 'trm5'; allowed: trm4, trm6; did you mean 'trm"),
        ("subject: trm4\n", "", "spec.yaml: subject: trace needs a subject"),
        ("sites: [z_L]", "site: [z_L]", "spec.yaml:4: variables.site: unknown key 'site'; allowed: sites,"),
        ("n: 4", "n: 0", "spec.yaml:5: variables.examples.n: 0 is out of bounds; must be >= 1 and <= 10000000"),
        (
            "sites: [z_L]",
            "sites: [z_L]\n  granularity: cycles",
            "variables.granularity: unknown value 'cycles'; allowed: sup, cycle, latent; did you",
        ),
        (
            "subject: trm4",
            "subject: trm4\ninputs: {trace: latest}",
            "spec.yaml:3: inputs.trace: unknown input of trace 'trace'; allowed: subject, sae",
        ),
        ("subject: trm4", "subject: trm4\ninputs: {subject: '@x'}", "spec.yaml:3: inputs.subject: '@x' names a step"),
        ("subject: trm4", "subject: trm4\nmatrix: {examples.n: [1, 0]}", "spec.yaml:3: matrix.examples.n: 0 is out of bounds"),
        ("subject: trm4", "subject: trm4\nmatrix: {subject: [trm4, trm7]}", "spec.yaml:3: matrix.subject: unknown subject 'trm7'"),
        ("subject: trm4", "subject: trm4\nmatrix: {seed: [1, x]}", "spec.yaml:3: matrix.seed: 'x' is not an integer"),
        ("subject: trm4", "subject: trm4\nmatrix: {sites.x: [1]}", "spec.yaml:3: matrix.sites.x: 'sites' is no block"),
        ("type: trace", "type: [", "spec.yaml:3: not valid YAML"),
    ],
)
def test_validate_refuses_with_file_line_and_field(root: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, line: str) -> None:
    (root / "spec.yaml").write_text(TRACE.replace(old, new))
    said = Said(capsys, "validate", "spec.yaml")
    assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert said.err.startswith("mlinterp: ")
    assert line in said.err


STUDY = """\
type: study
subject: trm4
steps:
  - {name: fit, type: subject_fit, variables: {steps: 5}}
  - name: look
    type: trace
    inputs: {subject: "@fit"}
    variables: {sites: [z_L]}
"""


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("steps: 5", "steps: 0", "study.yaml:4: steps.0.variables.steps: 0 is out of bounds; must be >= 1"),
        ("sites: [z_L]", "sitse: [z_L]", "study.yaml:8: steps.1.variables.sitse: unknown key 'sitse'"),
        ("type: trace", "type: tracee", "study.yaml:6: steps.1.type: unknown experiment type 'tracee'"),
        ('"@fit"', '"@fits"', "which is no earlier step (fit)"),
        ("type: trace", "type: study", "study.yaml:5: steps.1: a study has steps and nothing else has"),
        ("steps: 5}", "steps: 5}, matrix: {seed: [1, 2]}", "study.yaml:7: steps.1.inputs.subject: step 'fit' is a sweep"),
        ("type: subject_fit, variables: {steps: 5}", "type: trace, variables: {sites: [z_L]}", "step 'fit' (trace) makes a trace; no step"),
        ("sites: [z_L]}", "sites: [z_L]}\n    matrix: {batch_size: [8, 0]}", "study.yaml:9: steps.1.matrix.batch_size: 0 is out of"),
    ],
)
def test_a_study_is_checked_step_by_step(root: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, line: str) -> None:
    (root / "study.yaml").write_text(STUDY)
    assert Said(capsys, "validate", "study.yaml").code == 0
    (root / "study.yaml").write_text(STUDY.replace(old, new))
    said = Said(capsys, "validate", "study.yaml")
    assert said.code == 2
    assert line in said.err


def test_every_failing_file_gets_its_line(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "a.yaml").write_text("type: [")
    said = Said(capsys, "validate", "a.yaml", "trace.yaml", "b.yaml")
    assert said.code == 2
    assert said.out.startswith("trace.yaml: trace")
    assert [line.split(":")[1].strip() for line in said.err.splitlines()] == ["a.yaml", "b.yaml"]


def test_a_spec_without_a_project_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pyproject.toml").write_text("")
    (tmp_path / "trace.yaml").write_text(TRACE)
    monkeypatch.chdir(tmp_path)
    said = Said(capsys, "validate", "trace.yaml")
    assert said.code == 2
    assert "no project.yaml in" in said.err


def test_set_overrides_fields_and_is_named_in_refusals(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert Said(capsys, "validate", "trace.yaml", "--set", "variables.examples.n=9", "--set", "seed=3").code == 0
    said = Said(capsys, "validate", "trace.yaml", "--set", "variables.examples.n=0")
    assert "mlinterp: --set: variables.examples.n: 0 is out of bounds" in said.err
    assert "is no assignment" in Said(capsys, "validate", "trace.yaml", "--set", "seed").err
    assert "not valid YAML" in Said(capsys, "validate", "trace.yaml", "--set", "seed=[").err
    assert overrides(["a=1e-3", "b=no", "c=[1, x]", "d=x=y"]) == {"a": 0.001, "b": "no", "c": [1, "x"], "d": "x=y"}


def test_run_and_validate_want_a_spec(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("run", "validate"):
        said = Said(capsys, verb)
        assert (said.code, "no spec is named" in said.err) == (2, True)


def test_run_checks_everything_before_the_first_spec_starts(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "bad.yaml").write_text("type: trace\n")
    said = Said(capsys, "run", "--spec=trace.yaml", "--spec=bad.yaml")
    assert (said.code, said.out) == (2, "")
    assert not (root.parents[1] / ".mlinterp").exists()


def test_mlprojects_spec_option_is_a_value_and_never_an_option(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = Said(capsys, "validate", "--spec=--help")
    assert said.code == 2
    assert "'' is no format of a spec" in said.err
    assert Said(capsys, "validate", "--spec=trace.yaml").code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rnu"], "No such command 'rnu'"),
        (["validate", "--nope"], "No such option: --nope"),
        (["trace", "--batch-size", "many"], "Invalid value for '--batch-size'"),
        (["trace", "--granularity", "cycles"], "'cycles' is not one of 'sup', 'cycle', 'latent'"),
        (["new"], "Missing argument 'TYPE'"),
        (["new", "trase"], "unknown experiment type 'trase'"),
        (["schema", "trase"], "unknown experiment type 'trase'"),
        (["trace", "--project", "smal", "--sites", "z_L"], "--project: unknown project 'smal'; allowed: small; did you mean 'small'?"),
        (["trace", "--subject", "trm4"], "variables.sites: is missing; expected a list"),
        (["trace", "--subject", "trm4", "--sites", "z_L", "--batch-size", "0"], "variables.batch_size: 0 is out of bounds; must be >= 1"),
        (["trace", "--subject", "trm5", "--sites", "z_L"], "subject: unknown subject 'trm5'"),
        (["trace", "--input", "sae", "--sites", "z_L"], "--input: 'sae' is no assignment"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(
    root: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    said = Said(capsys, *arguments)
    assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert said.err.startswith("mlinterp: ")
    assert words in said.err


def test_help_and_version_are_no_errors(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "Usage: mlinterp" in Said(capsys).out
    assert Said(capsys, "--version").out == f"mlinterp {mlinterp.__version__}\n"
    commands = ["run", "validate", "types", "schema", "new", "resume", "ui", "runs", *catalog.experiments()]
    top = Said(capsys, "--help").out
    for command in commands:
        said = Said(capsys, command, "--help")
        assert said.code == 0
        assert command in top
        assert f"mlinterp {command}" in said.out
        assert "For example" in said.out


def test_no_type_hides_in_a_part_of_another() -> None:
    package = catalog.package
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        declared = getattr(importlib.import_module(module.name), "EXPERIMENT", None)
        assert declared is None or catalog.find(declared.type) is declared, module.name


def test_types_as_json_is_the_catalog(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(Said(capsys, "types", "--json").out)
    assert [item["type"] for item in found] == [*catalog.experiments()]
    table = Said(capsys, "types").out
    assert all(item["type"] in table for item in found)


@pytest.mark.parametrize("name", [*catalog.experiments(), "study"])
def test_a_new_spec_is_valid_and_says_what_the_example_says(root: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert Said(capsys, "new", name, "-o", "fresh.yaml").code == 0
    said = Said(capsys, "validate", "fresh.yaml")
    if name != "study" and catalog.experiments()[name].check_domain is not None:
        assert (said.code, "and this type is about token sets" in said.err) == (2, True)  # the project has no such subject
    else:
        assert (said.code, said.err) == (0, "")
    if name != "study":
        experiment = catalog.experiments()[name]
        data = read_document(root / "fresh.yaml").data
        assert data.get("variables", {}) == experiment.example.get("variables", {})
        text = (root / "fresh.yaml").read_text()
        assert all(f"{field}:" in text for field in experiment.Variables.model_fields)
    again = Said(capsys, "new", name, "-o", "fresh.yaml")
    assert (again.code, "exists already" in again.err) == (2, True)
    assert Said(capsys, "new", name).out == (root / "fresh.yaml").read_text()


@pytest.mark.parametrize(
    ("source", "weights"),
    [({"hub": {"name": "openai-community/gpt2", "revision": "0" * 40}}, {}), ({"config": TINY}, {"subject": "latest"})],
    ids=["pretrained", "trained here"],
)
def test_a_new_spec_takes_trained_weights_where_the_model_begins_untrained(
    root: Path, capsys: pytest.CaptureFixture[str], source: dict[str, Any], weights: dict[str, str]
) -> None:
    tokenizer = {"train_bpe": {"vocab_size": 260}} if "config" in source else "pretrained"
    subject = {"kind": "huggingface", "source": source, "data": {"kind": "text", "root": "text", "context": 8, "tokenizer": tokenizer}}
    (root / "project.yaml").write_text(json.dumps({"name": "small", "subjects": {"gpt": subject}}))
    for name in ("activation_patching", "logit_lens", "active_features"):
        assert Said(capsys, "new", name, "-o", f"{name}.yaml").code == 0
        inputs = read_document(root / f"{name}.yaml").data.get("inputs", {})
        assert {role: inputs[role] for role in inputs if role != "sae"} == weights
        assert Said(capsys, "validate", f"{name}.yaml").code == 0


@pytest.mark.parametrize("name", [None, *catalog.experiments()])
def test_the_schema_accepts_examples_and_refuses_misspellings(capsys: pytest.CaptureFixture[str], name: str | None) -> None:
    schema = json.loads(Said(capsys, "schema", *([name] if name else [])).out)
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    experiment = catalog.experiments()[name or "trace"]
    spec: dict[str, Any] = {"type": experiment.type, **experiment.example}
    assert [error.message for error in validator.iter_errors(spec)] == []
    assert validator.is_valid({"model_type": "x", **{key: value for key, value in spec.items() if key != "subject"}})
    assert not validator.is_valid({**spec, "sed": 1})
    assert validator.is_valid({**spec, "variables": {**spec.get("variables", {}), "no_such_variable": 1}}) == (name is None)


@pytest.mark.parametrize("experiment", catalog.experiments().values(), ids=[*catalog.experiments()])
def test_options_of_a_type_build_the_spec_that_a_file_would(experiment: Experiment) -> None:
    variables = experiment.example.get("variables", {})
    given: dict[str, Any] = dict.fromkeys(("subject", "feature_id", "hypothesis", "seed", "input", "set"))
    given |= {
        "subject": "trm4",
        "seed": 3,
        "input": ["sae=latest"],
        "set": [f"variables.{key}={json.dumps(value)}" for key, value in variables.items()],
    }
    spec = build_spec(experiment, given)
    assert (spec.type, spec.subject, spec.seed, spec.inputs, spec.variables) == (experiment.type, "trm4", 3, {"sae": "latest"}, variables)


def test_options_carry_bounds_defaults_and_choices(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = Said(capsys, "trace", "--help").out
    assert "<sup|cycle|latent>" in text
    assert "(>= 1 and <= 4096) [default: 32]" in text
    assert "[required]" in text
    assert "--states-file" in text
    assert "--no-states-file" in text
    assert "Set with --set variables.NAME=…: examples, intervention." in text


def test_pairs_and_positions_of_a_transformers_types_are_options(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = catalog.experiments()["activation_patching"]
    given: dict[str, Any] = dict.fromkeys(("subject", "feature_id", "hypothesis", "seed", "input", "set"))
    for text, value in (("all", "all"), ("[0, 2]", [0, 2])):
        spec = build_spec(asked, {**given, "variable_pairs": "pairs.jsonl", "variable_positions": text})
        assert spec.variables == {"pairs": "pairs.jsonl", "positions": value}
    said = Said(capsys, "activation_patching", "-p", ".", "--subject", "trm4", "--pairs", "nowhere.jsonl", "--positions", "all")
    assert (said.code, said.err) == (3, "mlinterp: file of prompt pairs 'nowhere.jsonl' does not exist in the project's folder 'small'\n")
    text = Said(capsys, "activation_patching", "--help").out
    assert "--pairs pairs.jsonl" in text
    assert "{'clean'" not in text


def test_a_file_of_pairs_is_read_before_anything_runs(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "spec.yaml").write_text("type: activation_patching\nsubject: trm4\nvariables:\n  pairs: pairs.jsonl\n")
    assert Said(capsys, "validate", "spec.yaml").code == 3
    (root / "pairs.jsonl").write_text('{"clean": "a", "corrupted": "b"}\n{"clean": "a"}\n')
    assert Said(capsys, "validate", "spec.yaml").err == "mlinterp: pairs.jsonl:2: corrupted: Field required\n"
    (root / "spec.yaml").write_text("type: activation_patching\nsubject: trm4\nvariables:\n  pairs: pairs.json\n")
    refused = "mlinterp: spec.yaml:4: variables.pairs: 'pairs.json' is no list of pairs; pairs, or a .jsonl file of the project\n"
    assert Said(capsys, "validate", "spec.yaml").err == refused
    (root / "pairs.jsonl").write_text('{"clean": "a", "corrupted": "b"}\n')
    (root / "spec.yaml").write_text("type: activation_patching\nsubject: trm4\nvariables:\n  pairs: pairs.jsonl\n")
    assert Said(capsys, "validate", "spec.yaml").code == 0


def test_tab_completes_types_and_choices(root: Path) -> None:
    package = Path(mlinterp.errors.__file__).parents[1]
    for words, expected in (("mlinterp tra", "trace"), ("mlinterp schema tr", "trace"), ("mlinterp trace --granularity cy", "cycle")):
        environment = {
            **os.environ,
            "PYTHONPATH": str(package),
            "_MLINTERP_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split()) - 1),
        }
        done = subprocess.run(
            [sys.executable, "-m", "mlinterp.cli"], capture_output=True, text=True, cwd=root, env=environment, check=False
        )
        assert expected in done.stdout.split(), done.stderr


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (SpecError("is wrong\nhere \x1b[31m\u202e", field="x"), 2, "mlinterp: x: is wrong here \\x1b[31m\\u202e"),
        (VerificationError("damaged"), 4, "mlinterp: damaged"),
        (Interrupted(15), 143, "mlinterp: stopped by signal 15; `mlinterp runs` names the run, `mlinterp resume RUN` goes on with it"),
        (KeyboardInterrupt(), 130, "mlinterp: stopped"),
        (SpecError("see https://ada:hunter2@host/x"), 2, "mlinterp: see https://host/x"),
    ],
)
def test_every_error_ends_as_one_safe_line_with_its_code(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, line: str
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(catalog, "experiments", fail)
    said = Said(capsys, "types")
    assert (said.code, said.out, said.err) == (code, "", line + "\n")


def test_a_bug_leaves_its_traceback_in_a_file(root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_TOKEN", "canary-0123456789")

    def fail() -> None:
        raise RuntimeError("lost canary-0123456789\nand more")

    monkeypatch.setattr(catalog, "experiments", fail)
    said = Said(capsys, "types")
    (file,) = (root.parents[1] / ".mlinterp" / "errors").iterdir()
    assert (said.code, said.err.count("\n")) == (1, 1)
    assert said.err.startswith("mlinterp: RuntimeError: lost [secret] and more; this is a bug, its traceback is in ")
    assert str(file) in said.err
    text = file.read_text()
    assert "in fail" in text
    assert "canary" not in text + said.err


def test_a_reader_that_goes_away_is_met_with_silence(root: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    package = Path(mlinterp.errors.__file__).parents[1]
    with os.fdopen(write, "w") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "mlinterp.cli", "types"],
            stdout=closed,
            stderr=subprocess.PIPE,
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(package)},
            check=False,
        )
    assert (done.returncode, done.stderr) == (141, b"")


def test_output_survives_a_terminal_that_knows_no_unicode(root: Path) -> None:
    (root / "trace.yaml").write_text("type: é…\n")
    package = Path(mlinterp.errors.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(package), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-m", "mlinterp.cli", "validate", "trace.yaml"],
        capture_output=True,
        text=True,
        cwd=root,
        env=environment,
        check=False,
    )
    assert done.returncode == 2
    assert "'\\xe9\\u2026' is not allowed" in done.stderr


@pytest.mark.slow
def test_a_run_ends_with_its_numbers_and_the_second_one_is_the_first(root: Path) -> None:
    first, second = (shell("-m", "mlinterp.cli", "run", "trace.yaml", "--quiet", cwd=root) for _ in range(2))
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert "FINISHED" in first.stdout
    assert "look at it: mlinterp ui" in first.stdout
    assert "as before" in second.stdout


@pytest.mark.slow
def test_an_experiment_that_fails_ends_with_its_code_and_a_failed_run(root: Path) -> None:
    failed = shell("-m", "mlinterp.cli", "trace", "--subject", "trm4", "--sites", "nowhere", "--quiet", cwd=root)
    assert (failed.returncode, failed.stderr.splitlines()[-1]) == (2, "mlinterp: site: unknown site 'nowhere'; allowed: z_L, z_H")
    assert "failed" in shell("-m", "mlinterp.cli", "runs", cwd=root).stdout
