from __future__ import annotations

from collections.abc import Iterator

import pytest
import recorded
from recorded import Said, estimate, record, result

import mlinterp
from mlinterp.errors import SpecError
from mlinterp.execution.session import Place, Session
from mlinterp.execution.summary import RunSummary
from mlinterp.reporting import generate
from mlinterp.result import ExperimentResult, Figure
from mlinterp.tracking import links, queries
from mlinterp.tracking.life import RunLife

CLAIM = {"claim": "The last state holds the whole answer", "refuted_by": "the answer does not move"}
EXPECT = [{"metric": "top/effect", "op": "<", "value": -5, "role": "necessity"}]
CLEAR, WRONG = estimate(-17.0, -21.0, -13.0, p=0.0001), estimate(4.0, 3.5, 4.5, p=0.0001)


@pytest.fixture(scope="module")
def session(tmp_path_factory) -> Iterator[Session]:
    yield from recorded.workspace(tmp_path_factory.mktemp("workspace"), h001={**CLAIM}, h002={**CLAIM}, h003={**CLAIM})


@pytest.fixture(scope="module")
def supporting(session) -> str:
    return record(session, with_figure(CLEAR), hypothesis="h001", expect=EXPECT, description="Is the effect real?")


def with_figure(item) -> ExperimentResult:
    found = result({"top/effect": item}, base__acc=0.5)
    found.add_table("effects", [{"latent": index, "effect": index / 8} for index in range(3)])
    found.figures = [Figure(name="effects", table="effects", kind="bar", x="latent", y=["effect"])]
    return found


def both(reference: str, session: Session) -> tuple[str, str]:
    report = generate(reference, session.workspace)
    return report.markdown, report.html


def test_a_run_report_shows_prediction_measurement_interval_null_and_verdict(session, supporting):
    for text in both(supporting, session):
        for part in (
            "Is the effect real?",
            "-21 to -13 (95%)",
            "matched controls (would be 0)",
            "as predicted",
            "Supports h001",
            "counted",
            "likelihood ratio",
            "Interventional",
        ):
            assert part in text, part
        assert text.index("What was predicted") < text.index("Verdict") < text.index("What came out")


def test_the_report_written_when_a_run_ended_shows_its_prediction_beside_the_interval(session, supporting):
    folder = queries.fetch(session.store, supporting, ["report.md"], session.store.cache / supporting)
    row = next(line for line in (folder / "report.md").read_text().splitlines() if line.startswith("| top/effect <"))
    assert "| -17 | -21 to -13 (95%) | matched controls (would be 0) |" in row
    assert "as predicted" in row


def test_a_headline_number_stands_with_its_interval(session, supporting):
    markdown, html = both(supporting, session)
    assert "| top/effect | -17 · -21 to -13 (95%) |" in markdown
    assert '<dd>-17</dd><dd class="remark">-21 to -13 (95%)</dd>' in html


def test_figures_are_in_the_page_and_beside_the_markdown(session, supporting, tmp_path):
    paths = mlinterp.save_report(supporting[:10], tmp_path / "out")
    assert [path.relative_to(tmp_path / "out").as_posix() for path in paths] == ["report.md", "report.html", "figures/effects.png"]
    assert "(figures/effects.png)" in paths[0].read_text()
    assert paths[1].read_text().count("data:image/png;base64,") == 1
    assert paths[2].read_bytes().startswith(b"\x89PNG")


def test_links_lead_to_the_run_and_its_hypothesis_in_the_ui(session, supporting):
    markdown, _ = both(supporting, session)
    home = f"http://127.0.0.1:5000/#/experiments/{session.experiment_id}/runs"
    assert f"[this run in the UI]({home}/{supporting}?workflowType=machine_learning)" in markdown
    assert f"({home}/{session.ledger.get('h001').run_id}?workflowType=machine_learning)" in markdown


def test_a_retracted_run_says_so_before_anything_else(session):
    run = record(session, result({"top/effect": CLEAR}), hypothesis="h002", expect=EXPECT, seed=2)
    session.ledger.retract(run, "the SAE saw the test split")
    for text in both(run, session):
        assert text.index("Retracted") < text.index("Interventional")
        assert "Its numbers no longer count: the SAE saw the test split" in text


def test_a_run_that_rests_on_something_retracted_says_so_even_where_it_is_no_evidence(session):
    source = record(session, result({}, sae__l0=3.0), seed=3)
    run = record(session, result({}, top__x=1.0), seed=4, tags={"mlinterp.upstream": source})
    session.ledger.retract(source, "damaged weights")
    for text in both(run, session):
        assert text.index("Stale") < text.index("Interventional")
        assert "which was retracted: damaged weights" in text
    assert "Retracted" in both(source, session)[0]


def test_a_prediction_without_a_hypothesis_is_ruled_on_by_itself(session):
    run = record(session, result({"top/effect": WRONG}), expect=EXPECT, seed=5)
    for text in both(run, session):
        assert "Refutes what was predicted" in text
        assert "likelihood ratio" not in text


