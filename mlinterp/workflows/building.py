"""How a workflow becomes a study: its parts, the ones that are asked for, and what they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlinterp.errors import SpecError, unknown
from mlinterp.experiments import catalog
from mlinterp.project import parse_spec
from mlinterp.spec import Spec
from mlinterp.type_functions import plain


@dataclass(frozen=True)
class Part:
    """A step that a workflow can have.

    Attributes:
        name: its name in `steps`.
        type: the experiment type that it runs.
        variables: what the workflow says of it.
        usual: what it says of it unless it is asked for something else.
        inputs: references by role, `@NAME` for what an earlier part makes.
        by_default: whether it is a step where none are named.
        missing: what it cannot do without and was not given; None where nothing is missing.
    """

    name: str
    type: str
    variables: Mapping[str, Any]
    inputs: Mapping[str, str] = field(default_factory=dict)
    by_default: bool = True
    missing: str | None = None
    usual: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Shared:
    """What all workflows take.

    Attributes:
        subject: a subject of the project.
        inputs: references by role, for every step whose type takes the role, such as `subject: latest`.
        variables: further variables, for every step whose type has them, such as `align` or `n_bootstrap`.
        hypothesis: the hypothesis that the study is evidence for.
        expect: predictions about numbers of the study, such as `patch_attn/top.adjusted_effect`.
        seed: seed of every random draw.
    """

    subject: str
    inputs: Mapping[str, str] | None = None
    variables: Mapping[str, Any] | None = None
    hypothesis: str | None = None
    expect: Sequence[Mapping[str, Any]] = ()
    seed: int = 0


def study_of(workflow: str, about: str, parts: Sequence[Part], steps: Sequence[str] | None, shared: Shared) -> Spec:
    """Return the study of the chosen parts, in the workflow's own order.

    Raises SpecError for an unknown step, for one without what it needs, and for an input or a variable that no step takes.
    """
    chosen = _chosen(workflow, parts, steps)
    inputs, variables = dict(shared.inputs or {}), dict(shared.variables or {})
    for role in inputs:
        taken = {each for part in chosen for each in catalog.find(part.type).inputs}
        if role not in taken:
            raise unknown("inputs", role, sorted(taken), what="input of these steps")
    fields = {part.name: catalog.find(part.type).Variables.model_fields for part in chosen}
    for name in variables:
        owner = next((part.name for part in chosen if name in part.variables), None)
        if owner is not None:
            problem = f"{name} is set by the step '{owner}' itself"
            raise SpecError(problem, field="variables", allowed="write the study to a file and change it there")
        if not any(name in each for each in fields.values()):
            raise unknown("variables", name, sorted({each for known in fields.values() for each in known}), what="variable of these steps")
    written = []
    for part in chosen:
        taken_here = {role: each for role, each in inputs.items() if role in catalog.find(part.type).inputs}
        own = {**part.variables, **part.usual, **{name: value for name, value in variables.items() if name in fields[part.name]}}
        step = {"name": part.name, "type": part.type, "inputs": {**taken_here, **part.inputs}, "variables": own}
        written.append({key: value for key, value in step.items() if value})
    study = {"type": "study", "subject": shared.subject, "description": about, "seed": shared.seed, "steps": written}
    study |= {"hypothesis": shared.hypothesis} if shared.hypothesis is not None else {}
    study |= {"expect": list(shared.expect)} if shared.expect else {}
    return parse_spec(plain(study))


def _chosen(workflow: str, parts: Sequence[Part], steps: Sequence[str] | None) -> list[Part]:
    if steps is None:
        return [part for part in parts if part.by_default and part.missing is None]
    names = [part.name for part in parts]
    if isinstance(steps, str) or not steps:
        raise SpecError("must be a list of at least one step", field="steps", allowed=f"allowed: {', '.join(names)}")
    for name in steps:
        if name not in names:
            raise unknown("steps", str(name), names, what=f"step of {workflow}")
        if list(steps).count(name) > 1:
            raise SpecError(f"names '{name}' twice", field="steps")
    chosen = [part for part in parts if part.name in steps]
    for part in chosen:
        if part.missing is not None:
            raise SpecError(f"'{part.name}' needs {part.missing}", field="steps", allowed="add it, or leave the step out")
        source = next((each[1:] for each in part.inputs.values() if each.startswith("@") and each[1:] not in steps), None)
        if source is not None:
            raise SpecError(
                f"'{part.name}' takes what '{source}' makes", field="steps", allowed=f"add '{source}', or leave '{part.name}' out"
            )
    return chosen
