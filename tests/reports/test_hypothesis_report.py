from __future__ import annotations

from dataclasses import replace
from typing import get_args

from markdown_it import MarkdownIt

from mlinterp.hypotheses.records import Declaration, Evaluation, Evidence, Hypothesis, Judgement, Ruling, Standing
from mlinterp.reports import html, markdown, verdicts
from mlinterp.reports.document import Picture, drawn
from mlinterp.reports.hypothesis import hypothesis_document, lacks
from mlinterp.result import Estimate


def judgement(**fields) -> Judgement:
    estimate = Estimate(value=-17.04, low=-21.3, high=-13.2, n=150, interval="bootstrap", null="random latents", null_value=0.0)
    base = {
        "metric": "top/effect",
        "predicted": "top/effect < -5",
        "role": "necessity",
        "side": "inside",
        "p": 0.0002,
        "estimate": estimate,
    }
    return Judgement.model_validate({**base, **fields})


def evidence(index: int, *judgements: Judgement, mode="interventional", standing="counted", why=None) -> Evidence:
    return Evidence(f"{index:032x}", "7", f"intervene · trm4 · {index:08x}", 1_763_721_000_000 + index, mode, judgements, standing, why)


def ruling(item: Evidence, verdict: str, role="necessity", ratio=9.0, confidence=0.9) -> Ruling:
    return Ruling(item, verdict, ((role, verdict, 0.0002, 0.025),), f"{verdict} at 0.025: top/effect = -17.04", ratio, confidence)


def hypothesis(*rulings: Ruling, **declared) -> Hypothesis:
    claim = Declaration.model_validate({"claim": "z_H holds the answer at the last cycle", "refuted_by": "it does not move", **declared})
    evaluation = Evaluation("supported", 0.9, rulings, "one run supports it and none refutes it")
    return Hypothesis("h002", "f" * 32, "7", claim, 1_763_720_000_000, evaluation)


def document(found: Hypothesis):
    related = {"h001": "http://host/#/h1", "h003": "http://host/#/h3"}
    return hypothesis_document(found, lambda item: f"http://host/#/runs/{item.run_id}", {"its page": "http://host/#/page"}, related)


def texts(found: Hypothesis) -> tuple[str, str]:
    made, _ = drawn(document(found))
    return markdown.render(made), html.render(made)


SUPPORTED = hypothesis(ruling(evidence(1, judgement()), "supports"), prediction="patching moves the answer", parent="h001")


def test_a_hypothesis_report_says_what_is_claimed_where_it_stands_and_why():
    for text in texts(SUPPORTED):
        for part in (
            "z_H holds the answer at the last cycle",
            "patching moves the answer",
            "it does not move",
            "Supported",
            "one run supports it and none refutes it",
            "only interventions",
            "supports at 0.025: top/effect = -17.04",
        ):
            assert part in text, part


def test_evidence_stands_in_order_with_mode_interval_null_rate_and_confidence():
    second = ruling(evidence(2, judgement(side="outside", p=0.03), mode="observational"), "inconclusive", ratio=1.0)
    page, _ = texts(hypothesis(ruling(evidence(1, judgement()), "supports"), second))
    assert page.index("intervene · trm4 · 00000001") < page.index("intervene · trm4 · 00000002")
    row = next(line for line in page.splitlines() if "00000001" in line)
    assert [cell.strip() for cell in row.split("|")[3:-1]] == ["2025-11-21 10:30", "interventional", "supports", "counted", "9", "0.9"]
    measured = next(line for line in page.splitlines() if "-21.3 to -13.2" in line)
    assert "random latents (would be 0)" in measured
    assert "| 0.0002 | 0.025 | as predicted |" in measured
    assert "not as predicted" in page
    assert "observational" in page


def test_evidence_that_does_not_count_is_named_at_the_top_with_its_reason():
    item = evidence(1, judgement(), standing="retracted", why="the SAE saw the test split")
    for text in texts(hypothesis(ruling(item, "supports", ratio=1.0))):
        assert text.index("Evidence that does not count") < text.index("What is claimed")
        assert "retracted, the SAE saw the test split" in text


def test_relatives_and_runs_are_links():
    page, _ = texts(replace(SUPPORTED, children=("h003",), superseded_by=None))
    assert "[refines h001](http://host/#/h1)" in page
    assert "[refined by h003](http://host/#/h3)" in page
    assert "[its page](http://host/#/page)" in page
    assert f"(http://host/#/runs/{1:032x})" in page


def test_a_superseded_hypothesis_says_by_which():
    for text in texts(replace(SUPPORTED, superseded_by="h003", children=("h003",))):
        assert "Superseded" in text
        assert "superseded by h003" in text
        assert "refined by h003" not in text


def test_the_figure_begins_with_the_confidence_before_any_evidence():
    (picture,) = [block for block in document(SUPPORTED).blocks if isinstance(block, Picture)]
    assert picture.path == "figures/confidence.png"
    assert picture.png().startswith(b"\x89PNG")
    longer = hypothesis(ruling(evidence(1, judgement()), "supports"), ruling(evidence(2, judgement()), "supports", confidence=0.95))
    (other,) = [block for block in document(longer).blocks if isinstance(block, Picture)]
    assert other.png() != picture.png()


def test_without_evidence_there_is_no_figure_and_the_report_says_so():
    found = hypothesis()
    assert not any(isinstance(block, Picture) for block in document(found).blocks)
    assert "No run has tested it yet." in texts(found)[0]
    assert list(lacks(found)) == ["no run has tested it"]


def test_a_claim_that_nothing_lacks_says_so():
    assert list(lacks(SUPPORTED)) == []
    assert "Nothing of what the claim itself asks for." in texts(SUPPORTED)[0]


def test_what_is_lacking_is_each_role_an_intervention_an_interval_and_a_way_to_refute():
    observed = ruling(evidence(1, judgement(side=None, estimate=None, reason="it has no interval"), mode="observational"), "inconclusive")
    found = hypothesis(observed, requires=["necessity", "sufficiency"], refuted_by=None)
    assert list(lacks(found)) == [
        "no intervention: everything was observed, and what goes together need not cause",
        "necessity was tested and no run supports it",
        "sufficiency has not been tested",
        "intervene · trm4 · 00000001: top/effect cannot be judged: it has no interval",
        "its declaration does not say what would refute it",
    ]


def test_a_correlational_claim_lacks_no_intervention():
    observed = ruling(evidence(1, judgement(), mode="observational"), "supports")
    assert list(lacks(hypothesis(observed, level="correlational"))) == []


def test_hostile_text_in_every_field_stays_text():
    text = "<script>alert(1)</script> | [x](javascript:alert(1))\n\n# zz"
    item = replace(evidence(1, judgement(side=None, estimate=None, metric=text, predicted=text, reason=text)), run_name=text, why=text)
    said = replace(ruling(replace(item, standing="stale"), "inconclusive"), text=text)
    found = hypothesis(said, claim=text, prediction=text, refuted_by=text, notes=text)
    page, html_page = texts(replace(found, closed=text, origin={"from": text}, evaluation=replace(found.evaluation, text=text)))
    rendered = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(page)
    for made in (html_page, rendered):
        assert "<script" not in made
        assert 'href="javascript' not in made
        assert "<h1>zz" not in made


def test_every_way_of_not_counting_is_put_into_words():
    assert set(get_args(Standing)) - {"counted"} == set(verdicts._UNCOUNTED)
