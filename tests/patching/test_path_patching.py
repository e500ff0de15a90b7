"""Path patching: a hand-written induction circuit, plain hooks on projections, and activation patching as the sum of all paths."""

from __future__ import annotations

from pathlib import Path as File
from typing import Any

import numpy as np
import pytest
import torch
from induction import induction, induction_pairs
from prompts import BERT, CAUSAL, random_pairs, transformer
from torch import Tensor

from mlinterp.errors import EnvironmentFault, SpecError
from mlinterp.patching.metrics import MetricRegistry
from mlinterp.patching.patcher import Edit, Patch, Patcher
from mlinterp.patching.path_names import Receiver, Sender, receiver, sender
from mlinterp.patching.path_patcher import Path, PathPatcher, Written
from mlinterp.patching.places import places
from mlinterp.subjects.huggingface import HuggingFaceSubject
from mlinterp.subjects.pairs import Pairs, answer_columns, tokenise

LOGIT_DIFF = MetricRegistry().get("logit_diff")
UNEQUAL = (6, 9, 7)
QUICK = ("gpt2", "llama", "gemma2", "gpt_neox parallel")
EVERY = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CAUSAL]


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, HuggingFaceSubject]:
    root = tmp_path_factory.mktemp("project")
    return {name: transformer(root, fields) for name, fields in CAUSAL.items()}


def change(patcher: PathPatcher, senders: list[str], receivers: list[str], column: int | None = None) -> np.ndarray:
    """Return the change of the metric, `[pair]`, on the path from some senders to some receivers."""
    written = [patcher.written([sender(name) for name in senders])]
    paths = [Path(row, 0, column) for row in range(len(patcher.pairs))]
    return patcher.metrics(paths, [receiver(name) for name in receivers], written) - patcher.m_base


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_a_hand_written_induction_circuit_has_path_effects_of_one_and_zero(tmp_path, direction):
    """The previous-token head reaches the answer through the induction head's keys and nothing else."""
    subject = induction(tmp_path)
    pairs = tokenise(induction_pairs(), subject)
    patcher = PathPatcher(subject, pairs, LOGIT_DIFF, direction)
    gap = patcher.m_source - patcher.m_base
    assert abs(gap[0]) > 1.0

    def effect(from_: str, to: str, column: int | None = None) -> float:
        return float(change(patcher, [from_], [to], column)[0] / gap[0])

    assert effect("blocks.0.head.0", "blocks.1.head.0.k") == pytest.approx(1.0, abs=1e-6)
    for to in ("blocks.1.head.0.q", "blocks.1.head.0.v", "logits", "blocks.0.mlp", "blocks.1.mlp", "blocks.1.head.1.k"):
        assert effect("blocks.0.head.0", to) == pytest.approx(0.0, abs=1e-6)
    for from_ in ("embedding", "blocks.0.head.1", "blocks.0.mlp"):
        assert effect(from_, "blocks.1.head.0.k") == pytest.approx(0.0, abs=1e-6)
    assert effect("embedding", "blocks.0.head.0.v") == pytest.approx(1.0, abs=1e-6)
    assert effect("embedding", "blocks.0.head.0.k") == pytest.approx(0.0, abs=1e-6)
    assert effect("blocks.1.head.0", "logits") == pytest.approx(1.0, abs=1e-6)
    # Where the patched head's keys stand: behind the two tokens that changed places. Either alone leaves the match a tie.
    assert [effect("blocks.0.head.0", "blocks.1.head.0.k", column) for column in (0, 1, 3, 4, 6)] == pytest.approx([0.0] * 5, abs=1e-6)
    assert all(abs(effect("blocks.0.head.0", "blocks.1.head.0.k", column)) > 0.1 for column in (2, 5))


def slices(subject: HuggingFaceSubject, block: Any, receivers: list[Receiver]) -> list[tuple[str, slice]]:
    """Return where in which projection's output the queries, keys or values of some heads are."""
    config = subject.architecture.get_text_config()
    n_heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // n_heads
    found = []
    for each in receivers:
        at = "qkv".index(str(each.letter))
        assert each.head is not None
        if hasattr(block, "attn"):
            path, start = "attn.c_attn", at * n_heads * width + each.head * width
        elif hasattr(block, "attention"):
            path, start = "attention.query_key_value", (3 * each.head + at) * width
        else:
            share = n_heads // config.num_key_value_heads if each.letter != "q" else 1
            path, start = f"self_attn.{each.letter}_proj", each.head // share * width
        found.append((path, slice(start, start + width)))
    return found


