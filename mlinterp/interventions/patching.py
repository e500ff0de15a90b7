"""Exact activation patching: what a model says when some of its activations are another run's (Vig et al. 2020; Meng et al. 2022).

For every prompt pair there is a base run, and a source run from which activations are taken: denoising patches the clean run into the
corrupted one, noising the corrupted into the clean. A patch is a set of edits of one base run. The engine

1. runs both prompts of every pair once and keeps the activations at the component's hook points;
2. drops edits that change nothing (the two runs agree there, to the bit): a patch without any is exactly the base run;
3. puts patches into batches, those that begin at the same position together, and runs each from its first edited block and position on
   (`replay`); patches of later blocks join the batch when it reaches them;
4. reads the metric at the answer position. A final state that is, to the bit, that of the source or base run has that run's number.

A batch that does not fit in memory is split in two, until it does. Where a model cannot be replayed (it is not known, or reads both
ways), the whole model runs with hooks, with as many patches to a batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mlinterp.errors import EnvironmentFault
from mlinterp.interventions.controls import derangement
from mlinterp.interventions.metrics import Metric, Token
from mlinterp.interventions.patch_places import Places
from mlinterp.interventions.replay import Replay, anatomy
from mlinterp.progress import Task
from mlinterp.subjects.base import Address, Batch, Examples
from mlinterp.subjects.hooked import HookedSubject
from mlinterp.subjects.pairs import NO_TOKEN, Pairs, answer_columns

Direction = Literal["denoise", "noise"]
Activations = Mapping[int, Tensor]
"""Layer to activations `[pair, pos, d]`."""


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


class Patcher:
    """Both runs of every pair, and what becomes of the base run under patches.

    Attributes:
        base: activations of the base runs at every layer's place.
        source: those of the source runs.
        m_base: the metric of the base runs, float64 `[pair]`.
        m_source: that of the source runs.
        replayed: whether patches start at their block, rather than run the whole model.

    Args:
        subject: the model.
        pairs: the prompts.
        places: the component.
        metric: what is read. Raises SpecError for a pair that lacks a token it needs.
        direction: which run is patched into which.
        batch_size: patches a batch.
    """

    def __init__(
        self, subject: HookedSubject, pairs: Pairs, places: Places, metric: Metric, direction: Direction = "denoise", batch_size: int = 256
    ) -> None:
        metric.require({name: _without(pairs, name) for name in metric.needs})
        self.subject, self.pairs, self.places, self.metric = subject, pairs, places, metric
        self.direction, self.batch_size = direction, batch_size
        self._base_examples, source = (pairs.corrupted, pairs.clean) if direction == "denoise" else (pairs.clean, pairs.corrupted)
        self.device = next((parameter.device for parameter in subject.model.parameters()), torch.device("cpu"))
        with torch.no_grad():
            base, patched_from = (_recorded(subject, examples, places) for examples in (self._base_examples, source))
            self.base, self._answer_at = base.activations, answer_columns(self._base_examples)
            self._clean = (patched_from if direction == "denoise" else base).logits
            self._tokens = torch.stack([pairs.answer, pairs.wrong], dim=1).to(self.device)
            everyone = torch.arange(len(pairs), device=self.device)
            self._known = tuple((run.states, self._measured(run.logits, everyone)) for run in (patched_from, base))
            self._replay = base.replay if places.inside and base.replay is not None and base.replay.holds() else None
        self.m_source, self.m_base = (values.double().cpu().numpy() for _, values in self._known)
        self.source = self._same_before(pairs, patched_from.activations)

    @property
    def replayed(self) -> bool:
        """Whether patches start at their block."""
        return self._replay is not None

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
        advance = task.advance if task else _nobody
        advance(len(patches) - len(jobs))
        for batch in self._batches(jobs):
            with torch.no_grad():
                for done, found in self._splitting(batch, source):
                    values[[job.number for job in done]] = found.double().cpu().numpy()
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

    def _same_before(self, pairs: Pairs, source: Activations) -> Activations:
        """Return the source's activations, with the base's own at positions that a left-to-right model cannot tell apart."""
        if anatomy(self.subject) is None:
            return source
        same = ~pairs.differs[:, :, None].to(self.device)
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

    def _batches(self, jobs: list[_Job]) -> Iterator[list[_Job]]:
        """Yield batches of patches; where the model is replayed, of such as begin at the same position, those of earlier blocks first."""
        if not self.replayed:
            yield from (jobs[at : at + self.batch_size] for at in range(0, len(jobs), self.batch_size))
            return
        by_start: dict[int, list[_Job]] = {}
        for job in jobs:
            by_start.setdefault(job.start, []).append(job)
        for _, together in sorted(by_start.items()):
            together.sort(key=lambda job: job.first)
            yield from (together[at : at + self.batch_size] for at in range(0, len(together), self.batch_size))

    def _splitting(self, batch: list[_Job], source: Activations) -> Iterator[tuple[list[_Job], Tensor]]:
        """Yield the metric under the patches of a batch, in halves where it does not fit in memory."""
        try:
            found = self._replayed(batch, source, self._replay) if self._replay else self._whole(batch, source)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            if len(batch) == 1:
                raise EnvironmentFault(f"not even one patch of {len(self._base_examples.inputs[0])} tokens fits in memory") from error
        else:
            yield batch, found
            return
        yield from self._splitting(batch[: len(batch) // 2], source)
        yield from self._splitting(batch[len(batch) // 2 :], source)

    def _replayed(self, batch: list[_Job], source: Activations, replay: Replay) -> Tensor:
        """Run the model's upper blocks on the later positions of a batch that begins at one position, and read the metric."""
        start, pairs = batch[0].start, torch.tensor([job.pair for job in batch], device=self.device)
        edits, above = self._by_layer(batch), self.places.on_stream
        span = slice(start, int(replay.answer_at[pairs].max()) + 1)
        stream = replay.streams[0][:0, span]
        for layer in range(batch[0].first, replay.n_layers + 1):
            joining = [row for row, job in enumerate(batch) if job.first == layer]
            if joining:
                stream = torch.cat([stream, replay.streams[layer][pairs[joining], span]])
            here = pairs[: len(stream)]
            if above is not None and (at := edits.get(layer - above)) is not None:
                self._put(stream, at, start, source[layer - above], pairs)
            if above is None and (at := edits.get(layer)) is not None:
                stream = self._edited_block(replay, layer, stream, here, start, at, source)
            elif layer == replay.n_layers - 1 and len(here) == len(pairs):
                return self._read(replay.answers(stream, pairs, start), pairs)
            elif layer < replay.n_layers:
                stream = replay.block(layer, stream, here, start)
        return self._read(replay.states(stream, pairs, start), pairs)

    def _edited_block(
        self, replay: Replay, layer: int, stream: Tensor, pairs: Tensor, start: int, at: Tensor, source: Activations
    ) -> Tensor:
        def put(_: Address, h: Tensor) -> Tensor:
            h = h.clone()
            self._put(h, at, start, source[layer], pairs)
            return h

        site = self.places.sites[layer]
        with self.subject.tapped(put, [site], (stream.shape[0], stream.shape[1])):
            return replay.block(layer, stream, pairs, start)

    def _whole(self, batch: list[_Job], source: Activations) -> Tensor:
        """Run the whole model on every patch of a batch, and read the metric."""
        chosen, edits = [job.pair for job in batch], self._by_layer(batch)
        pairs, layers = torch.tensor(chosen, device=self.device), {site: layer for layer, site in self.places.sites.items()}

        def put(address: Address, h: Tensor) -> Tensor:
            layer = layers[address.site]
            h = h.clone()
            self._put(h, edits[layer], 0, source[layer], pairs)
            return h

        outputs = self.subject.forward(self._base_examples.take(chosen), put, [self.places.sites[layer] for layer in edits])
        assert outputs is not None
        logits = outputs.logits[torch.arange(len(batch)), self._answer_at[chosen]].float()
        return self._measured(logits, pairs)

    def _by_layer(self, batch: list[_Job]) -> dict[int, Tensor]:
        """Return the edits of a batch by layer, int64 `[edit, 3]`: row, column, unit."""
        found: dict[int, list[tuple[int, int, int]]] = {}
        for row, job in enumerate(batch):
            for layer, column, unit in job.cells:
                found.setdefault(layer, []).append((row, column, unit))
        return {layer: torch.tensor(cells, device=self.device) for layer, cells in found.items()}

    def _put(self, h: Tensor, at: Tensor, start: int, source: Tensor, pairs: Tensor) -> None:
        """Write the source's activations into `h [row, pos - start, d]`, in place."""
        rows, columns, units = at.unbind(dim=1)
        self._units(h)[rows, columns - start, units] = self._units(source)[pairs[rows], columns, units]

    def _read(self, states: Tensor, pairs: Tensor) -> Tensor:
        """Return the metric `[row]` of what the final norm reads `[row, d]`."""
        assert self._replay is not None
        parts = self._replay.anatomy
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


