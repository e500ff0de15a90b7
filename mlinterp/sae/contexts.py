"""The contexts that activate a latent, as text: the tokens around a row, the row's own between « and »."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd

WIDTH = 6
"""Tokens shown on each side."""


class Contexts:
    """Texts of the rows of a trace.

    Args:
        meta: the trace's `meta`, one line a row in row order.
        token_text: gives a token as people read it; its number where None.
    """

    def __init__(self, meta: pd.DataFrame, token_text: Callable[[int], str] | None = None) -> None:
        self.token_text = token_text or str
        self.example = pd.factorize(meta["example_id"])[0]
        self.position = meta["position"].to_numpy()
        self.token_in = meta["token_in"].to_numpy()
        self.by_example = np.argsort(self.example, kind="stable")
        self.starts = np.searchsorted(self.example[self.by_example], np.arange(self.example.max() + 2))
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
            rows = self.by_example[self.starts[example] : self.starts[example + 1]]
            self._tokens[example] = {int(self.position[row]): int(self.token_in[row]) for row in rows if self.position[row] >= 0}
        return self._tokens[example]
