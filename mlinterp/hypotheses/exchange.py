"""State files in and out: what `mechinterp-runner` believes becomes hypotheses here, and what was found here becomes its evidence.

In: a claim with the file's confidence as its confidence before any evidence. The file's own evidence has no interval and no null, so it
moves nothing; the whole file lies with each hypothesis that it brought in, as its artifact `state.json`.

Out: that file again, with what has happened here since: new claims, new evidence, and where there is any, status and confidence by
our rule. What was brought in and not touched goes out as it came.
"""

from __future__ import annotations

import math
import os
import re
import tempfile
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from mlinterp.errors import SpecError
from mlinterp.hypotheses import reading
from mlinterp.hypotheses.declared import declare, parents_first
from mlinterp.hypotheses.ledger import Ledger
from mlinterp.hypotheses.records import Declaration, Hypothesis, Ruling
from mlinterp.hypotheses.state_file import EvidenceItem, HistoryEntry, ResearchState, StateHypothesis, load_state, next_id
from mlinterp.tracking import links
from mlinterp.tracking.recorder import Recorder

STATE = "state.json"
_LONGEST_CLAIM = 1000
_LEAST_CONFIDENCE = 0.01
_STRONG, _MODERATE = 10.0, 5.0
"""Likelihood ratios, either way, from which evidence is called strong or moderate."""


def import_state(ledger: Ledger, path: str | os.PathLike[str]) -> dict[str, Hypothesis]:
    """Bring the claims of a state file in, and return ours by the file's ids. A claim that is here already is not brought in twice.

    Each keeps its id where that is free, else it gets the next free one. Raises SpecError with file and line for a file that is no
    state file or holds no claim.
    """
    state = load_state(path)
    theirs = {item.id: item for item in state.hypotheses}
    try:
        if not theirs:
            raise SpecError("holds no hypothesis", field="hypotheses")
        order = list(parents_first({name: item.parent_hypothesis for name, item in theirs.items()}))
    except SpecError as error:
        raise error.at(str(path)) from None
    here, brought = {there.id: there for there in ledger.all()}, dict[str, str]()
    for name in order:
        declared = _declared(state, theirs[name], brought.get(theirs[name].parent_hypothesis or ""))
        twin = _twin((there for there in here.values() if there.id not in brought.values()), declared, name)
        if twin is None:
            free = name not in here and name == f"h{int(name[1:]):03d}"
            origin = {"from": "imported", "file": Path(path).name, "id": name}
            twin = ledger.add(declared, id=name if free else None, origin=origin)
            here[twin.id] = twin
        brought[name] = twin.id
    for name, item in theirs.items():
        if item.status == "superseded":
            _supersede(ledger, brought[name], [brought[other.id] for other in state.hypotheses if other.parent_hypothesis == name])
    with tempfile.TemporaryDirectory() as folder:
        whole = state.save(Path(folder) / STATE)
        for there in brought.values():
            ledger.attach(there, whole)
    here = {there.id: there for there in ledger.all()}
    return {name: here[brought[name]] for name in theirs}


def _declared(state: ResearchState, item: StateHypothesis, parent: str | None) -> Declaration:
    """Return a claim of a state file as ours. What was claimed from observation alone is no causal claim."""
    tags = (re.sub(r"[^A-Za-z0-9_.-]+", "-", tag).strip("_.-")[:64] for tag in item.tags)
    return declare(
        {
            "claim": _claim(item.statement),
            "confidence": min(max(item.confidence, _LEAST_CONFIDENCE), 1 - _LEAST_CONFIDENCE),
            "level": "correlational",
            "parent": parent,
            "feature_id": state.feature_id,
            "subject": state.model_type,
            "tags": list(dict.fromkeys(filter(None, tags)))[:32],
        }
    )


def _claim(statement: str) -> str:
    return statement if len(statement) <= _LONGEST_CLAIM else statement[: _LONGEST_CLAIM - 1] + "…"


def _about(declared: Declaration) -> tuple[int | None, str | None, str]:
    return declared.feature_id, declared.subject, declared.claim


