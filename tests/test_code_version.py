from __future__ import annotations

import ast
from pathlib import Path

import mlinterp
from mlinterp.execution.code_version import COMPUTES

ROOT = Path(mlinterp.__file__).parent
TELLS = {"allocator", "errors", "frozen", "halving", "io", "progress", "project", "refusals", "reports", "result"}
"""Parts that carry, refuse or show numbers, and change none."""


def parts_that(file: Path) -> set[str]:
    """Return the parts of the package that a file imports from."""
    names: list[str] = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module] if node.module != "mlinterp" else [f"mlinterp.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return {name.split(".")[1] for name in names if name.startswith("mlinterp.")}


def test_whatever_an_experiment_computes_with_is_part_of_the_code_version():
    computing = {part.removesuffix(".py") for part in COMPUTES}
    files = [file for part in COMPUTES for file in ([ROOT / part] if part.endswith(".py") else (ROOT / part).rglob("*.py"))]
    assert all(file.exists() for file in files)
    used = set().union(*(parts_that(file) for file in files))
    assert used - computing - TELLS == set()
    assert {"circuits", "patching", "readouts", "interventions", "sae", "stats"} <= used
