"""The lineage of a project as plain data: what the lineage page draws and a program may read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

NodeKind = Literal["hypothesis", "run", "sae", "subject", "trace", "study", "sweep"]
EdgeKind = Literal["refines", "evidence", "input", "contains"]


@dataclass(frozen=True)
class Node:
    """One thing in the lineage.

    Attributes:
        id: unique in the graph; a hypothesis's id, otherwise a run's.
        kind: what it is. A run that made a trace, an SAE or a subject is drawn as that.
        title: its name in one line: a hypothesis's claim, a run's name.
        state: what its colour says: a hypothesis's status (proposed, testing, supported, refuted, superseded), a run's verdict where it
            has one (supports, refutes, inconclusive), else its MLflow status in lower case (finished, failed, killed, running).
        standing: `stale`, `retracted`, `duplicate`, `unregistered`, `deleted`, or empty.
        link: its page in the UI, relative to the server's root (`#/…`).
        facts: what a reader sees on a click, in order: (name, value).
        at: when it came to be, milliseconds since 1970.
        confidence: a hypothesis's, between 0 and 1; None for everything else.
    """

    id: str
    kind: NodeKind
    title: str
    state: str = ""
    standing: str = ""
    link: str = ""
    facts: tuple[tuple[str, str], ...] = ()
    at: int = 0
    confidence: float | None = None


@dataclass(frozen=True)
class Edge:
    """An arrow. `refines`: parent hypothesis to child. `evidence`: run to hypothesis, `label` the verdict. `input`: what was made to what
    used it, `label` the role. `contains`: study or sweep to step or cell.
    """

    source: str
    target: str
    kind: EdgeKind
    label: str = ""


@dataclass(frozen=True)
class Lineage:
    """Nodes and edges of one project; every edge joins two of the nodes. `link` is the project's page in the UI (`#/…`)."""

    project: str
    experiment_id: str
    nodes: tuple[Node, ...] = field(default=())
    edges: tuple[Edge, ...] = field(default=())
    link: str = ""
