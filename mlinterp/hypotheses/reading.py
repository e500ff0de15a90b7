"""From runs in the store to hypotheses and evidence."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from mlinterp.errors import VerificationError
from mlinterp.hypotheses.evaluation import evaluate
from mlinterp.hypotheses.records import Declaration, Evidence, Hypothesis, Judgement, Ruling, Standing
from mlinterp.hypotheses.staleness import Runs, retraction
from mlinterp.io.digests import sha256_json
from mlinterp.spec import Spec
from mlinterp.tracking import queries
from mlinterp.tracking.recorder import LONGEST_TAG
from mlinterp.tracking.store import Store

if TYPE_CHECKING:
    from mlflow.entities import Run

ID, DECLARATION, SUPERSEDED_BY, CLOSED = "mlinterp.hypothesis", "mlinterp.declaration", "mlinterp.superseded_by", "mlinterp.closed"
ORIGIN = "mlinterp.origin."
JUDGEMENTS, JUDGED_AT = "mlinterp.judgements", "mlinterp.judged_at"
PREDICTION = "prediction.sha256"
"""The parameter that holds a prediction's digest from before the first result; a parameter of a run never changes."""
_PACKED = "deflate;"
"""Before judgements that are too long for a tag as they are."""


def prediction_digest(spec: Spec) -> str:
    """Return the digest of what a spec predicts, and of which hypothesis."""
    return sha256_json({"hypothesis": spec.hypothesis, "expect": [item.model_dump(mode="json") for item in spec.expect]})


def hypothesis_runs(store: Store, experiment_id: str) -> dict[str, Run]:
    """Return the runs that are hypotheses, by id, in order."""
    found = queries.search(store, experiment_id, "tags.`mlinterp.kind` = 'hypothesis'")
    named = {run.data.tags[ID]: run for run in found if ID in run.data.tags}
    return dict(sorted(named.items(), key=lambda item: int(item[0][1:])))


def evidence_runs(store: Store, experiment_id: str, hypothesis: str | None = None) -> list[Run]:
    """Return the finished runs whose predictions were judged, of one hypothesis or of all, in the order in which they were judged.

    Those in the bin are among them: a test that was made stays made.
    """
    wanted = f"tags.`{ID}` = '{hypothesis}' and " if hypothesis else f"tags.`{ID}` != '' and "
    where = f"{wanted}tags.`{JUDGED_AT}` != '' and attributes.status = 'FINISHED'"
    found = [run for deleted in (False, True) for run in queries.search(store, experiment_id, where, deleted=deleted)]
    return sorted(found, key=lambda run: (_judged_at(run), run.info.run_id))


def _judged_at(run: Run) -> int:
    text = run.data.tags[JUDGED_AT]
    return int(text) if text.isdecimal() else int(run.info.end_time or 0)


def evidence(ordered: Iterable[Run], runs: Runs) -> list[Evidence]:
    """Return judged runs of one hypothesis as evidence, each with its standing."""
    found, answered = [], set[str]()
    for run in ordered:
        tags = run.data.tags
        standing, why = _standing(run, runs, answered)
        if standing == "counted":
            answered |= _answers(run)
        found.append(
            Evidence(
                run_id=run.info.run_id,
                experiment_id=run.info.experiment_id,
                run_name=run.info.run_name,
                at=_judged_at(run),
                mode="interventional" if tags.get("mlinterp.mode") == "interventional" else "observational",
                judgements=_record(run)[1],
                standing=standing,
                why=why,
            )
        )
    return found


def ruling_alone(run: Run, runs: Runs) -> Ruling:
    """Return what a judged run says by itself, under no hypothesis."""
    found = evidence([run], runs)
    return evaluate(Declaration(claim="what the spec predicts"), found).rulings[0]


