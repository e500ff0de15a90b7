"""Turning pydantic's list of errors into the one line a person needs: which field, what is wrong with its value, what is allowed.

1. Clean each error's location to a path in the file: pydantic names the tried member of a union in it, the file does not.
2. Choose one error: an unknown key before the missing key that it probably misspells, else the first; inside a union the one that
   came furthest, since that member was meant.
3. Word it, with bounds, literals and the nearest valid name read from the model's own fields.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import AliasChoices, BaseModel, ValidationError
from pydantic.fields import FieldInfo

from mlinterp.errors import SpecError, listed, nearest
from mlinterp.spec import HypothesisId, Name, Reference

_KINDS = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "frozen_set_type": "a list",
    "dict_type": "a block of keys",
    "mapping_type": "a block of keys",
    "model_type": "a block of keys",
    "model_attributes_type": "a block of keys",
    "none_required": "null",
}
_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
_BOUND_ERRORS = {"greater_than_equal": "ge", "greater_than": "gt", "less_than_equal": "le", "less_than": "lt"}
_PATTERNS = {
    typing.get_args(Name)[1].pattern: "a name is 1 to 64 letters, digits, '_', '.' or '-', the first a letter or digit",
    typing.get_args(HypothesisId)[1].pattern: "a hypothesis is h and 3 to 9 digits, such as h001",
    typing.get_args(Reference)[1].pattern: "an input is @STEP, latest, run:ID (32 hex digits) or models:/NAME@ALIAS or /VERSION",
}
_LENGTH_ERRORS = {"too_long", "too_short", "string_too_long", "string_too_short"}


def from_validation(error: ValidationError, *, model: type[BaseModel], prefix: str = "") -> SpecError:
    """Return the SpecError of a failed validation.

    Args:
        error: what pydantic raised.
        model: the model that was validated against; its fields give the allowed and nearest names.
        prefix: dotted path of the validated block inside its file, such as `variables` or `steps.2`.
    """
    found = [_Located(item, *_locate(model, item["loc"])) for item in error.errors(include_url=False)[:100]]
    chosen = _choose(found)
    field = ".".join(part for part in (prefix, ".".join(map(str, chosen.path))) if part)
    problem, allowed, near = _word(chosen)
    return SpecError(problem, field=field or None, allowed=allowed, nearest=near)


_Place = tuple[tuple[str | int, ...], type[BaseModel] | None, Any, list[Any], tuple[int, list[Any]] | None]


@dataclass(frozen=True)
class _Located:
    """One of pydantic's errors with its place in the file.

    Attributes:
        error: pydantic's own words: `type`, `loc`, `input`, `ctx`.
        path: keys and indices in the file.
        model: the model whose key the path ends with, where it does.
        annotation: declared type of the value there.
        metadata: its bounds and patterns.
        union: the first union on the way: how many parts of `path` lead to it, and its members; None without one.
    """

    error: Mapping[str, Any]
    path: tuple[str | int, ...]
    model: type[BaseModel] | None
    annotation: Any
    metadata: list[Any]
    union: tuple[int, list[Any]] | None

    @property
    def type(self) -> str:
        return str(self.error["type"])


def _choose(found: list[_Located]) -> _Located:
    first = found[0]
    if first.type == "missing":
        same_block = [item for item in found if item.type == "extra_forbidden" and item.path[:-1] == first.path[:-1]]
        return same_block[0] if same_block else first
    if first.union is not None:
        above = first.path[: first.union[0]]
        rivals = [item for item in found if item.union is not None and item.path[: item.union[0]] == above]
        return max(rivals, key=lambda item: len(item.path))
    return first


def _word(chosen: _Located) -> tuple[str, str | None, str | None]:
    """Return (problem, allowed, nearest)."""
    kind, context, value = chosen.type, chosen.error.get("ctx") or {}, chosen.error.get("input")
    if kind == "extra_forbidden":
        names = _keys(chosen.model)
        if chosen.path[-1] in names:
            return f"'{chosen.path[-1]}' is another name of a key that is given too", "keep one of them", None
        return f"unknown key '{_cut(str(chosen.path[-1]))}'", _listed(names), nearest(str(chosen.path[-1]), names)
    if kind == "missing":
        return "is missing", f"expected {describe(chosen.annotation, chosen.metadata)}", None
    if kind in {"literal_error", "enum"} and not (chosen.union and chosen.union[0] == len(chosen.path)):
        names = [str(_plain(name)) for name in _literals(chosen.annotation)]
        return (
            f"unknown value {shown(value)}",
            _listed(names) if names else f"allowed: {context.get('expected')}",
            nearest(str(value), names),
        )
    if kind in {"union_tag_invalid", "union_tag_not_found"}:
        key, names = (
            str(context["discriminator"]).strip("'"),
            [name.strip(" '") for name in str(context.get("expected_tags", "")).split(",")],
        )
        if kind == "union_tag_not_found":
            return f"its '{key}' is missing", None, None
        return f"unknown {key} {shown(context['tag'])}", _listed(names), nearest(str(context["tag"]), names)
    if kind in _KINDS or kind == "literal_error":
        if chosen.union is not None and chosen.union[0] == len(chosen.path):
            return f"{shown(value)} is not {_either(dict.fromkeys(map(describe, chosen.union[1])))}", None, None
        unquoted = "write it without quotes" if _is_number(value) and kind in {"int_type", "float_type"} else None
        return f"{shown(value)} is not {_KINDS[kind]}", unquoted or _must(chosen), None
    if kind in _BOUND_ERRORS:
        return (
            f"{shown(value)} is out of bounds",
            _must(chosen) or f"must be {_BOUNDS[_BOUND_ERRORS[kind]]} {context[_BOUND_ERRORS[kind]]}",
            None,
        )
    if kind in _LENGTH_ERRORS:
        word, bound = ("at most", "max_length") if kind.endswith("long") else ("at least", "min_length")
        unit = "characters" if kind.startswith("string") else "entries"
        return f"{shown(value)} is too {kind.rpartition('_')[2]}", f"{word} {context[bound]} {unit}", None
    if kind == "string_pattern_mismatch":
        return f"{shown(value)} is not allowed", _PATTERNS.get(context["pattern"], f"must match {_cut(context['pattern'], 120)}"), None
    if kind == "value_error":
        return str(context["error"]), None, None
    return f"{shown(value)}: {chosen.error['msg']}", None, None


def shown(value: Any) -> str:
    """Return a value as a person would find it in the file, shortened."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"'{_cut(value)}'"
    if isinstance(value, int | float):
        return _cut(str(value))
    if isinstance(value, Mapping):
        return f"a block of {len(value)} keys" if len(value) != 1 else "a block of one key"
    if isinstance(value, list | tuple | set | frozenset):
        return f"a list of {len(value)}"
    return f"a {type(value).__name__}"


