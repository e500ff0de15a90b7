"""Policies: how an activation is edited.

An edit of latents is applied as a change, `h' = h + (a' - a) @ directions`, so the part of the activation that the SAE does not
explain survives, and a row whose latents do not change stays bit-identical. `mode="reconstruct"` replaces the activation by
`decode(a')` instead, error term and all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from mlinterp.errors import ExperimentError
from mlinterp.subjects.base import Address

Mode = Literal["delta", "reconstruct"]
Renorm = Literal["none", "rms"]


class LatentCode(Protocol):
    """What policies need of an SAE; activations and latents are float32."""

    def to(self, device: torch.device) -> Any:
        """Return it on a device."""

    def encode(self, h: Tensor) -> Tensor:
        """Return the latents `[..., d_sae]` of activations `[..., d_in]`."""

    def decode(self, a: Tensor) -> Tensor:
        """Return the reconstruction `[..., d_in]` of latents `[..., d_sae]`."""

    def directions(self, latents: Tensor) -> Tensor:
        """Return what one unit of each latent adds to the activation, `[n, d_in]`."""


@dataclass
class Tally:
    """What was really edited, for each example of a batch; float64 `[batch]`.

    Attributes:
        selected: rows (over all addressed evaluations) that the intervention was pointed at.
        edited: rows whose activation changed.
        active: mean share of the edited latents that were active, summed over selected rows.
        relative: sum over edited rows of |h' - h| / |h|.
    """

    selected: Tensor
    edited: Tensor
    active: Tensor
    relative: Tensor

    @classmethod
    def of(cls, n: int) -> Tally:
        """Return an empty tally for `n` examples."""
        return cls(*(torch.zeros(n, dtype=torch.float64) for _ in range(4)))


@dataclass
class EditContext:
    """What a policy knows about the batch.

    Attributes:
        rows: which rows to edit, bool `[batch, row]`.
        sources: activations of the source examples by address, `[batch, row, d]`; empty unless the policy patches.
        tally: counts what happens.
    """

    rows: Tensor
    tally: Tally
    sources: Mapping[Address, Tensor] = field(default_factory=dict)


class Rows(NamedTuple):
    """The rows that one edit is about.

    Attributes:
        h: their activations, float32 `[n, d]`.
        sae: what latents mean; None only for policies that need none.
        source: the source example's activations, float32 `[n, d]`; None unless the policy patches.
    """

    h: Tensor
    sae: LatentCode | None = None
    source: Tensor | None = None


class Codes(NamedTuple):
    """Activations `[n, latent]` of the edited latents: the rows' own and, for patches, the source example's."""

    own: Tensor
    source: Tensor | None


class InterventionPolicy(ABC):
    """An edit of activations. `renorm="rms"` gives each edited row back the root mean square it had before."""

    renorm: Renorm

    @property
    def patches(self) -> bool:
        """Whether the edit needs a source example's activations."""
        return False

    @abstractmethod
    def edit(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return the edited rows `[n, d]` and the share of the edited latents active in each `[n]` (1 for edits without latents)."""

    def apply(self, address: Address, h: Tensor, sae: LatentCode | None, context: EditContext) -> Tensor:
        """Return `h [batch, row, d]` with the selected rows edited and every other row, and every unchanged one, bit-identical.

        Raises ExperimentError where the edit makes an activation NaN or infinite.
        """
        rows = context.rows.to(h.device)
        before = h[rows]
        if not len(before):
            return h
        source = context.sources[address].to(h.device)[rows].float() if self.patches else None
        after, active = self.edit(Rows(before.float(), sae, source))
        if self.renorm == "rms":
            touched = (after != before).any(dim=-1, keepdim=True)
            after = torch.where(touched, after * (_rms(before) / _rms(after)), after)
        after = after.to(h.dtype)
        if not bool(torch.isfinite(after).all()):
            raise ExperimentError(f"{type(self).__name__} makes the activation at {address.site} NaN or infinite")
        changed = (after != before).any(dim=-1)
        self._count(context.tally, context.rows, before.float(), after.float(), changed, active)
        if not bool(changed.any()):
            return h
        edited = h.clone()
        edited[rows] = torch.where(changed[:, None], after, before)
        return edited

    @staticmethod
    def _count(tally: Tally, rows: Tensor, before: Tensor, after: Tensor, changed: Tensor, active: Tensor) -> None:
        relative = (after - before).norm(dim=-1) / before.norm(dim=-1).clamp_min(1e-12)
        for total, values in (
            (tally.selected, torch.ones(len(changed))),
            (tally.edited, changed),
            (tally.active, active),
            (tally.relative, torch.where(changed, relative, 0.0)),
        ):
            dense = torch.zeros(rows.shape, dtype=torch.float64)
            dense[rows.cpu()] = values.double().cpu()
            total += dense.sum(dim=1)


def _rms(h: Tensor) -> Tensor:
    return h.float().pow(2).mean(dim=-1, keepdim=True).sqrt().clamp_min(1e-12)


class FeaturePolicy(InterventionPolicy):
    """An edit of some latents' activations, applied as a change along their directions."""

    latents: tuple[int, ...]
    mode: Mode

    @abstractmethod
    def target(self, codes: Codes) -> Tensor:
        """Return the latents' new activations `[n, latent]`."""

    def edit(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return `h + (a' - a) @ directions`, or `decode(a')` in mode `reconstruct`."""
        h, sae, source = rows
        assert sae is not None
        latents = torch.tensor(self.latents, device=h.device)
        codes = sae.encode(h)
        own = codes[:, latents]
        active = (own > 0).float().mean(dim=1)
        new = self.target(Codes(own, None if source is None else sae.encode(source)[:, latents]))
        if self.mode == "reconstruct":
            return sae.decode(codes.index_copy(1, latents, new)), active
        change = new - own
        return torch.where((change != 0).any(dim=-1, keepdim=True), h + change @ sae.directions(latents), h), active


@dataclass(frozen=True)
class AblateFeatures(FeaturePolicy):
    """Set latents to zero, or to their `baseline` values (training means). Zero-ablating an inactive latent changes nothing."""

    latents: tuple[int, ...]
    baseline: tuple[float, ...] | None = None
    mode: Mode = "delta"
    renorm: Renorm = "none"

    def target(self, codes: Codes) -> Tensor:
        """Return the baseline in every row."""
        own = codes.own
        return torch.zeros_like(own) if self.baseline is None else own.new_tensor(self.baseline).expand_as(own)


@dataclass(frozen=True)
class ClampFeatures(FeaturePolicy):
    """Set latents to fixed `values`, one for each."""

    latents: tuple[int, ...]
    values: tuple[float, ...]
    mode: Mode = "delta"
    renorm: Renorm = "none"

    def target(self, codes: Codes) -> Tensor:
        """Return the values in every row."""
        return codes.own.new_tensor(self.values).expand_as(codes.own)


@dataclass(frozen=True)
class ScaleFeatures(FeaturePolicy):
    """Multiply latents by `scale`; 1 is the identity."""

    latents: tuple[int, ...]
    scale: float
    mode: Mode = "delta"
    renorm: Renorm = "none"

    def target(self, codes: Codes) -> Tensor:
        """Return the scaled activations."""
        return codes.own * self.scale


@dataclass(frozen=True)
class Steer(FeaturePolicy):
    """Add fixed `amounts` to latents, one for each, active or not."""

    latents: tuple[int, ...]
    amounts: tuple[float, ...]
    mode: Mode = "delta"
    renorm: Renorm = "none"

    def target(self, codes: Codes) -> Tensor:
        """Return the activations plus the amounts."""
        return codes.own + codes.own.new_tensor(self.amounts)


@dataclass(frozen=True)
class PatchFeatures(FeaturePolicy):
    """Give latents the activations they have in the source example, at the same evaluation and row."""

    latents: tuple[int, ...]
    mode: Mode = "delta"
    renorm: Renorm = "none"

    @property
    def patches(self) -> bool:
        """True."""
        return True

    def target(self, codes: Codes) -> Tensor:
        """Return the source's activations."""
        assert codes.source is not None
        return codes.source


@dataclass(frozen=True)
class PatchStates(InterventionPolicy):
    """Replace whole activations by the source example's, at the same evaluation and row."""

    renorm: Renorm = "none"

    @property
    def patches(self) -> bool:
        """True."""
        return True

    def edit(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return the source's rows."""
        assert rows.source is not None
        return rows.source, torch.ones(len(rows.h))


@dataclass(frozen=True)
class Reconstruct(InterventionPolicy):
    """Replace activations by their reconstruction with no latent changed: what the SAE's error alone does (control)."""

    renorm: Renorm = "none"

    def edit(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return `decode(encode(h))`."""
        assert rows.sae is not None
        return rows.sae.decode(rows.sae.encode(rows.h)), torch.ones(len(rows.h))


@dataclass(frozen=True)
class RandomDirection(InterventionPolicy):
    """Move each row as far as `like` would, but along one random direction, the same for every row (control)."""

    like: InterventionPolicy
    seed: int
    renorm: Renorm = "none"

    @property
    def patches(self) -> bool:
        """Whether `like` does."""
        return self.like.patches

    def edit(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return rows moved by |edit| along the direction of this seed, and what `like` finds active."""
        edited, active = self.like.edit(rows)
        h = rows.h
        distance = (edited - h).norm(dim=-1, keepdim=True)
        direction = torch.randn(h.shape[-1], generator=torch.Generator().manual_seed(self.seed), dtype=torch.float64)
        unit = (direction / direction.norm()).to(h.device, h.dtype)
        return torch.where(distance > 0, h + distance * unit, h), active