class _Run(NamedTuple):
    """One prompt of every pair, untouched."""

    activations: dict[int, Tensor]
    logits: Tensor
    """At the answer positions, float32 `[pair, vocab]`."""
    states: Tensor | None
    """What the final norm reads there, `[pair, d]`, where that is known."""
    replay: Replay | None

    @classmethod
    def of(cls, subject: HookedSubject, examples: Examples, places: Places) -> _Run:
        answer_at, batch = answer_columns(examples), examples.take(range(len(examples)))
        parts = anatomy(subject)
        if parts is None:
            seen, logits = _read_plainly(subject, batch, answer_at, places)
            return cls({layer: seen[site] for layer, site in places.sites.items()}, logits, None, None)
        sites = list(places.sites.values()) if places.on_stream is None else []
        replay = Replay(subject, parts, batch, answer_at, sites)
        states = replay.states(replay.streams[-1], torch.arange(len(batch), device=replay.logits.device), 0)
        above = places.on_stream
        activations = {layer: replay.seen[site] if above is None else replay.streams[layer + above] for layer, site in places.sites.items()}
        return cls(activations, replay.logits, states, replay)


def _recorded(subject: HookedSubject, examples: Examples, places: Places) -> _Run:
    try:
        return _Run.of(subject, examples, places)
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        n, length = examples.inputs.shape
        raise EnvironmentFault(f"the activations of {n} prompts of up to {length} tokens do not fit in memory: give fewer pairs") from error


def _read_plainly(subject: HookedSubject, batch: Batch, answer_at: Tensor, places: Places) -> tuple[dict[str, Tensor], Tensor]:
    seen: dict[str, Tensor] = {}

    def keep(address: Address, h: Tensor) -> Tensor:
        seen[address.site] = h.clone()
        return h

    outputs = subject.forward(batch, keep, list(places.sites.values()))
    assert outputs is not None
    return seen, outputs.logits[torch.arange(len(batch)), answer_at].float()


def _without(pairs: Pairs, token: Token) -> str | None:
    """Return the first pair that lacks a token."""
    lacking = (getattr(pairs, token) == NO_TOKEN).nonzero()[:, 0].tolist()
    return pairs.ids[lacking[0]] if lacking else None


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error)


def _nobody(_amount: float) -> None:
    """Tell nobody of progress."""
