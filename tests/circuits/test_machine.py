"""Cutting edges, against what the models themselves compute with hooks set by hand, on every architecture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gates import bit_pairs, gates, weighted
from prompts import BERT, CAUSAL, random_pairs, transformer
from torch import Tensor

from mlinterp.circuits import declared
from mlinterp.circuits.declared import DeclaredMachine
from mlinterp.circuits.machine import Machine
from mlinterp.circuits.transformer import TransformerMachine, graph_of
from mlinterp.errors import EnvironmentFault, SpecError
from mlinterp.patching.metrics import MetricRegistry
from mlinterp.patching.patcher import Edit, Patch, Patcher
from mlinterp.patching.places import places
from mlinterp.subjects.base import Address
from mlinterp.subjects.hooked import HookedSubject
from mlinterp.subjects.huggingface import HuggingFaceSubject
from mlinterp.subjects.pairs import Pairs, tokenise

METRICS = MetricRegistry()
LOGIT_DIFF = METRICS.get("logit_diff")
LENGTHS = (6, 9, 7)
"""Of the pairs' prompts: most rows are padded."""
ROWS = [0, 1, 2]
PROJECTIONS = {"gpt2": ("attn.c_attn",) * 3, "gpt_neox": ("attention.query_key_value",) * 3}


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, HuggingFaceSubject]:
    root = tmp_path_factory.mktemp("project")
    return {name: transformer(root, fields) for name, fields in {**CAUSAL, "bert": BERT}.items()}


@pytest.fixture(scope="module")
def machines(subjects: dict[str, HuggingFaceSubject]) -> dict[str, Machine]:
    return {name: machine_of(subjects[name]) for name in CAUSAL}


def machine_of(subject: HuggingFaceSubject, lengths: tuple[int, ...] = LENGTHS, **options: object) -> TransformerMachine:
    pairs = tokenise(random_pairs(subject.vocab, lengths), subject)
    return TransformerMachine(subject, pairs, graph_of(subject), LOGIT_DIFF, **options)  # type: ignore[arg-type]


def plain(subject: HuggingFaceSubject, pairs: Pairs, which: str, tap: object = None, sites: tuple[str, ...] = ()) -> np.ndarray:
    """The metric of each prompt alone and unpadded, in the model itself."""
    found = []
    for row in range(len(pairs)):
        examples = getattr(pairs, which)
        one = examples.take([row])
        real = one.mask[0]
        alone = type(one)(one.ids, one.inputs[:, real], one.targets[:, real], one.mask[:, real])
        with torch.no_grad():
            outputs = subject.forward(alone, tap, sites)  # type: ignore[arg-type]
        assert outputs is not None
        found.append(float(outputs.logits[0, -1, pairs.answer[row]] - outputs.logits[0, -1, pairs.wrong[row]]))
    return np.array(found)


def without(machine: Machine, nodes: list[str] | None = None, reads: list[str] | None = None) -> np.ndarray:
    """The whole graph but for the edges from some nodes, into some reads."""
    kept = machine.graph.whole.copy()
    rows = [row for row, read in enumerate(machine.graph.reads) if reads is None or read.name in reads]
    columns = [column for column, node in enumerate(machine.graph.nodes) if nodes is None or node.name in nodes]
    assert rows
    assert columns
    kept[np.ix_(rows, columns)] = False
    return kept[None]


@pytest.mark.parametrize("name", CAUSAL)
def test_with_nothing_cut_a_run_is_the_clean_one_and_with_everything_cut_the_corrupted_one(machines, subjects, name):
    machine, subject = machines[name], subjects[name]
    assert machine.m_clean == pytest.approx(plain(subject, machine.pairs, "clean"), abs=2e-5)
    assert machine.m_empty == pytest.approx(plain(subject, machine.pairs, "corrupted"), abs=2e-5)
    graph = machine.graph
    assert (machine.metrics(graph.whole[None], ROWS)[0] == machine.m_clean).all()
    assert (machine.metrics(graph.empty[None], ROWS)[0] == machine.m_empty).all()


@pytest.mark.parametrize("name", [name for name in CAUSAL if name not in ("gemma2", "gemma3_text")])
def test_cutting_all_edges_of_a_head_or_mlp_is_patching_what_it_writes(machines, subjects, name):
    machine, subject = machines[name], subjects[name]
    for component, unit, node in (("attn_head", 2, "L1.h2"), ("mlp_out", None, "L1.mlp")):
        patcher = Patcher(subject, machine.pairs, places(subject, component), LOGIT_DIFF, "noise")
        expected = patcher.metrics([Patch(row, (Edit(1, None, unit),)) for row in ROWS])
        assert machine.metrics(without(machine, [node]), ROWS)[0] == pytest.approx(expected, abs=2e-5)
        assert np.abs(expected - machine.m_clean).max() > 1e-3


