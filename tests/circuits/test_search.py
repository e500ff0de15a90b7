"""What the searches say of edges that are known: linear networks, gates, and a plain greedy loop."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from gates import Gate, bit_pairs, both, either, gates, weighted
from prompts import CAUSAL, random_pairs, transformer

from mlinterp.circuits import declared
from mlinterp.circuits.acdc import prune
from mlinterp.circuits.declared import DeclaredMachine
from mlinterp.circuits.faithfulness import faithfulness, judge
from mlinterp.circuits.machine import Machine
from mlinterp.circuits.redundancy import cut_together, groups_of, hidden
from mlinterp.circuits.transformer import TransformerMachine, graph_of
from mlinterp.patching.metrics import MetricRegistry
from mlinterp.subjects.pairs import tokenise

LOGIT_DIFF = MetricRegistry().get("logit_diff")
LINEAR: tuple[Gate, ...] = (
    (weighted({0: 1.0, 1: -0.5}), 3),
    (weighted({3: 0.7, 2: 2.0}), 4),
    (weighted({4: 1.5, 3: -1.0, 0: 0.25}), 5),
)


def machine_of(*made: Gate, out: int, prompts: Sequence[tuple[int, int]] = ((7, 0),), **options: object) -> Machine:
    subject = gates(*made, out=out)
    pairs = tokenise(bit_pairs(*prompts), subject)
    return DeclaredMachine(subject, pairs, declared.graph_of(subject), LOGIT_DIFF, **options)  # type: ignore[arg-type]


def each_cut(machine: Machine, rows: Sequence[int]) -> np.ndarray:
    """By how much the metric falls when each edge is cut by itself, `[row, read, node]`."""
    graph = machine.graph
    found = np.zeros((len(rows), *graph.whole.shape))
    for read, node in np.argwhere(graph.whole):
        kept = graph.whole.copy()
        kept[read, node] = False
        found[:, read, node] = machine.m_clean[list(rows)] - machine.metrics(kept[None], rows)[0]
    return found


def names(machine: Machine, kept: np.ndarray) -> set[str]:
    return {machine.graph.edge(int(read), int(node)) for read, node in np.argwhere(kept)}


@pytest.fixture(scope="module")
def random_machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    subject = transformer(tmp_path_factory.mktemp("project"), {**CAUSAL["llama"], "num_hidden_layers": 2})
    pairs = tokenise(random_pairs(subject.vocab, (7, 6)), subject)
    return TransformerMachine(subject, pairs, graph_of(subject), LOGIT_DIFF)


@pytest.mark.parametrize("steps", [None, 3])
def test_on_a_linear_network_attribution_is_cutting_each_edge(steps):
    machine = machine_of(*LINEAR, out=5, prompts=((7, 0), (3, 6), (5, 1)))
    rows = [0, 1, 2]
    exact = each_cut(machine, rows)
    assert machine.edge_scores(rows, steps) == pytest.approx(exact, abs=1e-6)
    assert np.abs(exact).max() > 1


def test_integrated_scores_of_the_embeddings_edges_add_up_to_what_ablating_it_does(random_machine):
    gap = random_machine.embedding_gap([0, 1])
    sums = {steps: random_machine.edge_scores([0, 1], steps)[:, :, 0].sum(axis=1) for steps in (None, 20, 100)}
    assert sums[100] == pytest.approx(gap, rel=5e-3)
    assert gap == pytest.approx(random_machine.m_clean - random_machine.m_empty, abs=1e-5)
    assert np.abs(sums[20] - gap).sum() < np.abs(sums[None] - gap).sum()


def test_scores_are_the_limit_of_cutting_a_small_part_of_an_edge(random_machine):
    machine = random_machine
    scores = machine.edge_scores([0], None)[0]
    near = TransformerMachine(machine.subject, machine.pairs, machine.graph, LOGIT_DIFF)
    share = 0.02
    near.ablated = near.ablated + (1 - share) * near.delta
    near.delta = share * near.delta
    measured = each_cut(near, [0])[0] / share
    large = np.abs(scores) > 0.05
    assert large.sum() > 20
    assert np.corrcoef(scores[large], measured[large])[0, 1] > 0.99


def test_edges_of_one_node_have_effects_of_their_own(random_machine):
    scores, exact = random_machine.edge_scores([0], 10)[0], each_cut(random_machine, [0])[0]
    for found in (scores, exact):
        for node in range(len(random_machine.graph.nodes)):
            each = found[random_machine.graph.whole[:, node], node]
            assert len(each) == 1 or np.ptp(each) > 1e-4


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_acdc_finds_the_planted_path_and_drops_the_rest(batch_size):
    machine = machine_of(
        (weighted({0: 1.0}), 3),
        (weighted({1: 1.0}), 4),
        (both(3, 4), 5),
        (weighted({2: 1.0}), 6),
        out=5,
        prompts=((7, 0), (3, 4)),
        batch_size=batch_size,
    )
    found = prune(machine, [0, 1], 0.01)
    path = {"embed -> L0.mlp", "embed -> L1.mlp", "L0.mlp -> L2.mlp", "L1.mlp -> L2.mlp", "L2.mlp -> logits"}
    assert names(machine, found.kept) == path
    assert {float(found.rises[tuple(edge)]) for edge in np.argwhere(found.kept)} == {1.0}
    tried = found.rises[~found.kept & machine.graph.whole]
    assert set(tried[np.isfinite(tried)].tolist()) == {0.0}


def test_acdc_is_the_plain_greedy_loop_over_edges(random_machine):
    machine, rows = random_machine, [0, 1]
    kept, distance = machine.graph.whole.copy(), 0.0
    scale = abs(float((machine.m_clean - machine.m_empty).sum()))
    for read in reversed(range(len(machine.graph.reads))):
        for node in reversed(range(machine.graph.reads[read].upstream)):
            fewer = kept.copy()
            fewer[read, node] = False
            then = float(np.abs(machine.m_clean - machine.metrics(fewer[None], rows)[0]).sum()) / scale
            if then - distance < 0.05:
                kept, distance = fewer, then
    found = prune(machine, rows, 0.05)
    assert (found.kept == machine.graph.useful(kept)).all()
    assert 0 < found.kept.sum() < machine.graph.n_edges
    assert found.runs < 3 * machine.graph.n_edges


def test_both_edges_into_an_and_gate_have_the_whole_effect():
    machine = machine_of((weighted({0: 1.0}), 3), (weighted({1: 1.0}), 4), (both(3, 4), 5), out=5)
    exact = each_cut(machine, [0])[0]
    effects = {machine.graph.edge(int(r), int(n)): exact[r, n] for r, n in np.argwhere(machine.graph.whole)}
    on_path = {"embed -> L0.mlp", "embed -> L1.mlp", "L0.mlp -> L2.mlp", "L1.mlp -> L2.mlp", "L2.mlp -> logits"}
    assert {name for name, effect in effects.items() if effect == 1} == on_path
    assert {effect for name, effect in effects.items() if name not in on_path} == {0.0}
    groups = groups_of(machine.graph)
    assert hidden(machine, groups, cut_together(machine, groups, [0]), [0], exact) == []


def test_edges_into_an_or_gate_do_nothing_alone_and_are_reported_together():
    machine = machine_of((weighted({0: 1.0}), 3), (weighted({1: 1.0}), 4), (either(3, 4), 5), out=5)
    exact = each_cut(machine, [0])[0]
    assert set(exact[tuple(np.argwhere(machine.graph.whole).T)].tolist()) == {0.0, 1.0}
    groups = groups_of(machine.graph)
    found = hidden(machine, groups, cut_together(machine, groups, [0]), [0], machine.edge_scores([0])[0])
    assert [(each.name, each.n_edges, each.together, each.singles) for each in found] == [("into L2.mlp", 3, 1.0, 0.0)]


def test_the_whole_graph_is_faithful_and_the_empty_one_is_not_exactly(random_machine):
    whole, empty = random_machine.graph.whole, random_machine.graph.empty
    assert faithfulness(random_machine, [whole, empty], [0, 1]) == [1.0, 0.0]
    for circuit, expected in ((whole, 1.0), (empty, 0.0)):
        (judged,) = judge(random_machine, [circuit], [0, 1], 2, 0.01, 200, seed=0)
        assert judged.faithfulness is not None
        assert judged.completeness is not None
        assert judged.faithfulness.effect.estimate == expected
        assert judged.completeness.effect.estimate == expected
    assert judged.minimality is None


def test_a_planted_circuit_is_faithful_complete_and_minimal_and_a_superset_is_not_minimal():
    machine = machine_of((weighted({0: 1.0}), 3), (weighted({3: 1.0}), 4), (weighted({1: 1.0}), 5), out=4, prompts=((7, 0), (3, 4)))
    graph = machine.graph
    planted = prune(machine, [0], 0.01).kept
    assert names(machine, planted) == {"embed -> L0.mlp", "L0.mlp -> L1.mlp", "L1.mlp -> logits"}
    more = planted | (np.array([[read.kind == "logits"] for read in graph.reads]) & graph.whole)
    own, larger = judge(machine, [planted, more], [0, 1], 20, 0.01, 200, seed=0)
    for judged in (own, larger):
        assert judged.faithfulness is not None
        assert judged.completeness is not None
        assert judged.faithfulness.effect.estimate == 1.0
        assert judged.completeness.effect.estimate == 1.0
    # Six of ten edges that grow from the logits often hold the three that do it all, three seldom.
    assert own.faithfulness.null.estimate < min(0.4, larger.faithfulness.null.estimate)
    assert (own.minimality, larger.minimality) == (1.0, 3 / int(more.sum()))
