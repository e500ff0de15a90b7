"""A one-block transformer for addition modulo p whose embedding is read and edited by Fourier frequency.

    x[t] = W_E[token_t] + W_pos[t],   tokens a, b, =
    mid = x[=] + heads reading x from =;   logits = (mid + relu(mid W_in + b_in) W_out + b_out) W_U

No norms, embedding and unembedding untied, as in Nanda et al. 2023 ("Progress measures for grokking via mechanistic
interpretability"). Over the p numbers the embedding is a sum of a constant and of (p - 1) / 2 frequencies k, each spanned by
cos(2 pi k a / p) and sin(2 pi k a / p). The power of frequency k is the squared norm of its two coefficients; the *keys* are the
frequencies with more than `KEY` of all power but the constant's. The mean of a frequency over all numbers is zero, so to zero it is
to put its mean in its place.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mlinterp.determinism import torch_stream

KEY = 0.05
"""Share of the power above which a frequency is a key."""
DRAWS = 3
"""How many random sets of other frequencies, as many as there are keys in each, stand beside the keys as a control."""


def fourier_basis(p: int) -> Tensor:
    """Return the orthonormal Fourier basis over p numbers, float32 `[(p - 1) / 2, 2, p]`: cosine and sine of each frequency from 1 on."""
    angle = 2 * math.pi * torch.arange(1, (p - 1) // 2 + 1, dtype=torch.float64)[:, None] * torch.arange(p) / p
    return (torch.stack([angle.cos(), angle.sin()], dim=1) * math.sqrt(2 / p)).float()


class Embedding(nn.Module):
    """Token embeddings as a sum of parts that can be edited: the constant (with the token =), the keys, and all other frequencies.

    Which frequency belongs to which part follows from the weights as they are, so `keys` names the same thing in every network.
    """

    def __init__(self, p: int, d_model: int) -> None:
        super().__init__()
        self.p = p
        self.W_E = nn.Parameter(torch.empty(p + 1, d_model))
        self.register_buffer("basis", fourier_basis(p), persistent=False)
        self.keys, self.others, self.embed = nn.Identity(), nn.Identity(), nn.Identity()
        self.draw = nn.ModuleList(nn.Identity() for _ in range(DRAWS))

    @torch.no_grad()
    def power(self) -> Tensor:
        """Return each frequency's share of the power but the constant's, `[(p - 1) / 2]`."""
        each = (self.basis @ self.W_E[: self.p]).square().sum(dim=(1, 2))
        return each / each.sum()

    def groups(self) -> dict[str, Tensor]:
        """Return which frequencies are `keys`, which are `others`, and which of those are in each `draw.N`, bool `[(p - 1) / 2]` each.

        Draws are made one by one, so two may share frequencies. They are the same for the same keys.
        """
        keys = self.power() > KEY
        others, stream = (~keys).nonzero()[:, 0], torch_stream(0, "draws")
        groups = {"keys": keys, "others": ~keys}
        for number in range(DRAWS):
            drawn = others[torch.randperm(len(others), generator=stream).to(others.device)[: int(keys.sum())]]
            groups[f"draw.{number}"] = torch.zeros_like(keys).index_fill(0, drawn, value=True)
        return groups

    def part(self, chosen: Tensor) -> Tensor:
        """Return what some frequencies (bool `[(p - 1) / 2]`) add to every token, `[p + 1, d_model]`: to = nothing."""
        basis = (self.basis * chosen[:, None, None]).flatten(0, 1)
        return nn.functional.pad(basis.T @ (basis @ self.W_E[: self.p]), (0, 0, 0, 1))

    def forward(self, tokens: Tensor) -> Tensor:
        parts = {name: self.part(chosen)[tokens] for name, chosen in self.groups().items()}
        constant = torch.cat([self.W_E[: self.p].mean(dim=0, keepdim=True).expand(self.p, -1), self.W_E[self.p :]])[tokens]
        others = self.others(parts["others"])
        for number, draw in enumerate(self.draw):  # a part of the others that is not edited adds nothing more
            others = others + (draw(parts[f"draw.{number}"]) - parts[f"draw.{number}"])
        embedded: Tensor = self.embed(constant + self.keys(parts["keys"]) + others)
        return embedded


class Network(nn.Module):
    """Maps tokens `[batch, 3]` to logits `[batch, 3, p]`. What is said at = is computed, and stands at every position."""

    def __init__(self, p: int, d_model: int, n_heads: int, d_mlp: int) -> None:
        super().__init__()
        self.embedding = Embedding(p, d_model)
        self.W_pos = nn.Parameter(torch.empty(3, d_model))
        self.W_Q, self.W_K, self.W_V = (nn.Parameter(torch.empty(n_heads, d_model, d_model // n_heads)) for _ in range(3))
        self.W_O = nn.Parameter(torch.empty(n_heads, d_model // n_heads, d_model))
        self.W_in, self.b_in = nn.Parameter(torch.empty(d_model, d_mlp)), nn.Parameter(torch.empty(d_mlp))
        self.W_out, self.b_out = nn.Parameter(torch.empty(d_mlp, d_model)), nn.Parameter(torch.empty(d_model))
        self.W_U = nn.Parameter(torch.empty(d_model, p))
        self.draw(torch.Generator().manual_seed(0))

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """Draw every weight anew: deviation one over the root of d_model, of p for W_U; 0 for biases (Nanda et al.'s own)."""
        d_model, p = self.W_U.shape
        deviations = {"b_in": 0.0, "b_out": 0.0, "W_U": p**-0.5}
        for name, parameter in self.named_parameters():
            parameter.normal_(0.0, deviations.get(name, d_model**-0.5), generator=generator)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.answer(self.embedding(tokens))[:, None].expand(-1, 3, -1)

    def answer(self, embedded: Tensor) -> Tensor:
        """Return what is said at = to token embeddings `[batch, 3, d_model]`: logits `[batch, p]`."""
        x = embedded + self.W_pos
        last = x[:, 2]
        q = torch.einsum("bd,hde->bhe", last, self.W_Q)
        sought = torch.einsum("bhe,hde->bhd", q, self.W_K)  # each head reads at = alone, so keys and values of all positions are not needed
        pattern = (torch.einsum("bhd,btd->bht", sought, x) / math.sqrt(q.shape[-1])).softmax(dim=-1)
        seen = torch.einsum("bht,btd->bhd", pattern, x)
        mid = last + torch.einsum("bhd,hde->bhe", seen, self.W_V).flatten(1) @ self.W_O.flatten(0, 1)
        return (mid + torch.relu(mid @ self.W_in + self.b_in) @ self.W_out + self.b_out) @ self.W_U
