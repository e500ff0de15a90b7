"""Exact patching against a plain loop of hooks over the whole model, on every architecture, and what must hold exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from prompts import BERT, CAUSAL, random_pairs, transformer
from torch import Tensor, nn

from mlinterp.errors import EnvironmentFault, SpecError
from mlinterp.patching.metrics import BUILT_IN, Metric, MetricRegistry
from mlinterp.patching.patcher import Edit, Patch, Patcher
from mlinterp.patching.places import COMPONENTS, places
from mlinterp.subjects.base import Address, Batch, Examples, Tap
from mlinterp.subjects.huggingface import HuggingFaceSubject
from mlinterp.subjects.pairs import answer_columns, tokenise

LOGIT_DIFF = MetricRegistry().get("logit_diff")
UNEQUAL = (6, 9, 7)
"""Lengths of the pairs' prompts: most rows are padded."""


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, HuggingFaceSubject]:
    root = tmp_path_factory.mktemp("project")
    return {name: transformer(root, fields) for name, fields in {**CAUSAL, "bert": BERT}.items()}


@pytest.fixture(scope="module")
def subject(subjects: dict[str, HuggingFaceSubject]) -> HuggingFaceSubject:
    return subjects["llama"]


def every_patch(patcher: Patcher) -> list[Patch]:
    """Each unit (or the whole activation) at each position of each layer, for every pair."""
    pairs, units = patcher.pairs, range(patcher.places.n_units or 1)
    return [
        Patch(row, (Edit(layer, column, unit if patcher.places.n_units else None),))
        for layer in patcher.places.sites
        for row, column in pairs.shared.nonzero().tolist()
        for unit in (units if (patcher.places.n_units or 0) <= 4 else (0, 7))
    ]


@torch.no_grad()
def by_hand(patcher: Patcher, patch: Patch) -> float:
    """The definition: one whole forward pass of one unpadded prompt, with hooks that put the other prompt's activations in place."""
    subject, pairs, row = patcher.subject, patcher.pairs, patch.pair
    base, source = (pairs.clean, pairs.corrupted) if patcher.direction == "noise" else (pairs.corrupted, pairs.clean)
    n_units, seen = patcher.places.n_units or 1, dict[str, Tensor]()

    def run(examples: Examples, tap: Tap | None) -> Tensor:
        tokens = examples.inputs[row][examples.mask[row]][None]
        batch = Batch(("one",), tokens, tokens, torch.ones_like(tokens, dtype=torch.bool))
        outputs = subject.forward(batch, tap, list(patcher.places.sites.values()))
        assert outputs is not None
        return outputs.logits[:, -1].float()

    def keep(address: Address, h: Tensor) -> Tensor:
        seen[address.site] = h.clone()
        return h

    def put(address: Address, h: Tensor) -> Tensor:
        h = h.clone()
        for layer, column, unit in patch.edits:
            if patcher.places.sites[layer] == address.site:
                for at in [column] if column is not None else pairs.shared[row].nonzero()[:, 0].tolist():
                    here, there = (at - int(examples.mask[row].int().argmax()) for examples in (base, source))
                    mine, other = h[0, here].view(n_units, -1), seen[address.site][0, there].view(n_units, -1)
                    for each in [unit] if unit is not None else range(n_units):
                        mine[each] = other[each]
        return h

    run(source, keep)
    logits, clean = run(base, put), run(pairs.clean, None)
    return float(patcher.metric.measure(logits, clean, pairs.answer[[row]], pairs.wrong[[row]])[0])


def assert_as_by_hand(patcher: Patcher, patches: list[Patch], tolerance: float = 1e-5) -> np.ndarray:
    """Compare every ninth patch with its definition, and return what the engine says of all."""
    found = patcher.metrics(patches)
    for number in range(0, len(patches), 9):
        assert found[number] == pytest.approx(by_hand(patcher, patches[number]), abs=tolerance, rel=tolerance)
    assert np.ptp(found - patcher.m_base[[patch.pair for patch in patches]]) > 1e-3
    return found


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("name", CAUSAL)
def test_patches_equal_a_plain_hook_loop_over_the_whole_model(subjects, name, component):
    subject = subjects[name]
    if (name, component) == ("gpt_neox parallel", "resid_mid"):
        with pytest.raises(SpecError, match="no hook point for resid_mid; it has: attn_head"):
            places(subject, component)
        return
    pairs = tokenise(random_pairs(subject.vocab, UNEQUAL), subject)
    patcher = Patcher(subject, pairs, places(subject, component), LOGIT_DIFF, batch_size=40)
    assert patcher.replayed
    assert_as_by_hand(patcher, every_patch(patcher))


