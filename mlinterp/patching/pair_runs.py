"""One prompt of every pair as the model reads it, in parts that fit in memory.

What is kept of every prompt are its activations at a component's places and its answer. The recordings that patched runs start from are
several times as large, so only one part's is held; where there are several parts, it is made again when it is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mlinterp.halving import halved
from mlinterp.patching.answers import at_answers
from mlinterp.patching.packed import gives_the_recording_back
from mlinterp.patching.places import Places
from mlinterp.patching.replay import Replay, anatomy
from mlinterp.subjects.base import Address, Examples
from mlinterp.subjects.hooked import HookedSubject
from mlinterp.subjects.pairs import answer_columns


class _Read(NamedTuple):
    """Some prompts: activations by layer, logits, what the final norm read (where that is known), and whether it can be replayed."""

    activations: dict[int, Tensor]
    logits: Tensor
    states: Tensor | None
    replayable: bool


class PairRuns:
    """Runs of one prompt of every pair, untouched.

    Attributes:
        activations: layer to the activations there, `[pair, pos, d]`.
        logits: at the answer positions, float32 `[pair, vocab]`.
        states: what the final norm reads there, `[pair, d]`; None where that is not known.
        answer_at: column of each answer position, int64 `[pair]`.
        parts: the pairs that are recorded together, in order.
        replayable: whether patched runs can start from the recordings.

    Args:
        subject: the model.
        examples: the prompts.
        places: the component.
        at_once: prompts a part; halved where one does not fit in memory. Raises EnvironmentFault where not even one prompt does.
        replay: whether patched runs will start from the recordings.
    """

    def __init__(self, subject: HookedSubject, examples: Examples, places: Places, at_once: int, *, replay: bool) -> None:
        self._subject, self._examples, self._places, self._wanted = subject, examples, places, replay
        self._anatomy, self._held = anatomy(subject), dict[range, Replay]()
        self.answer_at, self.parts, read = answer_columns(examples), list[range](), list[_Read]()
        what, n = f"prompt of {examples.inputs.shape[1]} tokens", len(examples)
        for at in range(0, n, at_once):
            for part, found in halved(range(at, min(at + at_once, n)), lambda rows: (rows, self._read(rows)), what):
                self.parts.append(range(part[0], part[-1] + 1))
                read.append(found)
        self.activations = {layer: _joined([each.activations[layer] for each in read]) for layer in places.sites}
        self.logits = _joined([each.logits for each in read])
        self.states = None if self._anatomy is None else _joined([each.states for each in read if each.states is not None])
        self.replayable = all(each.replayable for each in read)
        if not self.replayable:
            self._held.clear()

    def replay(self, part: range) -> Replay:
        """Return the recording of a part."""
        if part not in self._held:
            self._record(part)
        return self._held[part]

    def _record(self, part: Sequence[int]) -> Replay:
        assert self._anatomy is not None
        self._held.clear()
        sites = list(self._places.sites.values()) if self._places.on_stream is None else []
        made = Replay(self._subject, self._anatomy, self._examples.take(part), self.answer_at[list(part)], sites, project=self._wanted)
        if self._wanted:
            self._held[range(part[0], part[-1] + 1)] = made
        return made

    def _read(self, part: Sequence[int]) -> _Read:
        if self._anatomy is None:
            return self._read_plainly(part)
        made, above = self._record(part), self._places.on_stream
        states = made.states(made.streams[-1], torch.arange(len(part), device=made.logits.device))
        if above is None:
            activations = {layer: made.seen[site] for layer, site in self._places.sites.items()}
        else:
            activations = {layer: made.streams[layer + above] for layer in self._places.sites}
        replayable = self._wanted and self._places.inside and made.holds() and gives_the_recording_back(made)
        return _Read(activations, made.logits, states, replayable)

    def _read_plainly(self, part: Sequence[int]) -> _Read:
        seen: dict[str, Tensor] = {}

        def keep(address: Address, h: Tensor) -> Tensor:
            seen[address.site] = h.clone()
            return h

        sites = self._places.sites
        outputs = self._subject.forward(self._examples.take(part), keep, list(sites.values()))
        assert outputs is not None
        logits = at_answers(outputs.logits, self.answer_at[list(part)]).float()
        return _Read({layer: seen[site] for layer, site in sites.items()}, logits, None, replayable=False)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
