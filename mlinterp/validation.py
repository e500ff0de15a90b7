"""The dry run: everything about a spec that can be refused without running it, every step and every cell of a sweep included.

1. type       a known experiment type
2. variables  valid in the type's own model, and a file of prompt pairs that they name is there and holds pairs
3. inputs     roles that the type takes, the required ones present; `@step` names a step that produces the role
4. subject    a name from the project, where the type needs one
5. hypothesis one that the project's `hypotheses.yaml` declares is known; any other is looked up when the spec runs
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from pydantic import ValidationError

from mlinterp.errors import SpecError
from mlinterp.execution.inputs import check_domain, check_roles, kind_of, with_defaults
from mlinterp.experiments import catalog
from mlinterp.experiments.base import Variables
from mlinterp.hypotheses.declared import read_declared
from mlinterp.io.digests import canonical_json
from mlinterp.project import LoadedSpec, Project
from mlinterp.refusals import from_validation
from mlinterp.spec import MAX_CELLS, Spec, Step
from mlinterp.subjects.pairs_declared import read_pairs

MAX_EXPANDED_BYTES = 8 * 2**20
"""Variables of all cells together, as canonical JSON: a sweep over a huge block would take minutes to look through."""


@dataclass(frozen=True)
class Checked:
    """A spec that passed.

    Attributes:
        type: its experiment type by its own name, or `study`.
        subjects: every subject it names, sorted.
        n_steps: steps of a study; 1 for any other spec.
        n_cells: runs that hold an experiment: cells of sweeps count, their parents do not.
        sha256: digest of what is asked.
        looked_up: the hypotheses of which only the store can say whether there are such.
    """

    type: str
    subjects: tuple[str, ...]
    n_steps: int
    n_cells: int
    sha256: str
    looked_up: tuple[str, ...] = ()

    def line(self) -> str:
        """Return the outcome in one line."""
        shape = [f"{self.n_steps} steps"] if self.type == "study" else []
        shape += [f"{self.n_cells} {'cell' if self.n_cells == 1 else 'cells'}"]
        later = [f"hypothesis {name}: looked up when it runs" for name in self.looked_up]
        return "  ".join([self.type, ", ".join(self.subjects) or "no subject", *shape, self.sha256[:12], *later])


def check(loaded: LoadedSpec, project: Project) -> Checked:
    """Check a spec that was read from a file. Raises SpecError with file and line for the first thing wrong."""
    try:
        return check_spec(loaded.spec, project)
    except SpecError as error:
        raise loaded.place(error) from None


def check_spec(spec: Spec, project: Project) -> Checked:
    """Check a spec. Raises SpecError for the first thing wrong."""
    spec.require_standalone()
    spec = with_defaults(spec, project)
    runs, read = list(_runs(spec)), set[str]()
    for run in runs:
        with _blaming(run.field, run.swept):
            _check_run(with_defaults(run.spec, project), project, read)
    for index, step in enumerate(spec.steps):
        with _blaming(f"steps.{index}", ()):
            _check_wiring(step, spec)
    kind = spec.type if spec.is_study else catalog.find(spec.type).type
    subjects = sorted({run.spec.subject for run in runs if run.spec.subject})
    looked_up = sorted(spec.hypotheses() - read_declared(project).keys())
    return Checked(kind, tuple(subjects), len(spec.steps) or 1, len(runs), spec.sha256(), tuple(looked_up))


class _Run(NamedTuple):
    """A spec that runs one experiment."""

    field: str
    """Dotted field of the block that declares it: empty, or a step."""
    swept: Collection[str]
    """Keys of the matrix whose cell it is."""
    spec: Spec


def _runs(spec: Spec, field: str = "") -> Iterator[_Run]:
    blocks: list[Spec | Step] = [*spec.steps] or [spec]
    n_cells = sum(math.prod(len(values) for values in block.matrix.values()) for block in blocks)
    if n_cells > MAX_CELLS:
        raise SpecError(f"{n_cells} runs in one spec", field=field or None, allowed=f"at most {MAX_CELLS}")
    if spec.is_study:
        for index, step in enumerate(spec.steps):
            with _blaming(f"steps.{index}", ()):
                own = spec.step_spec(step)
            yield from _runs(own, f"steps.{index}")
    elif spec.is_sweep:
        if n_cells * len(canonical_json(spec.variables)) > MAX_EXPANDED_BYTES:
            raise SpecError(
                f"{n_cells} cells of so large a block", field=f"{field}.variables".strip("."), allowed="sweep over smaller variables"
            )
        with _blaming(field, spec.matrix):
            yield from (_Run(field, spec.matrix, cell) for _, cell in spec.cells())
    else:
        yield _Run(field, (), spec)


def _check_run(spec: Spec, project: Project, read: set[str]) -> None:
    experiment = catalog.find(spec.type)
    _check_pairs(catalog.typed_variables(spec), project, read)
    check_roles(spec, experiment)
    if spec.subject is not None:
        project.subject_config(spec.subject)
    check_domain(spec, experiment, project)


def _check_pairs(variables: Variables, project: Project, read: set[str]) -> None:
    """Refuse a file of prompt pairs that is missing or holds something else; each file is `read` once, however many cells name it."""
    pairs = getattr(variables, "pairs", None)
    if isinstance(pairs, str) and pairs not in read:
        read_pairs(pairs, project.root)
        read.add(pairs)


def _check_wiring(step: Step, study: Spec) -> None:
    """Refuse an input from a step that does not produce it."""
    for role, reference in step.inputs.items():
        if not reference.startswith("@"):
            continue
        source = next(other for other in study.steps if other.name == reference[1:])
        made = catalog.find(source.type).produces
        if source.matrix:
            raise SpecError(f"step '{source.name}' is a sweep, of which no cell is the one", field=f"inputs.{role}")
        if made != kind_of(role):
            what = f"a {made}" if made else "nothing that another step takes"
            fitting = [f"@{other.name}" for other in study.steps if catalog.find(other.type).produces == kind_of(role) and not other.matrix]
            allowed = f"allowed: {', '.join(fitting)}" if fitting else f"no step of this study makes a {role}"
            raise SpecError(f"step '{source.name}' ({source.type}) makes {what}", field=f"inputs.{role}", allowed=allowed)


@contextmanager
def _blaming(field: str, swept: Collection[str]) -> Iterator[None]:
    """Say of what goes wrong inside where in the file it was declared: below `field`, and in the matrix where a cell set the value."""
    try:
        yield
    except ValidationError as error:
        raise _moved(from_validation(error, model=Spec), field, swept) from None
    except SpecError as error:
        raise _moved(error, field, swept) from None


def _moved(error: SpecError, field: str, swept: Collection[str]) -> SpecError:
    if error.file is not None:  # about a line of a file that the spec names
        return error
    name = error.field or ""
    for key in swept:
        set_by_cell = key if key in {"seed", "subject", "feature_id"} or key.startswith(("inputs.", "variables.")) else f"variables.{key}"
        if name == set_by_cell or name.startswith(f"{set_by_cell}."):
            name = f"matrix.{key}"
    return SpecError(error.problem, field=".".join(filter(None, (field, name))) or None, allowed=error.allowed, nearest=error.nearest)
