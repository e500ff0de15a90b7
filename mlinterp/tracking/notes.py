"""The lineage of a run, as its note in the UI: what it rests on, what rests on it, each a link. MLflow has no such view itself.

The note's own text stays; only what follows the heading below is written anew, each time a run downstream finishes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from mlinterp.tracking import links, queries
from mlinterp.tracking.recorder import INPUT_TAG, LONGEST_TAG, NOTE_TAG, Recorder
from mlinterp.tracking.store import Store

if TYPE_CHECKING:
    from mlflow.entities import Run

HEADING = "#### Lineage"
_ADDRESS = re.compile(r"://|www\.|@|mailto:", re.IGNORECASE)
MOST = 12
"""Links of one kind in a note; the UI lists the rest."""


def close_lineage(store: Store, run_id: str) -> str:
    """Write the lineage into a run's note and rewrite those of the runs it rests on or is part of; return it as Markdown."""
    run = store.client.get_run(run_id)
    text = _write(store, run)
    for above in dict.fromkeys([*_upstream(run), run.data.tags.get("mlflow.parentRunId")]):
        if above is not None and (found := queries.get(store, above)) is not None:
            _write(store, found)
    return text


def rewrite(store: Store, run_id: str) -> None:
    """Write a run's lineage anew: what it is evidence for may have changed."""
    if (run := queries.get(store, run_id)) is not None and run.info.lifecycle_stage == "active":
        _write(store, run)


def _write(store: Store, run: Run) -> str:
    text = lineage_markdown(store, run)
    own = run.data.tags.get(NOTE_TAG, f"**{plain(run.info.run_name)}**").partition(HEADING)[0].rstrip()
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
        lines.append(f"- hypothesis: {_hypothesis(tags, home)}")
    if tags.get("mlinterp.ruling"):
        lines.append(f"- {plain(tags['mlinterp.ruling'])}")
    if tags.get("mlinterp.standing", "counted") != "counted":
        lines.append(f"- does not count: {plain(tags['mlinterp.standing'])}")
    if tags.get("mlinterp.stale"):
        lines.append(f"- **stale**: {plain(tags['mlinterp.stale'])}")
    above = list(_upstream(run).items())
    lines += [f"- rests on {role}".rstrip() + f": {_linked(store, found)}" for found, role in above[:MOST]]
    if tags.get("mlflow.parentRunId"):
        lines.append(f"- part of: {_linked(store, tags['mlflow.parentRunId'])}")
    if tags.get("mlinterp.reproduces"):
        lines.append(f"- executed again to compare: {_linked(store, tags['mlinterp.reproduces'])}{_outcome(run)}")
    again = queries.search(store, home, f"tags.`mlinterp.reproduces` = '{run.info.run_id}'")
    lines += [f"- executed again by: {_link(other)}{_outcome(other)}" for other in again[-MOST:]]
    below = queries.downstream(store, home, run.info.run_id)
    contained = queries.children(store, home, run.info.run_id)
    for what, found in (("used by", below), ("contains", contained)):
        lines += [f"- {what}: {_link(child)}" for child in found[:MOST]]
        if len(found) > MOST:
            lines.append(f"- … {len(found) - MOST} more: {links.experiment(home)}")
    return "\n".join(lines if len(lines) > 2 else [*lines, "- rests on nothing recorded, and nothing rests on it yet"])


def _outcome(reproduction: Run) -> str:
    outcome = reproduction.data.tags.get("mlinterp.reproduction")
    return f", **{plain(outcome)}**" if outcome else ""


def _hypothesis(tags: Mapping[str, str], experiment_id: str) -> str:
    name, page, verdict = plain(tags["mlinterp.hypothesis"]), tags.get("mlinterp.hypothesis_run"), tags.get("mlinterp.verdict")
    return (f"[{name}]({links.run(experiment_id, page)})" if page else name) + (f" ({plain(verdict)})" if verdict else "")


def _linked(store: Store, run_id: str) -> str:
    run = queries.get(store, run_id)
    return _link(run) if run is not None else f"`{plain(run_id[:32])}` (gone)"


def _link(run: Run) -> str:
    running = run.info.status == "RUNNING"  # which is over soon, and the note stays
    status = "" if running or run.info.status == "FINISHED" else f" ({run.info.status.lower()})"
    return f"[{plain(run.info.run_name)}]({links.run(run.info.experiment_id, run.info.run_id)}){status}"


def plain(text: str) -> str:
    """Return a text in which no Markdown sign means anything and no address becomes a link, in the notes of the UI and in its files.

    The two render differently: only the signs that both can escape by a backslash are, the others are character references; what one of
    them would take for an address stands in a code span.
    """
    return " ".join(_literal(word) if _ADDRESS.search(word) else _escaped(word) for word in text.split())


def _literal(word: str) -> str:
    return f"`{word.replace('`', chr(39)).replace('|', '¦')}`"


def _escaped(word: str) -> str:
    word = re.sub(r"[<>&|~]", lambda sign: f"&#{ord(sign[0])};", word)
    return re.sub(r"([\\`*_\[\]!]|(?<!&)#)", r"\\\1", word)
