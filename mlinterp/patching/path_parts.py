"""What a transformer's parts write to the residual stream, and where they read it: the modules that path patching reaches into.

The stream is a plain sum: each block reads it through a norm and adds to it. So "a sender's part of what a receiver reads" has a
meaning. Architectures that normalise the stream itself (BERT) or whose modules are not known here are refused by name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mlinterp.errors import SpecError
from mlinterp.patching.replay import Anatomy, anatomy
from mlinterp.subjects.hooked import HookedSubject
from mlinterp.subjects.stream_readers import LETTERS, READERS, Readers


def plain_sum(subject: HookedSubject) -> tuple[Anatomy, Readers]:
    """Return a Hugging Face model's parts and its readers. Raises SpecError, naming the architecture, where they are not known."""
    config, found = getattr(subject, "architecture", None), anatomy(subject)
    kind = str(getattr(config, "model_type", subject.kind))
    if found is None or kind not in READERS:
        raise SpecError(
            f"'{subject.name}' ({kind}) is not known to have a residual stream that is a plain sum",
            field="subject",
            allowed=f"a left-to-right model of the kinds {', '.join(READERS)}",
        )
    return found, READERS[kind]


class Parts:
    """The parts of one subject. Raises SpecError, naming it, where they are not known.

    Attributes:
        anatomy: its blocks, final norm and unembedding.
        n_heads: query heads of each block.
        parallel: whether a block's MLP reads what its attention reads.
    """

    def __init__(self, subject: HookedSubject) -> None:
        self.anatomy, self._readers = plain_sum(subject)
        config = subject.architecture  # type: ignore[attr-defined]
        self.n_heads: int = config.get_text_config().num_attention_heads
        self.parallel = bool(getattr(config, "use_parallel_residual", False))
        self._subject, self._d_head = subject, subject.width("blocks.0.attn_z") // self.n_heads

    def written(self, layer: int, z: Tensor) -> Tensor:
        """Return what a block's attention adds to the stream, `[row, pos, d]`, of its heads' results side by side."""
        made = self._projection(layer)(z)
        norm = self._readers.branch_norm
        found: Tensor = made if norm is None else self.anatomy.blocks[layer].get_submodule(norm)(made)
        return found

    @contextmanager
    def reading(
        self, layer: int, n: int, heads: Mapping[frozenset[str], Collection[int]], to_heads: Tensor | None, to_mlp: Tensor | None
    ) -> Iterator[None]:
        """Let some readers of a block read something else besides, as long as the block lasts and runs on `n * (1 + len(heads))` rows.

        Rows come in groups of n. The first is the run; in each further one the queries, keys or values of a set of letters are made
        from the changed stream, and the results of that set's heads go into the first. The rest of the further groups is of no use.

        Args:
            layer: the block.
            n: rows.
            heads: for each set of letters, the heads that read the changed stream with them.
            to_heads: what is added to what those read, `[n, pos, d]`.
            to_mlp: what is added to what the MLP reads, `[n, pos, d]`; None where it reads what it does.
        """
        block, given = self.anatomy.blocks[layer], list(heads.items())
        norm, mlp_norm = (block.get_submodule(path) for path in (self._readers.attention_norm, self._readers.mlp_norm))
        changed: list[Tensor] = []

        def note(module: nn.Module, args: tuple[Tensor, ...], _output: Tensor) -> None:
            assert to_heads is not None
            changed[:] = [module.forward(args[0][:n] + to_heads)]

        def project(letter: str | None) -> Any:
            def remade(module: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> Tensor:
                other, output = module.forward(changed[0]), output.clone()
                for number, (letters, _) in enumerate(given, start=1):
                    mine = output[n * number : n * (number + 1)]
                    for each in letters if letter is None else letters & {letter}:
                        made, given_to = (self._readers.part(rows, each, self._d_head) for rows in (other, mine))
                        given_to[:] = made
                return output

            return remade

        def gather(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            z = args[0].clone()
            by_head = z.unflatten(-1, (self.n_heads, -1))
            for number, (_, chosen) in enumerate(given, start=1):
                at = torch.tensor(sorted(chosen), device=z.device)
                by_head[:n, :, at] = by_head[n * number : n * (number + 1), :, at]
            return (z, *args[1:])

        def to_mlp_too(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            assert to_mlp is not None
            return torch.cat([module.forward(args[0][:n] + to_mlp), output[n:]])

        with ExitStack() as hooks:
            if given:
                hooks.callback(norm.register_forward_hook(note).remove)
                fused = self._readers.fused is not None
                for path, letter in zip(self._readers.projections, (None,) if fused else LETTERS, strict=True):
                    hooks.callback(block.get_submodule(path).register_forward_hook(project(letter)).remove)
                hooks.callback(self._projection(layer).register_forward_pre_hook(gather).remove)
            if to_mlp is not None:
                hooks.callback(mlp_norm.register_forward_hook(to_mlp_too).remove)
            yield

    def _projection(self, layer: int) -> nn.Module:
        return self._subject.model.get_submodule(self._subject.points[f"blocks.{layer}.attn_z"].module)
