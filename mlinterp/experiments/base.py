"""What an experiment type is, and what it is given.

An experiment is pure: typed variables, a subject, resolved inputs and a work folder in; an ExperimentResult out. It never meets
MLflow. The modules beside this one are imported to list the types, so they import torch only inside their `run`.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlinterp.frozen import Frozen
from mlinterp.progress import Reporter, Silent
from mlinterp.result import ExperimentResult, Mode
from mlinterp.spec import Spec

if TYPE_CHECKING:
    from mlinterp.subjects.base import Subject
    from mlinterp.subjects.token_sets.package import DataPackage


class Variables(Frozen):
    """Base of every type's `variables` block. Each field carries `description=`: help, schema and docs are made from it."""


@dataclass(frozen=True)
class ResolvedInput:
    """An input as files at hand.

    Attributes:
        reference: what the spec said, such as `@trace` or `models:/NAME@candidate`.
        path: local folder that holds the files under their fixed names (`trace.jsonl`, `sae.pt`, `subject/`).
        digest: SHA-256 of the input's content.
        run_id: the MLflow run it comes from, where it comes from one.
        model_id: the MLflow logged model it is, where it is one.
    """

    reference: str
    path: Path
    digest: str
    run_id: str | None = None
    model_id: str | None = None


@dataclass(frozen=True)
class Context:
    """Everything an experiment may use.

    Attributes:
        spec: the whole spec.
        variables: its variables in the type's own model.
        workdir: a durable folder of this run; what a stage left there before it was killed is found again on resume.
        load_subject: builds the subject (with trained weights where the spec's inputs name them).
        inputs: resolved inputs by role (`trace`, `sae`, …).
        reporter: step metrics and progress bars.
        root: the project's folder, for files that variables name.
    """

    spec: Spec
    variables: Any
    workdir: Path
    load_subject: Callable[[], Subject]
    inputs: Mapping[str, ResolvedInput] = field(default_factory=dict)
    reporter: Reporter = field(default_factory=Silent)
    root: Path | None = None

    @property
    def seed(self) -> int:
        """The spec's seed."""
        return self.spec.seed


@dataclass(frozen=True)
class Experiment:
    """One experiment type.

    Attributes:
        type: its name in a spec.
        summary: one line for `mlinterp types`.
        Variables: the typed model of its `variables`.
        run: does the work.
        example: a valid spec, as the plain data that `mlinterp new` writes with each field's description beside it.
        check: refuses, with SpecError, what only the whole spec and the roles of its inputs show to be wrong.
        check_domain: refuses, with SpecError, what only the data package of a token-set subject shows to be wrong; a type that has it is
            about such subjects alone.
        aliases: other accepted names.
        modes: whether it can observe, intervene or both.
        inputs: role to True where the input is required.
        needs_subject: whether the spec must name a subject.
        produces: the role its output plays as another step's input (`subject`, `trace`, `sae`), if any.
        headlines: metrics that a sweep over it is read by, where a run has them.
        frontiers: pairs of metrics that trade against each other: a sweep draws the second against the first.
        ranking: the table of what it found and the column by whose size its rows are ranked, for a type that ranks places, parts or edges.
    """

    type: str
    summary: str
    Variables: builtins.type[Variables]
    run: Callable[[Context], ExperimentResult]
    example: Mapping[str, Any]
    check: Callable[[Spec, Any, Collection[str]], None] | None = None
    check_domain: Callable[[Spec, Any, DataPackage], None] | None = None
    aliases: tuple[str, ...] = ()
    modes: tuple[Mode, ...] = ("observational",)
    inputs: Mapping[str, bool] = field(default_factory=dict)
    needs_subject: bool = True
    produces: str | None = None
    headlines: tuple[str, ...] = ()
    frontiers: tuple[tuple[str, str], ...] = ()
    ranking: tuple[str, str] | None = None
