"""A run executed again from its own record: the same where nothing changed, and a named cause where something did."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import workbench
import yaml

import mlinterp
from mlinterp.cli import main
from mlinterp.errors import SpecError, VerificationError
from mlinterp.tracking import queries, registry
from mlinterp.tracking.recorder import NOTE_TAG


@pytest.fixture(autouse=True)
def _here(bench, monkeypatch):
    monkeypatch.chdir(bench.root)


@pytest.fixture(scope="module", autouse=True)
def _tidy(bench):
    """Take away what failed runs keep to be resumed: other tests look at the same workspace."""
    yield
    for left in (bench.root / ".mlinterp" / "runs").iterdir():
        shutil.rmtree(left)


@pytest.fixture(scope="module")
def again(bench):
    """The whole study, executed again."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("MLINTERP_THREADS", "1")
        return mlinterp.reproduce_run(bench.runs["study"], workspace=bench.root)


def tags(bench, run_id: str) -> dict[str, str]:
    return dict(bench.store.client.get_run(run_id).data.tags)


def test_a_study_comes_out_the_same_step_by_step(bench, again):
    assert again.same, again.line()
    assert [child.label for child in again.children] == list(workbench.STAGES)
    for child in again.children:
        before = queries.recorded_result(bench.store, bench.runs[str(child.label)])
        bounds = [part for item in before.estimates.values() for part in (item.low, item.high, item.p) if part is not None]
        assert child.n_numbers == len(before.numbers()) + len(bounds)
        assert child.n_files >= 8
        assert child.original == bench.runs[str(child.label)] != child.run_id
    assert again.line().startswith("same: ")


def test_steps_of_a_study_take_from_each_other_anew(bench, again):
    made = {child.label: child.run_id for child in again.children}
    assert tags(bench, made["intervene"])["mlinterp.from.sae"] == made["sae"]
    assert set(tags(bench, made["sae"])["mlinterp.upstream"].split(",")) == {made["trace"], made["subject"]}


def test_a_reproduction_is_no_evidence_no_answer_and_not_the_latest_of_its_kind(bench, again):
    for one in again.family():
        found = tags(bench, one.run_id)
        assert found["mlinterp.reproduces"] == one.original
        assert found["mlinterp.reproduction"] == "same"
        assert not {"mlinterp.run_key", "mlinterp.hypothesis", "mlinterp.verdict", "mlinterp.produces"} & found.keys()
        assert queries.model_of(bench.store, one.run_id) is None
    experiment = bench.store.experiment_id("bench")
    assert queries.latest(bench.store, experiment, "sae", "trm") not in {one.run_id for one in again.family()}
    assert mlinterp.run_spec(bench.study).run_id == bench.runs["study"]
    candidate = registry.resolve_model(bench.store, f"models:/{workbench.SITE_MODEL}@candidate")
    assert candidate.run_id not in {one.run_id for one in again.family()}


def test_the_notes_of_both_lead_to_each_other(bench, again):
    for one in again.family():
        assert f"{one.run_id}?workflowType" in tags(bench, one.original)[NOTE_TAG].split("executed again by")[1].splitlines()[0]
        assert f"{one.original}?workflowType" in tags(bench, one.run_id)[NOTE_TAG].split("executed again to compare")[1].splitlines()[0]
        assert ", **same**" in tags(bench, one.run_id)[NOTE_TAG]


def test_a_report_of_a_reproduction_says_what_it_is(bench, again):
    report = mlinterp.generate_report(again.children[1].run_id)
    assert f"of run {bench.runs['trace'][:12]}: same" in report.markdown


def test_a_step_alone_takes_what_it_took_in_its_study(bench, again, capsys):
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(bench.root)
        main(["reproduce", bench.runs["trace"][:12], "--quiet"])
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("same: ")
    assert said[1] == f"original: http://127.0.0.1:5000/#/experiments/1/runs/{bench.runs['trace']}?workflowType=machine_learning"
    made = said[2].rpartition("/")[2].partition("?")[0]
    assert tags(bench, made)["mlinterp.from.subject"] == bench.runs["subject"]


