"""The same model with random weights: what an effect is when nothing was learned."""

from __future__ import annotations

import copy

import torch
from torch import nn

from mlinterp.determinism import derive_seed
from mlinterp.subjects.hooked import HookedSubject
from mlinterp.subjects.huggingface import HuggingFaceSubject


def untrained(subject: HookedSubject, seed: int) -> HookedSubject | None:
    """Return a subject's twin with freshly drawn weights and the same text; None where it is not known how its model is made.

    A project's own model draws its weights in `reset_parameters`, as the modules of torch do: the model itself or, where it has none, each
    module that has parameters.
    """
    old = next(subject.model.parameters())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "untrained"))
        model = type(subject.model)(copy.deepcopy(subject.architecture)) if isinstance(subject, HuggingFaceSubject) else _redrawn(subject)
    if model is None:
        return None
    twin = copy.copy(subject)
    twin.model = model.to(device=old.device, dtype=old.dtype).eval().requires_grad_(False)
    twin.call = twin.logits
    return twin


@torch.no_grad()
def _redrawn(subject: HookedSubject) -> nn.Module | None:
    if subject.call != subject.logits:  # it may run something else than the model alone
        return None
    model = copy.deepcopy(subject.model).cpu()
    with_parameters = [module for module in model.modules() if next(module.parameters(recurse=False), None) is not None]
    for module in [model] if hasattr(model, "reset_parameters") else with_parameters:
        draw = getattr(module, "reset_parameters", None)
        if draw is None:
            return None
        draw()
    matrices = [(before, after) for before, after in zip(subject.model.parameters(), model.parameters(), strict=True) if after.ndim > 1]
    return None if any(torch.equal(before.cpu(), after) for before, after in matrices) else model
