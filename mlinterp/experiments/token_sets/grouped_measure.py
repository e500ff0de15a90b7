"""What the arithmetic of the types shares that compare groups of contexts: the table of what was measured of each, and its picture."""

from __future__ import annotations

from typing import Any

import numpy as np

from mlinterp.result import ExperimentResult, Figure, Mode
from mlinterp.token_sets.lab import Lab
from mlinterp.token_sets.telling import adjust, flag_artefacts

HOW = {
    "observational": "The activation by {by}, and how far it lies from the mean of all contexts. Groups differ in more than that. ",
    "interventional": "The same contexts put into the groups by {by}: how far the activation lies from the mean over all groups; "
    "swap_delta: what the change from their own group does; control_delta: what the change to any other group does to them. ",
}
"""What a table of groups shows, by mode."""
UNITS = "Intervals are over contexts, of these very groups: they say nothing about other groups of the kind."
MEAN_OF_ALL: dict[Mode, str] = {"observational": "the mean of all contexts", "interventional": "the mean over all groups"}
"""What a group is compared with, by mode."""


def class_of(lab: Lab) -> str | None:
    """Return the attribute that says what class a group is of: `class` where there is one, else the first; None without attributes."""
    names = lab.package.attributes
    return "class" if "class" in names else names[0] if names else None


def result_of(lab: Lab, mode: Mode, base: np.ndarray) -> ExperimentResult:
    """Return a result to fill, whose base is the latent on the contexts that are compared."""
    result = lab.result(mode, base)
    aggregates = result.aggregates
    aggregates.n_samples, aggregates.base_activation_mean = len(base), float(base.mean())
    aggregates.base_activation_std = float(base.std(ddof=1)) if len(base) > 1 else None
    return result


def add_parts(result: ExperimentResult, lab: Lab, name: str, rows: list[dict[str, Any]], by: str, shown: int) -> None:
    """Add a table of groups, ranked, and its picture. P values are adjusted for all rows, of which the first `shown` are kept.

    The bars stand by the table's first column.
    """
    if not rows:
        return
    adjust(rows)
    flag_artefacts(lab, rows, "delta_from_global", "pre_delta")
    some = f", the {shown} highest of {len(rows)}" if shown < len(rows) else ""
    result.add_table(name, rows[:shown], description=HOW[result.mode].format(by=by) + UNITS)
    result.figures.append(
        Figure(
            name=name,
            table=name,
            kind="bar",
            x=next(iter(rows[0])),
            y=["delta_from_global"],
            low="low",
            high="high",
            title=f"Latent {lab.latent} by {by}{some} ({result.mode})",
            x_label=by,
            y_label="activation beyond the mean",
        )
    )
