"""Hand-built networks whose circuit is known edge by edge, and pairs for them.

A prompt is one token: its number's bits are the inputs. The embedding writes bit b into coordinate b; an MLP reads some coordinates of the
stream and writes into its own; the logit of token 1 is the last coordinate read, that of token 0 is zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from mlinterp.subjects.base import IGNORED, Examples
from mlinterp.subjects.hooked import HookedSubject
from mlinterp.subjects.pairs_declared import PromptPair

BITS, WIDTH, VOCAB = 3, 8, 8
Gate = tuple[Callable[[Tensor], Tensor], int]
"""What an MLP makes of the stream `[…, d]`, and into which coordinate it writes that."""


def both(*at: int) -> Callable[[Tensor], Tensor]:
    """1 where every coordinate is 1 (AND)."""
    return lambda x: torch.relu(x[..., list(at)].sum(dim=-1) - (len(at) - 1))


def either(*at: int) -> Callable[[Tensor], Tensor]:
    """1 where some coordinate is 1 (OR)."""
    return lambda x: 1 - torch.relu(1 - x[..., list(at)].sum(dim=-1))


def weighted(weights: Mapping[int, float]) -> Callable[[Tensor], Tensor]:
    """A sum of coordinates."""
    return lambda x: sum(weight * x[..., at] for at, weight in weights.items())


class Gates(nn.Module):
    """Blocks of one gate each."""

    def __init__(self, gates: Sequence[Gate], out: int) -> None:
        super().__init__()
        self.gates, self.out = gates, out
        self.nothing = nn.Parameter(torch.zeros(1))
        self.embed, self.last = nn.Identity(), nn.Identity()
        self.reads, self.writes = (nn.ModuleList(nn.Identity() for _ in gates) for _ in range(2))

    def forward(self, tokens: Tensor) -> Tensor:
        bits = torch.stack([(tokens >> bit) & 1 for bit in range(BITS)], dim=-1).float()
        stream = self.embed(nn.functional.pad(bits, (0, WIDTH - BITS)))
        for (gate, into), read, write in zip(self.gates, self.reads, self.writes, strict=True):
            stream = stream + write(nn.functional.one_hot(torch.tensor(into), WIDTH) * gate(read(stream))[..., None])
        logits = torch.zeros(*tokens.shape, VOCAB)
        logits[..., 1] = self.last(stream)[..., self.out]
        return logits


def gates(*made: Gate, out: int) -> HookedSubject:
    """Return a network of gates as a subject with declared hook points."""
    model = Gates(made, out)
    points = {"blocks.0.resid_pre": ("embed", "output"), f"blocks.{len(made) - 1}.resid_post": ("last", "output")}
    for layer in range(len(made)):
        points |= {f"blocks.{layer}.mlp_in": (f"reads.{layer}", "output"), f"blocks.{layer}.mlp_out": (f"writes.{layer}", "output")}
    tokens = torch.zeros(1, 1, dtype=torch.long)
    some = Examples(("0",), tokens, torch.full_like(tokens, IGNORED), torch.ones_like(tokens, dtype=torch.bool))
    return HookedSubject("gates", model, points, some)


def bit_pairs(*prompts: tuple[int, int]) -> list[PromptPair]:
    """Return pairs of one token each; the clean one is answered 1, the corrupted one 0."""
    return [PromptPair(clean=[clean], corrupted=[corrupted], answer=1, wrong=0) for clean, corrupted in prompts]
