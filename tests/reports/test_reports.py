from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import cache
from html.parser import HTMLParser

import pytest
from markdown_it import MarkdownIt

from mlinterp.reports.composite import Child
from mlinterp.reports.document import link, shown
from mlinterp.reports.html import run_html, study_html, sweep_html
from mlinterp.reports.markdown import line, run_markdown, study_markdown, sweep_markdown
from mlinterp.reports.plots import draw_all
from mlinterp.result import Aggregates, Diagnostics, ExperimentResult, Figure

LINKS = {"MLflow run": "http://127.0.0.1:5000/#/experiments/1/runs/abc?workflowType=machine_learning"}
ASKED = {
    "description": "Does latent 412 carry the answer?\n\nAblate it.",
    "rationale": "It fires on the last token only.",
    "inputs": {"sae": "models:/tiny@champion"},
    "constraints": ["one_rung_per_family"],
    "expect": [{"metric": "aggregates.mean_delta", "op": "<", "value": -0.2}],
}


def intervene() -> ExperimentResult:
    result = ExperimentResult(
        mode="interventional",
        experiment_type="intervene",
        subject="tiny",
        feature_id=412,
        hypothesis="h003",
        variables={"policy": "ablate_features", "at": {"site": "z_L", "sup_steps": [0, 1]}},
        seed=7,
        spec_sha256="ab" * 32,
        inputs={"sae": "cd" * 32},
        versions={"torch": "2.13.0"},
        started_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        completed_at=datetime(2026, 1, 2, 3, 6, 5, tzinfo=UTC),
        duration_seconds=120.0,
        metrics={"intervene/delta_exact": -0.421875},
        aggregates=Aggregates(mean_delta=-0.4219, n_samples=256),
        diagnostics=Diagnostics(n_contexts_tested=253, n_contexts_skipped=3, warnings=["latent 90 never fires"]),
    )
    result.add_table(
        "effects", [{"latent": i, "token": " the", "effect": i / 8 if i else None} for i in range(25)], description="Effect of each."
    )
    result.figures = [Figure(name="effects", table="effects", kind="bar", x="latent", y=["effect"], title="Effects")]
    return result


def trace() -> ExperimentResult:
    return ExperimentResult(experiment_type="trace", subject="tiny", metrics={"trace/n_states": 64.0})


def sweep() -> ExperimentResult:
    result = ExperimentResult(experiment_type="sae_fit", subject="tiny", metrics={"sweep/n_cells": 4.0})
    rows = []
    for k in (8, 16):
        rows.append({"setting": f"k_{k}", "k": k, "seeds": 3 if k == 8 else 1})
        for metric, mean in (("sae/fvu", 2.4 / k), ("sae/l0", float(k))):
            rows[-1] |= {metric: mean, f"{metric} low": mean - 0.02 if k == 8 else None, f"{metric} high": mean + 0.02 if k == 8 else None}
    result.add_table("settings", rows)
    return result


STEPS = [("trace", trace(), LINKS), Child("intervene", intervene(), LINKS), Child("late", None, {}, "FAILED", "no active latent")]
CELLS = [(f"k={k} seed={s}", trace(), LINKS) for k in (8, 16) for s in range(2)]


