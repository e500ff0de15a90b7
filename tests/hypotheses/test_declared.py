"""hypotheses.yaml: claims beside the specs, read as strictly as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlinterp.errors import SpecError
from mlinterp.hypotheses.declared import HYPOTHESES_FILE, DeclaredHypotheses, parents_first, read_declared
from mlinterp.project import Project, find_project, load_spec
from mlinterp.validation import check

FILE = """\
h001: {claim: "The answer lives in z_H.", prediction: "patching it moves it", requires: [necessity, sufficiency]}
h002:
  claim: One latent writes one digit.
  parent: h001
  level: causal
  tags: [digit, latent-3]
  confidence: 0.25
  alpha: 0.01
  feature_id: 3
  subject: trm4
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    folder = tmp_path / "projects" / "small"
    folder.mkdir(parents=True)
    (folder / "project.yaml").write_text("name: small\nsubjects:\n  trm4: {kind: trm, task: {name: sudoku4}}\n")
    (folder / HYPOTHESES_FILE).write_text(FILE)
    return find_project(folder)


def test_claims_are_read_with_everything_that_belongs_to_them(project: Project) -> None:
    found = read_declared(project)
    assert list(found) == ["h001", "h002"]
    assert found["h001"].requires == ["necessity", "sufficiency"]
    second = found["h002"]
    assert (second.parent, second.confidence, second.alpha, second.feature_id, second.tags) == (
        "h001",
        0.25,
        0.01,
        3,
        ["digit", "latent-3"],
    )


def test_a_project_without_the_file_declares_nothing(project: Project) -> None:
    (project.root / HYPOTHESES_FILE).unlink()
    assert dict(read_declared(project)) == {}
    error = SpecError("is wrong", field="h001")
    assert DeclaredHypotheses().place(error) is error


def test_a_parent_comes_before_its_children_and_else_the_file_s_order_stays(project: Project) -> None:
    claim = "claim: Something is the case"
    text = f"h005: {{{claim}, parent: h004}}\nh009: {{{claim}}}\nh004: {{{claim}, parent: h002}}\nh002: {{{claim}, parent: h777}}\n"
    (project.root / HYPOTHESES_FILE).write_text(text)
    assert list(read_declared(project)) == ["h002", "h004", "h005", "h009"]


@pytest.mark.parametrize("circle", [["h001"], ["h001", "h002"], ["h001", "h002", "h003"]])
def test_a_circle_of_parents_is_refused(circle: list[str]) -> None:
    parents = dict(zip(circle, [*circle[1:], circle[0]], strict=True))
    with pytest.raises(SpecError, match=" -> ".join([*circle, circle[0]])):
        list(parents_first({"h009": "h001", **parents}))


def test_an_error_about_a_declared_hypothesis_names_its_line(project: Project) -> None:
    found = read_declared(project)
    path = project.root / HYPOTHESES_FILE
    assert str(found.place(SpecError("has changed", field="h002.parent"))) == f"{path}:4: h002.parent: has changed"
    assert str(found.place(SpecError("has changed", field="h002.notes"))) == f"{path}:2: h002.notes: has changed"
    assert str(found.place(SpecError("is unknown", field="h007"))) == "h007: is unknown"


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("h002:", "h2:", ":2: h2: 'h2' is no id of a hypothesis; a hypothesis is h and 3 to 9 digits, such as h001"),
        ("h002:", "h001:", ":2: h001: key 'h001' is given twice"),
        ("level: causal", "levle: causal", ":5: h002.levle: unknown key 'levle'; allowed: claim,"),
        ("level: causal", "levle: causal", "did you mean 'level'?"),
        (
            "level: causal",
            "level: casual",
            ":5: h002.level: unknown value 'casual'; allowed: causal, correlational; did you mean 'causal'?",
        ),
        ("parent: h001", "parent: h1", ":4: h002.parent: 'h1' is not allowed; a hypothesis is h and 3 to 9 digits, such as h001"),
        ("parent: h001", "parent: h002", ":4: h002.parent: h002 -> h002 is a circle"),
        ("claim: One latent writes one digit.\n", "\n", ":2: h002.claim: is missing; expected text"),
        ("One latent writes one digit.", "short", ":3: h002.claim: 'short' is too short; at least 10 characters"),
        ("confidence: 0.25", "confidence: 1.0", ":7: h002.confidence: 1.0 is out of bounds; must be > 0 and < 1"),
        ("alpha: 0.01", "alpha: 0", ":8: h002.alpha: 0 is out of bounds; must be > 0 and <= 0.5"),
        ("tags: [digit, latent-3]", "tags: [two words]", ":6: h002.tags.0: 'two words' is not allowed; a name is"),
        (
            "[necessity, sufficiency]",
            "[necesity]",
            ":1: h001.requires.0: unknown value 'necesity'; allowed: necessity, sufficiency; did you",
        ),
        (FILE, "h001: it holds the answer\n", ":1: h001: 'it holds the answer' is not a block of keys; expected `claim: …`"),
        (FILE, "- h001\n", "holds a list at its top level"),
    ],
)
def test_what_is_wrong_is_refused_with_its_line(project: Project, old: str, new: str, line: str) -> None:
    assert old in FILE
    path = project.root / HYPOTHESES_FILE
    path.write_text(FILE.replace(old, new))
    with pytest.raises(SpecError) as caught:
        read_declared(project)
    assert str(caught.value).startswith(str(path))
    assert line in str(caught.value)


@pytest.mark.parametrize(("hypothesis", "said"), [("h002", ""), ("h007", "  hypothesis h007: looked up when it runs")])
def test_the_dry_run_says_which_hypothesis_only_the_store_can_know(project: Project, hypothesis: str, said: str) -> None:
    path = project.root / "trace.yaml"
    path.write_text(f"type: trace\nsubject: trm4\nhypothesis: {hypothesis}\nvariables: {{sites: [z_L]}}\n")
    loaded = load_spec(path)
    assert check(loaded, project).line() == f"trace  trm4  1 cell  {loaded.spec.sha256()[:12]}{said}"


def test_the_dry_run_refuses_a_spec_whose_project_declares_wrongly(project: Project) -> None:
    (project.root / HYPOTHESES_FILE).write_text("h001: {claim: short}\n")
    path = project.root / "trace.yaml"
    path.write_text("type: trace\nsubject: trm4\nhypothesis: h001\nvariables: {sites: [z_L]}\n")
    with pytest.raises(SpecError, match=r"hypotheses\.yaml:1: h001\.claim: 'short' is too short"):
        check(load_spec(path), project)
