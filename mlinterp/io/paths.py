"""Paths that a spec or a project file may name: relative, below a root, and nowhere else, also through symbolic links."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath

from mlinterp.errors import UnsafeError

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_SAFE_NAME = re.compile(r"[a-z0-9._-]{1,64}")


def resolve_inside(root: Path, relative: str) -> Path:
    """Return the absolute path that a declared path means below `root`.

    Raises UnsafeError for an absolute path, `..`, a backslash, `~`, `%`, a control character, a URL scheme or drive letter, and
    for a path that a symbolic link leads out of `root`. The path need not exist.
    """
    shown = f"path '{relative[:80]}'"
    for sign, name in (("\\", "a backslash"), ("~", "'~'"), ("%", "'%'")):
        if sign in relative:
            raise UnsafeError(f"{shown} holds {name}; a path is relative to the project folder, with '/' between its parts")
    if not relative or not relative.isprintable():
        raise UnsafeError(f"{shown} is empty or holds a character that does not print")
    if _SCHEME.match(relative):
        raise UnsafeError(f"{shown} is an address or has a drive letter; a path is relative to the project folder")
    if relative.startswith("/") or ".." in PurePosixPath(relative).parts:
        raise UnsafeError(f"{shown} leaves the project folder; a path is relative to it, without '..'")
    if len(relative) > 1024 or any(len(os.fsencode(part)) > 255 for part in relative.split("/")):
        raise UnsafeError(f"{shown} is too long for a file system")
    try:
        base = root.resolve()
        resolved = (base / relative).resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise UnsafeError(f"{shown} cannot be resolved: {error}") from None
    if not resolved.is_relative_to(base):
        raise UnsafeError(f"{shown} leads out of the project folder through a symbolic link")
    return resolved


def safe_name(name: str) -> str:
    """Return a name that is safe as a single file name: `[a-z0-9._-]`, 1 to 64 characters. Raises UnsafeError for any other."""
    if not _SAFE_NAME.fullmatch(name) or set(name) == {"."}:
        raise UnsafeError(f"'{name[:80]}' is no safe file name; allowed: 1 to 64 of a-z, 0-9, '.', '_' and '-'")
    return name
