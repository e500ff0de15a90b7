"""What latents and errors do, by themselves and through each other: closed forms, brute force, and what ablations leave alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from dictionaries import dictionary, linear, orthonormal
from gates import Gate, bit_pairs, either, gates, weighted
from prompts import CAUSAL, random_pairs, transformer
from sae_kinds import ACTIVATIONS, random_sae

from mlinterp.circuits import latent_edges
from mlinterp.circuits.latent_edges import OUTPUT, edges_among, weights
from mlinterp.circuits.latent_faithfulness import judge
from mlinterp.circuits.latent_machine import Code, LatentMachine
from mlinterp.circuits.latent_scores import moved, scores, slopes_of
from mlinterp.errors import EnvironmentFault
from mlinterp.patching.metrics import MetricRegistry
from mlinterp.sae.model import SAE
from mlinterp.subjects.hooked import HookedSubject
from mlinterp.subjects.pairs import Pairs, answer_columns, tokenise
from mlinterp.subjects.pairs_declared import PromptPair

LOGIT_DIFF = MetricRegistry().get("logit_diff")
SITES = ("blocks.0.resid_post", "blocks.1.mlp_out", "blocks.1.resid_post")
ABLATIONS = ("resample", "zero", "mean")


def linear_machine(ablation: str = "resample") -> LatentMachine:
    pairs = [
        PromptPair(clean=[1, 2, 3], corrupted=[1, 4, 3], answer=5, wrong=6),
        PromptPair(clean=[7, 8], corrupted=[0, 4], answer=2, wrong=1),
        PromptPair(clean=[2, 5, 6], corrupted=[8, 3, 1], answer=0, wrong=3),
    ]
    subject = linear()
    saes = {"first": dictionary("first", orthonormal(4, 2), lift=50.0), "second": dictionary("second", orthonormal(3, 3), lift=5000.0)}
    return LatentMachine(subject, tokenise(pairs, subject), saes, LOGIT_DIFF, ablation)  # type: ignore[arg-type]


def all_scores(machine: LatentMachine, rows: Sequence[int], steps: int | None) -> np.ndarray:
    return scores(machine, rows, slopes_of(machine, rows, steps), np.arange(len(machine.nodes))).own


def each_ablated(machine: LatentMachine, rows: Sequence[int]) -> np.ndarray:
    """By how much the metric falls when each node is ablated by itself, `[row, node]`."""
    fewer = ~np.eye(len(machine.nodes), dtype=bool)
    found: np.ndarray = (machine.m_clean[list(rows)] - machine.metrics(fewer, rows)).T
    return found


def all_weights(machine: LatentMachine, rows: Sequence[int], edges: Sequence[Any], steps: int | None = None) -> np.ndarray:
    return weights(machine, rows, slopes_of(machine, rows, steps), edges)


def all_exact(machine: LatentMachine, rows: Sequence[int], edges: Sequence[Any]) -> np.ndarray:
    return np.stack([latent_edges.exact(machine, rows, edge) for edge in edges], axis=1)


def gpt2_pairs(subject: HookedSubject, lengths: tuple[int, ...] = (7, 6, 5)) -> Pairs:
    return tokenise(random_pairs(subject.vocab, lengths), subject)


def gpt2_saes(activation: str = "relu-l1", sites: Sequence[str] = SITES) -> dict[str, SAE]:
    made = (random_sae(activation=activation, d_in=16, d_sae=24, dtype=torch.float32, seed=n, site=site) for n, site in enumerate(sites))
    return dict(zip(sites, made, strict=True))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> HookedSubject:
    return transformer(tmp_path_factory.mktemp("project"), {**CAUSAL["gpt2"], "n_layer": 2})


@pytest.fixture(scope="module")
def machine(gpt2: HookedSubject) -> LatentMachine:
    return LatentMachine(gpt2, gpt2_pairs(gpt2), gpt2_saes(), LOGIT_DIFF)


# --------------------------------------------------------------------------------------------------------- a linear network
def by_hand() -> tuple[np.ndarray, dict[tuple[int, int], np.ndarray]]:
    """Effects of the nodes and edges of `linear_machine` from its matrices alone."""
    subject, first, second = linear(), orthonormal(4, 2).numpy(), orthonormal(3, 3).numpy()
    E, M, N, U = (parameter.detach().numpy() for parameter in subject.model.parameters())
    asked = [([1, 2, 3], [1, 4, 3], 5, 6), ([7, 8], [0, 4], 2, 1), ([2, 5, 6], [8, 3, 1], 0, 3)]
    effects, edges = [], dict[tuple[int, int], list[float]]()
    for clean, corrupted, answer, wrong in asked:
        w, d0 = U[:, answer] - U[:, wrong], E[clean] - E[corrupted]
        d1 = d0[-1] @ M + d0[-2] @ N
        # Steps of the nodes of each hook point, as what each adds to the activation.
        parts0 = [d0 @ np.outer(row, row) for row in first] + [d0 - d0 @ first.T @ first]
        parts1 = [d1 @ row * row for row in second] + [d1 - d1 @ second.T @ second]
        arrived = [part[-1] @ M + part[-2] @ N for part in parts0]
        effects.append([h @ w for h in arrived] + [part @ w for part in parts1])
        for up, h in enumerate(arrived):
            through = [h @ row * row for row in second] + [h - h @ second.T @ second]
            for down, part in enumerate(through):
                edges.setdefault((up, 5 + down), []).append(float(part @ w))
            edges.setdefault((up, OUTPUT), []).append(0.0)
        for up, part in enumerate(parts1):
            edges.setdefault((5 + up, OUTPUT), []).append(float(part @ w))
    return np.array(effects), {edge: np.array(values) for edge, values in edges.items()}


@pytest.mark.parametrize("steps", [None, 3])
def test_on_a_linear_network_scores_are_the_closed_form_and_what_ablating_does(steps):
    machine, (effects, _) = linear_machine(), by_hand()
    assert all_scores(machine, [0, 1, 2], steps) == pytest.approx(effects, abs=1e-10)
    assert each_ablated(machine, [0, 1, 2]) == pytest.approx(effects, abs=1e-10)
    assert np.abs(effects).min(axis=0).max() > 0.1


@pytest.mark.parametrize("steps", [None, 3])
def test_on_a_linear_network_edges_are_the_closed_form_and_what_patching_them_does(steps):
    machine, (effects, edges) = linear_machine(), by_hand()
    among = edges_among(machine, range(len(machine.nodes)))
    assert set(among) == set(edges)
    expected = np.stack([edges[edge] for edge in among], axis=1)
    assert all_weights(machine, [0, 1, 2], among, steps) == pytest.approx(expected, abs=1e-10)
    into_nodes = [at for at, (_, down) in enumerate(among) if down != OUTPUT]
    assert all_exact(machine, [0, 1, 2], [among[at] for at in into_nodes]) == pytest.approx(expected[:, into_nodes], abs=1e-10)
    out_of = [expected[:, [at for at, (up, _) in enumerate(among) if up == node]].sum(axis=1) for node in range(5)]
    assert np.stack(out_of, axis=1) == pytest.approx(effects[:, :5], abs=1e-10)


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_on_a_linear_network_estimates_are_exact_whatever_stands_in_a_nodes_place(ablation):
    machine, rows = linear_machine(ablation), [0, 1, 2]
    assert all_scores(machine, rows, None) == pytest.approx(each_ablated(machine, rows), abs=1e-8)
    among = [edge for edge in edges_among(machine, [0, 3, 4, 6, 8]) if edge[1] != OUTPUT]
    assert all_weights(machine, rows, among) == pytest.approx(all_exact(machine, rows, among), abs=1e-8)


def test_scores_of_random_directions_are_steps_of_the_same_length():
    machine = linear_machine()
    some = np.arange(len(machine.nodes))
    slopes = [torch.zeros_like(each) for each in slopes_of(machine, [0])]
    slopes[1][0, -1] = torch.nn.functional.one_hot(torch.tensor(2), 6).double()
    found = scores(machine, [0], slopes, some, draws=4000, seed=3)
    lengths = np.concatenate([machine.steps(1, [0]).latents[0, -1].abs().numpy(), [float(machine.steps(1, [0]).error[0, -1].norm())]])
    # A coordinate of a random direction of d numbers has variance 1 / d.
    assert found.nulls[:, 0, 5:].std(axis=0) == pytest.approx(lengths / np.sqrt(6), rel=0.05)
    assert not found.nulls[:, 0, :5].any()


# -------------------------------------------------------------------------------------------------------- a random transformer
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_run_with_nothing_ablated_is_the_models_own_to_the_bit(gpt2, activation):
    machine = LatentMachine(gpt2, gpt2_pairs(gpt2), gpt2_saes(activation), LOGIT_DIFF)
    plain = gpt2.forward(machine.pairs.clean)
    assert plain is not None
    edited = machine.run([0, 1, 2], lambda place, h: machine.without(place, h, [0, 1, 2], torch.ones(3, 25, dtype=torch.bool)))
    added = machine.run([0, 1, 2], lambda place, h: h + machine.added(place, Code(torch.zeros(3, 7, 24), torch.zeros(3, 7, 16))))
    untouched = machine.run([0, 1, 2], lambda _, h: h)
    assert torch.equal(edited, untouched)
    assert torch.equal(added, untouched)
    assert untouched == pytest.approx(plain.logits[torch.arange(3), answer_columns(machine.pairs.clean)], abs=1e-6)
    assert machine.metrics(machine.nodes.all[None], [2, 0])[0].tolist() == machine.m_clean[[2, 0]].tolist()


def test_with_every_node_of_the_stream_ablated_the_run_is_the_corrupted_one(machine):
    logits = machine.run([0, 1, 2], lambda _, h: h, corrupted=True)
    assert machine.m_empty == pytest.approx(machine.measured(logits, [0, 1, 2]).numpy(), abs=1e-5)


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_integrated_scores_of_a_hook_point_add_up_to_what_ablating_all_of_it_does(gpt2, ablation):
    machine = LatentMachine(gpt2, gpt2_pairs(gpt2), gpt2_saes(), LOGIT_DIFF, ablation)
    found = {steps: all_scores(machine, [0, 1, 2], steps) for steps in (None, 30)}
    for place in range(3):
        kept = machine.nodes.all
        kept[machine.nodes.at(place)] = False
        exact = machine.m_clean - machine.metrics(kept[None], [0, 1, 2])[0]
        sums = {steps: each[:, machine.nodes.at(place)].sum(axis=1) for steps, each in found.items()}
        assert sums[30] == pytest.approx(exact, rel=1e-2, abs=1e-2)
        assert np.abs(sums[None] - exact).max() > 10 * np.abs(sums[30] - exact).max()


def test_edges_are_what_patching_twice_by_hand_does(gpt2, machine):
    """The same patches with plain hooks and matrices, on one pair at a time."""
    up_site, down_site = SITES[0], SITES[2]
    saes, nodes = gpt2_saes(), machine.nodes
    for row, up, down in ((0, 3, 7), (1, 24, 11), (2, 5, 24), (0, 24, 24)):
        clean, corrupted = (examples.take([row]) for examples in (machine.pairs.clean, machine.pairs.corrupted))
        h, other = {}, {}
        for examples, seen in ((clean, h), (corrupted, other)):
            gpt2.forward(examples, lambda address, x, seen=seen: seen.setdefault(address.site, x.clone()), SITES)
        real = clean.mask[..., None]
        one, two = saes[up_site].encode(h[up_site]), saes[up_site].encode(other[up_site])
        errors = [x - saes[up_site].decode(acts) for x, acts in ((h[up_site], one), (other[up_site], two))]
        change = errors[1] - errors[0] if up == 24 else (two - one)[..., up, None] * saes[up_site].W_dec[up] / saes[up_site].scale
        edited = torch.where(real, h[up_site] + change, h[up_site])
        arrived = {}

        def see(address, x, h=h, edited=edited, arrived=arrived):
            arrived[address.site] = x.clone()
            return edited if address.site == up_site else h[address.site]

        gpt2.forward(clean, see, SITES)
        sae = saes[down_site]
        if down == 24:
            moved_by = [x - sae.decode(sae.encode(x)) for x in (arrived[down_site], h[down_site])]
            change = moved_by[0] - moved_by[1]
        else:
            change = (sae.encode(arrived[down_site]) - sae.encode(h[down_site]))[..., down, None] * sae.W_dec[down] / sae.scale
        patched = torch.where(real, h[down_site] + change, h[down_site])
        outputs = gpt2.forward(clean, lambda address, x, patched=patched: patched if address.site == down_site else x, [down_site])
        at = int(answer_columns(machine.pairs.clean)[row])
        logits = outputs.logits[0, at]
        expected = machine.m_clean[row] - float(logits[machine.pairs.answer[row]] - logits[machine.pairs.wrong[row]])
        edge = (up, int(nodes.starts[2]) + down)
        assert latent_edges.exact(machine, [row], edge)[0] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("activation", ["relu-l1", "topk"])
def test_weights_are_the_limit_of_patching_a_small_part_of_an_edge(gpt2, activation, monkeypatch):
    rows, share = [0, 1], 0.01
    machine = LatentMachine(gpt2, gpt2_pairs(gpt2, (7, 7)), gpt2_saes(activation), LOGIT_DIFF)
    among = [edge for edge in edges_among(machine, [0, 3, 9, 24, 25, 30, 49, 50, 57, 74]) if edge[1] != OUTPUT]
    near = []
    for place in range(3):
        own, step = machine.code(place, machine.clean[place]), machine.steps(place, rows)
        near.append(Code(own.latents - share * step.latents, own.error - share * step.error))
    monkeypatch.setattr(machine, "_instead", lambda place, some: Code(*(part[list(some)] for part in near[place])))
    estimated, measured = all_weights(machine, rows, among), all_exact(machine, rows, among)
    largest = np.abs(measured).max()
    assert (np.abs(measured) > 0.01 * largest).sum() > 10
    assert estimated == pytest.approx(measured, rel=0.05, abs=0.01 * largest)


def test_what_passes_all_later_hook_points_is_measured(gpt2):
    machine = LatentMachine(gpt2, gpt2_pairs(gpt2), gpt2_saes(sites=["blocks.0.mlp_out", "blocks.1.mlp_out"]), LOGIT_DIFF)
    for row, up in ((0, 3), (1, 24), (2, 7)):
        clean, kept = machine.pairs.clean.take([row]), torch.from_numpy(~machine.nodes.of([up])[:25])[None]
        held = {
            "blocks.0.mlp_out": machine.without(0, machine.clean[0][[row]], [row], kept),
            "blocks.1.mlp_out": machine.clean[1][[row]],
        }
        outputs = gpt2.forward(clean, lambda address, _, held=held: held[address.site], list(held))
        logits = outputs.logits[0, int(answer_columns(machine.pairs.clean)[row])]
        expected = machine.m_clean[row] - float(logits[machine.pairs.answer[row]] - logits[machine.pairs.wrong[row]])
        assert abs(expected) > 1e-4
        assert all_weights(machine, [row], [(up, OUTPUT)]) == pytest.approx(np.array([[expected]]), abs=1e-5)


def test_an_edge_passes_no_hook_point_between(machine):
    stream = [int(machine.nodes.starts[0]) + 24, int(machine.nodes.starts[2]) + 24]
    blocked, way = all_weights(machine, [0, 1], [(stream[0], OUTPUT), (stream[0], stream[1])], 4).T
    assert blocked == pytest.approx(np.zeros(2), abs=1e-6)
    assert np.abs(way).min() > 1e-3
    assert np.abs(latent_edges.exact(machine, [0, 1], (stream[0], stream[1]))).min() > 1e-3


def test_a_latent_that_is_silent_in_both_runs_does_exactly_nothing(machine):
    still = np.flatnonzero(moved(machine, range(3)) == 0)
    assert len(still)
    assert not each_ablated(machine, [0, 1, 2])[:, still].any()
    assert not all_scores(machine, [0, 1, 2], 3)[:, still].any()


def test_numbers_depend_on_no_other_pair_no_padding_and_no_batch(gpt2):
    pairs = random_pairs(gpt2.vocab, (7, 5, 6))
    together = LatentMachine(gpt2, tokenise(pairs, gpt2), gpt2_saes(), LOGIT_DIFF, batch_size=64)
    one_by_one = LatentMachine(gpt2, tokenise(pairs, gpt2), gpt2_saes(), LOGIT_DIFF, batch_size=1)
    among = edges_among(together, [0, 24, 30, 49, 60, 74])
    for row, pair in enumerate(pairs):
        alone = LatentMachine(gpt2, tokenise([pair], gpt2), gpt2_saes(), LOGIT_DIFF)
        for measure in (each_ablated, lambda m, rows: all_scores(m, rows, 3), lambda m, rows: all_weights(m, rows, among, 3)):
            found = measure(alone, [0])[0]
            assert measure(together, [0, 1, 2])[row] == pytest.approx(found, abs=2e-5)
            assert measure(one_by_one, [row])[0] == pytest.approx(found, abs=2e-5)


# ------------------------------------------------------------------------------------------------------------------- circuits
def test_all_nodes_are_exactly_faithful_and_none_exactly_not(machine):
    nodes = machine.nodes
    latents = nodes.all & ~nodes.is_error
    every, without, kept, none = judge(machine, [latents, nodes.none], [0, 1, 2], latents, 3, 200, 0)
    assert (every.faithfulness.effect.estimate, every.completeness.effect.estimate) == (1.0, 1.0)
    assert (none.faithfulness.effect.estimate, none.completeness.effect.estimate) == (0.0, 0.0)
    assert [each.n_latents for each in (every, without, kept, none)] == [72, 72, 0, 0]
    assert [each.errors_in for each in (every, without, kept, none)] == [True, False, True, False]
    # What the latents restore alone is what the errors' loss leaves, and the other way round.
    assert without.faithfulness.effect.estimate == pytest.approx(1 - kept.completeness.effect.estimate)
    assert kept.faithfulness.effect.estimate == pytest.approx(1 - without.completeness.effect.estimate)


def test_random_circuits_have_as_many_latents_at_each_hook_point_from_the_pool(machine):
    nodes, pool = machine.nodes, machine.nodes.of([0, 1, 2, 3, 30, 31, 55, 56, 57])
    circuit = nodes.of([5, 6, 40, 60, 24, 74])
    drawn = [nodes.like(circuit, pool, 0, draw) for draw in range(20)]
    for each in drawn:
        assert [int(each[nodes.at(place)].sum()) for place in range(3)] == [2, 1, 1]
        assert not (each & ~pool).any()
    assert len({each.tobytes() for each in drawn}) > 5


def test_the_planted_path_of_a_gate_network_is_all_that_has_a_weight():
    made: tuple[Gate, ...] = ((weighted({0: 1.0}), 3), (weighted({1: 1.0}), 4), (weighted({3: 0.5, 4: 0.5}), 5), (weighted({2: 1.0}), 6))
    subject = gates(*made, out=5)
    sites = ["module:embed", *(f"blocks.{layer}.mlp_out" for layer in range(4))]
    saes = {site: dictionary(site, torch.eye(8)) for site in sites}
    machine = LatentMachine(subject, tokenise(bit_pairs((7, 0), (3, 4)), subject), saes, LOGIT_DIFF)
    nodes, rows = machine.nodes, [0, 1]
    found = {nodes.name(node): value for node, value in enumerate(all_scores(machine, rows, 4).mean(axis=0)) if value}
    assert found == pytest.approx(
        {"module:embed/0": 0.5, "module:embed/1": 0.5, "blocks.0.mlp_out/3": 0.5, "blocks.1.mlp_out/4": 0.5, "blocks.2.mlp_out/5": 1.0}
    )
    among = edges_among(machine, range(len(nodes)))
    table = zip(among, all_weights(machine, rows, among, 4).mean(axis=0), strict=True)
    edges = {(nodes.name(up), "metric" if down == OUTPUT else nodes.name(down)): value for (up, down), value in table if value}
    assert edges == pytest.approx(
        {
            ("module:embed/0", "blocks.0.mlp_out/3"): 0.5,
            ("module:embed/1", "blocks.1.mlp_out/4"): 0.5,
            ("blocks.0.mlp_out/3", "blocks.2.mlp_out/5"): 0.5,
            ("blocks.1.mlp_out/4", "blocks.2.mlp_out/5"): 0.5,
            ("blocks.2.mlp_out/5", "metric"): 1.0,
        }
    )


def test_latents_that_stand_in_for_each_other_do_nothing_alone():
    subject = gates((weighted({0: 1.0}), 3), (weighted({1: 1.0}), 4), (either(3, 4), 5), out=5)
    machine = LatentMachine(
        subject, tokenise(bit_pairs((7, 0), (3, 0)), subject), {"module:embed": dictionary("module:embed", torch.eye(8))}, LOGIT_DIFF
    )
    assert not each_ablated(machine, [0, 1]).any()
    assert (machine.m_clean - machine.metrics((~machine.nodes.of([0, 1]))[None], [0, 1])[0]).tolist() == [1.0, 1.0]


def test_a_batch_that_does_not_fit_in_memory_is_split_until_it_does(gpt2, machine, monkeypatch):
    forward, sizes = gpt2.forward, list[int]()

    def small(batch, *args, **named):
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(batch, *args, **named)

    among = edges_among(machine, [0, 24, 30])
    expected = each_ablated(machine, [0, 1, 2]), all_scores(machine, [0, 1, 2], 2), all_weights(machine, [0, 1, 2], among)
    monkeypatch.setattr(gpt2, "forward", small)
    split = LatentMachine(gpt2, machine.pairs, gpt2_saes(), LOGIT_DIFF)
    found = each_ablated(split, [0, 1, 2]), all_scores(split, [0, 1, 2], 2), all_weights(split, [0, 1, 2], among)
    assert max(sizes) > 2
    assert all(one == pytest.approx(other, abs=2e-5) for one, other in zip(found, expected, strict=True))
    monkeypatch.setattr(gpt2, "forward", lambda *_, **__: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(EnvironmentFault, match="not even one run of 7 tokens fits in memory"):
        split.metrics(split.nodes.of([3])[None], [0])
