"""Hugging Face subjects from folder, hub cache and configuration, and how they are trained."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from pydantic import ValidationError
from torch import nn

from mlinterp.errors import EnvironmentFault, SpecError, UnsafeError
from mlinterp.progress import Silent
from mlinterp.subjects.base import IGNORED, Address
from mlinterp.subjects.fit import SubjectFit, load_weights, save_subject
from mlinterp.subjects.huggingface import HuggingFaceSubject, build
from mlinterp.subjects.huggingface_config import HuggingFaceConfig, PromptData
from mlinterp.subjects.text import Bpe, train_bpe
from mlinterp.trainer import fit

GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32}
TEXT = {
    "kind": "text",
    "root": "text",
    "context": 16,
    "tokenizer": {"train_bpe": {"vocab_size": 280, "isolate": "()[]"}},
    "validation": 0.2,
    "test": 0.2,
}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    (folder / "text").mkdir()
    for number in range(30):
        (folder / "text" / f"{number}.py").write_text("".join(f"call_{i} = f({i}, [g({number}), {i}])\n" for i in range(25)))
    (folder / "prompts.jsonl").write_text('{"text": "f(1, [2"}\n{"id": "longer", "text": "g(f(1, [2, 3]), 4)"}\n')
    return folder


@pytest.fixture(scope="module")
def subject(root: Path) -> HuggingFaceSubject:
    return make(root)


@pytest.fixture(scope="module")
def folder(root: Path) -> Path:
    """A model folder as `save_pretrained` leaves it."""
    return save_model(root / "model", transformers.AutoConfig.for_model(**GPT2, vocab_size=280))


def save_model(folder: Path, architecture: Any) -> Path:
    torch.manual_seed(3)
    transformers.AutoModelForCausalLM.from_config(architecture).save_pretrained(folder)
    tokenizer = train_bpe(["f(1, [2, 3]) = g\n" * 9], Bpe(vocab_size=280))
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder


def make(root: Path, source: dict[str, Any] | None = None, data: dict[str, Any] | None = None, **rest: Any) -> HuggingFaceSubject:
    declared = {"source": source or {"config": GPT2}, "data": data or TEXT, **rest}
    return build("toy", HuggingFaceConfig.model_validate(declared), root)


def n_hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_the_forward_pass_stops_after_the_last_address(subject):
    evaluated = []
    handle = subject.model.get_submodule("transformer.h.1").register_forward_pre_hook(lambda *_: evaluated.append(1))
    try:
        seen: list[str] = []

        def tap(address: Address, h: torch.Tensor) -> torch.Tensor:
            seen.append(address.site)
            return h

        batch = subject.examples("train", 2).take([0, 1])
        sites = ["blocks.0.resid_post", "blocks.0.attn_out"]
        assert subject.forward(batch, tap, sites, until=Address("blocks.0.resid_post")) is None
        assert seen == ["blocks.0.attn_out", "blocks.0.resid_post"]
        assert evaluated == []
        assert subject.forward(batch, tap, sites) is not None
        assert evaluated == [1]
    finally:
        handle.remove()


@pytest.mark.parametrize("until", [None, Address("blocks.0.resid_post")])
def test_hooks_are_gone_afterwards_also_when_the_tap_raises(subject, until):
    batch = subject.examples("train", 2).take([0])
    before = n_hooks(subject.model)

    def broken(address: Address, h: torch.Tensor) -> torch.Tensor:
        assert n_hooks(subject.model) > before
        raise ZeroDivisionError(address.site)

    with pytest.raises(ZeroDivisionError):
        subject.forward(batch, broken, ["blocks.0.attn_out"])
    subject.forward(batch, lambda _, h: h, subject.sites, until=until)
    with pytest.raises(SpecError):
        subject.forward(batch, lambda _, h: h, ["blocks.0.attn_out", "module:nowhere"])
    assert n_hooks(subject.model) == before


def test_every_module_is_a_site_by_its_path(subject):
    sites = ["blocks.1.resid_post", "module:transformer.h.0.mlp.c_fc", "module:transformer.h.0.attn"]
    assert subject.width("module:transformer.h.0.mlp.c_fc") == 128
    assert [address.site for address in subject.addresses(sites)] == [sites[2], sites[1], sites[0]]
    with pytest.raises(SpecError, match=r"no module 'transformer\.h\.0\.mpl'; did you mean 'module:transformer\.h\.0\.mlp'"):
        subject.width("module:transformer.h.0.mpl")
    with pytest.raises(SpecError, match="'module:transformer' holds a BaseModelOutput"):
        subject.width("module:transformer")


def test_examples_are_a_pure_function_of_their_arguments_and_splits_share_no_file(subject):
    one, again, other = (subject.examples("train", 8, seed) for seed in (0, 0, 1))
    assert one.ids == again.ids
    assert torch.equal(one.inputs, again.inputs)
    assert one.ids != other.ids
    files = [{name.rpartition(":")[0] for name in subject.examples(split, 10_000).ids} for split in ("train", "validation", "test")]
    assert all(files)
    assert sum(map(len, files)) == len(files[0] | files[1] | files[2]) == 30


def test_targets_are_the_next_tokens_and_the_last_position_is_not_scored(subject):
    examples = subject.examples("test", 5)
    assert torch.equal(examples.targets[:, :-1], examples.inputs[:, 1:])
    assert bool((examples.targets[:, -1] == IGNORED).all())
    assert bool(examples.mask.all())


def test_score_next_scores_exactly_the_positions_before_the_named_tokens(subject):
    examples = subject.examples("test", 20, score_next=[")", "]"])
    batch = examples.take(range(len(examples)))
    assert bool(batch.scored.any(dim=1).all())
    for row, col in ((batch.inputs >= 0) & (torch.arange(16) < 15)).nonzero().tolist():
        following = subject.token_text(int(batch.inputs[row, col + 1])).strip()
        assert bool(batch.scored[row, col]) == (following in (")", "]"))
    with pytest.raises(SpecError, match=r"no token reads '\)nope'"):
        subject.examples("test", 2, score_next=[")nope"])
    with pytest.raises(SpecError, match=r"unknown selection 'score_nxt'.*did you mean 'score_next'"):
        subject.examples("test", 2, score_nxt=[")"])


def test_the_same_declaration_builds_the_same_subject_and_another_seed_another(root, subject):
    assert make(root).digest() == subject.digest()
    assert make(root, init_seed=1).digest() != subject.digest()
    json.dumps(subject.config, allow_nan=False)


def test_parameters_are_frozen_until_a_tap_asks_for_a_gradient(subject):
    batch = subject.examples("test", 2).take([0, 1])
    outputs = subject.forward(batch)
    assert outputs is not None
    assert not outputs.logits.requires_grad
    watched = subject.forward(batch, lambda _, h: h.requires_grad_(), ["blocks.1.resid_pre"])
    assert watched is not None
    assert watched.logits.requires_grad


def test_no_key_value_cache_is_kept(subject):
    batch = subject.examples("test", 1).take([0])
    with torch.no_grad():
        assert subject.model(input_ids=batch.inputs).past_key_values is None


def test_a_model_folder_gives_the_weights_and_tokenizer_that_lie_there(root, folder):
    subject = make(root, {"path": "model"}, {"kind": "text", "root": "text", "context": 16})
    assert torch.equal(
        subject.model.state_dict()["transformer.wte.weight"],
        transformers.AutoModelForCausalLM.from_pretrained(folder).transformer.wte.weight,
    )
    batch = subject.examples("train", 1).take([0])
    name, _, _ = batch.ids[0].rpartition(":")
    assert "".join(map(subject.token_text, batch.inputs[0].tolist())) in (root / "text" / name).read_text()
    assert subject.sites[0] == "blocks.0.resid_pre"


def test_prompts_are_padded_on_the_right_and_belong_to_every_split(root, folder):
    subject = make(root, {"path": str(folder)}, {"kind": "prompts", "file": "prompts.jsonl"})
    examples = subject.examples("test", 10)
    assert examples.ids == ("prompts.jsonl:1", "longer")
    assert "".join(subject.token_text(int(token)) for token in examples.inputs[0][examples.mask[0]]) == "f(1, [2"
    assert examples.take([0]).scored.sum() == examples.mask[0].sum() - 1
    with pytest.raises(SpecError, match="hold out nothing"):
        subject.objective({}, 0)


def test_the_text_tower_of_a_model_that_also_sees_is_hooked(root):
    text = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 4,
        "vocab_size": 280,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    save_model(root / "gemma3", transformers.AutoConfig.for_model("gemma3", text_config=text, vision_config=vision))
    subject = make(root, {"path": "gemma3"}, {"kind": "prompts", "file": "prompts.jsonl"})
    batch = subject.examples("test", 2).take([0, 1])
    seen = {}

    def tap(address: Address, h: torch.Tensor) -> torch.Tensor:
        seen[address.site] = h
        return h

    with torch.no_grad():
        reference = subject.model(input_ids=batch.inputs, attention_mask=batch.mask.long(), output_hidden_states=True)
        outputs = subject.forward(batch, tap, subject.sites)
    assert torch.equal(seen["blocks.0.resid_post"], reference.hidden_states[1])
    assert torch.equal(outputs.logits, reference.logits)


def test_a_pinned_model_in_the_hub_cache_loads_offline_and_a_missing_one_is_named(root, folder, tmp_path):
    snapshot = tmp_path / "hub" / "models--someone--tiny" / "snapshots" / COMMIT
    shutil.copytree(folder, snapshot)
    program = """
