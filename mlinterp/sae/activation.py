"""What an SAE architecture decides: how pre-activations become latent activations, and what it costs to be dense.

`forward` is what an SAE does wherever it is used: each row alone, whatever the rest of the batch. `training_acts` may look at the
whole batch and carries the gradient.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from mlinterp.sae.config import SAEConfig


class Activation(nn.Module, ABC):
    """A nonlinearity over `[..., d_sae]`.

    Attributes:
        threshold: what a pre-activation must exceed, `[]` or `[d_sae]`, in the units of the latents; None where there is none.
    """

    threshold: Tensor | None

    def __init__(self, config: SAEConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("threshold", None)

    @abstractmethod
    def forward(self, pre: Tensor) -> Tensor:
        """Return the latent activations, row by row."""

    def training_acts(self, pre: Tensor) -> Tensor:
        """Return the latent activations of a training batch `[batch, d_sae]`, with gradient."""
        return self(pre)

    def penalty(self, pre: Tensor, acts: Tensor, variance: Tensor) -> Tensor:
        """Return the cost of being dense, beside an error measured in units of `variance` (a scalar)."""
        return pre.new_zeros(())

    def after_step(self, acts: Tensor) -> None:
        """Follow a training step: update running statistics, keep parameters in their domain."""

    def revive(self, latents: Tensor) -> None:
        """Reset what belongs to the given latents when they are started over."""
