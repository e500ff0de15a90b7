"""Starting points for people: a commented spec for any experiment type, and the JSON Schema that editors complete specs from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic.json_schema import models_json_schema
from pydantic_core import to_jsonable_python

from mlinterp.errors import SpecError
from mlinterp.experiments import catalog
from mlinterp.experiments.base import Experiment
from mlinterp.hypotheses.declared import read_declared
from mlinterp.hypotheses.records import Declaration
from mlinterp.io.specfile import parse_value
from mlinterp.io.text import visible
from mlinterp.project import Project
from mlinterp.refusals import aliases, describe
from mlinterp.spec import Spec, Step

if TYPE_CHECKING:
    from mlinterp.subjects.token_sets.vocabulary import Vocabulary

_CHAIN = ("subject", "trace", "sae")
"""What a study makes on its way, each from the ones before."""


def new_spec(name: str, project: Project | None = None) -> str:
    """Return a commented YAML spec of a type, of a study over the usual chain, or of a project's `hypotheses`.

    Raises SpecError for an unknown type.
    """
    if name == "study":
        return _study(project)
    if name == "hypotheses":
        return _hypotheses()
    experiment = catalog.find(name)
    data = _filled(experiment, project)
    lines = [
        f"# {experiment.summary}",
        "# Check it with `mlinterp validate FILE`, run it with `mlinterp run FILE`.",
        f"type: {experiment.type}",
        *_evidence(project),
    ]
    for key, value in data.items():
        if key == "variables":
            lines += ["variables:", *_block(experiment.Variables, value, 1)]
        else:
            lines += _entry(key, value, 0)
    if "variables" not in data:
        lines += ["# variables:", *(f"# {line}" for line in _block(experiment.Variables, {}, 1))]
    return "\n".join(lines) + "\n"


def schema(name: str | None = None) -> dict[str, Any]:
    """Return the JSON Schema of every spec, or of one type's with its variables in place."""
    if name is None:
        found, shared = models_json_schema([(Spec, "validation")])
    else:
        experiment = catalog.find(name)
        found, shared = models_json_schema([(Spec, "validation"), (experiment.Variables, "validation")])
    definitions = shared["$defs"]
    envelope = dict(definitions.pop(_reference(found, Spec).rpartition("/")[2]))
    for model, block in ((Spec, envelope), (Step, definitions["Step"])):
        block["properties"] |= {
            alias: block["properties"][field] for field, info in model.model_fields.items() for alias in aliases(field, info)
        }
    if name is not None:
        envelope["properties"] |= {
            "type": {"enum": [experiment.type, *experiment.aliases]},
            "variables": {"$ref": _reference(found, experiment.Variables)},
        }
        envelope["title"] = f"mlinterp spec: {experiment.type}"
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **envelope, "$defs": definitions}


def _reference(found: Mapping[Any, Mapping[str, Any]], model: type[BaseModel]) -> str:
    return str(found[(model, "validation")]["$ref"])


def _filled(experiment: Experiment, project: Project | None) -> dict[str, Any]:
    """Return a type's example with a subject that the project has and the inputs that the type needs."""
    data = {key: value for key, value in experiment.example.items() if key != "type"}
    if "subject" in data and project is not None and project.subjects and data["subject"] not in project.subjects:
        of_token_sets = project.token_set_subjects() if experiment.check_domain is not None else []
        data["subject"] = next(iter(of_token_sets or project.subjects))
        if of_token_sets:
            data = _in_words_of(project.data_package(data["subject"]).vocabulary, data)
    needed = {role: "latest" for role, required in experiment.inputs.items() if required}
    inputs = {**needed, **data.pop("inputs", {}), **_weights(experiment, project, data.get("subject"))}
    if inputs := {role: reference for role, reference in inputs.items() if reference is not None}:
        data["inputs"] = inputs
    order = [key for key in ("subject", "feature_id", "hypothesis", "inputs") if key in data]
    return {key: data[key] for key in [*order, *(key for key in data if key not in order)]}


def _weights(experiment: Experiment, project: Project | None, subject: str | None) -> dict[str, str | None]:
    """Return where an example takes its subject's weights from: the latest fit where it begins untrained, None where it does not."""
    if experiment.inputs.get("subject") is not False or project is None or subject not in project.subjects:
        return {}
    untrained = project.starts_untrained(subject)
    return {} if untrained is None else {"subject": "latest" if untrained else None}


def _in_words_of(vocabulary: Vocabulary, example: Any) -> Any:
    """Return an example with families and a token of a domain in the places of FAMILY, FAMILY2 and TOKEN."""
    if isinstance(example, Mapping):
        return {key: _in_words_of(vocabulary, value) for key, value in example.items()}
    if isinstance(example, list):
        return [_in_words_of(vocabulary, value) for value in example]
    first, second = (family.name for family in (*vocabulary.families, *vocabulary.families)[:2])
    words = {"FAMILY": first, "FAMILY2": second, "TOKEN": vocabulary.tokens[-1]}
    return words.get(example, example) if isinstance(example, str) else example


