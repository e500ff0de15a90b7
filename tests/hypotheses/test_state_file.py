"""State files of mechinterp-runner: read strictly, brought in, and written out with what has happened since."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import evidence
import pytest

from mlinterp.errors import SpecError
from mlinterp.execution.session import Session
from mlinterp.hypotheses.exchange import export_state, import_state
from mlinterp.hypotheses.ledger import Ledger
from mlinterp.hypotheses.records import Declaration, Hypothesis
from mlinterp.hypotheses.state_file import MAX_BYTES, ResearchState, load_state
from mlinterp.tracking import links

ACTIONS = (
    "state_created",
    "hypothesis_added",
    "hypothesis_updated",
    "hypothesis_superseded",
    "evidence_added",
    "pitfall_added",
    "notes_updated",
    "label_synced",
)


def claim(name: str, statement: str, status: str, confidence: float, parent: str | None = None, **more: Any) -> dict[str, Any]:
    return {
        "id": name,
        "statement": statement,
        "status": status,
        "confidence": confidence,
        "supporting_evidence": more.get("supporting", []),
        "refuting_evidence": more.get("refuting", []),
        "parent_hypothesis": parent,
        "tags": more.get("tags", []),
        "created_at": "2025-11-02T10:00:00.123456",
        "updated_at": "2025-11-03T11:30:00",
    }


def item(name: str, strength: str, supports: list[str], refutes: list[str]) -> dict[str, Any]:
    return {
        "id": name,
        "experiment_id": "20251102_101500",
        "result_path": "results/20251102_101500__result.json",
        "summary": f"The sweep of {name} moved the latent.",
        "strength": strength,
        "supports_hypotheses": supports,
        "refutes_hypotheses": refutes,
        "key_metrics": {"max_delta": 0.25, "n": 12.0},
        "timestamp": "2025-11-02T10:20:00Z",
    }


def state() -> dict[str, Any]:
    """A file with every status, every strength and every action."""
    return {
        "feature_id": 18712,
        "model_type": "ultra",
        "feature_label": "Special charge <b>stacker</b> \u202e",
        "hypotheses": [
            claim("h001", "The latent follows special charge.", "superseded", 0.4, tags=["driver", "two words", "--", "driver"]),
            claim("h002", "Only its upper rungs move the latent.", "supported", 1.0, "h001", supporting=["e001"]),
            claim("h003", "It marks a playing style as a whole.", "refuted", 0.0, None, refuting=["e002"]),
            claim("h004", "Weapons with a weak kit matter more.", "testing", 0.6, "h002"),
            claim("h005", "The tail region is an artefact of the floor.", "proposed", 0.5, "h099"),
            claim("h006", "It is the same latent as another model's.", "superseded", 0.2),
        ],
        "evidence_index": [
            item("e001", "strong", ["h002"], []),
            item("e002", "moderate", [], ["h003"]),
            item("e003", "weak", ["h004"], ["h777"]),
        ],
        "active_constraints": ["one_rung_per_family", "max_ap_budget"],
        "known_pitfalls": ["relu_floor_at_low_activation"],
        "history": [
            {"timestamp": "2025-11-02T10:00:00", "action": action, "details": f"{action} was done", "spec_path": None, "result_path": None}
            for action in ACTIONS
        ],
        "notes": "# Notes\n\nwith `code` and | a table |",
        "created_at": "2025-11-02T10:00:00",
        "updated_at": "2025-11-03T11:30:00",
    }


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "feature_18712_ultra.json"
    path.write_text(json.dumps(state(), indent=2))
    return path


def test_reading_and_writing_a_file_changes_nothing(file: Path, tmp_path: Path) -> None:
    read = load_state(file)
    assert json.loads(read.to_json()) == state()
    assert read.to_filename() == file.name
    again = read.save(tmp_path / "again.json")
    assert load_state(again).save(tmp_path / "third.json").read_bytes() == again.read_bytes()


def test_what_may_be_left_out_gets_its_default(tmp_path: Path) -> None:
    moment = "2025-11-02T10:00:00"
    path = tmp_path / "state.json"
    path.write_text(
        json.dumps({"feature_id": 3, "model_type": "full", "created_at": moment, "updated_at": moment, "of_a_later_version": 1})
    )
    read = load_state(path)
    assert (read.active_constraints, read.hypotheses, read.notes) == (["one_rung_per_family"], [], "")
    assert "of_a_later_version" not in read.to_json()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"feature_id": "18712"}, ":2: feature_id: '18712' is not an integer; write it without quotes"),
        ({"model_type": "../../etc"}, ":3: model_type: '../../etc' is not allowed; a name is"),
        ({"created_at": "yesterday"}, "created_at: 'yesterday' is no date and time, such as 2026-01-31T12:00:00"),
        ({"hypotheses": [{**claim("h1", "too short an id", "proposed", 0.5)}]}, "hypotheses.0.id: 'h1' is not allowed; must match"),
        ({"hypotheses": [claim("h001", "too short", "proposed", 0.5)]}, "hypotheses.0.statement: 'too short' is too short; at least 10"),
        (
            {"hypotheses": [claim("h001", "long enough", "pending", 0.5)]},
            "hypotheses.0.status: unknown value 'pending'; allowed: proposed, testing",
        ),
        (
            {"hypotheses": [claim("h001", "long enough", "testing", 1.5)]},
            "hypotheses.0.confidence: 1.5 is out of bounds; must be >= 0 and <= 1",
        ),
        ({"hypotheses": [claim("h001", "long enough", "testing", 1)] * 2}, "hypotheses.1.id: 'h001' is given twice"),
        (
            {"evidence_index": [item("e001", "huge", [], [])]},
            "evidence_index.0.strength: unknown value 'huge'; allowed: strong, moderate, weak",
        ),
        ({"evidence_index": [item("x1", "weak", [], [])]}, "evidence_index.0.id: 'x1' is not allowed"),
    ],
)
def test_a_file_that_is_wrong_is_refused_on_one_line(tmp_path: Path, change: dict[str, Any], line: str) -> None:
    path = tmp_path / "state.json"
    path.write_text(json.dumps({**state(), **change}, indent=2))
    with pytest.raises(SpecError) as caught:
        load_state(path)
    assert str(caught.value).startswith(str(path))
    assert line in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"feature_id": NaN}', b'{"a": 1, "a": 2}', b"[" * 5000, b" " * (MAX_BYTES + 1), b"\xff"])
def test_a_file_that_is_no_state_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state.json").write_bytes(content)
    with pytest.raises(SpecError, match=r"state\.json"):
        load_state(tmp_path / "state.json")


def normal(read: ResearchState) -> Any:
    return json.loads(read.to_json())


Imported = tuple[Ledger, Path, dict[str, Hypothesis]]


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Imported:
    """A ledger into which the file was brought, the file, and what came of it."""
    folder = tmp_path_factory.mktemp("imported")
    shutil.copyfile(template, folder / "mlruns.db")
    path = folder / "feature_18712_ultra.json"
    path.write_text(json.dumps(state(), indent=2))
    ledger = evidence.session(evidence.project(folder)).ledger
    return ledger, path, import_state(ledger, path)


def test_a_file_brought_in_and_written_out_is_the_same_file(imported: Imported) -> None:
    ledger, _, brought = imported
    assert [(theirs, ours.id) for theirs, ours in brought.items()] == [(f"h00{n}", f"h00{n}") for n in range(1, 7)]
    assert normal(export_state(ledger, 18712, "ultra")) == state()


def test_claims_come_in_with_their_confidence_as_the_prior_and_no_evidence(imported: Imported) -> None:
    _, file, brought = imported
    declared = {name: ours.declared for name, ours in brought.items()}
    assert [declared[name].confidence for name in declared] == [0.4, 0.99, 0.01, 0.6, 0.5, 0.2]
    assert [declared[name].parent for name in declared] == [None, "h001", None, "h002", None, None]
    assert declared["h001"].tags == ["driver", "two-words"]
    about = {(one.level, one.feature_id, one.subject) for one in declared.values()}
    assert about == {("correlational", 18712, "ultra")}
    assert [ours.status for ours in brought.values()] == ["superseded", *["proposed"] * 5]
    assert brought["h001"].superseded_by == "h002"
    assert (brought["h006"].superseded_by, str(brought["h006"].closed)[:10]) == (None, "superseded")
    assert brought["h002"].origin == {"from": "imported", "file": file.name, "id": "h002"}
    assert all(not ours.evaluation.rulings for ours in brought.values())


def test_the_whole_file_lies_with_each_of_its_hypotheses(imported: Imported, tmp_path: Path) -> None:
    ledger, file, brought = imported
    for ours in brought.values():
        kept = ledger.attached(ours.id, "state.json", tmp_path / ours.id)
        assert kept is not None
        assert load_state(kept) == load_state(file)


def test_ids_that_are_taken_give_way_and_parents_follow(ledger: Ledger, file: Path) -> None:
    for number in range(2):
        ledger.add(Declaration(claim=f"Something else entirely, number {number}."))
    brought = import_state(ledger, file)
    assert brought["h002"].declared.parent == brought["h001"].id != "h001"
    assert brought["h001"].superseded_by == brought["h002"].id
    assert brought["h004"].declared.parent == brought["h002"].id
    assert len({ours.id for ours in brought.values()} | {"h001", "h002"}) == 8
    assert normal(export_state(ledger, 18712, "ultra")) == state()


def test_a_file_brought_in_twice_changes_nothing(imported: Imported) -> None:
    ledger, file, first = imported
    second = import_state(ledger, file)
    assert {name: ours.id for name, ours in first.items()} == {name: ours.id for name, ours in second.items()}
    assert len(ledger.all()) == 6


def test_the_same_claim_about_another_latent_is_another_hypothesis(ledger: Ledger, file: Path, tmp_path: Path) -> None:
    import_state(ledger, file)
    other = tmp_path / "feature_1_full.json"
    other.write_text(json.dumps({**state(), "feature_id": 1, "model_type": "full"}))
    assert {ours.id for ours in import_state(ledger, other).values()} == {f"h{n:03d}" for n in range(7, 13)}
    assert normal(export_state(ledger, 1, "full")) == {**state(), "feature_id": 1, "model_type": "full"}
    assert normal(export_state(ledger, 18712, "ultra")) == state()


def test_parents_in_a_circle_and_a_file_without_claims_are_refused(ledger: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    circle = [
        claim("h001", "One comes from the other", "testing", 0.5, "h002"),
        claim("h002", "The other from the one", "testing", 0.5, "h001"),
    ]
    path.write_text(json.dumps({**state(), "hypotheses": circle}))
    with pytest.raises(SpecError, match=r"state\.json: h002\.parent: h001 -> h002 -> h001 is a circle"):
        import_state(ledger, path)
    path.write_text(json.dumps({**state(), "hypotheses": []}))
    with pytest.raises(SpecError, match=r"state\.json: hypotheses: holds no hypothesis"):
        import_state(ledger, path)
    assert ledger.all() == []


def test_evidence_from_runs_is_written_out_with_status_and_confidence(session: Session, ledger: Ledger, file: Path, tmp_path: Path) -> None:
    import_state(ledger, file)
    run = evidence.run(session, "h004", evidence.FOR, name="sweep of kits")
    against = evidence.run(session, "h005", evidence.AGAINST)
    written = export_state(ledger, 18712, "ultra")
    theirs = {one.id: one for one in written.hypotheses}
    ours = {one.id: one for one in ledger.all()}
    (ruling,) = ours["h004"].evaluation.rulings
    assert [one.id for one in written.evidence_index] == ["e001", "e002", "e003", "e004", "e005"]
    new = written.evidence_index[3]
    assert (new.experiment_id, new.result_path) == ("sweep of kits", links.run(ledger.experiment_id, run))
    assert (new.summary, new.supports_hypotheses, new.refutes_hypotheses) == (ruling.text, ["h004"], [])
    assert new.key_metrics == pytest.approx({"m/x": 0.95}, abs=1e-5)
    assert new.strength == ("strong" if ruling.likelihood_ratio >= 10 else "moderate" if ruling.likelihood_ratio >= 5 else "weak")
    assert written.evidence_index[4].refutes_hypotheses == ["h005"]
    assert against in written.evidence_index[4].result_path
    assert (theirs["h004"].supporting_evidence, theirs["h005"].refuting_evidence) == (["e004"], ["e005"])
    for name in ("h004", "h005"):
        assert (theirs[name].status, theirs[name].confidence) == (ours[name].status, ours[name].evaluation.confidence)
    assert theirs["h004"].confidence > 0.6
    assert [theirs[name].status for name in ("h001", "h002", "h003", "h006")] == ["superseded", "supported", "refuted", "superseded"]
    added = [entry.action for entry in written.history[len(ACTIONS) :]]
    assert sorted(added) == ["evidence_added"] * 2 + ["hypothesis_updated"] * 2
    assert written.updated_at == written.history[-1].timestamp > state()["updated_at"]
    assert load_state(written.save(tmp_path / "out.json")) == written


def test_what_was_written_out_and_brought_in_again_is_not_written_twice(
    session: Session, ledger: Ledger, file: Path, tmp_path: Path
) -> None:
    import_state(ledger, file)
    evidence.run(session, "h004", evidence.FOR)
    ledger.add(Declaration(claim="A claim that was first made here.", feature_id=18712, subject="ultra", parent="h004", tags=["new"]))
    ledger.supersede("h005", Declaration(claim="What took the place of the fifth.", feature_id=18712, subject="ultra"))
    written = export_state(ledger, 18712, "ultra")
    theirs = {one.id: one for one in written.hypotheses}
    assert (theirs["h007"].parent_hypothesis, theirs["h007"].tags, theirs["h007"].status) == ("h004", ["new"], "proposed")
    assert (theirs["h008"].parent_hypothesis, theirs["h005"].status) == ("h005", "superseded")
    assert [entry.action for entry in written.history].count("hypothesis_superseded") == 2
    ids = {name: ours.id for name, ours in import_state(ledger, written.save(tmp_path / "out.json")).items()}
    assert ids == {f"h00{n}": f"h00{n}" for n in range(1, 9)}
    assert export_state(ledger, 18712, "ultra") == written


def test_evidence_that_was_withdrawn_after_it_was_written_out_supports_nothing(
    session: Session, ledger: Ledger, file: Path, tmp_path: Path
) -> None:
    import_state(ledger, file)
    run = evidence.run(session, "h004", evidence.FOR)
    before = export_state(ledger, 18712, "ultra")
    import_state(ledger, before.save(tmp_path / "out.json"))
    ledger.retract(run, "the wrong split")
    after = export_state(ledger, 18712, "ultra")
    four = next(one for one in after.hypotheses if one.id == "h004")
    assert (four.supporting_evidence, four.confidence) == ([], pytest.approx(0.6))
    assert [one.id for one in after.evidence_index] == [one.id for one in before.evidence_index]
    assert after.evidence_index[-1].supports_hypotheses == []
    assert "retracted (the wrong split)" in after.evidence_index[-1].summary


def test_a_latent_that_was_only_studied_here_gets_a_file_of_its_own(session: Session, ledger: Ledger) -> None:
    name = ledger.add(Declaration(claim="Latent 7 writes the digit.", feature_id=7, subject="trm4")).id
    evidence.run(session, name, evidence.FOR)
    written = export_state(ledger, 7, "trm4")
    assert (written.to_filename(), [one.id for one in written.hypotheses]) == ("feature_7_trm4.json", ["h001"])
    assert [entry.action for entry in written.history] == ["state_created", "hypothesis_added", "evidence_added", "hypothesis_updated"]
    assert written.hypotheses[0].supporting_evidence == ["e001"]


def test_a_latent_that_no_hypothesis_is_about_is_refused(ledger: Ledger, imported: Imported) -> None:
    for where, there in ((ledger, "none"), (imported[0], "18712 of ultra")):
        with pytest.raises(SpecError, match=f"no hypothesis is about latent 3 of ultra; there is: {there}"):
            export_state(where, 3, "ultra")
