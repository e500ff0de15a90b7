"""What path patching needs of a model: who writes to its residual stream and who reads it, and a run in which some of these read more.

A Hugging Face model runs from the first changed reader's block on (`replay`). A project's own model, which declares its readers and
writers by hook points (`subjects.declared_stream`), runs whole, with what is added edited in at the readers' hook points.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from mlinterp.errors import SpecError
from mlinterp.halving import halved
from mlinterp.patching.path_names import Receiver, Sender
from mlinterp.patching.path_parts import Parts
from mlinterp.patching.replay import Replay
from mlinterp.subjects.base import Address, Examples
from mlinterp.subjects.declared_stream import declared_stream, require_padding_hidden
from mlinterp.subjects.hooked import HookedSubject
from mlinterp.subjects.huggingface import HuggingFaceSubject
from mlinterp.subjects.pairs import answer_columns
from mlinterp.subjects.stream_readers import LETTERS

Added = Callable[[float], Tensor]
"""What readers at a place in the order of writing and reading read besides, `[row, pos, d]`."""
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Largest difference between what a reader sees and what was written, as a share of the largest number."""


class Runs(ABC):
    """The base and the source run of every pair.

    Attributes:
        senders: every sender, in order of writing.
        receivers: every receiver, in order of reading.
        example: what the embedding writes in the base runs, `[pair, pos, d]`.
        parallel: whether a block's MLP reads what its heads read.
        causal: whether the model is known to read from left to right.
    """

    senders: tuple[Sender, ...]
    receivers: tuple[Receiver, ...]
    example: Tensor
    parallel: bool = False
    causal: bool = False

    def writing(self, sender: Sender) -> float:
        """Return a sender's place in the order of writing and reading."""
        if sender.layer is None:
            return -1
        return sender.layer if sender.head is not None or self.parallel else sender.layer + 0.5

    def reading(self, receiver: Receiver) -> float:
        """Return a receiver's place in that order: it reads what was written at an earlier one."""
        if receiver.layer is None:
            return math.inf
        return receiver.layer if receiver.head is not None or self.parallel else receiver.layer + 0.5

    @abstractmethod
    def difference(self, senders: Sequence[Sender]) -> Tensor:
        """Return what senders at one place add more in the source run, `[pair, pos, d]`."""

    @abstractmethod
    def ends(self, tokens: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the logits of the base and the source run at the answer positions, of tokens `[pair, k]` or of all."""

    @abstractmethod
    def patched(self, rows: Tensor, receivers: Sequence[Receiver], added: Added, tokens: Tensor | None) -> Tensor:
        """Return the logits of base runs in which some receivers read more, at the answer positions, `[row, k]` or `[row, vocab]`."""


class ReplayedRuns(Runs):
    """Those of a Hugging Face model, run from the block of the first changed reader on."""

    causal = True

    def __init__(self, subject: HookedSubject, base: Examples, source: Examples) -> None:
        self._parts = Parts(subject)
        self.parallel, self._n_layers = self._parts.parallel, len(self._parts.anatomy.blocks)
        layers, heads = range(self._n_layers), range(self._parts.n_heads)
        self.senders = (Sender(), *(Sender(layer, head) for layer in layers for head in (*heads, None)))
        by_letter = [(head, letter) for head in heads for letter in LETTERS]
        self.receivers = (*(Receiver(layer, *which) for layer in layers for which in (*by_letter, (None, None))), Receiver())
        sites = [f"blocks.{layer}.{name}" for layer in layers for name in ("attn_z", "attn_out", "mlp_out")]
        self._base, self._source = (
            Replay(subject, self._parts.anatomy, batch.take(range(len(batch))), answer_columns(batch), sites) for batch in (base, source)
        )
        if not self._base.holds() or not self._writes():
            raise SpecError(f"the blocks of '{subject.name}' cannot be run one by one", field="subject")
        self.example = self._base.streams[0]

    def difference(self, senders: Sequence[Sender]) -> Tensor:
        """Return what senders at one place add more in the source run; heads of one block together, since a norm may follow."""
        heads = [sender.head for sender in senders if sender.head is not None]
        added = [self._other(sender) for sender in senders if sender.head is None]
        return torch.stack([*added, *([self._of_heads(int(senders[0].layer or 0), heads)] if heads else [])]).sum(dim=0)

    def ends(self, tokens: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the logits of the base and the source run."""
        everyone = torch.arange(len(self.example), device=self.example.device)
        return self._logits(self._base, self._base.streams[-1], everyone, tokens), self._logits(
            self._source, self._source.streams[-1], everyone, tokens
        )

    def patched(self, rows: Tensor, receivers: Sequence[Receiver], added: Added, tokens: Tensor | None) -> Tensor:
        """Run the blocks from the first receiver on."""
        by_layer: dict[int, list[Receiver]] = {}
        for receiver in receivers:
            by_layer.setdefault(self._n_layers if receiver.layer is None else receiver.layer, []).append(receiver)
        first = min(by_layer)
        stream = self._base.streams[first][rows]
        for layer in range(first, self._n_layers):
            here = by_layer.get(layer)
            stream = self._base.block(layer, stream, rows) if here is None else self._block(layer, stream, rows, here, added)
        if self._n_layers in by_layer:
            stream = stream + added(math.inf)
        return self._logits(self._base, stream, rows, tokens)

    def _block(self, layer: int, stream: Tensor, rows: Tensor, receivers: Sequence[Receiver], added: Added) -> Tensor:
        """Run a block some of whose readers are receivers."""
        letters: dict[int, set[str]] = {}
        for receiver in receivers:
            if receiver.head is not None and receiver.letter is not None:
                letters.setdefault(receiver.head, set()).add(receiver.letter)
        heads: dict[frozenset[str], list[int]] = {}
        for head, read in letters.items():
            heads.setdefault(frozenset(read), []).append(head)
        to_heads = added(layer) if heads else None
        mlp = next((receiver for receiver in receivers if receiver.head is None), None)
        to_mlp = None if mlp is None else added(self.reading(mlp))
        n, groups = len(stream), 1 + len(heads)
        with self._parts.reading(layer, n, heads, to_heads, to_mlp):
            return self._base.block(layer, stream.repeat(groups, 1, 1), rows.repeat(groups))[:n]

    def _other(self, sender: Sender) -> Tensor:
        """Return what the embedding or an MLP adds more in the source run."""
        if sender.layer is None:
            return self._source.streams[0] - self._base.streams[0]
        site = f"blocks.{sender.layer}.mlp_out"
        return self._source.seen[site] - self._base.seen[site]

    def _of_heads(self, layer: int, heads: Sequence[int]) -> Tensor:
        """Return what some heads of a block add more in the source run."""
        base, source = (run.seen[f"blocks.{layer}.attn_z"].unflatten(2, (self._parts.n_heads, -1)) for run in (self._base, self._source))
        mixed = base.clone()
        mixed[:, :, list(heads)] = source[:, :, list(heads)]
        return self._parts.written(layer, mixed.flatten(2)) - self._parts.written(layer, base.flatten(2))

    def _writes(self) -> bool:
        """Whether heads write to the stream what they are taken to."""
        for layer in range(self._n_layers):
            made, given = (
                self._parts.written(layer, self._base.seen[f"blocks.{layer}.attn_z"]),
                self._base.seen[f"blocks.{layer}.attn_out"],
            )
            if not torch.allclose(made, given, rtol=1e-3, atol=1e-3 * float(given.abs().max())):
                return False
        return True

    def _logits(self, run: Replay, stream: Tensor, rows: Tensor, tokens: Tensor | None) -> Tensor:
        """Return the logits of what the final norm reads, `[row, pos, d]`."""
        states = run.states(stream, rows)
        return self._parts.anatomy.logits(states) if tokens is None else self._parts.anatomy.logits_of(states, tokens)


class DeclaredRuns(Runs):
    """Those of a model that declares its readers and writers. Raises SpecError where what readers see is not what was written."""

    def __init__(self, subject: HookedSubject, base: Examples, source: Examples) -> None:
        self._subject, self._stream, self._examples, self._end = subject, declared_stream(subject), base, answer_columns(base)
        parts = [(layer, head) for layer, heads in enumerate(self._stream.heads) for head in (*heads, None)]
        parts = [(layer, head) for layer, head in parts if head is not None or self._stream.mlps[layer]]
        self.senders = (Sender(), *(Sender(layer, head) for layer, head in parts))
        reads = [(layer, head, letter) for layer, head in parts for letter in (LETTERS if head is not None else (None,))]
        self.receivers = (*(Receiver(*read) for read in reads), Receiver())
        for examples in (base, source):
            require_padding_hidden(subject, examples)
        (self._base, self._base_logits), (self._source, self._source_logits) = (self._recorded(examples) for examples in (base, source))
        self.example = self._base[self._stream.write_site(None)]
        self._check(base.mask & source.mask)

    def difference(self, senders: Sequence[Sender]) -> Tensor:
        """Return what senders add more in the source run."""
        sites = [self._stream.write_site(*sender) for sender in senders]
        return torch.stack([self._source[site] - self._base[site] for site in sites]).sum(dim=0)

    def ends(self, tokens: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the logits of the base and the source run."""
        return self._of(self._base_logits, tokens), self._of(self._source_logits, tokens)

    def patched(self, rows: Tensor, receivers: Sequence[Receiver], added: Added, tokens: Tensor | None) -> Tensor:
        """Run the model with what is added edited in at the receivers' hook points."""
        places = {self._stream.read_site(*receiver): self.reading(receiver) for receiver in receivers}
        more = {place: added(place) for place in set(places.values())}
        batch = self._examples.take(rows.tolist()).to(self.example.device)
        outputs = self._subject.forward(batch, lambda address, h: h + more[places[address.site]], list(places))
        assert outputs is not None
        ends = self._end[rows.cpu()].to(outputs.logits.device)
        return self._of(outputs.logits[torch.arange(len(rows), device=ends.device), ends], tokens)

    def _recorded(self, examples: Examples) -> tuple[dict[str, Tensor], Tensor]:
        seen: dict[str, Tensor] = {}

        def keep(address: Address, h: Tensor) -> Tensor:
            seen[address.site] = h.clone()
            return h

        device = next(self._subject.model.parameters()).device
        outputs = self._subject.forward(examples.take(range(len(examples))).to(device), keep, list(self._stream.sites()))
        assert outputs is not None
        return seen, outputs.logits[torch.arange(len(examples)), answer_columns(examples)]

    def _check(self, real: Tensor) -> None:
        """Refuse a model whose readers' streams differ between the runs by anything but what was written before."""
        real = real.to(self.example.device)
        for receiver in self.receivers:
            site = self._stream.read_site(*receiver)
            before = [sender for sender in self.senders if self.writing(sender) < self.reading(receiver)]
            seen, written = (self._source[site] - self._base[site])[real], self.difference(before)[real]
            allowed = _TOLERANCE.get(seen.dtype, 1e-4) * max(1e-6, float(self._base[site][real].abs().max()))
            if float((seen - written).abs().max()) > allowed:
                raise SpecError(
                    f"what '{self._subject.name}' reads at {site} is not the sum of what its embedding, heads and MLPs write before",
                    field="subject",
                )

    @staticmethod
    def _of(logits: Tensor, tokens: Tensor | None) -> Tensor:
        return (logits if tokens is None else logits.gather(1, tokens)).float()


class PartedRuns(Runs):
    """Those of pairs of which only one part's are held at a time: all together where they fit in memory, else halves, and so on.

    Where there are several parts, one is made again when it is asked for. Raises SpecError, naming the subject, where its readers and
    writers are not known, and EnvironmentFault where not even one pair's runs fit.

    Attributes:
        parts: the pairs whose runs are held together, in order.
    """

    def __init__(self, subject: HookedSubject, base: Examples, source: Examples) -> None:
        self._make: Callable[[Examples, Examples], Runs] = partial(
            ReplayedRuns if isinstance(subject, HuggingFaceSubject) else DeclaredRuns, subject
        )
        self._base, self._source, self._held = base, source, dict[range, Runs]()
        read = list(halved(range(len(base)), self._read, f"pair of prompts of {base.inputs.shape[1]} tokens"))
        self.parts = [part for part, _ in read]
        self.example = torch.cat([example for _, example in read])
        runs = self._of(self.parts[-1])
        self.senders, self.receivers, self.parallel, self.causal = runs.senders, runs.receivers, runs.parallel, runs.causal

    def difference(self, senders: Sequence[Sender]) -> Tensor:
        """Return what senders at one place add more in the source run."""
        return torch.cat([self._of(part).difference(senders) for part in self.parts])

    def ends(self, tokens: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the logits of the base and the source run."""
        found = [self._of(part).ends(None if tokens is None else tokens[list(part)]) for part in self.parts]
        return torch.cat([base for base, _ in found]), torch.cat([source for _, source in found])

    def patched(self, rows: Tensor, receivers: Sequence[Receiver], added: Added, tokens: Tensor | None) -> Tensor:
        """Return the logits of base runs, all of one part, in which some receivers read more."""
        part = next(part for part in self.parts if int(rows[0]) in part)
        return self._of(part).patched(rows - part.start, receivers, added, tokens)

    def _read(self, part: Sequence[int]) -> tuple[range, Tensor]:
        here = range(part[0], part[-1] + 1)
        return here, self._of(here).example

    def _of(self, part: range) -> Runs:
        if part not in self._held:
            self._held.clear()
            base, source = (each.take(part) for each in (self._base, self._source))
            self._held[part] = self._make(*(Examples(each.ids, each.inputs, each.targets, each.mask) for each in (base, source)))
        return self._held[part]
