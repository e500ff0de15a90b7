"""What `attribution_patching` says: tables, figures and numbers of a sweep, as estimates, and how far they are to be believed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mlinterp.estimates import LEVEL, record
from mlinterp.experiments.localisation.activation_patching_measure import Sweep
from mlinterp.experiments.localisation.activation_patching_report import OTHERS, done_to, place_name
from mlinterp.experiments.localisation.activation_patching_report import report as report_sweep
from mlinterp.experiments.localisation.attribution_patching import AttributionPatchingVariables
from mlinterp.experiments.localisation.attribution_patching_measure import Checked, Completeness, Estimated
from mlinterp.result import Estimate, ExperimentResult, Figure

POOR_CORRELATION = 0.9
"""Estimates that go less together with exact effects than this are warned of."""
NOTABLE = 0.1
"""Share of the gap by which an estimate, or the sum of a layer's, must miss to be warned of."""


def report(found: Estimated, variables: AttributionPatchingVariables, seed: int) -> ExperimentResult:
    """Return estimates as a result: that of a sweep, with how it was made and how well it agrees with exact patches."""
    result = report_sweep(found.sweep, variables, seed)
    result.mode = "observational" if variables.method == "gradient" else "interventional"
    _reword(result, found.sweep, variables)
    if found.checked:
        _agreement(result, found.sweep, found.checked)
    if found.completeness:
        _complete(result, found.completeness, variables)
    return result


def _reword(result: ExperimentResult, sweep: Sweep, variables: AttributionPatchingVariables) -> None:
    slope = "the metric's gradient at the run that is patched"
    if variables.method == "integrated":
        slope = f"the metric's gradient, averaged over {variables.ig_steps} points between the two runs (all positions of a layer together)"
    how = "no activation is replaced" if variables.method == "gradient" else "activations are set between those of both runs"
    metric = sweep.metric
    result.tables["patches"].description = (
        f"Estimates ({result.mode}: {how}) of what each patch does ({done_to(sweep, variables)}): its step · {slope}. "
        f"effect: share of the gap in {metric.name} (version {metric.version}: {metric.description}) between the two runs; null: steps as "
        "long in random directions along the same gradient; adjusted: effect - null, with 95 % intervals over pairs; elsewhere: mean "
        f"estimate at the layer's other positions; {OTHERS if sweep.others else ''}untrained: in the model with random weights."
    )
    result.tables["largest"].description = "The places with the largest adjusted estimate, and steps as long in random directions."
    if "joint" in result.tables:
        about = "Interventional: places patched together, exactly, beside the sum of their estimates."
        result.tables["joint"].description = f"{about} What does not add up is no first-order effect."
    for figure in result.figures:
        figure.title += f" ({variables.method} estimate)"
    for name, estimate in result.estimates.items():
        if name.startswith("joint_"):
            estimate.mode = "interventional"


def _agreement(result: ExperimentResult, sweep: Sweep, checked: list[Checked]) -> None:
    cells, n = [sweep.cells[each.cell] for each in checked], len(checked)
    rows: list[dict[str, Any]] = [
        {"place": place_name(sweep, cell), "layer": f"layer {cell.layer}", "estimated": each.estimated, "exact": each.exact}
        | {"miss": each.estimated - each.exact}
        for cell, each in zip(cells, checked, strict=True)
    ]
    about = "Interventional: places at which the runs differ, drawn at random, patched exactly beside their estimate (shares of the gap)."
    result.add_table("agreement", rows, description=about)
    title = "How far estimates lie from exact patches of the same places"
    figure = Figure(name="agreement", table="agreement", kind="scatter", x="exact", y=["miss"], series="layer", title=title, reference=0.0)
    result.figures.append(figure.model_copy(update={"x_label": "effect of the exact patch", "y_label": "estimate - exact"}))
    misses = np.array([abs(each.estimated - each.exact) for each in checked])
    worst = int(misses.argmax())
    result.metrics |= {"agreement/largest_miss": float(misses[worst]), "agreement/mean_miss": float(misses.mean())}
    r = correlation(np.array([each.estimated for each in checked]), np.array([each.exact for each in checked]))
    if r is not None:
        result.metrics["agreement/correlation"] = r
        low, high = _fisher(r, n)
        interval = Estimate(value=r, low=low, high=high, n=n, unit="place", interval="Fisher z over places", mode="interventional")
        record(result, {"agreement/correlation": interval})
    if (r is not None and r < POOR_CORRELATION) or misses[worst] > NOTABLE:
        result.diagnostics.warnings.append(
            f"estimates agree poorly with exact patches of {n} places (correlation {'undefined' if r is None else format(r, '.2f')}; "
            f"{place_name(sweep, cells[worst])} is estimated at {checked[worst].estimated:.3g} and has {checked[worst].exact:.3g}): "
            "confirm what matters with activation_patching"
        )


def correlation(one: np.ndarray, other: np.ndarray) -> float | None:
    """Return Pearson's r; None for fewer than three numbers and where either does not vary."""
    if len(one) < 3 or min(np.ptp(one), np.ptp(other)) <= 1e-9:
        return None
    return float(np.corrcoef(one, other)[0, 1])


def _fisher(r: float, n: int) -> tuple[float | None, float | None]:
    """Return the interval of a correlation over n independent places (Fisher 1915); undefined for three and for a perfect one."""
    if n < 4 or abs(r) >= 1:
        return None, None
    from scipy.special import ndtri

    half = float(ndtri((1 + LEVEL) / 2)) / math.sqrt(n - 3)
    return math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half)


def _complete(result: ExperimentResult, layers: list[Completeness], variables: AttributionPatchingVariables) -> None:
    rows = [{"layer": each.layer, "sum_of_estimates": each.added, "exact": each.exact, "error": each.added - each.exact} for each in layers]
    about = "Interventional: what a layer's estimates add up to, and what patching all of it does, which they must be (shares of the gap)."
    result.add_table("completeness", rows, description=about)
    worst = max(layers, key=lambda each: abs(each.added - each.exact))
    error = abs(worst.added - worst.exact)
    result.metrics["completeness/largest_error"] = error
    if error > NOTABLE:
        result.diagnostics.warnings.append(
            f"the estimates of layer {worst.layer} add up to {worst.added:.3g}, and patching all of it has {worst.exact:.3g}: "
            f"{variables.ig_steps} ig_steps are too few"
        )
