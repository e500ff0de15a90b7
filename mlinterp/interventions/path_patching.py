"""Path patching: what one reader of the residual stream makes of what one writer puts there (Wang et al. 2022; Goldowsky-Dill et al. 2023).

The stream is a sum, so that a receiver's input can be changed in one term alone. With w the sender's output in the base run and w' that
in the source run,

    receiver reads   norm(stream + w' - w)   in place of   norm(stream),

and nobody else does: every other reader, also of the same block, reads the stream as it is. What follows from the receiver's changed
output goes on through the whole model. Several senders add up, but heads of one block are projected together, since a norm may follow.
Several receivers are changed in the same pass; w' - w stays that of the two untouched runs, also for a sender behind a receiver. A path
to every reader behind a sender is the whole effect of patching the sender.

Blocks below the first receiver are not run (`replay`). A path on which nothing differs is exactly the base run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mlinterp.errors import SpecError
from mlinterp.interventions.attribution_runs import halved, measured, tokens_asked
from mlinterp.interventions.metrics import Metric
from mlinterp.interventions.patching import Direction
from mlinterp.interventions.path_patching_names import LETTERS, Receiver, Sender
from mlinterp.interventions.path_patching_parts import Parts
from mlinterp.interventions.replay import Replay
from mlinterp.subjects.hooked import HookedSubject
from mlinterp.subjects.pairs import Pairs, answer_columns

Written = list[tuple[float, Tensor]]
"""What senders' changes add to the stream, `[pair, pos, d]` each, behind the place of each in the order of writing and reading."""


class Path(NamedTuple):
    """One pair's base run with a path of the source run."""

    pair: int
    senders: int
    """Which of the groups of senders."""
    column: int | None = None
    """At which column of the pairs' batches the path begins; None for every one."""


