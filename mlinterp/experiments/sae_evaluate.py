"""`sae_evaluate`: say what an SAE is worth on rows that it was not trained on.

Reconstruction, behaviour with the reconstruction in place, properties that few latents tell, absorption, agreement with other seeds, and
known features, each as far as the inputs allow.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from mlinterp.errors import ExperimentError, SpecError
from mlinterp.experiments.base import Context, Experiment, Variables
from mlinterp.experiments.trace import ExampleChoice
from mlinterp.result import Estimate, ExperimentResult, Figure
from mlinterp.sae.evaluation.declared import PropertyBlock
from mlinterp.spec import Spec

if TYPE_CHECKING:
    from mlinterp.experiments.sae_evaluate_data import Given
    from mlinterp.sae.evaluation.absorption import Absorption
    from mlinterp.sae.evaluation.probing import Probing
    from mlinterp.sae.evaluation.properties import Property
    from mlinterp.sae.evaluation.reconstruction import Evaluation
    from mlinterp.sae.evaluation.substitution import Substitution

Measure = Literal["reconstruction", "substitution", "probing", "absorption", "stability", "truth"]
OTHERS = tuple(f"sae_{letter}" for letter in "bcdefgh")
"""Roles of the SAEs that the first one is compared with."""
CANDIDATES = 4
"""Rows kept for each context shown, since one place often ranks high at several steps."""


class SAEEvaluateVariables(Variables):
    """Which rows, and what is measured on them."""

    measure: list[Measure] | None = Field(
        None,
        min_length=1,
        max_length=6,
        description="what is measured; everything that inputs, subject and properties allow where left out",
    )
    rows: Literal["held_out", "all"] = Field(
        "held_out", description="held_out leaves out the examples that the SAE was trained on; all takes them too, and says so"
    )
    site: str | None = Field(None, max_length=300, description="hook point to read, for an SAE that does not say which one it reads")
    sup_steps: list[int] | None = Field(
        None, min_length=1, description="only rows of these supervision steps; those of the fit where left out"
    )
    cycles: list[int] | None = Field(None, min_length=1, description="only rows of these cycles; those of the fit where left out")
    latent_steps: list[int] | None = Field(
        None, min_length=1, description="only rows of these latent steps; those of the fit where left out"
    )
    positions: Literal["all", "tokens", "answer"] | None = Field(
        None, description="rows used: all (prefix included), tokens, or answer (positions that are scored); those of the fit where left out"
    )
    skip_special: bool = Field(True, description="leave out tokens that stand for no text, such as beginning and end, where they are known")
    properties: list[PropertyBlock] = Field([], max_length=16, description="what probes look for and absorption is measured of")
    probe_rows: int = Field(
        20_000,
        ge=100,
        le=10_000_000,
        description="rows that probes, absorption and correlations look at, evenly spaced; their activations are in memory",
    )
    examples: ExampleChoice = Field(
        ExampleChoice(split="validation", n=64), description="examples that the model runs on with the reconstruction in place"
    )
    batch_size: int = Field(32, ge=1, le=4096, description="examples a forward pass")
    n_top_contexts: int = Field(5, ge=0, le=50, description="contexts shown for each latent")

    @model_validator(mode="after")
    def _consistent(self) -> SAEEvaluateVariables:
        for asked in ("probing", "absorption"):
            if asked in (self.measure or ()) and not self.properties:
                raise ValueError(f"{asked} is about properties: add properties")
        return self

    def wants(self, measure: Measure, possible: bool) -> bool:
        """Whether something is to be measured: it was asked for, or nothing was and it can be."""
        return measure in self.measure if self.measure is not None else possible


def check(spec: Spec, variables: Variables, roles: Collection[str]) -> None:
    """Refuse what is asked without what it needs. Raises SpecError."""
    assert isinstance(variables, SAEEvaluateVariables)
    asked = variables.measure or []
    if "stability" in asked and not set(OTHERS) & set(roles):
        raise SpecError("stability compares SAEs", field="inputs.sae_b", allowed="add an SAE of another seed, or leave stability out")
    if "substitution" in asked and spec.subject is None:
        raise SpecError("substitution runs the model", field="subject", allowed="a name from project.yaml, or leave substitution out")


def run(context: Context) -> ExperimentResult:
    """Find the rows, measure, tell."""
    from mlinterp.estimates import record
    from mlinterp.experiments.sae_evaluate_data import open_inputs
    from mlinterp.sae.evaluation.telling import tell_definitions

    variables: SAEEvaluateVariables = context.variables
    result = ExperimentResult()
    given = open_inputs(context, result)
    estimates: dict[str, Estimate] = {}
    if variables.wants("reconstruction", True):
        estimates |= _reconstruction(context, given, result)
    if variables.wants("substitution", given.subject is not None):
        estimates |= _substitution(context, given, result)
    if variables.wants("probing", bool(variables.properties)) or variables.wants("absorption", bool(variables.properties)):
        estimates |= _properties(context, given, result)
    if variables.wants("stability", len(given.saes) > 1):
        estimates |= _stability(context, given, result)
    if variables.wants("truth", given.truth is not None):
        estimates |= _truth(context, given, result)
    if any(each.mode == "interventional" for each in estimates.values()):
        result.mode = "interventional"
        estimates = {name: each.model_copy(update={"mode": each.mode or "observational"}) for name, each in estimates.items()}
    result.metrics |= given.counts
    record(result, estimates)
    tell_definitions(result)
    return result


def _reconstruction(context: Context, given: Given, result: ExperimentResult) -> dict[str, Estimate]:
    from mlinterp.sae.evaluation.controls import random_dictionary_explained_variance
    from mlinterp.sae.evaluation.encoding import targets_of
    from mlinterp.sae.evaluation.estimates import sae_estimates
    from mlinterp.sae.evaluation.reconstruction import evaluate

    variables: SAEEvaluateVariables = context.variables
    config = given.sae.config
    found = evaluate(given.sae, given.source, given.index, examples=given.owners, n_top=CANDIDATES * variables.n_top_contexts)
    k = max(1, min(round(found.l0), config.writes, config.d_sae))
    written = targets_of(given.sae, given.source)
    random = random_dictionary_explained_variance(written, given.index, given.index, k=k, d_sae=config.d_sae, seed=context.seed)
    result.metrics |= {f"sae/{name}": value for name, value in found.numbers().items()}
    result.metrics |= {"sae/dead_window_rows": float(found.n_rows)}
    result.metrics |= {f"sae/fvu_part_{number}": value for number, value in enumerate(found.part_fvu, start=1) if value is not None}
    if random is not None:
        result.metrics["control/random_dictionary_fve"] = random
    result.aggregates.explained_variance, result.aggregates.n_samples = found.explained_variance, found.n_rows
    if found.fvu is None:
        result.diagnostics.warnings.append("what is to be reconstructed does not vary, so fvu and explained variance are undefined")
    if found.frac_dead == 1:
        result.diagnostics.warnings.append("every latent is dead: the SAE reconstructs a constant")
    _tell_latents(result, found, given, variables.n_top_contexts)
    return sae_estimates(found, random, None, context.seed)


def _tell_latents(result: ExperimentResult, found: Evaluation, given: Given, n: int) -> None:
    from mlinterp.sae.contexts import Contexts

    contexts = Contexts(given.trace.meta, given.trace.examples, given.subject.token_text if given.subject else None)
    table = []
    for latent, density in enumerate(found.density):
        shown = contexts.distinct(found.top_rows[latent], n)
        row = {"id": latent, "density": density, "log10_density": math.log10(density) if density else None}
        row |= {"mean_act": found.mean_act[latent], "max_act": found.max_act[latent]}
        table.append({**row, **{f"context_{place + 1}": shown[place] if place < len(shown) else None for place in range(n)}})
    result.add_table(
        "latents",
        table,
        description=f"Every latent on {found.n_rows} rows: share of rows where it is active, mean activation there, largest activation, "
        "and the contexts that activate it most, the row's own token between « and ».",
    )
    result.figures.append(
        Figure(
            name="density",
            table="latents",
            kind="histogram",
            x="log10_density",
            title=f"How often latents fire on {found.n_rows} rows (dead ones left out)",
            x_label="log10 density",
            y_label="latents",
        )
    )


def _substitution(context: Context, given: Given, result: ExperimentResult) -> dict[str, Estimate]:
    import torch

    from mlinterp.sae.evaluation.encoding import targets_of
    from mlinterp.sae.evaluation.estimates import substitution_estimates
    from mlinterp.sae.evaluation.substitution import substitute
    from mlinterp.sae.rows import moments

    variables: SAEEvaluateVariables = context.variables
    subject, choice = given.subject, variables.examples
    assert subject is not None, "checked before the run"
    examples = subject.examples(choice.split, choice.n, choice.seed, **choice.options)
    examples = given.unseen(examples, choice.split) if variables.rows == "held_out" else examples
    mean = torch.from_numpy(moments(targets_of(given.sae, given.source), given.index).mean)
    try:
        found = substitute(
            subject,
            examples,
            given.sae,
            given.rows.addresses,
            mean=mean,
            targets=given.targets,
            positions=given.choice.positions,
            special=subject.special_tokens if variables.skip_special else (),
            batch_size=variables.batch_size,
        )
    except (ExperimentError, SpecError) as error:
        if given.sae.config.kind == "sae":
            raise
        result.diagnostics.warnings.append(str(error))
        return {}
    _tell_substitution(result, found, given, choice.split)
    return substitution_estimates(found, context.seed)


def _tell_substitution(result: ExperimentResult, found: Substitution, given: Given, split: str) -> None:
    config = given.sae.config
    result.metrics |= {f"substitution/{name}": value for name, value in found.numbers().items() if value is not None}
    result.diagnostics.n_contexts_tested = found.n_examples
    result.add_table(
        "substitution",
        found.table(),
        description=f"Interventional: {found.n_examples} examples ({split}) run with the activations of "
        f"{config.target_site or config.site} replaced. ce_loss and kl_div in nats a scored position ({found.n_tokens} positions).",
    )


def _properties(context: Context, given: Given, result: ExperimentResult) -> dict[str, Estimate]:
    """Probe the properties, and measure their absorption, on one encoding of the rows."""
    from mlinterp.sae.evaluation.absorption import measure_absorption
    from mlinterp.sae.evaluation.codes import read_codes
    from mlinterp.sae.evaluation.probing import probe
    from mlinterp.sae.evaluation.properties import properties
    from mlinterp.sae.evaluation.telling import tell_unmeasured

    variables: SAEEvaluateVariables = context.variables
    index = given.sample(variables.probe_rows)
    meta = given.trace.meta.iloc[index]
    text = given.subject.token_text if given.subject else None
    found: dict[str, Property] = {}
    for number, block in enumerate(variables.properties):
        for each in properties(block, meta, text, given.truth, f"variables.properties[{number}]"):
            found.setdefault(each.key, each)
    codes = read_codes(given.sae, given.source, index, meta["example_id"].astype(str).to_numpy(), context.seed)
    estimates: dict[str, Estimate] = {}
    why: dict[str, dict[str, str]] = {}
    if variables.wants("probing", True):
        probed = {key: probe(codes, each.labels, context.seed) for key, each in found.items()}
        estimates |= _probing({key: each for key, each in probed.items() if not isinstance(each, str)}, found, context.seed, result)
        why["probing"] = {found[key].name: each for key, each in probed.items() if isinstance(each, str)}
    if variables.wants("absorption", True):
        absorbed = {key: measure_absorption(codes, each.labels, context.seed) for key, each in found.items()}
        estimates |= _absorption({key: each for key, each in absorbed.items() if not isinstance(each, str)}, found, context.seed, result)
        why["absorption"] = {found[key].name: each for key, each in absorbed.items() if isinstance(each, str)}
    tell_unmeasured(result, why)
    return estimates


def _probing(found: Mapping[str, Probing], of: Mapping[str, Property], seed: int, result: ExperimentResult) -> dict[str, Estimate]:
    from mlinterp.sae.evaluation.estimates import probing_estimates
    from mlinterp.sae.evaluation.telling import tell_probing

    estimates = probing_estimates(found, seed)
    result.metrics |= {name: each.value for name, each in estimates.items()}
    result.metrics["probing/n_properties"] = float(len(found))
    if found:
        tell_probing(result, {of[key].name: each for key, each in found.items()})
    return estimates


def _absorption(found: Mapping[str, Absorption], of: Mapping[str, Property], seed: int, result: ExperimentResult) -> dict[str, Estimate]:
    from mlinterp.sae.evaluation.estimates import absorption_estimates
    from mlinterp.sae.evaluation.telling import tell_absorption

    estimates = absorption_estimates(found, seed)
    result.metrics |= {name: each.value for name, each in estimates.items()}
    result.metrics["absorption/n_properties"] = float(len(found))
    if found:
        tell_absorption(result, {of[key].name: each for key, each in found.items()})
        result.metrics["absorption/num_split_features"] = math.fsum(each.num_split_features for each in found.values()) / len(found)
    return estimates


def _stability(context: Context, given: Given, result: ExperimentResult) -> dict[str, Estimate]:
    from mlinterp.sae.evaluation.stability import seed_stability
    from mlinterp.sae.evaluation.telling import tell_stability

    saes = list(given.saes.values())
    found = seed_stability(saes, context.seed, source=given.source, index=given.sample(context.variables.probe_rows))
    seeds = [sae.config.seed for sae in saes]
    if len(set(seeds)) < len(seeds):
        result.diagnostics.warnings.append(f"SAEs of equal seed are among those compared (seeds {seeds}): what they share is no stability")
    tell_stability(result, found, list(given.saes), seeds)
    result.metrics |= {f"stability/{name}": value for name, value in found.numbers().items()}
    return {f"stability/{name}": each for name, each in found.estimates(context.seed).items()}


def _truth(context: Context, given: Given, result: ExperimentResult) -> dict[str, Estimate]:
    from mlinterp.sae.evaluation.telling import tell_recovery
    from mlinterp.sae.evaluation.truth import recover

    kind = given.sae.config.kind
    if given.truth is None:
        allowed = "a trace of a planted world, or without truth"
        raise SpecError("the trace has no known features", field="variables.measure", allowed=allowed)
    if kind != "sae":
        result.diagnostics.warnings.append(f"a {kind} does not write what the true features are made of: not compared with them")
        return {}
    found = recover(given.sae, given.source, given.index, given.truth, context.seed)
    tell_recovery(result, found)
    result.metrics |= {f"truth/{name}": value for name, value in found.numbers().items()}
    return {f"truth/{name}": each for name, each in found.estimates(context.seed).items()}


EXPERIMENT = Experiment(
    type="sae_evaluate",
    summary="Measure an SAE on rows it was not trained on: reconstruction, behaviour, probes, absorption, seed stability, known truth.",
    Variables=SAEEvaluateVariables,
    run=run,
    check=check,
    aliases=("evaluate_sae",),
    modes=("observational", "interventional"),
    inputs={"sae": True, "trace": True, "trace_b": False, "subject": False, **dict.fromkeys(OTHERS, False)},
    needs_subject=False,
    headlines=("sae/l0", "sae/frac_dead", "substitution/ce_loss_recovered", "stability/mcc_mean", "truth/mcc", "truth/f1", "sae/fvu"),
    frontiers=(("sae/l0", "sae/fvu"), ("sae/l0", "substitution/ce_loss_recovered")),
    example={
        "subject": "NAME",
        "inputs": {"sae": "latest", "trace": "latest"},
        "variables": {"properties": [{"of": "token_in"}]},
    },
)