import sys
from pathlib import Path
from mlinterp.errors import EnvironmentFault
from mlinterp.subjects.huggingface import build
from mlinterp.subjects.huggingface_config import HuggingFaceConfig
for name in ("someone/tiny", "someone/absent"):
    source = {"hub": {"name": name, "revision": sys.argv[2]}}
    config = HuggingFaceConfig.model_validate({"source": source, "data": {"kind": "prompts", "file": "prompts.jsonl"}})
    try:
        print(build("toy", config, Path(sys.argv[1])).vocab)
    except EnvironmentFault as error:
        print(error)
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", program, str(root), COMMIT], env=environment, capture_output=True, text=True, check=True)
    loaded, missing = done.stdout.splitlines()
    assert loaded == "280"
    assert missing.startswith("model 'someone/absent' at 0123456789ab is not there and cannot be fetched: ")


def test_a_missing_folder_is_an_environment_fault(root):
    with pytest.raises(EnvironmentFault, match="'no/such' does not exist"):
        make(root, {"path": "no/such"}, {"kind": "prompts", "file": "prompts.jsonl"})


def test_pickled_weights_and_custom_code_are_refused(root, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").rename(tmp_path / "pickled" / "pytorch_model.bin")
    data = {"kind": "prompts", "file": "prompts.jsonl"}
    with pytest.raises(UnsafeError, match=r"holds no \*\.safetensors"):
        make(root, {"path": str(tmp_path / "pickled")}, data)
    shutil.copytree(folder, tmp_path / "coded")
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}}
    (tmp_path / "coded" / "config.json").write_text(json.dumps(config))
    (tmp_path / "coded" / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(UnsafeError, match="needs code of its own"):
        make(root, {"path": str(tmp_path / "coded")}, data)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"model_type": "gtp2"}, "unknown model_type 'gtp2'; did you mean 'gpt2'"),
        ({**GPT2, "n_layrs": 3}, "unknown gpt2 setting 'n_layrs'.*did you mean 'n_layer"),
        ({**GPT2, "n_positions": 8}, "contexts of 16 tokens; this model reads at most 8"),
        ({**GPT2, "vocab_size": 100}, "vocab_size 100; the tokenizer has 280 tokens"),
        ({"model_type": "t5"}, "'t5' has an encoder and a decoder"),
        ({"model_type": "vit"}, "'vit' is no language model|unknown vit setting 'vocab_size'"),
    ],
)
def test_a_wrong_configuration_is_refused_by_name(root, source, message):
    with pytest.raises(SpecError, match=message):
        make(root, {"config": source})


