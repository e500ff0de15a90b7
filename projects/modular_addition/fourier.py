"""What the frequencies of the embedding do: `python projects/modular_addition/fourier.py 0 1 2` trains these seeds and prints their tables.

Each row zeroes some frequencies of the embedding (the constant stays) and adds all 53² pairs, those of training too. It is
interventional; which frequencies are keys is read off the weights, which is observational. A share has its 95 % Wilson
interval over pairs.

- nothing: no frequency is zeroed.
- only keys: every frequency but the keys is (enough?).
- without keys: the keys are (needed?).
- without draw N: as many random frequencies that are no keys are (the control).
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import mlinterp
from mlinterp.determinism import settle
from mlinterp.progress import Silent
from mlinterp.stats import Interval, wilson_interval
from mlinterp.subjects.base import Batch, Subject
from mlinterp.subjects.fit import SubjectFit
from mlinterp.trainer import fit

if TYPE_CHECKING:
    from .model import Embedding, Network

STEPS = 4000


def zeroings(embedding: Embedding) -> dict[str, Tensor]:
    """Return the frequencies that each row zeroes, bool `[(p - 1) / 2]`, by the row's name."""
    groups = embedding.groups()
    draws = {f"without {name.replace('.', ' ')}": chosen for name, chosen in groups.items() if name.startswith("draw")}
    return {"nothing": torch.zeros_like(groups["keys"]), "only keys": groups["others"], "without keys": groups["keys"], **draws}


@torch.no_grad()
def answers(network: Network, batch: Batch, zeroed: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return each pair's cross-entropy (nats) and whether it is added rightly, float64 `[n]` both, with some frequencies zeroed."""
    embedding, sums = network.embedding, batch.targets[:, 2]
    logits = network.answer((embedding.W_E - embedding.part(zeroed))[batch.inputs]).double().cpu()
    return cross_entropy(logits, sums, reduction="none").numpy(), (logits.argmax(dim=1) == sums).double().numpy()


@dataclass(frozen=True)
class Answered:
    """How well all pairs are added: mean cross-entropy (nats) and the share that is right, with its interval."""

    loss: float
    right: Interval


def measure(subject: Subject) -> dict[str, Answered]:
    """Return how well a network adds under each row."""
    pairs, found = subject.examples("test", 10_000), {}
    for name, zeroed in zeroings(subject.model.embedding).items():
        loss, right = answers(subject.model, pairs, zeroed)
        found[name] = Answered(float(loss.mean()), wilson_interval(int(right.sum()), len(right)))
    return found


def keys(subject: Subject) -> dict[int, float]:
    """Return the frequencies that are keys, each with its share of the embedding's power (the constant's not counted)."""
    embedding = subject.model.embedding
    power = embedding.power().tolist()
    return {number + 1: power[number] for number in embedding.groups()["keys"].nonzero()[:, 0].tolist()}


def trained(root: Path, seed: int, weight_decay: float = 1.0, steps: int = STEPS) -> Subject:
    """Return the network after as many optimizer steps of `seed`, as `subject_fit` trains it."""
    settle(seed)
    subject = mlinterp.load_subject(root, "adder")
    module = SubjectFit(subject, subject.objective({"weight_decay": weight_decay}, seed), steps, eval_every=steps)
    with tempfile.TemporaryDirectory() as folder:
        fit(module, Path(folder), Silent(), checkpoint_every=steps)
    module.finish()
    return subject


def main() -> None:
    """Train each seed named on the command line, with and without weight decay, and print what was measured."""
    for seed in map(int, sys.argv[1:] or ["0"]):
        for weight_decay in (1.0, 0.0):
            subject = trained(Path(__file__).parent, seed, weight_decay)
            shares = ", ".join(f"{key} ({share:.2f})" for key, share in keys(subject).items())
            print(f"seed {seed}, weight decay {weight_decay:g}: keys {shares}", flush=True)
            for name, answered in measure(subject).items():
                right = answered.right
                print(f"  {name:15} cross-entropy {answered.loss:6.2f}   right {right.estimate:.3f} [{right.low:.3f}, {right.high:.3f}]")


if __name__ == "__main__":
    main()