@pytest.fixture(scope="module")
def moved(bench):
    """A run by `latest` and an alias, both of which mean other runs by now."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("MLINTERP_THREADS", "1")
        spec = workbench.step("intervene", bench.runs, n_bootstrap=100)
        reference = f"models:/{workbench.SITE_MODEL}@candidate"
        spec["inputs"] = {"subject": "latest", "trace": "latest", "sae": reference}
        run = mlinterp.run_spec(bench.write("moving", spec)).run_id
        taken = tags(bench, run)
        other = {"type": "study", "subject": "trm", "seed": 5, "steps": workbench.STEPS[:3]}
        mlinterp.run_spec(bench.write("other", other))
    assert registry.resolve_model(bench.store, reference).run_id != taken["mlinterp.from.sae"]
    assert queries.latest(bench.store, bench.store.experiment_id("bench"), "trace", "trm") != taken["mlinterp.from.trace"]
    return run


def test_latest_and_aliases_are_what_they_were_when_the_run_took_them(bench, moved):
    found = mlinterp.reproduce_run(moved)
    assert found.same, found.line()
    names = [f"mlinterp.from.{role}" for role in ("subject", "trace", "sae")]
    assert [tags(bench, found.run_id)[name] for name in names] == [tags(bench, moved)[name] for name in names]


def test_an_input_that_was_altered_is_named(bench, moved):
    states = bench.artifacts(tags(bench, moved)["mlinterp.from.trace"]) / "states.npy"
    cached = bench.store.cache / tags(bench, moved)["mlinterp.from.trace"] / "states.npy"
    whole = states.read_bytes()
    states.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    cached.unlink(missing_ok=True)
    try:
        with pytest.raises(VerificationError, match=r"artifact 'states.npy' is damaged"):
            mlinterp.reproduce_run(moved)
    finally:
        states.write_bytes(whole)


def test_a_sweep_comes_out_the_same_cell_by_cell_failed_ones_included(bench):
    spec = workbench.step("trace", bench.runs)
    spec["matrix"] = {"variables.sites": [["z_L"], ["z_H"], ["nowhere"]]}
    before = mlinterp.run_spec(bench.write("sweep", spec))
    assert [child.status for child in before.children] == ["FINISHED", "FINISHED", "FAILED"]
    found = mlinterp.reproduce_run(before.run_id)
    assert found.same, found.line()
    assert [child.n_numbers > 0 for child in found.children][:2] == [True, True]
    assert "FAILED" in mlinterp.generate_report(before.run_id).markdown
    assert [child.remark for child in mlinterp.verify_run(before.run_id).children][2] == "FAILED: it never recorded what it holds"


@pytest.fixture
def changed_settings(bench):
    """The subject learns from fewer examples than it did."""
    path = bench.study.parent / "project.yaml"
    before = path.read_text()
    project = yaml.safe_load(before)
    project["subjects"]["trm"]["task"]["n_train"] = 150
    path.write_text(yaml.safe_dump(project))
    yield
    path.write_text(before)


def test_what_differs_is_listed_with_the_likely_cause_and_exit_code_4(bench, changed_settings, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["reproduce", bench.runs["subject"], "--quiet"])
    said = capsys.readouterr()
    assert stop.value.code == 4
    assert said.err == f"mlinterp: run {bench.runs['subject'][:12]} does not come out the same\n"
    verdict = next(line for line in said.out.splitlines() if line.startswith("differs: "))
    assert "likely cause: settings of the subject in project.yaml" in verdict
    assert "subject/weights.safetensors says something else" in said.out
    number = next(line for line in said.out.splitlines() if line.startswith("subject/token_acc: "))
    assert " → " in number
    assert " of what it was)" in number
    made = said.out.rpartition("reproduction: ")[2].rpartition("/")[2].partition("?")[0]
    assert tags(bench, made)["mlinterp.reproduction"] == "differs"


def test_a_change_of_code_or_threads_is_named_even_where_nothing_differs(bench, monkeypatch):
    run = bench.runs["trace"]
    before = tags(bench, run)["mlinterp.code_version"]
    bench.store.client.set_tag(run, "mlinterp.code_version", "0" * 16)
    monkeypatch.setenv("MLINTERP_THREADS", "2")
    try:
        found = mlinterp.reproduce_run(run)
    finally:
        bench.store.client.set_tag(run, "mlinterp.code_version", before)
    assert [change.name for change in found.changes] == ["code version", "threads"]
    assert found.changes[1].before == "1"
    assert f"code version {'0' * 16} → {before}" in found.line()


def test_a_reproduction_that_was_stopped_is_not_resumed_but_begun_anew(bench, again):
    with pytest.raises(SpecError, match=f"`mlinterp reproduce {bench.runs['trace'][:12]}` begins it anew"):
        mlinterp.resume_run(again.children[1].run_id)


def test_a_run_that_did_not_finish_cannot_be_reproduced(bench):
    spec = workbench.step("trace", bench.runs)
    spec["variables"]["sites"] = ["nowhere"]
    with pytest.raises(mlinterp.errors.MlinterpError):
        mlinterp.run_spec(bench.write("failing", spec))
    *_, failed = (run for run in bench.all_runs() if run.info.status == "FAILED" and "mlflow.parentRunId" not in run.data.tags)
    with pytest.raises(SpecError, match=f"run {failed.info.run_id[:12]} is FAILED; only a finished run can be reproduced"):
        mlinterp.reproduce_run(failed.info.run_id)


def test_the_files_of_a_registered_model_are_verified(bench):
    found = mlinterp.verify_run(bench.runs["sae"])
    assert found.ok
    model = queries.model_of(bench.store, bench.runs["sae"])
    weights = Path(bench.store.client.get_logged_model(model).artifact_location.removeprefix("file://")) / "data" / "sae.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        (problem,) = mlinterp.verify_run(bench.runs["sae"]).problems
    finally:
        weights.write_bytes(whole)
    assert problem == f"model {model}/data/sae.safetensors: altered: its content does not match its SHA-256 in the manifest"
