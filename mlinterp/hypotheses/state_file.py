"""State files: what is believed about one latent of one model, as `mechinterp-runner` keeps it in `feature_{id}_{model}.json`.

There, a person sets status and confidence; here they follow from evidence. So a state file is read and written (`exchange`), and what
it says beyond its claims is kept as it is.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from mlinterp.errors import SpecError
from mlinterp.hypotheses.records import Status
from mlinterp.io.atomic import write_text
from mlinterp.io.specfile import read_document
from mlinterp.refusals import from_validation
from mlinterp.spec import Name

MAX_BYTES = 4 * 2**20


def _moment(text: str) -> str:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"'{text[:60]}' is no date and time, such as 2026-01-31T12:00:00") from None
    return text


Moment = Annotated[str, StringConstraints(max_length=64), AfterValidator(_moment)]
"""Date and time in ISO 8601, kept as it was written: with a time zone or without."""
Sentence = Annotated[str, StringConstraints(min_length=10)]
StateHypothesisId = Annotated[str, StringConstraints(pattern=r"^h[0-9]{3,}$")]
EvidenceId = Annotated[str, StringConstraints(pattern=r"^e[0-9]{3,}$")]


class _Part(BaseModel):
    """A part of a state file. Keys that the format does not have are passed over, as its own reader does."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, allow_inf_nan=False)


class StateHypothesis(_Part):
    """A claim about the latent."""

    id: StateHypothesisId
    statement: Sentence
    status: Status = "proposed"
    confidence: float = Field(0.5, ge=0, le=1)
    supporting_evidence: list[str] = []
    refuting_evidence: list[str] = []
    parent_hypothesis: str | None = None
    tags: list[str] = []
    created_at: Moment
    updated_at: Moment


class EvidenceItem(_Part):
    """What one experiment said."""

    id: EvidenceId
    experiment_id: str
    result_path: str
    summary: Sentence
    strength: Literal["strong", "moderate", "weak"] = "moderate"
    supports_hypotheses: list[str] = []
    refutes_hypotheses: list[str] = []
    key_metrics: dict[str, float] = {}
    timestamp: Moment


class HistoryEntry(_Part):
    """What was done to the state, such as `state_created`, `hypothesis_added`, `evidence_added`, `label_synced`."""

    timestamp: Moment
    action: str
    details: str
    spec_path: str | None = None
    result_path: str | None = None


class ResearchState(_Part):
    """What is believed about one latent."""

    feature_id: int = Field(ge=0)
    model_type: Name
    feature_label: str | None = None
    hypotheses: list[StateHypothesis] = []
    evidence_index: list[EvidenceItem] = []
    active_constraints: list[str] = ["one_rung_per_family"]
    known_pitfalls: list[str] = []
    history: list[HistoryEntry] = []
    notes: str = ""
    created_at: Moment
    updated_at: Moment

    def to_filename(self) -> str:
        """Return the file's usual name."""
        return f"feature_{self.feature_id}_{self.model_type}.json"

    def to_json(self) -> str:
        """Return the file's content."""
        return self.model_dump_json(indent=2) + "\n"

    def save(self, path: Path) -> Path:
        """Write the file, atomically."""
        return write_text(path, self.to_json())


def load_state(path: str | os.PathLike[str]) -> ResearchState:
    """Read a state file. Raises SpecError, with file and line, for the first thing wrong."""
    document = read_document(path, MAX_BYTES)
    try:
        state = ResearchState.model_validate(document.data)
        for part, items in (("hypotheses", state.hypotheses), ("evidence_index", state.evidence_index)):
            _refuse_twice(part, [item.id for item in items])
    except ValidationError as error:
        raise document.place(from_validation(error, model=ResearchState)) from None
    except SpecError as error:
        raise document.place(error) from None
    return state


def _refuse_twice(part: str, ids: list[str]) -> None:
    for index, name in enumerate(ids):
        if name in ids[:index]:
            raise SpecError(f"'{name}' is given twice", field=f"{part}.{index}.id")


def next_id(letter: str, taken: Mapping[str, Any]) -> str:
    """Return the id after the highest that is taken.

    >>> next_id("e", {"e001": 0, "e009": 0})
    'e010'
    """
    return f"{letter}{max((int(name[1:]) for name in taken), default=0) + 1:03d}"