def _evidence(project: Project | None) -> Iterator[str]:
    """Yield how a spec becomes evidence, commented out, with the hypotheses that the project declares."""
    declared = read_declared(project) if project is not None else {}
    yield "# What this is evidence for: a hypothesis of hypotheses.yaml, or of `mlinterp hypothesis add`."
    yield from (f"#   {name}: {visible(' '.join(claim.claim.split()))}" for name, claim in declared.items())
    yield f"# hypothesis: {next(iter(declared), 'h001')}"


def _hypotheses() -> str:
    example = {
        "claim": "What is claimed, in one sentence.",
        "prediction": "What should be measured if it is true.",
        "refuted_by": "What would refute it.",
    }
    lines = [
        "# The project's hypotheses; a spec names the one that it is evidence for: `hypothesis: h001`.",
        "# Once there is evidence, only tags and notes may change: a new claim is a new hypothesis, with the old one as its parent.",
        "h001:",
        *_block(Declaration, example, 1),
    ]
    return "\n".join(lines) + "\n"


def _study(project: Project | None) -> str:
    found = sorted(catalog.experiments().values(), key=lambda experiment: experiment.needs_subject)
    makers = {experiment.produces: experiment for experiment in found if experiment.produces}  # of two, the one that needs a subject
    chain = [makers[role] for role in _CHAIN if role in makers]
    if not chain:
        raise SpecError("no experiment type makes anything that a study could pass on", field="type")
    subject = next((data["subject"] for data in (_filled(experiment, project) for experiment in chain) if "subject" in data), None)
    lines = [
        "# A study: named steps in order, under one hypothesis. `@NAME` is what an earlier step has made.",
        "# Check it with `mlinterp validate FILE`, run it with `mlinterp run FILE`.",
        "type: study",
        *([f"subject: {_scalar(subject)}"] if subject else []),
        "description: What is asked, and what answer is expected.",
        *_evidence(project),
        "seed: 0",
        "steps:",
    ]
    made: dict[str, str] = {}
    for experiment in chain:
        data = _filled(experiment, project)
        inputs = {role: f"@{made[role]}" for role in experiment.inputs if role in made}
        lines += [f"  # {experiment.summary}", f"  - name: {experiment.type}", f"    type: {experiment.type}"]
        lines += _entry("inputs", inputs, 2) if inputs else []
        lines += ["    variables:", *_block(experiment.Variables, data["variables"], 3)] if data.get("variables") else []
        made[str(experiment.produces)] = experiment.type
    return "\n".join(lines) + "\n"


def study_text(study: Spec) -> str:
    """Return a study as a spec file of its own, each step below what its type does; reading it gives the same study."""
    data = study.model_dump(mode="json", exclude_defaults=True)
    lines = ["# Check it with `mlinterp validate FILE`, run it with `mlinterp run FILE`."]
    lines += [line for key, value in data.items() if key != "steps" for line in _entry(key, value, 0)]
    lines.append("steps:")
    for step in data["steps"]:
        lines.append(f"  # {catalog.find(step['type']).summary}")
        block = [line for key, value in step.items() for line in _entry(key, value, 2)]
        lines += [f"  - {block[0].strip()}", *block[1:]]
    return "\n".join(lines) + "\n"


def _block(model: type[BaseModel], given: Mapping[str, Any], depth: int) -> Iterator[str]:
    """Yield a block's lines: each field's comment, then its value, commented out where the example leaves the default."""
    indent = "  " * depth
    for name, info in model.model_fields.items():
        yield f"{indent}# {_explained(info)}"
        if name not in given:
            yield f"{indent}# {name}: {_flow(_default(info))}"
            continue
        inner = info.annotation
        if isinstance(given[name], Mapping) and isinstance(inner, type) and issubclass(inner, BaseModel):
            yield f"{indent}{name}:"
            yield from _block(inner, given[name], depth + 1)
        else:
            yield from _entry(name, given[name], depth)


def _explained(info: FieldInfo) -> str:
    words = (info.description or "").rstrip(".").replace("\n", " ")
    kind = describe(info.annotation, info.metadata)
    kind = "required; " + kind if info.is_required() else kind
    return f"{words} ({kind})" if words else kind


def _default(info: FieldInfo) -> Any:
    if info.is_required():
        return None
    return to_jsonable_python(info.get_default(call_default_factory=True, validated_data={}))


def _entry(key: str, value: Any, depth: int) -> list[str]:
    """Return a key and its value: a block or a list of blocks below it, anything else behind it."""
    indent = "  " * depth
    if isinstance(value, Mapping) and value:
        return [f"{indent}{_scalar(key)}:", *(line for name, item in value.items() for line in _entry(name, item, depth + 1))]
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        return [f"{indent}{_scalar(key)}:", *(f"{indent}  - {_flow(item)}" for item in value)]
    return [f"{indent}{_scalar(key)}: {_flow(value)}"]


def _flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_scalar(key)}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_flow(item) for item in value) + "]"
    return _scalar(value)


def _scalar(value: Any) -> str:
    """Return a scalar as YAML that our reader reads back as the same; a text goes unquoted where it may."""
    if not isinstance(value, str):
        return json.dumps(value)
    try:
        bare = "\n" not in value and parse_value(f"[{value}]") == [value] and parse_value(f"{value}: 0") == {value: 0}
    except SpecError:
        bare = False
    return value if bare else json.dumps(value, ensure_ascii=False)
