"""The README is true: its spec validates, its tree is on disk, its commands exist."""

import re
from pathlib import Path

import pytest
import yaml

from mlinterp.cli import main
from mlinterp.experiments.catalog import experiments, typed_variables
from mlinterp.spec import Spec

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


def test_the_spec_on_the_page_is_valid():
    typed_variables(Spec.model_validate(yaml.safe_load(blocks("yaml")[0])))


def test_every_place_of_the_tree_exists():
    tree = next(block for block in blocks("text") if block.startswith("README.md"))
    parents = {0: ROOT}
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        for name in line.split("  ", 1)[0].strip().split(", ") if depth == 0 else re.split(r"\s{2,}", line.strip())[0].split(", "):
            place = parents[depth] / name.rstrip("/")
            assert place.exists(), f"the tree names {place.relative_to(ROOT)}"
            parents[depth + 1] = place


def test_every_experiment_type_is_on_the_page():
    table = set(re.findall(r"^\| `(\w+)` \|", TEXT, flags=re.MULTILINE))
    assert set(experiments()) <= table


def test_the_refusal_on_the_page_is_what_is_printed(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    command, answer = blocks("console")[0].strip().splitlines()
    with pytest.raises(SystemExit) as stop:
        main(command.removeprefix("$ mlinterp ").split())
    assert stop.value.code == 2
    assert capsys.readouterr().err.strip() == answer


def test_every_spec_that_is_shipped_is_valid(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    specs = sorted(
        str(path.relative_to(ROOT)) for path in ROOT.glob("projects/*/**/*.yaml") if path.name not in {"project.yaml", "hypotheses.yaml"}
    )
    specs = [spec for spec in specs if "type" in yaml.safe_load((ROOT / spec).read_text())]  # a project's data may be YAML too
    assert len(specs) >= 6
    main(["validate", *specs])
    assert len(capsys.readouterr().out.splitlines()) == len(specs)