class Page(HTMLParser):
    """Text and table cells of a page, and what it would load."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.sources: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.words.append(data)
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data


def markdown_page(text: str) -> Page:
    return Page(MarkdownIt("commonmark").enable("table").render(text).replace(" />", ">"))


@cache
def run_pages() -> tuple[Page, Page]:
    return Page(run_html(intervene(), asked=ASKED)), markdown_page(run_markdown(intervene(), asked=ASKED))


@cache
def reports() -> list[tuple[str, str]]:
    """Return a run, a study and a sweep, each as markdown and as HTML."""
    return [
        (run_markdown(intervene(), LINKS, asked=ASKED), run_html(intervene(), LINKS, asked=ASKED)),
        (study_markdown(trace(), STEPS, LINKS, ASKED), study_html(trace(), STEPS, LINKS, ASKED)),
        (sweep_markdown(sweep(), CELLS, LINKS), sweep_html(sweep(), CELLS, LINKS)),
    ]


@pytest.mark.parametrize(
    "part",
    [
        "intervene · tiny · latent 412",
        "Does latent 412 carry the answer?",
        "Ablate it.",
        "It fires on the last token only.",
        "models:/tiny@champion",
        "one_rung_per_family",
        "Activations inside the forward pass, or the contexts that the model reads, were edited",
        "ablate_features",
        "at.sup_steps",
        "-0.4219",
        "3 of 256 contexts were skipped",
        "latent 90 never fires",
        "Effect of each.",
        "20 of 25 rows; the whole table is tables/effects.csv",
        "ab" * 32,
        "cd" * 32,
        "2.13.0",
        "2026-01-02 03:04:05",
        "h003",
    ],
)
def test_a_run_report_says_what_was_asked_found_and_computed(part):
    for page in run_pages():
        assert part in page.text


def test_an_observation_says_that_nothing_was_changed():
    for text in (run_markdown(trace()), run_html(trace())):
        assert "nothing was changed" in text
        assert "edited inside" not in text


def test_a_prediction_stands_beside_what_was_measured():
    for page in run_pages():
        table = next(table for table in page.tables if table[0][0] == "predicted")
        assert table == [["predicted", "measured", "interval", "null", "p"], ["aggregates.mean_delta < -0.2", "-0.4219", "–", "–", "–"]]


def test_many_numbers_are_cut_to_the_first_and_the_page_says_how_many_there_are():
    many = ExperimentResult(experiment_type="trace", metrics={f"effect/place_{n:03}": n / 7 for n in range(60)})
    for page in (Page(run_html(many)), markdown_page(run_markdown(many))):
        assert "24 of 60 numbers; all are metrics of the run." in page.text
        assert "effect/place_023" in page.text
        assert "effect/place_024" not in page.text


def test_punctuation_that_ends_a_quoted_token_stays_outside_its_code_span():
    assert line("fires at '['; then at '{', or ;") == "fires at `'['`; then at `'{'`, or `;`"


def test_a_failed_run_says_why():
    failed = ExperimentResult(success=False, error_message="no active latent", experiment_type="intervene")
    for page in (Page(run_html(failed)), markdown_page(run_markdown(failed))):
        assert "Failed. no active latent" in page.text


def test_markdown_and_html_hold_the_same_words_and_numbers():
    def words(page: Page) -> list[str]:
        return sorted(re.findall(r"[\w%.:/-]*\w", page.text))

    for markdown, html in reports():
        of_markdown = re.sub(r"Figure, in report\.html and in the step's own run: .*|Effects\n", "", markdown)
        title = markdown.splitlines()[0].removeprefix("# ")
        assert words(markdown_page(of_markdown + f"\n\n{title}")) == words(Page(html))


def test_tables_of_both_have_the_same_cells():
    for markdown, html in reports():
        in_html = Page(html).tables
        in_markdown = [table for table in markdown_page(markdown).tables if table[0] != ["", ""]]
        assert in_markdown == in_html
        assert in_html


def test_pages_are_well_formed_and_load_nothing():
    for _, html in reports():
        page = Page(html)
        assert page.open == []
        assert all(source.startswith("data:image/png;base64,") or source == LINKS["MLflow run"] for source in page.sources)
        assert "default-src &#x27;none&#x27;; img-src data:; style-src &#x27;unsafe-inline&#x27;" in html
        assert "<script" not in html


def test_figures_are_those_drawn_and_markdown_names_their_files():
    drawn = draw_all(intervene())
    assert run_html(intervene(), figures=drawn) == run_html(intervene())
    assert "(figures/effects.png)" in run_markdown(intervene(), figures=drawn)


def test_equal_results_give_equal_reports():
    assert run_markdown(intervene(), LINKS, asked=ASKED) == run_markdown(intervene(), LINKS, asked=ASKED)
    assert run_html(intervene(), LINKS, asked=ASKED) == run_html(intervene(), LINKS, asked=ASKED)


def test_a_study_lists_its_steps_with_type_status_headline_and_link():
    table = Page(study_html(trace(), STEPS)).tables[0]
    assert table[0] == ["step", "type", "mode", "status", "headline"]
    assert table[1] == ["trace", "trace", "observational", "FINISHED", "trace/n_states 64"]
    assert table[2] == ["intervene", "intervene", "interventional", "FINISHED", "intervene/delta_exact -0.4219"]
    assert table[3] == ["late", "–", "–", "FAILED", "no active latent"]
    assert f"[intervene]({LINKS['MLflow run']})" in study_markdown(trace(), STEPS)


def test_a_study_shows_a_steps_warning_once():
    parent = trace()
    parent.diagnostics.warnings = ["intervene: latent 90 never fires", "of its own"]
    page = Page(study_html(parent, STEPS)).text
    assert page.count("latent 90 never fires") == 1
    assert page.count("of its own") == 1


def test_a_sweep_shows_means_with_intervals_and_none_for_one_seed():
    table = Page(sweep_html(sweep(), CELLS)).tables[0]
    assert table[0] == ["setting", "k", "seeds", "sae/fvu", "sae/l0"]
    assert table[1] == ["k_8", "8", "3", "0.3 (0.28 to 0.32)", "8 (7.98 to 8.02)"]
    assert table[2] == ["k_16", "16", "1", "0.15", "16"]


def test_a_sweep_lists_every_cell():
    cells = Page(sweep_html(sweep(), CELLS)).tables[-1]
    assert [row[0] for row in cells[1:]] == ["k=8 seed=0", "k=8 seed=1", "k=16 seed=0", "k=16 seed=1"]


def test_a_wide_table_is_cut_and_says_so():
    result = trace()
    result.add_table("wide", [{f"c{i}": i for i in range(30)}])
    page = Page(run_html(result))
    assert len(page.tables[-1][0]) == 12
    assert "12 of 30 columns; the whole table is tables/wide.csv" in page.text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.123456, "0.1235"), (-0.00012345, "-0.0001234"), (0.1, "0.1"), (100.0, "100"), (99.999, "100"), (1e-5, "1e-05"),
        (123456.7, "123457"), (0.0, "0"), (12345678, "12345678"), (2e9, "2e+09"), (True, "yes"), (None, "–"),
        (float("nan"), "NaN"), (float("-inf"), "-∞"), (" the ", "␣the␣"), ("\n", "\\n"), ("x" * 500, "x" * 159 + "…"),
        ("http://ada:pw@host", "http://host"),
    ],
)  # fmt: skip
def test_values_are_shown_as_people_read_them(value, text):
    assert shown(value) == text


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("#/experiments/1/runs/a?workflowType=machine_learning", "#/experiments/1/runs/a?workflowType=machine_learning"),
        (
            "https://ada:pw@host:8443/x?token=abc#/runs/1?workflowType=machine_learning",
            "https://host:8443/x#/runs/1?workflowType=machine_learning",
        ),
        ("http://[::1]:5000/", "http://[::1]:5000/"),
        ('http://host/a") onload=x <b>', "http://host/a%22%29%20onload%3Dx%20%3Cb%3E"),
        ("javascript:alert(1)", None),
        ("data:text/html,<script>", None),
        ("//host/x", None),
        ("../x", None),
        ("http://", None),
        ("http://host:99999/", None),
        ("file:///etc/hostname", None),
    ],
)
def test_only_web_addresses_become_links_and_lose_user_and_query(given, address):
    assert link("run", given).url == address
