"""What one SAE of a `sae_fit` is worth: on rows that it has not seen, beside controls, in the model, and against other seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from mlinterp.errors import ExperimentError, SpecError
from mlinterp.experiments.base import Context
from mlinterp.experiments.sae_fit_data import Material
from mlinterp.experiments.sae_fit_fitting import Fit
from mlinterp.result import Estimate
from mlinterp.sae.evaluation.controls import pca_explained_variance, random_dictionary_explained_variance
from mlinterp.sae.evaluation.encoding import targets_of
from mlinterp.sae.evaluation.estimates import sae_estimates
from mlinterp.sae.evaluation.reconstruction import Evaluation, evaluate
from mlinterp.sae.evaluation.stability import Stability, seed_stability
from mlinterp.sae.evaluation.substitution import Substitution, substitute
from mlinterp.sae.model import SAE
from mlinterp.sae.rows import moments
from mlinterp.sae.selection import evenly
from mlinterp.subjects.base import Subject

if TYPE_CHECKING:
    from mlinterp.experiments.sae_fit import SAEFitVariables

CANDIDATES = 4
"""Rows kept for each context shown, since one place often ranks high at several steps."""


class RandomInit(NamedTuple):
    """An SAE fitted alike on the model with its weights shuffled, on held-out rows of that."""

    explained_variance: float | None
    l0: float


@dataclass(frozen=True)
class Judged:
    """One SAE and what it is worth.

    Attributes:
        name: what it is called among the SAEs of its run.
        material: what it was fitted on and judged by.
        sae: itself.
        held_out: on examples that it has not seen.
        seen: on as many evenly spaced rows of examples that it has.
        pca: explained variance by number of principal components; empty where controls were not asked for.
        random: explained variance of a random dictionary of the same sparsity.
        substitution: behaviour with its reconstruction in place.
        unmeasured: why there is none of that, where it was asked for.
        seeds: of all SAEs of this run that were fitted on the same rows.
        stability: how those agree; None where it is the only one.
        random_init: what one fitted alike on the model with shuffled weights reaches, where that was asked for.
    """

    name: str
    material: Material
    sae: SAE
    held_out: Evaluation
    seen: Evaluation
    pca: Mapping[int, float | None]
    random: float | None
    substitution: Substitution | None
    unmeasured: str | None
    seeds: tuple[int, ...] = ()
    stability: Stability | None = None
    random_init: RandomInit | None = None

    @property
    def k(self) -> int:
        """The number of components that is as sparse as it is."""
        return max(1, round(self.held_out.l0))

    def numbers(self) -> dict[str, float]:
        """Return every number that is defined, named `stage/name`."""
        found: dict[str, float | None] = {f"sae/{name}": value for name, value in self.held_out.numbers().items()}
        found |= {f"sae/{name}_train": self.seen.numbers().get(name) for name in ("fvu", "mse")}
        found |= {f"sae/fvu_part_{number}": value for number, value in enumerate(self.held_out.part_fvu, start=1)}
        if self.pca:
            found |= {"control/pca_fve": self.pca[self.k], "control/random_dictionary_fve": self.random}
        if self.random_init is not None:
            found["control/random_init_model_fve"] = self.random_init.explained_variance
        if self.substitution is not None:
            found |= {f"substitution/{name}": value for name, value in self.substitution.numbers().items()}
        if self.stability is not None:
            agree = self.stability
            found |= {
                "stability/mcc_mean": agree.mcc_mean,
                "stability/null_mcc": agree.null_mcc,
                "stability/found_again": agree.found_again,
            }
            correlation = np.array([pair.mean_correlation for pair in agree.pairs], dtype=np.float64)
            found["stability/activation_correlation"] = float(correlation.mean()) if np.isfinite(correlation).all() else None
        return {name: value for name, value in found.items() if value is not None}

    def estimates(self, seed: int) -> dict[str, Estimate]:
        """Return what a prediction about it can be judged by, under the names of `numbers`."""
        found = sae_estimates(self.held_out, self.random, self.substitution, seed)
        if self.stability is not None:
            found |= {f"stability/{name}": each for name, each in self.stability.estimates(seed).items()}
        return found


def require_examples(context: Context, subject: Subject | None) -> None:
    """Refuse before the fit what could not be judged after it: raises SpecError where behaviour is asked of a split without examples."""
    asked = context.variables.evaluate
    if subject is None or not asked.substitution or context.variables.kind != "sae":
        return
    if not len(subject.examples(asked.split, 1, context.seed, **asked.options)):
        allowed = "a split that has some, or evaluate.substitution: false"
        raise SpecError(f"'{subject.name}' has no {asked.split} examples", field="variables.evaluate.split", allowed=allowed)


def judge(context: Context, fit: Fit, sae: SAE, subject: Subject | None) -> Judged:
    """Judge a fitted SAE on held-out rows, beside controls, and in the model."""
    variables: SAEFitVariables = context.variables
    material = fit.material
    split, source = material.split, material.source
    owners = np.unique(material.trace.meta["example_id"].to_numpy(dtype=str)[split.validation], return_inverse=True)[1]
    held_out = evaluate(sae, source, split.validation, examples=owners, n_top=CANDIDATES * variables.n_top_contexts)
    seen = evaluate(sae, source, evenly(split.train, len(split.validation)))
    pca: dict[int, float | None] = {}
    random = None
    if variables.controls:
        k, written, config = max(1, round(held_out.l0)), targets_of(sae, source), sae.config
        pca = {n: pca_explained_variance(written, split.train, split.validation, n) for n in sorted({k, *variables.control_ks})}
        of = {"k": min(k, config.writes, config.d_sae), "d_sae": config.d_sae, "seed": config.seed}
        random = random_dictionary_explained_variance(written, split.train, split.validation, **of)
    substitution, unmeasured = _substitute(context, material, sae, subject)
    return Judged(fit.name, material, sae, held_out, seen, pca, random, substitution, unmeasured)


def _substitute(context: Context, material: Material, sae: SAE, subject: Subject | None) -> tuple[Substitution | None, str | None]:
    """Return what the reconstruction does to behaviour, or why that was not measured."""
    variables: SAEFitVariables = context.variables
    asked = variables.evaluate
    if not asked.substitution:
        return None, None
    if subject is None:
        return None, "no subject is named, so behaviour with the reconstruction in place was not measured"
    examples = subject.examples(asked.split, asked.n_examples, context.seed, **asked.options)
    mean = torch.from_numpy(moments(targets_of(sae, material.source), material.split.train).mean)
    try:
        done = substitute(
            subject,
            examples,
            sae,
            material.rows.addresses,
            mean=mean,
            targets=material.targets,
            positions=variables.positions,
            special=subject.special_tokens if variables.skip_special else (),
            batch_size=asked.batch_size,
        )
    except (ExperimentError, SpecError) as error:
        if sae.config.kind == "sae":
            raise
        return None, str(error)
    return done, None


def compared(judged: Sequence[Judged], seed: int) -> list[Judged]:
    """Return the same SAEs with how those of different seeds, fitted on the same rows, agree."""
    found = []
    for _, group in groupby(judged, key=lambda each: each.material.reading):
        same = list(group)
        seeds, stability = tuple(each.sae.config.seed for each in same), None
        if len(same) > 1:
            of = same[0].material
            stability = seed_stability([each.sae for each in same], seed, source=of.source, index=of.split.validation)
        found += [replace(each, seeds=seeds, stability=stability) for each in same]
    return found
