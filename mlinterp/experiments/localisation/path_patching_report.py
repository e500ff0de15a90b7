"""What `path_patching` says: its table, heatmaps, headline numbers with what each is judged by, and warnings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mlinterp.estimates import largest_of, record
from mlinterp.experiments.localisation.activation_patching_report import baselines, effect_columns, estimates_of, pair_rows, pair_warnings
from mlinterp.experiments.localisation.path_patching import PathPatchingVariables
from mlinterp.experiments.localisation.path_patching_measure import Cell, Paths
from mlinterp.patching.effects import CellEffect
from mlinterp.patching.path_names import Receiver, Sender
from mlinterp.result import Aggregates, Estimate, ExperimentResult, Figure

LISTED = 48
"""Paths whose numbers become metrics, the largest first; the table has all of them."""
SHOWN = 12
"""Paths in the figure of the largest ones."""
ARROW = " → "
SHADES = {"adjusted": "less random directions", "effect": "as measured"}
"""What the heatmaps show, with what their titles say of it."""


def report(found: Paths, variables: PathPatchingVariables, seed: int) -> ExperimentResult:
    """Return a sweep as a result."""
    result = ExperimentResult(mode="interventional")
    known = [(cell, effect) for cell, effect in zip(found.cells, found.effects, strict=True) if effect is not None]
    ranked = sorted(known, key=lambda item: -abs(item[1].adjusted.estimate))
    _tables(result, found, variables, ranked)
    _figures(result, found)
    numbers = baselines(found.m_clean, found.m_corrupted, variables.n_bootstrap, seed)
    for number, (cell, effect) in enumerate(ranked[:LISTED]):
        own = estimates_of(effect, variables.controls)
        if not number:
            numbers |= _top(own, len(ranked))
        numbers |= {f"{name}/{_metric_name(found, cell)}": each for name, each in own.items()}
    result.metrics |= {name: each.value for name, each in numbers.items()}
    record(result, numbers)
    effects = [effect.effect.estimate for _, effect in known]
    result.aggregates = Aggregates(
        n_samples=len(found.pairs),
        n_conditions=len(found.cells),
        mean_delta=float(np.mean(effects)) if effects else None,
        max_delta=max(effects, default=None),
        min_delta=min(effects, default=None),
    )
    result.diagnostics.n_contexts_tested = len(found.pairs)
    result.diagnostics.warnings += [*found.warnings, *pair_warnings(found.m_clean, found.m_corrupted, found.metric.name)]
    if variables.untrained and found.untrained is None:
        result.diagnostics.warnings.append(
            f"there is no untrained control: it is not known how the model of a {found.subject.kind} subject is made"
        )
    return result


def _top(own: dict[str, Estimate], n: int) -> dict[str, Estimate]:
    """Return the largest path's numbers, which was chosen among n by looking."""
    return {"top/effect" if name == "effect" else f"top/{name}_effect": largest_of(n, each) for name, each in own.items()}


