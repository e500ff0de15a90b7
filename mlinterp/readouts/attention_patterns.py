"""Attention patterns of every head, `[batch, head, query, key]`, wherever a subject keeps them.

A Hugging Face model computes them for itself once its attention is set to `eager` (faster kernels never hold them), query heads one by
one also where several share their keys. A project's own model declares a hook point `blocks.N.head.H.pattern` for each head, whose
activation is `[batch, query, key]`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mlinterp.determinism import torch_stream
from mlinterp.errors import SpecError
from mlinterp.readouts.reading import states_of
from mlinterp.subjects.base import Batch, Subject
from mlinterp.subjects.huggingface import HuggingFaceSubject

_PATTERN = re.compile(r"blocks\.(\d+)\.head\.(\d+)\.pattern")


@contextmanager
def attention_of(subject: Subject) -> Iterator[Attention]:
    """Yield what reads a subject's patterns; its way of computing attention is as before afterwards.

    Raises SpecError, naming it, for a subject that has none to read, and for one that reads both ways.
    """
    if not isinstance(subject, HuggingFaceSubject):
        yield Attention(subject, _declared(subject))
        return
    if subject.masked:
        raise SpecError(f"'{subject.name}' reads both ways", field="subject", allowed="a model that reads from left to right")
    model: Any = subject.model
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield Attention(subject, {})
    finally:
        model.set_attn_implementation(before)


class Attention:
    """Reads patterns. Made by `attention_of`.

    Args:
        subject: the model.
        sites: hook point of each head by (layer, head); empty where the model itself gives its patterns.
    """

    def __init__(self, subject: Subject, sites: Mapping[tuple[int, int], str]) -> None:
        self.subject, self.sites = subject, sites

    @torch.no_grad()
    def patterns(self, batch: Batch) -> dict[int, Tensor]:
        """Return each layer's patterns, float32 `[batch, head, query, key]`."""
        if self.sites:
            states, _ = states_of(self.subject, batch, list(self.sites.values()))
            layers = sorted({layer for layer, _ in self.sites})
            return {
                layer: torch.stack([states[site].float() for (at, _), site in sorted(self.sites.items()) if at == layer], dim=1)
                for layer in layers
            }
        assert isinstance(self.subject, HuggingFaceSubject)
        model: Any = self.subject.model.eval()
        output = model(**self.subject.arguments(batch), output_attentions=True)
        given, layers = output.attentions or (), self.subject.architecture.get_text_config().num_hidden_layers
        if len(given) != layers or any(each is None for each in given):
            why = f"'{self.subject.name}' gives the attention patterns of {sum(each is not None for each in given)} of its {layers} layers"
            raise SpecError(why, field="subject", allowed="a model whose every layer is attention")
        return {layer: pattern.float() for layer, pattern in enumerate(given)}


def _declared(subject: Subject) -> dict[tuple[int, int], str]:
    found = {(int(match[1]), int(match[2])): site for site in subject.sites if (match := _PATTERN.fullmatch(site))}
    if not found:
        why = f"'{subject.name}' ({subject.kind}) declares no attention patterns"
        raise SpecError(why, field="subject", allowed="a hook point blocks.N.head.H.pattern for each head, [batch, query, key]")
    return found


def sliding_windows(subject: Subject) -> dict[int, int]:
    """Return the window, in tokens, of every layer that attends no further back than that."""
    if not isinstance(subject, HuggingFaceSubject):
        return {}
    config = subject.architecture.get_text_config()
    window = getattr(config, "sliding_window", None)
    if window is None:
        return {}
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    return {layer: int(window) for layer, kind in enumerate(kinds) if kind == "sliding_attention"}


@contextmanager
def shuffled_weights(model: nn.Module, seed: int, draw: int = 0) -> Iterator[None]:
    """Shuffle the entries of every weight matrix while the block lasts: a model with the same weights in no order.

    Vectors (biases, the weights of norms) stay as they are. The model is as before afterwards, to the bit.
    """
    matrices = [(name, parameter) for name, parameter in model.named_parameters() if parameter.ndim >= 2]
    kept = [parameter.detach().clone() for _, parameter in matrices]
    try:
        with torch.no_grad():
            for name, parameter in matrices:
                order = torch.randperm(parameter.numel(), generator=torch_stream(seed, "shuffled weights", draw, name)).to(parameter.device)
                parameter.copy_(parameter.flatten()[order].view_as(parameter))
        yield
    finally:
        with torch.no_grad():
            for (_, parameter), before in zip(matrices, kept, strict=True):
                parameter.copy_(before)
