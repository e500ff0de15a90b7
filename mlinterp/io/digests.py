"""Digests: of bytes, to notice damage; of content, to say that two runs computed the same.

A content digest looks through the container: tensors by name, dtype, shape and value; JSON by its canonical form without the
fields that differ between two runs of the same thing (`VOLATILE`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

VOLATILE = frozenset({"run_id", "spec_id", "started_at", "completed_at", "created_at", "seconds", "duration_seconds", "spec_path"})
"""JSON fields that name a run or a moment rather than a finding."""


def sha256_bytes(data: bytes) -> str:
    """Return the SHA-256 of bytes as hex."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file as hex, reading it in pieces."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def canonical_json(value: Any) -> str:
    """Return the one JSON text of a value: sorted keys, no spaces, finite numbers only."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256_json(value: Any) -> str:
    """Return the digest of a value's canonical JSON."""
    return sha256_bytes(canonical_json(value).encode())


def sha256_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    """Return the digest of named arrays: sorted (name, dtype, shape, bytes)."""
    import numpy as np  # not above: whoever only reads a spec digests text alone

    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}\x1f{array.dtype.str}\x1f{array.shape}\x1f".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def without_volatile(value: Any) -> Any:
    """Return a JSON value without its volatile fields, at every depth."""
    if isinstance(value, dict):
        return {key: without_volatile(item) for key, item in value.items() if key not in VOLATILE}
    if isinstance(value, list):
        return [without_volatile(item) for item in value]
    return value
