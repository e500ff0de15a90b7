"""The induction project: its sequences, its ways, its scores by hand, a fit that resumes, and the circuit that is known to form."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from mlinterp.circuits.acdc import prune
from mlinterp.circuits.declared import DeclaredMachine, graph_of
from mlinterp.determinism import numpy_stream, settle
from mlinterp.errors import SpecError
from mlinterp.io.pyfile import load_function
from mlinterp.io.tensors import tensors_digest
from mlinterp.patching.metrics import MetricRegistry
from mlinterp.patching.path_names import receiver, sender
from mlinterp.patching.path_patcher import Path as Way
from mlinterp.patching.path_patcher import PathPatcher
from mlinterp.patching.untrained import untrained
from mlinterp.progress import Silent
from mlinterp.project import read_project
from mlinterp.subjects.base import IGNORED, Batch
from mlinterp.subjects.fit import SubjectFit
from mlinterp.subjects.pairs import tokenise
from mlinterp.subjects.pairs_declared import read_pairs
from mlinterp.trainer import fit

ROOT = Path(__file__).parents[2] / "projects" / "induction"
STEPS = 700


def function(named):
    return load_function(ROOT, named, "test")


@pytest.fixture
def two_layers():
    return read_project(ROOT / "project.yaml").load_subject("two_layers")


@pytest.fixture
def batch(two_layers):
    return two_layers.examples("test", 8).take(range(8))


def test_a_sequence_comes_twice_and_only_what_the_second_time_tells_is_scored(two_layers):
    period = two_layers.config["period"]
    for split in ("train", "validation", "test"):
        found = two_layers.examples(split, 10_000)
        assert torch.equal(found.inputs[:, :period], found.inputs[:, period:])
        assert (found.targets[:, :period] == IGNORED).all()
        assert (found.targets[:, -1] == IGNORED).all()
        assert torch.equal(found.targets[:, period:-1], found.inputs[:, 1:period])
    assert not torch.equal(two_layers.examples("train", 8).inputs, two_layers.examples("validation", 8).inputs)


def test_training_batches_depend_on_seed_and_step_alone_and_have_many_periods(two_layers):
    a, b = (two_layers.objective({}, seed) for seed in (0, 1))
    assert torch.equal(a.batch(3).inputs, a.batch(3).inputs)
    assert not torch.equal(a.batch(3).inputs[:, :16], b.batch(3).inputs[:, :16])
    assert {a.batch(step).inputs.shape[1] // 2 for step in range(300)} == set(range(16, 33))


def by_hand(model, tokens):
    """The same network written once more, without ways."""
    stream = model.W_E[tokens] + model.W_pos[: tokens.shape[1]]
    for block in model.blocks:
        added = []
        for head in block.head:
            scores = torch.einsum("bqe,bke->bqk", stream @ head.W_Q, stream @ head.W_K) / 4
            pattern = (scores + torch.full(scores.shape[1:], float("-inf")).triu(1)).softmax(dim=-1)
            added.append(pattern @ stream @ head.W_V @ head.W_O)
        stream = stream + sum(added)
    return stream @ model.unembed.W_U


@pytest.mark.parametrize("name", ["one_layer", "two_layers"])
def test_the_logits_are_those_of_the_network_without_ways(name):
    subject = read_project(ROOT / "project.yaml").load_subject(name)
    batch = subject.examples("test", 4).take(range(4))
    torch.testing.assert_close(subject.forward(batch).logits, by_hand(subject.model, batch.inputs), atol=1e-4, rtol=1e-4)


def test_a_tap_that_returns_its_argument_at_every_site_changes_no_bit(two_layers, batch):
    plain, read = two_layers.forward(batch).logits, two_layers.forward(batch, lambda _, h: h, two_layers.sites).logits
    assert torch.equal(plain, read)
    assert len(two_layers.sites) == 3 + 2 + 2 * 4 * 6 + 5 * (4 + 1)


def zeroed(subject, batch, *sites):
    return subject.forward(batch, lambda _, h: torch.zeros_like(h), sites).logits


def test_cutting_every_way_of_a_head_is_cutting_the_head_and_cutting_one_is_not(two_layers, batch):
    ways = [f"paths.0.1.{way}" for way in ("q", "k", "v", "direct")]
    whole = zeroed(two_layers, batch, "blocks.0.head.1.out")
    assert torch.equal(zeroed(two_layers, batch, *ways), whole)
    parts = [zeroed(two_layers, batch, way) for way in ways]
    assert not any(torch.equal(part, other) for part in parts for other in [whole, two_layers.forward(batch).logits])


def test_cutting_a_way_of_all_heads_is_cutting_that_of_each(two_layers, batch):
    each = [f"paths.0.{head}.k" for head in range(4)]
    assert torch.equal(zeroed(two_layers, batch, "paths.0.k"), zeroed(two_layers, batch, *each))


def test_scores_are_read_off_the_patterns_as_by_hand(two_layers, batch):
    period = two_layers.config["period"]
    patterns = {}
    two_layers.forward(batch, lambda at, h: patterns.setdefault(at.site, h), ["blocks.1.head.2.pattern"])
    pattern = patterns["blocks.1.head.2.pattern"]
    found = function("circuit.py:score_heads")(two_layers, batch)
    induction = [np.mean([pattern[row, t, t - period + 1] for t in range(period, 2 * period)]) for row in range(8)]
    previous = [np.mean([pattern[row, t, t - 1] for t in range(1, 2 * period)]) for row in range(8)]
    assert found.induction.shape == found.previous.shape == (2, 4, 8)
    np.testing.assert_allclose(found.induction[1, 2], induction, rtol=1e-5)
    np.testing.assert_allclose(found.previous[1, 2], previous, rtol=1e-5)


def test_losses_are_the_cross_entropy_of_what_repeats(two_layers, batch):
    logits = two_layers.forward(batch).logits
    expected = [cross_entropy(logits[row, batch.scored[row]], batch.targets[row, batch.scored[row]]).item() for row in range(8)]
    np.testing.assert_allclose(function("circuit.py:losses")(two_layers, batch), expected, rtol=1e-5)


@pytest.fixture
def by_construction(two_layers):
    """Two layers that induce by construction, and sequences in which no token comes twice in a period.

    A token is five signs (dims 0-4), a position eight angles (5-20). Head 0.0 looks one back and writes that token's signs to dims 21-25,
    which the keys of head 1.0 alone read; that head finds the token it stands on and writes the signs of what is there to 26-30, which
    the logits read. All other heads do nothing.
    """
    model = two_layers.model
    signs = torch.tensor([[2.0 * (token >> bit & 1) - 1 for bit in range(5)] for token in range(32)])
    rates = 2 * torch.pi * torch.arange(1, 32, 4) / 64
    angles = torch.arange(64)[:, None] * rates
    back = torch.block_diag(*[torch.tensor([[rate.cos(), -rate.sin()], [rate.sin(), rate.cos()]]) for rate in rates])
    first, second = model.blocks[0].head[0], model.blocks[1].head[0]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.W_E[:, :5] = signs
        model.W_pos[:, 5:21] = torch.stack([angles.cos(), angles.sin()], dim=-1).flatten(1)
        first.W_Q[5:21], first.W_K[5:21] = 40 * back, torch.eye(16)
        second.W_Q[:5, :5], second.W_K[21:26, :5] = 40 * torch.eye(5), torch.eye(5)
        for head, to in ((first, 21), (second, 26)):
            head.W_V[:5, :5], head.W_O[:5, to : to + 5] = torch.eye(5), torch.eye(5)
        model.unembed.W_U[26:31] = 10 * signs.T
    period = two_layers.config["period"]
    rng = numpy_stream(0, "test")
    once = torch.from_numpy(np.stack([rng.permutation(32)[:period] for _ in range(64)]))
    inputs = torch.cat([once, once], dim=1)
    targets = torch.full_like(inputs, IGNORED)
    targets[:, period + 1 : -1] = once[:, 2:]  # the first token, which has none before it, looks at itself
    return two_layers, Batch(tuple(map(str, range(64))), inputs, targets, torch.ones_like(inputs, dtype=torch.bool))


def test_on_a_circuit_built_by_hand_the_keys_carry_everything_and_every_other_way_nothing(by_construction):
    subject, batch = by_construction
    losses, plain = function("circuit.py:losses"), subject.forward(batch).logits
    assert losses(subject, batch).max() < 1e-6
    for site in ("paths.0.0.q", "paths.0.0.v", "paths.0.0.direct", "paths.0.1.k", "blocks.0.head.3.out", "blocks.1.head.2.out"):
        assert torch.equal(zeroed(subject, batch, site), plain)
    for site in ("paths.0.0.k", "blocks.0.head.0.out", "blocks.1.head.0.out", "blocks.1.head.0.z"):
        assert losses(subject, batch, [site]).mean() > 3
    scores = function("circuit.py:score_heads")(subject, batch)
    np.testing.assert_allclose(scores.previous[0, 0], 1, atol=1e-4)


def fitted(folder, subject, steps, dies_at=None):
    settle(0)
    objective = subject.objective({"batch_size": 4}, 0)
    if dies_at is not None:
        whole = objective.loss

        def loss(step):
            if step == dies_at:
                raise KeyboardInterrupt
            return whole(step)

        objective.loss = loss
    module = SubjectFit(subject, objective, steps, eval_every=10)
    fit(module, folder, Silent(), checkpoint_every=10)
    module.finish()
    return module


def test_a_fit_that_was_killed_goes_on_to_the_same_bits(tmp_path):
    project = read_project(ROOT / "project.yaml")
    whole = fitted(tmp_path / "whole", project.load_subject("one_layer"), 30)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fitted(tmp_path / "killed", project.load_subject("one_layer"), 30, dies_at=17)
    resumed = fitted(tmp_path / "killed", project.load_subject("one_layer"), 30)
    assert tensors_digest(whole.tensors()) == tensors_digest(resumed.tensors())


def test_another_seed_is_another_network():
    project = read_project(ROOT / "project.yaml")
    drawn = []
    for seed in (0, 0, 1):
        subject = project.load_subject("one_layer")
        subject.objective({}, seed)
        drawn.append(subject.digest())
    assert drawn[0] == drawn[1] != drawn[2]


def test_the_best_head_is_chosen_on_train_sequences_and_scored_on_others(two_layers):
    score_heads, objective = function("circuit.py:score_heads"), two_layers.objective({}, 0)
    seen, held_out = (score_heads(two_layers, two_layers.splits[split].take(range(256))) for split in ("train", "validation"))
    head = seen.induction[1].mean(axis=1).argmax()
    np.testing.assert_array_equal(objective.scores()["induction_layer_1"].total, held_out.induction[1, head])
    assert objective.evaluate()["previous_token_layer_0"] == pytest.approx(
        held_out.previous[0, seen.previous[0].mean(axis=1).argmax()].mean()
    )


@pytest.mark.parametrize(("options", "words"), [({"n_layers": 3}, "n_layers 3; 1 or 2"), ({"layers": 2}, "unknown option 'layers'")])
def test_other_options_are_refused(options, words):
    with pytest.raises(SpecError, match=words):
        function("subject.py:build")("x", options, ROOT)


def test_the_prompt_pairs_are_those_of_their_script_and_only_the_first_reading_tells_them_apart():
    lines = function("pairs.py:lines")
    texts = {name: (ROOT / f"{name}.jsonl").read_text().splitlines() for name in ("pairs", "circuit_pairs")}
    assert all(text == lines(name) for name, text in texts.items())
    assert not set(texts["pairs"]) & set(texts["circuit_pairs"])
    for line in texts["pairs"]:
        pair = json.loads(line)
        clean, corrupted = pair["clean"], pair["corrupted"]
        assert len(clean) == len(corrupted) == 33
        assert sorted(clean[:24]) == sorted(corrupted[:24]) == sorted(set(clean))
        assert clean[24:] == corrupted[24:] == clean[:9]
        assert clean[clean.index(clean[-1]) + 1] == pair["answer"]
        assert corrupted[corrupted.index(corrupted[-1]) + 1] == pair["wrong"] != pair["answer"]


def carried(patcher, senders, receivers):
    """The change of each pair's metric on the path from some senders to some receivers, and the whole gap."""
    written = [patcher.written([sender(name) for name in senders])]
    values = patcher.metrics([Way(row, 0) for row in range(len(patcher.pairs))], [receiver(name) for name in receivers], written)
    return values - patcher.m_base, patcher.m_source - patcher.m_base


