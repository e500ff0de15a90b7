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
    from mlinterp.tracking.recorder import Recorder

    if not spec.expect:
        return None
    if spec.hypothesis is None:
        alone = ruling_alone(session.store, run_id)
        Recorder(session.store.client, run_id).tags(ruling_tags(alone))
        return alone
    session.ledger.refresh([spec.hypothesis])
    rulings = session.ledger.get(spec.hypothesis).evaluation.rulings
    return next((ruling for ruling in rulings if ruling.evidence.run_id == run_id), None)


def standings(spec: Spec, session: Session) -> list[str]:
    """Return where each hypothesis of a spec stands now, a line each."""
    found = [session.ledger.get(name) for name in sorted(spec.hypotheses())]
    return [f"{one.id} {one.status}, confidence {one.evaluation.confidence:.2g}: {one.declared.claim}" for one in found]
