"""The lab of one experiment on a token-set subject: its latent, the contexts at hand, and the rules that edited contexts must keep to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from mlinterp.determinism import numpy_stream
from mlinterp.errors import ExperimentError
from mlinterp.progress import Reporter, Silent
from mlinterp.result import Diagnostics, ExperimentResult, Mode
from mlinterp.spec import Spec
from mlinterp.subjects.token_sets import edits
from mlinterp.subjects.token_sets.constraints import Constraint
from mlinterp.subjects.token_sets.package import DataPackage
from mlinterp.subjects.token_sets.table import ContextTable
from mlinterp.subjects.token_sets.vocabulary import Vocabulary
from mlinterp.token_sets.feature import Activations, Feature, LatentReader
from mlinterp.token_sets.floor import check_floor
from mlinterp.token_sets.slicing import Rows

LISTED = 20
"""Violations that a result lists; all are counted."""


@dataclass
class Lab:
    """What an experiment works with.

    Attributes:
        spec: the whole spec.
        package: the domain.
        feature: the latent, on any context.
        latent: its number.
        rows: the slice of the observed contexts, none of which breaks a hard constraint.
        constraints: those that contexts must keep to.
        custom: numbers about how the latent was chosen, for the result.
        reporter: who listens to progress.
        reader: the model and SAE that the latent is of; None where a latent's activations were written down.
        diagnostics: what happened so far: contexts tested and skipped, violations, warnings.
    """

    spec: Spec
    package: DataPackage
    feature: Feature
    latent: int
    rows: Rows
    constraints: Sequence[Constraint] = ()
    custom: dict[str, float | str] = field(default_factory=dict)
    reporter: Reporter = field(default_factory=Silent)
    reader: LatentReader | None = None
    diagnostics: Diagnostics = field(default_factory=Diagnostics)
    _broken: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def vocabulary(self) -> Vocabulary:
        """The domain's families and tokens."""
        return self.package.vocabulary

    def stream(self, *name: str | int) -> np.random.Generator:
        """Return the generator of a named stream under the spec's seed."""
        return numpy_stream(self.spec.seed, "token_sets", *name)

    def warn(self, text: str) -> None:
        """Add a warning, once."""
        if text not in self.diagnostics.warnings:
            self.diagnostics.warnings.append(text)

    def admit(self, table: ContextTable) -> np.ndarray:
        """Return which contexts break no hard constraint, bool `[n]`; those that do are counted and listed, soft ones warned about."""
        admitted = np.ones(len(table), dtype=bool)
        for constraint in self.constraints:
            broken = constraint.check(table)
            if not broken.any():
                continue
            self._broken[(constraint.id, constraint.enforcement)] += int(broken.sum())
            if constraint.enforcement == "hard":
                self._list(constraint, table, broken & admitted)
                admitted &= ~broken
        self.diagnostics.n_contexts_skipped += int((~admitted).sum())
        return admitted

    def _list(self, constraint: Constraint, table: ContextTable, broken: np.ndarray) -> None:
        listed = self.diagnostics.constraint_violations
        for row in np.flatnonzero(broken)[: max(0, LISTED - len(listed))]:
            listed.append(f"{constraint.id}: {constraint.explain(table.context(int(row)))}")

    def activations(self, table: ContextTable) -> Activations:
        """Return the latent on contexts by forward passes, one for each distinct one."""
        self.diagnostics.n_contexts_tested += len(table)
        return self.feature(table)

    def bases(self, n: int, stable_tokens: Sequence[str] = ()) -> ContextTable:
        """Return at most n contexts of the slice to edit, drawn by the spec's seed, with `stable_tokens` added to each.

        Contexts that the addition makes equal stay: they stand for as many observed ones. Raises SpecError for an unknown token,
        ExperimentError where no admissible context is left.
        """
        drawn = np.sort(self.stream("bases").permutation(len(self.rows))[:n])
        table = self.rows.table.take(drawn)
        self.vocabulary.numbers(stable_tokens, "variables.stable_tokens")
        for token in stable_tokens:
            table = edits.add_token(table, token)
        if stable_tokens:
            table = table.take(self.admit(table))
        if not len(table):
            raise ExperimentError(f"with {', '.join(stable_tokens)} added, every context breaks a hard constraint")
        return table

    def holding(self, tokens: Sequence[str]) -> Rows:
        """Return the observed contexts that hold all of some tokens; ExperimentError where none does."""
        numbers = self.vocabulary.numbers(tokens, "variables.stable_tokens")
        held = self.rows.take(np.asarray(self.rows.table.incidence[:, numbers].all(axis=1))) if tokens else self.rows
        if not len(held):
            raise ExperimentError(f"none of {len(self.rows)} contexts holds {' and '.join(tokens)}")
        return held

    def require_variation(self, rows: Rows) -> None:
        """Raise ExperimentError where the latent has one activation on all the contexts: nothing goes together with it."""
        if np.ptp(rows.post) == 0:
            same = f"latent {self.latent} has the same activation, {rows.post[0]:g}, in all {len(rows)} contexts"
            raise ExperimentError(f"{same}: nothing goes together with it")

    def require_family(self, family: str, rows: Rows) -> None:
        """Raise ExperimentError where a family occurs in none of the contexts."""
        if not rows.table.levels[:, self.vocabulary.family_number(family, "variables.family")].any():
            raise ExperimentError(f"family '{family}' occurs in none of {len(rows)} contexts")

    @cached_property
    def groups(self) -> np.ndarray:
        """Numbers of the groups that the slice has contexts of, int64, ascending. Raises ExperimentError for fewer than two."""
        found = np.unique(self.rows.table.group)
        found = found[found >= 0]
        if len(found) < 2:
            there = f"only {self.package.group_keys[found[0]]}" if len(found) else "none"
            word = self.package.group_word
            raise ExperimentError(f"comparing {word}s needs two of them, and the {len(self.rows)} contexts of the slice have {there}")
        return found

    def result(self, mode: Mode, floor: np.ndarray | None = None) -> ExperimentResult:
        """Return a result to fill, with everything that is known about the contexts so far.

        `floor` are the activations whose floor is checked; those of the slice where it is left out. Call it last: what is tested or
        skipped afterwards is not in it.
        """
        for (name, enforcement), count in sorted(self._broken.items()):
            done = "were skipped" if enforcement == "hard" else "were used all the same"
            self.warn(f"{name}: {count} contexts broke it and {done}")
        watched = self.rows.post if floor is None else floor
        if check_floor(watched, self.diagnostics) and mode == "observational":
            self.warn(f"{self.diagnostics.relu_floor_rate:.1%} of the activations sit on the ReLU floor: effects downwards cannot show")
        found = self.diagnostics
        found.base_activation_range = (float(self.rows.post.min()), float(self.rows.post.max()))
        found.cache_hit_rate = round(self.feature.hit_rate, 4)
        if not found.n_contexts_tested:
            found.n_contexts_tested = len(self.rows)
        result = ExperimentResult(mode=mode, feature_id=self.latent, diagnostics=found)
        result.aggregates.base_activation_mean = float(self.rows.post.mean())
        result.aggregates.base_activation_std = float(self.rows.post.std(ddof=1)) if len(self.rows) > 1 else None
        result.aggregates.n_samples = len(self.rows)
        result.aggregates.custom.update(self.custom)
        return result
