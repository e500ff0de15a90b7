"""Running a transformer from one of its blocks on, at its last positions alone, and reading its answer.

One forward pass over a batch records what every block is called with. From then on

1. any block can be called again on any rows of the batch, with a stream of its own: what lies below is not computed again;
2. in a model that reads from left to right, positions before the first edited one are what they were, so only later positions are
   computed: they attend to the recorded keys and values of the earlier ones;
3. the final norm and the unembedding run at the answer position alone, and for a metric that reads two tokens, on two rows of the
   unembedding.

Blocks are the model's own modules, called with its own arguments (masks, rotary angles), so that padding, grouped-query attention and
sliding windows are the model's business. Nothing is taken on trust: a replay must give the recorded streams and logits back.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mlinterp.subjects.base import Address, Batch
from mlinterp.subjects.hook_points import LAYOUTS
from mlinterp.subjects.hooked import HookedSubject
from mlinterp.subjects.unembedding import FINAL_NORM

_CACHES = ("past_key_values", "layer_past")
"""What blocks call the argument that holds earlier keys and values."""

_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Largest difference between replay and record, as a share of the record's largest number."""


class Anatomy(NamedTuple):
    """Where a transformer's blocks, final norm and unembedding are."""

    blocks: tuple[nn.Module, ...]
    norm: nn.Module
    head: nn.Module
    softcap: float | None

    def logits(self, stream: Tensor) -> Tensor:
        """Return the logits `[row, vocab]` of the last stream `[row, d]`, float32."""
        return self._capped(self.head(self.norm(stream)).float())

    def logits_of(self, stream: Tensor, tokens: Tensor) -> Tensor:
        """Return the logits `[row, k]` of some tokens, int64 `[row, k]`, alone."""
        weight, bias = self.head.get_parameter("weight"), getattr(self.head, "bias", None)
        found = torch.einsum("rd,rkd->rk", self.norm(stream).float(), weight[tokens].float())
        return self._capped(found if bias is None else found + bias[tokens].float())

    def _capped(self, logits: Tensor) -> Tensor:
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap


def anatomy(subject: HookedSubject) -> Anatomy | None:
    """Return where a subject's parts are, where it is a left-to-right transformer whose layout is known."""
    config = getattr(subject, "architecture", None)
    kind = str(getattr(config, "model_type", None))
    if config is None or kind not in LAYOUTS or kind not in FINAL_NORM or getattr(subject, "masked", False):
        return None
    text = config.get_text_config()
    if getattr(config, "_attn_implementation", "eager") not in ("eager", "sdpa"):
        return None
    blocks = tuple(subject.model.get_submodule(f"{LAYOUTS[kind].blocks}.{number}") for number in range(text.num_hidden_layers))
    head: Any = getattr(subject.model, "get_output_embeddings", lambda: None)()
    if not isinstance(head, nn.Module):
        return None
    return Anatomy(blocks, subject.model.get_submodule(FINAL_NORM[kind]), head, getattr(text, "final_logit_softcapping", None))


class Projected(NamedTuple):
    """A linear map of single positions, and what it gave in the recorded pass."""

    module: nn.Module
    output: Tensor
    """`[row, pos, width]`."""


class Recorder:
    """Takes the keys and values of one block, `[row, head, pos, d_head]`, on their way."""

    def __init__(self) -> None:
        self.keys, self.values = torch.empty(0), torch.empty(0)

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Do what a cache does when a block hands its keys and values over."""
        self.keys, self.values = keys, values
        return keys, values


class Taken(Exception):  # noqa: N818 - a signal, not an error
    """Raised once keys and values are known and nothing else of the block is wanted."""


class Taker(Recorder):
    """Takes keys and values, and ends the block's call."""

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Take them and raise `Taken`."""
        super().update(keys, values)
        raise Taken


class _Earlier:
    """Puts keys and values of earlier positions before those of a block's call."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return torch.cat([self.keys, keys], dim=2), torch.cat([self.values, values], dim=2)


