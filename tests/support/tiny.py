"""A subject small enough to compute by hand: two recurrent-looking sites over an embedding, no training needed."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from mlinterp.subjects.base import Address, Batch, Examples, Outputs, Subject, Tap


class TinySubject(Subject):
    """z_a = E[x]; z_b = tanh(z_a) W; twice (two supervision steps, the second adds z_b to z_a). logits = z_b U."""

    def __init__(self, d: int = 4, vocab: int = 7, positions: int = 5, seed: int = 0, n_prefix: int = 1) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.name, self.kind, self.vocab, self.n_prefix = "tiny", "factory", vocab, n_prefix
        self.config = {"d": d, "vocab": vocab, "positions": positions, "seed": seed, "task": "tiny"}
        self.model = torch.nn.Module()
        for name, shape in {"E": (vocab, d), "W": (d, d), "U": (d, vocab)}.items():
            self.model.register_parameter(name, torch.nn.Parameter(torch.randn(*shape, generator=generator)))
        self.positions_count = positions
        self.evaluations = 0

    @property
    def sites(self) -> tuple[str, ...]:
        return ("z_a", "z_b")

    def width(self, site: str) -> int:
        return int(self.config["d"])

    def addresses(self, sites: Collection[str]) -> list[Address]:
        return [Address(site, step) for step in range(2) for site in self.sites if site in sites]

    def examples(self, split: str, n: int, seed: int = 0, **selection: Any) -> Examples:
        generator = torch.Generator().manual_seed(seed + len(split))
        inputs = torch.randint(0, self.vocab, (n, self.positions_count), generator=generator)
        mask = torch.ones_like(inputs, dtype=torch.bool)
        if selection.get("ragged"):
            mask[1::2, -2:] = False
        targets = torch.where(mask, (inputs + 1) % self.vocab, -100)
        return Examples(tuple(f"{split}-{i}" for i in range(n)), inputs, targets, mask)

    @torch.no_grad()
    def forward(self, batch: Batch, tap: Tap | None = None, sites: Collection[str] = (), until: Address | None = None) -> Outputs | None:
        E, W, U = self.model.E, self.model.W, self.model.U
        prefix = torch.ones(len(batch), self.n_prefix, E.shape[1])
        z_a, z_b, preds = torch.cat([prefix, E[batch.inputs]], dim=1), torch.zeros(()), []
        for step in range(2):
            z_a = self._visit(Address("z_a", step), z_a + z_b, tap, sites)
            if until == Address("z_a", step):
                return None
            z_b = self._visit(Address("z_b", step), torch.tanh(z_a) @ W, tap, sites)
            if until == Address("z_b", step):
                return None
            preds.append((z_b[:, self.n_prefix :] @ U).argmax(-1))
        logits = z_b[:, self.n_prefix :] @ U
        return Outputs(logits, torch.stack(preds), torch.stack([logits[:, 0, 0], logits[:, 0, 1]]))

    def _visit(self, address: Address, h: Tensor, tap: Tap | None, sites: Collection[str]) -> Tensor:
        self.evaluations += 1
        return tap(address, h) if tap is not None and address.site in sites else h

    def token_text(self, token: int) -> str:
        return str(token)