NORMS = {"gpt2": ("ln_1", "ln_2"), "gpt_neox": ("input_layernorm", "post_attention_layernorm")}
LATER_NORM = {"gemma2": "pre_feedforward_layernorm", "gemma3_text": "pre_feedforward_layernorm"}


@torch.no_grad()
def by_hooks(subject: HuggingFaceSubject, pairs: Pairs, receivers: list[Receiver], step: Tensor) -> np.ndarray:
    """The whole model, with the receivers' slices of a projection's output made from the changed stream, by plain hooks."""
    kind, layer = subject.architecture.model_type, receivers[0].layer
    block = subject.model.get_submodule(subject.points[f"blocks.{layer}.resid_post"].module)
    first, second = NORMS.get(kind, ("input_layernorm", LATER_NORM.get(kind, "post_attention_layernorm")))
    seen: dict[str, Tensor] = {}
    hooks = [block.register_forward_pre_hook(lambda _module, args: seen.update(stream=args[0]))]
    if receivers[0].head is None:
        norm = block.get_submodule(second)
        hooks.append(norm.register_forward_hook(lambda module, args, _output: module.forward(args[0] + step)))
    else:
        norm = block.get_submodule(first)
        for path, where in slices(subject, block, receivers):

            def put(module: Any, _args: Any, output: Tensor, where: slice = where) -> Tensor:
                output = output.clone()
                output[..., where] = module.forward(norm.forward(seen["stream"] + step))[..., where]
                return output

            hooks.append(block.get_submodule(path).register_forward_hook(put))
    try:
        outputs = subject.forward(pairs.corrupted)
    finally:
        for hook in hooks:
            hook.remove()
    assert outputs is not None
    logits = outputs.logits[torch.arange(len(pairs)), answer_columns(pairs.corrupted)]
    return np.asarray(logits.gather(1, pairs.answer[:, None])[:, 0] - logits.gather(1, pairs.wrong[:, None])[:, 0])


@pytest.mark.parametrize("name", EVERY)
def test_paths_equal_plain_hooks_on_the_projections_of_the_whole_model(subjects, name):
    """Heads 0 and 1 share their keys and values where attention is grouped, so both are asked for together."""
    subject = subjects[name]
    pairs = tokenise(random_pairs(subject.vocab, UNEQUAL), subject)
    patcher = PathPatcher(subject, pairs, LOGIT_DIFF)
    heads = [["blocks.2.head.1.q"], *([f"blocks.2.head.{head}.{letter}" for head in (0, 1)] for letter in "kv")]
    mixed = [["blocks.1.head.0.k", "blocks.1.head.1.k", "blocks.1.head.1.q"], ["blocks.1.mlp"]]
    changes = []
    for source in ("embedding", "blocks.0.head.3", "blocks.0.mlp"):
        written = patcher.written([sender(source)])
        for receivers in (*heads, *mixed):
            found = change(patcher, [source], receivers) + patcher.m_base
            assert found == pytest.approx(
                by_hooks(subject, pairs, [receiver(each) for each in receivers], written[0][1]), abs=2e-5, rel=1e-5
            )
            # The last block's queries matter at the end of a prompt alone, where an early sender need not differ.
            changes += [] if receivers == heads[0] else [np.abs(found - patcher.m_base).max()]
    assert min(changes) > 1e-5


@pytest.mark.parametrize("name", EVERY)
def test_the_path_to_every_reader_is_the_whole_effect_of_patching_the_sender(subjects, name):
    subject = subjects[name]
    pairs = tokenise(random_pairs(subject.vocab, UNEQUAL), subject)
    patcher = PathPatcher(subject, pairs, LOGIT_DIFF)
    for source, component, edit in (
        (Sender(0, 2), "attn_head", Edit(0, None, 2)),
        (Sender(1), "mlp_out", Edit(1)),
    ):
        behind = [each.name for each in patcher.runs.receivers if patcher.runs.reading(each) > patcher.runs.writing(source)]
        exact = Patcher(subject, pairs, places(subject, component), LOGIT_DIFF)
        expected = exact.metrics([Patch(row, (edit,)) for row in range(3)]) - exact.m_base
        assert np.abs(expected).max() > 1e-3
        assert change(patcher, [source.name], behind) == pytest.approx(expected, abs=2e-5, rel=1e-4)


