"""Opening the lab: from a run's context to the latent and the contexts that its spec is about."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from mlinterp.errors import ExperimentError, SpecError, unknown
from mlinterp.result import ExperimentResult
from mlinterp.sae.files.checkpoint import load_sae
from mlinterp.sae.files.provenance import require_subject
from mlinterp.subjects.token_sets.constraints import Constraint
from mlinterp.subjects.token_sets.package import DataPackage
from mlinterp.subjects.token_sets.subject import TokenSetSubject
from mlinterp.token_sets.feature import LatentReader
from mlinterp.token_sets.lab import Lab
from mlinterp.token_sets.slicing import Rows, cut

if TYPE_CHECKING:
    from mlinterp.experiments.base import Context

CHOOSING = 4096
"""Contexts of the train split by which a concept's latent is chosen."""

_VARIES = 1e-11
"""Share of a sum of squares that must be variance: less is what rounding leaves of a number that is always the same."""


def reader_of(context: Context) -> LatentReader:
    """Return the latents that a spec is about: of its SAE, else the neurons at its subject's readout."""
    subject = context.load_subject()
    if not isinstance(subject, TokenSetSubject):
        problem = f"{context.spec.type} is about token sets, and '{subject.name}' is a {subject.kind} subject"
        raise SpecError(problem, field="subject", allowed="a subject of kind token_set")
    if "sae" not in context.inputs:
        return LatentReader(subject)
    require_subject(context.inputs["sae"].path, subject, "inputs.sae")
    sae = load_sae(context.inputs["sae"].path)
    if sae.config.kind != "sae" or sae.config.site not in subject.sites:
        problem = f"the SAE is a {sae.config.kind} of {sae.config.site or 'no stated hook point'}"
        raise SpecError(problem, field="inputs.sae", allowed=f"an SAE of one of {', '.join(subject.sites)}")
    return LatentReader(subject, sae)


def conduct(context: Context, measure: Callable[[Lab, Any], ExperimentResult]) -> ExperimentResult:
    """Open the lab, measure, and say of every row of every table whether it was observed or intervened: tables travel without their run."""
    result = measure(open_lab(context), context.variables)
    for table in result.tables.values():
        if "mode" not in table.columns:
            table.columns.append("mode")
            for row in table.rows:
                row["mode"] = result.mode
    return result


def open_lab(context: Context) -> Lab:
    """Return the lab of a spec: its latent, and its slice of the contexts without those that break a hard constraint.

    Raises SpecError for anything that the domain does not have, ExperimentError where the slice is empty.
    """
    reader, spec = reader_of(context), context.spec
    package = reader.subject.package
    latent, custom = choose(reader, package, spec.feature_id, context.variables.feature)
    table = reader.subject.contexts(spec.dataset_slice.split)
    feature = reader.feature(latent)
    rows = Rows(table, feature(table))
    lab = Lab(spec, package, feature, latent, rows, constraints_of(package, spec.constraints), custom, context.reporter, reader)
    kept = {constraint.id for constraint in lab.constraints}
    if left := [found.id for found in package.constraints() if found.enforcement == "hard" and found.id not in kept]:
        lab.warn(f"the spec names constraints, and {' and '.join(left)} is not among them: contexts that break it are used")
    lab.rows = cut(rows.take(lab.admit(table)), spec.dataset_slice, package)
    if context.variables.feature is not None and spec.dataset_slice.split == "train":
        lab.warn("the latent was chosen by looking at the train split, on which it is measured: that flatters it")
    return lab


def constraints_of(package: DataPackage, wanted: list[str]) -> list[Constraint]:
    """Return the constraints that a spec names; every hard one of the domain where it names none."""
    if wanted:
        return [package.constraint(name, f"constraints[{index}]") for index, name in enumerate(wanted)]
    return [constraint for constraint in package.constraints() if constraint.enforcement == "hard"]


def choose(reader: LatentReader, package: DataPackage, feature_id: int | None, concept: str | None) -> tuple[int, dict[str, float | str]]:
    """Return the latent that is meant: `feature_id`, or the one that correlates best with a concept on the train split.

    What is chosen by looking at the train split is measured on another, so the choice does not flatter the measurement.
    """
    if concept is None:
        if feature_id is None:
            raise SpecError(
                "names no latent", field="feature_id", allowed="a latent's number, or variables.feature: a concept of the package"
            )
        reader.feature(feature_id)
        return feature_id, {}
    table = package.contexts("train").take(slice(CHOOSING))
    known = package.concepts(table)
    if concept not in known:
        raise unknown("variables.feature", concept, known, what="concept of the data package")
    told = np.flatnonzero(np.isfinite(known[concept]))  # a concept need not be defined on every context
    correlation = _correlations(reader.everything(table.take(told)), known[concept][told]) if len(told) > 1 else np.full(1, np.nan)
    if not np.isfinite(correlation).any():
        raise ExperimentError(f"no latent varies together with '{concept}' on {len(table)} contexts of the train split")
    best = int(np.nanargmax(correlation))
    return best, {"feature": concept, "feature_correlation": float(correlation[best])}


def _correlations(latents: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return Pearson's correlation of each column with the values, float64 `[n_latents]`; NaN where either does not vary.

    A latent that varies by less than rounding (of single precision, beside its own size) does not: it would correlate with anything.
    """
    values = np.asarray(values, dtype=np.float64)
    centred = values - values.mean()
    mean = latents.mean(axis=0, dtype=np.float64)
    whole = np.einsum("ij,ij->j", latents, latents, dtype=np.float64)
    square, own = whole - len(latents) * mean**2, float(centred @ centred)
    varies = (square > _VARIES * whole) & (own > _VARIES * float(values @ values))
    shared = np.einsum("i,ij->j", centred, latents, dtype=np.float64)
    return np.divide(shared, np.sqrt(np.maximum(square * own, 0.0)), out=np.full(len(mean), np.nan), where=varies)
