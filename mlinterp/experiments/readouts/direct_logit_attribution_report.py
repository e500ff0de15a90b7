"""The parts of a logit as tables, figures and numbers with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mlinterp.estimates import PerExample, means, record
from mlinterp.experiments.readouts.direct_logit_attribution_rows import LogitRows
from mlinterp.readouts.logit_attribution import Attribution, Attributor, Term
from mlinterp.result import Estimate, ExperimentResult, Figure
from mlinterp.stats import benjamini_hochberg, mean_t_p
from mlinterp.subjects.base import Examples, Subject

MOST_ROWS = 2000
"""Rows that the table of single logits holds at most."""
MOST_TERMS = 500
"""Terms that have a metric of their own, the largest; tables hold all."""
NULL = "the same terms towards the answers of all positions, in their mean"


def fill(
    result: ExperimentResult,
    subject: Subject,
    attributor: Attributor,
    examples: Examples,
    rows: LogitRows,
    own: Attribution,
    seed: int,
) -> ExperimentResult:
    """Put the terms of every row, beside those towards all answers, into the result."""
    groups = _groups(attributor.terms)
    example, n = rows.example, len(examples)
    values, controls = own.values.numpy(), own.beside.numpy()
    scores = {name: _per_example(values[:, at].sum(axis=1), example, n) for name, at in groups.items()}
    against = {name: _per_example(controls[:, at].sum(axis=1), example, n) for name, at in groups.items()}
    found = means({**scores, "dla/logit": _per_example(own.logit.numpy(), example, n)}, seed)
    for name, control in against.items():
        if control.weight.sum():
            null = {"null": NULL, "null_value": control.value, "p": _p(scores[name], control)}
            found[name] = found[name].model_copy(update=null)
    total, logit = values.sum(axis=1), own.logit.numpy()
    result.metrics = {
        "dla/logit": found["dla/logit"].value,
        "dla/completeness_error": float(np.abs(total - logit).max() / max(np.abs(logit).max(), 1e-12)),
        "dla/n_logits": float(len(rows)),
    }
    _add_terms(result, attributor.terms, found)
    largest = set(sorted(found, key=lambda name: -abs(found[name].value))[:MOST_TERMS]) | {"dla/logit"}
    found = {name: each for name, each in found.items() if name in largest}
    result.metrics |= {name: each.value for name, each in found.items()}
    _add_examples(result, subject, examples, rows, total, logit)
    record(result, found)
    return result


def _groups(terms: tuple[Term, ...]) -> dict[str, list[int]]:
    """Return the columns of each number that is reported: every term, and each layer's attention as a whole."""
    groups = {f"attribution/{term.name}": [index] for index, term in enumerate(terms)}
    for layer in sorted({term.layer for term in terms if term.kind == "head" and term.layer is not None}):
        parts = [index for index, term in enumerate(terms) if term.layer == layer and term.kind in ("head", "attention_bias")]
        groups[f"attribution/blocks.{layer}.attention"] = parts
    return groups


def _per_example(values: np.ndarray, example: np.ndarray, n: int) -> PerExample:
    known = np.isfinite(values)
    total = np.bincount(example[known], weights=values[known], minlength=n)
    return PerExample(total, np.bincount(example[known], minlength=n).astype(float))


def _p(score: PerExample, control: PerExample) -> float | None:
    """Return the p value of "towards its own answer as towards all of them": the paired t test over examples; None for a single one."""
    both = (score.weight > 0) & (control.weight > 0)
    if both.sum() < 2:
        return None
    return mean_t_p(score.total[both] / score.weight[both] - control.total[both] / control.weight[both])


def _add_terms(result: ExperimentResult, terms: tuple[Term, ...], found: Mapping[str, Estimate]) -> None:
    known = [name for name in found if found[name].p is not None]
    adjusted = dict(zip(known, benjamini_hochberg(np.array([found[name].p for name in known])), strict=True)) if known else {}

    def row(name: str) -> dict[str, Any]:
        each = found[name]
        return {
            "mean": each.value,
            "low": each.low,
            "high": each.high,
            "control": each.null_value,
            "beyond_control": None if each.null_value is None else each.value - each.null_value,
            "p": each.p,
            "p_adj": adjusted.get(name),
            "n": each.n,
        }

    about = (
        "Observational: what each part of the model writes straight towards the logit (or the difference of two), in logits, with the "
        "final norm's scale frozen at each position; the terms sum to the logit. control: the same towards the mean of all answers, as "
        "much as a term adds that says the same whatever is asked; p: paired t test over examples of term minus control; p_adj: "
        "Benjamini–Hochberg over all terms. Intervals: 95 % over examples."
    )
    table = [
        {"term": term.name, "kind": term.kind, "layer": term.layer, "head": term.head, **row(f"attribution/{term.name}")} for term in terms
    ]
    result.add_table("terms", table, description=about)
    components = [entry for entry in table if entry["kind"] not in ("head", "attention_bias")]
    whole = [name for name in found if name.endswith(".attention") and name.removeprefix("attribution/") not in {e["term"] for e in table}]
    components += [
        {"term": name.removeprefix("attribution/"), "kind": "attention", "layer": int(name.split(".")[1]), "head": None, **row(name)}
        for name in whole
    ]
    last = max((entry["layer"] for entry in components if entry["layer"] is not None), default=0) + 1
    order = {"embedding": -1, "norm_bias": last, "unembedding_bias": last}
    components.sort(key=lambda entry: (order.get(entry["kind"], entry["layer"]), entry["kind"]))
    result.add_table("components", components, description=f"{about} Each layer's attention as a whole (its heads and its bias).")
    result.figures.append(
        Figure(
            name="components",
            table="components",
            kind="bar",
            x="term",
            y=["mean", "control"],
            low="low",
            high="high",
            title="What each part of the model writes towards its answer, and towards all answers",
            y_label="logits",
        )
    )
    heads = [entry for entry in table if entry["kind"] == "head"]
    if heads:
        result.add_table("heads", heads, description=f"{about} Heads alone.")
        result.figures.append(
            Figure(
                name="heads",
                table="heads",
                kind="heatmap",
                x="head",
                y=["mean"],
                series="layer",
                title="What each head writes towards the answer",
                x_label="head",
                y_label="layer",
                value_label="logits",
            )
        )


def _add_examples(
    result: ExperimentResult, subject: Subject, examples: Examples, rows: LogitRows, total: np.ndarray, logit: np.ndarray
) -> None:
    first = examples.mask.int().argmax(dim=1)
    table = []
    for row, (example, column) in enumerate(rows.chosen.nonzero()[:MOST_ROWS].tolist()):
        wrong = None if rows.wrong is None else subject.token_text(int(rows.wrong[row]))
        table.append(
            {
                "example": examples.ids[example],
                "position": column - int(first[example]),
                "token": subject.token_text(int(examples.inputs[example, column])),
                "answer": subject.token_text(int(rows.answer[row])),
                "wrong": wrong,
                "logit": float(logit[row]),
                "sum_of_terms": float(total[row]),
            }
        )
    about = "Every logit that was taken apart, as the model gives it (before a cap, where it has one), and as the sum of its terms."
    result.add_table("logits", table, description=about)