def test_a_head_reached_by_its_query_alone_leaves_its_keys_and_the_other_heads_alone(subjects):
    """Grouped-query heads share keys: patched for one of them, the other still sees the base run's."""
    subject = subjects["llama"]
    patcher = PathPatcher(subject, tokenise(random_pairs(subject.vocab, UNEQUAL), subject), LOGIT_DIFF)
    found = {}
    for letter in "qkv":
        found[letter] = change(patcher, ["blocks.0.mlp"], [f"blocks.2.head.1.{letter}"])
    both = change(patcher, ["blocks.0.mlp"], ["blocks.2.head.0.k", "blocks.2.head.1.k"])
    assert len({tuple(np.round(each, 5)) for each in (*found.values(), both)}) == 4


def test_a_sender_that_writes_after_a_receiver_reads_changes_nothing_exactly(subjects):
    subject = subjects["gpt2"]
    patcher = PathPatcher(subject, tokenise(random_pairs(subject.vocab, UNEQUAL), subject), LOGIT_DIFF)
    for source, to in (("blocks.1.head.0", "blocks.1.head.1.k"), ("blocks.2.mlp", "blocks.0.mlp"), ("blocks.1.mlp", "blocks.1.mlp")):
        assert np.array_equal(change(patcher, [source], [to]), np.zeros(3))
    assert np.abs(change(patcher, ["blocks.1.head.0"], ["blocks.1.mlp"])).max() > 1e-4
    parallel = subjects["gpt_neox parallel"]
    other = PathPatcher(parallel, tokenise(random_pairs(parallel.vocab, UNEQUAL), parallel), LOGIT_DIFF)
    assert np.array_equal(change(other, ["blocks.1.head.0"], ["blocks.1.mlp"]), np.zeros(3))


def test_a_path_between_equal_prompts_changes_nothing_exactly(subjects):
    subject = subjects["llama"]
    given = random_pairs(subject.vocab, UNEQUAL)
    same = [pair.model_copy(update={"corrupted": pair.clean}) for pair in given]
    patcher = PathPatcher(subject, tokenise(same, subject), LOGIT_DIFF)
    assert np.array_equal(change(patcher, ["embedding", "blocks.0.mlp"], ["blocks.1.head.0.v", "logits"]), np.zeros(3))


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_neither_padding_nor_the_batch_changes_a_path(subjects, name):
    subject = subjects[name]
    given = random_pairs(subject.vocab, UNEQUAL)
    together = PathPatcher(subject, tokenise(given, subject), LOGIT_DIFF)
    ended = PathPatcher(subject, tokenise(given, subject, "end"), LOGIT_DIFF, batch_size=1)
    for row, pair in enumerate(given):
        alone = PathPatcher(subject, tokenise([pair], subject), LOGIT_DIFF)
        for senders, receivers in ((["blocks.0.head.1"], ["blocks.1.head.2.k", "logits"]), (["embedding"], ["blocks.2.mlp"])):
            expected = change(alone, senders, receivers)[0]
            assert change(together, senders, receivers)[row] == pytest.approx(expected, abs=2e-5)
            assert change(ended, senders, receivers)[row] == pytest.approx(expected, abs=2e-5)


def test_several_senders_add_up_where_nothing_bends(subjects):
    """The way to the logits is linear but for the final norm, which a small step hardly bends."""
    subject = subjects["llama"]
    patcher = PathPatcher(subject, tokenise(random_pairs(subject.vocab, UNEQUAL), subject), LOGIT_DIFF)

    def small(senders: list[Sender]) -> Written:
        return [(at, step / 200) for at, step in patcher.written(senders)]

    one, other, both = (small(group) for group in ([Sender(0, 1)], [Sender(1)], [Sender(0, 1), Sender(1)]))
    found = [patcher.metrics([Path(row, 0) for row in range(3)], [Receiver()], [each]) - patcher.m_base for each in (one, other, both)]
    assert found[2] == pytest.approx(found[0] + found[1], rel=0.05, abs=5e-4)


