"""The graph by itself: its edges, what of a circuit leads anywhere, and the order in which circuits grow."""

from __future__ import annotations

import numpy as np

from mlinterp.circuits.graph import Graph, transformer_graph


def circuit(graph: Graph, *names: str) -> np.ndarray:
    edges = {graph.edge(int(read), int(node)): (int(read), int(node)) for read, node in np.argwhere(graph.whole)}
    return graph.of([edges[name] for name in names])


def test_every_read_has_an_edge_from_every_node_that_wrote_before_it():
    graph = transformer_graph(2, 2, 2)
    assert [node.name for node in graph.nodes] == ["embed", "L0.h0", "L0.h1", "L0.mlp", "L1.h0", "L1.h1", "L1.mlp"]
    assert [read.name for read in graph.reads[:7]] == ["L0.h0.q", "L0.h1.q", "L0.h0.k", "L0.h1.k", "L0.h0.v", "L0.h1.v", "L0.mlp"]
    # 6 head inputs of 1 write, an MLP of 3, 6 of 4, an MLP of 6, and the logits of all 7.
    assert graph.n_edges == 6 * 1 + 3 + 6 * 4 + 6 + 7


def test_a_parallel_mlp_has_no_edge_from_the_heads_of_its_block():
    serial, parallel = (transformer_graph(1, 2, 2, parallel=flag) for flag in (False, True))
    assert serial.n_edges - parallel.n_edges == 2
    assert [read.upstream for read in parallel.reads if read.kind == "mlp"] == [1]


def test_heads_that_share_keys_and_values_share_the_reads_of_these():
    graph = transformer_graph(1, 4, 2, mlps=False)
    assert [(read.name, read.feeds) for read in graph.reads if read.kind == "k"] == [("L0.g0.k", (1, 2)), ("L0.g1.k", (3, 4))]


def test_edges_that_lead_nowhere_or_come_from_nowhere_are_told_apart():
    graph = transformer_graph(2, 1, 1)
    through = ("embed -> L0.h0.v", "L0.h0 -> L1.mlp", "L1.mlp -> logits")
    dead_end, from_nowhere = ("embed -> L1.h0.q",), ("L0.mlp -> logits",)
    kept = circuit(graph, *through, *dead_end, *from_nowhere)
    assert (graph.useful(kept) == circuit(graph, *through, *from_nowhere)).all()
    assert (graph.reached(kept) == circuit(graph, *through, *dead_end)).all()
    assert (graph.useful(graph.whole) == graph.whole).all()
    assert (graph.reached(graph.whole) == graph.whole).all()


def test_circuits_grow_from_the_logits_by_the_largest_edge_at_hand():
    graph = transformer_graph(2, 1, 1, mlps=False)
    scores = circuit(graph, "L0.h0 -> logits") * 1.0 + circuit(graph, "embed -> L0.h0.v") * 9.0 - circuit(graph, "L1.h0 -> logits") * 5.0
    order = [graph.edge(*edge) for edge in graph.ranked(scores)]
    assert order[:3] == ["L1.h0 -> logits", "L0.h0 -> logits", "embed -> L0.h0.v"]
    assert len(order) == len(set(order)) == graph.n_edges
    sizes = [1, 3, graph.n_edges]
    assert [int(each.sum()) for each in graph.largest(scores, sizes)] == sizes


def test_random_circuits_have_the_size_asked_for_and_hang_on_the_seed_alone():
    graph = transformer_graph(3, 2, 2)
    first, again, other = graph.random(10, 0, 0), graph.random(10, 0, 0), graph.random(10, 0, 1)
    assert (first == again).all()
    assert (first != other).any()
    assert first.sum() == 10
    assert not (first & ~graph.whole).any()


def test_a_random_circuit_to_compare_with_grows_from_the_logits_and_hangs_on_the_seed_alone():
    graph = transformer_graph(3, 2, 2)
    for size in (1, 7, 30, graph.n_edges):
        kept = graph.grown(size, 0, 1)
        assert kept.sum() == size
        assert (graph.useful(kept) == kept).all()
        assert (kept == graph.grown(size, 0, 1)).all()
    assert (graph.grown(7, 0, 1) != graph.grown(7, 0, 2)).any()
    assert (graph.grown(7, 0, 1) != graph.grown(7, 1, 1)).any()


def test_a_random_circuit_can_be_asked_for_with_as_many_edges_that_the_embedding_reaches():
    graph = transformer_graph(3, 2, 2)
    assert any(graph.reached(graph.grown(7, 0, draw)).sum() < 7 for draw in range(5))
    for size, draw in [(1, 0), (7, 0), (7, 1), (7, 2), (30, 0), (graph.n_edges, 0)]:
        kept = graph.grown(size, 0, draw, reached=True)
        assert size <= kept.sum() <= size + 6
        assert (graph.reached(kept) == kept).all()
        assert (graph.useful(kept) == kept).all()
    assert graph.grown(0, 0, 0, reached=True).sum() == 0


def test_nodes_and_reads_are_senders_and_receivers_of_path_patching_by_name():
    graph = transformer_graph(2, 4, 2)
    names = {read.name: [each.name for each in graph.receivers(row)] for row, read in enumerate(graph.reads)}
    assert [node.sender.name for node in graph.nodes[:6]] == ["embedding", *(f"blocks.0.head.{head}" for head in range(4)), "blocks.0.mlp"]
    assert names["L1.h3.q"] == ["blocks.1.head.3.q"]
    assert names["L1.g1.k"] == ["blocks.1.head.2.k", "blocks.1.head.3.k"]
    assert (names["L0.mlp"], names["logits"]) == (["blocks.0.mlp"], ["logits"])
