"""How the worth of the SAEs of a `sae_fit` is told: tables, figures, `sae_metrics.json`.

The first SAE is the run's own: its numbers stand under their plain names and it has tables and figures of its own. Numbers of further
ones stand below `saes/NAME/`, beside each other in the table `saes`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlinterp.experiments.base import Context
from mlinterp.experiments.sae_fit_data import Material
from mlinterp.experiments.sae_fit_judging import Judged
from mlinterp.io.atomic import write_json
from mlinterp.result import FURTHER, ExperimentResult, Figure
from mlinterp.sae.contexts import Contexts
from mlinterp.sae.evaluation.held_out import record
from mlinterp.sae.evaluation.reconstruction import NUMBERS
from mlinterp.sae.evaluation.telling import tell_stability
from mlinterp.subjects.base import Subject

if TYPE_CHECKING:
    from mlinterp.experiments.sae_fit import SAEFitVariables

METRICS_SCHEMA = "trminterp.sae_metrics.v0"


def report(result: ExperimentResult, judged: Sequence[Judged], subject: Subject | None, context: Context) -> None:
    """Put everything about the SAEs of a run into its result, the first one's in full."""
    variables: SAEFitVariables = context.variables
    first = judged[0]
    result.metrics |= first.numbers()
    result.estimates |= first.estimates(context.seed)
    result.aggregates.explained_variance = first.held_out.explained_variance
    result.aggregates.n_samples = first.held_out.n_rows
    if first.substitution is not None:
        result.diagnostics.n_contexts_tested = first.substitution.n_examples
    _tell_reconstruction(result, first)
    if first.pca:
        _tell_controls(result, first)
    if first.substitution is not None:
        _tell_substitution(result, first, variables.evaluate.split)
    _tell_latents(result, first, subject, variables.n_top_contexts)
    if first.stability is not None:
        tell_stability(result, first.stability, [each.name for each in judged[: len(first.seeds)]], first.seeds)
    if len(judged) > 1:
        _tell_all(result, judged, context.seed)
    for each in judged:
        of = f"{each.name}: " if len(judged) > 1 else ""
        if each.held_out.frac_dead == 1:
            result.diagnostics.warnings.append(f"{of}every latent is dead: the SAE reconstructs a constant")
        if each.unmeasured is not None:
            result.diagnostics.warnings.append(f"{of}{each.unmeasured}")


def _tell_reconstruction(result: ExperimentResult, judged: Judged) -> None:
    result.add_table(
        "reconstruction",
        [
            {"rows": side, "n_rows": part.n_rows, **{name: getattr(part, name) for name in NUMBERS}}
            for side, part in (("train", judged.seen), ("validation", judged.held_out))
        ],
        description="Held-out examples beside as many evenly spaced training rows. frac_dead: share of latents silent on all these rows.",
    )


def _tell_controls(result: ExperimentResult, judged: Judged) -> None:
    untrained = judged.random_init
    held_out, what = judged.held_out, "what it writes, on held-out rows" if judged.material.reading.target else "held-out rows"
    result.add_table(
        "controls",
        [
            {"dictionary": "SAE", "k": held_out.l0, "explained_variance": held_out.explained_variance},
            *({"dictionary": f"PCA {n}", "k": n, "explained_variance": value} for n, value in judged.pca.items()),
            {"dictionary": f"random {judged.k}", "k": judged.k, "explained_variance": judged.random},
            *(
                [{"dictionary": "SAE, weights shuffled", "k": untrained.l0, "explained_variance": untrained.explained_variance}]
                if untrained
                else []
            ),
        ],
        description=f"Explained variance of {what}: the SAE, the k strongest principal components, and for each row the k best of as "
        "many random directions, decoded by least squares."
        + (" SAE, weights shuffled: one fitted alike on the model with its weights shuffled, on rows of that." if untrained else ""),
    )
    result.figures.append(
        Figure(
            name="controls",
            table="controls",
            kind="bar",
            x="dictionary",
            y=["explained_variance"],
            title="Reconstruction beside dictionaries that learned nothing sparse",
            y_label="explained variance",
            reference=held_out.explained_variance,
        )
    )


def _tell_substitution(result: ExperimentResult, judged: Judged, split: str) -> None:
    done, where = judged.substitution, judged.material.reading.target or judged.material.reading.sites[0]
    assert done is not None
    result.add_table(
        "substitution",
        done.table(),
        description=f"Interventional: {done.n_examples} examples ({split}) run with the activations of {where} replaced at every "
        "evaluation and position that the SAE was fitted on. ce_loss and kl_div in nats a scored position "
        f"({done.n_tokens} positions).",
    )


