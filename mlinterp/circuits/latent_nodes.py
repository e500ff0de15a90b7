"""The nodes of a feature circuit: every latent of an SAE at each of some hook points, and one error node at each.

An SAE writes an activation h as decode(f) + e: what its latents f explain, and the rest. Both are nodes, so that nothing the model does is
left out: a circuit of all nodes is the model (Marks et al. 2024, "Sparse feature circuits", arXiv 2403.19647). A node stands for all
positions of a prompt together.

Nodes are numbered hook point by hook point in order of evaluation: the latents, then the error. A circuit is a set of nodes, bool `[node]`.
No torch here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from mlinterp.determinism import numpy_stream


class Place(NamedTuple):
    """A hook point with its SAE's size."""

    site: str
    n_latents: int


@dataclass(frozen=True)
class Nodes:
    """Every node of some hook points, in order of evaluation."""

    places: tuple[Place, ...]

    @cached_property
    def starts(self) -> np.ndarray:
        """The number of each hook point's first node, and last the number of nodes, `[place + 1]`."""
        return np.cumsum([0, *(place.n_latents + 1 for place in self.places)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    @cached_property
    def place_of(self) -> np.ndarray:
        """Which hook point each node is at, int `[node]`."""
        return np.repeat(np.arange(len(self.places)), [place.n_latents + 1 for place in self.places])

    @cached_property
    def is_error(self) -> np.ndarray:
        """True for error nodes, bool `[node]`."""
        found = self.none
        found[self.errors] = True
        return found

    @property
    def errors(self) -> np.ndarray:
        """The error nodes, one for each hook point."""
        return self.starts[1:] - 1

    @property
    def all(self) -> np.ndarray:
        """Every node there is."""
        return np.ones(len(self), dtype=bool)

    @property
    def none(self) -> np.ndarray:
        """No node."""
        return np.zeros(len(self), dtype=bool)

    def at(self, place: int) -> slice:
        """Return the nodes of a hook point."""
        return slice(int(self.starts[place]), int(self.starts[place + 1]))

    def latent(self, node: int) -> int | None:
        """Return which latent of its SAE a node is; None for an error."""
        return None if self.is_error[node] else int(node - self.starts[self.place_of[node]])

    def name(self, node: int) -> str:
        """Return a node's name: `blocks.1.resid_post/17` or `blocks.1.resid_post/error`."""
        latent = self.latent(node)
        return f"{self.places[self.place_of[node]].site}/{'error' if latent is None else latent}"

    def of(self, some: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the circuit of some nodes."""
        found = self.none
        found[np.asarray(some, dtype=int)] = True
        return found

    def like(self, circuit: np.ndarray, pool: np.ndarray, seed: int, draw: int) -> np.ndarray:
        """Return a random circuit: at each hook point as many latents as another has, drawn from those in a pool, bool `[node]` both."""
        found = self.none
        for place in range(len(self.places)):
            here = self.at(place)
            n = int((circuit & ~self.is_error)[here].sum())
            those = np.flatnonzero((pool & ~self.is_error)[here]) + here.start
            found[numpy_stream(seed, "random_latents", place, n, draw).permutation(those)[:n]] = True
        return found
