"""Results as files of their own: `{spec_id}__result.json` in a folder that a person names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mlinterp.io.atomic import write_text
from mlinterp.result import ExperimentResult

if TYPE_CHECKING:
    from mlinterp.execution.summary import RunSummary


def write_results(summary: RunSummary, folder: Path) -> list[Path]:
    """Write the result of a run, and of each run below it, into a folder; return the files.

    A file of that name which answers another question is kept: the new one's name then has the beginning of its spec's digest, too.
    """
    written = []
    for result in _results(summary):
        path = folder / result.to_filename()
        if path.exists() and _question(path) != result.spec_sha256:
            path = folder / f"{result.spec_sha256[:12]}__{result.to_filename()}"
        written.append(write_text(path, result.model_dump_json(by_alias=True, indent=2) + "\n"))
    return written


def _results(summary: RunSummary) -> Iterator[ExperimentResult]:
    if summary.result is not None:
        yield summary.result
    for child in summary.children:
        yield from _results(child)


def _question(path: Path) -> str | None:
    """Return the digest of the spec that a result file answers, None where it is no result."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return str(found.get("spec_sha256")) if isinstance(found, dict) else None