def _tell_latents(result: ExperimentResult, judged: Judged, subject: Subject | None, n: int) -> None:
    held_out = judged.held_out
    trace = judged.material.trace
    contexts = Contexts(trace.meta, trace.examples, subject.token_text if subject else None)
    table = []
    for latent, density in enumerate(held_out.density):
        shown = contexts.distinct(held_out.top_rows[latent], n)
        table.append(
            {
                "id": latent,
                "density": density,
                "log10_density": math.log10(density) if density else None,
                "mean_act": held_out.mean_act[latent],
                "max_act": held_out.max_act[latent],
                **{f"context_{place + 1}": shown[place] if place < len(shown) else None for place in range(n)},
            }
        )
    result.add_table(
        "latents",
        table,
        description=f"Every latent on the {held_out.n_rows} held-out rows: share of rows where it is active, mean activation there, "
        "largest activation, and the contexts that activate it most, the row's own token between « and ».",
    )
    result.figures.append(
        Figure(
            name="density",
            table="latents",
            kind="histogram",
            x="log10_density",
            title="How often latents fire on held-out rows (dead ones left out)",
            x_label="log10 density",
            y_label="latents",
        )
    )


def _tell_all(result: ExperimentResult, judged: Sequence[Judged], seed: int) -> None:
    """Put the SAEs of a run beside each other."""
    rows = []
    for each in judged:
        recovered = None if each.substitution is None else each.substitution.ce_loss_recovered
        shown = {name: getattr(each.held_out, name) for name in ("fvu", "explained_variance", "l0", "frac_dead")}
        rows.append(
            {
                "name": each.name,
                "site": each.material.reading.name,
                "seed": each.sae.config.seed,
                **shown,
                "ce_loss_recovered": recovered,
                "stability_mcc": each.stability and each.stability.mcc_mean,
                "random_dictionary_fve": each.random,
            }
        )
    for each in judged[1:]:
        result.metrics |= {f"{FURTHER}{each.name}/{name}": value for name, value in each.numbers().items()}
        result.estimates |= {f"{FURTHER}{each.name}/{name}": value for name, value in each.estimates(seed).items()}
    result.add_table(
        "saes",
        rows,
        description="Every SAE of this run on held-out examples, the first one in full in the other tables. ce_loss_recovered is "
        "interventional: against zero ablation. stability_mcc: with the SAEs of other seeds on the same rows.",
    )
    result.figures.append(
        Figure(
            name="saes",
            table="saes",
            kind="scatter",
            x="l0",
            y=["fvu"],
            series="site",
            title="The SAEs of this run",
            x_label="l0",
            y_label="fvu",
        )
    )


def write_metrics(folder: Path, judged: Judged, variables: SAEFitVariables, seconds: float) -> Path:
    """Write `sae_metrics.json` of one SAE into its folder."""
    held_out, seen = judged.held_out, judged.seen
    payload: dict[str, Any] = {
        "schema": METRICS_SCHEMA,
        "subject_sha256": judged.material.trace.header.get("model", {}).get("sha256"),
        "split_by": "example_id",
        "trained_on": _trained_on(judged.material, variables),
        "n_train": judged.material.n_train,
        "n_val": len(judged.material.split.validation),
        "mse": {"train": seen.mse, "val": held_out.mse},
        "fve": {"train": seen.explained_variance, "val": held_out.explained_variance},
        "l0": held_out.l0,
        "dead_fraction": held_out.frac_dead,
        "dead_window_rows": held_out.n_rows,
        "alive": int((held_out.density > 0).sum()),
        "cos_mean": held_out.cossim,
        "l2_ratio": held_out.l2_ratio,
        "recon_substitution": judged.substitution and judged.substitution.payload(),
        "controls": {
            "pca_fve_at_k": judged.pca.get(judged.k),
            "random_dictionary_fve": judged.random,
            "random_init_model_fve": judged.random_init and judged.random_init.explained_variance,
        },
        "stability": {"seeds": list(judged.seeds), "mcc_mean": judged.stability and judged.stability.mcc_mean},
        "features": [
            {
                "id": latent,
                "firing_rate": float(density),
                "mean_act": float(held_out.mean_act[latent]) if density else None,
                "max_act": float(held_out.max_act[latent]),
                "top_rows": [int(row) for row in held_out.top_rows[latent] if row >= 0],
            }
            for latent, density in enumerate(held_out.density)
        ],
        "seed": judged.sae.config.seed,
        "seconds": round(seconds, 3),
    }
    return write_json(folder / "sae_metrics.json", payload)


def _trained_on(material: Material, variables: SAEFitVariables) -> dict[str, Any]:
    """Return which examples an SAE has seen, for whoever evaluates it later."""
    names, split = material.trace.meta["example_id"], material.split
    seen = {str(name) for name in names.iloc[split.train].unique()} if len(material.index) else None
    held_out = {str(name) for name in names.iloc[split.validation].unique()}
    rows = variables.model_dump(include={"positions", "skip_special", "sup_steps", "cycles", "latent_steps"})
    return record(material.trace.header.get("split"), seen, held_out, rows)
