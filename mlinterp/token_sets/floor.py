"""The ReLU floor: where a latent is mostly silent, clipping hides effects downwards and makes additive effects look like synergy."""

from __future__ import annotations

import numpy as np

from mlinterp.result import Diagnostics

NEAR_ZERO = 0.1
"""Activations closer to zero than this sit on the floor; one below zero (of a neuron without a ReLU) is not on it but beneath."""
MOSTLY = 0.5
"""The floor is detected where more than this share of the activations sits on it."""


def check_floor(post: np.ndarray, diagnostics: Diagnostics) -> bool:
    """Record the share of activations on the floor, and whether it is detected; return that. Undefined ones (NaN) are left out.

    >>> check_floor(np.array([0.0, 0.05, 0.1, 1.0]), Diagnostics()), check_floor(np.array([-1.0, -0.5, -2.0, 1.0]), Diagnostics())
    (False, False)
    """
    post = post[np.isfinite(post)]
    rate = float((np.abs(post) < NEAR_ZERO).mean()) if len(post) else 0.0
    diagnostics.relu_floor_rate, diagnostics.relu_floor_detected = round(rate, 3), rate > MOSTLY
    return rate > MOSTLY


NOTHING_BESIDE = 0.01
"""An effect on the pre-activation that is less than this share of the effect on the activation is none: rounding alone makes some."""


def artefact(post: float | None, pre: float | None, *, certain: bool = True, tolerance: float = 1e-9) -> bool:
    """Whether an effect on the activation is not there on the pre-activation: an artefact of clipping.

    True where the pre-activation shows nothing, or the other sign, while the activation shows something. An effect that is not `certain`,
    because its interval includes zero, has a sign by chance: then only nothing beside it counts.

    >>> artefact(0.5, 1e-7), artefact(0.5, -0.2), artefact(0.5, 0.5), artefact(0.0, 0.5)
    (True, True, False, False)
    >>> artefact(0.5, 1e-7, certain=False), artefact(0.5, -0.2, certain=False)
    (True, False)
    """
    if post is None or pre is None or abs(post) <= tolerance:
        return False
    return abs(pre) <= NOTHING_BESIDE * abs(post) or (certain and (post > 0) != (pre > 0))
