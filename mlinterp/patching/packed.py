"""Many patched runs in one call of a block: each from its first changed position to its answer, several to a row.

A patched run is a segment, positions `start` to the answer of one prompt pair. Segments that enter at the same block are laid side by side
in rows of the longest one's width, so that matrix products are large whatever each patch leaves out. A position attends to

1. the recorded keys and values of its pair before its segment's start, and
2. those of its own segment, up to itself,

as far as the model's own mask lets it. Rows are ordered by the block they enter at, so that those of blocks below are a prefix. At the
block a segment enters at, only edited positions have other queries, keys and values than were recorded: the rest are taken from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mlinterp.patching.replay import Projected, Replay, Taken, Taker, agree


class Segment(NamedTuple):
    """One run, changed from some block and position on."""

    pair: int
    start: int
    first: int
    """The block it enters at."""


class Cells(NamedTuple):
    """Where in rows of slots activations are edited, and what is put there, int64 `[edit]` each."""

    rows: Tensor
    slots: Tensor
    pairs: Tensor
    columns: Tensor
    units: Tensor


class Packed:
    """Segments laid out in rows, and the blocks of a recorded pass called on them.

    Attributes:
        row: the row of each segment, int64 `[segment]`.
        shift: what is added to a position of a segment to find its slot in the row, int64 `[segment]`.
        answer: slot of each segment's answer, int64 `[segment]`.
        used: which slots hold something, bool `[row, slot]`.

    Args:
        replay: the recorded pass.
        segments: ordered by `first`.
    """

    def __init__(self, replay: Replay, segments: Sequence[Segment]) -> None:
        self.replay, device = replay, replay.answer_at.device
        ends = replay.answer_at.tolist()
        lengths = [ends[segment.pair] + 1 - segment.start for segment in segments]
        self.width = max(lengths)
        row, offset = _laid_out(segments, lengths, self.width)
        n_rows = max(row) + 1
        pair_of, first_of = np.zeros(n_rows, dtype=np.int64), np.zeros(n_rows, dtype=np.int64)
        owner = -1 - np.tile(np.arange(self.width), (n_rows, 1))  # an empty slot is alone
        starts = np.zeros((n_rows, self.width), dtype=np.int64)
        columns = np.zeros((n_rows, self.width), dtype=np.int64)
        for number, (segment, length, at, begin) in enumerate(zip(segments, lengths, row, offset, strict=True)):
            pair_of[at], first_of[at] = segment.pair, segment.first
            span = slice(begin, begin + length)
            owner[at, span], starts[at, span] = number, segment.start
            columns[at, span] = np.arange(segment.start, segment.start + length)
        columns = np.where(owner < 0, np.array(ends)[pair_of, None], columns)  # and stands where the model lets it look at itself
        shift = np.array(offset) - [segment.start for segment in segments]
        self.used = torch.from_numpy(owner >= 0).to(device)
        self._first_of, self._reach = first_of, int(starts.max())
        self._simple = n_rows == len(segments) and not self._reach and bool((owner >= 0).all())
        self.row, self.shift = torch.tensor(row, device=device), torch.from_numpy(shift).to(device)
        self._pairs = torch.tensor([segment.pair for segment in segments], device=device)
        self.answer = replay.answer_at[self._pairs] + self.shift
        self._pair_of, self._columns = torch.from_numpy(pair_of).to(device), torch.from_numpy(columns).to(device)
        self._owner, self._starts = torch.from_numpy(owner).to(device), torch.from_numpy(starts).to(device)
        self._same_pair = int(pair_of[0]) if bool((pair_of == pair_of[0]).all()) else None
        self._arguments: dict[tuple[str, int], Any] = {}

    def cells(self, segments: Tensor, pairs: Tensor, columns: Tensor, units: Tensor) -> Cells:
        """Return where some segments are edited, int64 `[edit]` each."""
        return Cells(self.row[segments], columns + self.shift[segments], pairs, columns, units)

    def at_answers(self, segments: Tensor, pairs: Tensor, columns: Tensor, units: Tensor) -> Cells:
        """Return where those edits are that lie at answers, in one row of one slot for each segment."""
        there = columns + self.shift[segments] == self.answer[segments]
        rows = segments[there]
        return Cells(rows, torch.zeros_like(rows), pairs[there], columns[there], units[there])

    def recorded_states(self) -> Tensor:
        """Return what the final norm read at each segment's answer, `[segment, d]`."""
        return self.replay.states(self.replay.streams[-1][self._pairs], self._pairs)

    def edited(self, at: Cells, before: int) -> Tensor:
        """Return at which slots of the rows after the first ones something is edited, slots counted row by row, int64."""
        return ((at.rows - before) * self.width + at.slots)[at.rows >= before].unique()

    def joined(self, n_rows: int) -> int:
        """Return how many segments the first rows hold."""
        return int((self.row < n_rows).sum())

    def rows_before(self, layer: int) -> int:
        """Return how many rows enter below a block."""
        return int(np.searchsorted(self._first_of, layer))

    def entering(self, layer: int) -> Tensor:
        """Return what rows that enter at a block read there, `[row, slot, d]`."""
        return self.recorded(layer, slice(self.rows_before(layer), self.rows_before(layer + 1)))

    def recorded(self, layer: int, rows: slice = slice(None)) -> Tensor:
        """Return what rows of the recorded pass read at a block, `[row, slot, d]`."""
        return self.replay.streams[layer][self._pair_of[rows, None], self._columns[rows]]

    def block(self, layer: int, stream: Tensor, edited: Tensor | None) -> Tensor:
        """Call a block on rows `[row, slot, d]`; those that enter here are as recorded but for `edited` (see `_projecting`)."""
        rows = len(stream)
        with self._projecting(layer, rows, edited):
            return self.replay.run(layer, stream, self._given(layer, lambda value: value[:rows]), self._earlier(layer, rows))

    def answers(self, layer: int, stream: Tensor, edited: Tensor | None) -> Tensor:
        """Call the last block on its rows, and return what follows it at their segments' answers, `[segment, d]`.

        Nothing else of the last block is wanted: other slots give their keys and values alone.
        """
        n_rows = len(stream)
        rows, at = (value[self.row < n_rows] for value in (self.row, self.answer))
        taker = Taker()
        with self._projecting(layer, n_rows, edited), self._watching(layer) as made, suppress(Taken):
            self.replay.run(layer, stream, self._given(layer, lambda value: value[:n_rows]), taker)
        earlier = self._earlier(layer, n_rows)
        keys, values = (taker.keys, taker.values) if earlier is None else earlier.update(taker.keys, taker.values)
        given = self._given(layer, lambda value: value[rows, at][:, None])
        known = [Projected(module, output[rows, at][:, None]) for module, output in made]
        with _supplied(known, torch.arange(len(rows), device=at.device), lead=0, anew=at[:0], slots=1):
            return self.replay.run(layer, stream[rows, at][:, None], given, _Known(keys[rows], values[rows]))[:, 0]

    @contextmanager
    def _projecting(self, layer: int, rows: int, edited: Tensor | None) -> Iterator[None]:
        """Compute queries, keys and values of rows that enter at a block at the `edited` slots alone (of those rows, side by side, int64).

        None has all of them computed.
        """
        before = self.rows_before(layer)
        if edited is None or before == rows:
            yield
            return
        width = self.replay.streams[layer].shape[1]
        index = (self._pair_of[before:rows, None] * width + self._columns[before:rows]).flatten()
        with _supplied(self.replay.projected[layer], index, before, edited, self.width):
            yield

    @contextmanager
    def _watching(self, layer: int) -> Iterator[list[tuple[nn.Module, Tensor]]]:
        found: list[tuple[nn.Module, Tensor]] = []
        with ExitStack() as hooks:
            for module, _ in self.replay.projected[layer]:
                hooks.callback(module.register_forward_hook(lambda module, _, output: found.append((module, output))).remove)
            yield found

    def _earlier(self, layer: int, rows: int) -> _Earlier | None:
        if not self._reach:
            return None
        recorded = self.replay.recorded[layer]
        keys, values = recorded.keys[:, :, : self._reach], recorded.values[:, :, : self._reach]
        if self._same_pair is not None:
            one = slice(self._same_pair, self._same_pair + 1)
            return _Earlier(keys[one].expand(rows, -1, -1, -1), values[one].expand(rows, -1, -1, -1))
        return _Earlier(keys[self._pair_of[:rows]], values[self._pair_of[:rows]])

    def _given(self, layer: int, pick: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """Return a block's arguments for the slots that `pick` takes of what is known by row and slot."""

        def picked(value: Any) -> Any:
            if isinstance(value, _BySlot):
                chosen = pick(value.value)
                return chosen.transpose(1, 2) if value.mask else chosen
            return tuple(map(picked, value)) if isinstance(value, tuple) else value

        return {name: picked(self._laid(name, value)) for name, value in self.replay.calls[layer].items()}

    def _laid(self, name: str, value: Any) -> Any:
        """Return what an argument is at every slot; blocks share most of them."""
        key = (name, id(value))
        if key not in self._arguments:
            if name == "attention_mask":
                mask = self._mask(value)
                self._arguments[key] = mask if mask is None else _BySlot(mask, mask=True)
            elif isinstance(value, tuple):
                self._arguments[key] = tuple(self._laid(name, item) for item in value)
            elif isinstance(value, Tensor) and value.ndim >= 2 and value.shape[1] == self.replay.length:
                rows = torch.zeros_like(self._pair_of) if len(value) == 1 else self._pair_of
                self._arguments[key] = _BySlot(value[rows[:, None], self._columns])
            else:
                self._arguments[key] = value
        return self._arguments[key]

    def _mask(self, mask: Tensor | None) -> Tensor | None:
        """Return who may look at whom, `[row, slot, 1 or head, recorded position and then slot]`."""
        if mask is None and self._simple:
            return None
        length, device = self.replay.length, self._columns.device
        if mask is None:
            mask = torch.ones(1, 1, length, length, dtype=torch.bool, device=device).tril()
        rows = torch.zeros_like(self._pair_of) if len(mask) == 1 else self._pair_of
        base = mask.transpose(1, 2)[rows[:, None], self._columns]
        within = base.gather(3, self._columns[:, None, None].expand(*base.shape[:3], -1))
        earlier = torch.arange(self._reach, device=device) < self._starts[:, :, None, None]
        own = (self._owner[:, :, None] == self._owner[:, None])[:, :, None]
        seen, there = torch.cat([base[..., : self._reach], within], dim=3), torch.cat([earlier, own], dim=3)
        return seen & there if mask.dtype == torch.bool else torch.where(there, seen, torch.finfo(mask.dtype).min)


class _BySlot(NamedTuple):
    """An argument that has one value at each slot, `[row, slot, ...]`."""

    value: Tensor
    mask: bool = False


class _Earlier:
    """Puts keys and values of earlier positions before those of a block's call."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return torch.cat([self.keys, keys], dim=2), torch.cat([self.values, values], dim=2)


class _Known(_Earlier):
    """Gives keys and values that are known, those of the call among them."""

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return self.keys, self.values


def gives_the_recording_back(replay: Replay) -> bool:
    """Whether segments that begin in the middle of every row, where nothing is edited, end in what was recorded."""
    last, ends = replay.n_layers - 1, replay.answer_at.tolist()
    segments = [Segment(pair, start, 0) for pair, end in enumerate(ends) for start in {end // 2, end}]
    for layer in {0, min(1, last)}:  # layers may take turns in how far they look back
        packed = Packed(replay, [segment._replace(first=layer) for segment in segments])
        made = packed.block(layer, packed.recorded(layer), packed.row[:0])
        if not agree(made[packed.used], packed.recorded(layer + 1)[packed.used]):
            return False
    packed = Packed(replay, [segment._replace(first=last) for segment in segments])
    return agree(packed.answers(last, packed.recorded(last), packed.row[:0]), packed.recorded_states())


@contextmanager
def _supplied(projections: Sequence[Projected], index: Tensor, lead: int, anew: Tensor, slots: int) -> Iterator[None]:
    """Have projections run on the first `lead` rows and, of the slots after them (side by side), on `anew`; the others' outputs are known.

    Args:
        projections: modules and their outputs `[row, pos, width]`.
        index: where in these, side by side, the output of each slot after `lead` rows is.
        lead: rows that are computed.
        anew: slots, counted after these rows, that are computed as well.
        slots: of a row.
    """
    cut = lead * slots

    def fewer(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = args[0].flatten(0, 1)
        return (torch.cat([x[:cut], x[cut:][anew]]),)

    def completed(outputs: Tensor) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def all_of(_module: nn.Module, _args: Any, made: Tensor) -> Tensor:
            known = outputs.flatten(0, 1)[index]
            known[anew] = made[cut:]
            return torch.cat([made[:cut], known]).unflatten(0, (-1, slots))

        return all_of

    with ExitStack() as hooks:
        for module, outputs in projections:
            hooks.callback(module.register_forward_pre_hook(fewer).remove)
            hooks.callback(module.register_forward_hook(completed(outputs)).remove)
        yield


def _laid_out(segments: Sequence[Segment], lengths: Sequence[int], width: int) -> tuple[list[int], list[int]]:
    """Return row and offset of each segment: the longest first, each in the first row of its pair and block that has room."""
    row, offset, n_rows = [0] * len(segments), [0] * len(segments), 0
    for _, together in groupby(range(len(segments)), key=lambda number: segments[number].first):
        rooms: dict[int, list[tuple[int, int]]] = {}
        for number in sorted(together, key=lambda number: -lengths[number]):
            pair, length = segments[number].pair, lengths[number]
            rooms.setdefault(pair, [])
            place = next((place for place, (_, used) in enumerate(rooms[pair]) if used + length <= width), None)
            if place is None:
                found, used = n_rows, 0
                n_rows += 1
            else:
                found, used = rooms[pair].pop(place)
            row[number], offset[number] = found, used
            if used + length < width:
                rooms[pair].append((found, used + length))
    return row, offset
