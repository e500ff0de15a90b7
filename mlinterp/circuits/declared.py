"""Any model whose hook points declare its residual stream (`subjects.declared_stream`), as a graph: each read is edited and each write read
at its hook point.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mlinterp.circuits.graph import Graph, Node, Read
from mlinterp.circuits.machine import Machine, Pass
from mlinterp.subjects.base import Address, Examples
from mlinterp.subjects.declared_stream import EMBEDDING, DeclaredStream, declared_stream, require_padding_hidden
from mlinterp.subjects.hooked import HookedSubject


def graph_of(subject: HookedSubject) -> Graph:
    """Return the graph that a subject's hook points declare. Raises SpecError for one that they leave out."""
    stream = declared_stream(subject)
    nodes, reads = [Node("embed")], []
    for layer in range(stream.n_layers):
        before = len(nodes)
        for head in stream.heads[layer]:
            reads += [Read(kind, layer, before, (len(nodes),), head) for kind in ("q", "k", "v")]
            nodes.append(Node("head", layer, head))
        if stream.mlps[layer]:
            reads.append(Read("mlp", layer, len(nodes), (len(nodes),)))
            nodes.append(Node("mlp", layer))
    return Graph(tuple(nodes), (*reads, Read("logits", stream.n_layers, len(nodes))))


class DeclaredMachine(Machine):
    """A model with declared hook points run as its graph (see `Machine`); every run is a whole forward pass."""

    def _prepare(self) -> tuple[tuple[Tensor, Tensor], Tensor]:
        stream = declared_stream(self.subject)
        for examples in (self.pairs.clean, self.pairs.corrupted):
            require_padding_hidden(self.subject, examples)
        self._writes = {_write_site(stream, node): number for number, node in enumerate(self.graph.nodes)}
        self._reads = {_read_site(stream, read): number for number, read in enumerate(self.graph.reads)}
        (clean, logits), (corrupted, _) = (self._plain(examples) for examples in (self.pairs.clean, self.pairs.corrupted))
        return (clean, corrupted), logits

    def _plain(self, examples: Examples) -> tuple[Tensor, Tensor]:
        seen: list[Tensor] = []

        def keep(_: Address, h: Tensor) -> Tensor:
            seen.append(h.clone())
            return h

        outputs = self.subject.forward(examples.take(range(len(examples))).to(self.device), keep, [EMBEDDING])
        assert outputs is not None
        return seen[0], outputs.logits[torch.arange(len(examples)), self._answer_at]

    def _forward(self, through: Pass, rows: Sequence[int], first: int, embed: Tensor) -> Tensor:
        def tap(address: Address, h: Tensor) -> Tensor:
            if (node := self._writes.get(address.site)) is not None:
                written = embed if address.site == EMBEDDING else h
                through.wrote(slice(node, node + 1), written[:, None])
                return written
            read = self._reads[address.site]
            return through.read(slice(read, read + 1), h)[:, 0]

        outputs = self.subject.forward(self.pairs.clean.take(list(rows)).to(self.device), tap, [*self._writes, *self._reads])
        assert outputs is not None
        return outputs.logits[torch.arange(len(rows)), self._answer_at[list(rows)]]


def _write_site(stream: DeclaredStream, node: Node) -> str:
    return stream.write_site(None if node.kind == "embed" else node.layer, node.head)


def _read_site(stream: DeclaredStream, read: Read) -> str:
    return stream.read_site(None if read.kind == "logits" else read.layer, read.unit, read.kind)
