"""The manifest of a folder: what each file must hold, written last, checked on every read.

    {"schema": "mlinterp.manifest.v1",
     "files": {NAME: {"sha256": …, "bytes": …, "content_digest": …}},
     "sha256": digest of `files`}

`sha256` of a file notices damage; `content_digest` says whether two runs computed the same (`mlinterp.io.digests`). Neither the
loader of `.pt` nor that of `.safetensors` notices a flipped bit by itself. Digests protect against accident, not against someone
who can rewrite the manifest too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from mlinterp.errors import UnsafeError, VerificationError
from mlinterp.io.atomic import write_json
from mlinterp.io.digests import canonical_json, sha256_file, sha256_json, without_volatile

MANIFEST_SCHEMA = "mlinterp.manifest.v1"
MANIFEST_NAME = "manifest.json"


def write_manifest(folder: Path, files: Iterable[str]) -> dict[str, Any]:
    """Describe files of a folder in its `manifest.json`, atomically, and return the manifest.

    Call it last: a folder with a manifest is complete. Names are relative POSIX paths. Raises VerificationError for a file that is
    missing or is not what its name says (a `.json` that is no JSON), and UnsafeError for a name that leads out of the folder.
    """
    entries = {name: _describe(folder, name) for name in sorted(set(files) - {MANIFEST_NAME})}
    manifest = {"schema": MANIFEST_SCHEMA, "files": entries, "sha256": sha256_json(entries)}
    write_json(folder / MANIFEST_NAME, manifest)
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a folder. Raises VerificationError where it is missing or damaged."""
    path = folder / MANIFEST_NAME
    try:
        manifest = json.loads(path.read_text())
    except FileNotFoundError:
        raise VerificationError(f"{path}: missing, so the folder was never completed") from None
    except ValueError as error:
        raise VerificationError(f"{path}: damaged: {error}") from error
    _entries(manifest)
    return manifest


def verify(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Check every file of a manifest. Raises VerificationError naming the first that is missing, truncated or altered."""
    for name, entry in _entries(manifest).items():
        path = _inside(folder, name)
        if not path.is_file():
            raise VerificationError(f"{path}: missing")
        size = path.stat().st_size
        if size != entry["bytes"]:
            what = "truncated" if size < entry["bytes"] else "grown"
            raise VerificationError(f"{path}: {what}: {size} bytes where the manifest says {entry['bytes']}")
        if sha256_file(path) != entry["sha256"]:
            raise VerificationError(f"{path}: altered: its content does not match its SHA-256 in the manifest")


def content_digest(path: Path) -> str:
    """Return the digest of what a file says: JSON without volatile fields, tensors by name, dtype, shape and value, else its bytes.

    `.npy` and `.pt` count as bytes: the header of one is fixed by its array, and the other is opened only by its own safe reader.
    Raises VerificationError for content that is not what the suffix says.
    """
    try:
        if path.suffix == ".json":
            return sha256_json(without_volatile(json.loads(path.read_text())))
        if path.suffix == ".jsonl":
            digest = hashlib.sha256()
            with path.open() as handle:
                for line in handle:
                    digest.update(canonical_json(without_volatile(json.loads(line))).encode() + b"\n")
            return digest.hexdigest()
        if path.suffix == ".safetensors":
            from mlinterp.io.tensors import load_tensors, tensors_digest

            tensors, meta = load_tensors(path, sha256_file(path))
            return sha256_json([tensors_digest(tensors), meta])
    except ValueError as error:
        raise VerificationError(f"{path}: not valid {path.suffix.lstrip('.')}: {error}") from error
    return sha256_file(path)


def _describe(folder: Path, name: str) -> dict[str, Any]:
    path = _inside(folder, name)
    if not path.is_file():
        raise VerificationError(f"{path}: missing")
    return {"sha256": sha256_file(path), "bytes": path.stat().st_size, "content_digest": content_digest(path)}


def _entries(manifest: Any) -> dict[str, dict[str, Any]]:
    if not isinstance(manifest, Mapping) or manifest.get("schema") != MANIFEST_SCHEMA:
        found = manifest.get("schema") if isinstance(manifest, Mapping) else type(manifest).__name__
        raise VerificationError(f"{MANIFEST_NAME}: schema is '{found}', expected '{MANIFEST_SCHEMA}'")
    files = manifest.get("files")
    if not isinstance(files, dict) or manifest.get("sha256") != sha256_json(files):
        raise VerificationError(f"{MANIFEST_NAME}: altered: its entries do not match their own digest")
    for name, entry in files.items():
        if not isinstance(entry, dict) or not isinstance(entry.get("sha256"), str) or not isinstance(entry.get("bytes"), int):
            raise VerificationError(f"{MANIFEST_NAME}: the entry of '{name}' lacks its sha256 or its bytes")
    return files


def _inside(folder: Path, name: str) -> Path:
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
        raise UnsafeError(f"{MANIFEST_NAME}: '{name}' does not name a file inside its folder")
    path = folder
    for part in parts:
        path = path / part
        if path.is_symlink():
            raise UnsafeError(f"{path}: is a symbolic link; a manifest describes only files of its own folder")
    return path
