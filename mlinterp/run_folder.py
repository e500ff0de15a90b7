"""A plain folder that a three-command study of a recurrent model lives in, beside the MLflow runs that record it.

DIR/project.yaml     the model as the only subject, `model`, of a project of its own
DIR/run.json         the MLflow runs: the parent, and one for each stage
DIR/subject/         the model's weights
DIR/trace.jsonl, states.npy, sae.pt, sae_metrics.json, report.json, interventions/   what the stages left, under fixed names
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlinterp.errors import SpecError, VerificationError, unknown
from mlinterp.execution.composite import earlier_children
from mlinterp.execution.session import Place, Session
from mlinterp.execution.summary import RunSummary
from mlinterp.experiments.base import ResolvedInput
from mlinterp.io.atomic import write_json, write_text
from mlinterp.io.digests import sha256_file
from mlinterp.progress import Reporter
from mlinterp.project import PROJECT_FILE, Project, find_project
from mlinterp.spec import Spec

BUILTIN: Mapping[str, dict[str, Any]] = {
    "sudoku4": {
        "subject": {
            "kind": "trm",
            "task": {"name": "sudoku4", "minimal": True, "n_train": 2000},
            "model": {"H_cycles": 2, "L_cycles": 2, "n_sup": 8},
        },
        "fit": {"steps": 400, "options": {"lr": 2e-3, "warmup_steps": 50}},
    },
    "sudoku6": {
        "subject": {
            "kind": "trm",
            "task": {"name": "sudoku6", "max_blanks": 18, "n_train": 4000},
            "model": {"H_cycles": 2, "L_cycles": 2, "n_sup": 8},
        },
        "fit": {"steps": 600, "options": {"lr": 2e-3, "warmup_steps": 50}},
    },
}
"""Models that are trained on first use, since no weights come with the package: the subject's settings and its fit's."""

FILES = {"subject": "subject/config.json", "trace": "trace.jsonl", "sae": "sae.pt"}
"""The file that shows that a stage's output is there."""


class RunFolder:
    """One folder. Raises SpecError where it holds something else."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self._record = self.folder / "run.json"

    def declare(self, model: str) -> dict[str, Any] | None:
        """Make `model` the folder's subject and return the fit that it still needs: `builtin:NAME`, or a folder with `subject/`.

        Raises SpecError for an unknown model and for a folder that belongs to another one.
        """
        kind, _, name = model.partition(":")
        if kind == "builtin":
            if name not in BUILTIN:
                raise unknown("--model", name, BUILTIN, what="built-in model")
            settings, fit = BUILTIN[name]["subject"], BUILTIN[name]["fit"]
        else:
            settings, fit = self._adopt(Path(model)), None
        text = json.dumps({"name": "trminterp", "subjects": {"model": settings}}, indent=2) + "\n"
        project = self.folder / PROJECT_FILE
        if project.is_file() and project.read_text() != text:
            raise SpecError(f"{self.folder} belongs to another model", field="--run-dir", allowed="use a folder of its own for each model")
        write_text(project, text)
        return fit

    def _adopt(self, source: Path) -> dict[str, Any]:
        """Take over the weights of a folder that a `subject_fit` wrote, and return the subject's settings."""
        config = source / "subject" / "config.json"
        if not config.is_file():
            raise SpecError(f"'{source}' holds no subject/config.json", field="--model", allowed="a folder with subject/, or builtin:NAME")
        stored = json.loads(config.read_text())
        if stored.get("kind") != "trm":
            raise SpecError(f"'{source}' holds a {stored.get('kind')} subject", field="--model", allowed="a recurrent model (trm)")
        for path in sorted((source / "subject").iterdir()):
            target = self.folder / "subject" / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
        return {"kind": "trm", **stored["config"]}

    @property
    def project(self) -> Project:
        """The project that the folder is. Raises SpecError before its first trace."""
        if not (self.folder / PROJECT_FILE).is_file():
            raise SpecError(f"{self.folder} holds no study yet", field="--run-dir", allowed="start with `trminterp trace`")
        return find_project(self.folder)

    def inputs(self, roles: list[str]) -> dict[str, ResolvedInput]:
        """Return the outputs of earlier stages as inputs. Raises SpecError, naming the command that makes it, for a missing one."""
        makes = {"subject": "trminterp trace", "trace": "trminterp trace", "sae": "trminterp sae fit"}
        runs = self._runs()
        found = {}
        for role in roles:
            path = self.folder / FILES[role]
            if not path.is_file():
                raise SpecError(f"{self.folder} holds no {role} yet", field="--run-dir", allowed=f"run `{makes[role]}` first")
            found[role] = ResolvedInput(f"run folder {self.folder.name}", self.folder, sha256_file(path), runs.get(role))
        return found

    def execute(self, role: str, spec: Spec, given: Mapping[str, ResolvedInput], reporter: Reporter, *, again: bool) -> RunSummary:
        """Run one stage below the folder's parent run (going on with it where it was interrupted) and bring its files here."""
        from mlinterp.run import execute
        from mlinterp.tracking import queries

        session = Session.open(self.project, reporter, again=again)
        parent = self._parent(session)
        earlier = earlier_children(session, parent).get((role, spec.sha256()))
        interrupted = earlier.info.run_id if earlier and earlier.info.status != "FINISHED" else None
        summary = execute(spec, session, Place(parent=parent, label=role, given=given, run_id=interrupted))
        files = [name for name in queries.manifest(session.store, summary.run_id)["files"] if _is_stage_file(name)]
        queries.fetch(session.store, summary.run_id, files, self.folder)
        write_json(self._record, {"schema": "trminterp.run.v0", "parent": parent, "runs": {**self._runs(), role: summary.run_id}})
        return summary

    def _parent(self, session: Session) -> str:
        """Return the parent run, made on first use. It holds nothing but its children, so it is finished as soon as it is there."""
        from mlinterp.tracking.life import RunLife

        known = self._read().get("parent")
        if isinstance(known, str):
            return known
        tags = {"mlinterp.kind": "study", "mlinterp.project": "trminterp"}
        with RunLife(session.store, session.experiment_id, f"trminterp · {self.folder.name}", tags, session.workspace) as life:
            write_json(self._record, {"schema": "trminterp.run.v0", "parent": life.run_id, "runs": {}})
        return life.run_id

    def _runs(self) -> dict[str, str]:
        return dict(self._read().get("runs", {}))

    def _read(self) -> dict[str, Any]:
        if not self._record.is_file():
            return {}
        try:
            return dict(json.loads(self._record.read_text()))
        except ValueError as error:
            raise VerificationError(f"{self._record}: damaged: {error}") from error


def _is_stage_file(name: str) -> bool:
    """Whether an artifact belongs to the folder's contract, rather than to the run's report in MLflow."""
    return not name.startswith(("tables/", "figures/")) and name not in {"result.json", "report.md", "report.html"}
