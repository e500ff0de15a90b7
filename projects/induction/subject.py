"""Models that read a random sequence twice, and how they are trained.

A sequence is P random tokens, then the same P again. What follows a token is not to be known the first time; the second time a model that
finds the first occurrence and reads on from there knows it. Only the second time is scored. Every training batch is drawn anew, with a
period P between 16 and 32, so that no fixed distance leads back; the sequences of the splits have period 24.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mlinterp.determinism import numpy_stream, torch_stream
from mlinterp.errors import SpecError, unknown
from mlinterp.estimates import PerExample
from mlinterp.subjects.base import IGNORED, Batch, Examples
from mlinterp.subjects.hooked import HookedSubject
from mlinterp.subjects.lm_objective import LmObjective, LmOptions

from .circuit import Scores, score_heads
from .model import Network

VOCAB, D_MODEL, N_HEADS = 32, 64, 4
PERIODS, PERIOD = (16, 32), 24
SIZES = {"train": 256, "validation": 256, "test": 512}
DEFAULTS = {"batch_size": 64, "lr": 2e-3, "betas": [0.9, 0.98], "weight_decay": 0.01, "warmup_steps": 50}


def repeated(rng: np.random.Generator, n: int, period: int, name: str) -> Examples:
    """Return `n` sequences of `period` random tokens that come twice; what follows is scored from the first token's return on."""
    once = torch.from_numpy(rng.integers(VOCAB, size=(n, period)))
    inputs = torch.cat([once, once], dim=1)
    targets = torch.full_like(inputs, IGNORED)
    targets[:, period:-1] = inputs[:, period + 1 :]
    return Examples(tuple(f"{name}-{row}" for row in range(n)), inputs, targets, torch.ones_like(inputs, dtype=torch.bool))


class RepeatedObjective(LmObjective):
    """Cross-entropy on what repeats, a fresh batch each step; scored by attention too (`circuit.score_heads`)."""

    def __init__(self, subject: Repeats, options: LmOptions, seed: int) -> None:
        held_out = subject.examples("validation", options.eval_contexts)
        super().__init__(subject.model, lambda batch: subject.model(batch.inputs), subject.splits["train"], held_out, options, seed)
        self.subject = subject
        subject.model.reset_parameters(torch_stream(seed, "weights"))

    def batch(self, step: int) -> Batch:
        """Return the batch of a step: a pure function of seed and step."""
        rng = numpy_stream(self.seed, "batch", step)
        return repeated(rng, self.batch_size, int(rng.integers(PERIODS[0], PERIODS[1] + 1)), f"step-{step}")

    def evaluate(self) -> dict[str, float]:
        """Return the means of `scores`."""
        return {name: score.value for name, score in self.scores().items()}

    def scores(self) -> dict[str, PerExample]:
        """Return, besides `ce_loss` and `token_acc`, the best head's score of each kind: chosen on train sequences, measured on others."""
        found = super().scores()
        seen, held_out = (score_heads(self.subject, part.take(range(len(part)))) for part in (self.train, self.held_out))
        for layer in range(len(held_out.induction)):
            found[f"induction_layer_{layer}"] = _best(seen, held_out, "induction", layer)
        return found | {"previous_token_layer_0": _best(seen, held_out, "previous", 0)}


def _best(seen: Scores, held_out: Scores, kind: str, layer: int) -> PerExample:
    head = int(getattr(seen, kind)[layer].mean(axis=1).argmax())
    each = getattr(held_out, kind)[layer, head]
    return PerExample(each, np.ones(len(each)))


class Repeats(HookedSubject):
    """An attention-only transformer on repeated sequences; every head and every way from it is a site (`model`)."""

    def __init__(self, name: str, n_layers: int) -> None:
        model = Network(VOCAB, D_MODEL, N_HEADS, n_layers, context=2 * PERIODS[1])
        splits = {split: repeated(numpy_stream(0, "sequences", split), n, PERIOD, split) for split, n in SIZES.items()}
        config = {"n_layers": n_layers, "d_model": D_MODEL, "n_heads": N_HEADS, "vocab": VOCAB, "period": PERIOD}
        super().__init__(name, model, _sites(model), splits, config=config)

    def objective(self, options: Mapping[str, Any], seed: int) -> RepeatedObjective:
        """Return how the model is trained; options are those of `LmOptions`, and `DEFAULTS` where left out."""
        return RepeatedObjective(self, LmOptions.read({**DEFAULTS, **options}), seed)


def _sites(model: Network) -> dict[str, tuple[str, str]]:
    """Return the hook points by which every type finds its way, and the ways (`paths`)."""
    sites = {"blocks.0.resid_pre": "embed"}
    for layer, block in enumerate(model.blocks):
        sites[f"blocks.{layer}.attn_z"] = f"blocks.{layer}.attn_z"
        for head in range(len(block.head)):
            at = f"blocks.{layer}.head.{head}"
            sites |= {f"{at}.{what}": f"{at}.{what}" for what in ("q_in", "k_in", "v_in", "pattern", "z", "out")}
        for way in block.way:
            sites |= {f"paths.{layer}.{head}.{way}": f"blocks.{layer}.way.{way}.head.{head}" for head in range(len(block.head))}
            sites[f"paths.{layer}.{way}"] = f"blocks.{layer}.way.{way}.all"
    sites |= {f"blocks.{len(model.blocks) - 1}.resid_post": "resid_post", "unembed": "unembed"}
    return {site: (path, "output") for site, path in sites.items()}


def build(name: str, options: Mapping[str, Any], _root: Path) -> Repeats:
    """Return a model of `n_layers` layers (1 or 2)."""
    for option in options:
        if option != "n_layers":
            raise unknown("options", option, ("n_layers",), what="option")
    if options.get("n_layers") not in (1, 2):
        raise SpecError(f"n_layers {options.get('n_layers')!r}", field="options.n_layers", allowed="1 or 2")
    return Repeats(name, options["n_layers"])