def describe(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """Return a declared type in words, with its bounds.

    >>> describe(int | None)
    'an integer'
    >>> describe(typing.Literal["topk", "relu"])
    'topk or relu'
    """
    limits = bounds(annotation, metadata)
    annotation, _ = _unwrap(annotation)
    simple = {
        int: "an integer",
        float: "a number",
        bool: "true or false",
        str: "text",
        list: "a list",
        dict: "a block of keys",
        tuple: "a list",
    }
    literals = _literals(annotation)
    if literals:
        words = _either(dict.fromkeys(str(_plain(item)) for item in literals))
    elif _is_union(annotation):
        words = _either(dict.fromkeys(describe(member) for member in typing.get_args(annotation) if member is not type(None)))
    else:
        base = typing.get_origin(annotation) or annotation
        block = isinstance(base, type) and issubclass(base, BaseModel)
        words = "a block of keys" if block else simple.get(base, "a value")
    return f"{words}, {limits}" if limits else words


def _keys(model: type[BaseModel] | None) -> list[str]:
    """Return every key that a model accepts, aliases after the names."""
    if model is None:
        return []
    return [*model.model_fields, *(alias for name, info in model.model_fields.items() for alias in aliases(name, info))]


def aliases(name: str, info: FieldInfo) -> list[str]:
    """Return the other names under which a field is accepted."""
    alias = info.validation_alias
    choices: list[Any] = alias.choices if isinstance(alias, AliasChoices) else [alias]
    return [choice for choice in choices if isinstance(choice, str) and choice != name]


def _locate(model: type[BaseModel], loc: tuple[str | int, ...]) -> _Place:
    """Walk pydantic's location through the declared types; return (path, model, annotation, metadata, union) as `_Located` has them.

    Where a union has several members, pydantic's next part names the member that it tried.
    """
    path: tuple[str | int, ...] = ()
    candidates: list[tuple[Any, list[Any]]] = [(model, [])]
    owner: type[BaseModel] | None = None
    union: tuple[int, list[Any]] | None = None
    for part in loc:
        narrowed = len(candidates) == 1
        candidates = [inner for annotation, metadata in candidates for inner in _members(annotation, metadata)]
        if narrowed and len(candidates) > 1:
            union = union or (len(path), [annotation for annotation, _ in candidates])
            candidates = [item for item in candidates if _is_meant(item[0], str(part))][:1] or candidates
        elif part != "[key]":
            path = (*path, part)
            owner = next((annotation for annotation, _ in candidates if _is_model(annotation)), None)
            candidates = [step for annotation, _ in candidates if (step := _step(annotation, part))][:1] or [(Any, [])]
    annotation, metadata = candidates[0]
    return path, owner, annotation, metadata, union


def _members(annotation: Any, metadata: list[Any]) -> list[tuple[Any, list[Any]]]:
    """Return the alternatives of a type (itself where it has none), each with its bounds."""
    annotation, inner = _unwrap(annotation)
    if not _is_union(annotation):
        return [(annotation, [*inner, *metadata])]
    return [found for member in typing.get_args(annotation) if member is not type(None) for found in _members(member, [*inner, *metadata])]


def _step(annotation: Any, part: str | int) -> tuple[Any, list[Any]] | None:
    """Return type and bounds one key or index further down, or None where the type has no such part."""
    if _is_model(annotation):
        for name, info in annotation.model_fields.items():
            if part == name or part in aliases(name, info):
                return info.annotation, list(info.metadata)
        return None
    origin, arguments = typing.get_origin(annotation) or annotation, typing.get_args(annotation)
    if isinstance(part, int) and origin in {list, tuple, set, frozenset}:
        position = part if origin is tuple and part < len(arguments) and Ellipsis not in arguments else 0
        return (arguments[position] if arguments else Any), []
    if origin is dict:
        return (arguments[1] if arguments else Any), []
    return None


def _unwrap(annotation: Any) -> tuple[Any, list[Any]]:
    """Return a type without its `Annotated` and its `| None`, and the bounds that stood there."""
    metadata: list[Any] = []
    while True:
        if typing.get_origin(annotation) is typing.Annotated:
            annotation, *extra = typing.get_args(annotation)
            for item in extra:
                metadata += item.metadata if isinstance(item, FieldInfo) else [item]
        elif _is_union(annotation) and len(some := [member for member in typing.get_args(annotation) if member is not type(None)]) == 1:
            annotation = some[0]
        else:
            return annotation, metadata


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in {typing.Union, types.UnionType}


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _is_meant(annotation: Any, tag: str) -> bool:
    """Say whether pydantic's name for a member of a union means this type."""
    if _is_model(annotation):
        by_name = tag == annotation.__name__ or tag.endswith(f", {annotation.__name__}]")
        return by_name or any(tag in map(str, _literals(info.annotation)) for info in annotation.model_fields.values())
    base = typing.get_origin(annotation) or annotation
    return getattr(base, "__name__", "").lower() == tag.partition("[")[0]


def _literals(annotation: Any) -> tuple[Any, ...]:
    annotation, _ = _unwrap(annotation)
    if typing.get_origin(annotation) is typing.Literal:
        return typing.get_args(annotation)
    if _is_union(annotation):
        return tuple(value for member in typing.get_args(annotation) for value in _literals(member))
    return ()


def _is_number(value: Any) -> bool:
    return isinstance(value, str) and value.strip().lstrip("-").replace(".", "", 1).isdecimal()


def _plain(value: Any) -> Any:
    return {None: "null", True: "true", False: "false"}.get(value, value) if value is None or isinstance(value, bool) else value


def bounds(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """Return the bounds of a declared number, empty where it has none.

    >>> from annotated_types import Ge, Lt
    >>> bounds(typing.Annotated[int, Ge(1)] | None, [Lt(9)])
    '>= 1 and < 9'
    """
    found = {}
    for item in (*_unwrap(annotation)[1], *metadata):
        for name, sign in _BOUNDS.items():
            bound = getattr(item, name, None)
            if bound is not None:
                found[name] = f"{sign} {bound}"
    return " and ".join(found[name] for name in _BOUNDS if name in found)


def _must(located: _Located) -> str | None:
    text = bounds(located.annotation, located.metadata)
    return f"must be {text}" if text else None


def _listed(names: list[str]) -> str:
    return "allowed: " + (listed(names) if names else "none")


def _either(words: Iterable[str]) -> str:
    listed = list(words)
    return " or ".join([", ".join(listed[:-1]), listed[-1]]) if len(listed) > 1 else listed[0]


def _cut(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
