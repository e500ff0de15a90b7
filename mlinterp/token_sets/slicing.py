"""The dataset slice: which of the observed contexts an experiment looks at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlinterp.determinism import numpy_stream
from mlinterp.errors import ExperimentError
from mlinterp.spec import DatasetSlice
from mlinterp.subjects.token_sets.package import DataPackage
from mlinterp.subjects.token_sets.table import ContextTable
from mlinterp.token_sets.feature import Activations


@dataclass(frozen=True)
class Rows:
    """Observed contexts, each with the latent's activation on it.

    Attributes:
        table: the contexts, silent ones included.
        acts: the latent on them.
    """

    table: ContextTable
    acts: Activations

    @property
    def post(self) -> np.ndarray:
        """The latent's activation on each context, float64 `[n]`."""
        return self.acts.post

    @property
    def pre(self) -> np.ndarray:
        """Its pre-activation on each context, float64 `[n]`."""
        return self.acts.pre

    def take(self, rows: np.ndarray | slice) -> Rows:
        """Return the chosen contexts (numbers, a slice or a mask), in that order."""
        return Rows(self.table.take(rows), self.acts.take(rows))

    def with_post(self, post: np.ndarray) -> Rows:
        """Return the same contexts with other activations: what a permutation makes of them."""
        return Rows(self.table, Activations(self.pre, post))

    def __len__(self) -> int:
        return len(self.table)


def cut(rows: Rows, wanted: DatasetSlice, package: DataPackage) -> Rows:
    """Return the slice of the rows, in their own order.

    First the filters: an activation of at least the threshold, groups that are wanted and not excluded, a token of at least one of the
    families. Then the percentiles: of n rows ascending by activation (ties in their own order), those numbered
    [int(n · min / 100), int(n · max / 100)). Then a sample without replacement, which `random_seed` decides.

    Raises SpecError for a group or family that there is not, ExperimentError where no row is left.
    """
    kept = rows.take(_filtered(rows, wanted, package))
    n = len(kept)
    ascending = np.argsort(kept.post, kind="stable")
    kept = kept.take(np.sort(ascending[_share(n, wanted.percentile_min) : _share(n, wanted.percentile_max)]))
    if wanted.sample_size is not None and len(kept) > wanted.sample_size:
        stream = numpy_stream(wanted.random_seed or 0, "dataset_slice")
        kept = kept.take(np.sort(stream.choice(len(kept), wanted.sample_size, replace=False)))
    if not len(kept):
        asked = ", ".join(f"{name} {value}" for name, value in wanted.model_dump(exclude_defaults=True).items())
        raise ExperimentError(f"the dataset slice ({asked or 'everything'}) leaves none of {len(rows)} contexts")
    return kept


def _share(n: int, percentile: float) -> int:
    return int(n * percentile / 100 + 1e-9)


def _filtered(rows: Rows, wanted: DatasetSlice, package: DataPackage) -> np.ndarray:
    kept = np.ones(len(rows), dtype=bool)
    if wanted.activation_threshold is not None:
        kept &= rows.post >= wanted.activation_threshold
    if wanted.weapon_filter is not None:
        kept &= np.isin(rows.table.group, [package.group_number(group, "dataset_slice.weapon_filter") for group in wanted.weapon_filter])
    if wanted.weapon_exclude is not None:
        kept &= ~np.isin(rows.table.group, [package.group_number(group, "dataset_slice.weapon_exclude") for group in wanted.weapon_exclude])
    if wanted.family_filter is not None:
        numbers = [package.vocabulary.family_number(family, "dataset_slice.family_filter") for family in wanted.family_filter]
        kept &= (rows.table.levels[:, numbers] > 0).any(axis=1)
    return kept
