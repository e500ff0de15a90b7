"""Comparing intervened with baseline outcomes: changes with intervals, flips, and effects beside their controls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mlinterp.determinism import numpy_stream
from mlinterp.interventions.controls import matched
from mlinterp.interventions.outcomes import VALUES
from mlinterp.interventions.plan import Intervention, Plan
from mlinterp.stats import Interval, benjamini_hochberg, bootstrap_intervals, control_adjusted, sign_flip_p, single_case_p

REPORTED = {
    "exact": "exact",
    "token_acc": "token_acc",
    "mean_halt_step": "halt_step",
    "q_acc": "q_right",
    "margin": "margin",
    "log_prob": "log_prob",
    "kl": "kl",
    "agreement": "agreement",
}
"""Name of each reported mean to its values for each example."""


@dataclass(frozen=True)
class Outcomes:
    """What one forward pass over all examples answered.

    Attributes:
        values: by name, one number for each example, float64 `[n]`; NaN where the subject has none.
        preds: most likely tokens, `[n, pos]`.
        q_halt: last halting logit, `[n]`, NaN without one.
        changed: scored tokens that differ from the baseline's after each supervision step, `[n, sup_step]`; zero for the baseline.
        selected, edited, active, relative: the tally of the edit, `[n]` (`policies.Tally`).
    """

    values: dict[str, np.ndarray]
    preds: np.ndarray
    q_halt: np.ndarray
    changed: np.ndarray
    selected: np.ndarray
    edited: np.ndarray
    active: np.ndarray
    relative: np.ndarray

    @property
    def applied(self) -> bool:
        """Whether the edit changed any activation at all."""
        return bool(self.edited.sum() > 0)

    def edit(self) -> dict[str, Any]:
        """Return how much was edited: `edit_norm` (mean |h' - h| / |h| of the edited rows), `active_fraction` and `n_edits` (rows)."""
        n_edits, selected = int(self.edited.sum()), float(self.selected.sum())
        return {
            "edit_norm": {"mean_relative": float(self.relative.sum() / n_edits) if n_edits else None},
            "active_fraction": float(self.active.sum() / selected) if selected else None,
            "n_edits": n_edits,
        }

    def means(self) -> dict[str, Any]:
        """Return the reported means; None where the subject has no such outcome."""
        means = {name: _mean(self.values.get(key)) for name, key in REPORTED.items()}
        return {**means, "n": len(self.preds)}


def _mean(values: np.ndarray | None) -> float | None:
    return None if values is None or not np.isfinite(values).all() else float(values.mean())


@dataclass(frozen=True)
class Recorded:
    """Everything a plan's arms did, over all examples (arrays of `BatchRunner.run`, joined along the examples).

    Attributes:
        arrays: by name.
        scored: which positions count, bool `[n, pos]`.
        mask: which positions are real, bool `[n, pos]`.
    """

    arrays: dict[str, np.ndarray]
    scored: np.ndarray
    mask: np.ndarray

    def baseline(self, source: np.ndarray | None = None) -> Outcomes:
        """Return the untouched answers; with a source assignment, their chance agreement with the source's answers too."""
        none = np.zeros(len(self.scored))
        return self._outcomes(0, source, np.zeros_like(self.arrays["changed"][0]), [none] * 4)

    def arm(self, index: int, source: np.ndarray | None = None) -> Outcomes:
        """Return an arm's outcomes; with a source assignment, their agreement with the source's untouched answers too."""
        return self._outcomes(index + 1, source, self.arrays["changed"][index], self.arrays["tally"][index].T)

    def _outcomes(self, row: int, source: np.ndarray | None, changed: np.ndarray, tally: Any) -> Outcomes:
        preds, untouched = self.arrays["preds"][row], self.arrays["preds"][0]
        values = dict(zip(VALUES, self.arrays["values"][row].T, strict=True))
        values["changed_tokens"] = ((preds != untouched) & self.scored).sum(axis=1)
        if source is not None:
            both = self.scored & self.mask[source]
            values["agreement"] = ((preds == untouched[source]) & both).sum(axis=1) / np.maximum(both.sum(axis=1), 1)
        return Outcomes(values, preds, self.arrays["q_halt"][row], changed, *tally)


@dataclass(frozen=True)
class Effect:
    """An intervention's effect on the primary outcome, beside that of its matched controls.

    `effect` is the mean change from the baseline (BCa interval over examples), `control` the mean change under the matched controls and
    `adjusted` the difference of the two (intervals over examples and over single draws of the controls, `stats.control_adjusted`).

    `p` is the larger of two p values, since a causal effect must pass both tests: `p_examples`, sign flips of the examples' differences,
    asks whether the difference is there in more than a few examples; `p_controls`, the single-case t test, whether it lies outside the
    spread of the controls. The first alone would call any latent significant whose random controls happened to matter. `p_adj` is
    `p` after Benjamini-Hochberg over all applied interventions.

    `specificity` is |effect| / (|effect| + mean |effect of one control|): 1 where controls do nothing, a half where they do as much.
    """

    effect: Interval
    control: Interval
    adjusted: Interval
    specificity: float | None
    p_examples: float
    p_controls: float
    p: float
    p_adj: float


class Evaluator:
    """Compares outcomes.

    Args:
        primary: the outcome that effects are about.
        n_bootstrap: resamples of each interval.
        seed: of resampling and sign flips.
    """

    def __init__(self, primary: str, n_bootstrap: int, seed: int) -> None:
        self.primary, self.n_bootstrap, self.seed = primary, n_bootstrap, seed

    def compare(self, baseline: Outcomes, intervened: Outcomes) -> dict[str, Any]:
        """Return what changed: `outcome`, `delta`, `ci95` of the deltas, `flips`, `edit_norm`, `active_fraction`, `n_edits`.

        A delta is None, never zero, for an edit that was not applied at all.
        """
        outcome, before = intervened.means(), baseline.means()
        names = [name for name in REPORTED if outcome[name] is not None and before[name] is not None]
        delta: dict[str, float | None] = dict.fromkeys(REPORTED)
        ci95: dict[str, list[float | None] | None] = dict.fromkeys(REPORTED)
        if intervened.applied:
            for name, interval in zip(
                names, self._intervals([intervened.values[REPORTED[name]] - baseline.values[REPORTED[name]] for name in names]), strict=True
            ):
                delta[name], ci95[name] = interval.estimate, [_finite(interval.low), _finite(interval.high)]
        was, now = baseline.values["exact"] > 0, intervened.values["exact"] > 0
        steps = intervened.changed.sum(axis=0).tolist()
        return {
            "outcome": outcome,
            "delta": delta,
            "ci95": ci95,
            "flips": {
                "right_to_wrong": int((was & ~now).sum()),
                "wrong_to_right": int((~was & now).sum()),
                "changed_tokens": int(intervened.values["changed_tokens"].sum()),
                "per_sup_step": steps or None,
            },
            **intervened.edit(),
        }

    def effects(self, plan: Plan, recorded: Recorded) -> dict[str, Effect]:
        """Return the effect of every intervention that was applied, by its id."""
        kinds = matched(self.primary)
        applied, changes, controls = [], [], []
        for intervention in plan.interventions:
            source = plan.source_of(intervention)
            baseline, own = recorded.baseline(source), recorded.arm(intervention.arm, source)
            if own.applied:
                applied.append(intervention)
                changes.append(self.change(baseline, own))
                arms = [index for kind in kinds for index in intervention.controls.get(kind, ())]
                controls.append(np.array([self.change(baseline, recorded.arm(index, source)) for index in arms]))
        if not applied:
            return {}
        p_examples = sign_flip_p(
            np.array([change - others.mean(axis=0) for change, others in zip(changes, controls, strict=True)]).T,
            rng=numpy_stream(self.seed, "sign_flip"),
        )
        p_controls = np.array([single_case_p(change.mean(), others.mean(axis=1)) for change, others in zip(changes, controls, strict=True)])
        p = np.maximum(p_examples, p_controls)
        p_adj = benjamini_hochberg(p)
        intervals, found = self._intervals(changes), {}
        for i, (intervention, others) in enumerate(zip(applied, controls, strict=True)):
            control, adjusted = control_adjusted(changes[i], others.T, self.n_bootstrap, rng=numpy_stream(self.seed, "bootstrap"))
            size, noise = abs(intervals[i].estimate), float(np.abs(others.mean(axis=1)).mean())
            found[intervention.id] = Effect(
                effect=intervals[i],
                control=control,
                adjusted=adjusted,
                specificity=size / (size + noise) if size + noise > 0 else None,
                p_examples=float(p_examples[i]),
                p_controls=float(p_controls[i]),
                p=float(p[i]),
                p_adj=float(p_adj[i]),
            )
        return found

    def ranked(self, interventions: list[Intervention], effects: dict[str, Effect]) -> list[Intervention]:
        """Return the applied interventions on single latents, the largest control-adjusted effect first (ties in declared order)."""
        single = [item for item in interventions if len(item.latents) == 1 and item.id in effects]
        return sorted(single, key=lambda item: -abs(effects[item.id].adjusted.estimate))

    def change(self, baseline: Outcomes, intervened: Outcomes) -> np.ndarray:
        """Return the change of the primary outcome in each example, `[n]`."""
        return intervened.values[self.primary] - baseline.values[self.primary]

    def _intervals(self, columns: list[np.ndarray]) -> list[Interval]:
        return bootstrap_intervals(np.array(columns).T, self.n_bootstrap, rng=numpy_stream(self.seed, "bootstrap"))


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
