"""A report as tables, figures and headline numbers of a result."""

from __future__ import annotations

import statistics
from typing import Any

from mlinterp.estimates import record
from mlinterp.interventions.estimates import largest, report_estimates, single_latents
from mlinterp.result import Aggregates, ExperimentResult, Figure

_SHOWN = ("exact", "token_acc", "margin", "log_prob", "kl", "agreement")


def fill_result(result: ExperimentResult, report: dict[str, Any]) -> ExperimentResult:
    """Add everything a report says to a result and return it."""
    items = report["interventions"]
    applied = [item for item in items if item["effect"] is not None]
    result.add_table(
        "interventions",
        [_intervention(item) for item in items],
        description="Each intervention: its effect beside matched controls, and the change of every outcome with its interval.",
    )
    result.add_table(
        "controls",
        [_control(entry) for entry in report["controls"]],
        description="Each control and whose it is.",
    )
    if report["top_causal_features"]:
        rows = [_flat(entry) for entry in report["top_causal_features"]]
        result.add_table("top_causal_features", rows, description="Single latents, the largest effect beyond their matched controls first.")
    _add_flips(result, items)
    if applied:
        _add_effects(result, applied, report["primary_outcome"])
        _add_addresses(result, items, report["primary_outcome"])
    for stage, some in (("top", applied), ("top_latent", single_latents(report))):
        if some:
            top = largest(some)["effect"]
            result.metrics |= {f"{stage}/{name}": top[name] for name in ("adjusted_effect", "effect", "control_effect", "p_adj")}
    for item in applied:
        effect = item["effect"]
        result.metrics[f"effect/{item['id']}"] = effect["effect"]
        result.metrics[f"control/{item['id']}"] = effect["control_effect"]
        result.metrics[f"adjusted/{item['id']}"] = effect["adjusted_effect"]
        if item["outcome"]["agreement"] is not None:
            result.metrics[f"agreement/{item['id']}"] = item["outcome"]["agreement"]
    result.metrics |= {f"baseline/{name}": float(value) for name, value in report["baseline"].items() if value is not None}
    result.aggregates = _aggregates([item["effect"]["effect"] for item in applied], report["baseline"]["n"])
    result.diagnostics.n_contexts_tested = report["baseline"]["n"]
    result.diagnostics.warnings += report["warnings"]
    record(result, report_estimates(report))
    return result


def _intervention(item: dict[str, Any]) -> dict[str, Any]:
    head = {name: item[name] for name in ("id", "policy", "at", "source", "n_edits", "active_fraction")}
    head |= {"features": _listed(item["features"]), "edit_norm": item["edit_norm"]["mean_relative"]}
    if item["effect"] is not None:
        head |= _flat(item["effect"])
    for name in _SHOWN:
        low, high = item["ci95"][name] or (None, None)
        head |= {f"delta_{name}": item["delta"][name], f"delta_{name}_low": low, f"delta_{name}_high": high}
    return head


def _flat(fields: dict[str, Any]) -> dict[str, Any]:
    """Return fields with each interval as two columns, named after the estimate it belongs to."""
    owner = {"effect_ci95": "effect", "control_ci95": "control", "ci95": "adjusted"}
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        if name in owner:
            flat[f"{owner[name]}_low"], flat[f"{owner[name]}_high"] = value or (None, None)
        else:
            flat[name] = value
    return flat


def _control(entry: dict[str, Any]) -> dict[str, Any]:
    return {
        "kind": entry["kind"],
        "of": ", ".join(entry["of"]),
        "features": _listed(entry["features"]),
        "n_edits": entry["n_edits"],
        "edit_norm": entry["edit_norm"]["mean_relative"],
        "effect": entry["effect"],
        **{name: entry[name] for name in _SHOWN},
    }


def _listed(latents: list[int] | None) -> str | None:
    return None if latents is None else ", ".join(map(str, latents))


