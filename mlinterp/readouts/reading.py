"""How a language model reads its residual stream out: the final norm and the unembedding, as the model itself applies them.

A Hugging Face model of a known architecture says where they are. A project's own model declares the hook points
`blocks.N.resid_post` or `resid_pre` (of the last block `resid_post`), `unembed`, the module that returns the logits, and `final_norm`,
the norm before it, where there is one. Nothing is taken on trust: the readout of the last block must give the model's own logits back.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mlinterp.errors import ExperimentError, SpecError
from mlinterp.halving import halved
from mlinterp.subjects.base import Address, Batch, Subject
from mlinterp.subjects.hooked import HookedSubject
from mlinterp.subjects.huggingface import HuggingFaceSubject
from mlinterp.subjects.unembedding import FINAL_NORM

NORM, UNEMBED = "final_norm", "unembed"
"""Hook points by which a project's own model says how it reads out."""

TOLERANCE: Mapping[torch.dtype, float] = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Largest difference from the model's own logits, as a share of the largest of them."""


@dataclass(frozen=True)
class Readout:
    """From the residual stream to the logits.

    Attributes:
        norm: the final norm; None where there is none.
        head: the unembedding.
        cap: the bound that logits are pressed below (Gemma 2); None where there is none.
        layers: name and hook point of each state of the stream, in order: `embedding` (where it is known), then every block's output.
    """

    norm: nn.Module | None
    head: nn.Module
    cap: float | None
    layers: tuple[tuple[str, str], ...]

    @property
    def sites(self) -> tuple[str, ...]:
        """The hook points, in order."""
        return tuple(site for _, site in self.layers)

    @property
    def names(self) -> tuple[str, ...]:
        """The states' names, in order."""
        return tuple(name for name, _ in self.layers)

    def logits(self, stream: Tensor) -> Tensor:
        """Return what a state of the stream `[..., d]` is read as, `[..., vocab]`."""
        logits = self.uncapped(stream)
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap

    def uncapped(self, stream: Tensor) -> Tensor:
        """Return the logits of a state of the stream before they are capped."""
        logits: Tensor = self.head(stream if self.norm is None else self.norm(stream))
        return logits


def readout_of(subject: Subject) -> Readout:
    """Return how a subject reads out. Raises SpecError, naming it, where that is not known."""
    if isinstance(subject, HuggingFaceSubject):
        model: Any = subject.model
        kind = subject.architecture.model_type
        if kind not in FINAL_NORM:
            why = f"'{subject.name}': it is not known how {kind} reads its residual stream out"
            raise SpecError(why, field="subject", allowed=f"known: {', '.join(FINAL_NORM)}")
        cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        return Readout(model.get_submodule(FINAL_NORM[kind]), model.get_output_embeddings(), cap, _layers(subject.points))
    if not isinstance(subject, HookedSubject) or UNEMBED not in subject.points or not _layers(subject.points):
        why = f"'{subject.name}' ({subject.kind}) does not say how its residual stream becomes logits"
        allowed = f"a Hugging Face model, or a model with the hook points blocks.N.resid_post and {UNEMBED} ({NORM} where it has one)"
        raise SpecError(why, field="subject", allowed=allowed)
    found = {name: subject.model.get_submodule(subject.points[name].module) for name in (NORM, UNEMBED) if name in subject.points}
    return Readout(found.get(NORM), found[UNEMBED], None, _layers(subject.points))


def _layers(sites: Collection[str]) -> tuple[tuple[str, str], ...]:
    """Return the states of the stream among the hook points; none where the last block's output is not among them."""
    start = [("embedding", "blocks.0.resid_pre")] if "blocks.0.resid_pre" in sites else []
    blocks = []
    for block in range(1 + max((int(site.split(".")[1]) for site in sites if re.match(r"blocks\.\d+\.", site)), default=-1)):
        after = (f"blocks.{block}.resid_post", f"blocks.{block + 1}.resid_pre")
        blocks += [(f"blocks.{block}", site) for site in after if site in sites][:1]
    return (*start, *blocks) if blocks and blocks[-1][1].endswith("resid_post") else ()


@torch.no_grad()
def states_of(subject: Subject, batch: Batch, sites: Collection[str]) -> tuple[dict[str, Tensor], Tensor]:
    """Return the activation at each hook point, `[batch, pos, d]`, and the model's own logits `[batch, pos, vocab]`."""
    seen: dict[str, Tensor] = {}

    def look(address: Address, h: Tensor) -> Tensor:
        seen[address.site] = h.clone()  # a later block may write into the tensor that it was given
        return h

    outputs = subject.forward(batch, look, sites)
    assert outputs is not None
    return seen, outputs.logits


def require_finite(subject: Subject, found: Tensor, what: str = "logits") -> None:
    """Raise ExperimentError for numbers of a model that are NaN or infinite: means would leave them out unseen."""
    if n := int((~torch.isfinite(found)).sum()):
        raise ExperimentError(f"{n} of {found.numel()} {what} of '{subject.name}' are NaN or infinite")


@torch.no_grad()
def require_true(readout: Readout, subject: Subject, batch: Batch) -> None:
    """Raise SpecError where the readout of the last block is not what the model says, on one example."""
    states, logits = next(halved([batch], lambda one: states_of(subject, one[0], readout.sites[-1:]), "example"))
    real = batch.mask.to(logits.device)
    require_finite(subject, logits[real])
    error = (readout.logits(states[readout.sites[-1]]) - logits).abs()[real].max()
    if float(error) > TOLERANCE.get(logits.dtype, 1e-4) * float(logits[real].abs().max().clamp_min(1e-6)):
        why = f"'{subject.name}': the final norm and the unembedding alone do not give its logits (they differ by {float(error):.3g})"
        raise SpecError(why, field="subject", allowed="a model that reads the last block's output out through them and nothing else")
