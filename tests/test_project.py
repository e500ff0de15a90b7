"""Projects: found from a spec's place, every subject checked when the file is read, each built only when it is wanted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import mlinterp.errors
from mlinterp.errors import SpecError, UnsafeError
from mlinterp.project import Project, choose_project, find_project, find_workspace, load_spec, override

PROJECT = """\
name: small
description: A project for tests.
subjects:
  trm4: {kind: trm, task: {name: sudoku4}, model: {d_model: 8, n_layers: 1, H_cycles: 1, L_cycles: 1, n_sup: 1}}
  mine:
    kind: factory
    factory: subject.py:build
    options: {width: 3}
gates: {}
"""
FACTORY = """\
from pathlib import Path

from mlinterp.subjects.base import Subject


class Mine(Subject):
    sites = ("x",)
    kind = "factory"

    def __init__(self, name, options, root):
        self.name, self.config, self.root = name, options, root

    def width(self, site):
        return self.config["width"]

    def addresses(self, sites): ...
    def examples(self, split, n, seed=0, **selection): ...
    def forward(self, batch, tap=None, sites=(), until=None): ...
    def token_text(self, token): ...


def build(name, options, root):
    return Mine(name, options, root)


def wrong(name, options, root):
    return 3


constant = 1
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "projects" / "small"
    (folder / "specs").mkdir(parents=True)
    (folder / "project.yaml").write_text(PROJECT)
    (folder / "subject.py").write_text(FACTORY)
    (folder / "specs" / "trace.yaml").write_text("type: trace\nsubject: trm4\nvariables: {sites: [z_L]}\n")
    return folder


def refusal(root: Path, old: str, new: str) -> str:
    assert old in PROJECT
    (root / "project.yaml").write_text(PROJECT.replace(old, new))
    with pytest.raises(SpecError) as caught:
        find_project(root)
    return str(caught.value)


def test_a_project_is_found_from_its_specs_and_from_its_folder(root: Path) -> None:
    for start in (root / "specs" / "trace.yaml", root / "specs", root, root / "project.yaml"):
        project = find_project(start)
        assert (project.name, project.root, project.workspace) == ("small", root, root.parents[1])


def test_a_project_is_found_from_a_relative_path(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root / "specs")
    assert find_project("trace.yaml").root == root


def test_a_project_is_chosen_by_name_by_path_or_by_place(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root / "specs")
    for where in ("small", str(root), "trace.yaml", "..", None):
        assert choose_project(where).root == root
    with pytest.raises(SpecError, match=r"^--project: unknown project 'smal'; allowed: small; did you mean 'small'\?$"):
        choose_project("smal")


def test_from_the_workspace_the_only_project_is_meant_and_of_several_none(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root.parents[1])
    assert choose_project(None).name == "small"
    other = root.parent / "other"
    other.mkdir()
    (other / "project.yaml").write_text("name: other\n")
    assert choose_project("other").name == "other"
    with pytest.raises(SpecError, match=r"^--project: there are 2 projects; name one: other, small$"):
        choose_project(None)
    (root.parents[1] / "small").mkdir()
    assert choose_project("small").root == root
    for folder in (root, other):
        (folder / "project.yaml").unlink()
    with pytest.raises(SpecError, match=r"no project\.yaml in "):
        choose_project(None)


def test_the_search_ends_at_the_workspace(root: Path) -> None:
    (root.parents[1] / "project.yaml").write_text("name: outer\n")
    outside = root.parents[1] / "projects" / "other"
    outside.mkdir()
    assert find_project(outside).name == "outer"
    (root.parents[1] / "project.yaml").rename(root.parents[2] / "project.yaml")
    try:
        with pytest.raises(SpecError, match=r"no project\.yaml in .*other or above it"):
            find_project(outside)
    finally:
        (root.parents[2] / "project.yaml").unlink()


