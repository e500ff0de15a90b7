"""Reading and writing the files of an SAE, of which any may come from a stranger.

`sae.pt` is a pickle inside a zip, so it is looked at from outside in, and nothing in it is trusted that was not looked at:

1. a regular file of bounded size, whose SHA-256 matches where one is known;
2. a zip with exactly the members that `torch.save` writes for an SAE, stored, without anything before, after or twice;
3. `data.pkl` uses only the opcodes and names that building dicts, numbers and tensors takes;
4. an interpreter of that pickle which builds no tensor and calls nothing finds the declared names, dtypes, shapes and storages; they
   must match the configuration, and each storage the bytes that are there;
5. the members, packed anew (so that no two zip readers can see different files), go through `torch.load(weights_only=True)`;
6. every number is finite.

`sae.safetensors` holds no code by its format; digest, names, dtypes, shapes and values are checked alike. What is harmful or could be
raises UnsafeError; what is damaged, VerificationError; both name the file.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import pickletools
import re
import stat
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from mlinterp.errors import UnsafeError, VerificationError
from mlinterp.io.atomic import write_bytes, write_json
from mlinterp.io.digests import sha256_bytes
from mlinterp.io.tensors import digest_file

SAE_FORMAT = "trminterp.sae.v0"
MAX_BYTES = 64 * 2**30
MAX_PICKLE_BYTES = 16 * 2**10
"""Ten times what an SAE needs; also bounds how deep a pickle can nest."""
MAX_HEADER_BYTES = 2**20

DTYPES = {"FloatStorage": torch.float32, "DoubleStorage": torch.float64, "BFloat16Storage": torch.bfloat16}
_GLOBALS = {"torch._utils _rebuild_tensor_v2", "collections OrderedDict", *(f"torch {name}" for name in DTYPES)}
# fmt: off
_OPCODES = {
    "PROTO", "STOP", "MARK", "BINPUT", "BINGET", "LONG_BINPUT", "LONG_BINGET",
    "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE",
    "EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
    "GLOBAL", "BINPERSID", "REDUCE",
}
# fmt: on
_MEMBERS = {"data.pkl", "version", "byteorder", ".format_version", ".storage_alignment", ".data/serialization_id"}
_REQUIRED = {"data.pkl", "version", "byteorder"}
_KEYS = {"format", "config", "state_dict", "scale", "trace_sha256"}
_PICKLE_ERRORS = (pickle.UnpicklingError, ValueError, TypeError, LookupError, AttributeError, EOFError, RecursionError, OverflowError)


class _Storage(NamedTuple):
    tag: str
    kind: str
    key: str
    location: str
    numel: int


class _Declared(NamedTuple):
    """The arguments of `_rebuild_tensor_v2`, kept instead of called with."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    requires_grad: bool
    hooks: dict[str, Any]


class _Inert(pickle.Unpickler):
    """Builds dicts, lists, numbers and `_Declared` records; there is nothing else that it could call."""

    def find_class(self, module: str, name: str) -> Any:
        known = {"torch._utils _rebuild_tensor_v2": _Declared, "collections OrderedDict": OrderedDict}
        return known.get(f"{module} {name}", name)

    def persistent_load(self, pid: Any) -> _Storage:
        return _Storage(*pid)


def write_file(path: Path, data: bytes) -> str:
    """Write a file atomically with its digest beside it (the digest first) and return the digest."""
    digest = sha256_bytes(data)
    write_json(digest_file(path), {"sha256": digest, "bytes": len(data)})
    write_bytes(path, data)
    return digest


def read_file(path: Path, sha256: str | None = None) -> bytes:
    """Return a file's bytes, checked against `sha256`, or against the digest beside it where there is one.

    Raises UnsafeError for anything but a regular file of bounded size, VerificationError for a missing or an altered one.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise VerificationError(f"{path}: cannot be read ({error.strerror})") from error
    if not stat.S_ISREG(status.st_mode):
        raise UnsafeError(f"{path}: is not a regular file")
    if status.st_size > MAX_BYTES:
        raise UnsafeError(f"{path}: {status.st_size} bytes are more than an SAE has (at most {MAX_BYTES})")
    data = path.read_bytes()
    beside = digest_file(path)
    if sha256 is None and beside.is_file():
        try:
            sha256 = str(json.loads(beside.read_bytes())["sha256"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise VerificationError(f"{beside}: damaged") from error
    if sha256 is not None and sha256_bytes(data) != sha256:
        raise VerificationError(f"{path}: content does not match its SHA-256 (truncated or altered)")
    return data


def shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the tensors of `sae.pt` and their shapes for a configuration."""
    d_in, d_sae = config["d_in"], config["d_sae"]
    wanted = {"W_enc": (d_sae, d_in), "b_enc": (d_sae,), "W_dec": (d_in, d_sae), "b_pre": (d_in,)}
    extra: dict[str, dict[str, tuple[int, ...]]] = {"jumprelu": {"threshold": (d_sae,)}, "batchtopk": {"threshold": ()}}
    return wanted | extra.get(config["activation"], {})


