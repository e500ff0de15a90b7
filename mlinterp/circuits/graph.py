"""The graph of a transformer whose residual stream is a plain sum: nodes write to it, reads take it, an edge is one write in one read.

Nodes are the embedding, every attention head and every MLP. Reads are the query, key and value input of every head, the input of every
MLP, and that of the unembedding (`logits`). A read's stream is the sum of all writes before it, so an edge can be cut by itself: the
read then sees another run's write, and every other read the node's own (Conmy et al. 2023; Goldowsky-Dill et al. 2023). Where query
heads share keys and values, the key and the value input of their group is one read that feeds all of them.

A circuit is a set of edges, bool `[read, node]`. No torch here.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np

from mlinterp.determinism import numpy_stream
from mlinterp.patching.path_names import Receiver, Sender


class Node(NamedTuple):
    """What adds something to the stream."""

    kind: Literal["embed", "head", "mlp"]
    layer: int = -1
    head: int | None = None

    @property
    def name(self) -> str:
        """`embed`, `L2.h1` or `L2.mlp`: as path patching's tables call it."""
        return self.sender.short

    @property
    def sender(self) -> Sender:
        """What it is to path patching."""
        return Sender() if self.kind == "embed" else Sender(self.layer, self.head)


class Read(NamedTuple):
    """What takes the stream."""

    kind: Literal["q", "k", "v", "mlp", "logits"]
    layer: int
    upstream: int
    """How many nodes wrote before it: the first ones."""
    feeds: tuple[int, ...] = ()
    """The nodes that it is an input of; none for the logits."""
    unit: int | None = None
    """Which head; which group of heads where they share keys and values."""
    grouped: bool = False

    @property
    def name(self) -> str:
        """`L2.h1.q`, `L2.g0.k` (of a group of heads), `L2.mlp` or `logits`."""
        if self.unit is None:
            return "logits" if self.kind == "logits" else f"L{self.layer}.mlp"
        return f"L{self.layer}.{'g' if self.grouped else 'h'}{self.unit}.{self.kind}"


