"""Reading a declared file (spec or project) from JSON, YAML or TOML: strictly, and with the line of every field.

1. The bytes: a regular file of at most 256 KiB, UTF-8.
2. The syntax: YAML events, JSON tokens or TOML values, never objects: no tags, anchors, aliases, merge keys or second documents.
3. The values go one by one through `_Builder`, which keeps line numbers and refuses what three formats would read in three ways:
   duplicate keys, keys that are no text, nesting below 32 levels, numbers that are not finite or not 64-bit, dates, lone surrogates.

Plain YAML scalars follow the core schema of YAML 1.2.2 (section 10.3.2), so `1e-3` is a number, `no` and `12:30:45` are text; `017`,
which YAML 1.1 reads as 15 and YAML 1.2 as 17, is refused. Every failure is a SpecError with file and line.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mlinterp.errors import SpecError, nearest
from mlinterp.io.digests import sha256_bytes

MAX_BYTES = 256 * 1024
MAX_DEPTH = 32
MAX_KEY_PARTS = 6
FieldPath = tuple[str | int, ...]

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_CONSTANTS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INTEGER = re.compile(r"[-+]?[0-9]+")
_BASED = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_JSON_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}:,\n]|[^\s\[\]{}:,"]+', re.DOTALL)
_JSON_CONSTANTS = {"null": None, "true": True, "false": False}
_TOML_LONG_KEY = re.compile(rf"""(?<![\w-])(?:(?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*){{{MAX_KEY_PARTS}}}""")
_TOML_NAME = re.compile(r"""[\w."' \t-]+""")


@dataclass(frozen=True)
class Document:
    """A file as it was read.

    Attributes:
        path: where it lies, as the caller named it.
        data: its content as plain dicts, lists and scalars.
        lines: line number (from 1) of each field, by its path of keys and indices.
        text: its bytes, unchanged.
        sha256: their digest.
    """

    path: Path
    data: dict[str, Any]
    lines: Mapping[FieldPath, int]
    text: bytes
    sha256: str

    def line(self, field: str | None) -> int | None:
        """Return the line of a dotted field, or of the nearest block around it that the file has."""
        if not field:
            return None
        by_name = {".".join(map(str, path)): line for path, line in self.lines.items()}
        while field and field not in by_name:
            field = field.rpartition(".")[0]
        return by_name.get(field) if field else None

    def place(self, error: SpecError) -> SpecError:
        """Return the error with this file and the line of its field filled in."""
        return error.at(str(self.path), self.line(error.field))


def read_document(path: str | os.PathLike[str], max_bytes: int = MAX_BYTES) -> Document:
    """Read a declared file. Raises SpecError with file and line for whatever is wrong with it."""
    path = Path(path)
    read = _READERS.get(path.suffix.lower())
    if read is None:
        allowed = f"allowed: {', '.join(_READERS)}"
        raise SpecError(f"'{path.suffix}' is no format of a spec", allowed=allowed, nearest=nearest(path.suffix, _READERS), file=str(path))
    try:
        content = _read_bytes(path, max_bytes)
        builder = _Builder()
        read(_decode(content), builder)
        if not isinstance(builder.value, dict):
            found = "is empty" if builder.value is None else f"holds {_kind(builder.value)} at its top level"
            raise SpecError(found, allowed="expected keys and values, such as `type: trace`", line=1)
    except SpecError as error:
        raise error.at(str(path)) from None
    except (ValueError, RecursionError, OverflowError, MemoryError) as error:
        raise SpecError(f"cannot be read ({type(error).__name__})", file=str(path)) from error
    return Document(path, builder.value, builder.lines, content, sha256_bytes(content))


def parse_value(text: str) -> Any:
    """Return the value that a text means where a spec file would hold it, such as `3`, `1e-3`, `no` or `[3, 12]`.

    >>> parse_value("[1e-3, no, true]")
    [0.001, 'no', True]
    """
    builder = _Builder()
    try:
        _read_yaml(text, builder)
    except (ValueError, RecursionError, OverflowError, MemoryError) as error:
        raise SpecError(f"cannot be read ({type(error).__name__})") from error
    return builder.value


def _read_bytes(path: Path, max_bytes: int) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise SpecError(f"cannot be opened: {os.strerror(error.errno or 0)}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise SpecError("is not a regular file")
    with open(descriptor, "rb") as handle:
        content = handle.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise SpecError(f"is larger than {max_bytes // 1024} KiB", allowed="a spec declares; data belong into the project's files")
    return content


def _decode(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise SpecError(f"byte 0x{content[error.start]:02x} is not UTF-8", allowed="save the file as UTF-8", line=line) from None


class _Builder:
    """Puts a document together from its scalars and brackets, noting lines and refusing what is not allowed."""

    def __init__(self) -> None:
        self.value: Any = None
        self.lines: dict[FieldPath, int] = {}
        self.line = 1
        self._open: list[tuple[FieldPath, dict[str, Any] | list[Any]]] = []
        self._key: str | None = None

    def begin(self, block: dict[str, Any] | list[Any]) -> None:
        """Open a block or a list."""
        path = self._add(block)
        if len(self._open) == MAX_DEPTH:
            raise SpecError(f"nested deeper than {MAX_DEPTH} levels", line=self.line)
        self._open.append((path, block))

    def end(self) -> None:
        """Close the innermost block or list."""
        self._open.pop()

    @property
    def expects_key(self) -> bool:
        """Whether the next scalar is a key."""
        return bool(self._open) and isinstance(self._open[-1][1], dict) and self._key is None

    def key(self, name: str) -> None:
        """Name the next value."""
        path, block = self._open[-1]
        _refuse_surrogates(name, self.line)
        if name in block:
            field = ".".join(map(str, (*path, name)))
            raise SpecError(f"key '{_short(name)}' is given twice", field=_short(field, 120), line=self.line)
        self._key = name
        self.lines[(*path, name)] = self.line

    def scalar(self, value: Any) -> None:
        """Add a value that is no block."""
        if isinstance(value, str):
            _refuse_surrogates(value, self.line)
        elif isinstance(value, float) and not math.isfinite(value):
            raise SpecError("the number is not finite", allowed="infinity and NaN have no place in a spec", line=self.line)
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise SpecError("the integer does not fit into 64 bits", line=self.line)
        elif value is not None and not isinstance(value, bool | int | float):
            raise SpecError(f"{_kind(value)} is no value of a spec", allowed="put dates and times in quotes", line=self.line)
        self._add(value)

    def _add(self, value: Any) -> FieldPath:
        if not self._open:
            self.value = value
            return ()
        path, block = self._open[-1]
        if isinstance(block, list):
            path = (*path, len(block))
            block.append(value)
            self.lines[path] = self.line
            return path
        assert self._key is not None
        path, self._key = (*path, self._key), None
        block[str(path[-1])] = value
        return path


def _refuse_surrogates(text: str, line: int) -> None:
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise SpecError("the text holds half of a surrogate pair, which is no character", line=line)


def _read_yaml(text: str, builder: _Builder) -> None:
    try:
        documents = 0
        for event in yaml.parse(text, Loader=_LOADER):
            builder.line = getattr(event.start_mark, "line", 0) + 1
            documents += isinstance(event, yaml.DocumentStartEvent)
            if documents > 1:
                raise SpecError("a second document begins here", allowed="a file holds one", line=builder.line)
            _take_event(event, builder)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be parsed"
        raise SpecError(f"not valid YAML: {problem}", line=mark.line + 1 if mark else builder.line) from None


def _take_event(event: Any, builder: _Builder) -> None:
    if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
        raise SpecError("anchors and aliases (& and *) are not allowed", allowed="write the value out, or quote it", line=builder.line)
    if getattr(event, "tags", None) or (getattr(event, "tag", None) is not None):
        raise SpecError("tags (!) are not allowed", allowed="put a text that begins with ! in quotes", line=builder.line)
    if builder.expects_key and isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
        raise SpecError("a list or a block cannot be a key", line=builder.line)
    if isinstance(event, yaml.MappingStartEvent):
        builder.begin({})
    elif isinstance(event, yaml.SequenceStartEvent):
        builder.begin([])
    elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
        builder.end()
    elif isinstance(event, yaml.ScalarEvent):
        plain = event.implicit[0]
        if plain and event.value == "<<" and builder.expects_key:
            raise SpecError("merge keys (<<) are not allowed", allowed="write the keys out", line=builder.line)
        value = _core_scalar(event.value, builder.line) if plain else event.value
        if not builder.expects_key:
            builder.scalar(value)
        elif isinstance(value, str):
            builder.key(value)
        else:
            raise SpecError(f"the key {_short(event.value) or 'null'} is no text", allowed="put it in quotes", line=builder.line)


def _core_scalar(text: str, line: int) -> Any:
    """Return what a plain scalar means in the YAML 1.2 core schema."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INTEGER.fullmatch(text):
        digits = text.lstrip("+-")
        if len(digits) > 1 and digits[0] == "0":
            raise SpecError(f"{_short(text)} has a leading zero", allowed="write it without, or quote it", line=line)
        return _integer(text, 10, line)
    if _BASED.fullmatch(text):
        return _integer(text, 0, line)
    if _FLOAT.fullmatch(text) or _NOT_FINITE.fullmatch(text):
        return float(text.replace(".", "", 1) if text[-1] in "fFnN" else text)
    return text


def _integer(text: str, base: int, line: int) -> int:
    if len(text) > 30:
        raise SpecError("the integer does not fit into 64 bits", line=line)
    return int(text, base)


def _read_json(text: str, builder: _Builder) -> None:
    try:
        json.loads(text, parse_int=str, parse_float=str, parse_constant=str)
    except json.JSONDecodeError as error:
        raise SpecError(f"not valid JSON: {error.msg}", line=error.lineno) from None
    except RecursionError:
        raise SpecError(f"nested deeper than {MAX_DEPTH} levels") from None
    for match in _JSON_TOKEN.finditer(text):
        piece = match.group()
        if piece == "\n":
            builder.line += 1
        elif piece in "{[":
            builder.begin({} if piece == "{" else [])
        elif piece in "}]":
            builder.end()
        elif piece not in ":,":
            (builder.key if builder.expects_key else builder.scalar)(_json_scalar(piece, builder.line))


def _json_scalar(token: str, line: int) -> Any:
    if token[0] == '"':
        return json.loads(token)
    if token in _JSON_CONSTANTS:
        return _JSON_CONSTANTS[token]
    return _integer(token, 10, line) if _INTEGER.fullmatch(token) else float(token)


def _read_toml(text: str, builder: _Builder) -> None:
    long_key = _TOML_LONG_KEY.search(text)
    if long_key:
        raise SpecError(
            f"a key of more than {MAX_KEY_PARTS} parts", allowed="use tables, such as [a.b]", line=text.count("\n", 0, long_key.start()) + 1
        )
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        place = re.search(r"\(at line (\d+), column \d+\)", str(error))
        raise SpecError(f"not valid TOML: {str(error).split(' (at ')[0]}", line=int(place.group(1)) if place else None) from None
    except RecursionError:
        raise SpecError(f"nested deeper than {MAX_DEPTH} levels") from None
    known: dict[FieldPath, int] = {}
    for place_of, number in _toml_lines(text):
        known.setdefault(place_of, number)

    def walk(value: Any, path: FieldPath) -> None:
        builder.line = known.get(path, builder.line)
        if isinstance(value, dict):
            builder.begin({})
            for name, item in value.items():
                builder.line = known.get((*path, name), builder.line)
                builder.key(name)
                walk(item, (*path, name))
            builder.end()
        elif isinstance(value, list):
            builder.begin([])
            for index, item in enumerate(value):
                walk(item, (*path, index))
            builder.end()
        else:
            builder.scalar(value)

    walk(data, ())


def _toml_lines(text: str) -> Iterator[tuple[FieldPath, int]]:
    """Yield the line of each table header and key, as far as one line shows it."""
    table: FieldPath = ()
    counts: dict[FieldPath, int] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.strip()
        name = line.lstrip("[").partition("]")[0] if line.startswith("[") else line.partition("=")[0]
        if not _TOML_NAME.fullmatch(name):
            continue
        if line.startswith("["):
            table = _toml_names(name, counts)
            if line.startswith("[["):
                counts[table] = counts.get(table, -1) + 1
                table = (*table, counts[table])
            path = table
        else:
            path = (*table, *_toml_names(name, {}))
        yield from ((path[:length], number) for length in range(1, len(path) + 1))


def _toml_names(dotted: str, counts: Mapping[FieldPath, int]) -> FieldPath:
    """Return a dotted name as a path; an array of tables on the way is entered at its newest table."""
    path: FieldPath = ()
    for part in dotted.split("."):
        path = (*path, counts[path]) if path in counts else path
        path = (*path, part.strip().strip("\"'"))
    return path


def _kind(value: Any) -> str:
    names = {dict: "a block", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), f"a {type(value).__name__}")


def _short(text: str, limit: int = 40) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


_READERS: dict[str, Callable[[str, _Builder], None]] = {".yaml": _read_yaml, ".yml": _read_yaml, ".json": _read_json, ".toml": _read_toml}