@pytest.mark.parametrize(
    "declared",
    [
        {"source": {}, "data": TEXT},
        {"source": {"path": "a", "config": GPT2}, "data": TEXT},
        {"source": {"hub": {"name": "gpt2", "revision": "main"}}, "data": {"kind": "prompts", "file": "p.jsonl"}},
        {"source": {"path": "a"}, "data": TEXT},
        {"source": {"config": GPT2}, "data": {"kind": "text", "root": "text"}},
        {"source": {"config": GPT2}, "data": {**TEXT, "include": "../*.py"}},
        {"source": {"config": GPT2}, "data": TEXT, "trust_remote_code": True},
    ],
)
def test_a_contradictory_declaration_is_refused_before_anything_is_read(declared):
    with pytest.raises(ValidationError):
        HuggingFaceConfig.model_validate(declared)


def test_training_lowers_the_held_out_loss_and_the_weights_come_back_from_disk(root, tmp_path):
    subject = make(root)
    objective = subject.objective({"lr": 1e-2, "batch_size": 8, "warmup_steps": 5}, seed=0)
    start = objective.evaluate()
    assert abs(start["ce_loss"] - math.log(subject.vocab)) < 0.5
    assert start["perplexity"] == pytest.approx(math.exp(start["ce_loss"]))
    module = SubjectFit(subject, objective, total_steps=40, eval_every=40)
    fit(module, tmp_path / "checkpoints", Silent(), checkpoint_every=40)
    module.finish()
    end = objective.evaluate()
    assert end["ce_loss"] < 0.6 * start["ce_loss"]
    assert end["token_acc"] > 0.4
    save_subject(subject, tmp_path)
    assert load_weights(make(root), tmp_path).digest() == subject.digest()


