"""Running a model as its graph: every read has a stream of its own, from which any edge can be cut.

    stream of read r  =  stream of the run  -  sum over cut edges u -> r of (write of u in the run - what stands in its place)

What stands in the place of a cut edge is the corrupted run's write at the same position (`resample`), nothing (`zero`), or the mean of
the node's writes over all tokens of the corrupted prompts of the discovery pairs (`mean`). Nodes read their own streams, so what they
write is a consequence of every cut before them. A run with nothing cut is the clean run; one with everything cut is, for `resample`, the
corrupted run.

1. Both prompts of every pair run once: their writes are kept (nodes x positions x d_model floats a pair, twice).
2. Runs of a batch are one circuit on one pair each. They begin at the lowest block that reads a cut edge, from the clean run's stream:
   what lies below is as recorded.
3. Gradients of the metric by every read's stream, for all edges at once, come from one backward pass; each block's are multiplied with
   the writes as they arrive and dropped, so that no more than one block's are held.

A batch that does not fit in memory is split in two, until it does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from mlinterp.circuits.graph import Graph
from mlinterp.errors import EnvironmentFault, ExperimentError, SpecError
from mlinterp.halving import halved, is_out_of_memory
from mlinterp.patching.answers import measured, tokens_asked
from mlinterp.patching.metrics import Metric
from mlinterp.progress import Advance, unheard
from mlinterp.subjects.hooked import HookedSubject
from mlinterp.subjects.pairs import Pairs, answer_columns

Ablation = Literal["resample", "zero", "mean"]
Item = TypeVar("Item")
Ran = TypeVar("Ran")
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
"""Largest difference between a model and its graph, as a share of the largest number."""


class Pass:
    """One batch's forward pass through the graph: told of every write, asked for every read's stream. Rows are runs.

    Args:
        delta: `[row, node, pos, d]`, write less what stands in its place when cut; filled as nodes write.
        ablated: what stands in the place of cut writes, of a shape that broadcasts to `delta`.
        cut: 1 where an edge is cut, float32 `[row, read, node]`; None for none.
    """

    def __init__(self, delta: Tensor, ablated: Tensor, cut: Tensor | None) -> None:
        self.delta, self.ablated, self.cut = delta, ablated, cut

    def wrote(self, nodes: slice, writes: Tensor) -> None:
        """Note what some nodes write, `[row, node, pos, d]`."""
        self.delta[:, nodes] = writes.float() - self.ablated[:, nodes]

    def read(self, reads: slice, stream: Tensor) -> Tensor:
        """Return the streams `[row, read, pos, d]` of some reads, of the run's `[row, pos, d]`."""
        streams = stream[:, None].expand(-1, reads.stop - reads.start, -1, -1)
        if self.cut is None or not (here := self.cut[:, reads]).any():
            return streams
        n = int(here.any(dim=1).any(dim=0).nonzero().max()) + 1
        missing = torch.bmm(here[:, :, :n], self.delta[:, :n].flatten(2)).unflatten(2, stream.shape[1:])
        return (streams.float() - missing).to(stream.dtype)


class GradientPass(Pass):
    """A pass with nothing cut, whose backward pass adds up (write - what stands in its place) · d metric / d read for every edge.

    Attributes:
        scores: float64 `[row, read, node]`.
    """

    def __init__(self, delta: Tensor, n_reads: int) -> None:
        super().__init__(delta, torch.zeros(()), None)
        self.scores = torch.zeros(len(delta), n_reads, delta.shape[1], dtype=torch.float64, device=delta.device)

    def wrote(self, nodes: slice, writes: Tensor) -> None:
        """Do nothing: the clean run's writes are known."""

    def read(self, reads: slice, stream: Tensor) -> Tensor:
        """Return the streams, and have their gradients taken down."""
        streams = super().read(reads, stream) * 1.0

        def take(gradient: Tensor) -> None:
            self.scores[:, reads] += torch.bmm(gradient.float().flatten(2), self.delta.flatten(2).mT).double()

        streams.register_hook(take)
        return streams


