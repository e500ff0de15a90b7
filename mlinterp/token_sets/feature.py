"""A latent as a function of contexts: one forward pass for each distinct context, whatever the number of sweeps that ask for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from mlinterp.errors import ExperimentError, SpecError
from mlinterp.subjects.token_sets.table import ContextTable

if TYPE_CHECKING:
    from mlinterp.sae.model import SAE
    from mlinterp.subjects.token_sets.subject import TokenSetSubject

_CHUNK = 8192
"""Contexts whose activations at the site are held at a time; bounds memory."""

_NUMBERS = 2**25
"""Numbers of all latents together that are held at a time, where one latent needs the others."""


class Activations(NamedTuple):
    """A latent on several contexts.

    Attributes:
        pre: before the activation function, float64 `[n]`; equal to `post` where there is none.
        post: the activation itself, float64 `[n]`.
    """

    pre: np.ndarray
    post: np.ndarray

    def take(self, rows: np.ndarray | slice) -> Activations:
        """Return the chosen ones."""
        return Activations(self.pre[rows], self.post[rows])


class Feature:
    """One latent, cached: equal contexts are computed once, and give equal numbers.

    Args:
        compute: the latent's activations on the contexts of a table.

    Attributes:
        n_asked: contexts asked for so far.
        n_computed: distinct ones, which were computed.
    """

    def __init__(self, compute: Callable[[ContextTable], Activations]) -> None:
        self._compute = compute
        self._codes = pd.Index(np.zeros(0, dtype=np.uint64))
        self._words = np.zeros((0, 0), dtype=np.uint64)
        self._values = Activations(np.zeros(0), np.zeros(0))
        self.n_asked = self.n_computed = 0

    @property
    def hit_rate(self) -> float:
        """Share of the contexts asked for that needed no forward pass of their own."""
        return 1 - self.n_computed / self.n_asked if self.n_asked else 0.0

    def __call__(self, table: ContextTable) -> Activations:
        """Return the latent on every context of a table, in its order."""
        self.n_asked += len(table)
        words = table.words
        place, codes = pd.factorize(_hashed(words))
        first = np.empty(len(codes), dtype=np.int64)
        first[place[::-1]] = np.arange(len(place))[::-1]  # of equal contexts the first is written last
        at = self._codes.get_indexer(pd.Index(codes))
        known = at >= 0
        if not (words == words[first][place]).all() or (known.any() and not (self._words[at[known]] == words[first[known]]).all()):
            return self._exactly(table)  # two contexts share a hash
        if not known.all():
            at[~known] = len(self._codes) + np.arange(int((~known).sum()))
            self._learn(codes[~known], words[first[~known]], self._fresh(table.take(first[~known])))
        return self._values.take(at[place])

    def _learn(self, codes: np.ndarray, words: np.ndarray, values: Activations) -> None:
        self.n_computed += len(codes)
        self._codes = self._codes.append(pd.Index(codes))
        self._words = np.concatenate([self._words, words]) if len(self._words) else words
        self._values = Activations(*(np.concatenate(pair) for pair in zip(self._values, values, strict=True)))

    def _exactly(self, table: ContextTable) -> Activations:
        """Return the latent on a table two of whose contexts share a hash, without the cache."""
        _, first, place = np.unique(table.words, axis=0, return_index=True, return_inverse=True)
        self.n_computed += len(first)
        return self._fresh(table.take(first)).take(place.reshape(-1))

    def _fresh(self, table: ContextTable) -> Activations:
        """Return what is computed, refusing what is no number: in a mean it would pass for a context that was left out."""
        found = self._compute(table)
        broken = ~np.isfinite(found.post) | ~np.isfinite(found.pre)
        if broken.any():
            example = table.shown(int(np.flatnonzero(broken)[0]))
            raise ExperimentError(f"the latent is not finite on {int(broken.sum())} of {len(table)} contexts, such as {example}")
        return found


def _hashed(words: np.ndarray) -> np.ndarray:
    """Return a 64-bit hash of each row (multiply and mix, splitmix64's finalizer), uint64 `[n]`."""
    total = np.zeros(len(words), dtype=np.uint64)
    for column in words.T:
        total = (total ^ column) * np.uint64(0x9E3779B97F4A7C15)
        total = (total ^ (total >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        total = (total ^ (total >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        total ^= total >> np.uint64(31)
    return total


class LatentReader:
    """The latents of an SAE on a token-set subject; without an SAE, the neurons at its readout.

    Args:
        subject: the model.
        sae: an SAE fitted at one of its hook points; None: a latent is a neuron of `subject.readout`, without an activation function.
    """

    def __init__(self, subject: TokenSetSubject, sae: SAE | None = None) -> None:
        self.subject, self.sae = subject, sae
        self.site = subject.readout if sae is None else sae.config.site
        self.n_latents = subject.width(self.site) if sae is None else sae.config.d_sae
        self._features: dict[int, Feature] = {}

    def feature(self, feature_id: int) -> Feature:
        """Return one latent, cached. Raises SpecError for a latent that there is not."""
        if not 0 <= feature_id < self.n_latents:
            what = f"'{self.subject.name}' has {'neurons' if self.sae is None else 'latents'} 0-{self.n_latents - 1} at {self.site}"
            raise SpecError(f"latent {feature_id} does not exist", field="feature_id", allowed=what)
        if feature_id not in self._features:
            self._features[feature_id] = Feature(lambda table: self._one(table, feature_id))
        return self._features[feature_id]

    def feature_activation(self, contexts: ContextTable, feature_id: int, pre: bool = False) -> np.ndarray:
        """Return a latent on contexts, float64 `[n]`: its activation, or with `pre` what the activation function is applied to."""
        found = self.feature(feature_id)(contexts)
        return found.pre if pre else found.post

    def direction(self, feature_id: int) -> np.ndarray:
        """Return what one unit of a latent adds at its site, float64 `[d]`: a decoder row of the SAE, or the neuron's own axis."""
        self.feature(feature_id)
        if self.sae is None:
            axis = np.zeros(self.n_latents)
            axis[feature_id] = 1.0
            return axis
        found: np.ndarray = self.sae.directions([feature_id])[0].detach().double().numpy()
        return found

    def everything(self, contexts: ContextTable) -> np.ndarray:
        """Return every latent on contexts, float32 `[n, n_latents]`."""
        import torch

        h = self.subject.activations(contexts, self.site)
        if self.sae is None:
            return h
        found = np.empty((len(h), self.n_latents), dtype=np.float32)
        with torch.inference_mode():
            for rows in _blocks(len(h), self._at_once):
                found[rows] = self.sae.encode(torch.from_numpy(h[rows])).numpy()
        return found

    def _one(self, contexts: ContextTable, latent: int) -> Activations:
        parts = (self.subject.activations(contexts.take(rows), self.site) for rows in _blocks(len(contexts), _CHUNK))
        if self.sae is None:
            values = np.concatenate([h[:, latent].astype(np.float64) for h in parts])  # copies: a view would keep every neuron
            return Activations(values, values)
        from mlinterp.token_sets.one_latent import latent_of

        return latent_of(self.sae, latent, (h[rows] for h in parts for rows in _blocks(len(h), self._at_once)))

    @property
    def _at_once(self) -> int:
        """Contexts of which every latent is computed at a time."""
        return max(1, min(_CHUNK, _NUMBERS // self.n_latents))


def _blocks(n: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, max(n, 1), size)]
