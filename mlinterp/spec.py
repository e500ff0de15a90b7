"""The spec: one experiment, declared.

A spec is frozen, refuses unknown keys and converts nothing silently. Its `variables` stay raw here; the experiment type gives
them their own typed model (`experiments.catalog`). Three shapes share the envelope: a single spec; a sweep (`matrix:` on any
spec); a study (`type: study`, named steps in order).
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, StringConstraints, model_validator

from mlinterp.errors import SpecError
from mlinterp.frozen import Frozen
from mlinterp.io.digests import sha256_json

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Prose = Annotated[str, StringConstraints(max_length=8000)]
HypothesisId = Annotated[str, StringConstraints(pattern=r"^h[0-9]{3,9}$")]
"""`h001`, `h002`, …: unique in a project."""
Reference = Annotated[
    str,
    StringConstraints(
        max_length=300,
        pattern=r"^(@[A-Za-z0-9][A-Za-z0-9_-]{0,63}|latest|run:[0-9a-f]{32}|"
        r"models:/[A-Za-z0-9][A-Za-z0-9_. -]{0,127}(@[A-Za-z0-9_-]{1,64}|/[0-9]{1,9}))$",
    ),
]
"""Where an input comes from: `@step` of the same study, `latest` finished run of this subject, `run:ID`, `models:/NAME@alias|/VERSION`."""

MAX_CELLS = 1000
"""Cells of one sweep; each is a run."""

MOST_PREDICTIONS = 16
"""Predictions of one run."""

SweepValue = str | int | float | bool | None | list[Any] | dict[str, Any]


class DatasetSlice(Frozen):
    """Which part of a dataset an experiment looks at: of token sets, which observed contexts (`token_sets.slicing`)."""

    split: Literal["train", "validation", "test"] = "test"
    percentile_min: float = Field(0.0, ge=0, le=100)
    percentile_max: float = Field(100.0, ge=0, le=100)
    activation_threshold: float | None = None
    weapon_filter: list[int | str] | None = Field(None, validation_alias=AliasChoices("weapon_filter", "group_filter"))
    weapon_exclude: list[int | str] | None = Field(None, validation_alias=AliasChoices("weapon_exclude", "group_exclude"))
    family_filter: list[str] | None = None
    sample_size: int | None = Field(None, gt=0)
    random_seed: int | None = 42

    @model_validator(mode="after")
    def _ordered(self) -> DatasetSlice:
        if self.percentile_max < self.percentile_min:
            raise ValueError(f"percentile_max {self.percentile_max:g} is below percentile_min {self.percentile_min:g}")
        return self


class Outputs(Frozen):
    """Which parts of a result are kept."""

    aggregates: bool = True
    tables: bool = True
    diagnostics: bool = True
    figures: bool = True


class Expectation(Frozen):
    """A prediction, declared before the run.

    `==` means within `tolerance` of the value. A claim that something is necessary and sufficient needs a prediction for each `role`:
    what destroys the answer when it is taken away need not bring it back alone.
    """

    metric: str = Field(max_length=250)
    op: Literal[">", ">=", "<", "<=", "=="]
    value: float
    tolerance: float = Field(0.0, ge=0)
    role: Literal["necessity", "sufficiency"] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Expectation:
        if self.tolerance and self.op != "==":
            raise ValueError(f"tolerance belongs to `==`, not to `{self.op}`")
        return self

    def __str__(self) -> str:
        around = f" ± {self.tolerance:g}" if self.tolerance else ""
        return f"{self.metric} {self.op} {self.value:g}{around}"


class Step(Frozen):
    """One named step of a study: a spec whose subject, seed and hypothesis default to the study's."""

    name: Name
    type: Name
    subject: Name | None = Field(None, validation_alias=AliasChoices("subject", "model_type"))
    feature_id: int | None = Field(None, ge=0)
    hypothesis: HypothesisId | None = Field(None, validation_alias=AliasChoices("hypothesis", "parent_hypothesis"))
    inputs: dict[Name, Reference] = Field({})
    variables: dict[str, Any] = Field({})
    dataset_slice: DatasetSlice = DatasetSlice()
    constraints: list[Name] = Field([])
    outputs: Outputs = Outputs()
    expect: list[Expectation] = Field([], max_length=MOST_PREDICTIONS)
    matrix: dict[str, list[SweepValue]] = Field({})
    seed: int | None = Field(None, ge=0, lt=2**63)
    description: Prose | None = None
    rationale: Prose | None = None