class PathPatcher:
    """Both runs of every pair, and what becomes of the base run when a receiver reads some senders as in the source run.

    Attributes:
        senders: every sender of the subject, in order of writing.
        receivers: every receiver, in order of reading.
        m_base: the metric of the base runs, float64 `[pair]`.
        m_source: that of the source runs.

    Args:
        subject: the model. Raises SpecError, naming it, where its parts are not known or cannot be run one by one.
        pairs: the prompts.
        metric: what is read. Raises SpecError for a pair that lacks a token it needs.
        direction: which run is patched into which.
        batch_size: paths a batch; halved where one does not fit in memory.
    """

    def __init__(
        self, subject: HookedSubject, pairs: Pairs, metric: Metric, direction: Direction = "denoise", batch_size: int = 256
    ) -> None:
        self.parts, self.pairs, self.metric, self.batch_size = Parts(subject), pairs, metric, batch_size
        self.device = next(subject.model.parameters()).device
        self._tokens = tokens_asked(pairs, metric, self.device)
        self.n_layers, heads = len(self.parts.anatomy.blocks), range(self.parts.n_heads)
        layers = range(self.n_layers)
        self.senders = (Sender(), *(Sender(layer, head) for layer in layers for head in (*heads, None)))
        by_letter = [(head, letter) for head in heads for letter in LETTERS]
        self.receivers = (*(Receiver(layer, *which) for layer in layers for which in (*by_letter, (None, None))), Receiver())
        sites = [f"blocks.{layer}.{name}" for layer in layers for name in ("attn_z", "attn_out", "mlp_out")]
        base, source = (pairs.corrupted, pairs.clean) if direction == "denoise" else (pairs.clean, pairs.corrupted)
        everyone = torch.arange(len(pairs), device=self.device)
        with torch.no_grad():
            self._base, self._source = (
                Replay(subject, self.parts.anatomy, batch.take(range(len(pairs))), answer_columns(batch), sites) for batch in (base, source)
            )
            if not self._base.holds() or not self._writes():
                raise SpecError(f"the blocks of '{subject.name}' cannot be run one by one", field="subject")
            self._clean = (self._source if direction == "denoise" else self._base).logits
            ends = [self._read(run, run.streams[-1], everyone).double().cpu().numpy() for run in (self._base, self._source)]
        self.m_base, self.m_source = ends
        # In a model that reads from left to right nothing differs before the first differing token but by rounding.
        self._patched = (pairs.shared & pairs.differs)[:, :, None].to(self.device)

    def writing(self, sender: Sender) -> float:
        """Return a sender's place in the order of writing and reading."""
        if sender.layer is None:
            return -1
        return sender.layer if sender.head is not None or self.parts.parallel else sender.layer + 0.5

    def reading(self, receiver: Receiver) -> float:
        """Return a receiver's place in that order: it reads what was written at an earlier one."""
        if receiver.layer is None:
            return math.inf
        return receiver.layer if receiver.head is not None or self.parts.parallel else receiver.layer + 0.5

    @torch.no_grad()
    def written(self, senders: Sequence[Sender]) -> Written:
        """Return what a group of senders, being as in the source run, adds to the stream."""
        found: Written = []
        for at in sorted({self.writing(sender) for sender in senders}):
            here = [sender for sender in senders if self.writing(sender) == at]
            heads = [sender.head for sender in here if sender.head is not None]
            added = [self._other(sender) for sender in here if sender.head is None]
            added += [self._of_heads(int(at), heads)] if heads else []
            found.append((at, torch.where(self._patched, torch.stack(added).sum(dim=0), 0.0)))
        return found

    def random(self, written: Written, generator: torch.Generator) -> Written:
        """Return something as long in random directions at every position."""
        found: Written = []
        for at, step in written:
            drawn = torch.randn(step.shape, generator=generator).to(self.device)
            size = step.float().norm(dim=2, keepdim=True)
            found.append((at, (drawn / drawn.norm(dim=2, keepdim=True).clamp_min(1e-12) * size).to(step.dtype)))
        return found

    def metrics(
        self,
        paths: Sequence[Path],
        receivers: Sequence[Receiver],
        written: Sequence[Written],
        done: Callable[[float], None] = lambda _: None,
    ) -> np.ndarray:
        """Return the metric under each path to a group of receivers, float64 `[path]`.

        Args:
            paths: what is patched.
            receivers: who reads it.
            written: what each group of senders adds.
            done: told how many paths are done.
        """
        last = max(self.reading(receiver) for receiver in receivers)
        values, jobs = self.m_base[[path.pair for path in paths]].copy(), []
        for number, path in enumerate(paths):
            at = slice(None) if path.column is None else slice(path.column, path.column + 1)
            if any(place < last and bool(step[path.pair, at].any()) for place, step in written[path.senders]):
                jobs.append((number, path))
        done(len(paths) - len(jobs))
        for start in range(0, len(jobs), self.batch_size):
            batch = jobs[start : start + self.batch_size]
            found = [each.double().cpu().numpy() for each in halved(batch, lambda some: self._run(some, receivers, written), "path")]
            values[[number for number, _ in batch]] = np.concatenate(found)
            done(len(batch))
        return values

    @torch.no_grad()
    def _run(self, jobs: Sequence[tuple[int, Path]], receivers: Sequence[Receiver], written: Sequence[Written]) -> Tensor:
        """Run the blocks from the first receiver on, and return the metric `[job]`."""
        paths = [path for _, path in jobs]
        rows = torch.tensor([path.pair for path in paths], device=self.device)
        by_layer: dict[int, list[Receiver]] = {}
        for receiver in receivers:
            by_layer.setdefault(self.n_layers if receiver.layer is None else receiver.layer, []).append(receiver)
        first = min(by_layer)
        stream = self._base.streams[first][rows]
        for layer in range(first, self.n_layers):
            here = by_layer.get(layer)
            stream = self._base.block(layer, stream, rows, 0) if here is None else self._block(layer, stream, rows, here, paths, written)
        if self.n_layers in by_layer:
            stream = stream + self._added(paths, math.inf, written)
        return self._read(self._base, stream, rows)

    def _block(
        self, layer: int, stream: Tensor, rows: Tensor, receivers: Sequence[Receiver], paths: Sequence[Path], written: Sequence[Written]
    ) -> Tensor:
        """Run a block some of whose readers are receivers."""
        letters: dict[int, set[str]] = {}
        for receiver in receivers:
            if receiver.head is not None and receiver.letter is not None:
                letters.setdefault(receiver.head, set()).add(receiver.letter)
        heads: dict[frozenset[str], list[int]] = {}
        for head, read in letters.items():
            heads.setdefault(frozenset(read), []).append(head)
        to_heads = self._added(paths, layer, written) if heads else None
        mlp = next((receiver for receiver in receivers if receiver.head is None), None)
        to_mlp = None if mlp is None else self._added(paths, self.reading(mlp), written)
        n, groups = len(stream), 1 + len(heads)
        with self.parts.reading(layer, n, heads, to_heads, to_mlp):
            return self._base.block(layer, stream.repeat(groups, 1, 1), rows.repeat(groups), 0)[:n]

    def _added(self, paths: Sequence[Path], place: float, written: Sequence[Written]) -> Tensor:
        """Return what a receiver reads besides on each path, `[path, pos, d]`: what the path's senders wrote before."""
        found = torch.zeros((len(paths), *self._base.streams[0].shape[1:]), dtype=self._base.streams[0].dtype, device=self.device)
        for row, path in enumerate(paths):
            at = slice(None) if path.column is None else slice(path.column, path.column + 1)
            for before, step in written[path.senders]:
                if before < place:
                    found[row, at] += step[path.pair, at]
        return found

    def _other(self, sender: Sender) -> Tensor:
        """Return what the embedding or an MLP adds more in the source run."""
        if sender.layer is None:
            return self._source.streams[0] - self._base.streams[0]
        site = f"blocks.{sender.layer}.mlp_out"
        return self._source.seen[site] - self._base.seen[site]

    def _of_heads(self, layer: int, heads: Sequence[int]) -> Tensor:
        """Return what some heads of a block add more in the source run."""
        base, source = (run.seen[f"blocks.{layer}.attn_z"].unflatten(2, (self.parts.n_heads, -1)) for run in (self._base, self._source))
        mixed = base.clone()
        mixed[:, :, list(heads)] = source[:, :, list(heads)]
        return self.parts.written(layer, mixed.flatten(2)) - self.parts.written(layer, base.flatten(2))

    def _writes(self) -> bool:
        """Whether heads write to the stream what they are taken to."""
        for layer in range(self.n_layers):
            made, given = (
                self.parts.written(layer, self._base.seen[f"blocks.{layer}.attn_z"]),
                self._base.seen[f"blocks.{layer}.attn_out"],
            )
            if not torch.allclose(made, given, rtol=1e-3, atol=1e-3 * float(given.abs().max())):
                return False
        return True

    def _read(self, run: Replay, stream: Tensor, rows: Tensor) -> Tensor:
        """Return the metric `[row]` of what the final norm reads, `[row, pos, d]`."""
        states, tokens, parts = run.states(stream, rows, 0), self._tokens[rows], self.parts.anatomy
        logits = parts.logits_of(states, tokens) if self.metric.named_only else parts.logits(states)
        return measured(self.metric, logits, self._clean[rows], tokens)
