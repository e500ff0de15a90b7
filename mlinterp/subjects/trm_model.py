"""The Tiny Recursive Model of arXiv 2510.04871, after its official code, with a tap at every evaluation.

One module f of a few blocks updates two states, z_L and z_H, both `[batch, row, d]` with `n_prefix` learned rows before the input:

    f(z, injected):  z = z + injected;  for each block:  z = rms(z + mix(z));  z = rms(z + SwiGLU(z))
    input:           e = sqrt(d) * [prefix; embed(x)]
    one supervision step, H_cycles times:
        L_cycles times:  z_L = f(z_L, z_H + e)
        z_H = f(z_H, z_L)
    read-out:        logits = lm_head(z_H without prefix);  q_halt = first output of q_head(first row of z_H)

Norms come after each sum and have no scale, so every state has a root mean square of one at each row. There is no bias but
q_head's. `mix` is attention over the rows with rotary positions, or (`mlp_t`) a SwiGLU along the rows for each of the d
channels; as in the official code the norm after `mlp_t` is along the rows too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

from mlinterp.subjects.trm_config import TRMModelConfig

NORM_EPS = 1e-5
ROPE_THETA = 10_000.0
HALT_BIAS = -5.0

Evaluation = tuple[str, int, int | None]
"""(`z_L` or `z_H`, cycle, latent step or None for z_H) within a supervision step."""
StepTap = Callable[[str, int, int | None, Tensor], Tensor]
"""Called with an evaluation's site, cycle and latent step and the new state; what it returns is used from there on."""


class States(NamedTuple):
    """The two recurrent states, each `[batch, row, d]`."""

    z_H: Tensor  # noqa: N815 - the paper's names
    z_L: Tensor  # noqa: N815


