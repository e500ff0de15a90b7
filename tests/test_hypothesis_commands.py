"""`mlinterp hypothesis …`, `retract`, `restore`, `stale`, `lineage`, and the same functions in Python."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import evidence
import pytest

import mlinterp
from mlinterp.cli import main
from mlinterp.errors import SpecError
from mlinterp.execution.session import Session
from mlinterp.hypotheses.records import Declaration
from mlinterp.hypothesis_view import sparkline
from mlinterp.project import choose_project
from mlinterp.tracking.store import open_store

CLAIM = "The last state holds the whole answer."
HOSTILE = "[red]Bold[/red] \x1b[31mclaim\u202e of :smile: <b>x</b> ${x} https://ada:hunter2@host/x"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template")
    open_store(folder, f"sqlite:///{folder / 'mlruns.db'}")
    return folder / "mlruns.db"


@pytest.fixture
def root(tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with one project, which is the working folder."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)
    shutil.copyfile(template, tmp_path / "mlruns.db")
    evidence.project(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def session(root: Path) -> Session:
    return evidence.session(choose_project("maze"))


class Said:
    """What a command line printed, and its exit code."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> None:
        self.code = 0
        try:
            main(list(arguments))
        except SystemExit as stop:
            self.code = int(stop.code or 0)
        self.out, self.err = capsys.readouterr()

    @property
    def lines(self) -> list[str]:
        """What was printed, each line with single spaces."""
        return [" ".join(line.split()) for line in self.out.splitlines()]