def test_on_the_circuit_built_by_hand_paths_and_edges_carry_all_or_nothing(by_construction):
    """The same network as a study has it, asked by the standard types."""
    subject, _ = by_construction
    pairs = tokenise(read_pairs("pairs.jsonl", ROOT)[:4], subject)
    metric = MetricRegistry().get("logit_diff")
    patcher = PathPatcher(subject, pairs, metric)
    assert (patcher.m_source - patcher.m_base).min() > 10

    def effects(senders, receivers):
        changes, gaps = carried(patcher, senders, receivers)
        return changes / gaps

    for ends in (("blocks.0.head.0", "blocks.1.head.0.k"), ("embedding", "blocks.0.head.0.v"), ("blocks.1.head.0", "logits")):
        np.testing.assert_allclose(effects(*([end] for end in ends)), 1, atol=1e-5)
    for letter in "qv":
        np.testing.assert_array_equal(effects(["blocks.0.head.0"], [f"blocks.1.head.{head}.{letter}" for head in range(4)]), 0)
    np.testing.assert_array_equal(effects([f"blocks.0.head.{head}" for head in (1, 2, 3)], ["blocks.1.head.0.k", "logits"]), 0)
    graph = graph_of(subject)
    found = prune(DeclaredMachine(subject, pairs, graph, metric), range(4), 0.02).kept
    circuit = {graph.edge(int(read), int(node)) for read, node in np.argwhere(graph.reached(graph.useful(found)))}
    assert circuit == {"embed -> L0.h0.v", "L0.h0 -> L1.h0.k", "L1.h0 -> logits"}


