"""Addition modulo 53: the sequences `a b =`, a network that learns them from half of all pairs, and how it is trained.

Training sees all its pairs at every step (full batch). `validation` holds the pairs left out; `test` is all 53² pairs, those of
training too, as interventions are about the whole table. Which pairs are for training is the same for every seed; seeds draw weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from mlinterp.determinism import numpy_stream, torch_stream
from mlinterp.errors import unknown
from mlinterp.estimates import PerExample
from mlinterp.subjects.base import IGNORED, Batch, Examples
from mlinterp.subjects.hooked import HookedSubject
from mlinterp.subjects.lm_objective import LmObjective, LmOptions

from .fourier import answers, zeroings
from .model import DRAWS, Network

P, D_MODEL, N_HEADS, D_MLP = 53, 64, 4, 256
N_TRAIN = P * P // 2
DEFAULTS = {"lr": 1e-3, "betas": [0.9, 0.98], "weight_decay": 1.0, "warmup_steps": 10, "eval_contexts": P * P, "batch_size": P * P}


def sums(pairs: np.ndarray) -> Examples:
    """Return the sequences `a b =` of pairs `[n, 2]`, with (a + b) mod p to be said at `=`."""
    inputs = torch.from_numpy(np.column_stack([pairs, np.full(len(pairs), P)]))
    targets = torch.full_like(inputs, IGNORED)
    targets[:, 2] = torch.from_numpy(pairs.sum(axis=1) % P)
    return Examples(tuple(f"{a}+{b}" for a, b in pairs.tolist()), inputs, targets, torch.ones_like(inputs, dtype=torch.bool))


class AdditionObjective(LmObjective):
    """Cross-entropy at `=` on every training pair at once, scored on the pairs left out and by what frequencies do (`fourier`)."""

    def __init__(self, subject: Addition, options: LmOptions, seed: int) -> None:
        held_out = subject.examples("validation", options.eval_contexts)
        super().__init__(subject.model, lambda batch: subject.model(batch.inputs), subject.splits["train"], held_out, options, seed)
        self.network, self.pairs = subject.model, subject.splits["test"]
        subject.model.draw(torch_stream(seed, "weights"))

    def batch(self, step: int) -> Batch:
        """Return every training pair, in their own order."""
        return self.train

    def loss(self, step: int) -> tuple[Tensor, Mapping[str, float]]:
        """Return the mean cross-entropy (nats a pair), in float64: float32 leaves no gradient once the pairs are learned by heart."""
        embedding = self.network.embedding
        logits = self.network.answer(embedding.W_E[self.train.inputs])
        return cross_entropy(logits.double(), self.train.targets[:, 2].to(logits.device)), {}

    def evaluate(self) -> dict[str, float]:
        """Return the means of `scores`; the keys' number and share of the embedding's power, which no example adds to."""
        embedding = self.network.embedding
        keys = embedding.groups()["keys"]
        shares = {"n_keys": float(keys.sum()), "key_power": float(embedding.power()[keys].sum())}
        return {name: score.value for name, score in self.scores().items()} | shares

    def scores(self) -> dict[str, PerExample]:
        """Return `ce_loss` and `token_acc` on the pairs left out, on those of training, and on all with frequencies zeroed.

        `_train` is observational like them. `_only_keys` (the paper's restricted loss), `_without_keys` (its excluded loss) and
        `_without_random` (the mean over draws) are interventional.
        """
        zeroed = zeroings(self.network.embedding)
        rows = {name: answers(self.network, self.pairs, frequencies) for name, frequencies in zeroed.items()}
        drawn = [rows[name] for name in rows if name.startswith("without draw")]
        shown = {
            "train": answers(self.network, self.train, zeroed["nothing"]),
            "only_keys": rows["only keys"],
            "without_keys": rows["without keys"],
            "without_random": tuple(np.mean(column, axis=0) for column in zip(*drawn, strict=True)),
        }
        found = super().scores()
        for name, (loss, right) in shown.items():
            each = np.ones(len(loss))
            found |= {f"ce_loss_{name}": PerExample(loss, each), f"token_acc_{name}": PerExample(right, each, is_share=True)}
        return found


class Addition(HookedSubject):
    """A network for addition modulo p, whose embedding's frequencies are sites (`model.Embedding`)."""

    def __init__(self, name: str) -> None:
        model = Network(P, D_MODEL, N_HEADS, D_MLP)
        pairs = np.stack(np.meshgrid(np.arange(P), np.arange(P), indexing="ij"), axis=-1).reshape(-1, 2)
        order = numpy_stream(0, "pairs").permutation(len(pairs))
        splits = {
            "train": sums(pairs[np.sort(order[:N_TRAIN])]),
            "validation": sums(pairs[np.sort(order[N_TRAIN:])]),
            "test": sums(pairs),
        }
        config = {"p": P, "d_model": D_MODEL, "n_heads": N_HEADS, "d_mlp": D_MLP}
        tokens = [*map(str, range(P)), "="]
        super().__init__(name, model, _sites(), splits, config=config, tokens=tokens)

    def objective(self, options: Mapping[str, Any], seed: int) -> AdditionObjective:
        """Return how the network is trained; options are those of `LmOptions`, and `DEFAULTS` where left out."""
        return AdditionObjective(self, LmOptions.read({**DEFAULTS, **options}), seed)


def _sites() -> dict[str, tuple[str, str]]:
    parts = ["keys", "others", *(f"draw.{number}" for number in range(DRAWS))]
    paths = {f"embed.{part}": f"embedding.{part}" for part in parts} | {"embed": "embedding.embed"}
    return {site: (path, "output") for site, path in paths.items()}


def build(name: str, options: Mapping[str, Any], _root: Path) -> Addition:
    """Return a network that nobody has trained yet."""
    if options:
        raise unknown("options", next(iter(options)), (), what="option")
    return Addition(name)
