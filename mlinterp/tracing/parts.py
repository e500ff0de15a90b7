"""A trace on disk while it grows, and once it is whole.

A trace grows in parts: one batch of examples makes `part-NNNNN.npy` (its states), `part-NNNNN.jsonl` (its rows) and, last,
`part-NNNNN.json` (their digests). A part without a true digest file never happened, so a killed trace goes on after its last
whole part. `assemble` then joins the parts in order:

- `trace.jsonl`: a header, for each example an `example` row and its `step` rows, and an `end` row with the SHA-256 of every line
  before it, so the file vouches for itself;
- `states.npy`, or numbered shards of at most `shard_bytes` where the states are larger; the header holds their SHA-256.

Memory stays that of one part. Equal specs give equal bytes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from mlinterp.errors import VerificationError
from mlinterp.io.atomic import write_atomic, write_json, write_text
from mlinterp.io.digests import canonical_json, sha256_file

TRACE_SCHEMA = "trminterp.trace.v0"


class TraceParts:
    """The growing trace of one run.

    `fingerprint` says what the parts are parts of; parts of another trace in the same folder are refused.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.folder, self.fingerprint = folder, fingerprint
        folder.mkdir(parents=True, exist_ok=True)

    def has(self, index: int) -> bool:
        """Whether a part is whole. Raises VerificationError where it belongs to another trace."""
        try:
            seal = json.loads((self.folder / f"part-{index:05d}.json").read_text())
        except (OSError, ValueError):
            return False
        if seal["fingerprint"] != self.fingerprint:
            raise VerificationError(
                f"{self.folder}: holds parts of another trace (its settings or code differ); remove the folder to start over"
            )
        return all(path.is_file() and sha256_file(path) == seal[path.suffix] for path in self._files(index))

    def write(self, index: int, states: np.ndarray, rows: list[dict[str, Any]]) -> None:
        """Write one part; offsets in its rows count from the part's own start."""
        npy, jsonl = self._files(index)
        write_atomic(npy, lambda handle: np.save(handle, states))
        write_text(jsonl, "".join(canonical_json(row) + "\n" for row in rows))
        seal = {".npy": sha256_file(npy), ".jsonl": sha256_file(jsonl), "fingerprint": self.fingerprint}
        write_json(self.folder / f"part-{index:05d}.json", seal)

    def _files(self, index: int) -> tuple[Path, Path]:
        return self.folder / f"part-{index:05d}.npy", self.folder / f"part-{index:05d}.jsonl"

    def assemble(self, count: int, header: Mapping[str, Any], target: Path, shard_bytes: int, *, inline: bool = False) -> list[str]:
        """Join parts 0..count-1 into the final files and return their names; the parts are removed.

        With `inline` there is no states file: each step row carries its own `states`.
        """
        parts = [_Stored.read(self._files(index)[0]) for index in range(count)]
        shards = [] if inline else _pack(parts, shard_bytes)
        names = ["states.npy"] if len(shards) == 1 else [f"states-{number:05d}.npy" for number in range(len(shards))]
        for name, members in zip(names, shards, strict=True):
            write_atomic(target / name, partial(_write_npy, members))
        states = [
            {"file": name, "rows": sum(part.rows for part in members), "sha256": sha256_file(target / name)}
            for name, members in zip(names, shards, strict=True)
        ]
        whole = {
            **header,
            "kind": "header",
            "schema": TRACE_SCHEMA,
            "states_file": names[0] if len(names) == 1 else None,
            "states": None if inline else states,
        }
        write_atomic(target / "trace.jsonl", partial(self._write_jsonl, whole, parts, inline))
        shutil.rmtree(self.folder)
        return ["trace.jsonl", *names]

    def _write_jsonl(self, header: Mapping[str, Any], parts: list[_Stored], inline: bool, handle: IO[bytes]) -> None:
        digest, offset, steps = hashlib.sha256(), 0, 0

        def put(row: Mapping[str, Any]) -> None:
            line = canonical_json(row).encode() + b"\n"
            digest.update(line)
            handle.write(line)

        put(header)
        for index, part in enumerate(parts):
            states = np.load(part.path) if inline else None
            for row in _read_rows(self._files(index)[1]):
                if row["kind"] == "step":
                    if states is not None:
                        row["states"] = states[row["state_offset"] : row["state_offset"] + row["state_count"]].tolist()
                    row["state_offset"] += offset
                    steps += 1
                put(row)
            offset += part.rows
        handle.write(canonical_json({"kind": "end", "steps": steps, "states": offset, "sha256": digest.hexdigest()}).encode() + b"\n")


def _read_rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open() as handle:
        for line in handle:
            yield json.loads(line)


class _Stored(NamedTuple):
    """The states of one part: a `.npy` file whose numbers begin at `begins`. Files are joined byte by byte, never read whole."""

    path: Path
    rows: int
    width: int
    begins: int
    bytes: int

    @classmethod
    def read(cls, path: Path) -> _Stored:
        with path.open("rb") as handle:
            np.lib.format.read_magic(handle)
            (rows, width), _, dtype = np.lib.format.read_array_header_1_0(handle)
            return cls(path, rows, width, handle.tell(), rows * width * dtype.itemsize)


def _pack(parts: list[_Stored], shard_bytes: int) -> list[list[_Stored]]:
    shards: list[list[_Stored]] = [[]]
    size = 0
    for part in parts:
        if shards[-1] and size + part.bytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(part)
        size += part.bytes
    return shards


def _write_npy(parts: list[_Stored], handle: IO[bytes]) -> None:
    shape = (sum(part.rows for part in parts), parts[0].width)
    np.lib.format.write_array_header_1_0(handle, {"descr": "<f4", "fortran_order": False, "shape": shape})
    for part in parts:
        with part.path.open("rb") as source:
            source.seek(part.begins)
            shutil.copyfileobj(source, handle, 2**20)
