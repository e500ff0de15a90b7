"""A hundred thousand counterfactual contexts through a token-set subject and one latent of an SAE, against one context at a time.

python benchmarks/counterfactual.py [--project projects/splatoon] [--subject full] [--contexts 100000]

Every family of the domain is swept over all its rungs from the same observed contexts, as `family_1d_sweep` asks. Speed does not depend on
what the weights are, so they are the initial ones. Both ways must give equal numbers. Exits 1 where an aim is missed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from mlinterp.determinism import settle
from mlinterp.project import find_project
from mlinterp.sae.config import SAEConfig
from mlinterp.sae.kinds import build
from mlinterp.subjects.token_sets import edits
from mlinterp.subjects.token_sets.table import ContextTable
from mlinterp.token_sets.feature import LatentReader

FASTER, OUTSIDE = 50.0, 0.2
"""Aims: how much faster than the loop, and the largest share of time outside the forward pass."""
LATENT = 7


def asked(table: ContextTable, n: int) -> ContextTable:
    """Return the first `n` contexts of a sweep of every family over all its rungs, from as many observed contexts as that takes."""
    families = table.vocabulary.families
    each = sum(1 + len(family.levels) for family in families)
    bases = table.take(slice(0, -(-n // each)))
    parts = []
    for family in families:
        stripped = edits.strip_family(bases, family.name)
        parts += [stripped, *(edits.set_rung(stripped, family.name, rung) for rung in family.levels)]
    return ContextTable.stack(parts).take(slice(0, n))


@contextmanager
def stopwatch(owner: object, name: str) -> Iterator[list[float]]:
    """Count the seconds spent in a method while the block runs."""
    spent, method = [0.0], getattr(owner, name)

    def timed(*args: object, **options: object) -> object:
        start = time.perf_counter()
        try:
            return method(*args, **options)
        finally:
            spent[0] += time.perf_counter() - start

    setattr(owner, name, timed)
    try:
        yield spent
    finally:
        delattr(owner, name)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> int:
    """Print both ways' times, their ratio, and where the time of the batched one goes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", default="projects/splatoon")
    parser.add_argument("--subject", default="full")
    parser.add_argument("--contexts", type=int, default=100_000)
    parser.add_argument("--d-sae", type=int, default=2048)
    parser.add_argument("--single", type=int, default=500, help="contexts of the loop; its time is scaled up")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    settle(0, 1)
    subject = find_project(Path(given.project)).load_subject(given.subject)
    site = subject.readout
    config = SAEConfig(d_in=subject.width(site), d_sae=given.d_sae, activation="batchtopk", k=16, site=site)
    sae = build(config).requires_grad_(requires_grad=False).eval()
    table = asked(subject.package.contexts("test"), given.contexts)
    distinct = len(np.unique(table.words, axis=0))
    print(f"{len(table)} contexts, {distinct} distinct; {subject.name}: d {config.d_in}, SAE of {config.d_sae} latents; one thread")

    def loop(rows: range) -> np.ndarray:
        reader = LatentReader(subject, sae)
        return np.array([reader._one(table.take(slice(row, row + 1)), LATENT).post[0] for row in rows])

    picked = range(0, len(table), max(1, len(table) // given.single))
    single, whole, outside = [], [], []
    batched = LatentReader(subject, sae).feature_activation(table, LATENT)
    np.testing.assert_allclose(loop(picked), batched[picked.start : picked.stop : picked.step], rtol=1e-4, atol=1e-5)
    for _ in range(given.rounds):
        single.append(seconds(lambda: loop(picked)) * len(table) / len(picked))
        reader = LatentReader(subject, sae)
        with stopwatch(subject, "_of_bag") as network, stopwatch(reader, "_one") as computing, stopwatch(subject, "activations") as traced:
            whole.append(seconds(lambda reader=reader: reader.feature_activation(table, LATENT)))
        forward = network[0] + (computing[0] - traced[0])
        outside.append(1 - forward / whole[-1])
    ratio, share = statistics.median(single) / statistics.median(whole), statistics.median(outside)
    again = seconds(lambda: reader.feature_activation(table, LATENT))
    print(f"one at a time   {statistics.median(single):8.2f} s (measured on {len(picked)}, scaled)")
    print(f"batched         {statistics.median(whole):8.3f} s   {ratio:.0f}x as fast   (aim > {FASTER:.0f}x)")
    print(f"outside the forward pass {share:.1%} of that   (aim < {OUTSIDE:.0%})")
    print(f"asked again     {again:8.3f} s, from the cache")
    print(f"torch {torch.__version__}, numpy {np.__version__}")
    return 0 if ratio > FASTER and share < OUTSIDE else 1


if __name__ == "__main__":
    sys.exit(main())