def _twin(among: Iterable[Hypothesis], declared: Declaration, name: str) -> Hypothesis | None:
    """Return the hypothesis that claims the same of the same latent, the one with the same id first, or None."""
    same = [there for there in among if _about(there.declared) == _about(declared)]
    return min(same, key=lambda there: there.id != name, default=None)


def _supersede(ledger: Ledger, name: str, children: list[str]) -> None:
    """Say of a hypothesis that its newest child took its place, or, where the file does not tell what did, close it."""
    hypothesis = ledger.get(name)
    if hypothesis.superseded_by or hypothesis.closed:
        return
    if children:
        Recorder(ledger.store.client, hypothesis.run_id).tags({reading.SUPERSEDED_BY: children[-1]})
        ledger.refresh([name])
    else:
        ledger.close(name, "superseded when it was brought in, by nothing that the file names")


def export_state(ledger: Ledger, feature_id: int, subject: str) -> ResearchState:
    """Return what is believed here about a latent of a subject, as a state file has it.

    Raises SpecError where no hypothesis is about it, with the latents that some are about.
    """
    everything = ledger.all()
    ours = [there for there in everything if (there.declared.feature_id, there.declared.subject) == (feature_id, subject)]
    if not ours:
        studied = sorted({f"{there.declared.feature_id} of {there.declared.subject}" for there in everything if there.declared.subject})
        raise SpecError(
            f"no hypothesis is about latent {feature_id} of {subject}", allowed=f"there is: {', '.join(studied[:20]) or 'none'}"
        )
    return _Export(_kept(ledger, ours) or _fresh(ours, feature_id, subject), ours).state()


def _kept(ledger: Ledger, ours: Iterable[Hypothesis]) -> ResearchState | None:
    """Return the newest state file that one of these hypotheses was brought in with."""
    with tempfile.TemporaryDirectory() as folder:
        files = [ledger.attached(there.id, STATE, Path(folder) / there.id) for there in ours]
        found = [load_state(file) for file in files if file is not None]
    return max(found, key=lambda state: state.updated_at, default=None)


def _fresh(ours: Iterable[Hypothesis], feature_id: int, subject: str) -> ResearchState:
    began = _iso(min(there.created_at for there in ours))
    created = HistoryEntry(timestamp=began, action="state_created", details=f"latent {feature_id} of {subject}")
    return ResearchState(feature_id=feature_id, model_type=subject, history=[created], created_at=began, updated_at=began)


