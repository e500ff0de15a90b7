"""An attention-only transformer whose heads, what each of them reads, and every way from a head to there can be read and edited.

    stream = W_E[token] + W_pos[t]
    out_h  = pattern_h (v_in W_V) W_O,   pattern_h = causal softmax of (q_in W_Q) (k_in W_K)^T / sqrt(d_head)
    logits = (stream + every out_h) W_U

The heads of the first layer read the stream. What they add goes four ways, and each way of each head is a module of its own: into the
queries (`q`), the keys (`k`) and the values (`v`) of the second layer, and past it (`direct`). An edit of a way changes
that path and no other. Without norms and biases, every path is linear but for the patterns.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

INPUTS = ("q", "k", "v")
"""What the heads of the next layer read."""


class Head(nn.Module):
    """One head: what it reads, its pattern `[batch, query, key]`, what it mixes (z) `[batch, pos, d_head]`, what it adds (out)."""

    def __init__(self, d_model: int, d_head: int) -> None:
        super().__init__()
        self.W_Q, self.W_K, self.W_V = (nn.Parameter(torch.empty(d_model, d_head)) for _ in range(3))
        self.W_O = nn.Parameter(torch.empty(d_head, d_model))
        self.q_in, self.k_in, self.v_in = (nn.Identity() for _ in INPUTS)
        self.pattern, self.z, self.out = nn.Identity(), nn.Identity(), nn.Identity()

    def mixed(self, q_in: Tensor, k_in: Tensor, v_in: Tensor) -> Tensor:
        """Return z."""
        q, k, v = self.q_in(q_in) @ self.W_Q, self.k_in(k_in) @ self.W_K, self.v_in(v_in) @ self.W_V
        scores = q @ k.transpose(1, 2) / self.W_Q.shape[1] ** 0.5
        future = torch.ones(scores.shape[1:], dtype=torch.bool, device=scores.device).triu(1)
        z: Tensor = self.z(self.pattern(scores.masked_fill(future, float("-inf")).softmax(dim=-1)) @ v)
        return z

    def added(self, z: Tensor) -> Tensor:
        """Return what the head adds to the stream, `[batch, pos, d_model]`."""
        out: Tensor = self.out(z @ self.W_O)
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
    """A layer of heads (attn_z: all their z side by side), and the ways that what they add goes; from the last only the direct one."""

    def __init__(self, d_model: int, n_heads: int, *, last: bool) -> None:
        super().__init__()
        self.head = nn.ModuleList(Head(d_model, d_model // n_heads) for _ in range(n_heads))
        self.attn_z = nn.Identity()
        self.way = nn.ModuleDict({name: Way(n_heads) for name in (("direct",) if last else (*INPUTS, "direct"))})

    def forward(self, read: Sequence[Tensor]) -> list[Tensor]:
        """Return what each head adds, of what queries, keys and values read."""
        z = self.attn_z(torch.cat([head.mixed(*read) for head in self.head], dim=2))
        return [head.added(part) for head, part in zip(self.head, z.chunk(len(self.head), dim=2), strict=True)]


class Unembedding(nn.Module):
    """Logits of the stream."""

    def __init__(self, d_model: int, vocab: int) -> None:
        super().__init__()
        self.W_U = nn.Parameter(torch.empty(d_model, vocab))

    @property
    def weight(self) -> Tensor:
        """Each token's direction, `[vocab, d_model]`."""
        return self.W_U.T

    def forward(self, stream: Tensor) -> Tensor:
        return stream @ self.W_U


class Network(nn.Module):
    """Maps tokens `[batch, pos]` to logits `[batch, pos, vocab]`."""

    def __init__(self, vocab: int, d_model: int, n_heads: int, n_layers: int, context: int) -> None:
        super().__init__()
        self.W_E, self.W_pos = nn.Parameter(torch.empty(vocab, d_model)), nn.Parameter(torch.empty(context, d_model))
        self.unembed = Unembedding(d_model, vocab)
        self.embed, self.resid_post = nn.Identity(), nn.Identity()
        self.blocks = nn.ModuleList(Block(d_model, n_heads, last=layer == n_layers - 1) for layer in range(n_layers))
        self.reset_parameters(torch.Generator().manual_seed(0))

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw every weight anew: embeddings with deviation 1/2, matrices with one over the root of d_model."""
        for name, parameter in self.named_parameters():
            parameter.normal_(0.0, 0.5 if name in ("W_E", "W_pos") else self.W_E.shape[1] ** -0.5, generator=generator)

    def forward(self, tokens: Tensor) -> Tensor:
        stream = self.embed(self.W_E[tokens] + self.W_pos[: tokens.shape[1]])
        read = [stream] * len(INPUTS)
        for block in self.blocks:
            outs = block(read)
            read = [stream + block.way[name](outs) for name in INPUTS if name in block.way]
            stream = stream + block.way["direct"](outs)
        logits: Tensor = self.unembed(self.resid_post(stream))
        return logits
