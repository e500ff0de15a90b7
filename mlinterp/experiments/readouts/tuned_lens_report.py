"""A tuned lens on held-out text, beside the logit lens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mlinterp.estimates import PerExample, means, record
from mlinterp.readouts.lens import look, plain
from mlinterp.readouts.reading import Readout
from mlinterp.readouts.tuned_lens import Translators, translated
from mlinterp.result import ExperimentResult, Figure
from mlinterp.stats import mean_t_p
from mlinterp.subjects.base import Examples, Subject


class _Scores(NamedTuple):
    """What each example adds to the KL and to the agreement of each layer."""

    kl: list[PerExample]
    agreement: list[PerExample]


def mean_kl(subject: Subject, readout: Readout, translators: Translators, examples: Examples, batch_size: int) -> tuple[Tensor, Tensor]:
    """Return the mean KL to the final answer of each translated layer, read plainly and through its translator, float64 `[layer]` both."""
    both = _both(subject, readout, translators, examples, batch_size)
    first, second = (torch.tensor([each.value for each in scores.kl], dtype=torch.float64) for scores in both)
    return first, second


def fill(
    result: ExperimentResult,
    subject: Subject,
    readout: Readout,
    translators: Translators,
    test: Examples,
    kept: Sequence[bool],
    batch_size: int,
    seed: int,
) -> None:
    """Put the lens's numbers on `test` into the result. `kept` says of each layer whether its translator was fitted or put back."""
    logit_lens, tuned = _both(subject, readout, translators, test, batch_size)
    names = readout.names[:-1]
    scores = {f"kl/{name}": each for name, each in zip(names, tuned.kl, strict=True)}
    scores |= {f"agreement/{name}": each for name, each in zip(names, tuned.agreement, strict=True)}
    scores |= {f"gain/{name}": _difference(*pair) for name, *pair in zip(names, logit_lens.kl, tuned.kl, strict=True)}
    found = means(scores, seed)
    for kind, plainly in (("kl", logit_lens.kl), ("agreement", logit_lens.agreement)):
        for name, base in zip(names, plainly, strict=True):
            changes = _difference(scores[f"{kind}/{name}"], base)
            null = {"null": "the logit lens", "null_value": base.value, "p": mean_t_p(changes.total / changes.weight)}
            found[f"{kind}/{name}"] = found[f"{kind}/{name}"].model_copy(update=null)
    for name in names:
        found[f"gain/{name}"] = found[f"gain/{name}"].model_copy(update={"null": "the logit lens", "null_value": 0.0})
    rows: list[dict[str, Any]] = []
    for index, name in enumerate(names):
        kl, gain, agreement = (found[f"{kind}/{name}"] for kind in ("kl", "gain", "agreement"))
        rows.append(
            {
                "layer": name,
                "logit_lens_kl": logit_lens.kl[index].value,
                "tuned_kl": kl.value,
                "tuned_kl_low": kl.low,
                "tuned_kl_high": kl.high,
                "gain": gain.value,
                "gain_low": gain.low,
                "gain_high": gain.high,
                "logit_lens_agreement": logit_lens.agreement[index].value,
                "tuned_agreement": agreement.value,
                "tuned_agreement_low": agreement.low,
                "tuned_agreement_high": agreement.high,
                "kept": kept[index],
            }
        )
    result.add_table(
        "layers",
        rows,
        description="Observational, on held-out text. kl: KL(final answer ‖ layer) in nats; gain: how much less of it the tuned lens has "
        "than the logit lens; agreement: share of tokens where the layer's likeliest token is the model's own final one; kept: whether "
        "the fitted translator beat the logit lens on the validation split (otherwise the layer is read plainly). Intervals: 95 % over "
        "examples.",
    )
    result.metrics = {
        "lens/tuned_kl": float(np.mean([row["tuned_kl"] for row in rows])),
        "lens/logit_lens_kl": float(np.mean([row["logit_lens_kl"] for row in rows])),
        "lens/n_kept": float(sum(kept)),
        "lens/n_worse": float(sum(row["gain"] < 0 for row in rows)),
        **{name: each.value for name, each in found.items()},
    }
    record(result, found)
    for measure, label in (("kl", "KL to the final answer (nats)"), ("agreement", "share of tokens that agree with the final answer")):
        result.figures.append(
            Figure(
                name=measure,
                table="layers",
                kind="line",
                x="layer",
                y=[f"tuned_{measure}", f"logit_lens_{measure}"],
                low=f"tuned_{measure}_low",
                high=f"tuned_{measure}_high",
                title="Tuned lens beside the logit lens on held-out text",
                y_label=label,
                log_y=measure == "kl",
            )
        )


def _both(subject: Subject, readout: Readout, translators: Translators, examples: Examples, batch_size: int) -> tuple[_Scores, _Scores]:
    found = []
    for reading in (plain(readout), translated(readout, translators)):
        rows, layers = look(subject, readout, reading, examples, "tokens", 1, batch_size)
        inner = [layers[name] for name in readout.names[:-1]]
        kl = [rows.per_example(each.kl, len(examples)) for each in inner]
        found.append(_Scores(kl, [rows.per_example(each.agrees, len(examples), is_share=True) for each in inner]))
    return found[0], found[1]


def _difference(one: PerExample, other: PerExample) -> PerExample:
    return PerExample(one.total - other.total, one.weight)
