from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import recorded
from recorded import Said, estimate, record, result

import mlinterp
from mlinterp.errors import SpecError
from mlinterp.execution.session import Place, Session
from mlinterp.execution.summary import RunSummary
from mlinterp.result import ExperimentResult
from mlinterp.tracking.life import RunLife
from mlinterp.verification import verify


@pytest.fixture(scope="module")
def session(tmp_path_factory) -> Iterator[Session]:
    yield from recorded.workspace(tmp_path_factory.mktemp("workspace"), h001={"claim": "A claim to have a page"})


@pytest.fixture
def run(session) -> str:
    """A finished run with a table, the spec as it was written among its files."""
    found = result({"top/effect": estimate(1, 0, 2)})
    found.add_table("effects", [{"latent": 1, "effect": 0.5}])
    return record(session, found, place=Place(document=(b"type: intervene\nseed: 0\n", ".yaml")))


def artifacts(session: Session, run_id: str) -> Path:
    return Path(session.store.client.get_run(run_id).info.artifact_uri)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def problems(session: Session, run_id: str) -> list[str]:
    found = verify(run_id, session.workspace)
    assert found.ok == (not found.problems)
    return list(found.problems)


def test_an_untouched_run_is_as_it_was_recorded(session, run):
    found = verify(run[:10], session.workspace)
    signed = json.loads((artifacts(session, run) / "manifest.json").read_text())["files"]
    assert (found.ok, found.run_id) == (True, run)
    assert (found.n_files, found.n_bytes) == (len(signed), sum(entry["bytes"] for entry in signed.values()))


def test_a_flipped_bit_of_any_file_is_noticed_by_name(session, run):
    folder = artifacts(session, run)
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    assert {"result.json", "report.html", "tables/effects.csv", "manifest.json", "spec.yaml", "spec.resolved.json", "lineage.md"} <= set(
        names
    )
    for name in names:
        whole = (folder / name).read_bytes()
        flip(folder / name)
        found = problems(session, run)
        (folder / name).write_bytes(whole)
        assert bool(found) == (name != "lineage.md"), name
        assert all(problem.startswith(f"{name}: ") for problem in found), (name, found)
    assert problems(session, run) == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-3]), "truncated: .* bytes where the manifest says"),
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), "grown: "),
        (lambda path: path.unlink(), "missing"),
        (flip, "altered: it does not match its SHA-256 in the manifest"),
    ],
)
def test_each_kind_of_damage_is_named(session, run, change, problem):
    change(artifacts(session, run) / "result.json")
    (found,) = problems(session, run)
    assert re.match(f"result.json: {problem}", found)


def test_a_file_that_nothing_signs_is_named(session, run):
    (artifacts(session, run) / "tables" / "extra.csv").write_text("a\n1\n")
    assert problems(session, run) == ["tables/extra.csv: is not in the manifest"]


@pytest.mark.parametrize("name", ["spec.yaml", "spec.resolved.json"])
def test_another_spec_than_the_one_that_was_run_is_noticed(session, run, name):
    path = artifacts(session, run) / name
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1').replace("seed: 0", "seed: 1"))
    assert problems(session, run) == [f"{name}: altered: it is not the spec that was run (tag mlinterp.spec_sha256)"]


def test_a_manifest_that_is_gone_vouches_for_nothing(session, run):
    (artifacts(session, run) / "manifest.json").unlink()
    assert problems(session, run) == ["manifest.json: missing, so nothing vouches for the other files"]


def test_a_manifest_made_to_fit_is_refused_where_its_entries_do_not_match_their_digest(session, run):
    path = artifacts(session, run) / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["result.json"]["bytes"] += 1
    path.write_text(json.dumps(manifest))
    assert problems(session, run) == ["manifest.json: damaged, so nothing vouches for the other files"]


def test_the_steps_of_a_study_are_verified_too_reused_ones_included(session, run):
    step = record(session, result({}, a__x=1.0), seed=9)
    below = [RunSummary(one, one, "FINISHED", "", session.workspace, label=name) for name, one in (("first", run), ("second", step))]
    found = ExperimentResult()
    found.add_table("steps", [{"step": "first", "run_id": run}, {"step": "second", "run_id": step}])
    steps = [{"name": "first", "type": "trace"}, {"name": "second", "type": "trace"}]
    study = record(session, found, children=below, type="study", steps=steps)
    assert verify(study, session.workspace).ok
    flip(artifacts(session, step) / "result.json")
    checked = verify(study, session.workspace)
    assert (checked.ok, checked.problems) == (False, ())
    assert [(child.label, child.ok) for child in checked.children] == [("first", True), ("second", False)]


def test_a_run_that_did_not_finish_has_recorded_nothing_to_verify(session):
    with pytest.raises(SpecError), RunLife(session.store, session.experiment_id, "late", {}, session.workspace) as life:
        raise SpecError("no")
    with pytest.raises(SpecError, match=f"run {life.run_id[:12]} is FAILED; only a finished run"):
        verify(life.run_id, session.workspace)


def test_a_hypothesis_has_no_files_to_verify(session):
    found = verify(session.ledger.get("h001").run_id, session.workspace)
    assert (found.ok, found.n_files, found.remark) == (True, 0, "a hypothesis: a page without results of its own")


def test_the_command_has_a_line_for_each_run_and_ends_with_0_or_4(session, run, capsys):
    other = record(session, result({}, a__x=1.0), seed=10)
    said = Said(capsys, "verify", run[:12], other[:12], "--quiet")
    assert said.code == 0
    assert [line.split()[0] for line in said.out.splitlines()[1:]] == ["ok", "ok"]
    flip(artifacts(session, other) / "result.json")
    said = Said(capsys, "verify", run, other)
    assert said.code == 4
    assert f"{other[:12]}: result.json: altered" in said.out
    assert said.err == f"mlinterp: 1 problem in 1 run: {other[:12]}\n"


def test_python_says_the_same(session, run):
    assert mlinterp.verify_run(run).ok
