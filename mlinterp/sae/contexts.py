"""The contexts that activate a latent, as text: the tokens around a row, the row's own between « and »."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

WIDTH = 6
"""Tokens shown on each side."""


class Contexts:
    """Texts of the rows of a trace.

    Args:
        meta: the trace's `meta`, one line a row in row order.
        examples: the trace's examples by id, whose tokens are shown whether they have rows or not.
        token_text: gives a token as people read it; its number where None.
    """

    def __init__(
        self, meta: pd.DataFrame, examples: Mapping[str, Mapping[str, Any]], token_text: Callable[[int], str] | None = None
    ) -> None:
        self.token_text = token_text or str
        self.examples = examples
        self.example, names = pd.factorize(meta["example_id"])
        self.names = [str(name) for name in names]
        self.position = meta["position"].to_numpy()
        self._tokens: dict[int, dict[int, int]] = {}

    def text(self, row: int) -> str:
        """Return the context of a row; a prefix row, which has no token, is shown by its slot."""
        tokens, position = self._tokens_of(int(self.example[row])), int(self.position[row])
        shown = {place: self.token_text(tokens[place]) for place in range(position - WIDTH, position + WIDTH + 1) if place in tokens}
        shown[position] = f"«{shown.get(position, f'prefix {position}')}»"
        return " ".join(text for _, text in sorted(shown.items()))

    def distinct(self, rows: Iterable[int], n: int) -> list[str]:
        """Return the contexts of the first n rows at different places; a place that returns at several steps is shown once."""
        seen: dict[tuple[int, int], int] = {}
        for row in rows:
            if row >= 0:
                seen.setdefault((int(self.example[row]), int(self.position[row])), int(row))
        return [self.text(row) for row in list(seen.values())[:n]]

    def _tokens_of(self, example: int) -> dict[int, int]:
        if example not in self._tokens:
            row = self.examples[self.names[example]]
            mask = row.get("mask", np.ones(len(row["input"])))
            self._tokens[example] = {place: int(row["input"][place]) for place in np.flatnonzero(mask).tolist()}
        return self._tokens[example]
