"""What may be called what in MLflow: metric and parameter keys, artifact names, model names."""

from __future__ import annotations

import hashlib
import re

from mlinterp.errors import UnsafeError

LONGEST_KEY = 250
_NOT_IN_KEYS = re.compile(r"[^\w.\- /]")
_ARTIFACT_PART = re.compile(r"[A-Za-z0-9_.=,+ -]{1,200}")
_NOT_IN_MODELS = re.compile(r"[^A-Za-z0-9_.-]+")


def key(name: str) -> str:
    """Return a metric, parameter or tag key that MLflow takes, equal to `name` where it does already.

    A sign that MLflow refuses becomes `_`; a key over 250 characters ends in a digest of the whole.

    >>> key("layer[0]/l0"), key("a//../b")
    ('layer_0_/l0', 'a/b')
    """
    parts = [part for part in _NOT_IN_KEYS.sub("_", name).split("/") if part not in {"", ".", ".."}]
    clean = "/".join(parts) or "_"
    if len(clean) > LONGEST_KEY:
        clean = f"{clean[: LONGEST_KEY - 13]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    return clean


def artifact(name: str) -> str:
    """Return an artifact's name if it stays inside its run. Raises UnsafeError for `..`, `%`, absolute and other odd names.

    MLflow's local stores follow `../` when they download, so no name goes to them unchecked.
    """
    parts = name.split("/")
    if len(name) > 400 or any(not _ARTIFACT_PART.fullmatch(part) or part in {".", ".."} for part in parts):
        raise UnsafeError(
            f"'{name[:80]!s}' is no artifact name; allowed: parts of A-Z, a-z, 0-9, '_.=,+ -' joined by '/', none of them '..'"
        )
    return name


def registered_model(project: str, subject: str, site: str) -> str:
    """Return the name under which SAEs of one site are versions of each other; the same site always gives the same name."""
    joined = ".".join(part for part in (project, subject, site) if part)
    return _NOT_IN_MODELS.sub("_", joined).strip("._-")[:128] or "sae"


def logged_model(*parts: str) -> str:
    """Return the display name of a logged model: MLflow refuses dots, slashes, colons, `%` and quotes there."""
    return re.sub(r"[^A-Za-z0-9_ -]+", "-", " ".join(part for part in parts if part))[:200].strip(" -") or "model"
