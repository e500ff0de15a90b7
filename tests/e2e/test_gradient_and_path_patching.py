"""Attribution patching and path patching as tracked steps of one study, and what the benchmark of the former prints."""

from __future__ import annotations

import re
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import workbench
from watched import write_texts

import mlinterp
from mlinterp.tracking.store import open_store

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "attribution_patching.py"
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
ASKED: dict[str, Any] = {
    "pairs": [{"clean": f"f({n}, [2", "corrupted": f"f({n}) [2", "answer": "]", "wrong": ")"} for n in range(4)],
    "n_bootstrap": 200,
    "controls": 2,
}
STEPS = [
    {"name": "estimates", "type": "attribution_patching", "variables": {**deepcopy(ASKED), "method": "integrated", "ig_steps": 2}},
    {"name": "paths", "type": "path_patching", "variables": {**deepcopy(ASKED), "receivers": ["logits", "blocks.1.head.0.k"]}},
]


def test_both_are_logged_with_their_tables_and_heatmaps(tmp_path: Path) -> None:
    root = tmp_path / "projects" / "patched"
    root.mkdir(parents=True)
    write_texts(root)
    workbench.write(root / "project.yaml", PROJECT)
    study = workbench.write(root / "study.yaml", {"type": "study", "subject": "gpt", "steps": STEPS})
    summary, store = mlinterp.run_spec(study), open_store(tmp_path)
    runs = {str(child.label): child.run_id for child in summary.children}
    files = {name: {path.name for path in Path(store.client.get_run(run).info.artifact_uri).rglob("*")} for name, run in runs.items()}
    assert {"adjusted_by_position.png", "agreement.png", "agreement.csv", "completeness.csv", "patches.csv", "pairs.csv"} <= files[
        "estimates"
    ]
    assert {"adjusted_by_receiver.png", "largest.png", "paths.csv", "pairs.csv"} <= files["paths"]
    numbers = {name: store.client.get_run(run).data.metrics for name, run in runs.items()}
    assert {"top/adjusted_effect", "agreement/largest_miss", "completeness/largest_error"} <= set(numbers["estimates"])
    assert any(name.startswith("effect/L0.") and name.endswith("_to_logits") for name in numbers["paths"])


@pytest.mark.slow
def test_the_benchmark_prints_how_many_forward_passes_the_estimates_cost() -> None:
    sizes = ["--layers", "2", "--d-model", "32", "--heads", "2", "--vocab", "300", "--rounds", "3"]
    printed = subprocess.run([sys.executable, SCRIPT, *sizes], check=True, capture_output=True, text=True).stdout
    assert re.fullmatch(r"resid_pre of 2 layers at 15 positions: \d\.\d+ s of wall time, \d+\.\d+ forward passes\n", printed)
