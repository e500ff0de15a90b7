"""The direct way from a hook point to the logits: what a direction written there adds to each token's logit if nothing in between reads it.

A final norm is not linear, since it divides by the size of the stream. Here that size is frozen at what it is on real tokens (the mean
of 1 / size), which leaves a linear map: centre (LayerNorm only), times the norm's weights, times the frozen 1 / size, times the
unembedding. This is direct logit attribution (Elhage et al. 2021, "A mathematical framework for transformer circuits"). Blocks after
the hook point are left out, so the numbers are observational: no forward pass is run with the direction in place.

Nothing is taken on trust: the norm and the unembedding must give the model's own logits back before they are used.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from mlinterp.subjects.base import Batch

FINAL_NORM: Mapping[str, str] = {
    "gpt2": "transformer.ln_f",
    "llama": "model.norm",
    "qwen2": "model.norm",
    "qwen3": "model.norm",
    "gemma": "model.norm",
    "gemma2": "model.norm",
    "gemma3_text": "model.norm",
    "gemma3": "model.language_model.norm",
    "gpt_neox": "gpt_neox.final_layer_norm",
}
"""The norm before the unembedding, by `model_type`. BERT has none: it normalises the stream itself in every block."""

ON_STREAM = re.compile(r"blocks\.\d+\.(resid_pre|resid_mid|resid_post|attn_out|mlp_out)")
"""Hook points whose activations stand in the residual stream, or are added to it as they are."""

_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
"""Largest difference from the model's own logits, as a share of their spread."""


class Unembedding(NamedTuple):
    """A linear map from a hook point to logits.

    Attributes:
        head: the unembedding, `[vocab, d]`.
        gain: what the frozen norm multiplies each coordinate by, `[d]`; 1 where there is no norm.
        centred: whether the norm takes the mean over the coordinates away first.
        about: which approximation this is, in a sentence.
    """

    head: Tensor
    gain: Tensor | float
    centred: bool
    about: str

    def effects(self, directions: Tensor) -> Tensor:
        """Return what each of `directions [n, d]` adds to every logit, less the mean over all tokens, `[n, vocab]`.

        The mean is taken away because a number that is added to every logit changes no prediction.
        """
        moved = directions.to(self.head)
        if self.centred:
            moved = moved - moved.mean(dim=1, keepdim=True)
        logits = (moved * self.gain) @ self.head.T
        return logits - logits.mean(dim=1, keepdim=True)


class NoUnembedding(NamedTuple):
    """That there is no direct, linear way from a hook point to the logits."""

    why: str


class Norm(NamedTuple):
    """A norm as y = gain · centre(x) / size(x) + bias, with size(x) = sqrt(mean(centre(x)²) + eps)."""

    gain: Tensor
    bias: Tensor | float
    centred: bool
    eps: float

    def over(self, x: Tensor) -> Tensor:
        """Return x `[..., d]` over its size, before gain and bias."""
        return self.centre(x) / self.size(x)

    def size(self, x: Tensor) -> Tensor:
        """Return what x `[..., d]` is divided by, `[..., 1]`."""
        return (self.centre(x).square().mean(dim=-1, keepdim=True) + self.eps).sqrt()

    def centre(self, x: Tensor) -> Tensor:
        """Return x `[..., d]` less its mean, where the norm takes that away."""
        return x - x.mean(dim=-1, keepdim=True) if self.centred else x


def of_language_model(
    model: Any, site: str, batch: Batch, logits: Callable[[Batch], Tensor], model_type: str
) -> Unembedding | NoUnembedding:
    """Return the direct way from a hook point of a `transformers` language model, or why there is none.

    Args:
        model: the `transformers` model.
        site: the hook point.
        batch: real tokens, on which the norm's size is frozen.
        logits: runs the model on a batch, `[batch, pos, vocab]`.
        model_type: its architecture's name in `transformers`.
    """
    if not ON_STREAM.fullmatch(site):
        return NoUnembedding(f"{site} is not known to write to the residual stream")
    if model_type == "bert":
        return NoUnembedding("bert normalises the residual stream in every block, so nothing goes straight to the logits")
    if model_type not in FINAL_NORM:
        return NoUnembedding(f"it is not known where {model_type} has its final norm")
    module, head = model.get_submodule(FINAL_NORM[model_type]), model.get_output_embeddings()
    x, given = _at_norm(module, logits, batch)
    weight, bias = head.weight.float(), 0.0 if getattr(head, "bias", None) is None else head.bias.float()
    for norm in norm_candidates(module):
        predicted = (norm.over(x) * norm.gain + norm.bias) @ weight.T + bias
        if _agree(_capped(predicted, model.config.get_text_config()), given, head.weight.dtype):
            size = (1 / norm.size(x)).mean()
            name = "LayerNorm" if norm.centred else "RMSNorm"
            about = (
                f"Direct and linear: through the final {name}, its scale frozen at its mean over {len(x)} tokens, and the unembedding; "
                "what later blocks make of the direction is left out."
            )
            return Unembedding(weight, norm.gain * size, norm.centred, about)
    return NoUnembedding(f"the final norm and the unembedding alone do not give the logits of this {model_type}")


def _at_norm(module: nn.Module, logits: Callable[[Batch], Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
    """Return what the final norm reads at every real token, float32 `[token, d]`, and the logits there."""
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _module, args: seen.append(args[0].detach()))
    try:
        with torch.no_grad():
            given = logits(batch)
    finally:
        handle.remove()
    real = batch.mask.to(given.device)
    return seen[0][real].float(), given[real].float()


def norm_candidates(module: nn.Module) -> list[Norm]:
    """Return what a norm may be by its parameters: LayerNorm, RMSNorm, or RMSNorm that counts its weights from 1 (Gemma)."""
    weight = module.get_parameter("weight").detach().float()
    bias = next((each.detach().float() for name, each in module.named_parameters() if name == "bias"), 0.0)
    eps = next((float(getattr(module, name)) for name in ("eps", "variance_epsilon") if getattr(module, name, None) is not None), 0.0)
    return [Norm(weight, bias, True, eps), Norm(weight, bias, False, eps), Norm(1 + weight, bias, False, eps)]


def norm_of(module: nn.Module, x: Tensor) -> Norm | None:
    """Return what a norm's module computes, as it shows on x `[..., d]`; None where it is no norm that is known."""
    given = module(x).float()
    known = norm_candidates(module) if isinstance(getattr(module, "weight", None), Tensor) else []
    return next((norm for norm in known if _agree(norm.over(x.float()) * norm.gain + norm.bias, given, x.dtype)), None)


def _capped(logits: Tensor, config: Any) -> Tensor:
    """Return logits as Gemma 2 caps them; its order of tokens is that of the logits before."""
    cap = getattr(config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


def _agree(predicted: Tensor, given: Tensor, dtype: torch.dtype) -> bool:
    return float((predicted - given).abs().max()) <= _TOLERANCE.get(dtype, 1e-3) * float(given.std().clamp_min(1e-6))
