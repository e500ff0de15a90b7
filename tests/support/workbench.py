"""A workspace with one small recurrent subject and a study of all four stages, for tests that run the real thing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

PROJECT: dict[str, Any] = {
    "name": "bench",
    "subjects": {
        "trm": {
            "kind": "trm",
            "task": {"name": "sudoku4", "n_train": 200, "n_validation": 30, "n_test": 60},
            "model": {"d_model": 16, "H_cycles": 2, "L_cycles": 2, "n_sup": 2},
        }
    },
}
STEPS: list[dict[str, Any]] = [
    {
        "name": "subject",
        "type": "subject_fit",
        "variables": {"steps": 60, "eval_every": 30, "checkpoint_every": 10, "options": {"batch_size": 16}},
    },
    {
        "name": "trace",
        "type": "trace",
        "inputs": {"subject": "@subject"},
        "variables": {"sites": ["z_L", "z_H"], "examples": {"split": "test", "n": 48}, "batch_size": 8},
    },
    {
        "name": "sae",
        "type": "sae_fit",
        "inputs": {"trace": "@trace", "subject": "@subject"},
        "variables": {"site": "z_L", "activation": "topk", "k": 4, "d_sae": 32, "steps": 60, "batch_size": 64, "checkpoint_every": 20},
    },
    {
        "name": "intervene",
        "type": "intervene",
        "inputs": {"sae": "@sae", "trace": "@trace", "subject": "@subject"},
        "variables": {
            "examples": {"split": "test", "n": 24},
            "batch_size": 8,
            "n_bootstrap": 200,
            "interventions": [
                {
                    "policy": "ablate_features",
                    "features": "top:2",
                    "at": {"site": "z_L", "sup_steps": [1], "cycles": [1], "latent_steps": [1]},
                },
                {"policy": "patch_states", "at": {"site": "z_L", "sup_steps": [1], "cycles": [1], "latent_steps": [1]}},
            ],
        },
    },
]
STAGES = tuple(step["name"] for step in STEPS)
SITE_MODEL = "bench.trm.z_L"
"""What the study's SAE is registered as."""


def make(root: Path, **study: Any) -> Path:
    """Write the workspace and return the study's path; `study` adds fields to it, such as a seed."""
    project = root / "projects" / "bench"
    project.mkdir(parents=True)
    (project / "project.yaml").write_text(yaml.safe_dump(PROJECT))
    return write(project / "study.yaml", {"type": "study", "subject": "trm", "steps": STEPS, **study})


def write(path: Path, spec: Mapping[str, Any]) -> Path:
    """Write a spec and return its path."""
    path.write_text(yaml.safe_dump(dict(spec), sort_keys=False))
    return path


def step(name: str, runs: Mapping[str, str], **changes: Any) -> dict[str, Any]:
    """Return one step of the study as a spec of its own that takes its inputs from runs; `changes` go into its variables."""
    spec = dict(next(entry for entry in STEPS if entry["name"] == name))
    del spec["name"]
    inputs = {role: f"run:{runs[source[1:]]}" for role, source in spec.get("inputs", {}).items()}
    return {**spec, "subject": "trm", "inputs": inputs, "variables": {**spec["variables"], **changes}}


def single(study: Path, name: str, runs: Mapping[str, str]) -> Path:
    """Write one step of the study as a spec of its own that takes its inputs from finished runs, and return its path."""
    return write(study.parent / f"{name}.yaml", step(name, runs))


def finding(files: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return what a manifest says was found: the content digest of every file but those that tell the time or name runs."""
    told = {"report.md", "report.html", "tables/steps.csv", "tables/steps.json"}
    return {name: entry["content_digest"] for name, entry in files.items() if name not in told}
