"""Projects: a folder with `project.yaml`, which names the subjects that its specs speak of; and the way from a spec file to a Spec.

    name: trm_sudoku
    description: What a small recursive model computes on the way to a solved grid.
    subjects:
      trm4: {kind: trm, task: {name: sudoku4}}
      mine: {kind: factory, factory: "subject.py:build", options: {width: 8}}

A `factory` is a Python function of the project's own, `(name, options, root) -> Subject`. It is named here and never in a spec, so
that a spec from a stranger runs no code of theirs.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, Field, PrivateAttr, ValidationError

from mlinterp.errors import SpecError, unknown
from mlinterp.frozen import Frozen
from mlinterp.gates import Alias, Gate
from mlinterp.io.digests import sha256_file
from mlinterp.io.pyfile import FunctionName, load_function
from mlinterp.io.specfile import Document, read_document
from mlinterp.refusals import from_validation
from mlinterp.spec import Name, Prose, Spec

if TYPE_CHECKING:
    from mlinterp.subjects.base import Subject
    from mlinterp.subjects.token_sets.package import DataPackage

PROJECT_FILE = "project.yaml"


class FactoryConfig(Frozen):
    """A subject that the project's own Python builds."""

    kind: Literal["factory"] = "factory"
    factory: FunctionName = Field(description="file inside the project and function in it, such as subject.py:build")
    options: dict[str, Any] = Field({}, description="passed to the function as they are")


_KINDS: Mapping[str, tuple[str, str, str]] = {
    "huggingface": ("mlinterp.subjects.huggingface_config", "HuggingFaceConfig", "mlinterp.subjects.huggingface"),
    "trm": ("mlinterp.subjects.trm_config", "TRMConfig", "mlinterp.subjects.trm"),
    "token_set": ("mlinterp.subjects.token_sets.config", "TokenSetConfig", "mlinterp.subjects.token_sets.subject"),
}
"""Kind of a subject to the module and class of its settings (torch-free) and the module that builds it (imported only then)."""


class Project(Frozen):
    """A project file."""

    name: Name
    description: Prose = ""
    subjects: dict[Name, dict[str, Any]] = Field({})
    gates: dict[Alias, list[Gate]] = Field({})
    _document: Document = PrivateAttr()
    _configs: dict[str, BaseModel] = PrivateAttr(default_factory=dict)

    @property
    def root(self) -> Path:
        """The project's folder, absolute; what the file names lies below it."""
        return self._document.path.resolve().parent

    @property
    def workspace(self) -> Path:
        """The folder that holds the store and what runs leave behind."""
        return find_workspace(self.root)

    def subject_config(self, name: str) -> dict[str, Any]:
        """Return a subject's settings, complete with defaults, as JSON values. Raises SpecError with the nearest name."""
        return self._config(name).model_dump(mode="json")

    def subject_identity(self, name: str) -> dict[str, Any]:
        """Return what a subject's behaviour depends on besides its weights: its settings, and digests of the project's files in them.

        Where a setting names a Python file of the project, every Python file of the project counts, and every file whose path in the
        project is a string in one of them; so does a file named in `options`. What specs take where they name nothing themselves does
        not count, nor does the rest of the project file: a run's inputs and the settings count by themselves.
        """
        config = {key: value for key, value in self.subject_config(name).items() if key != "inputs"}
        python = list(self.root.rglob("*.py")) if _runs_python(config) else []
        named = {*_named_files(config.get("options"), self.root), *_named_files(_strings_in(python), self.root)}
        own = sorted({*python, *named} - {self.root / PROJECT_FILE})
        return {**config, "files": {path.relative_to(self.root).as_posix(): sha256_file(path) for path in own}} if own else config

    def named_files(self, variables: Any) -> dict[str, str]:
        """Return the digest of every file of the project that a spec's variables name, alone or as `FILE.py:FUNCTION`.

        A Python file may import its neighbours, so all of the project's Python files count with it.
        """
        names = [found[1] for text in _texts_in(variables) if (found := re.fullmatch(r"([\w./-]{1,200}\.\w{1,16})(:\w+)?", text))]
        named = set(_named_files(names, self.root))
        if any(path.suffix == ".py" for path in named):
            named.update(self.root.rglob("*.py"))
        return {path.relative_to(self.root).as_posix(): sha256_file(path) for path in sorted(named)}

    def default_inputs(self, name: str) -> Mapping[str, str]:
        """Return what specs on a subject take where they name none themselves, by role."""
        found: dict[str, str] = self.subject_config(name).get("inputs", {})
        return found

    def starts_untrained(self, name: str) -> bool | None:
        """Return whether a subject's weights are random where no input brings trained ones; None where its settings do not say."""
        return getattr(self._config(name), "initial_weights", None)

    def token_set_subjects(self) -> list[str]:
        """Return the names of the subjects whose input is a set of tokens, in their order."""
        return [name for name, config in self._configs.items() if getattr(config, "kind", None) == "token_set"]

    def data_package(self, name: str) -> DataPackage:
        """Return a token-set subject's data package, without its model. Raises SpecError for a subject of another kind."""
        from mlinterp.subjects.token_sets.config import TokenSetConfig
        from mlinterp.subjects.token_sets.package import load_package

        config = self._config(name)
        if not isinstance(config, TokenSetConfig):
            kind = getattr(config, "kind", "other")
            allowed = f"subjects of kind token_set: {', '.join(self.token_set_subjects()) or 'none'}"
            raise SpecError(f"'{name}' is a {kind} subject, and this type is about token sets", field="subject", allowed=allowed)
        try:
            return load_package(name, config, self.root)
        except SpecError as error:
            raise self._document.place(error) from error

    def load_subject(self, name: str) -> Subject:
        """Build a subject. Raises SpecError for an unknown one and for a factory that is not there or returns something else."""
        config = self._config(name)
        try:
            if isinstance(config, FactoryConfig):
                return self._made(name, config)
            _, _, builder = _KINDS[str(config.kind)]  # type: ignore[attr-defined]
            subject: Subject = importlib.import_module(builder).build(name, config, self.root)
        except SpecError as error:
            raise self._document.place(error) from error
        return subject

    def _config(self, name: str) -> BaseModel:
        if name not in self._configs:
            raise unknown("subject", name, self._configs, what="subject")
        return self._configs[name]

    def _made(self, name: str, config: FactoryConfig) -> Subject:
        from mlinterp.subjects.base import Subject

        field = f"subjects.{name}.factory"
        subject = load_function(self.root, config.factory, field)(name, dict(config.options), self.root)
        if not isinstance(subject, Subject):
            problem = f"{config.factory} returned a {type(subject).__name__}"
            raise SpecError(problem, field=field, allowed="expected a mlinterp.subjects.base.Subject")
        return subject


