"""Networks and SAEs so simple that what every latent does is known in closed form."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mlinterp.sae.config import SAEConfig
from mlinterp.sae.kinds import build
from mlinterp.sae.model import SAE
from mlinterp.subjects.base import IGNORED, Examples
from mlinterp.subjects.hooked import HookedSubject

WIDTH, VOCAB = 6, 9


class Linear(nn.Module):
    """Two linear layers of which the first also looks one position back: h1 = h0 M + (h0 one before) N; logits = h1 U."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.E, self.M, self.N, self.U = (
            nn.Parameter(torch.randn(*shape, generator=generator, dtype=torch.float64) / 2)
            for shape in ((VOCAB, WIDTH), (WIDTH, WIDTH), (WIDTH, WIDTH), (WIDTH, VOCAB))
        )
        self.first, self.second = nn.Identity(), nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.first(self.E[tokens])
        before = nn.functional.pad(h, (0, 0, 1, 0))[:, :-1]
        return self.second(h @ self.M + before @ self.N) @ self.U


def linear() -> HookedSubject:
    """Return that network, with the hook points `first` and `second`."""
    tokens = torch.zeros(1, 3, dtype=torch.long)
    some = Examples(("0",), tokens, torch.full_like(tokens, IGNORED), torch.ones_like(tokens, dtype=torch.bool))
    return HookedSubject("linear", Linear(), {"first": ("first", "output"), "second": ("second", "output")}, some)


def dictionary(site: str, rows: Tensor, *, lift: float = 0.0) -> SAE:
    """Return an SAE whose decoder has the given orthonormal rows `[latent, d]` and whose encoder reads along them.

    With a `lift` every latent is raised by so much, so that the ReLU never bends.
    """
    n, d = rows.shape
    sae = build(SAEConfig(d_in=d, d_sae=n, activation="relu-l1", l1=0.1, site=site)).to(rows.dtype).requires_grad_(False)
    sae.W_dec.copy_(rows)
    sae.W_enc.copy_(rows.T)
    sae.b_enc.fill_(lift)
    sae.b_dec.zero_()
    return sae.eval()


def orthonormal(n: int, seed: int) -> Tensor:
    """Return random orthonormal rows, float64 `[n, WIDTH]`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64))[0][:n]
