"""An attention-only transformer whose heads, and every way from a head to what reads it, can be read and edited.

    stream = W_E[token] + W_pos[t]
    out_h  = pattern_h (v_in W_V) W_O,   pattern_h = causal softmax of (q_in W_Q) (k_in W_K)^T / sqrt(d_head)
    logits = (stream + every out_h) W_U

The heads of the first layer read the stream. What they add goes four ways, and each way of each head is a module of its own: into the
queries (`q`), the keys (`k`) and the values (`v`) of the second layer, and past it (`direct`). An edit of a way changes
that path and no other. Without norms and biases, every path is linear but for the patterns.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

INPUTS = ("q", "k", "v")
"""What the heads of the next layer read."""


class Head(nn.Module):
    """One head: its pattern `[batch, query, key]`, what it mixes (z) `[batch, pos, d_head]`, what it adds (out) `[batch, pos, d_model]`."""

    def __init__(self, d_model: int, d_head: int) -> None:
        super().__init__()
        self.W_Q, self.W_K, self.W_V = (nn.Parameter(torch.empty(d_model, d_head)) for _ in range(3))
        self.W_O = nn.Parameter(torch.empty(d_head, d_model))
        self.pattern, self.z, self.out = nn.Identity(), nn.Identity(), nn.Identity()

    def forward(self, q_in: Tensor, k_in: Tensor, v_in: Tensor) -> Tensor:
        scores = (q_in @ self.W_Q) @ (k_in @ self.W_K).transpose(1, 2) / self.W_Q.shape[1] ** 0.5
        future = torch.ones(scores.shape[1:], dtype=torch.bool, device=scores.device).triu(1)
        pattern = self.pattern(scores.masked_fill(future, float("-inf")).softmax(dim=-1))
        out: Tensor = self.out(self.z(pattern @ (v_in @ self.W_V)) @ self.W_O)
        return out


class Way(nn.Module):
    """One way of a layer's heads: of each head alone, and of all together, `[batch, pos, d_model]`."""

    def __init__(self, n_heads: int) -> None:
        super().__init__()
        self.head = nn.ModuleList(nn.Identity() for _ in range(n_heads))
        self.all = nn.Identity()

    def forward(self, outs: list[Tensor]) -> Tensor:
        together: Tensor = self.all(torch.stack([head(out) for head, out in zip(self.head, outs, strict=True)]).sum(dim=0))
        return together


class Block(nn.Module):
    """A layer of heads, and the ways that what they add goes; from the last layer there is only the direct one."""

    def __init__(self, d_model: int, n_heads: int, *, last: bool) -> None:
        super().__init__()
        self.head = nn.ModuleList(Head(d_model, d_model // n_heads) for _ in range(n_heads))
        self.way = nn.ModuleDict({name: Way(n_heads) for name in (("direct",) if last else (*INPUTS, "direct"))})


class Network(nn.Module):
    """Maps tokens `[batch, pos]` to logits `[batch, pos, vocab]`."""

    def __init__(self, vocab: int, d_model: int, n_heads: int, n_layers: int, context: int) -> None:
        super().__init__()
        self.W_E, self.W_pos = nn.Parameter(torch.empty(vocab, d_model)), nn.Parameter(torch.empty(context, d_model))
        self.W_U = nn.Parameter(torch.empty(d_model, vocab))
        self.embed, self.resid_post = nn.Identity(), nn.Identity()
        self.blocks = nn.ModuleList(Block(d_model, n_heads, last=layer == n_layers - 1) for layer in range(n_layers))
        self.draw(torch.Generator().manual_seed(0))

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """Draw every weight anew: embeddings with deviation 1/2, matrices with one over the root of d_model."""
        for name, parameter in self.named_parameters():
            parameter.normal_(0.0, 0.5 if name in ("W_E", "W_pos") else self.W_E.shape[1] ** -0.5, generator=generator)

    def forward(self, tokens: Tensor) -> Tensor:
        stream = self.embed(self.W_E[tokens] + self.W_pos[: tokens.shape[1]])
        read = [stream] * len(INPUTS)
        for block in self.blocks:
            outs = [head(*read) for head in block.head]
            read = [stream + block.way[name](outs) for name in INPUTS if name in block.way]
            stream = stream + block.way["direct"](outs)
        logits: Tensor = self.resid_post(stream) @ self.W_U
        return logits
