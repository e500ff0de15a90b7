"""How each architecture's blocks read the residual stream: their norms, and the projections of queries, keys and values.

What blocks write to it are the hook points `attn_z`, `attn_out` and `mlp_out` (`hook_points`). Listed are architectures whose stream is a
plain sum: each block reads it through a norm and adds to it. BERT, which normalises the stream itself, is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

LETTERS = ("q", "k", "v")


class Readers(NamedTuple):
    """Where one architecture reads the stream; module paths are below a block."""

    attention_norm: str
    mlp_norm: str
    projections: tuple[str, ...]
    """Of queries, keys and values: three modules, or one that makes all of them."""
    fused: Literal["thirds", "by head"] | None = None
    """How one module's output holds them: three blocks of all heads, or for each head its three."""
    branch_norm: str | None = None
    """The norm between attention and the stream, where there is one."""

    def projection(self, letter: str) -> str:
        """Return the module that makes queries (q), keys (k) or values (v)."""
        return self.projections[0 if self.fused else LETTERS.index(letter)]

    def part(self, output: Tensor, letter: str, d_head: int) -> Tensor:
        """Return each head's queries, keys or values `[..., head, d_head]` in their projection's output `[..., out]`, as a view."""
        at = LETTERS.index(letter)
        if self.fused == "thirds":
            return output.unflatten(-1, (3, -1, d_head))[..., at, :, :]
        if self.fused == "by head":
            return output.unflatten(-1, (-1, 3, d_head))[..., at, :]
        return output.unflatten(-1, (-1, d_head))


def _llama(mlp_norm: str = "post_attention_layernorm", branch_norm: str | None = None) -> Readers:
    return Readers("input_layernorm", mlp_norm, tuple(f"self_attn.{letter}_proj" for letter in LETTERS), branch_norm=branch_norm)


_GEMMA2 = _llama("pre_feedforward_layernorm", "post_attention_layernorm")
READERS: Mapping[str, Readers] = {
    "gpt2": Readers("ln_1", "ln_2", ("attn.c_attn",), "thirds"),
    **dict.fromkeys(("llama", "qwen2", "qwen3", "gemma"), _llama()),
    **dict.fromkeys(("gemma2", "gemma3_text", "gemma3"), _GEMMA2),
    "gpt_neox": Readers("input_layernorm", "post_attention_layernorm", ("attention.query_key_value",), "by head"),
}
"""By `model_type`."""