@pytest.mark.parametrize("mark", ["MLproject", "projects", "pyproject.toml"])
def test_the_workspace_is_the_nearest_folder_with_its_mark(tmp_path: Path, mark: str) -> None:
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    if mark == "projects":
        (tmp_path / "a" / mark).mkdir()
    else:
        (tmp_path / "a" / mark).write_text("")
    assert find_workspace(deep) == find_workspace(deep / "spec.yaml") == tmp_path / "a"


def test_subject_settings_are_complete_json_values(root: Path) -> None:
    project = find_project(root)
    config = project.subject_config("trm4")
    assert (config["kind"], config["model"]["d_model"], config["model"]["mixer"]) == ("trm", 8, "mlp_t")
    assert project.subject_config("mine") == {"kind": "factory", "factory": "subject.py:build", "options": {"width": 3}}


def test_an_unknown_subject_is_refused_with_the_nearest_name(root: Path) -> None:
    with pytest.raises(SpecError, match=r"subject: unknown subject 'trm5'; allowed: trm4, mine; did you mean 'trm4'\?"):
        find_project(root).subject_config("trm5")
    with pytest.raises(SpecError, match="unknown subject"):
        find_project(root).load_subject("trm5")


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("name: small\n", "", ": name: is missing; expected text"),
        ("name: small", "name: a b", ":1: name: 'a b' is not allowed; a name is"),
        (
            "gates: {}",
            "gate: {}",
            ":9: gate: unknown key 'gate'; allowed: name, description, subjects, gates; did you mean 'gates'?",
        ),
        (
            "kind: trm",
            "kind: tmr",
            ":4: subjects.trm4.kind: unknown kind of subject 'tmr'; allowed: huggingface, trm, token_set, factory; did you mean 'trm'?",
        ),
        ("kind: trm, ", "", ":4: subjects.trm4.kind: is missing; allowed: huggingface, trm, token_set, factory"),
        ("d_model: 8", "d_modle: 8", ":4: subjects.trm4.model.d_modle: unknown key 'd_modle'; allowed: d_model,"),
        ("d_model: 8", "d_model: 7", ":4: subjects.trm4.model.d_model: 7 is out of bounds; must be >= 8 and <= 2048"),
        ("factory: subject.py:build", "factory: build", ":7: subjects.mine.factory: 'build' is not allowed"),
        ("options: {width: 3}", "option: {width: 3}", ":8: subjects.mine.option: unknown key 'option'"),
        ("name: small", "name: small\nname: other", ":2: name: key 'name' is given twice"),
    ],
)
def test_what_is_wrong_in_a_project_file_is_refused_with_its_line(root: Path, old: str, new: str, line: str) -> None:
    message = refusal(root, old, new)
    assert message.startswith(str(root / "project.yaml"))
    assert line in message


def test_a_factory_builds_a_subject_from_name_options_and_root(root: Path) -> None:
    subject = find_project(root).load_subject("mine")
    assert (subject.name, subject.width("x"), subject.root) == ("mine", 3, root)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ("subject.py:biuld", r":7: subjects\.mine\.factory: unknown function of subject\.py 'biuld'; allowed: .*; did you mean 'build'\?"),
        ("subject.py:constant", "unknown function"),
        ("subject.py:wrong", r"subject\.py:wrong returned a int; expected a mlinterp\.subjects\.base\.Subject"),
        ("missing.py:build", r"missing\.py is not in "),
        ("broken.py:build", r"broken\.py:2: "),
    ],
)
def test_a_factory_that_cannot_be_used_is_refused(root: Path, named: str, words: str) -> None:
    (root / "broken.py").write_text("def build():\n  return (\n")
    (root / "project.yaml").write_text(PROJECT.replace("subject.py:build", named))
    with pytest.raises(SpecError, match=words):
        find_project(root).load_subject("mine")


