"""How often and how strongly latents fire at the places a spec edits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mlinterp.interventions.policies import LatentCode
from mlinterp.subjects.base import Address, Examples, Subject

Positions = str | tuple[int, ...]
"""A position selector of `Subject.positions`."""


@dataclass(frozen=True)
class Place:
    """Rows of some evaluations of one site."""

    addresses: tuple[Address, ...]
    positions: Positions


@dataclass(frozen=True)
class LatentStatistics:
    """Statistics of every latent over `n_rows` rows.

    Attributes:
        n_rows: rows looked at.
        density: share of rows in which each latent is active, float64 `[d_sae]`.
        mean: mean activation over all rows, `[d_sae]`.
        mean_active: mean activation over the rows in which it is active, 0 where there is none, `[d_sae]`.
    """

    n_rows: int
    density: Tensor
    mean: Tensor
    mean_active: Tensor


@dataclass
class LatentMeter:
    """Runs a subject over examples and measures an SAE's latents at some places."""

    subject: Subject
    sae: LatentCode
    examples: Examples
    batch_size: int
    _known: dict[tuple[Place, ...], LatentStatistics] = field(default_factory=dict)

    def statistics(self, places: Sequence[Place]) -> LatentStatistics:
        """Return the latents' statistics over the union of the places' rows."""
        key = tuple(dict.fromkeys(places))
        if key not in self._known:
            n, active, total = 0, torch.zeros(()), torch.zeros(())

            def add(codes: Tensor) -> None:
                nonlocal n, active, total
                n += len(codes)
                active = active + (codes > 0).sum(dim=0, dtype=torch.float64)
                total = total + codes.sum(dim=0, dtype=torch.float64)

            self._visit(key, add)
            self._known[key] = LatentStatistics(n, active / n, total / n, total / active.clamp_min(1))
        return self._known[key]

    def positive_quantiles(self, places: Sequence[Place], latents: Sequence[int], quantile: float) -> dict[int, float]:
        """Return a quantile of each latent's positive activations over the places' rows; latents that are never active are left out."""
        index = torch.tensor(list(latents))
        kept: list[list[Tensor]] = [[] for _ in latents]

        def keep(codes: Tensor) -> None:
            for values, column in zip(kept, codes[:, index].T, strict=True):
                values.append(column[column > 0])

        self._visit(tuple(dict.fromkeys(places)), keep)
        joined = {latent: torch.cat(values).double().numpy() for latent, values in zip(latents, kept, strict=True)}
        return {latent: float(np.quantile(values, quantile)) for latent, values in joined.items() if len(values)}

    @torch.no_grad()
    def _visit(self, places: tuple[Place, ...], use: Callable[[Tensor], None]) -> None:
        wanted: dict[Address, set[Positions]] = {}
        for place in places:
            for address in place.addresses:
                wanted.setdefault(address, set()).add(place.positions)
        sites = {address.site for address in wanted}
        last = [address for address in self.subject.addresses(sites) if address in wanted][-1]
        for batch in self.examples.batches(self.batch_size):
            rows = {
                address: torch.stack([self.subject.positions(batch, p) for p in chosen]).any(dim=0) for address, chosen in wanted.items()
            }

            def read(address: Address, h: Tensor, rows: Mapping[Address, Tensor] = rows) -> Tensor:
                if address in rows:
                    use(self.sae.to(h.device).encode(h[rows[address].to(h.device)].float()).cpu())
                return h

            self.subject.forward(batch, tap=read, sites=sites, until=last)
