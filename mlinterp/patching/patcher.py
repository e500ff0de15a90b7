"""Exact activation patching: what a model says when some of its activations are another run's (Vig et al. 2020; Meng et al. 2022).

For every prompt pair there is a base run, and a source run from which activations are taken: denoising patches the clean run into the
corrupted one, noising the corrupted into the clean. A patch is a set of edits of one base run. The engine

1. runs both prompts of every pair once and keeps the activations at the component's hook points;
2. drops edits that change nothing (the two runs agree there, to the bit): a patch without any is exactly the base run;
3. puts patches into batches and runs each from its first edited block and position on (`replay`, `packed`); patches of later blocks join
   the batch when it reaches them;
4. reads the metric at the answer position. A final state that is, to the bit, that of the source or base run has that run's number.

Prompts and patches that do not fit in memory at once are split in two, until they do. Where a model cannot be replayed (it is not known,
or reads both ways), the whole model runs with hooks, with as many patches to a batch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mlinterp.halving import halved
from mlinterp.interventions.controls import derangement
from mlinterp.patching.answers import at_answers, tokens_asked
from mlinterp.patching.components import Ablation
from mlinterp.patching.metrics import Metric
from mlinterp.patching.packed import Cells, Packed, Segment
from mlinterp.patching.pair_runs import PairRuns
from mlinterp.patching.places import Places
from mlinterp.patching.replay import Replay, anatomy
from mlinterp.patching.stand_ins import stand_in
from mlinterp.progress import Task, unheard
from mlinterp.subjects.base import Address
from mlinterp.subjects.hooked import HookedSubject
from mlinterp.subjects.pairs import Pairs

Direction = Literal["denoise", "noise"]
Activations = Mapping[int, Tensor]
"""Layer to activations `[pair, pos, d]`."""


_ENOUGH = 2048
"""Tokens of a batch from which on patches of other lengths make products no faster."""

_PROJECTED_BEFORE = re.compile(r"blocks\.\d+\.(attn_z|attn_out|resid_mid|mlp_post|mlp_out)")
"""Hook points inside a block that its queries, keys and values do not read."""


class Edit(NamedTuple):
    """One place that takes the source run's activation."""

    layer: int
    column: int | None = None
    """Which column of the pairs' batches; None for every one that both prompts of a pair have."""
    unit: int | None = None
    """Which head or neuron; None for the whole activation."""


class Patch(NamedTuple):
    """One base run with some activations of its source run."""

    pair: int
    edits: tuple[Edit, ...]


class Moved(NamedTuple):
    """Activations that lie as far from the base run's as the source run's do, in random directions."""

    activations: Activations
    partners: dict[int, np.ndarray]
    """Layer to the neuron in which each neuron's step is made; empty but for neurons."""

    def edits(self, edits: Iterable[Edit]) -> tuple[Edit, ...]:
        """Return where the steps of some edits are made."""
        return tuple(
            edit._replace(unit=int(self.partners[edit.layer][edit.unit])) if self.partners and edit.unit is not None else edit
            for edit in edits
        )


class _Job(NamedTuple):
    """A patch whose edits are laid out: single positions at which source and base differ."""

    number: int
    """Which of the patches asked for."""
    pair: int
    start: int
    """First column that changes."""
    first: int
    """First block that must run; the number of blocks where none must."""
    cells: tuple[tuple[int, int, int], ...]
    """(layer, column, unit) of every edit; unit 0 where there are none."""


_Run = Callable[[Sequence[_Job]], Tensor]
"""Patches to the metric under each, `[patch]`."""


