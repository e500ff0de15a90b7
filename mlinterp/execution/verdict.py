"""A run as evidence: its prediction is registered before it works, judged by what came out, and ruled on among all evidence.

register  the prediction's digest becomes a parameter, which no later hand can change
judge     each prediction beside its number's interval and null (`hypotheses.judging`); from here on the run is evidence
rule      once the run is finished: the verdict, corrected for all tests of the hypothesis (`hypotheses.evaluation`)
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from mlinterp.execution.session import Session
from mlinterp.result import ExperimentResult
from mlinterp.spec import Spec

if TYPE_CHECKING:
    from mlflow.entities import Run

    from mlinterp.hypotheses.records import Ruling
    from mlinterp.tracking.recorder import Recorder


def require_open(spec: Spec, session: Session) -> None:
    """Refuse a hypothesis that there is not, or that takes no more evidence."""
    for name in sorted(spec.hypotheses()):
        session.ledger.require_open(name)


def register(spec: Spec, session: Session, recorder: Recorder) -> None:
    """Record what is predicted, before anything is measured."""
    from mlinterp.hypotheses.reading import PREDICTION, prediction_digest

    if spec.expect:
        recorder.params({PREDICTION: prediction_digest(spec)})
    if spec.hypothesis is not None:
        recorder.tags({"mlinterp.hypothesis_run": session.ledger.page(spec.hypothesis)})


def judge(spec: Spec, result: ExperimentResult, recorder: Recorder) -> None:
    """Judge what was predicted and make the run evidence."""
    from mlinterp.hypotheses.judging import judge as judged
    from mlinterp.hypotheses.reading import judgement_tags

    if spec.expect:
        recorder.tags(judgement_tags(spec, judged(spec.expect, result), at=int(time.time() * 1000)))


def rule(spec: Spec, session: Session, run_id: str) -> Ruling | None:
    """Return what a finished run says for its hypothesis, or by itself where it has none, and write it where people look."""
    from mlinterp.hypotheses.ledger import ruling_tags
    from mlinterp.hypotheses.reading import ruling_alone
    from mlinterp.hypotheses.staleness import Runs
    from mlinterp.tracking.recorder import Recorder

    if not spec.expect:
        return None
    if spec.hypothesis is None:
        alone = ruling_alone(session.store.client.get_run(run_id), Runs(session.store, session.experiment_id))
        Recorder(session.store.client, run_id).tags(ruling_tags(alone))
        return alone
    session.ledger.refresh([spec.hypothesis])
    rulings = session.ledger.get(spec.hypothesis).evaluation.rulings
    return next((ruling for ruling in rulings if ruling.evidence.run_id == run_id), None)


def rule_late(run: Run, session: Session) -> Run:
    """Rule on a finished run that was judged and then killed before anyone ruled on it, and return it as it is now."""
    from mlinterp.hypotheses.reading import ID, JUDGED_AT

    tags = run.data.tags
    if run.info.status != "FINISHED" or JUDGED_AT not in tags or "mlinterp.verdict" in tags:
        return run
    if ID in tags:
        session.ledger.refresh([tags[ID]])
    else:
        session.ledger.stale()
    return session.store.client.get_run(run.info.run_id)


def standings(spec: Spec, session: Session) -> list[str]:
    """Return where each hypothesis of a spec stands now, a line each."""
    found = [session.ledger.get(name) for name in sorted(spec.hypotheses())]
    told = [f"{one.id} {one.status}, confidence {shown_confidence(one.evaluation.confidence)}: {one.declared.claim}" for one in found]
    if spec.hypothesis and not (spec.expect or spec.is_study):
        told.append(f"nothing was predicted (`expect:`), so this run is no evidence for {spec.hypothesis}")
    return told


def shown_confidence(confidence: float) -> str:
    """Return a confidence with two digits; never 0 or 1, which no evidence reaches.

    >>> shown_confidence(0.9524), shown_confidence(0.99999)
    ('0.95', '> 0.99')
    """
    return "> 0.99" if confidence > 0.99 else "< 0.01" if confidence < 0.01 else f"{confidence:.2f}"
