"""The same spec and the same seed give the same bits, whatever the process around them is like; another seed gives others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import workbench

import mlinterp

SCRIPT = """
import json, sys
import mlinterp

summary = mlinterp.run_spec(sys.argv[1])
print(json.dumps({child.label: child.run_id for child in summary.children}))
"""
KEY = {
    "subject": ["subject/weights.safetensors"],
    "trace": ["trace.jsonl", "states.npy"],
    "sae": ["sae.pt", "sae.safetensors", "sae_metrics.json"],
    "intervene": ["report.json"],
}
"""The files that carry a stage's finding."""


def files(artifacts: Path) -> dict[str, dict[str, Any]]:
    return dict(json.loads((artifacts / "manifest.json").read_text())["files"])


def ours(bench, label: str) -> dict[str, dict[str, Any]]:
    return files(bench.artifacts(bench.runs[label]))


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """The same study in a fresh workspace, by a process with another hash seed, folder, time zone, language and clock."""
    root = tmp_path_factory.mktemp("elsewhere")
    study = workbench.make(root / "deeper" / "down")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    other = {"PYTHONHASHSEED": "4242", "TZ": "Pacific/Auckland", "LC_ALL": "C", "MLINTERP_THREADS": "1", "COLUMNS": "40"}
    command = [sys.executable, "-c", SCRIPT, str(study)]
    done = subprocess.run(command, env={**kept, **other}, cwd=root, check=True, capture_output=True, text=True)
    runs = json.loads(done.stdout)
    artifacts = root / "deeper" / "down" / "mlartifacts" / "bench"
    return {label: files(artifacts / run_id / "artifacts") for label, run_id in runs.items()}


@pytest.fixture(scope="module")
def reseeded(bench):
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("MLINTERP_THREADS", "1")
        spec = bench.write("reseeded", {"type": "study", "subject": "trm", "seed": 1, "steps": workbench.STEPS})
        summary = mlinterp.run_spec(spec)
    return {str(child.label): files(bench.artifacts(child.run_id)) for child in summary.children}


@pytest.mark.parametrize("label", workbench.STAGES)
def test_every_file_of_a_stage_says_the_same_in_another_process_and_place(bench, elsewhere, label):
    assert set(KEY[label]) <= set(ours(bench, label))
    assert workbench.finding(elsewhere[label]) == workbench.finding(ours(bench, label))


@pytest.mark.parametrize(("label", "name"), [("trace", "states.npy"), ("sae", "sae.pt"), ("sae", "sae.safetensors")])
def test_binary_files_are_equal_to_the_byte(bench, elsewhere, label, name):
    assert elsewhere[label][name]["sha256"] == ours(bench, label)[name]["sha256"]


@pytest.mark.parametrize(("label", "name"), [(label, name) for label, names in KEY.items() for name in names])
def test_another_seed_finds_something_else(bench, reseeded, label, name):
    assert reseeded[label][name]["content_digest"] != ours(bench, label)[name]["content_digest"]
