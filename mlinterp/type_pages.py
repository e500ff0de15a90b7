"""What `mlinterp types` prints: the experiment types there are, and one of them with its variables."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic_core import to_jsonable_python

from mlinterp.experiments import catalog
from mlinterp.experiments.base import Experiment, Variables
from mlinterp.refusals import aliases, describe
from mlinterp.terminal import show_lines, show_table

_FIELDS = ("type", "aliases", "modes", "inputs", "produces", "needs_subject", "summary")


def show_types(as_json: bool = False) -> None:
    """Print every experiment type with its aliases and modes."""
    found = catalog.experiments().values()
    if as_json:
        show_lines([json.dumps([_plain(experiment) for experiment in found])])
        return
    rows = [(experiment.type, ", ".join(experiment.aliases), ", ".join(experiment.modes), experiment.summary) for experiment in found]
    show_table(["type", "aliases", "modes", "summary"], rows)


def show_type(experiment: Experiment, as_json: bool = False) -> None:
    """Print one experiment type with its variables: what each means, what it may be, and its default."""
    variables = list(_variables(experiment.Variables))
    if as_json:
        show_lines([json.dumps(_plain(experiment) | {"variables": variables, "headlines": experiment.headlines})])
        return
    show_lines([f"{experiment.type}: {experiment.summary}"])
    facts = {
        "also called": ", ".join(experiment.aliases),
        "modes": ", ".join(experiment.modes),
        "takes": ", ".join(f"{role}{'' if required else ' (optional)'}" for role, required in experiment.inputs.items()),
        "makes": experiment.produces,
        "headlines": ", ".join(experiment.headlines),
    }
    show_lines(f"  {name}: {told}" for name, told in facts.items() if told)
    show_lines([""])
    rows = [(entry["name"], entry["allowed"], _default(entry), entry["description"]) for entry in variables]
    show_table(["variable", "allowed", "default", "what it is"], rows)
    show_lines(["", f"`mlinterp new {experiment.type}` writes a spec of it."])


def _plain(experiment: Experiment) -> dict[str, Any]:
    return {name: getattr(experiment, name) for name in _FIELDS}


def _variables(model: type[Variables]) -> Iterator[dict[str, Any]]:
    for name, info in model.model_fields.items():
        required = info.is_required()
        yield {
            "name": name,
            "aliases": aliases(name, info),
            "description": (info.description or "").rstrip("."),
            "allowed": describe(info.annotation, info.metadata),
            "required": required,
            "default": None if required else to_jsonable_python(info.get_default(call_default_factory=True, validated_data={})),
        }


def _default(entry: Mapping[str, Any]) -> str:
    return "required" if entry["required"] else json.dumps(entry["default"], ensure_ascii=False)
