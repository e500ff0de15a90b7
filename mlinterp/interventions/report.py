"""`report.json` and `interventions/ID.json`: baseline against intervened outcomes, as files for other programs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mlinterp.interventions.evaluator import Effect, Evaluator, Outcomes, Recorded
from mlinterp.interventions.plan import Intervention, Plan
from mlinterp.io.atomic import write_json
from mlinterp.stats import Interval
from mlinterp.subjects.base import Examples

REPORT_SCHEMA = "trminterp.report.v0"
DIFF_SCHEMA = "trminterp.intervention.v0"


def build_report(
    plan: Plan,
    recorded: Recorded,
    evaluator: Evaluator,
    effects: Mapping[str, Effect],
    *,
    run_id: str,
    seed: int,
    inputs: Mapping[str, str | None],
) -> dict[str, Any]:
    """Return the content of `report.json`; every number is finite or None.

    Beyond the fields of its schema, each intervention carries its place (`at`), for patches `chance_agreement`, that of the untouched
    answers with the source's, and, where it was applied, `effect`: the change of the primary outcome beside its matched controls.
    """
    interventions = []
    for item in plan.interventions:
        source = plan.source_of(item)
        before = recorded.baseline(source)
        compared = evaluator.compare(before, recorded.arm(item.arm, source)) | {"chance_agreement": before.means()["agreement"]}
        effect = effects.get(item.id)
        interventions.append({**_declared(plan, item), **compared, "effect": None if effect is None else effect_fields(effect)})
    return {
        "schema": REPORT_SCHEMA,
        "run_id": run_id,
        "seed": seed,
        "inputs": dict(inputs),
        "primary_outcome": evaluator.primary,
        "baseline": recorded.baseline().means(),
        "interventions": interventions,
        "controls": _controls(plan, recorded, evaluator),
        "top_causal_features": [
            {
                "rank": rank,
                "feature": item.latents[0],
                "intervention": item.id,
                "policy": item.block.policy,
                **effect_fields(effects[item.id]),
            }
            for rank, item in enumerate(evaluator.ranked(plan.interventions, dict(effects)), start=1)
        ],
        "warnings": [*plan.warnings, *silent_places(plan, recorded)],
    }


def effect_fields(effect: Effect) -> dict[str, Any]:
    """Return an effect as JSON values; `ci95` belongs to `adjusted_effect`, `effect_ci95` to `effect`."""
    return {
        "effect": effect.effect.estimate,
        "effect_ci95": bounds(effect.effect),
        "control_effect": effect.control.estimate,
        "control_ci95": bounds(effect.control),
        "adjusted_effect": effect.adjusted.estimate,
        "ci95": bounds(effect.adjusted),
        "p_examples": effect.p_examples,
        "p_controls": effect.p_controls,
        "p": effect.p,
        "p_adj": effect.p_adj,
        "specificity": effect.specificity,
    }


def bounds(interval: Interval) -> list[float] | None:
    """Return [low, high], or None where the interval is undefined."""
    return [interval.low, interval.high] if np.isfinite([interval.low, interval.high]).all() else None


def _declared(plan: Plan, item: Intervention) -> dict[str, Any]:
    place, block = plan.arms[item.arm].place, item.block
    steps = sorted({address.sup_step for address in place.addresses if address.sup_step is not None})
    return {
        "id": item.id,
        "policy": block.policy,
        "features": list(item.latents) if block.needs_sae else None,
        "value": block.value,
        **{name: value for name in ("quantile", "scale", "strength") if (value := getattr(block, name)) is not None},
        **({"baseline": block.baseline} if block.policy == "ablate_features" else {}),
        "source": (block.source or "shuffled") if block.patches else None,
        "at": item.place_label,
        "sites": sorted({address.site for address in place.addresses}),
        "sup_steps": steps or None,
        "positions": list(place.positions) if isinstance(place.positions, tuple) else place.positions,
        "mode": block.mode,
        "renorm": block.renorm,
    }


def _controls(plan: Plan, recorded: Recorded, evaluator: Evaluator) -> list[dict[str, Any]]:
    """Return one entry for each control arm, saying whose control it is."""
    users: dict[tuple[str, int], list[Intervention]] = {}
    for item in plan.interventions:
        for kind, arms in item.controls.items():
            for arm in arms:
                users.setdefault((kind, arm), []).append(item)
    entries = []
    for (kind, arm), items in users.items():
        source = plan.source_of(items[0])
        outcomes, before = recorded.arm(arm, source), recorded.baseline(source)
        effect = float(evaluator.change(before, outcomes).mean()) if outcomes.applied else None
        latents = getattr(plan.arms[arm].policy, "latents", None)
        shared = {"kind": kind, "of": [item.id for item in items], "features": latents and list(latents), "effect": effect}
        entries.append({**shared, **outcomes.means(), **outcomes.edit()})
    return entries


def silent_places(plan: Plan, recorded: Recorded) -> list[str]:
    """Return a warning for each intervention that was never applied, and for each place where edits changed no answer at all."""
    found, moved = [], dict[str, bool]()
    for item in plan.interventions:
        own = recorded.arm(item.arm)
        if not own.applied:
            found.append(_never_applied(item, own))
            continue
        arms = [own, *(recorded.arm(arm) for kind in ("random_direction", "shuffled_source") for arm in item.controls.get(kind, ()))]
        changed = any(bool((arm.values["kl"] > 0).any()) for arm in arms)
        moved[item.place_label] = moved.get(item.place_label, False) or changed
    quiet = [place for place, changed in moved.items() if not changed]
    return found + [
        f"edits at {place} reached no answer: every effect measured there, controls included, is exactly zero" for place in quiet
    ]


def _never_applied(item: Intervention, own: Outcomes) -> str:
    if not own.selected.sum():
        why = f"no row of {item.place_label} is selected"
    elif item.latents and not own.active.sum():
        why = f"latents {list(item.latents)} are inactive in all {int(own.selected.sum())} rows at {item.place_label}"
    else:
        why = f"it left all {int(own.selected.sum())} rows at {item.place_label} as they were"
    return f"{item.id} was never applied: {why}; it has no effect to report"


def write_diffs(folder: Path, plan: Plan, recorded: Recorded, examples: Examples) -> list[str]:
    """Write `interventions/ID.json` for each intervention below `folder` and return the names.

    Predictions and positions count from an example's first real position.
    """
    names = []
    before = recorded.baseline()
    for item in plan.interventions:
        after = recorded.arm(item.arm)
        rows = [_diff(example, i, recorded.mask[i], before, after) for i, example in enumerate(examples.ids)]
        names.append(f"interventions/{item.id}.json")
        write_json(folder / names[-1], {"schema": DIFF_SCHEMA, **_declared(plan, item), "examples": rows})
    return names


def _diff(example: str, i: int, real: np.ndarray, before: Outcomes, after: Outcomes) -> dict[str, Any]:
    was, now = before.preds[i][real], after.preds[i][real]
    steps = np.flatnonzero(after.changed[i])
    return {
        "example_id": example,
        "baseline_pred": was.tolist(),
        "new_pred": now.tolist(),
        "changed_positions": np.flatnonzero(was != now).tolist(),
        "first_changed_sup_step": int(steps[0]) if len(steps) else None,
        "q_halt_before": float(before.q_halt[i]) if np.isfinite(before.q_halt[i]) else None,
        "q_halt_after": float(after.q_halt[i]) if np.isfinite(after.q_halt[i]) else None,
    }
