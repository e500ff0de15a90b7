"""Workflows: questions that take several experiments, each asked as a study.

    found = mlinterp.workflows.behavior_localization("gpt", "pairs.jsonl", steps=["patch_attn", "patch_heads"])
    print(found.narrative); found.get_step("patch_heads").top_components(3)

A workflow builds a study spec (`build` returns it, `mlinterp workflow NAME --write FILE` writes it) and runs it: a parent run, a child for
each step, reuse, resume and report as of any study.

`mlinterp.workflows.circuit_discovery` is a study of several steps; one of them is the experiment type `mlinterp.circuit_discovery`.
"""

from __future__ import annotations

from mlinterp.workflows.catalog import WORKFLOWS, build, find
from mlinterp.workflows.functions import behavior_localization, circuit_discovery, feature_investigation
from mlinterp.workflows.results import WorkflowResult

__all__ = [
    "WORKFLOWS",
    "WorkflowResult",
    "behavior_localization",
    "build",
    "circuit_discovery",
    "feature_investigation",
    "find",
]