class _Export:
    """A state file with what has happened here since it was brought in; without any of that, the file as it came."""

    def __init__(self, base: ResearchState, ours: list[Hypothesis]) -> None:
        self.base, self.ours = base, ours
        self.items: dict[str, StateHypothesis] = {item.id: item for item in base.hypotheses}
        self.index: dict[str, EvidenceItem] = {item.id: item for item in base.evidence_index}
        self.news: list[HistoryEntry] = []
        self.names = self._names()
        """Ids in the file by our ids."""

    def state(self) -> ResearchState:
        """Return the file."""
        for there in self.ours:
            if self.names[there.id] not in self.items:
                self._add(there)
        rulings = [(ruling, there.id) for there in self.ours for ruling in there.evaluation.rulings]
        known = {item.result_path: item.id for item in self.base.evidence_index}
        written: dict[str, list[str]] = {there.id: [] for there in self.ours}
        for ruling, about in sorted(rulings, key=lambda pair: (pair[0].evidence.at, pair[0].evidence.run_id)):
            name = known.get(_link(ruling))
            if name or ruling.evidence.standing == "counted":
                written[about].append(self._write(ruling, self.names[about], name))
        for there in self.ours:
            self._judge(there, written[there.id])
        self.news.sort(key=lambda entry: entry.timestamp)
        return self.base.model_copy(
            update={
                "hypotheses": [*self.items.values()],
                "evidence_index": [*self.index.values()],
                "history": [*self.base.history, *self.news],
                "updated_at": self.news[-1].timestamp if self.news else self.base.updated_at,
            }
        )

    def _names(self) -> dict[str, str]:
        """Return the id of each of our hypotheses in the file: that of the same claim there, else its own where that is free."""
        left = {item.id: _claim(item.statement) for item in self.base.hypotheses}
        taken, names = dict[str, object](self.items), dict[str, str]()
        for there in self.ours:
            same = [name for name, claim in left.items() if claim == there.declared.claim]
            if same:
                names[there.id] = min(same, key=lambda name: name != there.id)
                del left[names[there.id]]
        for there in self.ours:
            if there.id not in names:
                names[there.id] = there.id if there.id not in taken else next_id("h", taken)
                taken[names[there.id]] = there
        return names

    def _add(self, there: Hypothesis) -> None:
        name, began = self.names[there.id], _iso(there.created_at)
        self.items[name] = StateHypothesis(
            id=name,
            statement=there.declared.claim,
            confidence=there.declared.confidence,
            parent_hypothesis=self.names.get(there.declared.parent or ""),
            tags=there.declared.tags,
            created_at=began,
            updated_at=began,
        )
        self._tell(began, "hypothesis_added", f"{name}: {there.declared.claim}")

    def _write(self, ruling: Ruling, about: str, known: str | None) -> str:
        """Write a run into the evidence index and return its id there; `known` is the id that it has from an earlier export."""
        evidence, counted = ruling.evidence, ruling.evidence.standing == "counted"
        name = known or next_id("e", self.index)
        measured = {item.metric: item.estimate.value for item in evidence.judgements if item.estimate is not None}
        measured = {metric: value for metric, value in measured.items() if math.isfinite(value)}
        self.index[name] = EvidenceItem(
            id=name,
            experiment_id=evidence.run_name,
            result_path=_link(ruling),
            summary=ruling.text,
            strength=_strength(ruling.likelihood_ratio),
            supports_hypotheses=[about] if counted and ruling.verdict == "supports" else [],
            refutes_hypotheses=[about] if counted and ruling.verdict == "refutes" else [],
            key_metrics=measured,
            timestamp=_iso(evidence.at),
        )
        if known is None:
            self._tell(_iso(evidence.at), "evidence_added", f"{name} ({ruling.verdict}) for {about}: {ruling.text}", _link(ruling))
        return name

    def _judge(self, there: Hypothesis, written: list[str]) -> None:
        """Bring one hypothesis of the file up to date, where anything was found about it here or something took its place."""
        name, rulings = self.names[there.id], there.evaluation.rulings
        item = self.items[name]
        if not rulings and not there.superseded_by:
            return
        supporting = [evidence for evidence in item.supporting_evidence if evidence not in written]
        refuting = [evidence for evidence in item.refuting_evidence if evidence not in written]
        changed = item.model_copy(
            update={
                "status": there.status,
                "confidence": there.evaluation.confidence if rulings else item.confidence,
                "supporting_evidence": [*supporting, *(one for one in written if name in self.index[one].supports_hypotheses)],
                "refuting_evidence": [*refuting, *(one for one in written if name in self.index[one].refutes_hypotheses)],
            }
        )
        if changed == item:
            return
        if changed.status == "superseded" and item.status != "superseded":
            action, why = "hypothesis_superseded", f"by {self.names.get(str(there.superseded_by), there.superseded_by)}"
            when = max([other.created_at for other in self.ours if other.id == there.superseded_by], default=there.created_at)
        else:
            action, why, when = "hypothesis_updated", there.evaluation.text, max(ruling.evidence.at for ruling in rulings)
        self.items[name] = changed.model_copy(update={"updated_at": _iso(when)})
        moved = f"{item.status} {item.confidence:.3g} -> {changed.status} {changed.confidence:.3g}"
        self._tell(_iso(when), action, f"{name}: {moved}: {why}")

    def _tell(self, when: str, action: str, details: str, result: str | None = None) -> None:
        self.news.append(HistoryEntry(timestamp=when, action=action, details=details, result_path=result))


def _link(ruling: Ruling) -> str:
    return links.run(ruling.evidence.experiment_id, ruling.evidence.run_id)


def _strength(likelihood_ratio: float) -> Literal["strong", "moderate", "weak"]:
    ratio = max(likelihood_ratio, 1 / likelihood_ratio)
    return "strong" if ratio >= _STRONG else "moderate" if ratio >= _MODERATE else "weak"


def _iso(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