def some_patcher(subject: HuggingFaceSubject, component: str = "resid_pre", metric: Metric = LOGIT_DIFF, **options: Any) -> Patcher:
    pairs = tokenise(random_pairs(subject.vocab, UNEQUAL), subject)
    return Patcher(subject, pairs, places(subject, component), metric, **options)


@pytest.mark.parametrize("component", ["resid_mid", "attn_head"])
@pytest.mark.parametrize("name", ["gpt2", "qwen3", "gemma3_text"])
def test_prompts_of_unequal_length_are_patched_where_they_are_aligned(subjects, name, component):
    subject, pairs = subjects[name], []
    for one, other in zip(random_pairs(subjects[name].vocab, (9, 7)), random_pairs(subjects[name].vocab, (6, 8), seed=1), strict=True):
        pairs.append(one.model_copy(update={"corrupted": other.corrupted}))
    patcher = Patcher(subject, tokenise(pairs, subject, align="end"), places(subject, component), LOGIT_DIFF)
    assert patcher.replayed
    assert_as_by_hand(patcher, every_patch(patcher))


@pytest.mark.parametrize("name", CAUSAL)
def test_padding_on_either_side_changes_no_number(subjects, name):
    subject, declared = subjects[name], random_pairs(subjects[name].vocab, UNEQUAL)
    right, left = (Patcher(subject, tokenise(declared, subject, align), places(subject, "attn_out"), LOGIT_DIFF) for align in (None, "end"))
    assert bool(right.pairs.clean.mask[:, 0].all())
    assert not bool(left.pairs.clean.mask[:, 0].all())
    one, other = (patcher.metrics(every_patch(patcher)) for patcher in (right, left))
    assert np.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("name", [*CAUSAL, "bert"])
def test_an_identity_patch_changes_exactly_nothing(subjects, name):
    patcher = some_patcher(subjects[name], "attn_out")
    patches = every_patch(patcher)
    assert np.array_equal(patcher.metrics(patches, patcher.base), patcher.m_base[[patch.pair for patch in patches]])


@pytest.mark.parametrize("name", CAUSAL)
def test_the_whole_residual_stream_after_the_last_block_restores_exactly_everything(subjects, name):
    patcher = some_patcher(subjects[name], "resid_post")
    at = answer_columns(patcher.pairs.clean).tolist()
    for edits in ([(Edit(2),)] * 3, [(Edit(2, column),) for column in at]):
        found = patcher.metrics([Patch(row, edit) for row, edit in enumerate(edits)])
        assert np.array_equal(found, patcher.m_source)
        assert not np.array_equal(found, patcher.m_base)


@pytest.mark.parametrize("name", CAUSAL)
def test_the_stream_before_the_first_block_carries_everything_where_the_prompts_differ_and_exactly_nothing_elsewhere(subjects, name):
    patcher = some_patcher(subjects[name])
    everything = patcher.metrics([Patch(row, (Edit(0, 2), Edit(0, 4))) for row in range(3)])
    assert np.allclose(everything, patcher.m_source, atol=1e-5)
    elsewhere = patcher.metrics([Patch(row, (Edit(0, column),)) for row in range(3) for column in (0, 1, 3, 5)])
    assert np.array_equal(elsewhere, np.repeat(patcher.m_base, 4))


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "gpt_neox parallel"])
def test_all_heads_together_are_the_output_of_attention_also_where_they_share_keys_and_values(subjects, name):
    heads, whole = some_patcher(subjects[name], "attn_head"), some_patcher(subjects[name], "attn_out")
    assert heads.places.n_units == 4
    for layer in range(3):
        joint = heads.metrics([Patch(row, tuple(Edit(layer, None, head) for head in range(4))) for row in range(3)])
        assert np.allclose(joint, whole.metrics([Patch(row, (Edit(layer),)) for row in range(3)]), atol=1e-5)


def test_patches_at_several_layers_at_once_equal_the_plain_loop(subject):
    patcher = some_patcher(subject, "mlp_out")
    patches = [Patch(row, (Edit(0, 3), Edit(2, 2), Edit(1))) for row in range(3)] * 4
    assert_as_by_hand(patcher, patches)