def test_a_hypothesis_is_added_listed_and_shown(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--prediction", "patching it moves the answer", "--refuted-by", "patching another does", "--requires", "necessity"]
    options += ["--requires", "sufficiency", "--confidence", "0.25", "--alpha", "0.01", "--feature-id", "7", "--subject", "trm4"]
    added = Said(capsys, "hypothesis", "add", CLAIM, *options, "--tag", "where", "--tag", "state", "-p", "maze")
    assert (added.code, added.err, added.lines[0]) == (0, "", f"h001 added: {CLAIM}")
    assert "hypothesis: h001" in added.lines
    assert Said(capsys, "hypothesis", "add", "It is one latent of it.", "--parent", "h001", "--level", "correlational").code == 0
    assert Said(capsys, "hypothesis", "list").lines == [
        "id status confidence evidence parent claim",
        f"h001 ○ proposed 0.25 none {CLAIM}",
        "h002 ○ proposed 0.5 none h001 It is one latent of it.",
    ]
    shown = Said(capsys, "hypothesis", "show", "h001").lines
    assert shown[:2] == ["h001 ○ proposed confidence 0.25", CLAIM]
    for line in (
        "predicted patching it moves the answer",
        "refuted by patching another does",
        "kind causal, needs necessity and sufficiency",
        "about latent 7 of trm4",
        "tags where, state",
        "children h002 ○ It is one latent of it.",
        "its runs, in the search box of the UI: tags.`mlinterp.hypothesis` = 'h001'",
    ):
        assert line in shown
    assert any(line.startswith("its page: http://127.0.0.1:5000/#/experiments/") for line in shown)
    assert "parent h001 ○ The last state holds the whole answer." in Said(capsys, "hypothesis", "show", "h002").lines


def test_a_project_without_hypotheses_says_so(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert Said(capsys, "hypothesis", "list").lines == ["maze has no hypothesis"]
    assert Said(capsys, "hypothesis", "list", "--status", "refuted").lines == ["maze has no refuted hypothesis"]
    assert Said(capsys, "hypothesis", "list", "--json").out == "[]\n"
    assert Said(capsys, "stale").lines == ["nothing rests on anything gone"]


def test_evidence_shows_in_list_show_and_tree(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    Said(capsys, "hypothesis", "add", CLAIM)
    Said(capsys, "hypothesis", "add", "It is one latent of it.", "--parent", "h001")
    runs = [evidence.run(session, "h001", numbers, name=name) for numbers, name in ((evidence.FOR, "a"), (evidence.UNDECIDED, "b"))]
    ours = mlinterp.get_hypothesis("h001", project="maze")
    assert any("1 for, 1 inconclusive" in line for line in Said(capsys, "hypothesis", "list").lines)
    shown = Said(capsys, "hypothesis", "show", "h001").lines
    for number, (run, ruling) in enumerate(zip(runs, ours.evaluation.rulings, strict=True), start=1):
        (head,) = (line for line in shown if line.startswith(f"{number} "))
        assert head.startswith(f"{number} {ruling.verdict} odds ×{ruling.likelihood_ratio:.3g} confidence {ruling.confidence:.3g} ")
        assert head.endswith(run[:12])
        assert ruling.text.split()[0] in " ".join(shown)
    steps = " → ".join(f"{value:.3g}" for value in (0.5, *(ruling.confidence for ruling in ours.evaluation.rulings)))
    assert any(line.startswith("confidence ") and line.endswith(steps) for line in shown)
    tree = Said(capsys, "hypothesis", "tree").out.splitlines()
    assert tree[0] == "maze"
    assert tree[1].startswith("└── h001 ")
    assert tree[1].endswith("1 for, 1 inconclusive")
    assert [line.strip() for line in tree[2:]] == [CLAIM, "└── h002 ○ proposed  0.5  no evidence", "It is one latent of it."]


def test_json_is_what_python_has(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    Said(capsys, "hypothesis", "add", CLAIM)
    run = evidence.run(session, "h001", evidence.FOR)
    (listed,) = json.loads(Said(capsys, "hypothesis", "list", "--json").out)
    assert listed == json.loads(Said(capsys, "hypothesis", "show", "h001", "--json").out)
    (ours,) = mlinterp.list_hypotheses()
    assert (listed["id"], listed["status"], listed["declared"]["claim"]) == ("h001", ours.status, CLAIM)
    assert listed["evaluation"]["confidence"] == ours.evaluation.confidence
    assert listed["evaluation"]["rulings"][0]["evidence"]["run_id"] == run


def test_a_status_filters_the_list(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    for claim in (CLAIM, "The second claim of three.", "The third claim of three."):
        Said(capsys, "hypothesis", "add", claim)
    Said(capsys, "hypothesis", "supersede", "h002", "The fourth claim of three.")
    wanted = ["--status", "superseded", "--status", "refuted"]
    assert [one["id"] for one in json.loads(Said(capsys, "hypothesis", "list", "--json", *wanted).out)] == ["h002"]


def test_superseding_keeps_what_it_is_about(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--feature-id", "7", "--subject", "trm4", "--level", "correlational", "--tag", "where", "--prediction", "it moves"]
    Said(capsys, "hypothesis", "add", CLAIM, *options)
    said = Said(capsys, "hypothesis", "supersede", "h001", "The last two states hold it.", "--subject", "trm6")
    assert said.lines[0] == "h002 takes the place of h001: The last two states hold it."
    new = mlinterp.get_hypothesis("h002")
    about = (new.declared.parent, new.declared.feature_id, new.declared.subject, new.declared.level, new.declared.tags)
    assert about == ("h001", 7, "trm6", "correlational", ["where"])
    assert new.declared.prediction is None
    assert mlinterp.get_hypothesis("h001").superseded_by == "h002"
    assert "superseded by h002 ○ The last two states hold it." in Said(capsys, "hypothesis", "show", "h001").lines


def test_a_hypothesis_is_closed_and_reopened(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Said(capsys, "hypothesis", "add", CLAIM)
    closed = Said(capsys, "hypothesis", "close", "h001", "--why", "the task changed")
    assert closed.lines == [f"h001 proposed, confidence 0.5, closed: the task changed: {CLAIM}"]
    assert "closed the task changed" in Said(capsys, "hypothesis", "show", "h001").lines
    assert "○ proposed, closed" in Said(capsys, "hypothesis", "tree").out
    assert Said(capsys, "hypothesis", "reopen", "h001").lines == [f"h001 proposed, confidence 0.5: {CLAIM}"]


def test_a_retraction_says_what_it_changes_and_what_is_stale_and_can_be_taken_back(
    session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    Said(capsys, "hypothesis", "add", CLAIM)
    source = evidence.run(session, None, name="the source")
    resting = evidence.run(session, "h001", evidence.FOR, upstream=[source], name="what rests on it")
    confidence = mlinterp.get_hypothesis("h001").evaluation.confidence
    assert confidence > 0.5
    said = Said(capsys, "retract", source[:12], "--why", "the wrong split")
    assert (said.code, said.err) == (0, "")
    assert said.lines[0] == f"retracted {source[:12]}: the wrong split"
    assert re.match(rf"h001: .* {confidence:.3g} -> .* 0\.5$", said.lines[1])
    assert any(line.startswith(f"{resting[:12]} what rests on it rests on 'the source'") for line in said.lines)
    query = f"tags.`mlinterp.upstream` LIKE '%{source}%'"
    assert said.lines[-1] == query
    found = session.store.client.search_runs([session.experiment_id], query)
    assert [run.info.run_id for run in found] == [resting]
    assert Said(capsys, "stale").lines[-1] == query
    (stale,) = json.loads(Said(capsys, "stale", "--json").out)
    assert (stale["run_id"], stale["query"]) == (resting, query)
    back = Said(capsys, "restore", source[:12])
    assert re.match(rf"h001: .* 0\.5 -> .* {confidence:.3g}$", back.lines[1])
    assert back.lines[-1] == "nothing rests on anything gone"


def test_state_files_are_brought_in_and_written_out(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moment = "2025-11-02T10:00:00"
    theirs = {"id": "h001", "statement": CLAIM, "confidence": 0.75, "created_at": moment, "updated_at": moment}
    state = {"feature_id": 3, "model_type": "full", "hypotheses": [theirs], "created_at": moment, "updated_at": moment}
    (root / "state.json").write_text(json.dumps(state))
    Said(capsys, "hypothesis", "add", "Something else that was here.")
    assert Said(capsys, "hypothesis", "import", "state.json").lines == [f"state.json: h001 -> h002: {CLAIM}"]
    assert Said(capsys, "hypothesis", "export", "--feature-id", "3", "--subject", "full").lines == ["feature_3_full.json"]
    written = json.loads((root / "feature_3_full.json").read_text())
    assert (written["hypotheses"][0]["id"], written["hypotheses"][0]["confidence"]) == ("h001", 0.75)
    again = Said(capsys, "hypothesis", "export", "--feature-id", "3", "--subject", "full")
    assert (again.code, "'feature_3_full.json' exists already" in again.err) == (2, True)
    assert Said(capsys, "hypothesis", "export", "--feature-id", "3", "--subject", "full", "-o", "feature_3_full.json").code == 0
    assert mlinterp.export_state(3, "full").model_dump(mode="json") == written


def test_python_does_what_the_command_line_does(root: Path) -> None:
    first = mlinterp.add_hypothesis(CLAIM, project="maze", requires=["necessity"], confidence=0.25)
    second = mlinterp.supersede_hypothesis(first.id, "The last two states hold it.", project=root / "projects" / "maze")
    assert [one.id for one in mlinterp.list_hypotheses()] == [first.id, second.id] == ["h001", "h002"]
    assert second.declared.requires == ["necessity"]
    assert mlinterp.close_hypothesis("h002", "done").closed == "done"
    with pytest.raises(SpecError, match="claims: unknown key 'claims'"):
        mlinterp.add_hypothesis(CLAIM, claims="x")
    with pytest.raises(SpecError, match=r"unknown hypothesis 'h003'; allowed: h001, h002"):
        mlinterp.get_hypothesis("h003")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["hypothesis", "add", "short"], "claim: 'short' is too short; at least 10 characters"),
        (
            ["hypothesis", "add", CLAIM, "--requires", "necesity"],
            "requires.0: unknown value 'necesity'; allowed: necessity, sufficiency; did",
        ),
        (["hypothesis", "add", CLAIM, "--confidence", "1.5"], "confidence: 1.5 is out of bounds; must be > 0 and < 1"),
        (["hypothesis", "add", CLAIM, "--parent", "one"], "parent: 'one' is not allowed; a hypothesis is h and 3 to 9 digits"),
        (["hypothesis", "add", CLAIM, "--level", "casual"], "'casual' is not one of 'causal', 'correlational'"),
        (["hypothesis", "list", "--status", "suported"], "--status: unknown status 'suported'; allowed: proposed, testing, supported,"),
        (["hypothesis", "list", "--status", "suported"], "did you mean 'supported'?"),
        (["hypothesis", "list", "-p", "mazes"], "--project: unknown project 'mazes'; allowed: maze; did you mean 'maze'?"),
        (["hypothesis", "show", "h001"], "there is no hypothesis 'h001', nor any other yet"),
        (["hypothesis", "import", "missing.json"], "missing.json: cannot be opened"),
        (["hypothesis", "export", "--feature-id", "1", "--subject", "full"], "no hypothesis is about latent 1 of full"),
        (["hypothesis", "close", "h001"], "Missing option '--why'"),
        (["hypothesis", "lst"], "No such command 'lst'"),
        (["retract", "zz", "--why", "x"], "'zz' is no run id"),
        (["restore", "abcdef"], "no run begins with 'abcdef'"),
    ],
)
def test_a_wrong_command_is_one_line_and_exit_code_2(
    root: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    said = Said(capsys, *arguments)
    assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert words in said.err


def test_every_command_has_help_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["add", "list", "show", "tree", "supersede", "close", "reopen", "import", "export"]
    top = Said(capsys, "hypothesis", "--help").out
    assert (Said(capsys, "hypothesis").out, Said(capsys, "hypothesis").err) == (top, "")
    for command in [*(["hypothesis", name] for name in names), ["retract"], ["restore"], ["stale"], ["lineage"]]:
        said = Said(capsys, *command, "--help")
        assert said.code == 0
        assert "For example" in said.out
        assert f"mlinterp {' '.join(command)}" in said.out
        assert "--project" in said.out
        assert len(command) == 1 or command[1] in top


@pytest.mark.parametrize("command", [["list"], ["show", "h001"], ["tree"]])
def test_a_hostile_claim_stays_text(root: Path, capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    mlinterp.add_hypothesis(HOSTILE, prediction=HOSTILE)
    out = Said(capsys, "hypothesis", *command).out
    assert "\x1b" not in out
    assert "\u202e" not in out
    assert "[red]Bold[/red] \\x1b[31mclaim\\u202e of :smile: <b>x</b> ${x} https://host/x" in " ".join(out.split())


def test_colours_are_for_terminals_only(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    mlinterp.add_hypothesis(CLAIM)
    assert "\x1b[" not in Said(capsys, "hypothesis", "tree").out
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert "\x1b[36m○ proposed" in Said(capsys, "hypothesis", "tree").out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("mlinterp hypothesis list --status sup", {"supported", "superseded"}),
        ("mlinterp hypothesis add x --requires n", {"necessity"}),
        ("mlinterp hypothesis add x --level c", {"causal", "correlational"}),
        ("mlinterp hypothesis show h0", {"h001"}),
        ("mlinterp stale -p m", {"maze"}),
        ("mlinterp hypothesis su", {"supersede"}),
    ],
)
def test_tab_completes_statuses_roles_ids_and_projects_without_the_store(root: Path, words: str, expected: set[str]) -> None:
    (root / "projects" / "maze" / "hypotheses.yaml").write_text(f"h001: {{claim: {CLAIM}}}\n")
    completing = {"_MLINTERP_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    code = "import sys\nfrom mlinterp.cli import main\ntry: main()\nfinally: print('mlflow' in sys.modules, file=sys.stderr)"
    environment = {**os.environ, **completing, "PYTHONPATH": str(Path(mlinterp.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert set(done.stdout.split()) == expected, done.stderr
    assert done.stderr.strip() == "False"


def test_the_lineage_is_written_as_one_file_with_links_to_a_server(
    session: Session, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    mlinterp.add_hypothesis(CLAIM)
    run = evidence.run(session, "h001", evidence.FOR)
    assert Said(capsys, "lineage").lines == ["lineage.html"]
    said = Said(capsys, "lineage", "-o", "out/page.html", "--server", "https://tracking.example")
    assert (said.code, said.lines) == (0, ["out/page.html"])
    for file, server in (("lineage.html", "http://127.0.0.1:5000"), ("out/page.html", "https://tracking.example")):
        text = (tmp_path / file).read_text()
        assert all(part in text for part in (CLAIM, run, server))


def test_a_declared_hypothesis_is_there_without_being_added(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "projects" / "maze" / "hypotheses.yaml").write_text(f"h002: {{claim: It follows., parent: h001}}\nh001: {{claim: {CLAIM}}}\n")
    assert [line.split()[0] for line in Said(capsys, "hypothesis", "list").lines] == ["id", "h001", "h002"]
    assert Said(capsys, "hypothesis", "add", "One more claim of ours.").lines[0] == "h003 added: One more claim of ours."


def test_a_new_hypotheses_file_reads_back(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = root / "projects" / "maze" / "hypotheses.yaml"
    assert Said(capsys, "new", "hypotheses", "-o", str(file)).code == 0
    assert Said(capsys, "hypothesis", "list").lines[1] == "h001 ○ proposed 0.5 none What is claimed, in one sentence."
    assert all(f"{field}:" in file.read_text() for field in Declaration.model_fields)


def test_a_new_spec_names_the_hypotheses_that_there_are(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = root / "projects" / "maze" / "hypotheses.yaml"
    file.write_text('h004: {claim: "Two lines\\nseed: 3"}\n')
    assert Said(capsys, "new", "study", "-o", str(file.parent / "study.yaml")).code == 0
    lines = (file.parent / "study.yaml").read_text().splitlines()
    assert "#   h004: Two lines seed: 3" in lines
    assert "# hypothesis: h004" in lines
    assert "seed: 3" not in lines


def test_a_sparkline_spans_its_bars() -> None:
    assert sparkline([0.0, 0.124, 0.126, 0.5, 0.999, 1.0]) == "▁▁▂▅██"