class Machine(ABC):
    """Both runs of every pair, and what becomes of the clean run when edges are cut.

    Attributes:
        m_clean: the metric with nothing cut, float64 `[pair]`.
        m_empty: the metric with everything cut.

    Args:
        subject: the model.
        pairs: the prompts; both of a pair have as many tokens.
        graph: its nodes and reads.
        metric: what is read at the answer position. Raises SpecError for a pair that lacks a token it needs.
        ablation: what stands in the place of a cut edge.
        reference: the pairs whose corrupted prompts `mean` is over.
        batch_size: runs a batch.
    """

    def __init__(
        self,
        subject: HookedSubject,
        pairs: Pairs,
        graph: Graph,
        metric: Metric,
        ablation: Ablation = "resample",
        reference: Sequence[int] | None = None,
        batch_size: int = 64,
    ) -> None:
        self.subject, self.pairs, self.graph, self.metric = subject, pairs, graph, metric
        self.ablation, self.batch_size = ablation, batch_size
        self.device = next(subject.model.parameters()).device
        self._answer_at = answer_columns(pairs.clean)
        self._tokens = tokens_asked(pairs, metric, self.device)
        try:
            with torch.no_grad():
                plain = self._both_runs(list(range(len(pairs)) if reference is None else reference))
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            n, length = pairs.clean.inputs.shape
            why = f"what {len(graph.nodes)} parts write in {n} pairs of {length} tokens does not fit in memory: give fewer pairs"
            raise EnvironmentFault(why) from error
        with torch.no_grad():
            self._check(plain)
            self.m_clean = self._measured(self._clean_logits, range(len(pairs))).double().cpu().numpy()
            self.m_empty = self._metrics(graph.empty[None], range(len(pairs)))[0]

    def _both_runs(self, reference: list[int]) -> Tensor:
        """Run both prompts of every pair and keep what is written; return the model's own logits of the clean run."""
        self.embeds, plain = self._prepare()
        clean, self._clean_logits = self._record(self.embeds[0])
        corrupted, _ = self._record(self.embeds[1])
        self.ablated = self._in_place(corrupted, reference)
        self.delta = clean - self.ablated
        return plain

    @abstractmethod
    def _prepare(self) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Return what the embedding writes in both runs, `[pair, pos, d]`, and the model's own logits of the clean run `[pair, vocab]`."""

    @abstractmethod
    def _forward(self, through: Pass, rows: Sequence[int], first: int, embed: Tensor) -> Tensor:
        """Return the logits `[row, vocab]` at the answer positions.

        Args:
            through: takes writes and gives reads their streams.
            rows: the pair of each run.
            first: the lowest block that must run: with 0 from `embed`, else from the clean run's stream.
            embed: what the embedding writes, `[row, pos, d]`.
        """

    def metrics(self, circuits: np.ndarray, rows: Sequence[int], done: Advance = unheard) -> np.ndarray:
        """Return the metric of some pairs where only the edges of circuits `[circuit, read, node]` are kept, float64 `[circuit, row]`.

        The whole graph is the clean run and the empty circuit the run with everything cut, to the bit. `done` is told of circuits.
        """
        found = np.empty((len(circuits), len(rows)))
        is_whole, is_empty = (circuits == self.graph.whole).all(axis=(1, 2)), ~circuits.any(axis=(1, 2))
        found[is_whole], found[is_empty] = self.m_clean[list(rows)], self.m_empty[list(rows)]
        others = ~(is_whole | is_empty)
        done(float((~others).sum()))
        if others.any():
            with torch.no_grad():
                found[others] = self._metrics(circuits[others], rows, done)
        return found

    def edge_scores(self, rows: Sequence[int], steps: int | None = None, done: Advance = unheard) -> np.ndarray:
        """Return (clean write - what stands in its place) · d metric / d read of every edge, float64 `[row, read, node]`.

        The gradient is that of the clean run, or with `steps` its mean along the straight line from the embedding's ablated to its clean
        write (midpoint rule). It estimates by how much the metric falls when the edge is cut. `done` is told of pairs.
        Raises SpecError for a metric that has no gradient, ExperimentError where it is not finite.
        """
        return np.concatenate(list(self._batched(rows, lambda some: self._scored(some, steps, done))))

    def embedding_gap(self, rows: Sequence[int]) -> np.ndarray:
        """Return the metric of the clean run less that of the model whose embedding alone is ablated, float64 `[row]`.

        This is what the integrated scores of all edges from the embedding add up to (completeness).
        """

        def run(some: Sequence[int]) -> np.ndarray:
            some = list(some)
            through = Pass(self.delta.new_empty(len(some), *self.delta.shape[1:]), torch.zeros_like(self.ablated[:1]), None)
            logits = self._forward(through, some, 0, self._ablated_embed(some))
            values: np.ndarray = self.m_clean[some] - self._measured(logits, some).double().cpu().numpy()
            return values

        with torch.no_grad():
            return np.concatenate(list(self._batched(rows, run)))

    def _metrics(self, circuits: np.ndarray, rows: Sequence[int], done: Advance = unheard) -> np.ndarray:
        """Run circuits of like depth together."""
        cut = self.graph.whole & ~circuits
        layers = np.array([read.layer for read in self.graph.reads])
        lowest = [int(layers[each.any(axis=1)].min(initial=self.graph.n_layers)) for each in cut]
        jobs = [(number, at) for number in np.argsort(lowest, kind="stable").tolist() for at in range(len(rows))]

        def run(some: Sequence[tuple[int, int]]) -> np.ndarray:
            numbers, ats = zip(*some, strict=True)
            edges = torch.from_numpy(cut[list(numbers)]).to(self.device, torch.float32)
            values = self._cut([rows[at] for at in ats], edges, min(lowest[number] for number in numbers))
            done(len(some) / len(rows))
            return values

        found, (numbers, ats) = np.empty((len(circuits), len(rows))), zip(*jobs, strict=True)
        found[list(numbers), list(ats)] = np.concatenate(list(self._batched(jobs, run)))
        return found

    def _cut(self, rows: Sequence[int], edges: Tensor, first: int) -> np.ndarray:
        rows = list(rows)
        delta = self.delta[rows] if first else self.delta.new_empty(len(rows), *self.delta.shape[1:])
        ablated = self.ablated[rows] if self.ablation == "resample" else self.ablated
        logits = self._forward(Pass(delta, ablated, edges), rows, first, self.embeds[0][rows])
        return self._measured(logits, rows).double().cpu().numpy()

    def _scored(self, rows: Sequence[int], steps: int | None, done: Advance) -> np.ndarray:
        rows = list(rows)
        whole, start = self.embeds[0][rows], self._ablated_embed(rows)
        through = GradientPass(self.delta[rows], len(self.graph.reads))
        at = [1.0] if steps is None else [(step + 0.5) / steps for step in range(steps)]
        for share in at:
            with torch.enable_grad():
                embed = (whole if share == 1.0 else start + share * (whole - start)).detach().requires_grad_()
                total = self._measured(self._forward(through, rows, 0, embed), rows).sum()
                if not total.requires_grad:
                    allowed = "method: acdc, or a metric made of differentiable steps"
                    raise SpecError(f"{self.metric.name} has no gradient", field="variables.metric", allowed=allowed)
                torch.autograd.grad(total, embed)
            done(len(rows) / len(at))
        scores: np.ndarray = (through.scores / len(at)).cpu().numpy()
        if not np.isfinite(scores).all():
            raise ExperimentError(f"{self.metric.name} has no finite gradient")
        return scores * self.graph.whole

    def _ablated_embed(self, rows: Sequence[int]) -> Tensor:
        ablated = self.ablated[list(rows), 0] if self.ablation == "resample" else self.ablated[:, 0]
        return ablated.to(self.embeds[0].dtype).expand_as(self.embeds[0][list(rows)])

    def _record(self, embeds: Tensor) -> tuple[Tensor, Tensor]:
        """Return every write `[pair, node, pos, d]` and the logits `[pair, vocab]` of runs with nothing cut."""
        writes = torch.zeros(len(embeds), len(self.graph.nodes), *embeds.shape[1:], device=self.device)

        def run(batch: Sequence[int]) -> Tensor:
            taken = writes[batch[0] : batch[-1] + 1]
            nothing = taken.new_zeros(1, len(self.graph.nodes), 1, 1)
            return self._forward(Pass(taken, nothing, None), batch, 0, embeds[list(batch)])

        return writes, torch.cat(list(self._batched(range(len(embeds)), run)))

    def _in_place(self, corrupted: Tensor, reference: list[int]) -> Tensor:
        """Return what stands in the place of cut writes: `[pair, node, pos, d]`, or `[1, node, 1, d]`."""
        if self.ablation == "resample":
            return corrupted
        if self.ablation == "zero":
            return torch.zeros_like(corrupted[:1, :, :1])
        real = self.pairs.corrupted.mask[reference].to(self.device)[:, None, :, None]
        return (corrupted[reference] * real).sum(dim=(0, 2), keepdim=True) / real.sum()

    def _check(self, plain: Tensor) -> None:
        """Refuse a model that is not its graph: whose logits differ, or whose stream is not a constant and the sum of all writes."""
        upstream = [read.upstream for read in self.graph.reads]
        rows = list(range(min(len(self.pairs), 4)))
        embed = torch.cat([embeds[rows] for embeds in self.embeds])
        mask = torch.cat([examples.mask[rows] for examples in (self.pairs.clean, self.pairs.corrupted)]).to(self.device)
        allowed = _TOLERANCE.get(embed.dtype, 1e-3)

        def uneven(batch: Sequence[int]) -> bool:
            seen: list[Tensor] = []

            class Look(Pass):
                def read(self, reads: slice, stream: Tensor) -> Tensor:
                    seen.append(stream.float() - self.delta[:, : upstream[reads.start]].sum(dim=1))
                    return super().read(reads, stream)

            here, real = embed[list(batch)], mask[list(batch)]
            taken = torch.zeros(len(here), len(self.graph.nodes), *here.shape[1:], device=self.device)
            self._forward(Look(taken, taken[:1, :, :1].clone(), None), [(*rows, *rows)[at] for at in batch], 0, here)
            rest = torch.stack([each[real] for each in seen])
            size = max(1e-6, float(taken.transpose(1, 2)[real].abs().max()))
            return float((rest - rest[:, :1]).abs().max()) > allowed * size

        differs = float((plain - self._clean_logits).abs().max()) > allowed * max(1e-6, float(plain.abs().max()))
        if differs or any(self._batched(range(len(embed)), uneven)):
            raise SpecError(
                f"the residual stream of '{self.subject.name}' is not the sum of what its embedding, heads and MLPs write", field="subject"
            )

    def _measured(self, logits: Tensor, rows: Sequence[int]) -> Tensor:
        """Return the metric `[row]` of logits `[row, vocab]`."""
        rows = list(rows)
        return measured(self.metric, logits.float(), self._clean_logits[rows].float(), self._tokens[rows])

    def _batched(self, items: Sequence[Item], run: Callable[[Sequence[Item]], Ran]) -> Iterator[Ran]:
        """Yield what `run` makes of batches of runs, in order."""
        for at in range(0, len(items), self.batch_size):
            yield from halved(items[at : at + self.batch_size], run, f"run of {self.embeds[0].shape[1]} tokens")
