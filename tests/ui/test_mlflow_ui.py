"""What we write into the store, as MLflow's own UI shows it: the tree of hypotheses, saved views, pages of runs."""

from __future__ import annotations

import re

import pytest

from mlinterp.tracking import links, views

KNOWN = (
    r"warning: AG Grid: since v27\.1, `(getRowNodeId|immutableData)` is deprecated",
    r"warning: AG Grid: tried to call sizeColumnsToFit\(\) but the grid is coming back with zero width",
    r"error: Failed to load resource: the server responded with a status of 404 \(Not Found\) .*/ajax-api/2\.0/mlflow/users/current$",
    r"error: null ResizeObserver loop completed with undelivered notifications\.$",
)
"""What MLflow 3.17's own pages say on the console, whatever is in the store."""


@pytest.fixture
def ui(tab, server, investigation):
    views.write_views(investigation.session.store, investigation.experiment_id)

    tab.set_viewport_size({"width": 2600, "height": 1200})  # the table draws only the columns that are in view

    def opened(address):
        tab.goto(f"{server}/{address}")
        return tab

    yield opened
    assert [said for said in tab.said if not any(re.match(known, said) for known in KNOWN)] == []
    assert all(address.startswith((server, "data:", "blob:")) for address in tab.asked)


def open_view(ui, investigation, key, mode):
    return ui(links.view(investigation.experiment_id, key, mode))


def names(tab):
    return tab.locator("[col-id='attributes.`Run Name`'] a").all_inner_texts()


def test_a_hypothesis_opens_to_its_children_in_the_table_of_runs(ui, investigation):
    tab = ui(links.experiment(investigation.experiment_id))
    row = tab.get_by_role("row").filter(has_text="h001 · The last state holds the whole answer").first
    row.wait_for()
    assert not [name for name in names(tab) if name.startswith("h002")]
    row.get_by_role("button").click()
    tab.get_by_text("h002 · The last state holds all but the last digit").wait_for()
    tab.get_by_role("row").filter(has_text="study · maze").first.get_by_role("button").click()
    tab.get_by_role("link", name="where", exact=True).wait_for()


def test_the_view_of_hypotheses_shows_their_tree_with_status_and_confidence(ui, investigation):
    tab = open_view(ui, investigation, "mlinterp-ledger", "TABLE")
    row = tab.get_by_role("row").filter(has_text="h001 · The last state holds the whole answer").first
    row.get_by_role("button").click()
    tab.get_by_role("link", name="h002 · The last state holds all but the last digit").wait_for()
    assert {"mlinterp.status", "mlinterp.claim", "hypothesis/confidence"} <= set(tab.get_by_role("columnheader").all_inner_texts())
    assert [name[:4] for name in names(tab)] == ["h003", "h001", "h002"]
    assert tab.get_by_role("gridcell", name="superseded").count() == 1


def test_the_view_by_hypothesis_groups_runs_with_their_verdicts(ui, investigation):
    tab = open_view(ui, investigation, "mlinterp-hypotheses", "TABLE")
    for name in ("h001", "h003"):
        tab.get_by_text(f"Group: {name}").wait_for()
    assert {"mlinterp.hypothesis", "mlinterp.verdict"} <= set(tab.get_by_role("columnheader").all_inner_texts())
    assert {"where", "latents"} <= set(names(tab))


def test_the_view_of_saes_draws_a_point_for_each(ui, investigation):
    tab = open_view(ui, investigation, "mlinterp-saes", "CHART")
    chart = tab.locator(".js-plotly-plot").first
    chart.locator(".point").wait_for()
    assert tab.get_by_text("sae/l0 vs. substitution/ce_loss_recovered").count() >= 1
    assert chart.locator(".point").count() == 1


def test_the_view_of_all_runs_lays_the_tree_flat(ui, investigation):
    tab = open_view(ui, investigation, "mlinterp-runs", "TABLE")
    tab.get_by_role("link", name="where", exact=True).wait_for()
    assert {"where", "latents", "sae_fit · maze"} <= set(names(tab))


def test_hostile_names_stay_text_in_table_and_page(ui, investigation):
    tab = ui(links.experiment(investigation.experiment_id))
    tab.get_by_role("row").filter(has_text="<img src=x").first.wait_for()
    ui(links.run(investigation.experiment_id, investigation.hostile))
    tab.get_by_role("heading").filter(has_text="<img src=x").first.wait_for()
    assert tab.locator("img[src='x']").count() == 0
    assert "pwned" not in tab.title()


def test_the_note_of_a_run_links_to_its_hypothesis_and_what_it_rests_on(ui, server, investigation):
    tab = ui(links.run(investigation.experiment_id, investigation.supports))
    tab.get_by_role("heading", name="where").wait_for()
    link = tab.get_by_role("link", name="sae_fit · maze").first
    link.wait_for()
    assert investigation.sae in link.get_attribute("href")