def pack_pt(payload: Mapping[str, Any]) -> bytes:
    """Return the bytes of `sae.pt`. Equal payloads give equal bytes: the archive inside is never named after a file."""
    plain = {**payload, "state_dict": {name: tensor.detach().cpu().contiguous().clone() for name, tensor in payload["state_dict"].items()}}
    buffer = io.BytesIO()
    torch.save(plain, buffer)
    return buffer.getvalue()


def read_pt(path: Path, sha256: str | None = None) -> dict[str, Any]:
    """Return the payload of an `sae.pt` after every check above."""
    data = read_file(path, sha256)
    members = _members(path, data)
    _check_opcodes(path, members["data.pkl"])
    declared = _declared(path, members["data.pkl"])
    _check_payload(path, declared)
    _check_declared(path, declared, members)
    try:
        payload: dict[str, Any] = torch.load(_repack(members), map_location="cpu", weights_only=True)
    except (*_PICKLE_ERRORS, RuntimeError) as error:
        raise VerificationError(f"{path}: torch cannot load it ({str(error).splitlines()[0]})") from error
    check_tensors(path, payload["state_dict"], shapes(payload["config"]))
    return payload


def _members(path: Path, data: bytes) -> dict[str, bytes]:
    """Return the zip's members by their name below the archive's own folder."""
    if not data.startswith(b"PK\x03\x04"):
        raise UnsafeError(f"{path}: is not a zip archive (legacy pickles and tars are not opened)")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            if data[-22:-18] != b"PK\x05\x06" or archive.comment or min(entry.header_offset for entry in entries) != 0:
                raise UnsafeError(f"{path}: has bytes before or after its zip archive")
            folder = names[0].split("/")[0] + "/"
            plain = [name.removeprefix(folder) for name in names]
            storages = {name for name in plain if re.fullmatch(r"data/[0-9]", name)}
            expected = (_MEMBERS & set(plain)) | _REQUIRED | storages
            if len(set(names)) != len(names) or set(plain) != expected or not all(name.startswith(folder) for name in names):
                raise UnsafeError(f"{path}: does not hold exactly the members of an SAE archive")
            if not all(_is_stored(entry) for entry in entries):
                raise UnsafeError(f"{path}: has members that are compressed or encrypted")
            return {name: archive.read(entry) for name, entry in zip(plain, entries, strict=True)}
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError, OSError, OverflowError) as error:
        raise VerificationError(f"{path}: damaged zip archive ({error})") from error


def _is_stored(entry: zipfile.ZipInfo) -> bool:
    return entry.compress_type == zipfile.ZIP_STORED and entry.compress_size == entry.file_size and not entry.flag_bits & 1


def _check_opcodes(path: Path, data: bytes) -> None:
    if len(data) > MAX_PICKLE_BYTES:
        raise UnsafeError(f"{path}: its pickle has {len(data)} bytes (at most {MAX_PICKLE_BYTES})")
    end = -1
    try:
        for opcode, argument, position in pickletools.genops(data):
            if opcode.name not in _OPCODES:
                raise UnsafeError(f"{path}: its pickle uses {opcode.name}, which no SAE needs")
            if opcode.name.startswith("LONG_BIN") and int(argument or 0) >= len(data):
                raise UnsafeError(f"{path}: its pickle's memo is numbered up to {argument}")
            if opcode.name == "GLOBAL" and argument not in _GLOBALS:
                raise UnsafeError(f"{path}: its pickle asks for {str(argument)[:100]!r}, which no SAE needs")
            end = position or 0
    except (ValueError, IndexError, UnicodeError, OverflowError) as error:
        raise UnsafeError(f"{path}: its pickle cannot be read") from error
    if end + 1 != len(data):
        raise UnsafeError(f"{path}: its pickle is followed by more bytes")


def _declared(path: Path, data: bytes) -> dict[str, Any]:
    try:
        declared = _Inert(io.BytesIO(data)).load()
    except _PICKLE_ERRORS as error:
        raise UnsafeError(f"{path}: its pickle does not build an SAE") from error
    if not isinstance(declared, dict):
        raise UnsafeError(f"{path}: its pickle does not build an SAE")
    return declared


