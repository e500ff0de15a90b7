"""SAE latents in `activation_patching` and `attribution_patching`: the SAE, what of it is patched, and what stands beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mlinterp.errors import ExperimentError, SpecError, unknown
from mlinterp.experiments.base import Context
from mlinterp.experiments.localisation.activation_patching import ActivationPatchingVariables
from mlinterp.interventions.plan import check_fit
from mlinterp.patching.components import SAE_LATENT
from mlinterp.patching.effects import CellEffect
from mlinterp.patching.latents import LatentPatcher, LatentSteps
from mlinterp.patching.metrics import Metric
from mlinterp.patching.patcher import Patcher
from mlinterp.patching.places import Places, place_of, places
from mlinterp.sae.files.checkpoint import load_sae
from mlinterp.sae.files.provenance import require_subject
from mlinterp.sae.model import SAE
from mlinterp.subjects.hooked import HookedSubject
from mlinterp.subjects.pairs import Pairs

NEIGHBOURS = 10
"""Latents nearest in density whose mean effect stands beside a latent's own."""

Columns = dict[int | None, dict[int, int | None]]


class Asked(NamedTuple):
    """What is patched: a component, and the SAE whose latents it is where it is one's."""

    places: Places
    sae: SAE | None


class LatentCount(NamedTuple):
    """How many latents there were to patch."""

    asked: int
    patched: int
    """Those that take another activation at a patched position of some pair."""


def asked_of(context: Context, subject: HookedSubject) -> Asked:
    """Return what a spec patches.

    Raises SpecError for a component or layer that there is not, for an SAE of another subject, for one that does not read and write one
    hook point of this one, and for a latent that it does not have.
    """
    variables: ActivationPatchingVariables = context.variables
    if variables.component != SAE_LATENT:
        return Asked(places(subject, variables.component, variables.layers), None)
    folder = context.inputs["sae"].path
    sae = load_sae(folder)
    require_subject(folder, subject, "inputs.sae")
    config = sae.config
    if config.kind != "sae":
        allowed = "an autoencoder, whose latents are read from and written to one hook point"
        raise SpecError(f"a {config.kind} cannot be patched latent by latent", field="inputs.sae", allowed=allowed)
    if not config.site:
        raise SpecError("the SAE does not say which hook point it was fitted on", field="inputs.sae", allowed="one that names its site")
    try:
        where = place_of(subject, config.site, SAE_LATENT)
    except SpecError as error:
        raise SpecError(f"the SAE was fitted on {config.site}: {error}", field="inputs.sae") from error
    check_fit(config, config.site, subject.width(config.site), "inputs.sae")
    for latent in variables.latents or ():
        if latent >= config.d_sae:
            raise unknown("variables.latents", str(latent), [f"0 to {config.d_sae - 1}"], what="latent")
    return Asked(where, sae)


def patcher_of(
    asked: Asked,
    subject: HookedSubject,
    pairs: Pairs,
    metric: Metric,
    variables: ActivationPatchingVariables,
    *,
    batch_size: int = 256,
    latents: Sequence[int] | None = None,
) -> Patcher:
    """Return what runs the patches of a component."""
    if asked.sae is None:
        return Patcher(subject, pairs, asked.places, metric, variables.direction, batch_size, variables.ablation)
    chosen = variables.latents if latents is None else latents
    return LatentPatcher(asked.sae, subject, pairs, asked.places, metric, variables.direction, batch_size, variables.ablation, chosen)


def moving(steps: LatentSteps, columns: Columns) -> dict[int | None, list[int]]:
    """Return for each position that is patched the latents that take another activation there in some pair, ascending.

    Raises ExperimentError where none does anywhere.
    """
    moves, latents = (steps.put != steps.base).cpu().numpy(), steps.latents.tolist()
    found = {}
    for position, where in columns.items():
        there = np.zeros(len(latents), dtype=bool)
        for pair, column in where.items():
            there |= moves[pair].any(axis=0) if column is None else moves[pair, column]
        found[position] = [latent for latent, moved in zip(latents, there, strict=True) if moved]
    if not any(found.values()):
        raise ExperimentError("no latent takes another activation at a patched position of any pair: there is nothing to patch")
    return found


def density(steps: LatentSteps) -> dict[int, int]:
    """Return at how many positions of the base runs each latent is active."""
    counts = (steps.base != 0).sum(dim=(0, 1)).tolist()
    return dict(zip(steps.latents.tolist(), counts, strict=True))


def neighbours(
    places_: Sequence[tuple[int | None, int]], effects: Sequence[CellEffect | None], dense: Mapping[int, int]
) -> list[float | None]:
    """Return for each place, (position, latent), the mean effect of the latents there that are active nearly as often, without its own."""
    found: list[float | None] = [None] * len(places_)
    for position in dict.fromkeys(position for position, _ in places_):
        known = [at for at, place in enumerate(places_) if place[0] == position and effects[at] is not None]
        known.sort(key=lambda at: (dense[places_[at][1]], places_[at][1]))
        values = np.array([each.effect.estimate for at in known if (each := effects[at]) is not None])
        width = min(NEIGHBOURS, len(known) - 1)
        for rank, at in enumerate(known):
            if width > 0:
                first = min(max(rank - width // 2, 0), len(known) - width - 1)
                found[at] = float((values[first : first + width + 1].sum() - values[rank]) / width)
    return found