@pytest.mark.parametrize("named", ["../subject.py:build", "/tmp/subject.py:build", "link.py:build"])
def test_a_factory_outside_the_project_is_refused(root: Path, named: str) -> None:
    (root.parent / "subject.py").write_text("raise SystemExit('it ran')")
    (root / "link.py").symlink_to(root.parent / "subject.py")
    (root / "project.yaml").write_text(PROJECT.replace("subject.py:build", named))
    with pytest.raises(UnsafeError):
        find_project(root).load_subject("mine")


def test_a_trm_subject_is_built_from_its_settings(root: Path) -> None:
    subject = find_project(root).load_subject("trm4")
    assert (subject.kind, subject.width("z_L")) == ("trm", 8)


def test_a_project_is_frozen(root: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        find_project(root).name = "other"  # type: ignore[misc]


def test_reading_projects_and_specs_imports_nothing_heavy(root: Path) -> None:
    (root / "project.yaml").write_text(PROJECT.replace("  mine:", "  hf:\n" + HUGGINGFACE + "  mine:"))
    code = (
        "import sys; from mlinterp.project import find_project, load_spec;"
        f"p = find_project({str(root)!r}); p.subject_config('hf'); load_spec({str(root / 'specs' / 'trace.yaml')!r});"
        "print([m for m in ('torch', 'lightning', 'transformers', 'mlflow', 'tokenizers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True)
    assert done.stdout.strip() == "[]"


HUGGINGFACE = """\
    kind: huggingface
    source: {config: {model_type: gpt2, n_layer: 1, n_embd: 8, n_head: 1}}
    data: {kind: text, root: "python:stdlib", context: 16, tokenizer: {train_bpe: {vocab_size: 300}}}
"""


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(mlinterp.errors.__file__).parents[1])}


def test_a_spec_file_is_loaded_with_its_lines(root: Path) -> None:
    path = root / "specs" / "trace.yaml"
    loaded = load_spec(path)
    assert (loaded.spec.type, loaded.spec.variables) == ("trace", {"sites": ["z_L"]})
    assert str(loaded.place(SpecError("is wrong", field="variables.sites"))) == f"{path}:3: variables.sites: is wrong"
    path.write_text("type: trace\nsubjects: trm4\n")
    with pytest.raises(SpecError, match=r"trace\.yaml:2: subjects: unknown key 'subjects'.*did you mean 'subject'\?"):
        load_spec(path)


def test_overrides_take_the_place_of_the_file(root: Path) -> None:
    path = root / "specs" / "trace.yaml"
    loaded = load_spec(path, {"seed": 3, "variables.examples.n": 8, "variables.sites.0": "z_H"})
    assert (loaded.spec.seed, loaded.spec.variables) == (3, {"sites": ["z_H"], "examples": {"n": 8}})
    assert loaded.document.data == {"type": "trace", "subject": "trm4", "variables": {"sites": ["z_L"]}}
    assert str(loaded.place(SpecError("is wrong", field="variables.examples.n"))) == "--set: variables.examples.n: is wrong"
    with pytest.raises(SpecError, match=r"^--set: seed: 'x' is not an integer"):
        load_spec(path, {"seed": "x"})


@pytest.mark.parametrize("field", ["type.x", "variables.sites.1", "variables.sites.z", "variables.sites.0.x"])
def test_overrides_that_lead_nowhere_are_refused(root: Path, field: str) -> None:
    with pytest.raises(SpecError, match=f"^--set: {field}: "):
        load_spec(root / "specs" / "trace.yaml", {field: 1})


def test_an_override_leaves_the_original_alone() -> None:
    data = {"a": {"b": [1, {"c": 2}]}}
    assert override(data, {"a.b.1.c": 3}) == {"a": {"b": [1, {"c": 3}]}}
    assert data == {"a": {"b": [1, {"c": 2}]}}


def test_a_project_needs_no_subjects() -> None:
    assert Project.model_validate({"name": "x"}).subjects == {}
