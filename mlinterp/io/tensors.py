"""Named tensors on disk as safetensors, with a SHA-256 beside them: safetensors promises structure, the digest promises content."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mlinterp.errors import VerificationError
from mlinterp.io.atomic import write_bytes, write_json
from mlinterp.io.digests import sha256_arrays, sha256_bytes, sha256_file


def digest_file(path: Path) -> Path:
    """Return where a file's digest lies."""
    return path.with_name(path.name + ".sha256")


def save_tensors(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any] | None = None) -> Path:
    """Write tensors and JSON metadata atomically; the digest goes first, so a file without a matching digest never finished."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    data = save(plain, metadata={"mlinterp": json.dumps(dict(meta or {}), sort_keys=True, allow_nan=False)})
    write_json(digest_file(path), {"sha256": sha256_bytes(data), "bytes": len(data)})
    return write_bytes(path, data)


def load_tensors(path: Path, sha256: str | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return (tensors, metadata) after checking the digest. Raises VerificationError, naming the file, where anything is off."""
    if sha256 is None:
        try:
            sha256 = json.loads(digest_file(path).read_text())["sha256"]
        except (OSError, ValueError, KeyError) as error:
            raise VerificationError(f"{path}: its digest {digest_file(path).name} is missing or damaged") from error
    if not path.is_file():
        raise VerificationError(f"{path}: missing")
    if sha256_file(path) != sha256:
        raise VerificationError(f"{path}: content does not match its SHA-256 (truncated or altered)")
    try:
        with safe_open(path, framework="pt") as handle:
            meta = json.loads((handle.metadata() or {}).get("mlinterp", "{}"))
            return {name: handle.get_tensor(name) for name in handle.keys()}, meta  # noqa: SIM118 - safe_open is no dict
    except (SafetensorError, ValueError) as error:
        raise VerificationError(f"{path}: not a safetensors file: {error}") from error


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the content digest of named tensors."""
    return sha256_arrays({name: _bits(tensor) for name, tensor in tensors.items()})


def _bits(tensor: Tensor) -> Any:
    plain = tensor.detach().cpu().contiguous()
    return plain.view(torch.int16).numpy() if plain.dtype == torch.bfloat16 else plain.numpy()