def test_every_weight_is_drawn_anew_for_the_untrained_control(two_layers):
    twin = untrained(two_layers, 0)
    assert twin is not None
    assert twin.digest() == untrained(two_layers, 0).digest() != untrained(two_layers, 1).digest()
    assert not any(torch.equal(*both) for both in zip(twin.model.parameters(), two_layers.model.parameters(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_known_circuit_forms(seed):
    """Bands that were fixed before these seeds were trained with these settings: previous-token head to keys to induction heads."""
    settle(seed, threads=1)
    subject = function("circuit.py:trained")(ROOT, "two_layers", seed, STEPS)
    found = function("circuit.py:measure")(subject)
    assert found.induction[1].max() > 0.4
    assert found.induction[0].max() < 0.1
    total, ways = found.head[found.top].estimate, {way: rises[found.top].estimate for way, rises in found.way.items()}
    assert total == max(rise.estimate for rise in found.head)
    assert ways["k"] >= max(0.3, 0.8 * total)
    assert max(ways["q"], ways["v"]) <= 0.05
    assert found.loss + found.joint.estimate >= 2.5
    assert found.others is None or found.others.estimate <= 0.1
    patcher = PathPatcher(subject, tokenise(read_pairs("pairs.jsonl", ROOT), subject), MetricRegistry().get("logit_diff"))
    shares = {}
    for letter in "qkv":
        ends = [f"blocks.0.head.{head}" for head in range(4)], [f"blocks.1.head.{head}.{letter}" for head in range(4)]
        changes, gaps = carried(patcher, *ends)
        shares[letter] = changes.sum() / gaps.sum()
    assert gaps.mean() > 3
    assert shares["k"] > 0.5
    assert max(abs(shares["q"]), abs(shares["v"])) < 0.1


@pytest.mark.slow
def test_one_layer_forms_no_induction_head_and_does_not_learn_what_repeats():
    settle(0, threads=1)
    subject = function("circuit.py:trained")(ROOT, "one_layer", 0, STEPS)
    batch = subject.examples("test", 256).take(range(256))
    assert function("circuit.py:score_heads")(subject, batch).induction.mean(axis=2).max() < 0.2
    assert function("circuit.py:losses")(subject, batch).mean() > 2
