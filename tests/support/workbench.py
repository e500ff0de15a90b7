"""A workspace with one small recurrent subject and a study of all four stages, for tests that run the real thing."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

PROJECT = {
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
        "variables": {"site": "z_L", "activation": "topk", "k": 4, "d_sae": 32, "steps": 60, "batch_size": 64},
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


def make(root: Path) -> Path:
    """Write the workspace and return the study's path."""
    project = root / "projects" / "bench"
    project.mkdir(parents=True)
    (project / "project.yaml").write_text(yaml.safe_dump(PROJECT))
    study = project / "study.yaml"
    study.write_text(yaml.safe_dump({"type": "study", "subject": "trm", "steps": STEPS}))
    return study


def single(study: Path, step: str, runs: dict[str, str]) -> Path:
    """Write one step as a spec of its own that takes its inputs from finished runs, and return its path."""
    spec = dict(next(entry for entry in STEPS if entry["name"] == step))
    spec |= {"subject": "trm", "inputs": {role: f"run:{runs[source[1:]]}" for role, source in spec.get("inputs", {}).items()}}
    del spec["name"]
    path = study.parent / f"{step}.yaml"
    path.write_text(yaml.safe_dump(spec))
    return path


def forked(work: Callable[[], Any], answer: Path | None = None) -> int:
    """Run `work` in a forked child of its own process group and return its pid; what it returns goes to `answer` as JSON."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        value = work()
        if answer is not None:
            answer.write_text(json.dumps(value))
        code = 0
    except BaseException as error:  # noqa: BLE001 - a child reports and ends, whatever happened
        code = getattr(error, "exit_code", 1)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def wait(pid: int) -> int:
    """Return how a child ended, as a shell would say it."""
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status) if not os.WIFSIGNALED(status) else 128 + os.WTERMSIG(status)


def kill(pid: int, signum: int = signal.SIGKILL) -> None:
    """Signal a child's whole group."""
    os.killpg(pid, signum)