def test_a_run_that_failed_says_why(session):
    with (
        pytest.raises(SpecError),
        RunLife(session.store, session.experiment_id, "late", {"mlinterp.type": "trace"}, session.workspace) as life,
    ):
        raise SpecError("no active latent")
    report = generate(life.run_id, session.workspace)
    assert report.summary == "no active latent"
    for text in (report.markdown, report.html):
        assert "no active latent" in text
        assert "nothing was changed" not in text


def test_a_run_that_is_not_over_has_no_report(session):
    run = session.store.client.create_run(session.experiment_id).info.run_id
    with pytest.raises(SpecError, match=f"run {run[:12]} is not over"):
        generate(run, session.workspace)
    session.store.client.set_terminated(run, "KILLED")
    assert "KILLED" in generate(run, session.workspace).summary


@pytest.fixture(scope="module")
def study(session) -> str:
    """A study of two steps, one of which an earlier run had answered."""
    steps = [{"name": "again", "type": "trace"}, {"name": "look", "type": "intervene", "expect": EXPECT}]
    earlier = record(session, result({}, trace__n=4.0), type="trace", seed=6)
    with RunLife(session.store, session.experiment_id, "holder", {}, session.workspace) as holder:
        pass
    parent = holder.run_id
    look = record(
        session, result({"top/effect": WRONG}), hypothesis="h003", expect=EXPECT, place=Place(parent=parent, label="look"), seed=7
    )
    address = {run: {"run": links.run(session.experiment_id, run)} for run in (earlier, look)}
    below = [
        RunSummary(earlier, "again", "FINISHED", "", session.workspace, label="again", links=address[earlier]),
        RunSummary(look, "look", "FINISHED", "", session.workspace, label="look", links=address[look]),
    ]
    found = ExperimentResult(mode="interventional")
    found.add_table("steps", [{"step": "again", "run_id": earlier}, {"step": "look", "run_id": look}])
    study = record(session, found, children=below, type="study", steps=steps, hypothesis="h003")
    session.store.client.set_tag(look, "mlflow.parentRunId", study)
    return study


def test_a_study_report_has_every_step_with_its_verdict_reused_ones_included(session, study):
    report = generate(study, session.workspace)
    assert report.summary == "look refutes"
    rows = [line for line in report.markdown.splitlines() if line.startswith(("| step", "| [again]", "| [look]"))]
    assert [cell.strip() for cell in rows[0].strip("|").split("|")] == ["step", "type", "mode", "status", "verdict", "headline"]
    assert "| – | trace/n 4 |" in rows[1]
    assert "| refutes | top/effect 4 |" in rows[2]
    for text in (report.markdown, report.html):
        assert "Refutes h003" in text


def test_a_hypothesis_report_follows_its_evidence(session, supporting):
    report = generate("h001", session.workspace, session.project)
    assert report.summary.startswith("supported")
    assert report.name == "h001"
    assert set(report.figures) == {"figures/confidence.png"}
    for text in (report.markdown, report.html):
        for part in (CLAIM["claim"], CLAIM["refuted_by"], "-21 to -13 (95%)", "interventional", supporting, "its page in the UI"):
            assert part in text, part
    page = session.ledger.get("h001").run_id
    assert generate(page, session.workspace).markdown == report.markdown


def test_a_hypothesis_needs_its_project(session):
    with pytest.raises(SpecError, match="project: 'h001' is a hypothesis"):
        generate("h001", session.workspace)
    with pytest.raises(SpecError, match="'h009'"):
        generate("h009", session.workspace, session.project)


def test_the_command_writes_both_files_and_says_where_and_what(session, supporting, capsys):
    said = Said(capsys, "report", supporting[:12])
    lines = said.out.splitlines()
    assert (said.code, lines[0]) == (0, "intervene")
    assert lines[1].startswith("supports")
    assert lines[2:] == [f"reports/intervene-{supporting[:12]}/{name}" for name in ("report.md", "report.html")]
    assert (session.workspace / lines[3]).is_file()


def test_the_command_finds_the_only_project_of_a_hypothesis(session, supporting, capsys, tmp_path):
    said = Said(capsys, "report", "h001", "-o", str(tmp_path))
    assert said.code == 0
    assert (tmp_path / "figures" / "confidence.png").is_file()
    assert Said(capsys, "report", "h001", "--stdout").out == generate("h001", session.workspace, session.project).markdown
    assert mlinterp.generate_report("h001", project="maze").title == f"h001 · {CLAIM['claim']}"


@pytest.mark.parametrize("reference", ["zzzz", "0123456789ab", "h999", "h01"])
def test_the_command_refuses_what_it_does_not_know_on_one_line(session, capsys, reference):
    said = Said(capsys, "report", reference)
    assert (said.code, said.err.count("\n"), said.out) == (2, 1, "")


def test_hostile_text_stays_text(session):
    text = "<script>alert(1)</script>|[x](javascript:alert(1))"
    run = record(session, result({"top/effect": CLEAR}), description=text, seed=8, variables={"score": text})
    markdown, html = both(run, session)
    assert "<script>alert" not in html
    assert "](javascript" not in markdown.replace("`[x](javascript:alert(1))`", "")
