"""A project's own Python: files of one folder import each other, run once, and are never stale or outside the folder."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mlinterp.errors import SpecError, UnsafeError
from mlinterp.io.pyfile import load_function

PACKAGE = """\
from __future__ import annotations

from dataclasses import dataclass

from .rules import factor


@dataclass
class Thing:
    size: int


def build(n):
    return Thing(factor * n)


def network(thing):
    return isinstance(thing, Thing)


constant = 1
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "package.py").write_text(PACKAGE)
    (tmp_path / "rules.py").write_text("factor = 3\n")
    return tmp_path


def load(root: Path, named: str):
    return load_function(root, named, "subjects.mine.package")


def test_a_files_function_is_returned_and_neighbours_are_imported(root):
    assert load(root, "package.py:build")(2).size == 6


def test_functions_named_one_by_one_are_of_one_run_of_the_file(root):
    assert load(root, "package.py:network")(load(root, "package.py:build")(1))


def test_a_file_in_a_folder_below_imports_from_above(root):
    (root / "deep").mkdir()
    (root / "deep" / "more.py").write_text("from ..rules import factor\n\ndef build():\n    return factor\n")
    assert load(root, "deep/more.py:build")() == 3


def test_a_neighbour_that_has_changed_since_is_read_again(root):
    before = load(root, "package.py:build")
    (root / "rules.py").write_text("factor = 30\n")
    assert load(root, "package.py:build")(2).size == 60
    assert before(2).size == 6


def test_two_projects_of_equal_names_do_not_meet(tmp_path):
    for number in (1, 2):
        folder = tmp_path / str(number) / "same"
        folder.mkdir(parents=True)
        (folder / "package.py").write_text(f"def build():\n    return {number}\n")
    assert [load(tmp_path / str(number) / "same", "package.py:build")() for number in (1, 2)] == [1, 2]


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ("package.py:biuld", r"^subjects\.mine\.package: unknown function of package\.py 'biuld'; .*; did you mean 'build'\?$"),
        ("package.py:constant", "unknown function of package.py 'constant'"),
        ("missing.py:build", r"^subjects\.mine\.package: missing\.py is not in "),
        ("broken.py:build", r"^subjects\.mine\.package: broken\.py:2: "),
        ("importer.py:build", r"^subjects\.mine\.package: broken\.py:2: "),
    ],
)
def test_what_cannot_be_used_is_refused_by_its_field(root, named, words):
    (root / "broken.py").write_text("def build():\n  return (\n")
    (root / "importer.py").write_text("from . import broken\n")
    with pytest.raises(SpecError, match=words):
        load(root, named)


@pytest.mark.parametrize("named", ["../package.py:build", "/tmp/package.py:build", "link.py:build"])
def test_a_file_outside_the_project_never_runs(root, named):
    inside = root / "project"
    inside.mkdir()
    (inside / "link.py").symlink_to(root / "package.py")
    with pytest.raises(UnsafeError):
        load(inside, named)


def test_what_a_file_itself_raises_passes_through_and_leaves_no_half_module(root):
    (root / "opens.py").write_text("open('nothing-here')\n")
    before = set(sys.modules)
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            load(root, "opens.py:build")
    assert not [name for name in set(sys.modules) - before if name.endswith(".opens")]
