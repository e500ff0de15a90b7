"""Patched runs side by side in rows: what is laid where, what is computed, and that what was recorded comes back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from prompts import CAUSAL, random_pairs, transformer
from torch import Tensor

from mlinterp.patching.metrics import MetricRegistry
from mlinterp.patching.packed import Packed, Segment, gives_the_recording_back
from mlinterp.patching.patcher import Edit, Patch, Patcher
from mlinterp.patching.places import places
from mlinterp.patching.replay import Projected, Replay, anatomy
from mlinterp.subjects.huggingface import HuggingFaceSubject
from mlinterp.subjects.pairs import Pairs, answer_columns, tokenise


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, HuggingFaceSubject]:
    root = tmp_path_factory.mktemp("project")
    return {name: transformer(root, fields) for name, fields in CAUSAL.items()}


def pairs_of(subject: HuggingFaceSubject, lengths: tuple[int, ...] = (6, 9, 7)) -> Pairs:
    return tokenise(random_pairs(subject.vocab, lengths), subject)


def recording(subject: HuggingFaceSubject, lengths: tuple[int, ...] = (6, 9, 7)) -> Replay:
    examples, parts = pairs_of(subject, lengths).clean, anatomy(subject)
    assert parts is not None
    with torch.no_grad():
        return Replay(subject, parts, examples.take(range(len(examples))), answer_columns(examples), project=True)


def test_every_suffix_of_a_prompt_at_every_block_fills_rows_without_a_gap(subjects):
    replay = recording(subjects["gpt2"], (9,))
    packed = Packed(replay, [Segment(0, start, layer) for layer in range(3) for start in range(9)])
    assert packed.used.shape == (15, 9), "9, 8 + 1, 7 + 2, 6 + 3, 5 + 4, at each of three blocks"
    assert bool(packed.used.all())
    assert [packed.rows_before(layer) for layer in range(4)] == [0, 5, 10, 15]


def test_runs_of_different_pairs_and_blocks_share_no_row(subjects):
    replay = recording(subjects["gpt2"])
    segments = [Segment(pair, start, layer) for layer in (0, 2) for pair in range(3) for start in (4, 5)]
    packed = Packed(replay, segments)
    rows: dict[int, set[tuple[int, int]]] = {}
    for row, segment in zip(packed.row.tolist(), segments, strict=True):
        rows.setdefault(row, set()).add((segment.pair, segment.first))
    assert all(len(held) == 1 for held in rows.values())
    read = packed.recorded(1)
    for segment, row, shift, answer in zip(segments, packed.row, packed.shift, packed.answer, strict=True):
        assert torch.equal(
            read[row, segment.start + shift : answer + 1], replay.streams[1][segment.pair, segment.start : answer - shift + 1]
        )


@pytest.mark.parametrize("name", CAUSAL)
@torch.no_grad()
def test_runs_side_by_side_do_not_see_each_other(subjects, name):
    replay = recording(subjects[name])
    segments = [Segment(1, start, 0) for start in (2, 4, 7)]
    packed, alone = Packed(replay, segments), [Packed(replay, [segment]) for segment in segments]
    noise = torch.randn(packed.recorded(0).shape, generator=torch.Generator().manual_seed(0))
    stream = packed.recorded(0) + noise
    together = packed.block(0, stream, None)
    for number, one in enumerate(alone):
        here = slice(int(packed.shift[number]) + segments[number].start, int(packed.answer[number]) + 1)
        row = packed.row[number]
        assert torch.allclose(together[row, here], one.block(0, stream[row, here][None], None)[0], atol=1e-5)


@pytest.mark.parametrize("name", CAUSAL)
@torch.no_grad()
def test_what_was_recorded_comes_back_and_what_was_not_is_noticed(subjects, name):
    replay = recording(subjects[name])
    assert gives_the_recording_back(replay)
    module, output = replay.projected[2][0]
    replay.projected[2][0] = Projected(module, output + 0.1)
    assert not gives_the_recording_back(replay)


@pytest.mark.parametrize(("component", "expected"), [("resid_pre", 1), ("attn_head", 0), ("mlp_out", 0), ("resid_mid", 0)])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_at_the_block_where_a_patch_begins_only_the_edited_position_is_projected_anew(subjects, name, component, expected):
    subject = subjects[name]
    patcher = Patcher(subject, pairs_of(subject), places(subject, component), MetricRegistry().get("logit_diff"))
    block = "transformer.h.0.attn" if name == "gpt2" else "model.layers.0.self_attn"
    names = ["c_attn"] if name == "gpt2" else ["q_proj", "k_proj", "v_proj"]
    modules, made = [subject.model.get_submodule(f"{block}.{each}") for each in names], list[int]()

    def counting(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def counted(x: Tensor) -> Tensor:
            made.append(x.shape[:-1].numel())
            return forward(x)

        return counted

    try:
        for module in modules:
            module.forward = counting(module.forward)
        patcher.metrics([Patch(1, (Edit(0, 4, 0 if component == "attn_head" else None),))])
    finally:
        for module in modules:
            del module.forward
    assert made == [expected] * len(names)


def test_the_model_is_left_as_it_was(subjects):
    subject = subjects["gpt2"]
    patcher = Patcher(subject, pairs_of(subject), places(subject, "resid_pre"), MetricRegistry().get("logit_diff"))
    patcher.metrics([Patch(row, (Edit(0, 4),)) for row in range(3)])
    for module in subject.model.modules():
        assert "forward" not in vars(module)
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
