"""Path patching: what one reader of the residual stream makes of what one writer puts there (Wang et al. 2022; Goldowsky-Dill et al. 2023).

The stream is a sum, so that a receiver's input can be changed in one term alone. With w the sender's output in the base run and w' that
in the source run,

    receiver reads   norm(stream + w' - w)   in place of   norm(stream),

and nobody else does: every other reader, also of the same block, reads the stream as it is. What follows from the receiver's changed
output goes on through the whole model. Several senders add up, but heads of one block are projected together, since a norm may follow.
Several receivers are changed in the same pass; w' - w stays that of the two untouched runs, also for a sender behind a receiver. A path
to every reader behind a sender is the whole effect of patching the sender.

How models are run is in `path_patching_runs`. A path on which nothing differs is exactly the base run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mlinterp.halving import halved
from mlinterp.patching.answers import measured, tokens_asked
from mlinterp.patching.metrics import Metric
from mlinterp.patching.patcher import Direction
from mlinterp.patching.path_names import Receiver, Sender
from mlinterp.patching.path_runs import PartedRuns
from mlinterp.progress import Advance, unheard
from mlinterp.subjects.hooked import HookedSubject
from mlinterp.subjects.pairs import Pairs

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
        runs: the model's two runs, its senders in order of writing and its receivers in order of reading.
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
        self.pairs, self.metric, self.batch_size = pairs, metric, batch_size
        self.device = next(subject.model.parameters()).device
        self._tokens = tokens_asked(pairs, metric, self.device)
        base, source = (pairs.corrupted, pairs.clean) if direction == "denoise" else (pairs.clean, pairs.corrupted)
        with torch.no_grad():
            self.runs = PartedRuns(subject, base, source)
            self._clean = self.runs.ends(None)[1 if direction == "denoise" else 0]
            self._named = metric.named_only and self._clean.shape[1] > 2
            ends = [self._measured(logits, range(len(pairs))) for logits in self.runs.ends(self._tokens if self._named else None)]
        self.m_base, self.m_source = (values.double().cpu().numpy() for values in ends)
        # In a model that reads from left to right nothing differs before the first differing token but by rounding.
        patched = pairs.shared & pairs.differs if self.runs.causal else pairs.shared
        self._patched = patched[:, :, None].to(self.device)

    @torch.no_grad()
    def written(self, senders: Sequence[Sender]) -> Written:
        """Return what a group of senders, being as in the source run, adds to the stream."""
        places = sorted({self.runs.writing(sender) for sender in senders})
        together = {at: [sender for sender in senders if self.runs.writing(sender) == at] for at in places}
        return [(at, torch.where(self._patched, self.runs.difference(here), 0.0)) for at, here in together.items()]

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
        done: Advance = unheard,
    ) -> np.ndarray:
        """Return the metric under each path to a group of receivers, float64 `[path]`.

        Args:
            paths: what is patched.
            receivers: who reads it.
            written: what each group of senders adds.
            done: told how many paths are done.
        """
        last = max(self.runs.reading(receiver) for receiver in receivers)
        values, jobs = self.m_base[[path.pair for path in paths]].copy(), []
        for number, path in enumerate(paths):
            at = slice(None) if path.column is None else slice(path.column, path.column + 1)
            if any(place < last and bool(step[path.pair, at].any()) for place, step in written[path.senders]):
                jobs.append((number, path))
        done(len(paths) - len(jobs))
        for batch in self._batches(jobs):
            found = [each.double().cpu().numpy() for each in halved(batch, lambda some: self._run(some, receivers, written), "path")]
            values[[number for number, _ in batch]] = np.concatenate(found)
            done(len(batch))
        return values

    def _batches(self, jobs: Sequence[tuple[int, Path]]) -> Iterator[Sequence[tuple[int, Path]]]:
        """Yield batches of paths whose pairs' runs are held together."""
        for part in self.runs.parts:
            here = [job for job in jobs if job[1].pair in part]
            for start in range(0, len(here), self.batch_size):
                yield here[start : start + self.batch_size]

    @torch.no_grad()
    def _run(self, jobs: Sequence[tuple[int, Path]], receivers: Sequence[Receiver], written: Sequence[Written]) -> Tensor:
        """Run the model with the receivers reading more, and return the metric `[job]`."""
        paths = [path for _, path in jobs]
        pairs = [path.pair for path in paths]
        rows = torch.tensor(pairs, device=self.device)
        tokens = self._tokens[rows] if self._named else None
        return self._measured(self.runs.patched(rows, receivers, lambda place: self._added(paths, place, written), tokens), pairs)

    def _added(self, paths: Sequence[Path], place: float, written: Sequence[Written]) -> Tensor:
        """Return what a receiver reads besides on each path, `[path, pos, d]`: what the path's senders wrote before."""
        found = self.runs.example.new_zeros(len(paths), *self.runs.example.shape[1:])
        for row, path in enumerate(paths):
            at = slice(None) if path.column is None else slice(path.column, path.column + 1)
            for before, step in written[path.senders]:
                if before < place:
                    found[row, at] += step[path.pair, at]
        return found

    def _measured(self, logits: Tensor, pairs: Sequence[int]) -> Tensor:
        """Return the metric `[row]` of logits at the answer positions of some pairs."""
        rows = torch.tensor(list(pairs), device=self.device)
        return measured(self.metric, logits, self._clean[rows], self._tokens[rows])
