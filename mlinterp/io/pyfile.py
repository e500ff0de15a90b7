"""Functions in a project's own Python files.

The files of one project folder are modules of one package, so that they import each other by `from .other import name`, and a file
named twice runs once. A file that has changed since, or a neighbour of it, makes another package: nothing old is left in use.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

from pydantic import StringConstraints

from mlinterp.errors import MlinterpError, SpecError, unknown
from mlinterp.io.digests import sha256_json
from mlinterp.io.paths import resolve_inside

FunctionName = Annotated[str, StringConstraints(max_length=300, pattern=r"^[^:]+\.py:[A-Za-z_][A-Za-z0-9_]*$")]
"""A file inside the project and a function in it, such as `package.py:build`."""


def load_function(root: Path, named: str, field: str) -> Callable[..., Any]:
    """Run a project's file and return a function of it.

    Args:
        root: the project's folder.
        named: `FILE.py:FUNCTION`, the file relative to `root`.
        field: where the name was given, for errors.

    Raises UnsafeError for a file outside `root`, SpecError for one that is missing or is no Python, and (with the nearest name) for a
    function that it does not have. What the file itself raises passes through.
    """
    file, _, function = named.rpartition(":")
    path = resolve_inside(root, file)
    if not path.is_file():
        raise SpecError(f"{file} is not in {root}", field=field)
    try:
        module = _module(root.resolve(), path)
    except SyntaxError as error:
        raise SpecError(f"{Path(error.filename or file).name}:{error.lineno}: {error.msg}", field=field) from error
    found = getattr(module, function, None)
    if not callable(found):
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise unknown(field, function, names, what=f"function of {file}")
    return found


def call(function: Callable[..., Any], named: str, field: str, *given: Any) -> Any:
    """Call a project's function. Whatever it raises that mlinterp does not know becomes a SpecError that says where in its file."""
    try:
        return function(*given)
    except MlinterpError:
        raise
    except Exception as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        problem = f"{named} raised {type(error).__name__} at {Path(at.filename).name}:{at.lineno}: {error}"
        raise SpecError(problem, field=field) from error


def _module(root: Path, path: Path) -> ModuleType:
    name = ".".join([_package(root, path), *path.relative_to(root).with_suffix("").parts])
    if name not in sys.modules:
        found = importlib.util.spec_from_file_location(name, path)
        assert found is not None
        assert found.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(found)
        try:
            found.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def _package(root: Path, path: Path) -> str:
    """Return the name of the package that a file and those of the project's folder make up as they now stand."""
    files = sorted({path, *(each for each in root.glob("*.py") if each.is_file())})
    stats = [(each.relative_to(root).as_posix(), each.stat()) for each in files]
    name = f"mlinterp_project_{sha256_json([str(root), [[file, stat.st_mtime_ns, stat.st_size] for file, stat in stats]])[:16]}"
    if name not in sys.modules:
        sys.modules[name] = package = ModuleType(name)
        package.__path__ = [str(root)]
        importlib.invalidate_caches()
    return name
