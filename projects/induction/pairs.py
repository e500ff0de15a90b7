"""Prompts that only induction can tell apart: `python projects/induction/pairs.py` writes `pairs.jsonl` and `circuit_pairs.jsonl`.

Clean: a period of different random tokens, and it again up to `ASKED`, whose successor is the answer. Corrupted: the same, but for two
tokens of the first reading that change places, so that another token, the wrong answer, follows the first occurrence of the last. Whoever
only knows which tokens there are, or which stood where the second time, says the same of both.
"""

from __future__ import annotations

import json
from pathlib import Path

from mlinterp.determinism import numpy_stream

FILES = ("pairs", "circuit_pairs")
N, PERIOD, VOCAB = 64, 24, 32
ASKED, OTHER = 8, 16
"""Positions of the first reading whose tokens change places; the second reading ends at the first of them."""


def lines(name: str) -> list[str]:
    """Return the pairs of a file as lines of JSON."""
    found = []
    for number in range(N):
        once = numpy_stream(0, name, number).permutation(VOCAB)[:PERIOD].tolist()
        swapped = list(once)
        swapped[ASKED], swapped[OTHER] = once[OTHER], once[ASKED]
        again = once[: ASKED + 1]
        pair = {"clean": once + again, "corrupted": swapped + again, "answer": once[ASKED + 1], "wrong": once[OTHER + 1]}
        found.append(json.dumps({"id": f"pair-{number}", **pair}))
    return found


if __name__ == "__main__":
    for name in FILES:
        (Path(__file__).parent / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines(name)))
