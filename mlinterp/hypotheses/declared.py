"""Hypotheses that a project declares in its `hypotheses.yaml`, so that a claim is written down where its specs are.

    h001:
      claim: The answer of a puzzle lives in z_H from the last supervision step on.
      prediction: Taking z_H from another puzzle changes more than half of the cells.
      refuted_by: Taking z_L from another puzzle changes as many.
      requires: [necessity, sufficiency]
    h002: {claim: One latent of z_H writes one digit., parent: h001}

The ids are the project's own. A parent that the file does not declare is looked up among the project's hypotheses when they are opened.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from mlinterp.errors import SpecError
from mlinterp.hypotheses.records import Declaration
from mlinterp.io.specfile import Document, read_document
from mlinterp.project import Project, as_named
from mlinterp.refusals import from_validation, shown
from mlinterp.spec import HypothesisId

HYPOTHESES_FILE = "hypotheses.yaml"
_ID = re.compile(typing.get_args(HypothesisId)[1].pattern)


@dataclass(frozen=True, eq=False)
class DeclaredHypotheses(Mapping[str, Declaration]):
    """What a `hypotheses.yaml` declares, by id: in the order of the file, but every parent before its children.

    Attributes:
        declarations: the claims.
        document: the file; None where the project has none.
    """

    declarations: Mapping[str, Declaration] = field(default_factory=dict)
    document: Document | None = None

    def __getitem__(self, name: str) -> Declaration:
        return self.declarations[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.declarations)

    def __len__(self) -> int:
        return len(self.declarations)

    def place(self, error: SpecError) -> SpecError:
        """Return an error about a declared id, or a field of it, with the file and its line; any other as it is."""
        here = (error.field or "").partition(".")[0] in self.declarations
        return self.document.place(error) if self.document is not None and here else error


def read_declared(project: Project) -> DeclaredHypotheses:
    """Read what a project declares; nothing where it has no `hypotheses.yaml`. Raises SpecError with file and line."""
    path = project.root / HYPOTHESES_FILE
    if not path.exists():
        return DeclaredHypotheses()
    document = read_document(as_named(path))
    try:
        found = {name: _declaration(name, block) for name, block in document.data.items()}
        order = parents_first({name: declared.parent for name, declared in found.items()})
        return DeclaredHypotheses({name: found[name] for name in order}, document)
    except SpecError as error:
        raise document.place(error) from None


def declare(block: Mapping[str, Any], prefix: str = "") -> Declaration:
    """Return plain values as a Declaration. Raises SpecError for the first thing wrong, with its field below `prefix`."""
    try:
        return Declaration.model_validate(block)
    except ValidationError as error:
        raise from_validation(error, model=Declaration, prefix=prefix) from None


def successor(old: Declaration, block: Mapping[str, Any]) -> Declaration:
    """Return the claim that takes an older one's place: about the same and judged alike, unless `block` says otherwise."""
    kept = old.model_dump(include={"level", "requires", "alpha", "feature_id", "subject"})
    return declare({**kept, **block})


def _declaration(name: str, block: Any) -> Declaration:
    if not _ID.fullmatch(name):
        raise SpecError(f"'{name[:60]}' is no id of a hypothesis", field=name, allowed="a hypothesis is h and 3 to 9 digits, such as h001")
    if not isinstance(block, Mapping):
        raise SpecError(f"{shown(block)} is not a block of keys", field=name, allowed="expected `claim: …` and what belongs to it")
    return declare(block, name)


def parents_first(parents: Mapping[str, str | None]) -> Iterator[str]:
    """Yield each id once, after its parent. Raises SpecError for a circle.

    >>> list(parents_first({"h002": "h001", "h001": None, "h003": "h009"}))
    ['h001', 'h002', 'h003']
    """
    done = set[str]()
    for name in parents:
        line = [name]
        while (parent := parents[line[-1]]) is not None and parent in parents and parent not in done:
            if parent in line:
                circle = " -> ".join([*line[line.index(parent) :], parent])
                raise SpecError(f"{circle} is a circle", field=f"{line[-1]}.parent", allowed="a parent came before its children")
            line.append(parent)
        yield from (other for other in reversed(line) if other not in done)
        done.update(line)
