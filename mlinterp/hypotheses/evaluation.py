"""Where a hypothesis stands: all its tests in the order in which they came, one error rate over them, one rule for status and confidence.

1. A test is one run's predictions of one role. It speaks for the claim where all lie inside what was predicted, with the largest of
   their p values; against it where any lies outside, with the smallest of those p values times the number of predictions (Bonferroni).
2. It is judged at the rate that the online fallback procedure gives to its place (`online_testing`), with one sequence for what could
   support and one for what could refute. So a false claim ends up supported, and a true one refuted, at a rate of at most alpha,
   whatever is tested later and wherever one stops. What does not count keeps its place: withdrawing a failed test buys nothing.
3. A run supports where all its tests do, and refutes where any does.
4. The status follows from the runs that count; a causal claim is supported by interventions beside a control only.
5. Confidence moves by a likelihood ratio for each run: 1 / (2 sqrt(p)) of the weakest of the tests that decide it, an e-value made from
   its p value (Vovk & Wang 2021, "E-values: calibration, combination and applications", Ann. Stat. 49, kappa = 1/2), capped. Tests of one
   run share their data, so their ratios are not multiplied.

The rule for users is docs/verdicts.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import special

from mlinterp.hypotheses import wording
from mlinterp.hypotheses.online_testing import OnlineFallback
from mlinterp.hypotheses.records import Declaration, Evaluation, Evidence, Judgement, Role, Ruling, Status, Verdict

CAP = 20.0
"""No run multiplies the odds by more: none decides alone."""

WEAK_CAP = 3.0
"""The same for what speaks for a causal claim without an intervention beside a control."""

_ROLES: tuple[Role | None, ...] = (None, "necessity", "sufficiency")
"""The tests of a run, in their order."""


@dataclass(frozen=True)
class Tested:
    """One run's predictions of one role, judged at the rate of their place.

    Attributes:
        role: of the predictions.
        judgements: the predictions, in the order of the spec.
        direction: the verdict that the p value could bring; inconclusive where nothing can be judged.
        p: of the claim that the direction speaks against; 1 where nothing can be judged.
        place: among the tests of the hypothesis, from 1.
        rate: what it is judged at.
    """

    role: Role | None
    judgements: tuple[Judgement, ...]
    direction: Verdict
    p: float
    place: int
    rate: float

    @property
    def verdict(self) -> Verdict:
        """What it says at its rate."""
        return self.direction if self.p <= self.rate else "inconclusive"

    @property
    def beside_control(self) -> bool:
        """Whether any of its numbers has a null: what it would be if there were nothing to find."""
        found = [item.estimate for item in self.judgements if item.estimate is not None]
        return any(one.null_value is not None and one.mode != "observational" for one in found)


@dataclass(frozen=True)
class _Spending:
    """Where the two sequences of tests stand."""

    supporting: OnlineFallback
    refuting: OnlineFallback

    def test(self, role: Role | None, judgements: tuple[Judgement, ...]) -> Tested:
        direction, p = _direction(judgements)
        sequence = self.refuting if direction == "refutes" else self.supporting
        return Tested(role, judgements, direction, p, sequence.place, sequence.rate)

    def after(self, verdict: Verdict) -> _Spending:
        return _Spending(self.supporting.after(verdict == "supports"), self.refuting.after(verdict == "refutes"))


@dataclass(frozen=True)
class _Ruled:
    """One run's tests and what they say together."""

    evidence: Evidence
    tests: tuple[Tested, ...]

    @property
    def verdict(self) -> Verdict:
        verdicts = {test.verdict for test in self.tests}
        if "refutes" in verdicts:
            return "refutes"
        return "supports" if verdicts == {"supports"} else "inconclusive"

    @property
    def counts(self) -> bool:
        return self.evidence.standing == "counted"

    def can_support(self, declared: Declaration, test: Tested) -> bool:
        return declared.level == "correlational" or (self.evidence.mode == "interventional" and test.beside_control)

    def measured(self) -> set[str]:
        """What was measured, whatever it is called and whatever was predicted of it."""
        found = [item.estimate for test in self.tests for item in test.judgements if item.estimate is not None]
        return {one.model_dump_json(exclude={"mode"}) for one in found}

    def likelihood_ratio(self, declared: Declaration, before: set[str]) -> float:
        """Return what the odds are multiplied by; 1 where nothing was measured that was not measured `before`."""
        if not self.counts or self.verdict == "inconclusive" or self.measured() <= before:
            return 1.0
        p = max(test.p for test in self.tests if test.verdict == self.verdict)
        ratio = min(CAP, max(1.0, 0.5 / math.sqrt(p))) if p > 0 else CAP
        if self.verdict == "refutes":
            return 1 / ratio
        return ratio if any(self.can_support(declared, test) for test in self.tests) else min(ratio, WEAK_CAP)