@dataclass(frozen=True)
class LoadedSpec:
    """A spec and the file that it was read from.

    Attributes:
        spec: what is asked.
        document: the file as it was written.
        overrides: values from the command line that took the file's place, by dotted field.
    """

    spec: Spec
    document: Document
    overrides: Mapping[str, Any]

    def place(self, error: SpecError) -> SpecError:
        """Return an error with file and line, or with `--set` where the command line gave the value."""
        return _place(error, self.document, self.overrides)


def load_spec(path: str | os.PathLike[str], overrides: Mapping[str, Any] | None = None) -> LoadedSpec:
    """Read a spec file and validate its envelope.

    Args:
        path: the file.
        overrides: values that take the place of the file's, by dotted field such as `variables.k` or `steps.0.seed`.

    Raises:
        SpecError: the first thing wrong, with file and line.
    """
    document, overrides = read_document(path), dict(overrides or {})
    try:
        return LoadedSpec(parse_spec(override(document.data, overrides)), document, overrides)
    except SpecError as error:
        raise _place(error, document, overrides) from None


def parse_spec(data: Mapping[str, Any]) -> Spec:
    """Return plain data as a Spec. Raises SpecError for the first thing wrong."""
    try:
        return Spec.model_validate(data)
    except ValidationError as error:
        raise from_validation(error, model=Spec) from None


