"""From a hypothesis to the blocks of its report: the claim, where it stands and why, its evidence in order, and what that lacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from mlinterp.reports import verdicts
from mlinterp.reports.document import Block, Document, Facts, Heading, Links, Notice, Picture, Points, Prose, Rows, link, shown
from mlinterp.reports.plots import draw
from mlinterp.result import Cell, Figure, ResultTable

if TYPE_CHECKING:
    from mlinterp.hypotheses.records import Evidence, Hypothesis, Judgement, Role, Ruling

LONGEST_TITLE = 140
_LEVELS = {
    "causal": "causal: only interventions, each beside its control, can support it",
    "correlational": "correlational: observations can support it, and say nothing of causes",
}


def hypothesis_document(
    hypothesis: Hypothesis, page: Callable[[Evidence], str], links: Mapping[str, str], related: Mapping[str, str]
) -> Document:
    """Return a hypothesis's report.

    Args:
        hypothesis: the claim and where it stands.
        page: the address of a run.
        links: where to go on, text to address.
        related: the address of each related hypothesis that there is, by id.
    """
    declared, claim = hypothesis.declared, " ".join(hypothesis.declared.claim.split())
    whole = len(claim) <= LONGEST_TITLE
    title = claim if whole else f"{claim[: LONGEST_TITLE - 1]}…"
    blocks = [*_where_it_stands(hypothesis), Heading("What is claimed"), *([] if whole else [Prose(declared.claim)])]
    if declared.prediction:
        blocks += [Heading("If it is true", 3), Prose(declared.prediction)]
    if declared.refuted_by:
        blocks += [Heading("What would refute it", 3), Prose(declared.refuted_by)]
    if declared.notes:
        blocks += [Heading("Notes", 3), Prose(declared.notes)]
    blocks += [_declaration(hypothesis), Heading("Evidence"), *_evidence(hypothesis, page)]
    lacking = tuple(lacks(hypothesis))
    blocks += [Heading("What the evidence lacks"), Points(lacking) if lacking else Prose("Nothing of what the claim itself asks for.")]
    return Document(f"{hypothesis.id} · {title}", [*blocks, *_relatives(hypothesis, links, related)])


def _where_it_stands(hypothesis: Hypothesis) -> list[Block]:
    evaluation, declared = hypothesis.evaluation, hypothesis.declared
    blocks: list[Block] = []
    if hypothesis.superseded_by:
        text = f"by {hypothesis.superseded_by}. The evidence below was gathered for this claim, not for the new one"
        blocks.append(Notice("warning", "Superseded", (text,)))
    if hypothesis.closed:
        blocks.append(Notice("warning", "Closed", (hypothesis.closed,)))
    blocks.append(Notice(evaluation.status, evaluation.status.capitalize(), (evaluation.text,)))
    uncounted = [ruling.evidence for ruling in evaluation.rulings if ruling.evidence.standing not in ("counted", "duplicate")]
    if uncounted:
        lines = tuple(f"{item.run_name}: {item.standing}" + (f", {item.why}" if item.why else "") for item in uncounted)
        blocks.append(Notice("failure", "Evidence that does not count", lines))
    counted = _counted(hypothesis)
    verdicts_of = [ruling.verdict for ruling in counted]
    modes = [ruling.evidence.mode for ruling in counted]
    facts: list[tuple[str, Cell] | tuple[str, Cell, str]] = [
        ("confidence", evaluation.confidence, f"{shown(declared.confidence)} before any evidence"),
        ("runs for it", verdicts_of.count("supports")),
        ("runs against it", verdicts_of.count("refutes")),
        ("inconclusive", verdicts_of.count("inconclusive")),
        ("interventional", modes.count("interventional"), f"{modes.count('observational')} observational"),
    ]
    return [*blocks, Facts(tuple(facts), headline=True)]


def _declaration(hypothesis: Hypothesis) -> Facts:
    declared = hypothesis.declared
    facts: list[tuple[str, Cell]] = [
        ("kind of claim", _LEVELS[declared.level]),
        ("must be shown", " and ".join(declared.requires) or None),
        ("false support allowed", f"{declared.alpha:g} over all its tests together"),
        ("subject", declared.subject),
        ("latent", declared.feature_id),
        ("tags", ", ".join(declared.tags) or None),
        ("declared", f"{_moment(hypothesis.created_at)} UTC"),
        *((f"origin {name}" if name != "from" else "origin", value) for name, value in hypothesis.origin.items()),
    ]
    return Facts(tuple((name, value) for name, value in facts if value is not None))


def _evidence(hypothesis: Hypothesis, page: Callable[[Evidence], str]) -> list[Block]:
    numbered = list(enumerate(hypothesis.evaluation.rulings, start=1))
    if not numbered:
        return [Prose("No run has tested it yet.")]
    runs = Rows(
        ("", "run", "judged (UTC)", "mode", "verdict", "standing", "likelihood ratio", "confidence"),
        tuple(
            (
                number,
                link(ruling.evidence.run_name, page(ruling.evidence)),
                _moment(ruling.evidence.at),
                ruling.evidence.mode,
                ruling.verdict,
                ruling.evidence.standing,
                ruling.likelihood_ratio,
                ruling.confidence,
            )
            for number, ruling in numbered
        ),
        "likelihood ratio: what the odds were multiplied by; confidence: after this run",
    )
    tests = Rows(
        ("", "predicted", "measured", "interval", "null", "p", "judged at", "outcome"),
        tuple(_test(number, ruling, judgement) for number, ruling in numbered for judgement in ruling.evidence.judgements),
        "p before any correction; judged at: the rate that was left for this test after all others of the hypothesis",
    )
    said = tuple(f"{number}: {ruling.text}" for number, ruling in numbered)
    measured: list[Block] = [Heading("What was measured", 3), tests] if tests.rows else []
    return [_confidence(hypothesis), runs, *measured, Heading("What each run says", 3), Points(said)]


def _test(number: int, ruling: Ruling, judgement: Judgement) -> tuple[Cell, ...]:
    estimate = judgement.estimate
    return (
        number,
        judgement.predicted + (f" ({judgement.role})" if judgement.role else ""),
        estimate.value if estimate else None,
        verdicts.between(estimate),
        verdicts.compared_with(estimate),
        judgement.p,
        next((alpha for role, _, _, alpha in ruling.tests if role == judgement.role), None),
        verdicts.side(judgement),
    )


def _confidence(hypothesis: Hypothesis) -> Picture:
    steps = [hypothesis.declared.confidence, *(ruling.confidence for ruling in hypothesis.evaluation.rulings)]
    table = ResultTable.of("confidence", [{"evidence": index, "confidence": value} for index, value in enumerate(steps)])
    title = f"Confidence in {hypothesis.id} after each piece of evidence"
    figure = Figure(name="confidence", table="confidence", kind="line", x="evidence", y=["confidence"], title=title, reference=0.5)
    return Picture(
        title, partial(draw, figure.model_copy(update={"x_label": "pieces of evidence, in order"}), table), "figures/confidence.png"
    )


def lacks(hypothesis: Hypothesis) -> Iterator[str]:
    """Yield what a reader would still ask for before believing where the hypothesis stands."""
    declared, counted = hypothesis.declared, _counted(hypothesis)
    if hypothesis.evaluation.rulings and not counted:
        yield "none of its evidence counts any more"
    elif not counted:
        yield "no run has tested it"
    if counted and declared.level == "causal" and all(ruling.evidence.mode == "observational" for ruling in counted):
        yield "no intervention: everything was observed, and what goes together need not cause"
    elif counted and declared.level == "causal" and not any(map(_beside_control, counted)):
        yield "no control: no intervention is compared with what there would be if there were nothing to find"
    for role in declared.requires:
        if not any(_says(ruling, role) for ruling in counted):
            yield f"{role} has not been tested"
        elif "supports" not in {verdict for ruling in counted for verdict in _says(ruling, role)}:
            yield f"{role} was tested and no run supports it"
    for ruling in counted:
        for judgement in ruling.evidence.judgements:
            if judgement.side is None:
                yield f"{ruling.evidence.run_name}: {judgement.metric} cannot be judged: {judgement.reason or 'it has no interval'}"
    if not declared.refuted_by:
        yield "its declaration does not say what would refute it"


def _beside_control(ruling: Ruling) -> bool:
    estimates = [judgement.estimate for judgement in ruling.evidence.judgements]
    return ruling.evidence.mode == "interventional" and any(item is not None and item.null_value is not None for item in estimates)


def _says(ruling: Ruling, role: Role) -> list[str]:
    return [verdict for tested, verdict, _, _ in ruling.tests if tested == role]


def _counted(hypothesis: Hypothesis) -> list[Ruling]:
    return [ruling for ruling in hypothesis.evaluation.rulings if ruling.evidence.standing == "counted"]


def _relatives(hypothesis: Hypothesis, links: Mapping[str, str], related: Mapping[str, str]) -> list[Block]:
    family = [("refines", hypothesis.declared.parent), ("superseded by", hypothesis.superseded_by)]
    family += [("refined by", child) for child in hypothesis.children if child != hypothesis.superseded_by]
    items = [link(f"{what} {name}", related.get(name, "")) for what, name in family if name]
    return [Heading("Lineage"), Links((*items, *(link(text, url) for text, url in links.items())))]


def _moment(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M")
