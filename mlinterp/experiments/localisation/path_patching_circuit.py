"""Which paths are patched: those that a spec names, all that lead to a receiver, or the edges of a circuit that was found before."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

from mlinterp.circuits.written import SCHEMA, pair_digests
from mlinterp.errors import SpecError
from mlinterp.experiments.localisation.circuit_discovery import CIRCUIT
from mlinterp.experiments.localisation.path_patching import PathPatchingVariables, members
from mlinterp.subjects.base import Subject
from mlinterp.subjects.pairs import Pairs

LARGEST = 200
"""Edges of a circuit that are patched, those of the largest score first."""
_FIELD = "inputs.circuit"


class Asked(NamedTuple):
    """Groups of senders and of receivers, by name.

    Attributes:
        senders: None for every sender that some receiver can read.
        edges: the pairs of groups that are paths; None where every pair that leads on is one.
    """

    senders: list[list[str]] | None
    receivers: list[list[str]]
    edges: frozenset[tuple[tuple[str, ...], tuple[str, ...]]] | None
    warnings: tuple[str, ...] = ()


def asked_of(variables: PathPatchingVariables, circuit: Path | None, subject: Subject, pairs: Pairs) -> Asked:
    """Return what is asked. What a spec leaves out is that of the circuit, where one is given.

    Raises SpecError for a circuit of another subject or other weights, for one without edges, and for another kind of circuit.
    """
    senders, receivers = (
        None if groups is None else [members(group) for group in groups] for groups in (variables.senders, variables.receivers)
    )
    if circuit is None:
        return Asked(senders, receivers or [["logits"]], None)
    found = _read(circuit, subject)
    edges = [((edge["sender"],), tuple(edge["receivers"])) for edge in found["edges"][:LARGEST]]
    warnings = _shared(found, pairs)
    if len(found["edges"]) > LARGEST:
        warnings.append(f"the circuit has {len(found['edges'])} edges: the {LARGEST} with the largest scores are patched")
    return Asked(
        senders or sorted((list(each) for each in {sender for sender, _ in edges}), key=_place),
        receivers or sorted((list(each) for each in {to for _, to in edges}), key=_place),
        frozenset(edges) if senders is receivers is None else None,
        tuple(warnings),
    )


def _place(group: list[str]) -> tuple[float, float, str]:
    """Return where in the order of a forward pass a sender's or receiver's name stands."""
    layer, head = (*map(float, re.findall(r"\d+", group[0])), math.inf, math.inf)[:2]
    return (-1.0 if group == ["embedding"] else layer, head, group[0])


def _read(folder: Path, subject: Subject) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / CIRCUIT).read_text(encoding="utf-8"))
    if found.get("schema") != SCHEMA:
        raise SpecError(f"holds a {found.get('schema')}", field=_FIELD, allowed=f"a {SCHEMA}, as circuit_discovery makes it")
    given = subject.digest()
    if found["subject_sha256"] != given:
        problem = f"the circuit is of subject {found['subject_sha256'][:12]}, '{subject.name}' as given here is {given[:12]}"
        raise SpecError(problem, field=_FIELD, allowed="give the weights that it was found in as inputs.subject, or another circuit")
    if not found["edges"]:
        raise SpecError("the circuit has no edge", field=_FIELD, allowed="a circuit with edges, or senders and receivers")
    return found


def _shared(circuit: dict[str, Any], pairs: Pairs) -> list[str]:
    """Return a warning where pairs that chose the circuit judge its edges."""
    n = len(set(pair_digests(pairs, range(len(pairs)))) & set(circuit["chosen_on"]))
    if not n:
        return []
    return [f"{n} of {len(pairs)} pairs have chosen the circuit: on them its edges are the ones that looked large; give other pairs"]
