"""JSON Schemas (draft 2020-12) of the files mlinterp writes: the contract with whoever reads them.

Fields that a schema does not name are allowed, and a reader must ignore them; fields that it names keep their meaning and type for
as long as the version in `schema` stays.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

from mlinterp.errors import unknown

SCHEMAS = ("intervention", "manifest", "report", "result", "sae_metrics", "trace")
"""`trace` describes one line of `trace.jsonl`, `intervention` one file of `interventions/`, the others the file of that name."""


@cache
def _text(name: str) -> str:
    return files(__package__).joinpath(f"{name}.schema.json").read_text("utf-8")


def schema(name: str) -> dict[str, Any]:
    """Return a schema. Raises SpecError with the nearest name for one that does not exist."""
    if name not in SCHEMAS:
        raise unknown("schema", name, SCHEMAS, what="schema")
    return json.loads(_text(name))