class Replay:
    """One batch's forward pass, recorded so that it can be entered at any block and position.

    Attributes:
        anatomy: the model's parts.
        streams: what each block reads, and last what the final norm reads: `n_layers + 1` tensors `[row, pos, d]`.
        seen: the activations at the sites that were asked for, `[row, pos, d]`.
        calls: the arguments each block was called with, but for the stream.
        recorded: each block's keys and values.
        projected: what made each block's queries, keys and values of single positions; empty unless asked for.
        logits: the model's own, at the answer positions, float32 `[row, vocab]`.
        answer_at: the position of each row at which the answer is read, int64 `[row]`.

    Args:
        sites: hook points whose activations are kept.
        project: whether to keep what `projected` holds.
    """

    def __init__(
        self,
        subject: HookedSubject,
        parts: Anatomy,
        batch: Batch,
        answer_at: Tensor,
        sites: Collection[str] = (),
        *,
        project: bool = False,
    ) -> None:
        device = next(subject.model.parameters()).device
        self.anatomy, self.answer_at, self._real = parts, answer_at.to(device), batch.mask.to(device)
        self._cache_name = next(name for name in _CACHES if name in inspect.signature(parts.blocks[0].forward).parameters)
        self.calls: list[dict[str, Any]] = []
        self.recorded: list[Recorder] = []
        self.projected: list[list[Projected]] = [[] for _ in parts.blocks]
        self.streams: list[Tensor] = []
        self.seen: dict[str, Tensor] = {}
        self._everyone = torch.arange(len(batch), device=device)
        with ExitStack() as hooks:
            hooks.callback(parts.head.register_forward_pre_hook(self._answers_alone).remove)
            for block in parts.blocks:
                hooks.callback(block.register_forward_pre_hook(self._note, with_kwargs=True).remove)
                for module in block.modules() if project else ():
                    if type(module).__name__ in ("Linear", "Conv1D"):
                        hooks.callback(module.register_forward_hook(self._projected).remove)
            hooks.callback(parts.norm.register_forward_pre_hook(lambda _, args: self.streams.append(args[0])).remove)
            outputs = subject.forward(batch.to(device), self._keep, sites)
        assert outputs is not None
        self.logits = outputs.logits[:, 0].float()

    @property
    def length(self) -> int:
        """Positions of a row."""
        return self._real.shape[1]

    @property
    def n_layers(self) -> int:
        """Blocks."""
        return len(self.anatomy.blocks)

    def block(self, layer: int, stream: Tensor, rows: Tensor, start: int) -> Tensor:
        """Call a block on rows of the batch, at positions from `start` on.

        Args:
            layer: number of the block.
            stream: what it reads there, `[n, at most pos - start, d]`.
            rows: which row of the batch each is, int64 `[n]`.
            start: everything before is as recorded.
        """
        return self._call(layer, stream, rows, start, self._before(layer, rows, start))

    def states(self, stream: Tensor, rows: Tensor, start: int) -> Tensor:
        """Return what the final norm reads at the answer positions, `[n, d]`, of the last stream `[n, pos - start, d]`."""
        return stream[torch.arange(len(rows), device=rows.device), self.answer_at[rows] - start]

    def holds(self) -> bool:
        """Whether blocks that are called again give their recorded output back, from a position in the middle, and the head the logits."""
        if len(self.calls) != self.n_layers or len(self.streams) != self.n_layers + 1:
            return False
        middle = int(self.answer_at.min()) // 2
        for layer in {0, min(1, self.n_layers - 1), self.n_layers - 1}:
            if not len(self.recorded[layer].keys):
                return False
            made = self.block(layer, self.streams[layer][:, middle:], self._everyone, middle)
            real = self._real[:, middle:]
            if not agree(made[real], self.streams[layer + 1][:, middle:][real]):
                return False
        states = self.states(self.streams[-1], self._everyone, 0)
        return agree(self.anatomy.logits(states), self.logits, states.dtype)

    def _answers_alone(self, _head: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Have the unembedding run at the answer positions alone: logits of every position would be the largest tensor by far."""
        return (args[0][self._everyone, self.answer_at][:, None], *args[1:])

    def _keep(self, address: Address, h: Tensor) -> Tensor:
        self.seen[address.site] = h.clone()
        return h

    def _note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Record a block's call, and have it put its keys and values down."""
        bound = inspect.signature(module.forward).bind(*args, **kwargs).arguments
        first, *others = bound
        given = {**{name: bound[name] for name in others if name != "kwargs"}, **bound.get("kwargs", {})}
        self.streams.append(bound[first])
        self.calls.append(given)
        self.recorded.append(Recorder())
        return (bound[first],), {**given, self._cache_name: self.recorded[-1]}

    def _projected(self, module: nn.Module, _args: Any, output: Tensor) -> None:
        """Record a linear map's output where the block has not put its keys and values down yet."""
        if not len(self.recorded[-1].keys):
            self.projected[len(self.recorded) - 1].append(Projected(module, output))

    def _before(self, layer: int, rows: Tensor, start: int) -> _Earlier | None:
        """Return the recorded keys and values of what comes before a position; None where nothing does."""
        recorded = self.recorded[layer]
        return _Earlier(recorded.keys[rows, :, :start], recorded.values[rows, :, :start]) if start else None

    def _call(self, layer: int, stream: Tensor, rows: Tensor, start: int, cache: Any) -> Tensor:
        span = slice(start, start + stream.shape[1])
        given = {name: self._part(name, value, rows, span) for name, value in self.calls[layer].items()}
        return self.run(layer, stream, given, cache)

    def run(self, layer: int, stream: Tensor, given: dict[str, Any], cache: Any) -> Tensor:
        """Call a block with arguments of one's own, and a cache that is handed its keys and values."""
        with _fused(self.anatomy.blocks[layer]):
            made = self.anatomy.blocks[layer](stream, **{**given, self._cache_name: cache})
        return made[0] if isinstance(made, tuple) else made

    def _part(self, name: str, value: Any, rows: Tensor, span: slice) -> Any:
        """Return what a block's argument is for some rows and positions."""
        if name == "attention_mask":
            return self._mask(value, rows, span)
        if isinstance(value, tuple):
            return tuple(self._part(name, item, rows, span) for item in value)
        if isinstance(value, Tensor) and value.ndim >= 2 and value.shape[1] == self._real.shape[1]:
            return (value if len(value) == 1 else value[rows])[:, span]
        return value

    def _mask(self, mask: Tensor | None, rows: Tensor, span: slice) -> Tensor | None:
        """Return who may look at whom, for queries at some positions; without a mask everyone looks at all that came before."""
        if mask is not None:
            return (mask if len(mask) == 1 else mask[rows])[:, :, span, : span.stop]
        if not span.start:
            return None
        length = self._real.shape[1]
        return torch.ones(length, length, dtype=torch.bool, device=rows.device).tril()[None, None, span, : span.stop]


@contextmanager
def _fused(block: nn.Module) -> Iterator[None]:
    """Have GPT-2's GELU computed in one pass over memory, not in the eight that its formula is written in."""
    written_out = [module for module in block.modules() if type(module).__name__ == "NewGELUActivation"]
    try:
        for module in written_out:
            module.forward = partial(functional.gelu, approximate="tanh")
        yield
    finally:
        for module in written_out:
            module.__dict__.pop("forward", None)


def agree(made: Tensor, recorded: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether a tensor is a recorded one but for rounding."""
    reach = float(recorded.abs().max())
    return float((made.float() - recorded.float()).abs().max()) <= _TOLERANCE.get(dtype or recorded.dtype, 1e-4) * max(reach, 1e-6)