def _standing(run: Run, runs: Runs, answered: set[str]) -> tuple[Standing, str | None]:
    if run.info.lifecycle_stage == "deleted":
        return "deleted", "it was deleted"
    if _answers(run) & answered:
        return "duplicate", "the same question was answered before, with the same numbers"
    digest, judgements = _record(run)
    if not judgements:
        return "unregistered", f"its tag {JUDGEMENTS} is damaged"
    if run.data.params.get(PREDICTION) != digest:
        return "unregistered", "its prediction is not the one that was recorded before its result"
    if why := retraction(run, runs):
        return "retracted", why
    stale = runs.staleness(run)
    return ("stale", stale.why) if stale is not None else ("counted", None)


def _answers(run: Run) -> set[str]:
    """Return by what a run is known again: its key or, where the code changed since, its predictions with every number to the digit.

    What it took counts too: another model may give the same numbers where they are exact.
    """
    taken = sorted(given.dataset.digest for given in run.inputs.dataset_inputs) if run.inputs else []
    return {run.data.tags.get("mlinterp.run_key", run.info.run_id), "\x1f".join([run.data.tags[JUDGEMENTS], *taken])}


def judgement_tags(spec: Spec, judgements: Iterable[Judgement], at: int) -> dict[str, str]:
    """Return the tags that make a run evidence."""
    kept = {"prediction": prediction_digest(spec), "judgements": [item.model_dump(mode="json", exclude_none=True) for item in judgements]}
    text = json.dumps(kept, separators=(",", ":"))
    if len(text) > LONGEST_TAG:
        text = _PACKED + base64.b64encode(zlib.compress(text.encode(), 9)).decode()
    return {JUDGEMENTS: text, JUDGED_AT: str(at)}


def _record(run: Run) -> tuple[str, tuple[Judgement, ...]]:
    """Return the digest of the prediction that was judged, and the judgements; none where the tag was damaged."""
    try:
        text = run.data.tags[JUDGEMENTS]
        if text.startswith(_PACKED):
            text = zlib.decompress(base64.b64decode(text.removeprefix(_PACKED))).decode()
        kept: Mapping[str, Any] = json.loads(text)
        return kept["prediction"], tuple(Judgement.model_validate(item) for item in kept["judgements"])
    except (KeyError, ValueError, TypeError, zlib.error):
        return "", ()


def declaration(run: Run) -> Declaration:
    """Return the claim that a hypothesis's run holds."""
    try:
        return Declaration.model_validate_json(run.data.tags[DECLARATION])
    except (KeyError, ValidationError) as error:
        raise VerificationError(f"hypothesis {run.data.tags.get(ID)}: its tag {DECLARATION} is damaged") from error


def hypotheses(store: Store, experiment_id: str, only: Iterable[str] | None = None, runs: Runs | None = None) -> dict[str, Hypothesis]:
    """Return a project's hypotheses by id, in order, each judged by all evidence that there is now; with `only` just these.

    `runs` are the project's runs, where they were read already.
    """
    pages = hypothesis_runs(store, experiment_id)
    declared = {name: declaration(run) for name, run in pages.items()}
    chosen = [name for name in pages if only is None or name in set(only)]
    judged: dict[str, list[Run]] = {name: [] for name in chosen}
    for run in evidence_runs(store, experiment_id, chosen[0] if len(chosen) == 1 else None) if chosen else []:
        if run.data.tags[ID] in judged:
            judged[run.data.tags[ID]].append(run)
    runs = runs or Runs(store, experiment_id, whole=only is None)
    runs.know(run for found in judged.values() for run in found)
    return {
        name: Hypothesis(
            id=name,
            run_id=pages[name].info.run_id,
            experiment_id=experiment_id,
            declared=declared[name],
            created_at=pages[name].info.start_time,
            evaluation=evaluate(declared[name], evidence(judged[name], runs)),
            superseded_by=pages[name].data.tags.get(SUPERSEDED_BY),
            closed=pages[name].data.tags.get(CLOSED),
            children=tuple(child for child, claim in declared.items() if claim.parent == name),
            origin={key.removeprefix(ORIGIN): value for key, value in pages[name].data.tags.items() if key.startswith(ORIGIN)},
        )
        for name in chosen
    }
