"""How a token-set subject is declared, and what is refused: in the file where that can be seen, else when it is built."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import token_sets

import mlinterp.errors
from mlinterp.errors import SpecError, UnsafeError
from mlinterp.project import find_project

LEARNED, PLANTED = token_sets.LEARNED, token_sets.PLANTED


def declared(root: Path, subject: dict) -> Path:
    project = token_sets.make(root)
    (project / "project.yaml").write_text(json.dumps({"name": "fighters", "subjects": {"mine": subject}}))
    return project


def test_settings_are_complete_with_defaults(tmp_path):
    config = find_project(declared(tmp_path, {"kind": "token_set", "package": "package.py:build"})).subject_config("mine")
    assert config["network"] == {"d": 64, "hidden": 256, "layers": 2, "factory": None}
    assert (config["readout"], config["sites"], config["seed"], config["inputs"], config["options"]) == ("pooled", {}, 0, {}, {})


@pytest.mark.parametrize(
    ("subject", "words"),
    [
        ({**LEARNED, "package": "build"}, r"subjects\.mine\.package: 'build' is not allowed"),
        ({**LEARNED, "network": {"d": 8, "layer": 2}}, r"subjects\.mine\.network\.layer: unknown key 'layer'; .*did you mean 'layers'\?"),
        ({**LEARNED, "network": {"d": 0}}, r"subjects\.mine\.network\.d: 0 is out of bounds"),
        ({**LEARNED, "network": {"d": 8, "factory": "package.py:network"}}, "a network of the project's own has no d"),
        ({**LEARNED, "sites": {"pooled": "trunk"}}, r"names its own sites \(embed, block_0, pooled\)"),
        ({**LEARNED, "readout": "poled"}, r"readout 'poled' is no site of the network, .*did you mean 'pooled'\?"),
        ({**LEARNED, "readout": "block_1"}, r"readout 'block_1' is no site of the network"),
        ({**PLANTED, "sites": {}}, "sites must name at least one place"),
        ({**PLANTED, "sites": {"a b": "trunk"}}, "'a b' is not allowed"),
    ],
)
def test_a_declaration_that_makes_no_sense_is_refused_when_the_file_is_read(tmp_path, subject, words):
    with pytest.raises(SpecError, match=words) as caught:
        find_project(declared(tmp_path, subject))
    assert str(caught.value).startswith(str(tmp_path / "projects" / "fighters" / "project.yaml:1: "))


FACTORIES = """\
from torch import nn


def number(*_):
    return 3


def narrow(package):
    return nn.Linear(12, 3)


def talkative(package):
    class Pair(nn.Module):
        def forward(self, bag):
            return bag, bag

    return Pair()
"""


@pytest.mark.parametrize(
    ("subject", "words"),
    [
        ({**LEARNED, "package": "package.py:biuld"}, r"subjects\.mine\.package: unknown function .*did you mean 'build'"),
        (
            {**LEARNED, "package": "made.py:number"},
            r"package: made\.py:number returned a int; expected a mlinterp\.subjects\.token_sets\.package\.DataPackage",
        ),
        ({**PLANTED, "network": {"factory": "made.py:number"}}, r"network\.factory: made\.py:number returned a int; expected a torch"),
        (
            {**PLANTED, "network": {"factory": "made.py:narrow"}},
            r"gives a tensor \[1, 3\] for one context; expected logits \[1, 4\]",
        ),
        ({**PLANTED, "network": {"factory": "made.py:talkative"}}, r"gives a tuple for one context"),
        (
            {**PLANTED, "sites": {"pooled": "trnk"}},
            r"subjects\.mine\.sites\.pooled: the network has no module 'trnk'; did you mean 'trunk'",
        ),
    ],
)
def test_what_only_building_shows_is_refused_with_the_line_of_the_declaration(tmp_path, subject, words):
    project = declared(tmp_path, subject)
    (project / "made.py").write_text(FACTORIES)
    with pytest.raises(SpecError, match=words) as caught:
        find_project(project).load_subject("mine")
    assert str(caught.value).startswith(str(project / "project.yaml:1: "))


def test_a_package_outside_the_project_is_refused(tmp_path):
    with pytest.raises(UnsafeError):
        find_project(declared(tmp_path, {**LEARNED, "package": "../package.py:build"})).load_subject("mine")


def test_reading_a_declaration_imports_nothing_heavy(tmp_path):
    project = declared(tmp_path, PLANTED)
    code = (
        f"import sys; from mlinterp.project import find_project; find_project({str(project)!r}).subject_config('mine');"
        "print([m for m in ('torch', 'lightning', 'mlflow', 'pandas', 'numba') if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(mlinterp.errors.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "[]"
