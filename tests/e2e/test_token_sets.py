"""What every token-set type owes: one answer from a file, its subcommand and Python; and a stated outcome for whatever is wrong.

The types are found through the catalog, so one that is added is held to it.
"""

from __future__ import annotations

import json
import shutil
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import token_sets
from recorded import Said
from token_set_types import BARE, BARE_SUBJECT, LATENT, SILENT, SUBJECT, asked, types

import mlinterp
from mlinterp import ExperimentSpec
from mlinterp.errors import SpecError
from mlinterp.experiments.base import Experiment
from mlinterp.experiments.token_sets.declared import Names
from mlinterp.result import Aggregates, Diagnostics, ExperimentResult
from mlinterp.token_set_commands import COMMANDS
from mlinterp.tracking.store import Store, open_store

TYPES = [pytest.param(experiment, id=experiment.type) for experiment in types()]
CASES = [pytest.param(experiment, mode, id=f"{experiment.type}-{mode}") for experiment in types() for mode in experiment.modes]
COMPARE_GROUPS = ("kit_sweep", "weapon_group_analysis", "weapon_sweep")
PLAIN = {"figures": False}
WRONG = {"family": "powr", "token": "shild", "token_or_family": "powr", "attribute": "clss"}
RIGHT = {"family": "power", "token": "shield", "token_or_family": "power", "attribute": "class"}


@dataclass(frozen=True)
class Arena:
    """A workspace with the project `fighters`, which is the working folder."""

    project: Path
    store: Store

    def runs(self) -> list[Any]:
        """Return every run, newest first."""
        return list(self.store.client.search_runs([self.store.experiment_id("fighters")], max_results=5000))

    def write(self, spec: dict[str, Any]) -> str:
        """Write a spec file into the project and return its name."""
        name = f"{spec['type']}.json"
        (self.project / name).write_text(json.dumps(spec))
        return name


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Iterator[Arena]:
    root = tmp_path_factory.mktemp("arena")
    shutil.copyfile(template, root / "mlruns.db")
    project = token_sets.make(root, bare=BARE_SUBJECT)
    (project / "bare.py").write_text(BARE)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(project)
        yield Arena(project, open_store(root))


def refused(arena: Arena, spec: dict[str, Any]) -> str:
    """Return the line that refuses a spec file in a dry run."""
    with pytest.raises(SpecError) as caught:
        mlinterp.validate_spec(arena.write(spec))
    return str(caught.value)


def unanswered(arena: Arena, capsys: pytest.CaptureFixture[str], spec: dict[str, Any]) -> str:
    """Return the one line that says why an experiment cannot answer; its run has FAILED."""
    before = len(arena.runs())
    said = Said(capsys, "run", arena.write(spec), "--quiet")
    assert (said.code, said.err.count("\n")) == (7, 1), said.err or said.out
    runs = arena.runs()
    assert (len(runs), runs[0].info.status) == (before + 1, "FAILED")
    return said.err


