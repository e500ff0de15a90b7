"""Rulings and evaluations in one line of text each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Sized
from typing import TYPE_CHECKING

from mlinterp.hypotheses.records import Evidence, Judgement, Verdict

if TYPE_CHECKING:
    from mlinterp.hypotheses.evaluation import Tested


def ruling(evidence: Evidence, verdict: Verdict, tests: Sequence[Tested]) -> str:
    """Return which test said what, by which interval, against which null; and why it does not count, where it does not."""
    but = "" if evidence.standing == "counted" else f", but {evidence.standing}" + (f" ({evidence.why})" if evidence.why else "")
    said = "; ".join(_test(test, alone=len(tests) == 1) for test in tests) or "it predicted nothing"
    return " ".join(f"{verdict}{but}: {said}".split())


def _test(test: Tested, alone: bool) -> str:
    name = "" if alone else f"{test.role or 'without role'} ({test.verdict}): "
    place = f"test {test.place}, judged at {test.rate:.2g}" if test.direction != "inconclusive" else "no test, so it takes no place"
    if len(test.judgements) == 1 and test.judgements[0].side is not None:
        return name + _prediction(test.judgements[0], test.rate, place)
    both = f"{place}, {_p(test.p)} together" if test.direction != "inconclusive" else place
    return name + "; ".join(_prediction(item, test.rate) for item in test.judgements) + f"; {both}"


def _prediction(item: Judgement, rate: float, place: str | None = None) -> str:
    """Return a prediction beside what was measured.

    For example `adjusted/a = -28.3 [-30.1, -26.6] is < -5 (p 2e-05; matched controls excluded, p 0.0001; 95% bootstrap, n 128)`.
    """
    estimate = item.estimate
    if item.side is None or estimate is None or item.p_bound is None:
        return f"{item.predicted} cannot be judged: {item.reason}"
    wanted = item.predicted.removeprefix(item.metric).strip()
    measured = f"{item.metric} = {estimate.value:.4g} [{estimate.low:.4g}, {estimate.high:.4g}]"
    made = f"{100 * estimate.level:.4g}% {estimate.interval}, n {estimate.n}"
    parts = [_p(item.p_bound), _null(item, rate), made, place]
    return f"{measured} is {'not ' if item.side == 'outside' else ''}{wanted} ({'; '.join(part for part in parts if part)})"


def _null(item: Judgement, rate: float) -> str | None:
    estimate = item.estimate
    if item.side != "inside" or estimate is None or (item.p_null is None and estimate.null_value is None):
        return None
    null = estimate.null or ("its null" if estimate.null_value is None else f"a null of {estimate.null_value:.4g}")
    if item.p_null is None:
        return f"{null} would be as predicted, too"
    return f"{null} {'excluded' if item.p_null <= rate else 'not excluded'}, {_p(item.p_null)}"


def _p(p: float) -> str:
    """Return a p value as text; how small the smallest are is beyond what an interval can tell."""
    return f"p {p:.2g}" if p >= 1e-6 else "p < 1e-06"


def runs(found: Sized, verb: str = "") -> str:
    """Return how many runs do something.

    >>> runs(["a"], "support"), runs(["a", "b"], "support"), runs(["a"])
    ('1 run supports', '2 runs support', '1 run')
    """
    one = len(found) == 1
    return f"{len(found)} run{'' if one else 's'}" + (f" {verb}{'s' if one else ''}" if verb else "")


def nothing_counts(evidence: Sequence[Evidence]) -> str:
    """Return why there is no evidence that counts."""
    if not evidence:
        return "no evidence yet"
    standings = Counter(item.standing for item in evidence)
    return f"nothing counts: {', '.join(f'{number} {standing}' for standing, number in standings.items())}"


def unable(evidence: Sequence[Evidence]) -> list[str]:
    """Return why runs that agree with a causal claim cannot support it."""
    found = []
    if observed := [item for item in evidence if item.mode == "observational"]:
        found.append(f"observational evidence cannot support a causal claim ({runs(observed)})")
    if bare := [item for item in evidence if item.mode == "interventional"]:
        found.append(f"an intervention without a control cannot support a causal claim ({runs(bare)})")
    return found