class Patcher:
    """Both runs of every pair, and what becomes of the base run under patches.

    Attributes:
        base: activations of the base runs at every layer's place.
        source: what edits put in place: those of the source runs, unless `ablation` says otherwise.
        m_base: the metric of the base runs, float64 `[pair]`.
        m_source: that of the source runs.
        replayed: whether patches start at their block, rather than run the whole model.

    Args:
        subject: the model.
        pairs: the prompts.
        places: the component.
        metric: what is read. Raises SpecError for a pair that lacks a token it needs.
        direction: which run is patched into which.
        batch_size: patches a batch, and prompts that are recorded together.
        ablation: what stands in the place of an activation: the source run's, zero, or the mean over the pairs' source runs.
    """

    def __init__(
        self,
        subject: HookedSubject,
        pairs: Pairs,
        places: Places,
        metric: Metric,
        direction: Direction = "denoise",
        batch_size: int = 256,
        ablation: Ablation = "resample",
    ) -> None:
        self.subject, self.pairs, self.places, self.metric = subject, pairs, places, metric
        self.direction, self.batch_size = direction, batch_size
        self._base_examples, source = (pairs.corrupted, pairs.clean) if direction == "denoise" else (pairs.clean, pairs.corrupted)
        self.device = next((parameter.device for parameter in subject.model.parameters()), torch.device("cpu"))
        self._tokens = tokens_asked(pairs, metric, self.device)
        with torch.no_grad():
            patched_from = PairRuns(subject, source, places, batch_size, replay=False)
            self._base = PairRuns(subject, self._base_examples, places, batch_size, replay=True)
            self._clean = (patched_from if direction == "denoise" else self._base).logits
            everyone = torch.arange(len(pairs), device=self.device)
            self._known = tuple((run.states, self._measured(run.logits, everyone)) for run in (patched_from, self._base))
        self._projected_before = places.on_stream is not None or all(map(_PROJECTED_BEFORE.fullmatch, places.sites.values()))
        self.m_source, self.m_base = (values.double().cpu().numpy() for _, values in self._known)
        self.base: Activations = self._base.activations
        self.source: Activations = self._stand_ins(patched_from.activations, source.mask, ablation)

    @property
    def replayed(self) -> bool:
        """Whether patches start at their block."""
        return self._base.replayable

    def metrics(self, patches: Sequence[Patch], source: Activations | None = None, task: Task | None = None) -> np.ndarray:
        """Return the metric under each patch, float64 `[patch]`.

        Args:
            patches: what is edited.
            source: what edits put in place; the source runs' activations unless given.
            task: told of every patch that is done.
        """
        jobs, values = [], self.m_base[[patch.pair for patch in patches]].copy()
        source = self.source if source is None else source
        changed = {layer: self._changed(layer, source).cpu().numpy() for layer in self.places.sites}
        for number, patch in enumerate(patches):
            job = self._job(number, patch, changed)
            if job is not None:
                jobs.append(job)
        advance = task.advance if task else unheard
        advance(len(patches) - len(jobs))
        what = f"patch of {self._base_examples.inputs.shape[1]} tokens"
        with torch.no_grad():
            for batch, run in self._batches(jobs, source):
                numbers = [job.number for job in batch]
                for found in halved(batch, run, what):
                    done, numbers = numbers[: len(found)], numbers[len(found) :]
                    values[done] = found.double().cpu().numpy()
                    advance(len(done))
        return values

    def moved(self, generator: torch.Generator) -> Moved:
        """Return the base runs' activations, each moved as far as the source run's lies away, in a random direction.

        Directions and distances are those of each head where the component has such. A neuron has but one direction, so its step is made
        in another neuron of the layer, up or down.
        """
        alone, found, partners = self.places.n_units is not None and self._width() == 1, {}, dict[int, np.ndarray]()
        for layer in self.places.sites:
            base, away = self._units(self.base[layer]), self._units(self.source[layer]).float() - self._units(self.base[layer]).float()
            drawn = torch.randn(away.shape, generator=generator).to(self.device)
            step = drawn / drawn.norm(dim=-1, keepdim=True).clamp_min(1e-12) * away.norm(dim=-1, keepdim=True)
            if alone:
                seed = int(torch.randint(2**62, (1,), generator=generator))
                partners[layer] = derangement(step.shape[2], np.random.default_rng(seed))
                step[:, :, partners[layer]] = step.clone()
            found[layer] = (base.float() + step).to(base.dtype).flatten(2)
        return Moved(found, partners)

    def _width(self) -> int:
        """Width of a unit."""
        return next(iter(self.base.values())).shape[2] // (self.places.n_units or 1)

    def _stand_ins(self, source: Activations, there: Tensor, ablation: Ablation) -> Activations:
        """Return what edits put in place; of a source run, the base's own at positions that a left-to-right model cannot tell apart."""
        if ablation != "resample":
            return {layer: stand_in(h, there, ablation) for layer, h in source.items()}
        if anatomy(self.subject) is None:
            return source
        same = ~self.pairs.differs[:, :, None].to(self.device)
        return {layer: torch.where(same, self.base[layer], h) for layer, h in source.items()}

    def _units(self, h: Tensor) -> Tensor:
        """Return activations as `[pair, pos, unit, width]`."""
        return h.unflatten(2, (self.places.n_units or 1, -1))

    def _changed(self, layer: int, source: Activations) -> Tensor:
        """Return where putting the source's activation in place changes something, bool `[pair, pos, unit]`."""
        apart = (self._units(source[layer]) != self._units(self.base[layer])).any(dim=3)
        apart &= self.pairs.shared[:, :, None].to(self.device)
        return apart if self.places.n_units else apart.any(dim=2, keepdim=True)

    def _job(self, number: int, patch: Patch, changed: Mapping[int, np.ndarray]) -> _Job | None:
        """Lay a patch out; None where it changes nothing."""
        cells: list[tuple[int, int, int]] = []
        for layer, column, unit in patch.edits:
            there = changed[layer][patch.pair]
            columns = range(len(there)) if column is None else (column,)
            units = range(there.shape[1]) if unit is None else (unit,)
            cells.extend((layer, at, each) for at in columns for each in units if there[at, each])
        if not cells:
            return None
        above = self.places.on_stream or 0
        return _Job(number, patch.pair, min(at for _, at, _ in cells), min(layer for layer, _, _ in cells) + above, tuple(cells))

    def _batches(self, jobs: list[_Job], source: Activations) -> Iterator[tuple[list[_Job], _Run]]:
        """Yield batches of patches, each with what runs them."""
        if not self.replayed:
            for at in range(0, len(jobs), self.batch_size):
                yield jobs[at : at + self.batch_size], partial(self._whole, source=source)
            return
        for part in self._base.parts:
            for batch in self._filling([job for job in jobs if job.pair in part]):
                yield batch, partial(self._replayed, source=source, part=part)

    def _filling(self, jobs: list[_Job]) -> Iterator[list[_Job]]:
        """Yield batches of patches whose lengths fill rows together, those of earlier blocks first."""
        ends = self._base.answer_at.tolist()
        lengths = {job.number: ends[job.pair] + 1 - job.start for job in jobs}
        width = max(lengths.values(), default=0)

        def fills(job: _Job) -> int:
            return min(lengths[job.number], width - lengths[job.number])

        batch, n_tokens = list[_Job](), 0
        for job in sorted(jobs, key=fills):
            if len(batch) == self.batch_size or (n_tokens >= _ENOUGH and fills(batch[-1]) != fills(job)):
                yield sorted(batch, key=lambda job: job.first)
                batch, n_tokens = [], 0
            batch.append(job)
            n_tokens += lengths[job.number]
        if batch:
            yield sorted(batch, key=lambda job: job.first)

    def _replayed(self, batch: Sequence[_Job], source: Activations, part: range) -> Tensor:
        """Run the model's upper blocks on the later positions of a batch, ordered by the block at which patches begin; read the metric."""
        replay, pairs = self._base.replay(part), torch.tensor([job.pair for job in batch], device=self.device)
        packed = Packed(replay, [Segment(part.index(job.pair), job.start, job.first) for job in batch])
        edits, above = self._by_layer(batch), self.places.on_stream
        states = packed.recorded_states()[:, None]
        stream, last = replay.streams[0][:0, : packed.width], replay.n_layers - 1
        for layer in range(batch[0].first, replay.n_layers):
            before, at = len(stream), edits.get(layer - (above or 0))
            stream = torch.cat([stream, packed.entering(layer)])
            cells, anew, joined = None if at is None else packed.cells(*at), packed.row[:0], packed.joined(len(stream))
            if above is not None and cells is not None:
                self._put(stream, cells, source, layer - above)
                anew, at, cells = packed.edited(cells, before), None, None
            known = anew if self._projected_before else None
            if layer < last or (at is not None and known is None):
                with self._editing(cells, source, layer, stream):
                    stream = packed.block(layer, stream, known)
                if layer == last:
                    states[:joined] = stream[packed.row[:joined], packed.answer[:joined]][:, None]
            else:
                with self._editing(None if at is None else packed.at_answers(*at), source, layer, states[:joined]):
                    states[:joined, 0] = packed.answers(layer, stream, known)
        if above is not None and (at := edits.get(replay.n_layers - above)) is not None:
            self._put(states, packed.at_answers(*at), source, replay.n_layers - above)
        return self._read(states[:, 0], pairs, replay)

    def _editing(self, at: Cells | None, source: Activations, layer: int, like: Tensor) -> AbstractContextManager[None]:
        """Have a layer's place edited, in a block that is called on a stream like that, as long as the context lasts."""
        if at is None:
            return nullcontext()

        def put(_: Address, h: Tensor) -> Tensor:
            h = h.clone()
            self._put(h, at, source, layer)
            return h

        return self.subject.tapped(put, [self.places.sites[layer]], (like.shape[0], like.shape[1]))

    def _whole(self, batch: Sequence[_Job], source: Activations) -> Tensor:
        """Run the whole model on every patch of a batch, and read the metric."""
        chosen, edits = [job.pair for job in batch], self._by_layer(batch)
        layers = {site: layer for layer, site in self.places.sites.items()}

        def put(address: Address, h: Tensor) -> Tensor:
            layer = layers[address.site]
            rows, pairs, columns, units = edits[layer]
            h = h.clone()
            self._put(h, Cells(rows, columns, pairs, columns, units), source, layer)
            return h

        outputs = self.subject.forward(self._base_examples.take(chosen), put, [self.places.sites[layer] for layer in edits])
        assert outputs is not None
        logits = at_answers(outputs.logits, self._base.answer_at[chosen]).float()
        return self._measured(logits, torch.tensor(chosen, device=self.device))

    def _by_layer(self, batch: Sequence[_Job]) -> dict[int, tuple[Tensor, ...]]:
        """Return the edits of a batch by layer: number in the batch, pair, column and unit of each, int64 `[edit]`."""
        found: dict[int, list[tuple[int, int, int, int]]] = {}
        for number, job in enumerate(batch):
            for layer, column, unit in job.cells:
                found.setdefault(layer, []).append((number, job.pair, column, unit))
        return {layer: torch.tensor(cells, device=self.device).unbind(dim=1) for layer, cells in found.items()}

    def _put(self, h: Tensor, at: Cells, source: Activations, layer: int) -> None:
        """Write the source's activations into `h [row, slot, d]`, in place."""
        self._units(h)[at.rows, at.slots, at.units] = self._units(source[layer])[at.pairs, at.columns, at.units]

    def _read(self, states: Tensor, pairs: Tensor, replay: Replay) -> Tensor:
        """Return the metric `[row]` of what the final norm reads `[row, d]`."""
        parts = replay.anatomy
        if self.metric.named_only:
            values = self._measured(parts.logits_of(states, self._tokens[pairs]), pairs, named=True)
        else:
            values = self._measured(parts.logits(states), pairs)
        for known, measured in self._known:
            if known is not None:
                values = torch.where((states == known[pairs]).all(dim=1), measured[pairs], values)
        return values

    def _measured(self, logits: Tensor, pairs: Tensor, *, named: bool = False) -> Tensor:
        """Return the metric `[row]` of logits `[row, vocab]`, or (`named`) of those of the two named tokens alone `[row, 2]`."""
        clean, tokens = self._clean[pairs], self._tokens[pairs]
        if not self.metric.named_only:
            return self.metric.measure(logits, clean, *tokens.unbind(dim=1))
        first, second = torch.zeros_like(pairs), torch.ones_like(pairs)
        return self.metric.measure(logits if named else logits.gather(1, tokens), clean.gather(1, tokens), first, second)