@dataclass(frozen=True)
class Graph:
    """Nodes and reads in the order of a forward pass."""

    nodes: tuple[Node, ...]
    reads: tuple[Read, ...]

    @cached_property
    def whole(self) -> np.ndarray:
        """Every edge there is, bool `[read, node]`."""
        return np.arange(len(self.nodes)) < np.array([read.upstream for read in self.reads])[:, None]

    @property
    def empty(self) -> np.ndarray:
        """No edge."""
        return np.zeros_like(self.whole)

    @property
    def n_edges(self) -> int:
        """Edges in all."""
        return int(self.whole.sum())

    @property
    def n_layers(self) -> int:
        """Blocks."""
        return 1 + max(node.layer for node in self.nodes)

    def edge(self, read: int, node: int) -> str:
        """Return an edge's name: `L0.h1 -> L1.h3.k`."""
        return f"{self.nodes[node].name} -> {self.reads[read].name}"

    def receivers(self, read: int) -> list[Receiver]:
        """Return what a read is to path patching: the query, key or value of each head that it feeds, an MLP, or the logits."""
        found = self.reads[read]
        if found.unit is None:
            return [Receiver() if found.kind == "logits" else Receiver(found.layer)]
        return [Receiver(found.layer, self.nodes[node].head, found.kind) for node in found.feeds]

    def useful(self, kept: np.ndarray) -> np.ndarray:
        """Return those edges of a circuit from which a way leads on to the logits; the others change nothing."""
        kept, matters = kept.copy(), np.zeros(len(self.nodes), dtype=bool)
        for row in reversed(range(len(self.reads))):
            read = self.reads[row]
            kept[row] &= read.kind == "logits" or bool(matters[list(read.feeds)].any())
            matters |= kept[row]
        return kept

    def reached(self, kept: np.ndarray) -> np.ndarray:
        """Return those edges of a circuit to which a way leads from the embedding.

        Where ablated edges carry the corrupted run's writes, a node that nothing reaches writes just what it does in the corrupted run.
        """
        kept, alive = kept.copy(), np.array([node.kind == "embed" for node in self.nodes])
        for row, read in enumerate(self.reads):
            kept[row] &= alive
            alive[list(read.feeds)] |= bool(kept[row].any())
        return kept

    def ranked(self, scores: np.ndarray) -> Iterator[tuple[int, int]]:
        """Yield every edge once, (read, node): the circuits that its first n are each grow from the logits.

        The next edge is always the one of largest |score| among those into a read that a chosen edge leads on from (Hanna et al. 2024);
        ties go by order.
        """
        sizes, met = np.abs(np.where(self.whole, scores, 0.0)), set[int]()
        waiting: list[tuple[float, int, int]] = []
        inputs: dict[int, list[int]] = {}
        for row, read in enumerate(self.reads):
            for node in read.feeds:
                inputs.setdefault(node, []).append(row)

        def meet(row: int) -> None:
            if row not in met:
                met.add(row)
                for node in range(self.reads[row].upstream):
                    heapq.heappush(waiting, (-float(sizes[row, node]), row, node))

        for row, read in enumerate(self.reads):
            if read.kind == "logits":
                meet(row)
        while waiting:
            _, row, node = heapq.heappop(waiting)
            yield row, node
            for onward in inputs.get(node, ()):
                meet(onward)

    def largest(self, scores: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
        """Return the circuit of each size, of the edges ranked first."""
        order = list(self.ranked(scores))
        return [self.of(order[:size]) for size in sizes]

    def random(self, size: int, seed: int, draw: int) -> np.ndarray:
        """Return as many edges drawn at random; most of few edges hang together with nothing."""
        edges = np.argwhere(self.whole)
        chosen = numpy_stream(seed, "random_circuit", size, draw).permutation(len(edges))[:size]
        return self.of([(int(row), int(node)) for row, node in edges[chosen]])

    def grown(self, size: int, seed: int, draw: int, *, reached: bool = False) -> np.ndarray:
        """Return a circuit of as many edges that grows from the logits as a found one does, the next edge always drawn at random.

        Where `reached`, it grows until as many of its edges (seldom a few more) are reached from the embedding, and is these.
        """
        order = np.array(list(self.ranked(numpy_stream(seed, "grown_circuit", size, draw).random(self.whole.shape))))

        def first(n: int) -> np.ndarray:
            kept = self.empty
            kept[order[:n, 0], order[:n, 1]] = True
            return self.reached(kept) if reached else kept

        if not reached:
            return first(size)
        return first(bisect_left(range(len(order)), size, key=lambda n: int(first(n).sum())))

    def of(self, edges: Sequence[tuple[int, int]]) -> np.ndarray:
        """Return the circuit of some edges."""
        kept = self.empty
        for row, node in edges:
            kept[row, node] = True
        return kept


def transformer_graph(n_layers: int, n_heads: int, n_groups: int, *, mlps: bool = True, parallel: bool = False) -> Graph:
    """Return the graph of blocks of heads and an MLP.

    Args:
        n_layers: blocks.
        n_heads: query heads of each.
        n_groups: heads of keys and values of each; fewer than query heads where these share them.
        mlps: whether blocks have an MLP.
        parallel: whether the MLP reads what its block's heads read, rather than what they add too.
    """
    nodes, reads = [Node("embed")], []
    for layer in range(n_layers):
        before = len(nodes)
        nodes += [Node("head", layer, head) for head in range(n_heads)]
        reads += [Read("q", layer, before, (before + head,), head) for head in range(n_heads)]
        share = n_heads // n_groups
        for kind in ("k", "v"):
            for group in range(n_groups):
                feeds = tuple(before + group * share + each for each in range(share))
                reads.append(Read(kind, layer, before, feeds, group, grouped=share > 1))
        if mlps:
            reads.append(Read("mlp", layer, before if parallel else len(nodes), (len(nodes),)))
            nodes.append(Node("mlp", layer))
    return Graph(tuple(nodes), (*reads, Read("logits", n_layers, len(nodes))))
