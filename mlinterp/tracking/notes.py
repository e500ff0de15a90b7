"""The lineage of a run, as its note in the UI: what it rests on, what rests on it, each a link. MLflow has no such view itself.

The note's own text stays; only what follows the heading below is written anew, each time a run downstream finishes.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from mlinterp.tracking import links, queries
from mlinterp.tracking.recorder import INPUT_TAG, LONGEST_TAG, NOTE_TAG, Recorder
from mlinterp.tracking.store import Store

if TYPE_CHECKING:
    from mlflow.entities import Run

HEADING = "#### Lineage"
MOST = 12
"""Links of one kind in a note; the UI lists the rest."""


def close_lineage(store: Store, run_id: str) -> str:
    """Write the lineage into a run's note and rewrite those of the runs it rests on or is part of; return it as Markdown."""
    run = store.client.get_run(run_id)
    text = _write(store, run)
    for above in dict.fromkeys([*_upstream(run), run.data.tags.get("mlflow.parentRunId")]):
        if above is not None and (found := _get(store, above)) is not None:
            _write(store, found)
    return text


def _write(store: Store, run: Run) -> str:
    text = lineage_markdown(store, run)
    own = run.data.tags.get(NOTE_TAG, f"**{_plain(run.info.run_name)}**").partition(HEADING)[0].rstrip()
    room = max(0, LONGEST_TAG - len(text) - 2)
    Recorder(store.client, run.info.run_id).note(f"{own[:room]}\n\n{text}")
    return text


def _upstream(run: Run) -> dict[str, str]:
    """Return the runs that a run rests on, by id, each with the role of what it took from there."""
    upstream: dict[str, str] = dict.fromkeys((found for found in run.data.tags.get("mlinterp.upstream", "").split(",") if found), "")
    roles = {run_id: name.removeprefix(INPUT_TAG) for name, run_id in run.data.tags.items() if name.startswith(INPUT_TAG)}
    return upstream | {run_id: role for run_id, role in roles.items() if run_id in upstream}


def lineage_markdown(store: Store, run: Run) -> str:
    """Return what a run rests on and what rests on it as Markdown with links into the UI."""
    tags, home = run.data.tags, run.info.experiment_id
    lines = [HEADING, ""]
    if tags.get("mlinterp.hypothesis"):
        verdict = tags.get("mlinterp.verdict")
        lines.append(f"- hypothesis: {_plain(tags['mlinterp.hypothesis'])}" + (f" ({_plain(verdict)})" if verdict else ""))
    above = list(_upstream(run).items())
    lines += [f"- rests on {role}".rstrip() + f": {_linked(store, found)}" for found, role in above[:MOST]]
    if tags.get("mlflow.parentRunId"):
        lines.append(f"- part of: {_linked(store, tags['mlflow.parentRunId'])}")
    below = queries.downstream(store, home, run.info.run_id)
    contained = queries.children(store, home, run.info.run_id)
    for what, found in (("used by", below), ("contains", contained)):
        lines += [f"- {what}: {_link(child)}" for child in found[:MOST]]
        if len(found) > MOST:
            lines.append(f"- … {len(found) - MOST} more: {links.experiment(home)}")
    return "\n".join(lines if len(lines) > 2 else [*lines, "- rests on nothing recorded, and nothing rests on it yet"])


def _linked(store: Store, run_id: str) -> str:
    run = _get(store, run_id)
    return _link(run) if run is not None else f"`{_plain(run_id[:32])}` (gone)"


def _get(store: Store, run_id: str) -> Run | None:
    """Return a run, or None where it was deleted for good."""
    from mlflow.exceptions import MlflowException

    try:
        return store.client.get_run(run_id)
    except MlflowException:
        return None


def _link(run: Run) -> str:
    status = "" if run.info.status == "FINISHED" else f" ({run.info.status.lower()})"
    return f"[{_plain(run.info.run_name)}]({links.run(run.info.experiment_id, run.info.run_id)}){status}"


def _plain(text: str) -> str:
    """Return a text in which no Markdown sign means anything."""
    return re.sub(r"([\\`*_\[\]<>|#!])", r"\\\1", " ".join(text.split()))
