"""What tables of effects share: how a cell says that it has no number, p values for many effects, and estimates to judge by."""

from __future__ import annotations

from typing import Any

import numpy as np

from mlinterp.estimates import largest_of, record
from mlinterp.result import ExperimentResult
from mlinterp.stats import benjamini_hochberg
from mlinterp.token_sets.effects import Effect
from mlinterp.token_sets.floor import artefact
from mlinterp.token_sets.lab import Lab


def status(n: int, min_n: int) -> str:
    """Return whether n contexts make a number: `ok`, `too few`, or `no data` where there is none at all."""
    return "ok" if n >= min_n else "too few" if n else "no data"


def adjust(rows: list[dict[str, Any]]) -> None:
    """Add `p_adj` to rows that have a `p`: adjusted for looking at all of them (Benjamini and Hochberg); None where p is."""
    tested = [row for row in rows if row["p"] is not None]
    adjusted = benjamini_hochberg(np.array([row["p"] for row in tested])) if tested else np.zeros(0)
    for row in rows:
        row["p_adj"] = None
    for row, p in zip(tested, adjusted, strict=True):
        row["p_adj"] = float(p)


def flag_artefacts(lab: Lab, rows: list[dict[str, Any]], post: str, pre: str) -> None:
    """Add `floor_artefact` to rows: whether column `post` shows an effect that column `pre`, of pre-activations, does not. Warns once.

    `low` and `high` are the interval of `post`.
    """
    for row in rows:
        certain = row["low"] is None or not row["low"] <= 0.0 <= row["high"]
        row["floor_artefact"] = artefact(row[post], row[pre], certain=certain)
    if any(row["floor_artefact"] for row in rows):
        lab.warn("an effect on the activation is not there on the pre-activation: clipping at the ReLU floor made it")


def judge(
    result: ExperimentResult, name: str, effect: Effect, null: str, null_value: float = 0.0, of: int = 1, beyond: Effect | None = None
) -> None:
    """Record an effect as what predictions about the number `name` are judged by; `of`: it was chosen as the largest of so many.

    Where the null was measured too, `beyond` is the effect less the null, context by context: its p value is that of the null.
    """
    found = effect.estimate("context", null, null_value, None if beyond is None else beyond.p)
    if found is not None:
        record(result, {name: largest_of(of, found)})