class Spec(Frozen):
    """The envelope of every spec."""

    id: Name | None = None
    type: Name
    subject: Name | None = Field(None, validation_alias=AliasChoices("subject", "model_type"))
    feature_id: int | None = Field(None, ge=0)
    hypothesis: HypothesisId | None = Field(None, validation_alias=AliasChoices("hypothesis", "parent_hypothesis"))
    inputs: dict[Name, Reference] = Field({})
    dataset_slice: DatasetSlice = DatasetSlice()
    variables: dict[str, Any] = Field({})
    constraints: list[Name] = Field([])
    outputs: Outputs = Outputs()
    expect: list[Expectation] = Field([], max_length=MOST_PREDICTIONS)
    matrix: dict[str, list[SweepValue]] = Field({}, max_length=8)
    steps: list[Step] = Field([], max_length=64)
    seed: int = Field(0, ge=0, lt=2**63)
    description: Prose | None = None
    rationale: Prose | None = None
    created_at: str | None = Field(None, max_length=64)

    @model_validator(mode="after")
    def _shape(self) -> Spec:
        if (self.type == "study") != bool(self.steps):
            raise ValueError("a study has steps and nothing else has: use `type: study` together with `steps:`")
        if self.type == "study" and (self.matrix or self.variables):
            raise ValueError("a study's variables and matrix belong to its steps")
        names = [step.name for step in self.steps]
        for index, step in enumerate(self.steps):
            if step.name in names[:index]:
                raise ValueError(f"two steps are named '{step.name}'")
            for role, reference in step.inputs.items():
                if reference.startswith("@") and reference[1:] not in names[:index]:
                    earlier = ", ".join(names[:index]) or "none"
                    raise ValueError(f"step '{step.name}' takes {role} from '{reference}', which is no earlier step ({earlier})")
        for key, values in self.matrix.items():
            if not values:
                raise ValueError(f"matrix.{key} is empty")
        if (n_cells := math.prod(map(len, self.matrix.values()))) > MAX_CELLS:
            raise ValueError(f"the matrix has {n_cells} cells; at most {MAX_CELLS}")
        return self

    @property
    def is_study(self) -> bool:
        """Whether this is a study."""
        return self.type == "study"

    @property
    def is_sweep(self) -> bool:
        """Whether this is a sweep: one parent, a child for each cell."""
        return bool(self.matrix)

    def require_standalone(self) -> None:
        """Refuse `@step` inputs on a spec that is no step of a study."""
        for role, reference in self.inputs.items():
            if reference.startswith("@"):
                raise SpecError(
                    f"'{reference}' names a step, and this spec is no study",
                    field=f"inputs.{role}",
                    allowed="`latest`, `run:ID` or `models:/NAME@alias`",
                )

    def subject_names(self) -> set[str]:
        """Return every subject that this spec, its steps or its cells name."""
        swept = [value for value in self.matrix.get("subject", []) if isinstance(value, str)]
        return {name for name in [self.subject, *swept, *(step.subject for step in self.steps)] if name}

    def hypotheses(self) -> set[str]:
        """Return every hypothesis that this spec or a step of it is evidence for."""
        return {name for name in [self.hypothesis, *(step.hypothesis for step in self.steps)] if name}

    def sha256(self) -> str:
        """Return the digest of what is asked: the canonical JSON without id, date and defaults, so that a new field changes no digest."""
        return sha256_json(self.model_dump(mode="json", exclude={"id", "created_at"}, exclude_defaults=True))

    def step_spec(self, step: Step) -> Spec:
        """Return a study's step as a spec of its own."""
        own = {key: value for key, value in step.model_dump(exclude={"name"}).items() if value is not None}
        inherited = {"subject": self.subject, "hypothesis": self.hypothesis, "seed": self.seed}
        return Spec.model_validate({**{k: v for k, v in inherited.items() if v is not None}, **own})

    def cells(self) -> Iterator[tuple[dict[str, SweepValue], Spec]]:
        """Yield each cell of a sweep with its spec. A key is `seed`, `subject`, `feature_id` or a path below `variables`.

        The sweep as a whole was predicted about, so no cell is a test of its own.
        """
        base = self.model_dump(exclude={"matrix", "id", "expect"})
        for values in itertools.product(*self.matrix.values()):
            cell = dict(zip(self.matrix, values, strict=True))
            data: dict[str, Any] = {**base, "variables": _deep_copy(base["variables"])}
            for key, value in cell.items():
                _assign(data, key, value)
            yield cell, Spec.model_validate(data)


def _deep_copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _deep_copy(item) for key, item in value.items()}
    return [_deep_copy(item) for item in value] if isinstance(value, list) else value


def _assign(data: dict[str, Any], key: str, value: SweepValue) -> None:
    if key in {"seed", "subject", "feature_id"} or key.startswith("inputs."):
        target, leaf = (data["inputs"], key.removeprefix("inputs.")) if key.startswith("inputs.") else (data, key)
    else:
        path = key.removeprefix("variables.").split(".")
        target = data["variables"]
        for part in path[:-1]:
            target = target.setdefault(part, {})
            if not isinstance(target, dict):
                raise SpecError(f"'{part}' is no block", field=f"matrix.{key}", allowed="a path below `variables`, through blocks only")
        leaf = path[-1]
    target[leaf] = _deep_copy(value)


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested blocks as dotted names; lists and scalars stay as they are.

    >>> flatten({"a": {"b": 1}, "c": [2]})
    {'a.b': 1, 'c': [2]}
    """
    if not isinstance(value, dict) or not value:
        return {prefix: value} if prefix else {}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat.update(flatten(item, f"{prefix}.{key}" if prefix else str(key)))
    return flat


def slug(text: str) -> str:
    """Return a text as a file or model name: `[a-z0-9._-]`, at most 64 characters."""
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-")[:64] or "x"