def test_the_loss_is_the_mean_negative_log_probability_of_scored_tokens(root):
    subject = make(root)
    objective = subject.objective({"batch_size": 4}, seed=0)
    batch = objective.batch(3)
    with torch.no_grad():
        probabilities = subject.model(input_ids=batch.inputs).logits.double().softmax(dim=-1)
        by_hand = [-math.log(probabilities[row, col, batch.inputs[row, col + 1]]) for row in range(4) for col in range(15)]
        assert float(objective.loss(3)[0].detach()) == pytest.approx(sum(by_hand) / 60, rel=1e-5)


def test_batches_follow_from_seed_and_step_and_an_epoch_sees_each_context_once(root):
    subject = make(root)
    one, two, other = (
        subject.objective({"batch_size": 8}, 0),
        subject.objective({"batch_size": 8}, 0),
        subject.objective({"batch_size": 8}, 1),
    )
    n = len(subject.texts.splits["train"]) // 8
    epoch = [name for step in range(n) for name in one.batch(step).ids]
    assert len(set(epoch)) == len(epoch) == 8 * n
    assert two.batch(n + 1).ids == one.batch(n + 1).ids
    assert one.batch(0).ids != one.batch(n).ids
    assert one.batch(0).ids != other.batch(0).ids


def test_a_masked_model_is_asked_for_the_tokens_it_cannot_see(root):
    bert = {
        "model_type": "bert",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 16,
    }
    subject = make(root, {"config": bert})
    examples = subject.examples("test", 50)
    batch = examples.take(range(len(examples)))
    assert 0.10 < float(batch.scored.float().mean()) < 0.20
    assert {subject.token_text(token) for token in batch.inputs[batch.scored].tolist()} == {"[MASK]"}
    originals = dict(zip(subject.texts.splits["test"].ids, subject.texts.splits["test"].inputs, strict=True))
    assert torch.equal(torch.where(batch.scored, batch.targets, batch.inputs), torch.stack([originals[name] for name in batch.ids]))
    objective = subject.objective({"batch_size": 8}, 0)
    assert torch.equal(objective.batch(5).inputs, objective.batch(5).inputs)
    assert float(objective.loss(0)[0].detach()) == pytest.approx(math.log(280), abs=0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 1.0}, "unknown option 'learning_rate'"),
        ({"lr": -1.0}, r"options\.lr: .*greater than 0"),
        ({"betas": [0.9]}, r"options\.betas"),
    ],
)
def test_a_wrong_training_option_is_refused_by_name(subject, options, message):
    with pytest.raises(SpecError, match=message):
        subject.objective(options, 0)


def test_bfloat16_is_for_reading_and_not_for_training(root):
    with pytest.raises(SpecError, match="training needs dtype float32"):
        make(root, dtype="bfloat16").objective({}, 0)


def test_a_prompt_file_is_named_with_the_line_that_is_wrong(root, folder):
    (root / "bad.jsonl").write_text('{"text": "ok"}\n{"txt": "not"}\n')
    with pytest.raises(SpecError, match=r"bad\.jsonl:2: not a JSON object"):
        make(root, {"path": "model"}, {"kind": "prompts", "file": "bad.jsonl"})
    with pytest.raises(UnsafeError, match="leaves the project folder"):
        make(root, {"path": "model"}, PromptData(kind="prompts", file="../prompts.jsonl").model_dump())
