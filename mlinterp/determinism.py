"""Seeds: every random draw comes from a named stream, and every stream is a pure function of (seed, name, counter).

A stream that depends on nothing else can be re-entered at any step, so a resumed stage draws what the undisturbed one drew.
"""

from __future__ import annotations

import hashlib
import os
import random
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive_seed(seed: int, *stream: str | int) -> int:
    """Return the 63-bit seed of a named stream.

    >>> derive_seed(0, "batch", 3) == derive_seed(0, "batch", 3) != derive_seed(0, "batch", 4)
    True
    """
    text = "\x1f".join([str(seed), *map(str, stream)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def numpy_stream(seed: int, *stream: str | int) -> np.random.Generator:
    """Return the numpy generator of a named stream."""
    return np.random.default_rng(derive_seed(seed, *stream))


def torch_stream(seed: int, *stream: str | int) -> torch.Generator:
    """Return the torch CPU generator of a named stream."""
    import torch

    return torch.Generator().manual_seed(derive_seed(seed, *stream))


def settle(seed: int, threads: int | None = None) -> None:
    """Make the process deterministic: global seeds, deterministic torch kernels, a fixed number of threads."""
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    random.seed(derive_seed(seed, "python"))
    np.random.seed(derive_seed(seed, "numpy") % 2**32)  # noqa: NPY002 - libraries that draw from the global state
    torch.manual_seed(derive_seed(seed, "torch"))
    torch.use_deterministic_algorithms(True)
    if threads is not None:
        torch.set_num_threads(threads)