def inner_width(d: int, expansion: float) -> int:
    """Return the inner width of a SwiGLU: two thirds of `expansion * d`, rounded up to a multiple of 16.

    >>> inner_width(64, 4), inner_width(17, 4)
    (176, 48)
    """
    return -(-round(expansion * d * 2 / 3) // 16) * 16


def truncated_normal(shape: tuple[int, ...], std: float, generator: torch.Generator) -> Tensor:
    """Return draws from a normal cut at two sigma and rescaled so that its standard deviation is `std`."""
    edge = math.erf(math.sqrt(2))
    cut_std = math.sqrt(1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / edge)
    uniform = torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1
    return (torch.erfinv(uniform * edge) * (math.sqrt(2) * std / cut_std)).float()


def rms(x: Tensor, dim: int = -1) -> Tensor:
    """Return x with a root mean square of one along `dim`."""
    return x * torch.rsqrt(x.square().mean(dim, keepdim=True) + NORM_EPS)


class SwiGLU(nn.Module):
    """`down(silu(gate) * up)` over the last axis."""

    def __init__(self, d: int, expansion: float) -> None:
        super().__init__()
        inner = inner_width(d, expansion)
        self.gate_up_proj = nn.Linear(d, 2 * inner, bias=False)
        self.down_proj = nn.Linear(inner, d, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[..., d]` to `[..., d]`."""
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(silu(gate) * up)


class Attention(nn.Module):
    """Every row attends to every row; queries and keys carry rotary positions."""

    cos: Tensor
    sin: Tensor

    def __init__(self, d: int, n_heads: int, rows: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv_proj = nn.Linear(d, 3 * d, bias=False)
        self.o_proj = nn.Linear(d, d, bias=False)
        d_head = d // n_heads
        frequency = ROPE_THETA ** (-torch.arange(0, d_head, 2, dtype=torch.float64) / d_head)
        angle = torch.outer(torch.arange(rows, dtype=torch.float64), frequency).repeat(1, 2)
        self.register_buffer("cos", angle.cos().float(), persistent=False)
        self.register_buffer("sin", angle.sin().float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[batch, row, d]` to `[batch, row, d]`."""
        batch, rows, d = x.shape
        q, k, v = self.qkv_proj(x).view(batch, rows, 3, self.n_heads, d // self.n_heads).permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(self._rotate(q), self._rotate(k), v)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, rows, d))

    def _rotate(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return x * self.cos + torch.cat((-second, first), dim=-1) * self.sin


class Block(nn.Module):
    """Mix along the rows, then along the channels, each followed by its norm."""

    def __init__(self, config: TRMModelConfig, rows: int) -> None:
        super().__init__()
        if config.mixer == "attention":
            self.self_attn: Attention | None = Attention(config.d_model, config.n_heads, rows)
        else:
            self.self_attn = None
            self.mlp_t = SwiGLU(rows, config.expansion)
        self.mlp = SwiGLU(config.d_model, config.expansion)

    def forward(self, z: Tensor) -> Tensor:
        """Map `[batch, row, d]` to `[batch, row, d]`."""
        if self.self_attn is not None:
            z = rms(z + self.self_attn(z))
        else:
            columns = z.transpose(1, 2)
            z = rms(columns + self.mlp_t(columns)).transpose(1, 2)
        return rms(z + self.mlp(z))


class Recursion(nn.Module):
    """The module f that updates both states."""

    def __init__(self, config: TRMModelConfig, rows: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(config, rows) for _ in range(config.n_layers))

    def forward(self, z: Tensor, injected: Tensor) -> Tensor:
        """Return the updated state, `[batch, row, d]`."""
        z = z + injected
        for layer in self.layers:
            z = layer(z)
        return z


class TRM(nn.Module):
    """A Tiny Recursive Model for sequences of `length` tokens out of `vocab`; initial weights are a function of the generator."""

    H_init: Tensor
    L_init: Tensor

    def __init__(self, config: TRMModelConfig, length: int, vocab: int, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        d = config.d_model
        self.embed_tokens = nn.Embedding(vocab, d)
        self.prefix = nn.Parameter(torch.zeros(config.n_prefix, d))
        self.L_level = Recursion(config, config.n_prefix + length)
        self.lm_head = nn.Linear(d, vocab, bias=False)
        self.q_head = nn.Linear(d, 2)
        self.register_buffer("H_init", truncated_normal((d,), 1.0, generator))
        self.register_buffer("L_init", truncated_normal((d,), 1.0, generator))
        self._initialise(generator)

    def _initialise(self, generator: torch.Generator) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                fan_in = module.weight.shape[1]  # for the embedding the width: times sqrt(d), its entries have unit variance
                module.weight.data = truncated_normal(tuple(module.weight.shape), fan_in**-0.5, generator)
        nn.init.zeros_(self.q_head.weight)
        nn.init.constant_(self.q_head.bias, HALT_BIAS)

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the injected input e, `[batch, row, d]`, of tokens `[batch, pos]`."""
        prefix = self.prefix.expand(len(tokens), -1, -1)
        return math.sqrt(self.config.d_model) * torch.cat((prefix, self.embed_tokens(tokens)), dim=1)

    def initial(self, e: Tensor) -> States:
        """Return the states before the first supervision step."""
        return States(self.H_init.expand_as(e), self.L_init.expand_as(e))

    def evaluations(self) -> Iterator[Evaluation]:
        """Yield the evaluations of one supervision step in order."""
        for cycle in range(self.config.H_cycles):
            for latent_step in range(self.config.L_cycles):
                yield "z_L", cycle, latent_step
            yield "z_H", cycle, None

    def supervision_step(self, e: Tensor, states: States, tap: StepTap | None = None) -> States:
        """Return the states after one supervision step."""
        for cycle in range(self.config.H_cycles):
            states = self._cycle(e, states, cycle, tap)
        return states

    def training_step(self, e: Tensor, states: States) -> States:
        """Return the same states as `supervision_step`, with a gradient through the last cycle only."""
        with torch.no_grad():
            for cycle in range(self.config.H_cycles - 1):
                states = self._cycle(e, states, cycle, None)
        return self._cycle(e, states, self.config.H_cycles - 1, None)

    def _cycle(self, e: Tensor, states: States, cycle: int, tap: StepTap | None) -> States:
        z_H, z_L = states
        for latent_step in range(self.config.L_cycles):
            z_L = self.L_level(z_L, z_H + e)
            if tap is not None:
                z_L = tap("z_L", cycle, latent_step, z_L)
        z_H = self.L_level(z_H, z_L)
        if tap is not None:
            z_H = tap("z_H", cycle, None, z_H)
        return States(z_H, z_L)

    def read_out(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return (logits `[batch, pos, vocab]`, halting logit `[batch]`) of a state `[batch, row, d]`."""
        return self.lm_head(z[:, self.config.n_prefix :]), self.q_head(z[:, 0])[:, 0]
