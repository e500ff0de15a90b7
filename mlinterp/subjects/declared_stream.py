"""A project's own transformer that says by its hook points what writes to its residual stream and what reads it.

| hook point | activation `[batch, pos, d]` |
|---|---|
| `blocks.0.resid_pre` | what the embedding writes |
| `blocks.N.head.H.q_in`, `k_in`, `v_in` | the stream, as the queries, keys and values of one head read it |
| `blocks.N.head.H.out` | what that head adds to it |
| `blocks.N.mlp_in`, `blocks.N.mlp_out` | the stream, as the block's MLP reads it, and what that adds |
| `blocks.N.resid_post`, N the last block | the stream, as the final norm and the unembedding read it |

A block may have heads, an MLP or both, the MLP behind the heads. Reads lie before any norm, and an edit of one reaches that reader alone;
an edit of a write reaches everything behind it. Whoever uses this checks that what reads see is the sum of what was written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from mlinterp.errors import SpecError
from mlinterp.subjects.base import Batch, Examples
from mlinterp.subjects.hooked import HookedSubject
from mlinterp.subjects.stream_readers import LETTERS

EMBEDDING = "blocks.0.resid_pre"
_HEAD = re.compile(r"blocks\.(\d+)\.head\.(\d+)\.out")
_BLOCK = re.compile(r"blocks\.(\d+)\..+")
_MLP = re.compile(r"blocks\.(\d+)\.mlp_out")


@dataclass(frozen=True)
class DeclaredStream:
    """The parts that a subject declares.

    Attributes:
        heads: numbers of the heads of each block.
        mlps: whether each block has an MLP.
    """

    heads: tuple[tuple[int, ...], ...]
    mlps: tuple[bool, ...]

    @property
    def n_layers(self) -> int:
        """Blocks."""
        return len(self.mlps)

    def write_site(self, layer: int | None, head: int | None = None) -> str:
        """Return where the embedding (no layer), a head or an MLP (no head) writes."""
        if layer is None:
            return EMBEDDING
        return f"blocks.{layer}.mlp_out" if head is None else f"blocks.{layer}.head.{head}.out"

    def read_site(self, layer: int | None, head: int | None = None, letter: str | None = None) -> str:
        """Return where the logits (no layer), a head's query, key or value (q, k, v) or an MLP (no head) read."""
        if layer is None:
            return f"blocks.{self.n_layers - 1}.resid_post"
        return f"blocks.{layer}.mlp_in" if head is None else f"blocks.{layer}.head.{head}.{letter}_in"

    def sites(self) -> Iterator[str]:
        """Yield every hook point that there must be."""
        yield self.write_site(None)
        for layer, (heads, mlp) in enumerate(zip(self.heads, self.mlps, strict=True)):
            for head in heads:
                yield from (self.read_site(layer, head, letter) for letter in LETTERS)
                yield self.write_site(layer, head)
            if mlp:
                yield self.read_site(layer)
                yield self.write_site(layer)
        yield self.read_site(None)


def declared_stream(subject: HookedSubject) -> DeclaredStream:
    """Return what a subject's hook points declare. Raises SpecError, with the first hook point that lacks, where that is not all."""
    blocks, heads, mlps = ([found for site in subject.points if (found := pattern.fullmatch(site))] for pattern in (_BLOCK, _HEAD, _MLP))
    layers = range(1 + max((int(found[1]) for found in blocks), default=-1))
    of_block = [sorted(int(found[2]) for found in heads if int(found[1]) == layer) for layer in layers]
    stream = DeclaredStream(tuple(map(tuple, of_block)), tuple(any(int(found[1]) == layer for found in mlps) for layer in layers))
    lacking = next((site for site in stream.sites() if site not in subject.points), None) if layers else EMBEDDING
    if lacking is not None:
        raise SpecError(
            f"'{subject.name}' ({subject.kind}) has no hook point '{lacking}'",
            field="subject",
            allowed="a Hugging Face model, or one that declares where each of its parts reads the residual stream and writes to it",
        )
    return stream


@torch.no_grad()
def require_padding_hidden(subject: HookedSubject, examples: Examples) -> None:
    """Raise SpecError where padding changes what a model says of a prompt's last token: it would change every number of shorter prompts."""
    real = examples.mask.sum(dim=1)
    row = int(real.argmin())
    if int(real[row]) == examples.mask.shape[1]:
        return
    kept = examples.mask[row]
    alone = Batch(examples.ids[row : row + 1], *(each[row : row + 1, kept] for each in (examples.inputs, examples.targets, examples.mask)))
    device, last = next(subject.model.parameters()).device, int(kept.nonzero()[-1])
    padded, plain = (subject.forward(batch.to(device)) for batch in (examples.take([row]), alone))
    assert padded is not None
    assert plain is not None
    if not torch.allclose(padded.logits[0, last].float(), plain.logits[0, -1].float(), rtol=1e-2, atol=1e-4):
        side = "right" if bool(kept[0]) else "left"
        raise SpecError(f"padding on the {side} changes what '{subject.name}' says", field="subject", allowed="prompts of one length")