def evaluate(declared: Declaration, evidence: Sequence[Evidence]) -> Evaluation:
    """Return where a hypothesis stands after evidence, given in the order in which it arrived."""
    spending, ruled = _Spending(OnlineFallback(declared.alpha), OnlineFallback(declared.alpha)), list[_Ruled]()
    for item in evidence:
        tests, after = _tests(item, spending)
        ruled.append(_Ruled(item, tests))
        spending = spending if item.standing == "duplicate" else after
    confidence, log_odds, rulings = declared.confidence, 0.0, list[Ruling]()
    before = set[str]()
    for one in ruled:
        ratio = one.likelihood_ratio(declared, before)
        before |= one.measured() if one.counts else set()
        log_odds += math.log(ratio)
        confidence = float(special.expit(special.logit(declared.confidence) + log_odds)) if log_odds else declared.confidence
        told = tuple((test.role, test.verdict, test.p, test.rate) for test in one.tests)
        rulings.append(Ruling(one.evidence, one.verdict, told, wording.ruling(one.evidence, one.verdict, one.tests), ratio, confidence))
    status, text = _status(declared, ruled)
    return Evaluation(status, confidence, tuple(rulings), text)


def _tests(item: Evidence, spending: _Spending) -> tuple[tuple[Tested, ...], _Spending]:
    """Return a run's tests, and where spending stands after them."""
    tests = list[Tested]()
    for role in _ROLES:
        if group := tuple(judgement for judgement in item.judgements if judgement.role == role):
            tests.append(spending.test(role, group))
            if tests[-1].direction != "inconclusive":  # what cannot be judged is no test
                spending = spending.after(tests[-1].verdict if item.standing == "counted" else "inconclusive")
    return tuple(tests), spending


def _direction(judgements: tuple[Judgement, ...]) -> tuple[Verdict, float]:
    """Return what a test could say, with the p value of the contrary."""
    judged = [item for item in judgements if item.side is not None]
    outside = [item.p for item in judged if item.side == "outside"]
    if outside:
        return "refutes", min(1.0, len(judged) * min(outside))
    if len(judged) < len(judgements):
        return "inconclusive", 1.0
    return "supports", max(item.p for item in judged)


def _status(declared: Declaration, ruled: Sequence[_Ruled]) -> tuple[Status, str]:
    """Return the status and why it is so, in one line."""
    counted = [one for one in ruled if one.counts]
    if not counted:
        return "proposed", wording.nothing_counts([one.evidence for one in ruled])
    agreeing = [one for one in counted if one.verdict == "supports"]
    supporting = [one for one in agreeing if any(one.can_support(declared, test) for test in one.tests)]
    refuting = [one for one in counted if one.verdict == "refutes"]
    shown = {test.role for one in counted for test in one.tests if test.verdict == "supports" and one.can_support(declared, test)}
    missing = [role for role in declared.requires if role not in shown]
    unable = wording.unable([one.evidence for one in agreeing if one not in supporting])
    if supporting and refuting:
        return "testing", f"contested: {wording.runs(supporting, 'support')} and {wording.runs(refuting, 'refute')} it"
    if refuting:
        return "refuted", "; ".join([f"{wording.runs(refuting, 'refute')} it, none supports it", *unable])
    if supporting and not missing:
        n_tests = sum(len(one.tests) for one in ruled if one.evidence.standing != "duplicate")
        n = f"{n_tests} test" + "s" * (n_tests > 1)
        return "supported", f"{wording.runs(supporting, 'support')} it, none refutes it; error rate {declared.alpha:g} over {n}"
    undecided = [] if agreeing else [f"undecided by {wording.runs(counted)}"]
    return "testing", "; ".join([*undecided, *unable, *(f"no test of {role} supports it" for role in missing)])
