"""The built-in network of a token-set subject.

    h = bag E + b                                 a sum of what the context holds: tokens, special token, group
    h = h + W2 gelu(W1 LayerNorm(h))              `layers` residual blocks
    logits = h U + c                              no norm in between, so that the logits are linear in the last h

Every block and the read-out are one evaluation each, a context one row.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from mlinterp.subjects.token_sets.config import POOLED, NetworkConfig
from mlinterp.subjects.trm_model import truncated_normal

_EMBEDDING_STD = 0.3
"""Contexts hold around ten tokens, so that the sum of their embeddings has a variance of about one."""


class Block(nn.Module):
    """A residual MLP block that norms what it reads."""

    def __init__(self, d: int, hidden: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(d), nn.Linear(d, hidden), nn.Linear(hidden, d)

    def forward(self, h: Tensor) -> Tensor:
        """Map `[n, d]` to `[n, d]`."""
        out: Tensor = h + self.down(gelu(self.up(self.norm(h))))
        return out


class TokenSetNetwork(nn.Module):
    """Maps bags `[n, columns]` to logits `[n, outputs]`; initial weights are a function of the generator."""

    def __init__(self, columns: int, outputs: int, config: NetworkConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.embed = nn.Linear(columns, config.d)
        self.blocks = nn.Sequential(*(Block(config.d, config.hidden) for _ in range(config.layers)))
        self.pooled = nn.Identity()
        self.unembed = nn.Linear(config.d, outputs)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                std = _EMBEDDING_STD if module is self.embed else module.in_features**-0.5
                module.weight.data = truncated_normal(tuple(module.weight.shape), std, generator)
                nn.init.zeros_(module.bias)

    def forward(self, bag: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.unembed(self.pooled(self.blocks(self.embed(bag))))
        return logits


def module_of(site: str) -> str:
    """Return the path of the module whose output a site of the built-in network is.

    >>> module_of("block_1"), module_of("pooled")
    ('blocks.1', 'pooled')
    """
    return site if site in ("embed", POOLED) else site.replace("block_", "blocks.")
