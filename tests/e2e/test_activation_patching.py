"""Activation patching as a tracked run: pairs and a metric from files of the project, its figures, and when an answer is used again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import workbench
from watched import write_texts

import mlinterp
from mlinterp.errors import SpecError
from mlinterp.project import find_project
from mlinterp.tracking.store import open_store

PROJECT = {
    "name": "patched",
    "subjects": {
        "gpt": {
            "kind": "huggingface",
            "source": {"config": {"model_type": "gpt2", "n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": 16}},
            "data": {"kind": "text", "root": "text", "context": 12, "tokenizer": {"train_bpe": {"vocab_size": 270}}},
        }
    },
}
SPEC: dict[str, Any] = {
    "type": "activation_patching",
    "subject": "gpt",
    "variables": {"pairs": "pairs.jsonl", "metric": "metrics.py:distance", "n_bootstrap": 200, "controls": 2},
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "projects" / "patched"
    root.mkdir(parents=True)
    write_texts(root)
    workbench.write(root / "project.yaml", PROJECT)
    pairs = [{"clean": f"f({n}, [2", "corrupted": f"f({n}) [2"} for n in range(4)]
    (root / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (root / "metrics.py").write_text("def distance(x, clean, answer, wrong):\n    return -(clean - x).norm(dim=1)\n")
    workbench.write(root / "spec.yaml", SPEC)
    return root


def test_a_run_logs_its_table_and_heatmaps_and_is_used_again_until_a_file_that_it_names_changes(project: Path) -> None:
    first = mlinterp.run_spec(project / "spec.yaml")
    store = open_store(project.parent.parent)
    artifacts = Path(store.client.get_run(first.run_id).info.artifact_uri)
    names = {path.name for path in artifacts.rglob("*")}
    assert {"adjusted_by_position.png", "effect_by_position.png", "largest.png", "patches.csv", "pairs.csv"} <= names
    assert first.result is not None
    assert [row["position"] for row in first.result.tables["patches"].rows[:3]] == ["0 f", "1 (", "2 e.g. 0"]
    assert mlinterp.run_spec(project / "spec.yaml").run_id == first.run_id
    lines = (project / "pairs.jsonl").read_text().splitlines()
    (project / "pairs.jsonl").write_text("\n".join(lines[:3]) + "\n")
    second = mlinterp.run_spec(project / "spec.yaml")
    assert second.run_id != first.run_id


def test_files_that_variables_name_count_and_a_python_file_with_its_neighbours(project: Path) -> None:
    known = find_project(project)
    (project / "other.py").write_text("")
    assert set(known.named_files(SPEC["variables"])) > {"pairs.jsonl", "metrics.py", "other.py"}
    assert set(known.named_files([{"pairs": "pairs.jsonl"}, "no file.jsonl", "../patched/pairs.txt", 3])) == {"pairs.jsonl"}
    before = known.named_files("metrics.py:distance")
    (project / "other.py").write_text("x = 1\n")
    assert known.named_files("metrics.py:distance") != before


def test_a_wrong_pair_in_a_spec_is_refused_with_its_line_before_anything_runs(project: Path) -> None:
    wrong = {**SPEC, "variables": {"pairs": [{"clean": "f(1", "corrupted": "f(2", "answr": ")"}]}}
    with pytest.raises(SpecError, match=r"bad\.yaml:\d+: .*pairs.*answr.*did you mean 'answer'"):
        mlinterp.validate_spec(workbench.write(project / "bad.yaml", wrong))
