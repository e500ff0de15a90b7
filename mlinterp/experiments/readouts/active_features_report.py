"""What `active_features` says: the latents that fire with where they do, a figure of the largest, and numbers with intervals."""

from __future__ import annotations

from typing import Any

import numpy as np

from mlinterp.determinism import numpy_stream
from mlinterp.estimates import bounds, record, share
from mlinterp.experiments.readouts.active_features import ActiveFeaturesVariables
from mlinterp.experiments.readouts.active_features_measure import Seen
from mlinterp.result import Aggregates, Estimate, ExperimentResult, Figure
from mlinterp.stats import benjamini_hochberg, bootstrap_intervals, mean_t_p, wilson_interval

LISTED = 24
"""Latents whose numbers become metrics, those with the largest activation; the table has more."""
SHOWN = 12
"""Latents in the figure."""
CONTROL = "the same latent on the corrupted prompts"


def report(seen: Seen, variables: ActiveFeaturesVariables, seed: int) -> ExperimentResult:
    """Return what fires as a result."""
    result = ExperimentResult(mode="observational")
    firing = np.unique(seen.own.latent)
    ranked = _ranked(seen, firing, variables)
    rows = _rows(seen, ranked, variables.n_bootstrap, seed)
    _tables(result, seen, rows, len(firing))
    n_tokens = int(seen.own.n_tokens.sum())
    result.metrics = {
        "active/n_latents": float(len(firing)),
        "active/share_of_latents": len(firing) / seen.d_sae,
        "active/l0": float(seen.own.n_active.sum() / n_tokens),
        "active/n_tokens": float(n_tokens),
    }
    found = _estimates(rows[:LISTED], len(seen.examples), seen.control is not None)
    result.metrics |= {name: each.value for name, each in found.items()}
    record(result, found)
    result.aggregates = Aggregates(n_samples=len(seen.examples), n_conditions=len(firing))
    result.diagnostics.n_contexts_tested = len(seen.examples)
    result.diagnostics.warnings += _warnings(seen, len(firing), len(rows), variables)
    return result


def _ranked(seen: Seen, firing: np.ndarray, variables: ActiveFeaturesVariables) -> np.ndarray:
    """Return the latents that are told, the one with the largest activation first."""
    chosen = firing if variables.latents is None else np.array(variables.latents)
    largest = np.zeros(seen.d_sae)
    np.maximum.at(largest, seen.own.latent, seen.own.largest)
    chosen = chosen[np.lexsort((chosen, -largest[chosen]))]
    return chosen if variables.latents is not None else chosen[: variables.most]


def _rows(seen: Seen, latents: np.ndarray, n_bootstrap: int, seed: int) -> list[dict[str, Any]]:
    own, n = seen.own.of(latents), len(seen.examples)
    if not len(latents):
        return []
    means = bootstrap_intervals(own, n_bootstrap, rng=numpy_stream(seed, "latents"))
    rows: list[dict[str, Any]] = []
    for at, latent in enumerate(latents.tolist()):
        times, (_, low, high) = int((own[:, at] > 0).sum()), wilson_interval(int((own[:, at] > 0).sum()), n)
        row: dict[str, Any] = {"latent": latent, "max_act": own[:, at].max(), **_peak(seen, latent, own[:, at])}
        row |= {"n_prompts": times, "share": times / n, "share_low": low, "share_high": high}
        row |= {"mean_act": means[at].estimate, **{f"mean_act_{bound}": value for bound, value in bounds(means[at]).items()}}
        rows.append(row)
    if seen.control is not None:
        control = seen.control.of(latents)
        apart = bootstrap_intervals(own - control, n_bootstrap, rng=numpy_stream(seed, "difference"))
        p = np.array([mean_t_p(column) if n > 1 else np.nan for column in (own - control).T])
        adjusted = benjamini_hochberg(p) if n > 1 else p
        for at, row in enumerate(rows):
            row |= {"control_share": float((control[:, at] > 0).mean()), "control_mean": float(control[:, at].mean())}
            row |= {"difference": apart[at].estimate, **{f"difference_{bound}": value for bound, value in bounds(apart[at]).items()}}
            row |= {"p": p[at], "p_adj": adjusted[at]}
    return rows