def _add_flips(result: ExperimentResult, items: list[dict[str, Any]]) -> None:
    names = ("right_to_wrong", "wrong_to_right", "changed_tokens")
    result.add_table(
        "flips",
        [{"id": item["id"], "at": item["at"], **{name: item["flips"][name] for name in names}} for item in items],
        description="Examples whose answer changed, and scored tokens that did.",
    )
    steps = [
        {"id": item["id"], "sup_step": step, "changed_tokens": n}
        for item in items
        for step, n in enumerate(item["flips"]["per_sup_step"] or ())
    ]
    if steps:
        result.add_table(
            "flips_by_step", steps, description="Scored tokens that differ from the untouched answer after each supervision step."
        )
        title = "Tokens changed after each supervision step"
        result.figures.append(
            Figure(
                name="flips_by_step",
                table="flips_by_step",
                kind="line",
                x="sup_step",
                y=["changed_tokens"],
                series="id",
                title=title,
                x_label="supervision step",
                y_label="scored tokens",
            )
        )


def _add_effects(result: ExperimentResult, applied: list[dict[str, Any]], primary: str) -> None:
    rows = []
    for item in applied:
        for what, estimate, interval in (("intervention", "effect", "effect_ci95"), ("matched controls", "control_effect", "control_ci95")):
            low, high = item["effect"][interval] or (None, None)
            rows.append({"id": item["id"], "what": what, "effect": item["effect"][estimate], "low": low, "high": high})
    result.add_table(
        "effects",
        rows,
        description=f"Mean change of {primary} under each intervention and under its matched controls, with 95 % intervals over examples.",
    )
    title = f"Effect on {primary}, beside matched controls"
    result.figures.append(
        Figure(
            name="effects",
            table="effects",
            kind="bar",
            x="id",
            y=["effect"],
            series="what",
            low="low",
            high="high",
            title=title,
            x_label="intervention",
            y_label=f"change of {primary}",
            reference=0.0,
        )
    )


def _add_addresses(result: ExperimentResult, items: list[dict[str, Any]], primary: str) -> None:
    """Add the table by address, where one policy was used at several."""
    swept = {policy for policy in {item["policy"] for item in items} if len({item["at"] for item in items if item["policy"] == policy}) > 1}
    rows = []
    for item in items:
        if item["policy"] in swept:
            outcome, effect = item["outcome"], _flat(item["effect"] or {})
            numbers = {
                "token_acc": outcome["token_acc"],
                "agreement": outcome["agreement"],
                "chance": item["chance_agreement"],
                "exact": outcome["exact"],
            }
            rows.append(
                {
                    "at": item["at"],
                    **numbers,
                    **{k: effect.get(k) for k in ("effect", "effect_low", "effect_high")},
                    "id": item["id"],
                    "policy": item["policy"],
                }
            )
    if not rows:
        return
    result.add_table(
        "addresses",
        rows,
        description="The same edit at different evaluations: own accuracy, agreement with the source's answer, and chance.",
    )
    bar: dict[str, Any] = {"table": "addresses", "kind": "bar", "x": "at", "x_label": "evaluation"}
    result.figures.append(
        Figure(
            name="effect_by_address",
            y=["effect"],
            low="effect_low",
            high="effect_high",
            title=f"Effect on {primary} by address",
            y_label=f"change of {primary}",
            reference=0.0,
            **bar,
        )
    )
    known = [row["chance"] for row in rows if row["chance"] is not None]
    if known:
        title = "Own accuracy and agreement with the source, by address"
        result.figures.append(
            Figure(
                name="agreement_by_address",
                y=["token_acc", "agreement"],
                title=title,
                y_label="share of scored positions",
                reference=statistics.fmean(known),
                **bar,
            )
        )


def _aggregates(effects: list[float], n: int) -> Aggregates:
    if not effects:
        return Aggregates(n_samples=n)
    return Aggregates(
        mean_delta=statistics.fmean(effects),
        std_delta=statistics.stdev(effects) if len(effects) > 1 else None,
        max_delta=max(effects),
        min_delta=min(effects),
        median_delta=statistics.median(effects),
        n_samples=n,
        n_conditions=len(effects),
    )