def _tables(result: ExperimentResult, found: Paths, variables: PathPatchingVariables, ranked: list[tuple[Cell, CellEffect]]) -> None:
    metric = found.metric
    base, source = ("corrupted", "clean") if variables.direction == "denoise" else ("clean", "corrupted")
    about = (
        f"Interventional: in the {base} run the receiver alone reads what the sender writes in the {source} run. effect: share of the gap "
        f"in {metric.name} (version {metric.version}: {metric.description}) between the two runs; null: the same path with a step as long "
        "in a random direction; adjusted: effect - null, with 95 % intervals over pairs; "
        f"change: in {metric.unit or 'the metric'}; untrained: in the model with random weights. "
        "A sender that writes after a receiver reads has no path to it, and no row."
    )
    rows = []
    for at, (cell, effect) in enumerate(zip(found.cells, found.effects, strict=True)):
        row: dict[str, Any] = {"path": _path(found, cell)}
        row |= {"sender": _short(found.senders[cell.senders]), "receiver": _short(found.receivers[cell.receivers])}
        row |= {} if cell.position is None else {"position": found.labels[cell.position]}
        row |= effect_columns(effect) | ({} if found.untrained is None else {"untrained": found.untrained[at]})
        rows.append(row)
    result.add_table("paths", rows, description=about)
    if found.cells[0].position is None:
        measured = {(row["sender"], row["receiver"]): row for row in rows}
        ends = [(_short(group), _short(to)) for group in found.senders for to in found.receivers]
        grid = [{"sender": one, "receiver": to, **{name: measured.get((one, to), {}).get(name) for name in SHADES}} for one, to in ends]
        about = "Every sender with every receiver, in order, as the heatmaps show them; empty where there is no path."
        result.add_table("grid", grid, description=about)
    top = [{"path": _full_name(found, cell), **effect_columns(effect)} for cell, effect in ranked[:SHOWN] if effect.adjusted.estimate]
    result.add_table("largest", top, description="The paths with the largest adjusted effect, and steps as long in random directions.")
    prompts = pair_rows(found.subject, found.pairs, found.m_clean, found.m_corrupted)
    result.add_table("pairs", prompts, description="The prompts, and the metric of each run.")


def _figures(result: ExperimentResult, found: Paths) -> None:
    swept = found.cells[0].position is not None
    x, rows, label = ("position", "path", "position and token") if swept else ("receiver", "sender", "receiver")
    table = "paths" if swept else "grid"
    for value, words in SHADES.items():
        title = f"What a path carries of the {found.metric.name} gap, {words}"
        figure = Figure(name=f"{value}_by_{x}", table=table, kind="heatmap", x=x, y=[value], series=rows, title=title)
        result.figures.append(figure.model_copy(update={"x_label": label, "y_label": rows, "value_label": "share of the gap"}))
    result.figures.append(
        Figure(
            name="largest",
            table="largest",
            kind="bar",
            x="path",
            y=["adjusted"],
            low="adjusted_low",
            high="adjusted_high",
            title="The paths with the largest effect beyond random directions",
            x_label="path",
            y_label="effect - null",
            reference=0.0,
        )
    )


def _path(found: Paths, cell: Cell) -> str:
    ends: tuple[Sequence[Sender | Receiver], ...] = (found.senders[cell.senders], found.receivers[cell.receivers])
    return ARROW.join(" + ".join(each.name for each in group) for group in ends)


def _short(group: Sequence[Sender | Receiver]) -> str:
    """Return a group as axes show it: `L0.h1`, `L0.h0-3 + L0.mlp`; heads of one layer in a row are named together."""
    alike: dict[tuple[int | None, str | None], list[int]] = {}
    for each in group:
        if each.head is not None:
            alike.setdefault((each.layer, getattr(each, "letter", None)), []).append(each.head)
    named = []
    for each in group:
        heads = sorted(alike.get((each.layer, getattr(each, "letter", None)), ())) if each.head is not None else []
        if len(heads) < 2 or heads != list(range(heads[0], heads[-1] + 1)):
            named.append(each.short)
        elif each.head == heads[0]:
            named.append(each.short.replace(f"h{heads[0]}", f"h{heads[0]}-{heads[-1]}"))
    return " + ".join(named)


def _full_name(found: Paths, cell: Cell) -> str:
    return _path(found, cell) + ("" if cell.position is None else f" at {found.labels[cell.position]}")


def _metric_name(found: Paths, cell: Cell) -> str:
    """Return a path's name in metrics, `L0.h1_to_L1.h0-3.k.p3`; groups that have no such name go by their number among all groups."""
    groups = (
        ("senders", cell.senders, _short(found.senders[cell.senders])),
        ("receivers", cell.receivers, _short(found.receivers[cell.receivers])),
    )
    ends = [f"{kind}{number}" if " + " in short else short for kind, number, short in groups]
    return "_to_".join(ends) + ("" if cell.position is None else f".p{cell.position}")
