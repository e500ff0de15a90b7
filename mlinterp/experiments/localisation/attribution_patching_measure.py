"""What `attribution_patching` measures: the estimate of every patch with its nulls, and exact patches to hold some of them against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from mlinterp.determinism import numpy_stream, torch_stream
from mlinterp.errors import ExperimentError
from mlinterp.experiments.base import Context
from mlinterp.experiments.localisation.activation_patching_latents import Asked, Columns, asked_of, patcher_of
from mlinterp.experiments.localisation.activation_patching_measure import (
    Cell,
    Joint,
    Sweep,
    cells_of,
    columns_of,
    counted,
    drawn_anew,
    elsewhere_of,
    joints_of,
    latents_of,
    others_of,
    ratio_of,
)
from mlinterp.experiments.localisation.activation_patching_measure import changes_of as exact_changes
from mlinterp.experiments.localisation.attribution_patching import AttributionPatchingVariables
from mlinterp.patching.attribution import Slopes, slopes
from mlinterp.patching.attribution_latents import LatentSlopes, latent_slopes
from mlinterp.patching.effects import cell_effects, gaps_of
from mlinterp.patching.metrics import Metric, MetricRegistry
from mlinterp.patching.patcher import Patcher
from mlinterp.patching.untrained import untrained
from mlinterp.progress import Task
from mlinterp.subjects.hooked import HookedSubject
from mlinterp.subjects.pairs import Pairs, patchable, tokenise
from mlinterp.subjects.pairs_declared import read_pairs


@dataclass(frozen=True)
class Checked:
    """One place patched exactly, beside its estimate: effects as shares of the gap."""

    cell: int
    estimated: float
    exact: float


@dataclass(frozen=True)
class Completeness:
    """One layer: what all its estimates add up to, and what patching all of it does, as shares of the gap."""

    layer: int
    added: float
    exact: float


@dataclass(frozen=True)
class Estimated:
    """Everything that was measured; `sweep` holds estimates in place of effects, and exact joint patches."""

    sweep: Sweep
    checked: list[Checked]
    completeness: list[Completeness]


def measure(context: Context) -> Estimated:
    """Estimate every patch and its nulls, and patch a sample of places exactly."""
    variables: AttributionPatchingVariables = context.variables
    metric = MetricRegistry(context.root).get(variables.metric)
    declared = read_pairs(variables.pairs, context.root)
    subject = patchable(context.load_subject())
    pairs = tokenise(declared, subject, variables.align)
    asked = asked_of(context, subject)
    columns = columns_of(pairs, variables.swept)
    twin = untrained(subject, context.seed) if variables.untrained else None
    with context.reporter.task("pairs", len(pairs) * (1 + (twin is not None))) as task:
        found = _slopes(asked, subject, pairs, metric, variables, task)
        steps = found.steps if isinstance(found, LatentSlopes) else None
        cells = cells_of(columns, asked.places, variables, steps)
        random_model = None if twin is None else _slopes(asked, twin, pairs, metric, variables, task, latents_of(cells))
    gaps = gaps_of(found.m_base, found.m_source, metric.name)
    changes = estimated_changes(found, found.effects(), cells, columns)
    if not all(np.isfinite(each).all() for each in found.effects().values()):
        raise ExperimentError(f"{metric.name} has no finite gradient at the run that is patched")
    draws = [found.random_effects(torch_stream(context.seed, "random_direction", draw)) for draw in range(variables.controls)]
    nulls = np.stack([estimated_changes(found, each, cells, columns) for each in draws])
    effects = cell_effects(changes, nulls, gaps, variables.n_bootstrap, context.seed, drawn_anew=drawn_anew(variables))
    checked: list[Checked] = []
    joints: list[Joint] = []
    known = [at for at, effect in enumerate(effects) if effect is not None]
    if variables.check_exact and known:
        patcher = patcher_of(asked, subject, pairs, metric, variables)
        lengths = np.nansum(estimated_changes(found, found.lengths(), cells, columns), axis=0)
        differing = [at for at in known if lengths[at] > 0]
        checked = _checked(patcher, differing, cells, columns, changes, gaps, context)
        moved = [patcher.moved(torch_stream(context.seed, "random_direction", draw)) for draw in range(variables.controls)]
        joints = joints_of(patcher, cells, effects, columns, moved, gaps, context)
    clean_first = variables.direction == "noise"
    sweep = Sweep(
        subject,
        pairs,
        metric,
        asked.places,
        pairs.labels(subject),
        cells,
        effects,
        elsewhere_of(cells, effects) if len(columns) > 1 else [None] * len(cells),
        None
        if random_model is None
        else [ratio_of(column, gaps) for column in estimated_changes(random_model, random_model.effects(), cells, columns).T],
        joints,
        found.m_base if clean_first else found.m_source,
        found.m_source if clean_first else found.m_base,
        None if steps is None else others_of(cells, effects, steps),
        counted(asked, variables, cells),
        estimated=True,
    )
    return Estimated(sweep, checked, _completeness(found, gaps))


def _checked(
    patcher: Patcher, known: list[int], cells: list[Cell], columns: Columns, changes: np.ndarray, gaps: np.ndarray, context: Context
) -> list[Checked]:
    """Patch some of the places at which the two runs differ, drawn at random; where they do not, both ways agree on nothing."""
    drawn = np.sort(numpy_stream(context.seed, "check_exact").permutation(known)[: context.variables.check_exact]).astype(int).tolist()
    if not drawn:
        return []
    with context.reporter.task("exact patches", len(drawn) * len(patcher.pairs)) as task:
        exact = exact_changes(patcher, [(cells[at],) for at in drawn], columns, None, task)
    both = [(at, ratio_of(changes[:, at], gaps), ratio_of(exact[:, number], gaps)) for number, at in enumerate(drawn)]
    return [Checked(at, one, other) for at, one, other in both if one is not None and other is not None]


def _slopes(
    asked: Asked,
    subject: HookedSubject,
    pairs: Pairs,
    metric: Metric,
    variables: AttributionPatchingVariables,
    task: Task,
    latents: list[int] | None = None,
) -> Slopes | LatentSlopes:
    where, direction, batch_size = asked.places, variables.direction, variables.batch_size
    ig_steps = variables.ig_steps if variables.method == "integrated" else 0
    how: Callable[..., Slopes | LatentSlopes] = partial(slopes, subject, pairs, where, metric, direction)
    if asked.sae is not None:
        chosen = latents or variables.latents
        how = partial(latent_slopes, asked.sae, subject, pairs, where, metric, direction, latents=chosen)
    return how(ablation=variables.ablation, ig_steps=ig_steps, batch_size=batch_size, done=task.advance)


def estimated_changes(found: Slopes | LatentSlopes, effects: dict[int, np.ndarray], cells: list[Cell], columns: Columns) -> np.ndarray:
    """Return the change of each cell, `[pair, cell]`, from that of each place, layer to `[pair, pos, unit]`; NaN where there is none."""
    units = [cell.unit or 0 for cell in cells]
    if isinstance(found, LatentSlopes):
        units = np.searchsorted(found.steps.latents.cpu().numpy(), units).tolist()
    at: dict[tuple[int, int | None], np.ndarray] = {}
    for layer, each in effects.items():
        for position, where in columns.items():
            there = np.full((len(each), each.shape[2]), np.nan)
            for pair, column in where.items():
                there[pair] = each[pair].sum(axis=0) if column is None else each[pair, column]
            at[layer, position] = there
    return np.stack([at[cell.layer, cell.position][:, unit] for cell, unit in zip(cells, units, strict=True)], axis=1)


def _completeness(found: Slopes | LatentSlopes, gaps: np.ndarray) -> list[Completeness]:
    total = gaps.sum()
    added = {layer: each.sum() for layer, each in found.effects().items()}
    return [Completeness(layer, float(added[layer] / total), float(exact.sum() / total)) for layer, exact in found.whole.items()]
