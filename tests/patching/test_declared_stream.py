"""A project's own network that names its hook points in the standard way: every type says of it what it says of the same GPT-2."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from declared_gpt2 import declared
from prompts import CAUSAL, random_pairs, transformer
from watched import watch

from mlinterp.circuits import declared as declared_circuits
from mlinterp.circuits import transformer as known_circuits
from mlinterp.circuits.declared import DeclaredMachine
from mlinterp.circuits.transformer import TransformerMachine
from mlinterp.errors import SpecError
from mlinterp.patching.metrics import MetricRegistry
from mlinterp.patching.path_patcher import Path as Way
from mlinterp.patching.path_patcher import PathPatcher
from mlinterp.patching.untrained import untrained
from mlinterp.subjects.base import Examples
from mlinterp.subjects.declared_stream import declared_stream
from mlinterp.subjects.hooked import HookedSubject
from mlinterp.subjects.huggingface import HuggingFaceSubject
from mlinterp.subjects.pairs import tokenise

LOGIT_DIFF = MetricRegistry().get("logit_diff")


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> HuggingFaceSubject:
    return transformer(tmp_path_factory.mktemp("project"), {**CAUSAL["gpt2"], "n_layer": 2})


@pytest.fixture(scope="module")
def own(known: HuggingFaceSubject) -> HookedSubject:
    return declared(known)


def without(subject: HookedSubject, *sites: str) -> HookedSubject:
    points = {site: point for site, point in subject.points.items() if site not in sites}
    return HookedSubject("own", subject.model, points, subject.splits, config=subject.config)


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_every_path_carries_what_it_carries_in_the_same_gpt2(known, own, direction):
    pairs = tokenise(random_pairs(known.vocab, (5, 8)), known)
    one, other = (PathPatcher(subject, pairs, LOGIT_DIFF, direction) for subject in (known, own))
    assert one.runs.senders == other.runs.senders
    assert one.runs.receivers == other.runs.receivers
    assert other.m_base == pytest.approx(one.m_base, abs=1e-5)
    paths, sizes = [Way(row, group, column) for row in range(2) for group in range(3) for column in (None, 4)], []
    groups = [one.runs.senders[:1], one.runs.senders[2:4], one.runs.senders[5:8]]
    for receivers in ([each] for each in one.runs.receivers):
        expected, found = (patcher.metrics(paths, receivers, [patcher.written(group) for group in groups]) for patcher in (one, other))
        assert found == pytest.approx(expected, abs=2e-5)
        sizes.append(np.abs(expected.reshape(2, -1) - one.m_base[:, None]).max())
    assert np.median(sizes) > 1e-3


def test_circuits_of_the_network_do_what_those_of_the_same_gpt2_do(known, own):
    pairs = tokenise(random_pairs(known.vocab, (5, 8)), known)
    graph = known_circuits.graph_of(known)
    assert declared_circuits.graph_of(own).n_edges == graph.n_edges
    one = TransformerMachine(known, pairs, graph, LOGIT_DIFF)
    other = DeclaredMachine(own, pairs, declared_circuits.graph_of(own), LOGIT_DIFF)
    order = [[read.name for read in other.graph.reads].index(read.name) for read in graph.reads]
    circuits = np.stack([graph.random(size, 0, 0) for size in (10, 60, 120)])
    back = np.argsort(order)
    assert other.metrics(circuits[:, back], [0, 1]) == pytest.approx(one.metrics(circuits, [0, 1]), abs=2e-5)
    assert other.edge_scores([0, 1], 2)[:, order] == pytest.approx(one.edge_scores([0, 1], 2), abs=2e-5)


@pytest.mark.parametrize(
    ("kind", "table", "columns", "variables"),
    [
        ("head_detectors", "induction", ("layer", "head", "score", "unrepeated"), {"n_sequences": 3, "length": 5}),
        ("activation_patching", "patches", ("effect", "null"), {"component": "attn_head", "positions": "all", "n_bootstrap": 100}),
        ("path_patching", "paths", ("path", "effect"), {"n_bootstrap": 100, "untrained": False}),
    ],
)
def test_types_find_their_way_by_the_declared_names(known, own, tmp_path, kind, table, columns, variables):
    pairs = [pair.model_dump(exclude_none=True) for pair in random_pairs(known.vocab, (6, 6))]
    given: dict[str, Any] = variables if kind == "head_detectors" else {**variables, "pairs": pairs, "controls": 2}
    expected, found = (watch(kind, subject, tmp_path, given).tables[table].rows for subject in (known, own))
    assert len(found) == len(expected) > 4
    for row, other in zip(found, expected, strict=True):
        for name in columns:
            numeric = isinstance(other[name], float)
            assert row[name] == (pytest.approx(other[name], abs=1e-3) if numeric else other[name])


def test_logits_are_taken_apart_by_the_declared_names(known, own, tmp_path):
    asked = {"examples": {"split": "train", "n": 2}}
    expected, found = (watch("direct_logit_attribution", subject, tmp_path, asked).metrics for subject in (known, own))
    shared = {name for name in found if ".head." in name or ".mlp" in name or name.endswith("embedding")}
    assert len(shared) >= 2 * 4 + 2 + 1
    for name in shared:
        assert found[name] == pytest.approx(expected[name], abs=1e-4)


@pytest.mark.parametrize("site", ["blocks.0.resid_pre", "blocks.1.head.2.k_in", "blocks.0.mlp_in", "blocks.1.resid_post"])
def test_a_hook_point_that_is_not_declared_is_refused_by_its_name(own, site):
    with pytest.raises(SpecError, match=rf"'own' \(factory\) has no hook point '{site}'; a Hugging Face model, or one that declares"):
        declared_stream(without(own, site))


def test_a_network_with_nothing_declared_is_refused_by_the_first_name(own):
    with pytest.raises(SpecError, match=r"has no hook point 'blocks\.0\.resid_pre'"):
        declared_stream(without(own, *own.points))


def test_readers_that_see_something_else_than_what_is_written_are_refused(known, own):
    points = {
        **own.points,
        "blocks.0.head.1.out": own.points["blocks.0.head.2.out"],
        "blocks.0.head.2.out": own.points["blocks.0.head.3.out"],
    }
    wrong = HookedSubject("wrong", own.model, points, own.splits)
    with pytest.raises(SpecError, match=r"what 'wrong' reads at blocks\.0\.mlp_in is not the sum of what"):
        PathPatcher(wrong, tokenise(random_pairs(known.vocab, (6,)), known), LOGIT_DIFF)


def test_padding_that_a_network_does_not_hide_is_refused(known, own):
    pairs = tokenise(random_pairs(known.vocab, (6, 8)), known, "end")
    with pytest.raises(SpecError, match="padding on the left changes what 'own' says; prompts of one length"):
        PathPatcher(own, pairs, LOGIT_DIFF)


def test_a_network_is_drawn_anew_where_its_modules_say_how(own):
    class Plain(torch.nn.Module):
        """Of torch's own modules, which say how."""

        def __init__(self) -> None:
            super().__init__()
            self.embed, self.unembed = torch.nn.Embedding(9, 4), torch.nn.Linear(4, 9)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.unembed(self.embed(tokens))

    tokens = torch.ones(1, 3, dtype=torch.long)
    subject = HookedSubject("plain", Plain(), {"embed": ("embed", "output")}, Examples(("0",), tokens, tokens, tokens.bool()))
    twin, again, other = (untrained(subject, seed) for seed in (0, 0, 1))
    assert twin is not None
    assert again is not None
    assert other is not None
    assert twin.digest() == again.digest()
    assert len({each.digest() for each in (subject, twin, other)}) == 3
    batch = subject.examples("train", 1).take([0])
    assert not torch.equal(twin.forward(batch).logits, subject.forward(batch).logits)
    assert torch.equal(twin.forward(batch).logits, again.forward(batch).logits)


def test_a_network_that_does_not_say_how_its_weights_are_drawn_has_no_untrained_twin(own, known):
    assert untrained(own, 0) is None  # GPT-2's own modules do not say
    assert untrained(declared(known, call=lambda batch: known.model(input_ids=batch.inputs).logits), 0) is None
