"""Which code computed a result: the digest of the package's own source, so that it is known without git."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import mlinterp

COMPUTES = (
    "circuits",
    "experiments",
    "interventions",
    "patching",
    "readouts",
    "sae",
    "subjects",
    "token_sets",
    "tracing",
    "stats.py",
    "estimates.py",
    "determinism.py",
    "trainer.py",
    "spec.py",
)
"""The parts whose change can change a number."""


@cache
def code_version() -> str:
    """Return 16 hex digits that change when code that computes results changes."""
    root = Path(mlinterp.__file__).parent
    digest = hashlib.sha256()
    for part in COMPUTES:
        files = [root / part] if part.endswith(".py") else sorted((root / part).rglob("*.py"))
        for file in files:
            digest.update(file.relative_to(root).as_posix().encode() + b"\x1f" + file.read_bytes())
    return digest.hexdigest()[:16]


@cache
def versions() -> dict[str, str]:
    """Return the versions of what computes, as recorded with each run."""
    from importlib.metadata import version

    packages = ("mlinterp", "torch", "lightning", "mlflow", "transformers", "numpy", "numba", "pandas", "scipy")
    return {"code": code_version(), **{name: version(name) for name in packages}}
