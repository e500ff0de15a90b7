"""The functions behind `import mlinterp`: the command line's verbs, for programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlinterp.errors import SpecError
from mlinterp.progress import Reporter
from mlinterp.spec import Spec

if TYPE_CHECKING:
    from mlinterp.execution.summary import RunSummary
    from mlinterp.sae.model import SAE
    from mlinterp.subjects.base import Subject
    from mlinterp.tracing.dataset import TraceDataset


def run_spec(
    spec: Path | str | Spec, *, project: Path | str | None = None, again: bool = False, reporter: Reporter | None = None
) -> RunSummary:
    """Execute a spec or study as an MLflow run.

    Args:
        spec: a spec file, or a Spec (then `project` is needed).
        project: the project's folder; found from the spec file's place where it is left out.
        again: compute even what an earlier run already answered.
        reporter: who listens to progress (nobody by default).

    Raises:
        SpecError: something declared is wrong; nothing was run.
        MlinterpError: the run has FAILED and says why.
    """
    from mlinterp import run
    from mlinterp.project import find_project, load_spec

    if isinstance(spec, Spec):
        if project is None:
            raise SpecError("a Spec without a file needs its project", field="project")
        return run.run(spec, project=find_project(Path(project)), again=again, reporter=reporter)
    path = Path(spec)
    loaded = load_spec(path)
    place = Path(project) if project is not None else path
    return run.run(loaded.spec, project=find_project(place), document=(loaded.document.text, path.suffix), again=again, reporter=reporter)


def validate_spec(path: Path | str) -> Spec:
    """Read a spec file and check everything that can be checked without running it; return the spec. Raises SpecError."""
    from mlinterp.project import find_project, load_spec
    from mlinterp.validation import check

    loaded = load_spec(Path(path))
    check(loaded, find_project(Path(path)))
    return loaded.spec


def resume_run(run_id: str, *, workspace: Path | str = ".", reporter: Reporter | None = None) -> RunSummary:
    """Go on with an interrupted run, named by its id or the beginning of it."""
    from mlinterp import run
    from mlinterp.project import find_workspace

    return run.resume(run_id, workspace=find_workspace(Path(workspace)), reporter=reporter)


def load_sae(reference: str | Path) -> SAE:
    """Load an SAE from the registry of the workspace around the current folder (`models:/NAME@alias`, `models:/NAME/VERSION`), or from
    its folder or file.
    """
    if str(reference).startswith("models:/"):
        from mlinterp.project import find_workspace
        from mlinterp.tracking.registry import load_sae as load_registered

        return load_registered(str(reference), workspace=find_workspace("."))
    from mlinterp.sae.checkpoint import load_sae as load_file

    return load_file(Path(reference))


def load_trace(path: Path | str) -> TraceDataset:
    """Load a trace from its folder or its `trace.jsonl`, verified."""
    from mlinterp.tracing.dataset import TraceDataset

    return TraceDataset.load(path)


def load_subject(project: Path | str, name: str, weights: Path | str | None = None) -> Subject:
    """Build a project's subject; `weights` is a folder that a `subject_fit` wrote."""
    from mlinterp.project import find_project
    from mlinterp.subjects.fit import load_weights

    subject: Any = find_project(Path(project)).load_subject(name)
    return load_weights(subject, Path(weights)) if weights is not None else subject
