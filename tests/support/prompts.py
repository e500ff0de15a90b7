"""Small random transformers of every architecture, and prompt pairs for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mlinterp.subjects.huggingface import HuggingFaceSubject, build
from mlinterp.subjects.huggingface_config import HuggingFaceConfig
from mlinterp.subjects.pairs_declared import PromptPair

_LLAMA = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "tie_word_embeddings": False,
}
_GEMMA = {**_LLAMA, "head_dim": 4}
_NEOX = {
    key: _LLAMA[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
}
CAUSAL: dict[str, dict[str, Any]] = {
    "gpt2": {"model_type": "gpt2", "n_embd": 16, "n_layer": 3, "n_head": 4, "n_positions": 32},
    "llama": {"model_type": "llama", **_LLAMA},
    "qwen2": {"model_type": "qwen2", **_LLAMA},
    "qwen3": {"model_type": "qwen3", **_LLAMA, "head_dim": 4},
    "gemma": {"model_type": "gemma", **_GEMMA},
    "gemma2": {"model_type": "gemma2", **_GEMMA, "query_pre_attn_scalar": 4, "sliding_window": 4},
    "gemma3_text": {"model_type": "gemma3_text", **_GEMMA, "query_pre_attn_scalar": 4, "sliding_window": 4},
    "gpt_neox": {"model_type": "gpt_neox", **_NEOX, "use_parallel_residual": False},
    "gpt_neox parallel": {"model_type": "gpt_neox", **_NEOX, "use_parallel_residual": True},
}
"""Every left-to-right architecture with standard hook points, three blocks each."""

BERT = {"model_type": "bert", **_NEOX}


def transformer(root: Path, fields: dict[str, Any], **rest: Any) -> HuggingFaceSubject:
    """Build a random model whose weights are large enough that attention attends to something."""
    (root / "text").mkdir(exist_ok=True)
    for number in range(6):
        (root / "text" / f"{number}.py").write_text("".join(f"value_{i} = ({i}, [{number}])\n" for i in range(20)))
    data = {"kind": "text", "root": "text", "context": 12, "tokenizer": {"train_bpe": {"vocab_size": 270}}}
    source = {"config": {"initializer_range": 0.3, **fields}}
    return build("toy", HuggingFaceConfig.model_validate({"source": source, "data": data, **rest}), root)


def random_pairs(vocab: int, lengths: tuple[int, ...], seed: int = 0, changed: tuple[int, ...] = (2, 4)) -> list[PromptPair]:
    """Return pairs of random tokens that differ at some positions, each with an answer and a wrong answer."""
    generator = torch.Generator().manual_seed(seed)
    pairs = []
    for length in lengths:
        clean = torch.randint(2, vocab, (length,), generator=generator).tolist()
        corrupted = list(clean)
        for at in changed:
            corrupted[at] = 2 + (clean[at] + 5) % (vocab - 2)
        answer, wrong = torch.randperm(vocab, generator=generator)[:2].tolist()
        pairs.append(PromptPair(clean=clean, corrupted=corrupted, answer=answer, wrong=wrong))
    return pairs
