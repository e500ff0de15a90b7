"""Hugging Face transformers as graphs: reads of single heads by rewriting what the model's own projections return.

The query, key and value input of a head cannot be set from outside, since one tensor serves them all. So each read's stream goes through
the block's own norm and its rows of the projection's weights, and what comes out takes its place in the projection's output. Rotary
angles, norms of queries and keys, masks, windows and shared keys remain the model's business. What head h writes is its slice of what
the output projection reads, times its columns of that projection; where a norm follows on the branch (Gemma 2 and 3), with the size
that it divides by in that run, so that the heads of a block still add up to what reaches the stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mlinterp.circuits.graph import Graph, transformer_graph
from mlinterp.circuits.machine import Machine, Pass
from mlinterp.errors import SpecError
from mlinterp.patching.path_parts import plain_sum
from mlinterp.patching.replay import Replay
from mlinterp.subjects.base import Examples
from mlinterp.subjects.hooked import HookedSubject
from mlinterp.subjects.stream_readers import Readers
from mlinterp.subjects.unembedding import Norm, norm_of


class _Projection(NamedTuple):
    """The reads that one module projects, and which rows of its output each has."""

    module: nn.Module
    reads: list[int]
    """Numbers below the block's own, `[n]`."""
    rows: Tensor
    """int64 `[n, d_head]`."""

    def out(self, normed: Tensor) -> Tensor:
        """Return the module's output `[row, pos, out]` of its reads' own inputs `[row, read, pos, d]`."""
        weight, bias = _weight(self.module), getattr(self.module, "bias", None)
        made = torch.einsum("brtd,rkd->btrk", normed[:, self.reads], weight[self.rows])
        if bias is not None:
            made = made + bias[self.rows]
        placed = torch.argsort(self.rows.flatten())
        return made.flatten(2)[..., placed]


class _Block(NamedTuple):
    """One block: the modules that read and write the stream, and which nodes and reads are its own."""

    attention_norm: nn.Module
    mlp_norm: nn.Module
    out: nn.Module
    """The output projection."""
    branch_norm: nn.Module | None
    """The norm between attention and the stream, where there is one."""
    mlp: nn.Module
    """What returns what the MLP adds."""
    heads: slice
    attn_reads: slice
    mlp_node: slice
    mlp_read: slice
    projections: list[_Projection]
    out_columns: Tensor
    """The output projection by head, `[head, d, d_head]`."""


def graph_of(subject: HookedSubject) -> Graph:
    """Return a transformer's graph. Raises SpecError, naming the architecture, where the stream is not known to be a plain sum."""
    plain_sum(subject)
    text = subject.architecture.get_text_config()  # type: ignore[attr-defined]
    n_groups = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    return transformer_graph(
        text.num_hidden_layers, text.num_attention_heads, n_groups, parallel=bool(getattr(text, "use_parallel_residual", False))
    )


