"""Running a transformer from one of its blocks on, and reading its answer.

One forward pass over a batch records what every block is called with. From then on

1. any block can be called again on any rows of the batch, with a stream of its own: what lies below is not computed again;
2. in a model that reads from left to right, positions before the first edited one are what they were, so that their recorded keys and
   values are enough (`packed`);
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


class Replay:
    """One batch's forward pass, recorded so that it can be entered at any block.

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

    def block(self, layer: int, stream: Tensor, rows: Tensor) -> Tensor:
        """Call a block on rows of the batch, int64 `[n]`, that read a stream `[n, pos, d]`."""
        return self.run(layer, stream, {name: self._of(name, value, rows) for name, value in self.calls[layer].items()}, None)

    def states(self, stream: Tensor, rows: Tensor) -> Tensor:
        """Return what the final norm reads at the answer positions, `[n, d]`, of rows whose last stream is `[n, pos, d]`."""
        return stream[torch.arange(len(rows), device=rows.device), self.answer_at[rows]]

    def holds(self) -> bool:
        """Whether blocks that are called again give their recorded output back, and the head the logits."""
        if len(self.calls) != self.n_layers or len(self.streams) != self.n_layers + 1:
            return False
        for layer in {0, min(1, self.n_layers - 1), self.n_layers - 1}:
            if not len(self.recorded[layer].keys):
                return False
            made = self.block(layer, self.streams[layer], self._everyone)
            if not agree(made[self._real], self.streams[layer + 1][self._real]):
                return False
        states = self.states(self.streams[-1], self._everyone)
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

    def run(self, layer: int, stream: Tensor, given: dict[str, Any], cache: Any) -> Tensor:
        """Call a block with arguments of one's own, and a cache that is handed its keys and values."""
        with _fused(self.anatomy.blocks[layer]):
            made = self.anatomy.blocks[layer](stream, **{**given, self._cache_name: cache})
        return made[0] if isinstance(made, tuple) else made

    def _of(self, name: str, value: Any, rows: Tensor) -> Any:
        """Return what a block's argument is for some rows."""
        if isinstance(value, tuple):
            return tuple(self._of(name, item, rows) for item in value)
        by_row = isinstance(value, Tensor) and value.ndim >= 2 and (name == "attention_mask" or value.shape[1] == self.length)
        return value[rows] if by_row and len(value) > 1 else value


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
