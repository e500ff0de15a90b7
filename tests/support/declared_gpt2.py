"""A GPT-2's weights in a network that a project might write: every head and MLP reads and writes at a declared hook point of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mlinterp.subjects.hooked import HookedSubject
from mlinterp.subjects.huggingface import HuggingFaceSubject


class _Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for name in ("q_in", "k_in", "v_in", "pattern", "out"):
            self.add_module(name, nn.Identity())


class _Block(nn.Module):
    def __init__(self, block: Any, n_heads: int) -> None:
        super().__init__()
        self.head = nn.ModuleList(_Head() for _ in range(n_heads))
        self.block, self.attn_z, self.mlp_in, self.mlp_out = block, nn.Identity(), nn.Identity(), nn.Identity()

    def forward(self, stream: Tensor) -> Tensor:
        attn, d_head = self.block.attn, stream.shape[-1] // len(self.head)
        future, results = torch.ones(2 * [stream.shape[1]], dtype=torch.bool).triu(1), []
        for number, head in enumerate(self.head):
            made = []
            for kind, read in enumerate((head.q_in, head.k_in, head.v_in)):
                start = kind * stream.shape[-1] + number * d_head
                made.append(attn.c_attn(self.block.ln_1(read(stream)))[..., start : start + d_head])
            scores = (made[0] @ made[1].mT / d_head**0.5).masked_fill(future, float("-inf"))
            results.append(head.pattern(scores.softmax(dim=-1)) @ made[2])
        z = self.attn_z(torch.cat(results, dim=-1))
        for number, head in enumerate(self.head):
            at = slice(number * d_head, (number + 1) * d_head)
            stream = stream + head.out(z[..., at] @ attn.c_proj.weight[at])
        stream = stream + attn.c_proj.bias
        return stream + self.mlp_out(self.block.mlp(self.block.ln_2(self.mlp_in(stream))))


class Network(nn.Module):
    """The network; biases of attention are added to the stream as constants."""

    def __init__(self, model: Any, n_heads: int) -> None:
        super().__init__()
        self.wte, self.wpe, self.final_norm, self.unembed = (
            model.transformer.wte,
            model.transformer.wpe,
            model.transformer.ln_f,
            model.lm_head,
        )
        self.embed, self.resid_post = nn.Identity(), nn.Identity()
        self.blocks = nn.ModuleList(_Block(block, n_heads) for block in model.transformer.h)

    def forward(self, tokens: Tensor) -> Tensor:
        stream = self.embed(self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1])))
        for block in self.blocks:
            stream = block(stream)
        logits: Tensor = self.unembed(self.final_norm(self.resid_post(stream)))
        return logits


def declared(subject: HuggingFaceSubject, **options: Any) -> HookedSubject:
    """Return a GPT-2 subject's twin that declares its parts; it shares its weights."""
    config = subject.architecture
    model = Network(subject.model, config.n_head)
    points = {"blocks.0.resid_pre": "embed", f"blocks.{config.n_layer - 1}.resid_post": "resid_post"}
    points |= {"final_norm": "final_norm", "unembed": "unembed"}
    for layer in range(config.n_layer):
        points |= {f"blocks.{layer}.{name}": f"blocks.{layer}.{name}" for name in ("attn_z", "mlp_in", "mlp_out")}
        for head in range(config.n_head):
            at = f"blocks.{layer}.head.{head}"
            points |= {f"{at}.{name}": f"{at}.{name}" for name in ("q_in", "k_in", "v_in", "pattern", "out")}
    sites = {site: (path, "output") for site, path in points.items()}
    own = HookedSubject("own", model, sites, subject.splits, config={"n_heads": config.n_head}, **options)
    own.special_tokens = subject.special_tokens
    return own
