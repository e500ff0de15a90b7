"""The sweep of `activation_patching`: which places there are, what each patch does, its nulls, and what joint patches add."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from mlinterp.determinism import torch_stream
from mlinterp.errors import SpecError, unknown
from mlinterp.experiments.base import Context
from mlinterp.experiments.localisation.activation_patching import ActivationPatchingVariables
from mlinterp.experiments.localisation.activation_patching_latents import (
    Asked,
    Columns,
    LatentCount,
    asked_of,
    density,
    moving,
    neighbours,
    patcher_of,
)
from mlinterp.patching.components import SAE_LATENT
from mlinterp.patching.effects import CellEffect, cell_effects, gaps_of, patch_effect
from mlinterp.patching.latents import LatentPatcher, LatentSteps
from mlinterp.patching.metrics import Metric, MetricRegistry
from mlinterp.patching.patcher import Edit, Moved, Patch, Patcher
from mlinterp.patching.places import Places
from mlinterp.patching.untrained import untrained
from mlinterp.progress import Task
from mlinterp.subjects.hooked import HookedSubject
from mlinterp.subjects.pairs import Pairs, answer_columns, patchable, tokenise
from mlinterp.subjects.pairs_declared import read_pairs


class Cell(NamedTuple):
    """One place that is patched."""

    layer: int
    position: int | None
    """Position number (see `Pairs.positions`); None for all of them, or for the answer position."""
    unit: int | None
    """Head, neuron or latent."""

    @property
    def name(self) -> str:
        """Its name in metrics: `L5.p3`, `L5.u2`, `L5.p3.u2`."""
        parts = [f"L{self.layer}"]
        parts += [] if self.position is None else [f"p{self.position}"]
        parts += [] if self.unit is None else [f"u{self.unit}"]
        return ".".join(parts)


@dataclass(frozen=True)
class Joint:
    """Several places patched together."""

    name: str
    cells: tuple[int, ...]
    effect: CellEffect | None
    singles: float | None
    """What the places do one by one, added up."""
    largest: float
    """The largest effect of one of them, by size."""


@dataclass(frozen=True)
class Sweep:
    """Everything that was measured.

    Attributes:
        labels: what stands at each position.
        cells: the places.
        effects: one a cell; None where undefined.
        elsewhere: mean effect of the same layer and unit at all other positions, one a cell; None where positions were not swept.
        untrained: effect in the model with random weights, one a cell, in units of the trained model's gap; None where it was not run.
        others: of latents, the mean effect of those that are active nearly as often, one a cell; None for other components.
        latents: how many latents there were; None for other components.
        m_clean: the metric of the clean runs, `[pair]`.
        m_corrupted: that of the corrupted ones.
        estimated: whether the effects of single places are estimates from gradients; those of joint patches never are.
    """

    subject: HookedSubject
    pairs: Pairs
    metric: Metric
    places: Places
    labels: dict[int, str]
    cells: list[Cell]
    effects: list[CellEffect | None]
    elsewhere: list[float | None]
    untrained: list[float | None] | None
    joints: list[Joint]
    m_clean: np.ndarray
    m_corrupted: np.ndarray
    others: list[float | None] | None = None
    latents: LatentCount | None = None
    estimated: bool = False


def measure(context: Context) -> Sweep:
    """Run the sweep, its nulls and the joint patches."""
    variables: ActivationPatchingVariables = context.variables
    metric = MetricRegistry(context.root).get(variables.metric)
    declared = read_pairs(variables.pairs, context.root)
    subject = patchable(context.load_subject())
    pairs = tokenise(declared, subject, variables.align)
    asked = asked_of(context, subject)
    patcher = patcher_of(asked, subject, pairs, metric, variables, batch_size=variables.batch_size)
    gaps = gaps_of(patcher.m_base, patcher.m_source, metric.name)
    columns = columns_of(pairs, variables.swept)
    steps = patcher.steps if isinstance(patcher, LatentPatcher) else None
    cells = cells_of(columns, asked.places, variables, steps)
    moved = [patcher.moved(torch_stream(context.seed, "random_direction", draw)) for draw in range(variables.controls)]
    twin = untrained(subject, context.seed) if variables.untrained else None
    n_patches = sum(len(columns[cell.position]) for cell in cells)
    with context.reporter.task("patches", n_patches * (1 + len(moved) + (twin is not None))) as task:
        changes = changes_of(patcher, [(cell,) for cell in cells], columns, None, task)
        nulls = np.stack([changes_of(patcher, [(cell,) for cell in cells], columns, random, task) for random in moved])
        random_model = None
        if twin is not None:
            other = patcher_of(asked, twin, pairs, metric, variables, batch_size=variables.batch_size, latents=latents_of(cells))
            random_model = changes_of(other, [(cell,) for cell in cells], columns, None, task)
    effects = cell_effects(changes, nulls, gaps, variables.n_bootstrap, context.seed, drawn_anew=drawn_anew(variables))
    joints = joints_of(patcher, cells, effects, columns, moved, gaps, context)
    swept = len({cell.position for cell in cells}) > 1
    clean_first = variables.direction == "noise"
    return Sweep(
        subject,
        pairs,
        metric,
        asked.places,
        pairs.labels(subject),
        cells,
        effects,
        elsewhere_of(cells, effects) if swept else [None] * len(cells),
        None if random_model is None else [ratio_of(column, gaps) for column in random_model.T],
        joints,
        patcher.m_base if clean_first else patcher.m_source,
        patcher.m_source if clean_first else patcher.m_base,
        None if steps is None else others_of(cells, effects, steps),
        counted(asked, variables, cells),
    )


def columns_of(pairs: Pairs, chosen: Literal["each", "all", "answer"] | list[int]) -> Columns:
    """Return for each position that is patched the pairs that have it, and the column where; None is all positions, or the answer's."""
    if chosen == "all":
        return {None: dict.fromkeys(range(len(pairs)))}
    if chosen == "answer":
        clean, corrupted = (answer_columns(batch).tolist() for batch in (pairs.clean, pairs.corrupted))
        for row, (one, other) in enumerate(zip(clean, corrupted, strict=True)):
            if one != other:
                raise SpecError(
                    f"the prompts of pair '{pairs.ids[row]}' end at positions that do not belong together",
                    field="variables.positions",
                    allowed="align: end",
                )
        return {None: dict(enumerate(clean))}
    there: dict[int | None, dict[int, int | None]] = {}
    for row, column in pairs.shared.nonzero().tolist():
        there.setdefault(int(pairs.positions[row, column]), {})[row] = column
    if chosen == "each":
        return {at: there[at] for at in sorted(at for at in there if at is not None)}
    for at in chosen:
        if at not in there:
            known = sorted(known for known in there if known is not None)
            problem = f"no pair has a position {at}"
            raise SpecError(problem, field="variables.positions", allowed=f"{known[0]} to {known[-1]}")
    return {at: there[at] for at in sorted(chosen)}