def test_random_paths_are_as_long_as_the_sender_s(subjects):
    subject = subjects["llama"]
    patcher = PathPatcher(subject, tokenise(random_pairs(subject.vocab, UNEQUAL), subject), LOGIT_DIFF)
    ((at, step),) = patcher.written([Sender(0, 1)])
    ((same, drawn),) = patcher.random([(at, step)], torch.Generator().manual_seed(1))
    assert same == at == 0
    assert torch.allclose(drawn.norm(dim=2), step.norm(dim=2), rtol=1e-4)
    assert not torch.allclose(drawn, step)


@pytest.mark.parametrize(
    ("read", "name", "near"),
    [
        (sender, "nonsense", None),
        (sender, "embeding", "embedding"),
        (sender, "blocks.0.haed.1", r"blocks\.0\.head\.1"),
        (receiver, "logit", "logits"),
        (receiver, "blocks.1.head.0", r"blocks\.1\.head\.0\.[qkv]"),
        (receiver, "embedding", None),
    ],
)
def test_a_nonsense_sender_or_receiver_is_refused_with_the_nearest_name(read, name, near):
    with pytest.raises(SpecError, match=f"unknown (sender|receiver) '{name}'; allowed: .*" + (f"did you mean '{near}'" if near else "")):
        read(name)


def test_a_model_whose_stream_is_no_plain_sum_is_refused_by_name(tmp_path: File):
    subject = transformer(tmp_path, BERT)
    pairs = tokenise(random_pairs(subject.vocab, (6,)), subject)
    with pytest.raises(
        SpecError, match=r"'toy' \(bert\) is not known to have a residual stream .*; a left-to-right model of the kinds gpt2, llama"
    ):
        PathPatcher(subject, pairs, LOGIT_DIFF)


def test_hooks_are_gone_afterwards(subjects):
    subject = subjects["gpt2"]

    def hooks() -> int:
        return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in subject.model.modules())

    before = hooks()
    patcher = PathPatcher(subject, tokenise(random_pairs(subject.vocab, UNEQUAL), subject), LOGIT_DIFF)
    change(patcher, ["embedding"], ["blocks.0.head.0.q", "blocks.0.mlp", "logits"])
    assert hooks() == before


def test_pairs_that_do_not_fit_in_memory_together_are_recorded_in_parts_and_give_the_same_numbers(subjects):
    subject, rows = subjects["llama"], list[int]()
    pairs = tokenise(random_pairs(subject.vocab, UNEQUAL), subject)
    senders, receivers = ["embedding", "blocks.0.head.1", "blocks.1.mlp"], ["blocks.2.head.0.k", "logits"]
    whole = PathPatcher(subject, pairs, LOGIT_DIFF)

    def full(_module: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
        rows.append(len(args[0]))
        if len(args[0]) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")

    handle = subject.model.get_submodule("model.embed_tokens").register_forward_pre_hook(full)
    try:
        limit = 2
        parts = PathPatcher(subject, pairs, LOGIT_DIFF)
        assert parts.runs.parts == [range(1), range(1, 3)]
        np.testing.assert_allclose(parts.m_base, whole.m_base, atol=1e-5)
        np.testing.assert_allclose(parts.m_source, whole.m_source, atol=1e-5)
        np.testing.assert_allclose(change(parts, senders, receivers[:1]), change(whole, senders, receivers[:1]), atol=1e-5)
        np.testing.assert_allclose(change(parts, senders, receivers[1:], 4), change(whole, senders, receivers[1:], 4), atol=1e-5)
        rows.clear()
        change(parts, senders[:1], receivers[:1])
        assert rows == [1, 1, 2, 2, 1, 1, 2, 2], "both runs of each part, for what its senders write and again for what is patched"
        limit = 0
        with pytest.raises(EnvironmentFault, match="not even one pair of prompts of 9 tokens fits in memory"):
            PathPatcher(subject, pairs, LOGIT_DIFF)
    finally:
        handle.remove()
