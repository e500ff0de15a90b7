"""One latent of an SAE without the others: a column of the encoder, and the activation function with that latent's parameters."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from mlinterp.sae.model import SAE
from mlinterp.token_sets.feature import Activations


@torch.inference_mode()
def latent_of(sae: SAE, latent: int, parts: Iterable[np.ndarray]) -> Activations:
    """Return latent number `latent` on activations given in parts, float32 `[n, d_in]` each.

    TopK decides among all latents of a row, so there the others are computed as well.
    """
    pre, post = zip(*(_of_part(sae, latent, h) for h in parts), strict=True)
    return Activations(np.concatenate(pre), np.concatenate(post))


def _of_part(sae: SAE, latent: int, h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    pre, post = _topk(sae, latent, torch.from_numpy(h)) if sae.config.activation == "topk" else _alone(sae, latent, h)
    return pre.numpy().astype(np.float64), post.numpy().astype(np.float64)  # copies: a view would keep every latent of the part


def _topk(sae: SAE, latent: int, h: Tensor) -> tuple[Tensor, Tensor]:
    pre = sae.pre_acts(h)
    return pre[:, latent], sae.activation(pre)[:, latent]


def _alone(sae: SAE, latent: int, h: np.ndarray) -> tuple[Tensor, Tensor]:
    inputs = sae.encoder_input(sae.scaled(torch.from_numpy(h)))
    pre = inputs @ sae.W_enc[:, latent : latent + 1] + sae.b_enc[latent]
    own = {
        name: tensor[latent : latent + 1] if tensor.shape == (sae.config.d_sae,) else tensor
        for name, tensor in sae.activation.state_dict().items()
    }
    return pre[:, 0], functional_call(sae.activation, own, (pre,))[:, 0]
