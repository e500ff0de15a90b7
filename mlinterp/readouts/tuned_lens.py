"""The tuned lens (Belrose et al. 2023, "Eliciting Latent Predictions from Transformers with the Tuned Lens").

Before a layer's stream h is read out, it goes through an affine translator of that layer, h + h A + b, which is fitted so that what is
read is the final answer: loss = KL(final ‖ read), in nats, mean over the tokens of a batch. A = 0 and b = 0 at the start, which is the
logit lens. A translator that does not beat it on the validation split is put back to that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mlinterp.determinism import numpy_stream
from mlinterp.errors import VerificationError
from mlinterp.halving import halved
from mlinterp.io.digests import sha256_json
from mlinterp.io.tensors import load_tensors, save_tensors
from mlinterp.readouts.lens import Reading
from mlinterp.readouts.reading import Readout, states_of
from mlinterp.subjects.base import Batch, Examples, Subject
from mlinterp.trainer import ResumableModule

WEIGHTS = "tuned_lens.safetensors"
SCHEMA = "mlinterp.tuned_lens.v1"


@dataclass(frozen=True)
class Translators:
    """An affine map for each layer but the last, which is read out as it is.

    Attributes:
        sites: the layers' hook points, in order.
        matrix: A of each, `[layer, d, d]`.
        bias: b of each, `[layer, d]`.
    """

    sites: tuple[str, ...]
    matrix: Tensor
    bias: Tensor

    def __call__(self, site: str, stream: Tensor) -> Tensor:
        """Return a stream `[..., d]` as the final one; one that has no translator as it is."""
        if site not in self.sites:
            return stream
        layer, x = self.sites.index(site), stream.float()
        return (x + x @ self.matrix[layer] + self.bias[layer]).to(stream.dtype)

    def keeping(self, kept: Tensor) -> Translators:
        """Return these translators, with those that are not kept (bool `[layer]`) put back to the identity."""
        return Translators(self.sites, self.matrix * kept[:, None, None].to(self.matrix), self.bias * kept[:, None].to(self.bias))


def translated(readout: Readout, translators: Translators) -> Reading:
    """Return the tuned lens: every layer through its translator and the readout."""
    return lambda site, stream: readout.logits(translators(site, stream))


class TunedLensFit(ResumableModule):
    """Fits the translators of all layers side by side with Adam, its learning rate falling linearly to zero.

    Args:
        subject: the model, which stays as it is.
        readout: how it reads out.
        train: what the translators are fitted on; every example once an epoch, in an order that follows from the seed.
        steps: optimizer steps.
        lr: learning rate at the start.
        batch_size: examples a step.
        seed: orders the examples.
    """

    stage = "tuned_lens"

    def __init__(self, subject: Subject, readout: Readout, train: Examples, *, steps: int, lr: float, batch_size: int, seed: int) -> None:
        super().__init__()
        self.subject, self.readout, self.train_examples = subject, readout, train
        self.total_steps, self.lr, self.seed = steps, lr, seed
        self.batch_size = min(batch_size, len(train))
        self.network = subject.model  # a part of this module, so that both are on one device
        self.sites = readout.sites[:-1]
        d = subject.width(readout.sites[-1])
        self.matrix = nn.Parameter(torch.zeros(len(self.sites), d, d))
        self.bias = nn.Parameter(torch.zeros(len(self.sites), d))
        self.adam = torch.optim.Adam([self.matrix, self.bias], lr=lr)

    @property
    def translators(self) -> Translators:
        """The translators as they stand."""
        return Translators(self.sites, self.matrix, self.bias)

    def fingerprint(self) -> Mapping[str, Any]:
        """Return what a checkpoint must agree on."""
        settings = {"steps": self.total_steps, "lr": self.lr, "batch_size": self.batch_size, "seed": self.seed}
        return {
            **settings,
            "subject": self.subject.digest(),
            "examples": sha256_json(list(self.train_examples.ids)),
            "sites": list(self.sites),
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return translators and moments."""
        named = {"matrix": self.matrix, "bias": self.bias}
        moments = {f"adam.{key}.{name}": value for name, each in named.items() for key, value in self.adam.state[each].items()}
        return {**named, **moments}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `tensors` returned."""
        with torch.no_grad():
            for name, parameter in (("matrix", self.matrix), ("bias", self.bias)):
                parameter.copy_(tensors[name])
                self.adam.state[parameter] = {key: tensors[f"adam.{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}

    def inner_step(self, step: int) -> Mapping[str, float | Tensor]:
        """Take optimizer step `step`. Raises EnvironmentFault for a batch that does not fit in memory: halving it would change the fit."""
        for group in self.adam.param_groups:
            group["lr"] = self.lr * (1 - step / self.total_steps)
        self.adam.zero_grad(set_to_none=True)
        batch = self._batch(step)
        loss = next(halved([batch], lambda one: self._slopes(one[0]), f"batch of {len(batch)} examples"))
        self.adam.step()
        return {"loss": loss}

    def _slopes(self, batch: Batch) -> Tensor:
        """Leave the gradient of the loss in the parameters and return the loss."""
        states, logits = states_of(self.subject, batch, self.sites)
        final = logits[batch.mask].float().log_softmax(dim=-1)
        total = torch.zeros((), device=final.device)
        for site in self.sites:  # one layer's logits at a time: all of them would not fit
            read = self.readout.logits(self.translators(site, states[site][batch.mask])).float().log_softmax(dim=-1)
            loss = (final.exp() * (final - read)).sum(dim=-1).mean()
            loss.backward()
            total += loss.detach()
        return total / len(self.sites)

    def _batch(self, step: int) -> Batch:
        epoch, at = divmod(step, len(self.train_examples) // self.batch_size)
        order = numpy_stream(self.seed, "tuned_lens", epoch).permutation(len(self.train_examples))
        return self.train_examples.take(order[at * self.batch_size : (at + 1) * self.batch_size].tolist())


def save(translators: Translators, subject: Subject, folder: Path) -> list[str]:
    """Write translators below `folder` and return the files' names."""
    meta = {"schema": SCHEMA, "subject_sha256": subject.digest(), "sites": list(translators.sites)}
    save_tensors(folder / WEIGHTS, {"matrix": translators.matrix, "bias": translators.bias}, meta)
    return [WEIGHTS, f"{WEIGHTS}.sha256"]


def load(folder: Path, subject: Subject, readout: Readout) -> Translators:
    """Return the translators that lie below `folder`. Raises VerificationError for those of another model."""
    tensors, meta = load_tensors(folder / WEIGHTS)
    if meta.get("schema") != SCHEMA or meta["subject_sha256"] != subject.digest() or tuple(meta["sites"]) != readout.sites[:-1]:
        raise VerificationError(f"{folder / WEIGHTS}: this tuned lens belongs to another model than '{subject.name}'")
    return Translators(tuple(meta["sites"]), tensors["matrix"], tensors["bias"])