def cells_of(columns: Columns, where: Places, variables: ActivationPatchingVariables, steps: LatentSteps | None = None) -> list[Cell]:
    """Return the places that are patched; of latents, given their steps, those that move.

    Raises SpecError for a head or neuron that there is not, and ExperimentError where no latent moves.
    """
    if steps is not None:
        return [Cell(layer, at, latent) for layer in where.sites for at, latents in moving(steps, columns).items() for latent in latents]
    units: Sequence[int | None] = [None]
    if where.n_units is not None:
        name = "heads" if variables.component == "attn_head" else "neurons"
        units = getattr(variables, name) or range(where.n_units)
        for unit in units:
            if unit is not None and unit >= where.n_units:
                raise unknown(f"variables.{name}", str(unit), [f"0 to {where.n_units - 1}"], what=name.removesuffix("s"))
    return [Cell(layer, position, unit) for layer in where.sites for position in columns for unit in units]


def changes_of(
    patcher: Patcher,
    groups: Sequence[Sequence[Cell]],
    columns: Columns,
    moved: Moved | None,
    task: Task | None = None,
) -> np.ndarray:
    """Return the change of the metric when the cells of each group are patched together, `[pair, group]`; NaN where a pair has none.

    With `moved`, the same steps are made in random directions instead.
    """
    patches, at = [], []
    for number, cells in enumerate(groups):
        for pair in range(len(patcher.pairs)):
            edits = [Edit(cell.layer, columns[cell.position][pair], cell.unit) for cell in cells if pair in columns[cell.position]]
            if edits:
                patches.append(Patch(pair, tuple(edits) if moved is None else moved.edits(edits)))
                at.append((pair, number))
    found = np.full((len(patcher.pairs), len(groups)), np.nan)
    rows, numbers = np.array(at).T
    source = None if moved is None else moved.activations
    found[rows, numbers] = patcher.metrics(patches, source, task) - patcher.m_base[rows]
    return found