@pytest.mark.parametrize(("experiment", "mode"), CASES)
def test_a_type_answers_alike_from_a_file_its_subcommands_and_python(
    arena: Arena, capsys: pytest.CaptureFixture[str], experiment: Experiment, mode: str
) -> None:
    spec = asked(experiment, mode)
    said = Said(capsys, "run", "--spec-path", arena.write(spec), "--output-dir", "out", "--quiet")
    assert (said.code, said.err) == (0, "")
    run = arena.runs()[0]
    assert (run.info.status, run.data.tags["mlinterp.type"], run.data.tags["mlinterp.mode"]) == ("FINISHED", experiment.type, mode)
    assert run.data.tags["mlinterp.feature_id"] == str(spec["feature_id"])

    sets = [word for key, value in spec["variables"].items() for word in ("--set", f"variables.{key}={json.dumps(value)}")]
    for command in [experiment.type, *(command.name for command in COMMANDS if command.type == experiment.type)]:
        told = Said(capsys, command, "--subject", SUBJECT, "--feature-id", str(LATENT), *sets, "--quiet")
        assert (told.code, "FINISHED, as before" in told.out) == (0, True), told.err or told.out

    runner, context = mlinterp.get_runner_for_type(experiment.type), mlinterp.load_context(SUBJECT)
    result = runner.run(ExperimentSpec.model_validate(spec), context)
    assert arena.runs()[0].info.run_id == run.info.run_id
    written = (arena.project / "out" / result.to_filename()).read_bytes()
    assert ExperimentResult.model_validate_json(written) == result
    assert (result.success, result.mode, result.feature_id, result.subject) == (True, mode, LATENT, SUBJECT)
    assert result.variables.items() >= spec["variables"].items()
    assert result.versions["mlinterp"] == mlinterp.__version__
    assert result.tables
    assert all(row["mode"] == mode for table in result.tables.values() for row in table.rows)

    anew = runner.run(ExperimentSpec.model_validate({**spec, "outputs": PLAIN}), context)
    assert anew.spec_sha256 != result.spec_sha256  # another question, so computed and not looked up
    for part in ("mode", "metrics", "estimates", "aggregates", "tables", "diagnostics"):
        assert getattr(anew, part) == getattr(result, part), part
    assert anew.get_summary().startswith(f"{experiment.type} ({mode})")


@pytest.mark.parametrize("experiment", TYPES)
def test_a_type_keeps_of_its_result_what_the_spec_wants(arena: Arena, experiment: Experiment) -> None:
    wanted = dict.fromkeys(("aggregates", "tables", "diagnostics", "figures"), False)
    spec = asked(experiment, outputs=wanted)
    summary = mlinterp.run_spec(arena.write(spec))
    assert summary.result is not None
    result = ExperimentResult.model_validate_json(
        Path(arena.store.client.get_run(summary.run_id).info.artifact_uri, "result.json").read_bytes()
    )
    assert (result.aggregates, result.tables, result.diagnostics, result.figures) == (Aggregates(), {}, Diagnostics(), [])
    artifacts = {item.path for item in arena.store.client.list_artifacts(summary.run_id)}
    assert not artifacts & {"figures", "tables"}


@pytest.mark.parametrize("experiment", TYPES)
def test_a_new_spec_is_valid_where_there_are_token_sets(arena: Arena, capsys: pytest.CaptureFixture[str], experiment: Experiment) -> None:
    path = arena.project / f"new_{experiment.type}.yaml"
    path.write_text(Said(capsys, "new", experiment.type).out)
    assert mlinterp.validate_spec(path).type == experiment.type


@pytest.mark.parametrize("experiment", TYPES)
def test_a_misspelt_variable_is_refused_with_the_nearest_before_a_run_exists(
    arena: Arena, capsys: pytest.CaptureFixture[str], experiment: Experiment
) -> None:
    name = max(experiment.Variables.model_fields, key=len)
    misspelt = name[:-2] + name[-1]
    before = len(arena.runs())
    said = Said(capsys, "run", arena.write(asked(experiment, variables={misspelt: 1})), "--quiet")
    assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert f"unknown key '{misspelt}'" in said.err
    assert f"did you mean '{name}'?" in said.err
    assert len(arena.runs()) == before


@pytest.mark.parametrize("experiment", TYPES)
def test_a_value_out_of_bounds_is_refused_with_the_bounds(arena: Arena, experiment: Experiment) -> None:
    bounded = {
        name: bound
        for name, info in experiment.Variables.model_fields.items()
        for mark in info.metadata
        if (bound := getattr(mark, "ge", getattr(mark, "gt", None))) is not None
    }
    assert bounded, "a type without any number to bound"
    for name, bound in bounded.items():
        line = refused(arena, asked(experiment, variables={name: bound - 1}))
        assert f"variables.{name}: {bound - 1} is out of bounds; must be >" in line


def named(experiment: Experiment) -> Iterator[tuple[str, str, bool]]:
    """Yield (variable, what of the domain it names, whether it is a list) for every variable that names something."""

    def marks(annotation: Any) -> Iterator[Names]:
        for part in typing.get_args(annotation):
            if isinstance(part, Names):
                yield part
            else:
                yield from marks(part)

    for name, info in experiment.Variables.model_fields.items():
        for mark in [*(mark for mark in info.metadata if isinstance(mark, Names)), *marks(info.annotation)]:
            yield name, mark.what, "list" in str(info.annotation)


