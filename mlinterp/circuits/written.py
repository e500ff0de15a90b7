"""How a circuit is written down, and by what pairs it is known again (no torch here)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mlinterp.circuits.graph import Graph
from mlinterp.io.digests import sha256_json

if TYPE_CHECKING:
    from mlinterp.subjects.pairs import Pairs

SCHEMA = "mlinterp.circuit.v1"


def edges_of(graph: Graph, circuit: np.ndarray, scores: np.ndarray) -> list[dict[str, Any]]:
    """Return the edges of a circuit `[read, node]`, those of the largest score first.

    `from` and `to` are names in this graph; `sender` and `receivers` those of path patching: several where heads share keys or values.
    """
    edges = [
        {
            "from": graph.nodes[node].name,
            "to": graph.reads[read].name,
            "sender": graph.nodes[node].sender.name,
            "receivers": [each.name for each in graph.receivers(read)],
            "score": float(scores[read, node]),
        }
        for read, node in np.argwhere(circuit).tolist()
    ]
    return sorted(edges, key=lambda edge: -abs(edge["score"]))


def pair_digests(pairs: Pairs, rows: Sequence[int]) -> list[str]:
    """Return a digest of both prompts of each of some pairs, whatever they are called and however long the others are."""
    return [sha256_json([batch.inputs[row][batch.mask[row]].tolist() for batch in (pairs.clean, pairs.corrupted)])[:16] for row in rows]