def _peak(seen: Seen, latent: int, own: np.ndarray) -> dict[str, Any]:
    """Return the prompt, token and position (from the prompt's first token) at which a latent is largest; None where it is silent."""
    if not own.any():
        return {"prompt": None, "token": None, "position": None}
    prompt = int(own.argmax())
    entry = np.flatnonzero((seen.own.prompt == prompt) & (seen.own.latent == latent))[0]
    column = int(seen.own.column[entry])
    first = int(seen.examples.mask[prompt].int().argmax())
    token = seen.subject.token_text(int(seen.examples.inputs[prompt, column]))
    return {"prompt": seen.examples.ids[prompt], "token": token, "position": column - first}


def _tables(result: ExperimentResult, seen: Seen, rows: list[dict[str, Any]], n_firing: int) -> None:
    about = (
        f"Observational: latents of an SAE at {seen.site} on {len(seen.examples)} prompts, special tokens left out ({len(rows)} of "
        f"{n_firing} that fire). max_act: largest activation over all tokens, and where; share: of the prompts in which it fires, "
        "with Wilson's interval; mean_act: mean over prompts of its largest activation in each (0 where it is silent), with a bootstrap "
        "interval over prompts."
    )
    if seen.control is not None:
        about += " control: the same on the corrupted prompts; difference: mean_act - control_mean, paired; p: paired t test over prompts."
    result.add_table("latents", rows, description=about)
    if not rows:
        return
    names = {"mean_act": "clean prompts", "control_mean": "corrupted prompts"} if seen.control is not None else {"mean_act": "prompts"}
    bounds_of = {"mean_act_low": "low", "mean_act_high": "high"}
    shown = [{"latent": _name(row), **{to: row[name] for name, to in {**names, **bounds_of}.items()}} for row in rows[:SHOWN]]
    result.add_table("largest", shown, description="The latents with the largest activation, as the figure shows them.")
    result.figures.append(
        Figure(
            name="largest",
            table="largest",
            kind="bar",
            x="latent",
            y=list(names.values()),
            low="low",
            high="high",
            title=f"What fires at {seen.site}: the mean over prompts of a latent's largest activation",
            x_label="latent, and the token where it is largest",
            y_label="activation",
        )
    )


def _name(row: dict[str, Any]) -> str:
    text = str(row["token"] or "").replace("\n", "⏎").strip()
    return f"{row['latent']} {text}".strip()


def _estimates(rows: list[dict[str, Any]], n: int, paired: bool) -> dict[str, Estimate]:
    found: dict[str, Estimate] = {}
    for row in rows:
        name = f"f{row['latent']}"
        p = row.get("p")
        p = None if p is None or np.isnan(p) else float(p)
        found[f"share/{name}"] = share(row["n_prompts"], n).model_copy(update={"unit": "prompt"})
        compared = {"null": CONTROL, "null_value": row["control_mean"], "p": p} if paired else {}
        found[f"mean_act/{name}"] = _bootstrapped(row, "mean_act", n, **compared)
        if paired:
            found[f"difference/{name}"] = _bootstrapped(row, "difference", n, null=CONTROL, null_value=0.0, p=p)
    return found


def _bootstrapped(row: dict[str, Any], name: str, n: int, **compared: Any) -> Estimate:
    interval = {"low": row[f"{name}_low"], "high": row[f"{name}_high"]}
    return Estimate(value=row[name], **interval, df=n - 1, n=n, unit="prompt", interval="bootstrap over prompts", **compared)


def _warnings(seen: Seen, n_firing: int, n_told: int, variables: ActiveFeaturesVariables) -> list[str]:
    said, n = [], len(seen.examples)
    if n == 1:
        said.append("1 prompt: nothing has an interval or a p value, and what fires may be about this prompt alone")
    if seen.control is None:
        said.append("no control: with pairs, the corrupted prompts are one, and show which latents fire on any such text")
    if not n_firing:
        said.append("no latent fires on any of the prompts")
    elif variables.latents is None and n_firing > n_told:
        said.append(f"{n_firing} latents fire; the table has the {n_told} with the largest activation (most)")
    return said