def required_families(experiment: Experiment) -> list[str]:
    """Return the variables that name a family and must be given."""
    return [name for name, what, _ in named(experiment) if what == "family" and experiment.Variables.model_fields[name].is_required()]


@pytest.mark.parametrize("experiment", TYPES)
def test_what_the_domain_does_not_have_is_refused_with_the_nearest_name(arena: Arena, experiment: Experiment) -> None:
    for name, what, listed in named(experiment):
        spec = asked(experiment, variables={name: [WRONG[what]] * 2 if listed else WRONG[what]})
        if name == "modulator_token":
            spec["variables"].pop("family", None)  # of the two one may be given
        line = refused(arena, spec)
        assert f"variables.{name}" in line
        assert f"did you mean '{RIGHT[what]}" in line, line
    line = refused(arena, asked(experiment, dataset_slice={"weapon_filter": ["bwo"]}))
    assert "dataset_slice.weapon_filter[0]: unknown weapon 'bwo'; allowed: bow, sling, axe; did you mean 'bow'?" in line
    line = refused(arena, asked(experiment, constraints=["one_rung_per_familie"]))
    assert "did you mean 'one_rung_per_family'?" in line


@pytest.mark.parametrize("experiment", TYPES)
def test_an_empty_slice_is_no_answer(arena: Arena, capsys: pytest.CaptureFixture[str], experiment: Experiment) -> None:
    line = unanswered(arena, capsys, asked(experiment, dataset_slice={"activation_threshold": 99.0}))
    assert "the dataset slice (activation_threshold 99.0) leaves none of 120 contexts" in line


@pytest.mark.parametrize(("experiment", "mode"), CASES)
def test_of_a_constant_latent_there_is_nothing_to_observe_and_no_edit_changes_it(
    arena: Arena, capsys: pytest.CaptureFixture[str], experiment: Experiment, mode: str
) -> None:
    said = Said(capsys, "run", arena.write(asked(experiment, mode, feature_id=SILENT, outputs=PLAIN)), "--quiet")
    if said.code == 7:
        assert "latent 4" in said.err
        return
    if (experiment.type, mode) == ("decoder_output_analysis", "observational"):
        assert said.code == 0  # what a latent writes is not about when it is active
        return
    assert (said.code, mode) == (0, "interventional"), said.err or said.out
    result = mlinterp.run_spec(f"{experiment.type}.json").result
    assert result is not None
    effects = {name: value for name, value in result.numbers().items() if "delta" in name or name.startswith("effect/")}
    assert set(effects.values()) <= {0.0}, effects
    assert {name: estimate.p for name, estimate in result.estimates.items() if estimate.p is not None and estimate.p < 0.5} == {}


@pytest.mark.parametrize(("experiment", "mode"), [case for case in CASES if required_families(case.values[0])])
def test_a_family_that_occurs_in_no_context_is_said_to(
    arena: Arena, capsys: pytest.CaptureFixture[str], experiment: Experiment, mode: str
) -> None:
    spec = asked(experiment, mode, subject="bare", variables={required_families(experiment)[-1]: "speed"}, outputs=PLAIN)
    if mode == "observational":
        assert "family 'speed' occurs in none of 120 contexts" in unanswered(arena, capsys, spec)
    else:  # a context can be given what none of those observed holds
        assert mlinterp.run_spec(arena.write(spec)).status == "FINISHED"


@pytest.mark.parametrize(("experiment", "mode"), [case for case in CASES if case.values[0].type in COMPARE_GROUPS])
def test_one_group_alone_cannot_be_compared(arena: Arena, capsys: pytest.CaptureFixture[str], experiment: Experiment, mode: str) -> None:
    line = unanswered(arena, capsys, asked(experiment, mode, dataset_slice={"weapon_filter": ["bow"]}))
    assert "comparing weapons needs two of them, and the 40 contexts of the slice have only bow" in line
