"""From runs in the store to hypotheses and evidence."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from mlinterp.errors import VerificationError
from mlinterp.hypotheses.evaluation import evaluate
from mlinterp.hypotheses.records import Declaration, Evidence, Hypothesis, Judgement, Ruling, Standing
from mlinterp.hypotheses.staleness import Runs, retraction, staleness
from mlinterp.io.digests import sha256_json
from mlinterp.spec import Spec
from mlinterp.tracking import queries
from mlinterp.tracking.store import Store

if TYPE_CHECKING:
    from mlflow.entities import Run

ID, DECLARATION, SUPERSEDED_BY, CLOSED = "mlinterp.hypothesis", "mlinterp.declaration", "mlinterp.superseded_by", "mlinterp.closed"
ORIGIN = "mlinterp.origin."
JUDGEMENTS, JUDGED_AT = "mlinterp.judgements", "mlinterp.judged_at"
PREDICTION = "prediction.sha256"
"""The parameter that holds a prediction's digest from before the first result; a parameter of a run never changes."""


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
    return sorted(found, key=lambda run: (int(run.data.tags[JUDGED_AT]), run.info.run_id))


def evidence(ordered: Iterable[Run], runs: Runs) -> list[Evidence]:
    """Return judged runs of one hypothesis as evidence, each with its standing."""
    found, answered = [], set[str]()
    for run in ordered:
        tags = run.data.tags
        standing, why = _standing(run, runs, answered)
        if standing == "counted":
            answered.add(tags.get("mlinterp.run_key", run.info.run_id))
        found.append(
            Evidence(
                run_id=run.info.run_id,
                experiment_id=run.info.experiment_id,
                run_name=run.info.run_name,
                at=int(tags[JUDGED_AT]),
                mode="interventional" if tags.get("mlinterp.mode") == "interventional" else "observational",
                judgements=_record(run)[1],
                standing=standing,
                why=why,
            )
        )
    return found


def ruling_alone(store: Store, run_id: str) -> Ruling:
    """Return what a judged run says by itself, under no hypothesis."""
    found = evidence([store.client.get_run(run_id)], Runs(store))
    return evaluate(Declaration(claim="what the spec predicts"), found).rulings[0]


def _standing(run: Run, runs: Runs, answered: set[str]) -> tuple[Standing, str | None]:
    if run.info.lifecycle_stage == "deleted":
        return "deleted", "it was deleted"
    if run.data.tags.get("mlinterp.run_key") in answered:
        return "duplicate", "the same question on the same inputs with the same code was answered before"
    if run.data.params.get(PREDICTION) != _record(run)[0]:
        return "unregistered", "its prediction is not the one that was recorded before its result"
    if why := retraction(run, runs):
        return "retracted", why
    stale = staleness(run, runs)
    return ("stale", stale.why) if stale is not None else ("counted", None)


def judgement_tags(spec: Spec, judgements: Iterable[Judgement], at: int) -> dict[str, str]:
    """Return the tags that make a run evidence."""
    kept = {"prediction": prediction_digest(spec), "judgements": [item.model_dump(mode="json", exclude_none=True) for item in judgements]}
    return {JUDGEMENTS: json.dumps(kept, separators=(",", ":")), JUDGED_AT: str(at)}


def _record(run: Run) -> tuple[str, tuple[Judgement, ...]]:
    """Return the digest of the prediction that was judged, and the judgements."""
    try:
        kept: Mapping[str, Any] = json.loads(run.data.tags[JUDGEMENTS])
        return kept["prediction"], tuple(Judgement.model_validate(item) for item in kept["judgements"])
    except (KeyError, ValueError, TypeError) as error:
        raise VerificationError(f"run {run.info.run_id[:12]}: its tag {JUDGEMENTS} is damaged") from error


def declaration(run: Run) -> Declaration:
    """Return the claim that a hypothesis's run holds."""
    try:
        return Declaration.model_validate_json(run.data.tags[DECLARATION])
    except (KeyError, ValidationError) as error:
        raise VerificationError(f"hypothesis {run.data.tags.get(ID)}: its tag {DECLARATION} is damaged") from error


def hypotheses(store: Store, experiment_id: str, only: Iterable[str] | None = None) -> dict[str, Hypothesis]:
    """Return a project's hypotheses by id, in order, each judged by all evidence that there is now; with `only` just these."""
    pages = hypothesis_runs(store, experiment_id)
    declared = {name: declaration(run) for name, run in pages.items()}
    chosen = [name for name in pages if only is None or name in set(only)]
    judged: dict[str, list[Run]] = {name: [] for name in chosen}
    for run in evidence_runs(store, experiment_id, chosen[0] if len(chosen) == 1 else None) if chosen else []:
        if run.data.tags[ID] in judged:
            judged[run.data.tags[ID]].append(run)
    runs = Runs(store)
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
