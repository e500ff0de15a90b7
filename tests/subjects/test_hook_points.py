"""Every architecture's standard hook points, checked against what `transformers` itself computes and against rewritten weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from prompts import BERT, CAUSAL
from torch import Tensor

from mlinterp.errors import SpecError
from mlinterp.subjects.base import Address, Batch
from mlinterp.subjects.huggingface import HuggingFaceSubject, build
from mlinterp.subjects.huggingface_config import HuggingFaceConfig

ARCHITECTURES: dict[str, dict[str, Any]] = {**CAUSAL, "bert": BERT}
SERIAL = [name for name in ARCHITECTURES if name != "gpt_neox parallel"]
PRE_NORM = [name for name in SERIAL if name != "bert"]
INIT = {"initializer_range": 0.3}
"""Weights large enough that attention attends to something."""


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, HuggingFaceSubject]:
    root = tmp_path_factory.mktemp("project")
    (root / "text").mkdir()
    for number in range(6):
        (root / "text" / f"{number}.py").write_text("".join(f"value_{i} = ({i}, [{number}])\n" for i in range(20)))
    return {name: make(root, fields) for name, fields in ARCHITECTURES.items()}


def make(root: Path, fields: dict[str, Any], **rest: Any) -> HuggingFaceSubject:
    data = {"kind": "text", "root": "text", "context": 12, "tokenizer": {"train_bpe": {"vocab_size": 270}}}
    return build("toy", HuggingFaceConfig.model_validate({"source": {"config": {**INIT, **fields}}, "data": data, **rest}), root)


def batch_of(subject: HuggingFaceSubject, n: int = 3, length: int = 12) -> Batch:
    inputs = torch.randint(2, subject.vocab, (n, length), generator=torch.Generator().manual_seed(0))
    return Batch(tuple(map(str, range(n))), inputs, inputs, torch.ones_like(inputs, dtype=torch.bool))


@torch.no_grad()
def read(subject: HuggingFaceSubject, batch: Batch, sites: Any = None) -> tuple[dict[str, Tensor], Tensor]:
    seen: dict[str, Tensor] = {}

    def tap(address: Address, h: Tensor) -> Tensor:
        seen[address.site] = h.clone()
        return h

    outputs = subject.forward(batch, tap, subject.sites if sites is None else sites)
    assert outputs is not None
    return seen, outputs.logits


@torch.no_grad()
def edit(subject: HuggingFaceSubject, batch: Batch, changes: dict[str, Any]) -> Tensor:
    outputs = subject.forward(batch, lambda address, h: changes[address.site](h), changes)
    assert outputs is not None
    return outputs.logits


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_sites_are_the_standard_names_in_order_of_evaluation(subjects, name):
    points = ["resid_pre", "attn_z", "attn_out", "resid_mid", "mlp_post", "mlp_out", "resid_post"]
    if name == "gpt_neox parallel":
        points.remove("resid_mid")
    assert subjects[name].sites == tuple(f"blocks.{block}.{point}" for block in range(3) for point in points)
    neurons = 64 if name == "gpt2" else 24
    assert all(subjects[name].width(site) == (neurons if site.endswith("mlp_post") else 16) for site in subjects[name].sites)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_output_projections_make_what_the_branches_write_of_heads_and_neurons(subjects, name):
    subject = subjects[name]
    seen, _ = read(subject, batch_of(subject))
    for read_at, written_at in (("attn_z", "attn_out"), ("mlp_post", "mlp_out")):
        site = f"blocks.1.{read_at}"
        projection = subject.model.get_submodule(subject.points[site].module)
        with torch.no_grad():
            written = projection(seen[site])
            if name in ("gemma2", "gemma3_text"):
                block = subject.model.get_submodule(subject.points["blocks.1.resid_post"].module)
                written = (block.post_attention_layernorm if read_at == "attn_z" else block.post_feedforward_layernorm)(written)
        assert torch.equal(written, seen[f"blocks.1.{written_at}"])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_resid_post_is_hidden_states_and_tracing_leaves_the_logits_alone_bit_for_bit(subjects, name):
    subject = subjects[name]
    batch = batch_of(subject)
    with torch.no_grad():
        reference = subject.model(input_ids=batch.inputs, attention_mask=batch.mask.long(), output_hidden_states=True)
    seen, logits = read(subject, batch)
    assert torch.equal(logits, reference.logits)
    for block in range(3):
        assert torch.equal(seen[f"blocks.{block}.resid_pre"], reference.hidden_states[block])
    for block in range(2):
        assert torch.equal(seen[f"blocks.{block}.resid_post"], reference.hidden_states[block + 1])
    last = seen["blocks.2.resid_post"]
    norms = {"gpt2": "transformer.ln_f", "gpt_neox": "gpt_neox.final_layer_norm", "gpt_neox parallel": "gpt_neox.final_layer_norm"}
    final = torch.nn.Identity() if name == "bert" else subject.model.get_submodule(norms.get(name, "model.norm"))
    with torch.no_grad():
        assert torch.equal(final(last), reference.hidden_states[3])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_parts_add_up_to_the_stream(subjects, name):
    seen, _ = read(subjects[name], batch_of(subjects[name]))
    at = {
        point: seen[f"blocks.1.{point}"]
        for point in ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
        if f"blocks.1.{point}" in seen
    }
    if name == "gpt_neox parallel":
        assert torch.equal(at["mlp_out"] + at["attn_out"] + at["resid_pre"], at["resid_post"])
    elif name == "bert":
        block = subjects[name].model.get_submodule("bert.encoder.layer.1")
        with torch.no_grad():
            assert torch.equal(block.attention.output.LayerNorm(at["attn_out"] + at["resid_pre"]), at["resid_mid"])
            assert torch.equal(block.output.LayerNorm(at["mlp_out"] + at["resid_mid"]), at["resid_post"])
    else:
        assert torch.equal(at["resid_pre"] + at["attn_out"], at["resid_mid"])
        assert torch.equal(at["resid_mid"] + at["mlp_out"], at["resid_post"])


ZEROED = {
    "gpt2": ("transformer.h.1.attn.c_proj", "transformer.h.1.mlp.c_proj"),
    "gpt_neox": ("gpt_neox.layers.1.attention.dense", "gpt_neox.layers.1.mlp.dense_4h_to_h"),
    "bert": ("bert.encoder.layer.1.attention.output.dense", "bert.encoder.layer.1.output.dense"),
}
ZEROED["gpt_neox parallel"] = ZEROED["gpt_neox"]


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("branch", [0, 1], ids=["attn_out", "mlp_out"])
def test_zeroing_a_branch_equals_a_model_whose_branch_writes_zero(subjects, name, branch):
    subject = subjects[name]
    batch = batch_of(subject)
    hooked = edit(subject, batch, {f"blocks.1.{('attn_out', 'mlp_out')[branch]}": torch.zeros_like})
    path = ZEROED.get(name, ("model.layers.1.self_attn.o_proj", "model.layers.1.mlp.down_proj"))[branch]
    module = subject.model.get_submodule(path)
    kept = {key: value.clone() for key, value in module.state_dict().items()}
    try:
        for parameter in module.parameters():
            parameter.data.zero_()
        _, rewritten = read(subject, batch, ())
    finally:
        module.load_state_dict(kept)
    assert not torch.equal(hooked, read(subject, batch, ())[1])
    assert torch.equal(hooked, rewritten)


@pytest.mark.parametrize("name", SERIAL)
def test_an_edit_of_resid_mid_reaches_the_mlp_and_the_sum_behind_it(subjects, name):
    subject = subjects[name]
    batch, v = batch_of(subject), torch.randn(16, generator=torch.Generator().manual_seed(1))
    before, _ = read(subject, batch)
    changes = {"blocks.1.resid_mid": lambda h: h + v}
    after: dict[str, Tensor] = {}

    def tap(address: Address, h: Tensor) -> Tensor:
        after[address.site] = h.clone()
        return changes.get(address.site, lambda h: h)(h)

    with torch.no_grad():
        subject.forward(batch, tap, subject.sites)
        mid = before["blocks.1.resid_mid"] + v
        block = subject.model.get_submodule(f"{subject.points['blocks.1.resid_post'].module}")
        expected = _second_half(name, block, mid)
    assert torch.equal(after["blocks.1.resid_post"], expected)
    assert torch.equal(after["blocks.1.attn_out"], before["blocks.1.attn_out"])


def _second_half(name: str, block: Any, mid: Tensor) -> Tensor:
    """What follows resid_mid in a block, by its definition."""
    if name == "bert":
        return block.output(block.intermediate(mid), mid)
    if name in ("gemma2", "gemma3_text"):
        return mid + block.post_feedforward_layernorm(block.mlp(block.pre_feedforward_layernorm(mid)))
    norm = block.ln_2 if name == "gpt2" else block.post_attention_layernorm
    return mid + block.mlp(norm(mid))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_adding_to_resid_post_is_adding_to_the_next_resid_pre_and_changes_what_follows(subjects, name):
    subject = subjects[name]
    batch, v = batch_of(subject), torch.randn(16, generator=torch.Generator().manual_seed(1))
    at_post = edit(subject, batch, {"blocks.0.resid_post": lambda h: h + v})
    assert torch.equal(at_post, edit(subject, batch, {"blocks.1.resid_pre": lambda h: h + v}))
    assert not torch.equal(at_post, read(subject, batch, ())[1])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_replacing_the_last_resid_post_gives_the_unembedding_of_the_replacement(subjects, name):
    subject = subjects[name]
    batch = batch_of(subject)
    h = torch.randn(3, 12, 16, generator=torch.Generator().manual_seed(1))
    model: Any = subject.model
    with torch.no_grad():
        if name == "gpt2":
            expected = model.lm_head(model.transformer.ln_f(h))
        elif name.startswith("gpt_neox"):
            expected = model.get_output_embeddings()(model.gpt_neox.final_layer_norm(h))
        elif name == "bert":
            expected = model.cls(h)
        else:
            expected = model.lm_head(model.model.norm(h))
            if name == "gemma2":
                expected = torch.tanh(expected / 30.0) * 30.0
    assert torch.equal(edit(subject, batch, {"blocks.2.resid_post": lambda _: h}), expected)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_left_padding_right_padding_and_none_agree_on_real_tokens(subjects, name):
    subject = subjects[name]
    tokens = batch_of(subject, n=1, length=7).inputs
    pad, other = torch.zeros(1, 5, dtype=torch.long), batch_of(subject, n=1, length=12).inputs
    full, real = torch.ones(1, 12, dtype=torch.bool), torch.tensor([[True] * 7 + [False] * 5])
    results = {}
    for side, inputs, mask in (
        ("left", torch.cat([torch.cat([pad, tokens], 1), other]), torch.cat([real.flip(1), full])),
        ("right", torch.cat([torch.cat([tokens, pad], 1), other]), torch.cat([real, full])),
        ("none", tokens, torch.ones_like(tokens, dtype=torch.bool)),
    ):
        seen, logits = read(subject, Batch(("a", "b"), inputs, inputs, mask))
        results[side] = {key: value[0, mask[0]] for key, value in {**seen, "logits": logits}.items()}
        assert all(bool(torch.isfinite(value).all()) for value in seen.values())
    for key, value in results["none"].items():
        for side in ("left", "right"):
            torch.testing.assert_close(results[side][key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_bfloat16_reads_the_same_bits_as_hidden_states(tmp_path, subjects, name):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.py").write_text("x = (1, 2)\n" * 200)
    subject = make(tmp_path, ARCHITECTURES[name], dtype="bfloat16")
    batch = batch_of(subject)
    with torch.no_grad():
        reference = subject.model(input_ids=batch.inputs, attention_mask=batch.mask.long(), output_hidden_states=True)
    seen, logits = read(subject, batch)
    assert seen["blocks.1.resid_post"].dtype == torch.bfloat16
    assert torch.equal(seen["blocks.1.resid_post"], reference.hidden_states[2])
    assert torch.equal(logits, reference.logits)


def test_a_parallel_block_has_no_resid_mid_and_says_what_it_has(subjects):
    with pytest.raises(SpecError, match=r"'blocks\.1\.resid_mid' is not in 'toy'.*blocks\.0\.resid_pre.*did you mean 'blocks\.1\."):
        subjects["gpt_neox parallel"].width("blocks.1.resid_mid")


def test_a_block_beyond_the_last_is_refused(subjects):
    with pytest.raises(SpecError, match=r"'blocks\.3\.resid_post' is not in 'toy'"):
        subjects["gpt2"].addresses(["blocks.3.resid_post"])


def test_other_architectures_are_hooked_by_module_path_and_take_padding_on_the_right(tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.py").write_text("x = (1, 2)\n" * 200)
    fields = {"model_type": "gptj", "n_embd": 16, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 32}
    subject = make(tmp_path, fields)
    batch = batch_of(subject)
    assert subject.sites == ()
    with torch.no_grad():
        reference = subject.model(input_ids=batch.inputs, output_hidden_states=True)
    seen, _ = read(subject, batch, ["module:transformer.h.0"])
    assert torch.equal(seen["module:transformer.h.0"], reference.hidden_states[1])
    mask = batch.mask.clone()
    mask[0, :3] = False
    with pytest.raises(SpecError, match="padding on the right only"):
        subject.forward(Batch(batch.ids, batch.inputs, batch.inputs, mask))


def test_a_gradient_flows_through_an_edit_of_resid_mid_to_the_tensor_that_the_tap_saw(subjects):
    subject = subjects["gpt2"]
    batch = batch_of(subject)
    seen: dict[str, Tensor] = {}

    def tap(address: Address, h: Tensor) -> Tensor:
        seen[address.site] = h if h.requires_grad else h.requires_grad_()
        return torch.sin(h) if address.site == "blocks.1.resid_mid" else h

    outputs = subject.forward(batch, tap, ["blocks.0.resid_post", "blocks.1.resid_mid"])
    assert outputs is not None
    slope = torch.autograd.grad(outputs.logits[0, -1, 5], seen["blocks.1.resid_mid"])[0]
    v = torch.zeros(3, 12, 16)
    v[0, -1] = torch.randn(16, generator=torch.Generator().manual_seed(1))
    up, down = (edit(subject, batch, {"blocks.1.resid_mid": lambda h, s=s: torch.sin(h + s * 1e-2 * v)})[0, -1, 5] for s in (1, -1))
    torch.testing.assert_close((up - down) / 2e-2, (slope * v).sum(), rtol=2e-2, atol=1e-3)