def override(data: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of plain data in which dotted fields have new values; blocks that are missing on the way are made.

    >>> override({"variables": {"k": 4}}, {"variables.k": 8, "variables.sae.d": 2})
    {'variables': {'k': 8, 'sae': {'d': 2}}}
    """
    result: Any = _copy(data)
    for field, value in values.items():
        *above, leaf = field.split(".")
        target: Any = result
        for part in above:
            target = target.setdefault(part, {}) if isinstance(target, dict) else target[_index(target, part, field)]
        if isinstance(target, dict):
            target[leaf] = value
        else:
            target[_index(target, leaf, field)] = value
    return dict(result)


def find_project(start: str | os.PathLike[str]) -> Project:
    """Return the project that a spec file or folder belongs to: the nearest `project.yaml` up to the workspace's root.

    Raises SpecError where there is none, and for the first thing wrong with it.
    """
    found = _project_file(start)
    if found is None:
        problem = f"no {PROJECT_FILE} in {as_named(_folder(start))} or above it"
        raise SpecError(problem, allowed="a spec lies in a project: a folder whose project.yaml has `name` and `subjects`")
    return read_project(found)


def choose_project(where: str | None) -> Project:
    """Return the project that a person means.

    Args:
        where: the name of a folder below `projects/`, or a path inside a project; None: the project around the working folder, else
            the only one below `projects/`.

    Raises SpecError where none or several are meant, with the projects that there are and the nearest.
    """
    names, shelf = project_names(), _shelf()
    if where in names:
        return read_project(shelf / where / PROJECT_FILE)
    if where is not None and not Path(where).exists():
        raise unknown("--project", where, names, what="project")
    if where is None and names and _project_file(".") is None:
        if len(names) > 1:
            raise SpecError(f"there are {len(names)} projects", field="--project", allowed=f"name one: {', '.join(names)}")
        return read_project(shelf / names[0] / PROJECT_FILE)
    return find_project(where or ".")


def project_names() -> list[str]:
    """Return the names of the projects below `projects/` in the workspace around the working folder."""
    return sorted(path.parent.name for path in _shelf().glob(f"*/{PROJECT_FILE}"))


def _shelf() -> Path:
    return find_workspace(".") / "projects"


def _project_file(start: str | os.PathLike[str]) -> Path | None:
    folder = _folder(start)
    workspace = find_workspace(folder)
    for candidate in (folder, *folder.parents):
        if (candidate / PROJECT_FILE).is_file():
            return candidate / PROJECT_FILE
        if candidate == workspace:
            break
    return None


def read_project(path: Path) -> Project:
    """Read and validate a project file, every subject included. Raises SpecError with file and line."""
    document = read_document(as_named(path))
    try:
        project = Project.model_validate(document.data)
        configs = {name: _subject_config(name, block) for name, block in project.subjects.items()}
    except ValidationError as error:
        raise document.place(from_validation(error, model=Project)) from None
    except SpecError as error:
        raise document.place(error) from None
    project._document = document
    project._configs = configs
    return project


def find_workspace(start: str | os.PathLike[str]) -> Path:
    """Return the nearest folder at or above `start` that has `MLproject`, `projects/` or `pyproject.toml`; else `start`'s folder."""
    folder = _folder(start)
    for candidate in (folder, *folder.parents):
        if (candidate / "MLproject").is_file() or (candidate / "projects").is_dir() or (candidate / "pyproject.toml").is_file():
            return candidate
    return folder


def as_named(path: Path) -> Path:
    """Return a path as seen from the working folder where it lies below it, since that is how people name it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _subject_config(name: str, block: Mapping[str, Any]) -> BaseModel:
    prefix = f"subjects.{name}"
    kinds, kind = [*_KINDS, "factory"], block.get("kind")
    if kind is None:
        raise SpecError("is missing", field=f"{prefix}.kind", allowed=f"allowed: {', '.join(kinds)}")
    if kind not in kinds:
        raise unknown(f"{prefix}.kind", str(kind), kinds, what="kind of subject")
    model: type[BaseModel] = FactoryConfig
    if kind != "factory":
        module, class_name, _ = _KINDS[kind]
        model = getattr(importlib.import_module(module), class_name)
    try:
        return model.model_validate(block)
    except ValidationError as error:
        raise from_validation(error, model=model, prefix=prefix) from None


def _runs_python(config: Mapping[str, Any]) -> bool:
    """Whether a subject's settings name a Python file of the project."""
    network = config.get("network")
    return bool(config.get("factory") or config.get("package") or (isinstance(network, Mapping) and network.get("factory")))


def _strings_in(python: list[Path]) -> list[str]:
    """Return what stands between quotes in Python files, where it could be the name of a file."""
    texts = (path.read_text(encoding="utf-8", errors="replace") for path in python)
    return sorted({found for text in texts for found in re.findall(r"""["']([\w./-]{1,200}\.\w{1,16})["']""", text)})


def _texts_in(value: Any) -> list[str]:
    """Return every string inside nested blocks."""
    if isinstance(value, Mapping | list | tuple):
        return [text for item in (value.values() if isinstance(value, Mapping) else value) for text in _texts_in(item)]
    return [value] if isinstance(value, str) else []


def _named_files(options: Any, root: Path) -> list[Path]:
    """Return the project's files that options name."""
    if isinstance(options, Mapping | list):
        values = options.values() if isinstance(options, Mapping) else options
        return [path for value in values for path in _named_files(value, root)]
    if not isinstance(options, str) or not options or len(options) > 300 or os.path.isabs(options):
        return []
    path = (root / options).resolve()
    return [path] if path.is_relative_to(root) and path.is_file() else []


def _place(error: SpecError, document: Document, overrides: Mapping[str, Any]) -> SpecError:
    field = error.field or ""
    if any(field == given or field.startswith(f"{given}.") for given in overrides):
        return error.at("--set")
    return document.place(error)


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


def _index(target: Any, part: str, field: str) -> int:
    if not isinstance(target, list):
        raise SpecError(f"'{part}' lies below a value that is no block", field=field)
    if not part.isdecimal() or int(part) >= len(target):
        raise SpecError(
            f"'{part}' is no entry of a list of {len(target)}", field=field, allowed=f"0 to {len(target) - 1}" if target else None
        )
    return int(part)


def _folder(start: str | os.PathLike[str]) -> Path:
    path = Path(start).resolve()
    return path if path.is_dir() else path.parent