@pytest.mark.parametrize("read", ["q", "k", "v"])
@pytest.mark.parametrize("name", CAUSAL)
def test_cutting_all_edges_into_one_input_of_a_head_is_patching_what_the_model_projects_there(machines, subjects, name, read):
    machine, subject = machines[name], subjects[name]
    kind, config = "qkv".index(read), subject.architecture.get_text_config()
    grouped = getattr(config, "num_key_value_heads", 4) == 2
    module = PROJECTIONS.get(name.split()[0], ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"))[kind]
    start = {"gpt2": kind * 16 + 4, "gpt_neox": 12 + kind * 4}.get(name.split()[0], 4)
    site = f"module:{subject.points['blocks.1.resid_post'].module}.{module}"
    expected = projected_from_corrupted(subject, machine.pairs, site, slice(start, start + 4))
    unit = "L1.g1" if grouped and read != "q" else "L1.h1"
    # The projection reads the corrupted stream, which in the machine is what the reads see when all their edges are cut.
    assert machine.metrics(without(machine, reads=[f"{unit}.{read}"]), ROWS)[0] == pytest.approx(expected, abs=2e-5)
    assert np.abs(expected - machine.m_clean).max() > 1e-4


def projected_from_corrupted(subject: HuggingFaceSubject, pairs: Pairs, site: str, columns: slice) -> np.ndarray:
    found = []
    for row in range(len(pairs)):
        length = int(pairs.clean.mask[row].sum())
        seen: list[Tensor] = []

        def keep(_: Address, h: Tensor, seen: list[Tensor] = seen) -> Tensor:
            seen.append(h.clone())
            return h

        def put(_: Address, h: Tensor, seen: list[Tensor] = seen) -> Tensor:
            h = h.clone()
            h[..., columns] = seen[0][..., columns]
            return h

        logits = None
        for examples, tap in ((pairs.corrupted, keep), (pairs.clean, put)):
            one = examples.take([row])
            alone = type(one)(one.ids, one.inputs[:, :length], one.targets[:, :length], one.mask[:, :length])
            with torch.no_grad():
                outputs = subject.forward(alone, tap, [site])
            assert outputs is not None
            logits = outputs.logits[0, -1]
        assert logits is not None
        found.append(float(logits[pairs.answer[row]] - logits[pairs.wrong[row]]))
    return np.array(found)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox parallel"])
def test_cutting_one_edge_into_the_logits_takes_one_write_out_of_the_last_stream(machines, subjects, name):
    machine, subject = machines[name], subjects[name]
    projection = subject.model.get_submodule(subject.points["blocks.1.attn_z"].module)
    weight = projection.weight if name == "gpt2" else projection.weight.T
    norm, head = {
        "gpt2": lambda m: (m.transformer.ln_f, m.lm_head),
        "llama": lambda m: (m.model.norm, m.lm_head),
        "gpt_neox parallel": lambda m: (m.gpt_neox.final_layer_norm, m.lm_head),
    }[name](subject.model)
    seen: dict[str, dict[str, Tensor]] = {}
    for which in ("clean", "corrupted"):
        kept: dict[str, Tensor] = {}

        def keep(address: Address, h: Tensor, kept: dict[str, Tensor] = kept) -> Tensor:
            kept[address.site] = h.clone()
            return h

        with torch.no_grad():
            subject.forward(getattr(machine.pairs, which).take(ROWS), keep, ["blocks.1.attn_z", "blocks.2.resid_post"])
        seen[which] = kept
    change = seen["clean"]["blocks.1.attn_z"][..., 8:12] - seen["corrupted"]["blocks.1.attn_z"][..., 8:12]
    stream = seen["clean"]["blocks.2.resid_post"] - change @ weight[8:12]
    last = torch.tensor(LENGTHS) - 1
    with torch.no_grad():
        logits = head(norm(stream[ROWS, last]))
    expected = (logits[ROWS, machine.pairs.answer] - logits[ROWS, machine.pairs.wrong]).numpy()
    assert machine.metrics(without(machine, ["L1.h2"], ["logits"]), ROWS)[0] == pytest.approx(expected, abs=2e-5)


def test_the_size_of_a_batch_changes_no_more_than_the_last_digits(subjects):
    one, many = (machine_of(subjects["qwen3"], batch_size=size) for size in (1, 50))
    circuits = np.stack([many.graph.random(size, 0, 0) for size in (3, 40, 150)])
    assert one.metrics(circuits, ROWS) == pytest.approx(many.metrics(circuits, ROWS), abs=2e-5)
    assert one.edge_scores(ROWS, 3) == pytest.approx(many.edge_scores(ROWS, 3), abs=2e-5)


def test_in_bfloat16_nothing_cut_is_still_the_model_itself(tmp_path):
    subject = transformer(tmp_path, CAUSAL["llama"], dtype="bfloat16")
    machine = machine_of(subject, (6, 6, 6))
    assert machine.m_clean == pytest.approx(plain(subject, machine.pairs, "clean"), abs=0.05)
    assert machine.m_empty == pytest.approx(plain(subject, machine.pairs, "corrupted"), abs=0.05)


@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_what_is_put_in_the_place_of_a_cut_edge_is_what_was_asked_for(subjects, ablation):
    subject = subjects["llama"]
    machine = machine_of(subject, (7, 7), ablation=ablation)
    seen: list[Tensor] = []

    def keep(_: Address, h: Tensor) -> Tensor:
        seen.append(h.clone())
        return h

    plain(subject, machine.pairs, "corrupted", keep, ("blocks.1.mlp_out",))
    mean = torch.cat(seen).mean(dim=(0, 1)) if ablation == "mean" else torch.zeros(16)
    expected = plain(subject, machine.pairs, "clean", lambda _, h: mean.expand_as(h), ("blocks.1.mlp_out",))
    assert machine.metrics(without(machine, ["L1.mlp"]), [0, 1])[0] == pytest.approx(expected, abs=2e-5)


def test_a_batch_that_does_not_fit_in_memory_is_split_until_it_does(subjects):
    class Small(TransformerMachine):
        room = 2

        def _forward(self, through, rows, first, embed):
            if len(rows) > self.room:
                raise torch.OutOfMemoryError("no room")
            return super()._forward(through, rows, first, embed)

    pairs = tokenise(random_pairs(subjects["gpt2"].vocab, LENGTHS), subjects["gpt2"])
    small, large = Small(subjects["gpt2"], pairs, graph_of(subjects["gpt2"]), LOGIT_DIFF), machine_of(subjects["gpt2"])
    circuits = np.stack([small.graph.random(50, 0, draw) for draw in range(3)])
    assert small.m_clean == pytest.approx(large.m_clean, abs=2e-5)
    assert small.metrics(circuits, ROWS) == pytest.approx(large.metrics(circuits, ROWS), abs=2e-5)
    assert small.edge_scores(ROWS, 2) == pytest.approx(large.edge_scores(ROWS, 2), abs=2e-5)
    assert small.embedding_gap(ROWS) == pytest.approx(large.embedding_gap(ROWS), abs=2e-5)
    small.room = 0
    with pytest.raises(EnvironmentFault, match="not even one run of 9 tokens fits in memory"):
        small.metrics(circuits, ROWS)


def test_pairs_whose_writes_do_not_fit_in_memory_are_refused_with_what_to_give_fewer_of(subjects):
    class Small(TransformerMachine):
        def _prepare(self):
            raise torch.OutOfMemoryError("no room")

    pairs = tokenise(random_pairs(subjects["gpt2"].vocab, LENGTHS), subjects["gpt2"])
    with pytest.raises(EnvironmentFault, match="what 16 parts write in 3 pairs of 9 tokens does not fit in memory: give fewer pairs"):
        Small(subjects["gpt2"], pairs, graph_of(subjects["gpt2"]), LOGIT_DIFF)


def test_a_model_whose_stream_is_no_plain_sum_is_refused_by_name(subjects):
    with pytest.raises(
        SpecError,
        match=r"'toy' \(bert\) is not known to have a residual stream that is a plain sum; a left-to-right model of the kinds gpt2, llama",
    ):
        graph_of(subjects["bert"])


def test_hook_points_that_do_not_add_up_to_the_stream_are_refused():
    subject = gates((weighted({0: 1.0}), 3), (weighted({3: 1.0}), 4), out=4)
    swapped = {
        **{site: tuple(point[:2]) for site, point in subject.points.items()},
        "blocks.0.mlp_out": ("writes.1", "output"),
        "blocks.1.mlp_out": ("writes.0", "output"),
    }
    wrong = HookedSubject("wrong", subject.model, swapped, subject.splits["train"])
    pairs = tokenise(bit_pairs((1, 0)), wrong)
    with pytest.raises(SpecError, match="the residual stream of 'wrong' is not the sum of what its embedding, heads and MLPs write"):
        DeclaredMachine(wrong, pairs, declared.graph_of(wrong), LOGIT_DIFF)


def test_a_part_whose_input_is_not_declared_is_refused_by_the_name_of_its_hook_point():
    subject = gates((weighted({0: 1.0}), 3), out=3)
    points = {site: tuple(point[:2]) for site, point in subject.points.items() if site != "blocks.0.mlp_in"}
    with pytest.raises(SpecError, match=r"has no hook point 'blocks\.0\.mlp_in'"):
        declared.graph_of(HookedSubject("deaf", subject.model, points, subject.splits["train"]))
