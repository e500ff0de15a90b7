"""Where the standard hook points of each architecture lie, as places in its `transformers` implementation.

`blocks.N.resid_pre`, `attn_out`, `resid_mid`, `mlp_out` and `resid_post` name the residual stream before block N, what attention
adds, the stream between, what the MLP adds, and the stream after. In a pre-norm block

    resid_mid = resid_pre + attn_out,    resid_post = resid_mid + mlp_out,

with `attn_out` and `mlp_out` taken after a norm on the branch where there is one (Gemma 2 and 3), since that is what reaches the
stream. `attn_z` and `mlp_post` are what the output projections of attention and MLP read: the results of the query heads side by
side, and the MLP's neurons. With parallel residuals (GPT-NeoX) both branches read `resid_pre`, resid_post = resid_pre + attn_out +
mlp_out, and there is no `resid_mid`. BERT normalises the stream itself: resid_mid = LN(resid_pre + attn_out), resid_post =
LN(resid_mid + mlp_out).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

Side = Literal["input", "output", "stream"]


class HookPoint(NamedTuple):
    """A place in a model where one activation passes.

    `input` and `output` are what a module takes and returns. `stream` is the tensor a module takes while other readers share it:
    the stream that a second layer norm reads also goes past it into the residual sum, so an edit is written into that tensor
    itself and reaches every reader.
    """

    module: str
    """Path below the model, as `named_modules` spells it."""
    side: Side = "output"
    element: int = 0
    """Which element, where the module takes or returns several."""


class Layout(NamedTuple):
    """One architecture's blocks; the points' module paths are below a block, and "" is the block itself."""

    blocks: str
    points: Mapping[str, HookPoint]


def _layout(blocks: str, attn_out: str, resid_mid: HookPoint, mlp_out: str, *, attn_z: str, mlp_post: str) -> Layout:
    points = {
        "resid_pre": HookPoint("", "input"),
        "attn_z": HookPoint(attn_z, "input"),
        "attn_out": HookPoint(attn_out),
        "resid_mid": resid_mid,
        "mlp_post": HookPoint(mlp_post, "input"),
        "mlp_out": HookPoint(mlp_out),
        "resid_post": HookPoint(""),
    }
    return Layout(blocks, points)


_PROJECTIONS = {"attn_z": "self_attn.o_proj", "mlp_post": "mlp.down_proj"}
"""Output projections of Llama and all that are built like it."""


def _llama(blocks: str = "model.layers") -> Layout:
    return _layout(blocks, "self_attn", HookPoint("post_attention_layernorm", "stream"), "mlp", **_PROJECTIONS)


def _gemma2(blocks: str = "model.layers") -> Layout:
    mid = HookPoint("pre_feedforward_layernorm", "stream")
    return _layout(blocks, "post_attention_layernorm", mid, "post_feedforward_layernorm", **_PROJECTIONS)


LAYOUTS: Mapping[str, Layout] = {
    "gpt2": _layout("transformer.h", "attn", HookPoint("ln_2", "stream"), "mlp", attn_z="attn.c_proj", mlp_post="mlp.c_proj"),
    "llama": _llama(),
    "qwen2": _llama(),
    "qwen3": _llama(),
    "gemma": _llama(),
    "gemma2": _gemma2(),
    "gemma3_text": _gemma2(),
    "gemma3": _gemma2("model.language_model.layers"),
    "gpt_neox": _layout(
        "gpt_neox.layers",
        "attention",
        HookPoint("post_attention_layernorm", "stream"),
        "mlp",
        attn_z="attention.dense",
        mlp_post="mlp.dense_4h_to_h",
    ),
    "bert": _layout(
        "bert.encoder.layer",
        "attention.output.dense",
        HookPoint("attention.output"),
        "output.dense",
        attn_z="attention.output.dense",
        mlp_post="output.dense",
    ),
}
"""Standard hook points by `model_type`; every other architecture is hooked by module path."""


def standard_hook_points(config: Any) -> dict[str, HookPoint]:
    """Return the hook points named `blocks.N.*` of a `transformers` configuration, empty where the architecture has no table."""
    layout = LAYOUTS.get(config.model_type)
    if layout is None:
        return {}
    names = [name for name in layout.points if not (name == "resid_mid" and getattr(config, "use_parallel_residual", False))]
    found = {}
    for block in range(config.get_text_config().num_hidden_layers):
        for name in names:
            point = layout.points[name]
            path = f"{layout.blocks}.{block}" + (f".{point.module}" if point.module else "")
            found[f"blocks.{block}.{name}"] = point._replace(module=path)
    return found