class TransformerMachine(Machine):
    """A Hugging Face transformer run as its graph (see `Machine`)."""

    def _prepare(self) -> tuple[tuple[Tensor, Tensor], Tensor]:
        self._parts, readers = plain_sum(self.subject)
        self._blocks = [_block(self.subject, self.graph, readers, layer, module) for layer, module in enumerate(self._parts.blocks)]
        self._replay, corrupted = (self._recorded(examples) for examples in (self.pairs.clean, self.pairs.corrupted))
        self._branch_norms: dict[int, Norm | None] = {}
        for layer, block in enumerate(self._blocks):
            if block.branch_norm is not None:
                self._branch_norms[layer] = norm_of(block.branch_norm, self._replay.streams[layer])
                if self._branch_norms[layer] is None:
                    raise SpecError(f"the norm after attention in block {layer} of '{self.subject.name}' is not known", field="subject")
        return (self._replay.streams[0], corrupted.streams[0]), self._replay.logits

    def _recorded(self, examples: Examples) -> Replay:
        return Replay(self.subject, self._parts, examples.take(range(len(examples))), self._answer_at)

    def _forward(self, through: Pass, rows: Sequence[int], first: int, embed: Tensor) -> Tensor:
        which = torch.as_tensor(list(rows), device=self.device)
        if first:
            stream = self._replay.streams[first][which]
        else:
            stream = embed
            through.wrote(slice(0, 1), embed[:, None])
        with self._reading(through, first):
            for layer in range(first, len(self._blocks)):
                stream = self._replay.block(layer, stream, which)
        last = through.read(slice(len(self.graph.reads) - 1, len(self.graph.reads)), stream)[:, 0]
        return self._parts.logits(self._replay.states(last, which))

    @contextmanager
    def _reading(self, through: Pass, first: int) -> Iterator[None]:
        """Have blocks from `first` on read their own streams and tell what they write."""
        with ExitStack() as hooks:

            def after(module: nn.Module, hook: Callable[[Any, Any, Any], Any]) -> None:
                hooks.callback(module.register_forward_hook(hook).remove)

            for layer in range(first, len(self._blocks)):
                block = self._blocks[layer]
                normed: dict[str, Tensor] = {}
                after(block.attention_norm, _norm_streams(through, block.attn_reads, normed))
                for projection in block.projections:
                    after(projection.module, _projected(projection, normed))
                hooks.callback(block.out.register_forward_pre_hook(self._heads_told(through, layer, block)).remove)
                after(block.mlp_norm, _norm_stream(through, block.mlp_read))
                after(block.mlp, _told(through, block.mlp_node))
            yield

    def _heads_told(self, through: Pass, layer: int, block: _Block) -> Callable[[Any, Any], None]:
        def told(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            n_heads = block.heads.stop - block.heads.start
            writes = torch.einsum("bthk,hdk->bhtd", args[0].unflatten(2, (n_heads, -1)), block.out_columns)
            norm = self._branch_norms.get(layer)
            if norm is not None:
                writes = writes.float() / norm.size(writes.float().sum(dim=1, keepdim=True)) * norm.gain
            through.wrote(block.heads, writes)

        return told


def _norm_streams(through: Pass, reads: slice, normed: dict[str, Tensor]) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def hook(module: nn.Module, args: tuple[Tensor, ...], _output: Tensor) -> None:
        normed["all"] = module.forward(through.read(reads, args[0]))

    return hook


def _projected(projection: _Projection, normed: dict[str, Tensor]) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    return lambda _module, _args, _output: projection.out(normed["all"])


def _told(through: Pass, nodes: slice) -> Callable[[nn.Module, Any, Tensor], None]:
    return lambda _module, _args, output: through.wrote(nodes, output[:, None])


def _norm_stream(through: Pass, reads: slice) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    def hook(module: nn.Module, args: tuple[Tensor, ...], _output: Tensor) -> Tensor:
        normed: Tensor = module.forward(through.read(reads, args[0])[:, 0])
        return normed

    return hook


def _block(subject: HookedSubject, graph: Graph, readers: Readers, layer: int, module: nn.Module) -> _Block:
    nodes = [number for number, node in enumerate(graph.nodes) if node.layer == layer]
    reads = [number for number, read in enumerate(graph.reads) if read.layer == layer]
    heads, attn = slice(nodes[0], nodes[-1]), slice(reads[0], reads[-1])
    out, mlp = (subject.model.get_submodule(subject.points[f"blocks.{layer}.{name}"].module) for name in ("attn_z", "mlp_out"))
    columns = _weight(out).unflatten(1, (heads.stop - heads.start, -1)).transpose(0, 1)
    return _Block(
        module.get_submodule(readers.attention_norm),
        module.get_submodule(readers.mlp_norm),
        out,
        None if readers.branch_norm is None else module.get_submodule(readers.branch_norm),
        mlp,
        heads,
        attn,
        slice(nodes[-1], nodes[-1] + 1),
        slice(reads[-1], reads[-1] + 1),
        _projections(graph, attn, readers, module, columns.shape[2]),
        columns,
    )


def _projections(graph: Graph, attn: slice, readers: Readers, module: nn.Module, d_head: int) -> list[_Projection]:
    """Return which module projects which reads to which rows of its output; a fused module projects several kinds."""
    found: dict[str, tuple[list[int], list[Tensor]]] = {}
    for number, read in enumerate(graph.reads[attn]):
        path = readers.projection(read.kind)
        every = torch.arange(len(_weight(module.get_submodule(path))))
        numbers, rows = found.setdefault(path, ([], []))
        numbers.append(number)
        rows.append(readers.part(every, read.kind, d_head)[read.unit])
    projections = []
    for path, (numbers, rows) in found.items():
        projection = module.get_submodule(path)
        projections.append(_Projection(projection, numbers, torch.stack(rows).to(_weight(projection).device)))
    return projections


def _weight(module: nn.Module) -> Tensor:
    """Return a projection's weight `[out, in]`; GPT-2 keeps it the other way round."""
    weight = module.get_parameter("weight")
    return weight.T if type(module).__name__ == "Conv1D" else weight
