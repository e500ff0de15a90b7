"""What was predicted beside what was measured, and what a ruling makes of it: the blocks that reports of runs and hypotheses share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mlinterp.reports.document import Block, Facts, Heading, Notice, Rows, shown
from mlinterp.result import Cell, Estimate, ExperimentResult

if TYPE_CHECKING:
    from mlinterp.hypotheses.records import Judgement, Ruling

_UNCOUNTED = {
    "retracted": "Its numbers no longer count",
    "stale": "What it rests on no longer stands, so its numbers no longer count",
    "unregistered": "Its prediction was not on record before its result, so it does not count",
    "deleted": "It lies in the bin, so its numbers no longer count",
    "duplicate": "It repeats what was counted already",
}


def between(estimate: Estimate | None) -> str | None:
    """Return an interval as text; None where there is none.

    >>> between(Estimate(value=0.5, low=0.25, high=0.75, n=8, interval="bootstrap"))
    '0.25 to 0.75 (95%)'
    """
    if estimate is None or estimate.low is None or estimate.high is None:
        return None
    return f"{shown(estimate.low)} to {shown(estimate.high)} ({shown(100 * estimate.level)}%)"


def compared_with(estimate: Estimate | None) -> str | None:
    """Return what a number is compared with, and what it would be if there were nothing to find."""
    if estimate is None or estimate.null is None:
        return None
    return estimate.null if estimate.null_value is None else f"{estimate.null} (would be {shown(estimate.null_value)})"


def predictions(result: ExperimentResult, asked: Mapping[str, Any], judged: Sequence[Judgement]) -> list[Block]:
    """Return what the spec predicted beside what was measured, its interval, its null and the p value before any correction."""
    rows: list[tuple[Cell, ...]] = []
    for index, item in enumerate(asked.get("expect") or []):
        name, value = result.number_named(item["metric"]) or (item["metric"], None)
        judgement = judged[index] if index < len(judged) else None
        estimate = judgement.estimate if judgement else result.estimates.get(name)
        p = judgement.p if judgement else estimate.p if estimate else None
        said = [side(judgement) if judgement else None] if judged else []
        rows.append((predicted(item), value, between(estimate), compared_with(estimate), p, *said))
    if not rows:
        return []
    columns = ("predicted", "measured", "interval", "null", "p", *(["outcome"] if judged else []))
    return [Heading("What was predicted", 3), Rows(columns, tuple(rows), "p before any correction for the number of tests")]


def predicted(item: Mapping[str, Any]) -> str:
    """Return a prediction of a spec as text, with its role where it has one."""
    around = f" ± {item['tolerance']:g}" if item.get("tolerance") else ""
    role = f" ({item['role']})" if item.get("role") else ""
    return f"{item['metric']} {item['op']} {item['value']:g}{around}{role}"


def side(judgement: Judgement) -> str:
    """Return whether a number lies where it was predicted, or why that cannot be said."""
    if judgement.side is None:
        return f"cannot be judged: {judgement.reason or 'it has no interval'}"
    return "as predicted" if judgement.side == "inside" else "not as predicted"


def standing(ruling: Ruling | None) -> list[Block]:
    """Return, for the top of a report, why its numbers do not count, where they do not."""
    if ruling is None or ruling.evidence.standing == "counted":
        return []
    kind, why = ruling.evidence.standing, ruling.evidence.why
    return [Notice("warning" if kind == "duplicate" else "failure", kind.capitalize(), (_UNCOUNTED[kind] + (f": {why}" if why else ""),))]


def brief(ruling: Ruling | None) -> str | None:
    """Return a verdict in a few words, with why it does not count where it does not."""
    if ruling is None:
        return None
    return ruling.verdict if ruling.evidence.standing == "counted" else f"{ruling.verdict}, but {ruling.evidence.standing}"


def notice(ruling: Ruling, hypothesis: str | None) -> Notice:
    """Return a verdict with its test, interval and null."""
    said = {"supports": "Supports", "refutes": "Refutes", "inconclusive": "Inconclusive about"}[ruling.verdict]
    return Notice(ruling.verdict, f"{said} {hypothesis or 'what was predicted'}", (ruling.text.removeprefix(f"{ruling.verdict}: "),))


def verdict(ruling: Ruling | None, hypothesis: str | None) -> list[Block]:
    """Return what a run says for its hypothesis, among all tests of it, or by itself."""
    if ruling is None:
        return []
    blocks: list[Block] = [Heading("Verdict"), notice(ruling, hypothesis)]
    if len(ruling.tests) > 1:
        rows = tuple((role or "the prediction", said, p, alpha) for role, said, p, alpha in ruling.tests)
        blocks.append(Rows(("test", "verdict", "p", "judged at"), rows))
    facts: list[tuple[str, Cell]] = [("mode", ruling.evidence.mode), ("standing", ruling.evidence.standing)]
    if hypothesis:
        facts += [("likelihood ratio", ruling.likelihood_ratio), ("confidence after it", ruling.confidence)]
    return [*blocks, Facts(tuple(facts))]
