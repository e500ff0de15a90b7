"""Any model whose hook points say so as a graph: `embed`, `blocks.N.head.H.q_in`, `k_in`, `v_in` and `out`, `blocks.N.mlp_in` and
`mlp_out`, and `unembed_in`, each `[batch, pos, d]`. A block may have heads, an MLP or both; each read is edited and each write read there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from mlinterp.circuits.graph import Graph, Node, Read
from mlinterp.circuits.machine import Machine, Pass
from mlinterp.errors import SpecError
from mlinterp.subjects.base import Address, Examples
from mlinterp.subjects.hooked import HookedSubject

_HEAD = re.compile(r"blocks\.(\d+)\.head\.(\d+)\.out")
_MLP = re.compile(r"blocks\.(\d+)\.mlp_out")


def is_declared(subject: HookedSubject) -> bool:
    """Whether a subject has the hook points of its embedding and unembedding."""
    return {"embed", "unembed_in"} <= set(subject.points)


def graph_of(subject: HookedSubject) -> Graph:
    """Return the graph that a subject's hook points declare. Raises SpecError for a part whose input they leave out."""
    parts = {(int(found[1]), int(found[2])) for site in subject.points if (found := _HEAD.fullmatch(site))}
    mlps = {int(found[1]) for site in subject.points if (found := _MLP.fullmatch(site))}
    nodes, reads = [Node("embed")], []
    n_layers = 1 + max([layer for layer, _ in parts] + list(mlps), default=-1)
    for layer in range(n_layers):
        heads, before = sorted(head for at, head in parts if at == layer), len(nodes)
        for head in heads:
            reads += [Read(kind, layer, before, (len(nodes),), head) for kind in ("q", "k", "v")]
            nodes.append(Node("head", layer, head))
        if layer in mlps:
            reads.append(Read("mlp", layer, len(nodes), (len(nodes),)))
            nodes.append(Node("mlp", layer))
    graph = Graph(tuple(nodes), (*reads, Read("logits", n_layers, len(nodes))))
    for read in graph.reads:
        if _read_site(read) not in subject.points:
            raise SpecError(f"'{subject.name}' has no hook point '{_read_site(read)}'", field="subject", allowed="one for every input")
    return graph


class DeclaredMachine(Machine):
    """A model with declared hook points run as its graph (see `Machine`); every run is a whole forward pass."""

    def _prepare(self) -> tuple[tuple[Tensor, Tensor], Tensor]:
        self._writes = {_write_site(node): number for number, node in enumerate(self.graph.nodes)}
        self._reads = {_read_site(read): number for number, read in enumerate(self.graph.reads)}
        (clean, logits), (corrupted, _) = (self._plain(examples) for examples in (self.pairs.clean, self.pairs.corrupted))
        return (clean, corrupted), logits

    def _plain(self, examples: Examples) -> tuple[Tensor, Tensor]:
        seen: list[Tensor] = []

        def keep(_: Address, h: Tensor) -> Tensor:
            seen.append(h.clone())
            return h

        outputs = self.subject.forward(examples.take(range(len(examples))).to(self.device), keep, ["embed"])
        assert outputs is not None
        return seen[0], outputs.logits[torch.arange(len(examples)), self._answer_at]

    def _forward(self, through: Pass, rows: Sequence[int], first: int, embed: Tensor) -> Tensor:
        def tap(address: Address, h: Tensor) -> Tensor:
            if (node := self._writes.get(address.site)) is not None:
                written = embed if address.site == "embed" else h
                through.wrote(slice(node, node + 1), written[:, None])
                return written
            read = self._reads[address.site]
            return through.read(slice(read, read + 1), h)[:, 0]

        outputs = self.subject.forward(self.pairs.clean.take(list(rows)).to(self.device), tap, [*self._writes, *self._reads])
        assert outputs is not None
        return outputs.logits[torch.arange(len(rows)), self._answer_at[list(rows)]]


def _write_site(node: Node) -> str:
    if node.kind == "embed":
        return "embed"
    return f"blocks.{node.layer}.mlp_out" if node.head is None else f"blocks.{node.layer}.head.{node.head}.out"


def _read_site(read: Read) -> str:
    if read.kind == "logits":
        return "unembed_in"
    return f"blocks.{read.layer}.mlp_in" if read.unit is None else f"blocks.{read.layer}.head.{read.unit}.{read.kind}_in"
