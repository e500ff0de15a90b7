"""The same model with random weights: what an effect is when nothing was learned."""

from __future__ import annotations

import copy

import torch

from mlinterp.determinism import derive_seed
from mlinterp.subjects.hooked import HookedSubject
from mlinterp.subjects.huggingface import HuggingFaceSubject


def untrained(subject: HookedSubject, seed: int) -> HuggingFaceSubject | None:
    """Return a subject's twin with freshly drawn weights and the same text; None where it is not known how its model is made."""
    if not isinstance(subject, HuggingFaceSubject):
        return None
    old = next(subject.model.parameters())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "untrained"))
        model = type(subject.model)(copy.deepcopy(subject.architecture))
    twin = copy.copy(subject)
    twin.model = model.to(device=old.device, dtype=old.dtype).eval().requires_grad_(False)
    twin.call = twin.logits
    return twin
