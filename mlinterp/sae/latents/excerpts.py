"""Texts around contexts: each example stands on the page once, from the first to the last token that any of its contexts needs."""

from __future__ import annotations

import numpy as np

from mlinterp.reports.latent_card import PADDING, PREFIX, Context, Text
from mlinterp.sae.latents.layout import Layout
from mlinterp.sae.latents.trails import Trail
from mlinterp.subjects.base import IGNORED
from mlinterp.tracing.dataset import TraceDataset


class Excerpts:
    """The examples of a trace as far as contexts show them.

    Args:
        trace: where they come from.
        layout: the rows that are read.
        window: tokens to either side of the one that a context is about.
        whole: whether a row is about every token of its example rather than one, so that all of them stand for its activation.

    Attributes:
        aligned: whether the answer to a position stands at that position, as in a puzzle, rather than being its next token.
    """

    def __init__(self, trace: TraceDataset, layout: Layout, window: int, *, whole: bool = False) -> None:
        self._trace, self._layout, self._window, self._whole = trace, layout, window, whole
        self._numbers: dict[int, int] = {}
        self._bounds: list[list[int]] = []
        self.aligned = trace.header["N_sup"] is not None
        self._first_row = -trace.header["prefix_positions"] if bool((layout.position < 0).any()) else 0

    def context(self, trail: Trail) -> Context:
        """Return a trail as a context of its example, which from now on is among `texts`."""
        example = int(np.searchsorted(self._layout.starts, trail.place, side="right")) - 1
        position = int(self._layout.position[trail.place])
        real = np.flatnonzero(self._mask(example))
        start = max(position - self._window, min(self._first_row, int(real[0])))
        stop = min(position + self._window, int(real[-1])) + 1
        number = self._numbers.setdefault(example, len(self._numbers))
        if number == len(self._bounds):
            self._bounds.append([start, stop])
        bounds = self._bounds[number]
        bounds[:] = [min(bounds[0], start), max(bounds[1], stop)]
        positions, acts = trail.positions, trail.acts
        if self._whole:
            positions, acts = real, np.full(len(real), acts[0])
        active, read = np.flatnonzero(acts > 0), set(positions.tolist())
        return Context(
            text=number,
            evaluation=int(self._layout.evaluation[trail.place]),
            position=position,
            acts=tuple((int(positions[at]), float(acts[at])) for at in active),
            unread=tuple(place for place in range(start, stop) if place not in read),
        )

    def texts(self) -> tuple[Text, ...]:
        """Return the examples in the order in which contexts came."""
        return tuple(self._text(example, *self._bounds[number]) for example, number in self._numbers.items())

    def _text(self, example: int, start: int, stop: int) -> Text:
        row, mask = self._row(example), self._mask(example)

        def token(place: int) -> int:
            return PREFIX if place < 0 else int(row["input"][place]) if mask[place] else PADDING

        answers = [-1 if place < 0 or row["target"][place] == IGNORED else int(row["target"][place]) for place in range(start, stop)]
        return Text(
            name=self._layout.examples[example],
            start=start,
            tokens=tuple(token(place) for place in range(start, stop)),
            before=int(mask[: max(start, 0)].sum()),
            after=int(mask[stop:].sum()),
            answers=tuple(answers) if self.aligned else None,
        )

    def held(self, example: int) -> np.ndarray:
        """Return the tokens that an example holds, each once."""
        return np.unique(np.asarray(self._row(example)["input"])[self._mask(example)])

    def _row(self, example: int) -> dict[str, list[int]]:
        found: dict[str, list[int]] = self._trace.examples[self._layout.examples[example]]
        return found

    def _mask(self, example: int) -> np.ndarray:
        row = self._row(example)
        return np.asarray(row.get("mask", np.ones(len(row["input"]))), dtype=bool)