@pytest.mark.parametrize("name", [metric.name for metric in BUILT_IN])
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_every_metric_in_both_directions_equals_the_plain_loop(subject, name, direction):
    patcher = some_patcher(subject, "resid_post", MetricRegistry().get(name), direction=direction)
    found = assert_as_by_hand(patcher, every_patch(patcher))
    ends = {patch.pair: value for patch, value in zip(every_patch(patcher), found, strict=True) if patch.edits[0].layer == 2}
    assert ends.keys() == {0, 1, 2}


@pytest.mark.parametrize(("name", "component"), [("bert", "attn_head"), ("gpt2", "module:transformer.wte"), ("bert", "resid_post")])
def test_a_model_that_cannot_be_replayed_is_run_whole(subjects, name, component):
    patcher = some_patcher(subjects[name], component)
    assert not patcher.replayed
    assert_as_by_hand(patcher, every_patch(patcher))


def test_a_module_inside_a_block_is_patched_by_its_path(subject):
    patcher = some_patcher(subject, "module:model.layers.1.mlp.up_proj")
    assert patcher.replayed
    assert_as_by_hand(patcher, every_patch(patcher))


def test_bfloat16_is_patched_in_bfloat16(tmp_path):
    patcher = some_patcher(transformer(tmp_path, CAUSAL["llama"], dtype="bfloat16"), "attn_head")
    assert patcher.replayed
    assert patcher.base[0].dtype == torch.bfloat16
    assert_as_by_hand(patcher, every_patch(patcher), tolerance=5e-2)


@pytest.mark.parametrize("component", ["resid_pre", "mlp_out"])
def test_the_size_of_batches_changes_no_number(subject, component):
    one, many = (some_patcher(subject, component, batch_size=size) for size in (1, 1000))
    patches = every_patch(one)
    assert np.allclose(one.metrics(patches), many.metrics(patches), atol=1e-5)


def test_a_batch_that_does_not_fit_in_memory_is_split_and_goes_on(subject):
    patcher = some_patcher(subject)
    patches, rows = every_patch(patcher), []
    expected = patcher.metrics(patches)

    def full(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        rows.append(len(args[0]))
        if rows[-1] > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")

    handle = subject.model.get_submodule("model.layers.2").register_forward_pre_hook(full)
    try:
        limit = 3
        assert np.allclose(patcher.metrics(patches), expected, atol=1e-5)
        assert max(rows) > 3
        limit = 0
        with pytest.raises(EnvironmentFault, match="not even one patch of 9 tokens fits in memory"):
            patcher.metrics(patches)
    finally:
        handle.remove()


@pytest.mark.parametrize(("name", "component"), [("llama", "resid_pre"), ("gpt2", "attn_head"), ("bert", "attn_out")])
def test_pairs_that_do_not_fit_in_memory_together_are_recorded_in_parts_and_give_the_same_numbers(subjects, name, component):
    subject, rows = subjects[name], list[int]()
    whole = some_patcher(subject, component)

    def full(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        rows.append(len(args[0]))
        if len(args[0]) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")

    embedding = "bert.embeddings.word_embeddings" if name == "bert" else "model.embed_tokens" if name == "llama" else "transformer.wte"
    handle = subject.model.get_submodule(embedding).register_forward_pre_hook(full)
    try:
        limit = 2
        parts = some_patcher(subject, component)
        assert parts.replayed == whole.replayed == (name != "bert")
        assert rows[:3] == [3, 1, 2]
        patches = every_patch(parts)
        expected, found = whole.metrics(patches, whole.source), parts.metrics(patches, parts.source)
        np.testing.assert_allclose(found, expected, atol=1e-5)
        for layer in range(3):
            assert torch.allclose(parts.base[layer], whole.base[layer], atol=1e-5)
        limit = 0
        with pytest.raises(EnvironmentFault, match="not even one prompt of 9 tokens fits in memory"):
            some_patcher(subject, component)
    finally:
        handle.remove()


def test_no_more_than_one_part_s_recording_is_held(subject):
    patcher, seen = some_patcher(subject, batch_size=2), list[int]()
    handle = subject.model.get_submodule("model.embed_tokens").register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    try:
        patcher.metrics(every_patch(patcher))
        assert seen == [2, 1], "recorded again: the part of two pairs, then that of one, which replaced it"
        patcher.metrics([Patch(2, (Edit(0, 2),))])
        assert seen == [2, 1]
    finally:
        handle.remove()


def test_an_error_that_is_not_about_memory_passes_through_and_no_hook_stays(subject):
    patcher = some_patcher(subject, "mlp_out")
    before = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in subject.model.modules())

    def broken(_module: nn.Module, _args: tuple[Tensor, ...]) -> None:
        raise RuntimeError("something else")

    handle = subject.model.get_submodule("model.layers.2").register_forward_pre_hook(broken)
    try:
        with pytest.raises(RuntimeError, match="something else"):
            patcher.metrics(every_patch(patcher))
    finally:
        handle.remove()
    assert sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in subject.model.modules()) == before