def _check_payload(path: Path, payload: Mapping[str, Any]) -> None:
    """Check keys and plain values; raises VerificationError."""
    problem = None
    config = payload.get("config")
    if set(payload) != _KEYS or payload["format"] != SAE_FORMAT:
        problem = f"expected the keys {', '.join(sorted(_KEYS))} and format '{SAE_FORMAT}'"
    elif not isinstance(config, dict) or not all(isinstance(key, str) for key in config):
        problem = "config is not a block of names"
    elif not all(type(config.get(key)) is int and config[key] > 0 for key in ("d_in", "d_sae")):
        problem = "config lacks a positive d_in or d_sae"
    elif not isinstance(config.get("activation"), str):
        problem = "config lacks activation"
    elif type(payload["scale"]) is not float or not math.isfinite(payload["scale"]) or payload["scale"] <= 0:
        problem = f"scale is {payload['scale']!r:.40}, expected a positive number"
    elif not isinstance(payload["trace_sha256"], str) or not isinstance(payload["state_dict"], dict):
        problem = "trace_sha256 or state_dict is of the wrong type"
    if problem:
        raise VerificationError(f"{path}: {problem}")


def _check_declared(path: Path, declared: Mapping[str, Any], members: Mapping[str, bytes]) -> None:
    """Check what the pickle says of its tensors against the configuration and the bytes that are there."""
    expected, tensors = shapes(declared["config"]), declared["state_dict"]
    if members["byteorder"] != b"little":
        raise VerificationError(f"{path}: is not little-endian")
    if set(tensors) != set(expected):
        raise VerificationError(f"{path}: holds tensors {_names(tensors)}, expected {_names(expected)}")
    if {f"data/{number}" for number in range(len(expected))} != {name for name in members if re.fullmatch(r"data/[0-9]", name)}:
        raise UnsafeError(f"{path}: has storages that belong to no tensor")
    keys = set()
    for name, shape in expected.items():
        tensor = tensors[name]
        if not isinstance(tensor, _Declared) or not isinstance(tensor.storage, _Storage):
            raise UnsafeError(f"{path}: {name} is not a tensor")
        storage = tensor.storage
        numel = math.prod(shape)
        if tensor.size != shape:
            raise VerificationError(f"{path}: {name} has shape {str(tensor.size)[:60]}, expected {shape}")
        plain = (tensor.offset, tensor.stride, tensor.requires_grad, tensor.hooks) == (0, _contiguous(shape), False, {})
        known = storage.tag == "storage" and storage.location == "cpu" and storage.kind in DTYPES and f"data/{storage.key}" in members
        if not plain or not known or storage.numel != numel or storage.key in keys:
            raise UnsafeError(f"{path}: {name} is not a plain tensor of its own storage")
        keys.add(storage.key)
        size = numel * DTYPES[storage.kind].itemsize
        if len(members[f"data/{storage.key}"]) != size:
            raise VerificationError(f"{path}: {name} has {len(members[f'data/{storage.key}'])} bytes, expected {size}")


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _repack(members: Mapping[str, bytes]) -> io.BytesIO:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(f"archive/{name}", content)
    buffer.seek(0)
    return buffer


def pack_safetensors(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> bytes:
    """Return the bytes of a safetensors file with JSON metadata under the key `mlinterp`."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return save(plain, metadata={"mlinterp": json.dumps(dict(meta), sort_keys=True, allow_nan=False)})


def read_safetensors(path: Path, sha256: str | None = None) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Return (tensors, our metadata or None where another tool wrote the file). Raises VerificationError where anything is off."""
    data = read_file(path, sha256)
    try:
        size = int.from_bytes(data[:8], "little")
        if size > MAX_HEADER_BYTES:
            raise ValueError(f"header of {size} bytes")
        text = json.loads(data[8 : 8 + size]).get("__metadata__", {}).get("mlinterp")
        meta = None if text is None else json.loads(text)
        if meta is not None and not isinstance(meta, dict):
            raise ValueError("metadata is no block")
        return load(data), meta
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise VerificationError(f"{path}: not a safetensors file ({str(error)[:100]})") from error


def check_tensors(path: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Check names, shapes, one dtype among float32, float64 and bfloat16, and finite values; raises VerificationError."""
    if set(tensors) != set(expected):
        raise VerificationError(f"{path}: holds tensors {_names(tensors)}, expected {_names(expected)}")
    dtypes = {tensor.dtype for tensor in tensors.values()}
    if len(dtypes) != 1 or not dtypes <= set(DTYPES.values()):
        raise VerificationError(f"{path}: dtypes are {_names(map(str, dtypes))}, expected one of float32, float64, bfloat16")
    for name, shape in expected.items():
        if tuple(tensors[name].shape) != shape:
            raise VerificationError(f"{path}: {name} has shape {tuple(tensors[name].shape)}, expected {shape}")
        if not bool(torch.isfinite(tensors[name]).all()):
            raise VerificationError(f"{path}: {name} holds values that are not finite")


def _names(names: Any) -> str:
    return ", ".join(sorted(str(name)[:40] for name in names)[:12])