def drawn_anew(variables: ActivationPatchingVariables) -> bool:
    """Return whether the null's random directions are each pair's own; another neuron and a latent's random direction are all pairs'."""
    return variables.component not in ("mlp_neuron", SAE_LATENT)


def joints_of(
    patcher: Patcher,
    cells: list[Cell],
    effects: list[CellEffect | None],
    columns: Columns,
    moved: list[Moved],
    gaps: np.ndarray,
    context: Context,
) -> list[Joint]:
    """Patch the largest places together, and (but for the stream, which carries everything) each layer's and all of them."""
    known = [at for at, effect in enumerate(effects) if effect is not None]
    ranked = sorted(known, key=lambda at: -abs(_value(effects[at])))
    groups = {f"top{context.variables.joint}": ranked[: context.variables.joint]}
    if patcher.places.component in ("attn_out", "mlp_out", "attn_head", "mlp_neuron"):
        groups |= {f"layer{layer}": [at for at in known if cells[at].layer == layer] for layer in patcher.places.sites}
        groups["all"] = known
    if patcher.places.component == SAE_LATENT:
        groups["all"] = known
    groups = {name: members for name, members in groups.items() if len(members) > 1}
    if not groups:
        return []
    chosen = [[cells[at] for at in members] for members in groups.values()]
    changes = changes_of(patcher, chosen, columns, None)
    nulls = np.stack([changes_of(patcher, chosen, columns, random) for random in moved])
    found = cell_effects(changes, nulls, gaps, context.variables.n_bootstrap, context.seed, drawn_anew=drawn_anew(context.variables))
    joints = []
    for (name, members), effect in zip(groups.items(), found, strict=True):
        singles = [_value(effects[at]) for at in members]
        joints.append(Joint(name, tuple(members), effect, sum(singles), max(singles, key=abs)))
    return joints


def _value(effect: CellEffect | None) -> float:
    assert effect is not None
    return effect.effect.estimate


def elsewhere_of(cells: list[Cell], effects: list[CellEffect | None]) -> list[float | None]:
    """Return for each cell the mean effect of its layer and unit at the other positions: what a position drawn at random does."""
    by_place: dict[tuple[int, int | None], list[float]] = {}
    for cell, effect in zip(cells, effects, strict=True):
        if effect is not None:
            by_place.setdefault((cell.layer, cell.unit), []).append(effect.effect.estimate)
    found: list[float | None] = []
    for cell, effect in zip(cells, effects, strict=True):
        together = by_place.get((cell.layer, cell.unit), [])
        alone = effect is None or len(together) < 2
        found.append(None if alone else (sum(together) - _value(effect)) / (len(together) - 1))
    return found


def latents_of(cells: list[Cell]) -> list[int] | None:
    """Return the units of cells, ascending, each once; None where they have none."""
    return sorted({cell.unit for cell in cells if cell.unit is not None}) or None


def counted(asked: Asked, variables: ActivationPatchingVariables, cells: list[Cell]) -> LatentCount | None:
    """Return how many latents were asked for, and how many of them are cells; None for other components."""
    if asked.sae is None:
        return None
    return LatentCount(len(variables.latents or range(asked.sae.config.d_sae)), len(latents_of(cells) or ()))


def others_of(cells: list[Cell], effects: list[CellEffect | None], steps: LatentSteps) -> list[float | None]:
    """Return for each latent the mean effect of those that are active nearly as often, at the same positions."""
    return neighbours([(cell.position, cell.unit or 0) for cell in cells], effects, density(steps))


def ratio_of(changes: np.ndarray, gaps: np.ndarray) -> float | None:
    """Return a cell's effect over the pairs that have it; None where it is undefined."""
    there = np.isfinite(changes)
    return patch_effect(changes[there], gaps[there]) if there.any() else None
