"""A logit lens as tables, figures and numbers with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mlinterp.estimates import PerExample, means, record
from mlinterp.readouts.lens import Answers, Rows, chance_agreement, settled
from mlinterp.result import Estimate, ExperimentResult, Figure
from mlinterp.subjects.base import IGNORED, Subject

MOST_TOKENS = 40
"""Tokens of an example that are shown, the last of those read: more would not be legible in a figure."""
MOST_POSITIONS = 256
"""Positions that the table of means by position holds at most."""


def fill(
    result: ExperimentResult, subject: Subject, rows: Rows, layers: Mapping[str, Answers], n: int, shown: int, seed: int
) -> ExperimentResult:
    """Put what the layers of `n` examples answer into the result."""
    scores: dict[str, PerExample] = {"lens/settled": rows.per_example(settled(list(layers.values())), n)}
    for name, layer in layers.items():
        scores[f"kl/{name}"] = rows.per_example(layer.kl, n)
        scores[f"agreement/{name}"] = rows.per_example(layer.agrees, n, is_share=True)
        scores[f"final_prob/{name}"] = rows.per_example(layer.final_prob, n)
        scores[f"target_prob/{name}"] = rows.per_example(layer.target_prob, n)
    found = {name: each for name, each in means(scores, seed).items() if np.isfinite(each.value)}
    for name, layer in layers.items():
        chance = {"null": "answers dealt out to other positions at random", "null_value": chance_agreement(rows, layer)}
        found[f"agreement/{name}"] = found[f"agreement/{name}"].model_copy(update=chance)
    result.metrics = {name: each.value for name, each in found.items()}
    _add_layers(result, rows, layers, found)
    _add_positions(result, rows, layers)
    for example in range(min(shown, n)):
        _add_tokens(result, subject, rows, layers, example)
    record(result, found)
    return result


def _add_layers(result: ExperimentResult, rows: Rows, layers: Mapping[str, Answers], found: Mapping[str, Estimate]) -> None:
    table: list[dict[str, Any]] = []
    for name, layer in layers.items():
        row: dict[str, Any] = {"layer": name}
        for score in ("kl", "agreement", "final_prob", "target_prob"):
            each = found.get(f"{score}/{name}")
            row |= {score: each and each.value, f"{score}_low": each and each.low, f"{score}_high": each and each.high}
        known = np.isfinite(layer.target_rank)
        row |= {
            "chance_agreement": found[f"agreement/{name}"].null_value,
            "final_rank": float(np.median(layer.final_rank)),
            "target_rank": float(np.median(layer.target_rank[known])) if known.any() else None,
            "n": len(rows.example),
        }
        table.append(row)
    result.add_table(
        "layers",
        table,
        description="Observational: each layer's residual stream through the final norm and the unembedding, over all positions read. kl: "
        "KL(final answer ‖ layer) in nats; agreement: share of positions where the layer's likeliest token is the model's own final "
        "token; chance_agreement: that share if the layer's answers were dealt out to other positions; final_prob, target_prob: mean "
        "probability of the model's final token and of the right one; final_rank, target_rank: median rank, 1 is the likeliest. The "
        "metric lens/settled is the mean number of the first layer (the first row is 0) from which on every layer agrees. "
        "Intervals: 95 % over examples.",
    )
    shares = ["agreement", "final_prob", *(["target_prob"] if any(row["target_prob"] is not None for row in table) else [])]
    result.figures += [
        Figure(
            name="layers",
            table="layers",
            kind="line",
            x="layer",
            y=shares,
            low="agreement_low",
            high="agreement_high",
            title="What each layer would already answer",
            y_label="share or probability",
        ),
        Figure(
            name="kl",
            table="layers",
            kind="line",
            x="layer",
            y=["kl"],
            low="kl_low",
            high="kl_high",
            title="How far each layer is from the final answer",
            y_label="KL (nats)",
            log_y=True,
        ),
    ]


def _add_positions(result: ExperimentResult, rows: Rows, layers: Mapping[str, Answers]) -> None:
    places = np.unique(rows.position)[:MOST_POSITIONS]
    if len(places) < 2:
        return
    table = [
        {
            "layer": name,
            "position": int(place),
            "kl": float(layer.kl[at].mean()),
            "agreement": float(layer.agrees[at].mean()),
            "final_prob": float(layer.final_prob[at].mean()),
            "n": int(at.sum()),
        }
        for name, layer in reversed(list(layers.items()))
        for place in places
        for at in [rows.position == place]
    ]
    about = "Observational: means over examples at each position, counted from the first token; columns as in the table `layers`."
    result.add_table("positions", table, description=about)
    result.figures.append(
        Figure(
            name="positions",
            table="positions",
            kind="heatmap",
            x="position",
            y=["agreement"],
            series="layer",
            title="Share of examples where a layer's likeliest token is already the final one, by position",
            value_label="share of examples",
            full=1.0,
        )
    )


def _add_tokens(result: ExperimentResult, subject: Subject, rows: Rows, layers: Mapping[str, Answers], example: int) -> None:
    at = np.flatnonzero(rows.example == example)[-MOST_TOKENS:]
    if not len(at):
        return
    table = []
    for name, layer in reversed(list(layers.items())):
        for row in at.tolist():
            target = int(rows.target[row])
            tops = zip(layer.top[row].tolist(), layer.top_prob[row].tolist(), strict=True)
            table.append(
                {
                    "layer": name,
                    "position": int(rows.position[row]),
                    "token": f"{int(rows.position[row])} {subject.token_text(int(rows.token[row]))}",
                    "top": subject.token_text(int(layer.top[row, 0])),
                    "top_k": ", ".join(f"{subject.token_text(token)!r} {prob:.3f}" for token, prob in tops),
                    "final": subject.token_text(int(rows.final[row])),
                    "final_prob": float(layer.final_prob[row]),
                    "final_rank": int(layer.final_rank[row]),
                    "target": None if target == IGNORED else subject.token_text(target),
                    "target_prob": float(layer.target_prob[row]),
                    "target_rank": float(layer.target_rank[row]),
                    "kl": float(layer.kl[row]),
                }
            )
    name = f"tokens_{example + 1}"
    about = (
        f"Observational: example {example + 1} layer by layer. top_k: the likeliest tokens and their probabilities; final: what the model "
        "answers in the end; target: the right token, where there is one."
    )
    result.add_table(name, table, description=about)
    result.figures.append(
        Figure(
            name=name,
            table=name,
            kind="heatmap",
            x="token",
            y=["final_prob"],
            series="layer",
            title=f"Example {example + 1}: probability that each layer gives the model's own final token",
            x_label="token read (position, text)",
            value_label="probability",
            full=1.0,
        )
    )
