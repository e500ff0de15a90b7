"""What each head does, and which path matters: `python projects/induction/circuit.py 0 1 2` trains these seeds and prints their tables.

Ablating a head, or one way from it to the next layer, puts the mean over the batch in the place of what it adds, position by position.
Its rise is the cross-entropy (nats a token) on what repeats, with the ablation minus without, in the same sequences. All rises are
interventional; scores of attention are observational.

- induction score: attention from the second occurrence of a token to what followed the first, mean over the repeated half.
- previous-token score: attention to the position before.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import mlinterp
from mlinterp.determinism import numpy_stream, settle
from mlinterp.progress import Silent
from mlinterp.stats import Interval, bootstrap_intervals
from mlinterp.subjects.base import Address, Batch, Subject
from mlinterp.subjects.fit import SubjectFit
from mlinterp.trainer import fit

INDUCES = 0.4
"""Induction score above which a head counts as an induction head (the threshold of TransformerLens's detector)."""


@dataclass(frozen=True)
class Scores:
    """Attention of every head in every sequence.

    Attributes:
        induction: float64 `[layer, head, n]`.
        previous: float64 `[layer, head, n]`.
    """

    induction: np.ndarray
    previous: np.ndarray


@torch.no_grad()
def score_heads(subject: Subject, batch: Batch) -> Scores:
    """Read off the patterns where every head of a subject of this project looks. The sequences of a batch have one period."""
    length = batch.inputs.shape[1]
    here, period = torch.arange(length), int(batch.scored[0].nonzero()[0])
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def look(address: Address, pattern: Tensor) -> Tensor:
        after_first, before = pattern[:, here[period:], here[period:] - period + 1], pattern[:, here[1:], here[1:] - 1]
        found[address.site] = tuple(part.mean(dim=1).double().cpu().numpy() for part in (after_first, before))
        return pattern

    subject.forward(batch, look, [site for site in subject.sites if site.endswith(".pattern")])
    layers = sorted({site.split(".")[1] for site in found})
    each = [[found[f"blocks.{layer}.head.{head}.pattern"] for head in range(len(found) // len(layers))] for layer in layers]
    return Scores(*(np.array([[scores[kind] for scores in layer] for layer in each]) for kind in range(2)))


@torch.no_grad()
def losses(subject: Subject, batch: Batch, ablated: Collection[str] = ()) -> np.ndarray:
    """Return each sequence's cross-entropy on what repeats (nats a token), float64 `[n]`, with the mean of the batch at some sites."""
    outputs = subject.forward(batch, lambda _, h: h.mean(dim=0, keepdim=True).expand_as(h), ablated)
    each = cross_entropy(outputs.logits.transpose(1, 2).double(), batch.targets, reduction="none")
    return (each.sum(dim=1) / batch.scored.sum(dim=1)).cpu().numpy()


@dataclass(frozen=True)
class Circuit:
    """What was measured of a model with two layers; every rise with its 95 % bootstrap interval over sequences.

    Attributes:
        loss: cross-entropy on what repeats, nothing ablated.
        induction: score of each head, `[layer, head]`.
        previous: score of each head, `[layer, head]`.
        head: rise when a head of layer 0 is ablated altogether.
        way: rise when only the queries (q), keys (k) or values (v) of layer 1 see it ablated, by way.
        single: rise when one induction head of layer 1 is ablated, by head.
        joint: rise when all of them are.
        others: rise when all other heads of layer 1 are; None where there are none.
    """

    loss: float
    induction: np.ndarray
    previous: np.ndarray
    head: list[Interval]
    way: dict[str, list[Interval]]
    single: dict[int, Interval]
    joint: Interval
    others: Interval | None

    @property
    def top(self) -> int:
        """The head of layer 0 that looks most at the position before."""
        return int(self.previous[0].argmax())


def measure(subject: Subject, n: int = 256) -> Circuit:
    """Ablate heads and ways of a trained model with two layers on `n` test sequences."""
    batch = subject.examples("test", n).take(range(n))
    scores = score_heads(subject, batch)
    induction, previous = scores.induction.mean(axis=2), scores.previous.mean(axis=2)
    base, heads = losses(subject, batch), range(induction.shape[1])

    def rise(sites: Collection[str]) -> Interval:
        rng = numpy_stream(0, "rise")
        return bootstrap_intervals((losses(subject, batch, sites) - base)[:, None], rng=rng)[0]

    inducing = [head for head in heads if induction[1, head] > INDUCES]
    rest = [head for head in heads if head not in inducing]
    return Circuit(
        loss=float(base.mean()),
        induction=induction,
        previous=previous,
        head=[rise([f"blocks.0.head.{head}.out"]) for head in heads],
        way={way: [rise([f"paths.0.{head}.{way}"]) for head in heads] for way in ("q", "k", "v")},
        single={head: rise([f"blocks.1.head.{head}.out"]) for head in inducing},
        joint=rise([f"blocks.1.head.{head}.out" for head in inducing]),
        others=rise([f"blocks.1.head.{head}.out" for head in rest]) if rest else None,
    )


def trained(root: Path, name: str, seed: int, steps: int = 700) -> Subject:
    """Return a subject of the project after as many optimizer steps of `seed`, as `subject_fit` trains it."""
    settle(seed)
    subject = mlinterp.load_subject(root, name)
    module = SubjectFit(subject, subject.objective({}, seed), steps, eval_every=steps)
    with tempfile.TemporaryDirectory() as folder:
        fit(module, Path(folder), Silent(), checkpoint_every=steps)
    module.finish()
    return subject


def lines(circuit: Circuit) -> Iterator[str]:
    """Yield a circuit as people read it."""

    def told(rise: Interval) -> str:
        return f"{rise.estimate:+.2f} [{rise.low:.2f}, {rise.high:.2f}]"

    yield f"cross-entropy on what repeats {circuit.loss:.2f}; induction heads of layer 1: {', '.join(map(str, circuit.single)) or 'none'}"
    yield "head   previous token   ablated              only k               only q               only v"
    for head, rise in enumerate(circuit.head):
        ways = "   ".join(told(circuit.way[way][head]) for way in ("k", "q", "v"))
        yield f"0.{head}         {circuit.previous[0, head]:.2f}        {told(rise)}   {ways}"
    yield "head   induction        ablated"
    for head, score in enumerate(circuit.induction[1]):
        yield f"1.{head}         {score:.2f}        {told(circuit.single[head]) if head in circuit.single else 'no induction head'}"
    yield f"all induction heads {told(circuit.joint)}; all others {told(circuit.others) if circuit.others else 'none'}"


def main() -> None:
    """Train each seed named on the command line and print what was measured."""
    for seed in map(int, sys.argv[1:] or ["0"]):
        print(f"seed {seed}")
        for line in lines(measure(trained(Path(__file__).parent, "two_layers", seed))):
            print(f"  {line}")


if __name__ == "__main__":
    main()
