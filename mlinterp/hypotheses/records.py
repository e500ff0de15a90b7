"""What a hypothesis and a piece of evidence are, as plain data: read from the store by `ledger`, judged by `evaluation`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from mlinterp.frozen import Frozen
from mlinterp.result import Estimate
from mlinterp.spec import HypothesisId, Name

Claim = Annotated[str, StringConstraints(min_length=10, max_length=1000)]
Status = Literal["proposed", "testing", "supported", "refuted", "superseded"]
Verdict = Literal["supports", "refutes", "inconclusive"]
Role = Literal["necessity", "sufficiency"]
Standing = Literal["counted", "duplicate", "unregistered", "stale", "retracted", "deleted"]


class Declaration(Frozen):
    """A claim as it was declared. Once there is evidence, only what is under `tags` and `notes` may change."""

    claim: Claim = Field(description="what is claimed, in one sentence")
    prediction: str | None = Field(None, max_length=1000, description="what should be measured if the claim is true, in prose")
    refuted_by: str | None = Field(None, max_length=1000, description="what measurement would refute it, in prose")
    parent: HypothesisId | None = Field(None, description="the hypothesis that this one refines or replaces")
    level: Literal["causal", "correlational"] = Field(
        "causal", description="a causal claim is supported by interventions only, each beside its control"
    )
    requires: list[Role] = Field(
        [], max_length=2, description="roles of predictions that must all be supported, such as [necessity, sufficiency]"
    )
    confidence: float = Field(0.5, gt=0, lt=1, description="confidence before any evidence")
    alpha: float = Field(0.05, gt=0, le=0.5, description="rate at which a false claim may end up supported, over all its tests together")
    feature_id: int | None = Field(None, ge=0, description="the latent that it is about")
    subject: Name | None = Field(None, description="the subject that it is about")
    tags: list[Name] = Field([], max_length=32, description="words to find it by")
    notes: str | None = Field(None, max_length=2000, description="anything else")


class Judgement(BaseModel):
    """One prediction beside what was measured, before any correction for the number of tests.

    `side` says where the estimate lies: `inside` or `outside` what was predicted; None where it cannot be judged, for the `reason` given.
    `p` is the p value of the claim that the data speak against: "it is not as predicted" inside, "it is as predicted" outside. Inside
    it is the larger of `p_bound` (is the interval clear of the predicted bound?) and, where the prediction excludes "nothing to find",
    `p_null` (is the effect more than its null?): a prediction must pass both.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="null")

    metric: str
    predicted: str
    role: Role | None = None
    side: Literal["inside", "outside"] | None = None
    p: float = 1.0
    p_bound: float | None = None
    p_null: float | None = None
    estimate: Estimate | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Evidence:
    """One run's judged predictions under a hypothesis, in the order in which evidence arrived.

    Attributes:
        run_id, experiment_id, run_name: the run.
        at: when it was judged, milliseconds since 1970.
        mode: whether the run observed or intervened.
        judgements: its predictions, judged.
        standing: whether it counts, and if not why.
        why: the standing in words: the reason of a retraction, what it rests on that is gone.
    """

    run_id: str
    experiment_id: str
    run_name: str
    at: int
    mode: Literal["observational", "interventional"]
    judgements: tuple[Judgement, ...]
    standing: Standing = "counted"
    why: str | None = None


@dataclass(frozen=True)
class Ruling:
    """What a piece of evidence says once all tests of its hypothesis are taken into account.

    Attributes:
        evidence: what was judged.
        verdict: of the run as a whole.
        tests: its tests in order: (role or None, verdict, p, the rate alpha it was judged at).
        text: the verdict in one line: which test, which interval, which null.
        likelihood_ratio: what confidence was multiplied by (as odds); 1 where it does not count.
        confidence: confidence after it.
    """

    evidence: Evidence
    verdict: Verdict
    tests: tuple[tuple[Role | None, Verdict, float, float], ...]
    text: str
    likelihood_ratio: float
    confidence: float


@dataclass(frozen=True)
class Evaluation:
    """Where a hypothesis stands.

    Attributes:
        status: from the rulings alone; `superseded` is the ledger's to say.
        confidence: after all evidence.
        rulings: one for each piece of evidence, in order.
        text: why the status is what it is, in one line.
    """

    status: Status
    confidence: float
    rulings: tuple[Ruling, ...]
    text: str


@dataclass(frozen=True)
class Hypothesis:
    """A hypothesis as the store holds it.

    Attributes:
        id: `h001`, unique in its project.
        run_id, experiment_id: the MLflow run that is its page.
        declared: the claim.
        created_at: milliseconds since 1970.
        superseded_by: the hypothesis that replaced it.
        closed: why no more evidence is taken, where it is closed.
        evaluation: where it stands.
        children: hypotheses whose parent it is, in order.
        origin: `declared` (hypotheses.yaml), `added`, or `imported`; with `origin_details` as strings.
    """

    id: str
    run_id: str
    experiment_id: str
    declared: Declaration
    created_at: int
    evaluation: Evaluation
    superseded_by: str | None = None
    closed: str | None = None
    children: tuple[str, ...] = ()
    origin: Mapping[str, str] = field(default_factory=dict)

    @property
    def status(self) -> Status:
        """Its status: superseded, or what the evidence says."""
        return "superseded" if self.superseded_by else self.evaluation.status