def test_blocks_below_the_patch_and_positions_before_it_are_not_computed(subject):
    patcher, calls = some_patcher(subject), list[tuple[int, tuple[int, ...]]]()
    layers = [subject.model.get_submodule(f"model.layers.{layer}") for layer in range(3)]
    handles = [
        layer.register_forward_pre_hook(lambda _, args, number=number: calls.append((number, tuple(args[0].shape[:2]))))
        for number, layer in enumerate(layers)
    ]
    try:
        patcher.metrics([Patch(0, (Edit(1, 4),)), Patch(0, (Edit(2, 4),)), Patch(0, (Edit(0, 1),))])
    finally:
        for handle in handles:
            handle.remove()
    assert calls == [(1, (1, 2)), (2, (2, 2)), (2, (2, 1))], "block 2: keys and values of positions 4 and 5, then the answer at 5"


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_random_directions_are_as_far_away_head_by_head_and_the_same_again(subjects, name):
    patcher = some_patcher(subjects[name], "attn_head")
    one, again, other = (patcher.moved(torch.Generator().manual_seed(seed)).activations for seed in (0, 0, 1))
    for layer in range(3):
        far, step = ((h[layer] - patcher.base[layer]).unflatten(2, (4, -1)).norm(dim=3) for h in (patcher.source, one))
        assert torch.allclose(far, step, atol=1e-4)
        assert torch.equal(one[layer], again[layer])
        assert not torch.equal(one[layer], other[layer])


def test_a_neuron_s_random_step_is_made_in_another_neuron(subject):
    patcher = some_patcher(subject, "mlp_neuron")
    moved = patcher.moved(torch.Generator().manual_seed(0))
    partners = moved.partners[1]
    assert sorted(partners) == list(range(24))
    assert not (partners == np.arange(24)).any()
    far, step = ((h[1] - patcher.base[1]).abs() for h in (patcher.source, moved.activations))
    assert torch.allclose(step[:, :, partners], far, atol=1e-5)
    assert moved.edits([Edit(1, 3, 5)]) == (Edit(1, 3, int(partners[5])),)


@pytest.mark.parametrize(
    ("component", "layers", "message"),
    [
        ("resid_pst", None, "unknown component 'resid_pst'; allowed: resid_pre, .*did you mean 'resid_post'"),
        ("resid_post", [7], r"unknown layer of 'toy' \(it has 3\) '7'; allowed: 0, 1, 2"),
        ("module:model.layers.1.mpl", None, r"no module 'model\.layers\.1\.mpl'; did you mean 'module:model\.layers\.1\.mlp'"),
        ("module:model.layers.1.mlp", [1], "is one place; leave layers out"),
    ],
)
def test_a_place_that_does_not_exist_is_refused_by_name(subject, component, layers, message):
    with pytest.raises(SpecError, match=message):
        places(subject, component, layers)


def test_a_model_that_has_no_names_for_its_parts_is_told_to_name_modules(tmp_path):
    fields = {"model_type": "phi", **{key: value for key, value in CAUSAL["llama"].items() if key not in ("model_type",)}}
    subject = transformer(tmp_path, {**fields, "num_key_value_heads": 4})
    with pytest.raises(SpecError, match="'toy' has no hook point for resid_pre; name its modules: module:PATH"):
        places(subject, "resid_pre")
    patcher = some_patcher(subject, "module:model.layers.1")
    assert_as_by_hand(patcher, every_patch(patcher))


def test_a_metric_whose_token_a_pair_lacks_is_refused_by_name(subject):
    pairs = random_pairs(subject.vocab, (6, 6))
    pairs[1] = pairs[1].model_copy(update={"wrong": None})
    known = tokenise(pairs, subject)
    with pytest.raises(SpecError, match=r"logit_diff needs the wrong token, and pair '1' has none; .*\(kl, l2, cosine\)"):
        Patcher(subject, known, places(subject, "resid_pre"), LOGIT_DIFF)
    assert np.isfinite(Patcher(subject, known, places(subject, "resid_pre"), MetricRegistry().get("prob")).m_base).all()
