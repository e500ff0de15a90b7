"""Small random models of every architecture that is known, and experiments that only watch them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mlinterp.experiments import catalog
from mlinterp.experiments.base import Context, ResolvedInput
from mlinterp.result import ExperimentResult
from mlinterp.spec import Spec
from mlinterp.subjects.base import Subject
from mlinterp.subjects.huggingface import HuggingFaceSubject, build
from mlinterp.subjects.huggingface_config import HuggingFaceConfig

_NEOX = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": 32}
_LLAMA = {**_NEOX, "num_key_value_heads": 2, "tie_word_embeddings": False}
_GEMMA = {**_LLAMA, "head_dim": 4}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gpt2": {"model_type": "gpt2", "n_embd": 16, "n_layer": 3, "n_head": 4, "n_positions": 32},
    "llama": {"model_type": "llama", **_LLAMA},
    "qwen2": {"model_type": "qwen2", **_LLAMA},
    "qwen3": {"model_type": "qwen3", **_LLAMA, "head_dim": 8},
    "gemma": {"model_type": "gemma", **_GEMMA},
    "gemma2": {"model_type": "gemma2", **_GEMMA, "query_pre_attn_scalar": 4, "sliding_window": 4, "final_logit_softcapping": 5.0},
    "gemma3_text": {"model_type": "gemma3_text", **_GEMMA, "query_pre_attn_scalar": 4, "sliding_window": 4},
    "gpt_neox": {"model_type": "gpt_neox", **_NEOX, "use_parallel_residual": False},
    "gpt_neox parallel": {"model_type": "gpt_neox", **_NEOX, "use_parallel_residual": True},
}


def write_texts(root: Path) -> Path:
    """Write the text that subjects below `root` read."""
    (root / "text").mkdir()
    for number in range(30):
        (root / "text" / f"{number}.py").write_text("".join(f"call_{i} = f({i}, [g({number}), {i}])\n" for i in range(25)))
    return root


def language_model(
    root: Path, fields: Mapping[str, Any], dtype: str = "float32", scale: float | None = 0.3, init_seed: int = 0
) -> HuggingFaceSubject:
    """Return a subject whose every parameter is random, the norms' and biases too."""
    data = {
        "kind": "text",
        "root": "text",
        "context": 12,
        "tokenizer": {"train_bpe": {"vocab_size": 280}},
        "validation": 0.2,
        "test": 0.2,
    }
    source = {"config": {**({} if scale is None else {"initializer_range": scale}), **fields}}
    subject = build("toy", HuggingFaceConfig.model_validate({"source": source, "data": data, "dtype": dtype, "init_seed": init_seed}), root)
    generator = torch.Generator().manual_seed(5)
    for parameter in subject.model.parameters():
        if parameter.ndim == 1:
            parameter += (0.3 * torch.randn(parameter.shape, generator=generator)).to(parameter.dtype)
    return subject


def watch(
    kind: str,
    subject: Subject,
    folder: Path,
    variables: Mapping[str, Any] | None = None,
    inputs: Mapping[str, Path] | None = None,
    seed: int = 0,
) -> ExperimentResult:
    """Run an experiment type on a subject with `folder` as its work folder."""
    spec = Spec(type=kind, subject=subject.name, variables=dict(variables or {}), seed=seed)
    given = {role: ResolvedInput("latest", path, "digest") for role, path in (inputs or {}).items()}
    return catalog.find(kind).run(Context(spec, catalog.typed_variables(spec), folder, lambda: subject, given))
