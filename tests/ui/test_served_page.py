"""The lineage page as `mlinterp ui` serves it, on a real MLflow server with real runs."""

from __future__ import annotations

import evidence
import pytest


@pytest.fixture
def page(tab, server, investigation):
    tab.goto(f"{server}/mlinterp/lineage/{investigation.experiment_id}")
    tab.wait_for_selector("html[data-ready]")
    return tab


def states(page):
    """What each node says of itself last: its state, and why it does not count where it does not."""
    cards = page.locator("#canvas .node").evaluate_all("cards => cards.map(card => [card.dataset.id, card.ariaLabel])")
    return {name: label.removesuffix(", confidence 50 %").rsplit(", ", 1)[-1] for name, label in cards}


def test_hypotheses_runs_and_models_are_there_with_their_verdicts(page, investigation):
    wanted = {"h001": "superseded", "h002": "proposed", "h003": "testing"}
    wanted |= {investigation.sae: "finished", investigation.study: "finished"}
    wanted |= {investigation.supports: "supports", investigation.refutes: "refutes", investigation.hostile: "inconclusive"}
    assert states(page).items() >= wanted.items()
    assert page.locator("#tree [role=treeitem]").evaluate_all("items => items.map(item => item.dataset.id)") == ["h001", "h002", "h003"]
    assert page.locator("#tree [data-id=h002]").get_attribute("aria-level") == "2"
    assert page.locator("#canvas .edge.refines").count() == 1
    assert page.locator("#canvas .edge.contains").count() == 2
    assert page.said == []


def test_its_links_lead_to_the_pages_of_runs_and_hypotheses(page, server, investigation):
    page.locator("#tree [data-id=h002]").click()
    page.locator("#details h2 a").click()
    page.wait_for_url(f"{server}/#/experiments/{investigation.experiment_id}/runs/{investigation.child}?workflowType=machine_learning")
    page.get_by_role("heading", name="h002 · The last state holds all but the last digit").wait_for()
    page.go_back()
    page.wait_for_selector("html[data-ready]")
    assert page.locator("#details .chips b").inner_text() == "h002"
    page.locator(f".node[data-id='{investigation.refutes}'] .body").dblclick()
    page.get_by_role("heading", name="latents").wait_for()
    assert f"/runs/{investigation.refutes}" in page.url


def test_refreshing_shows_what_is_new_and_keeps_what_is_selected(page, investigation):
    page.locator("#tree [data-id=h003]").click()
    page.locator("#query").fill("last state")
    page.locator("#found button").first.click()
    page.locator("#refresh").click()
    page.get_by_text("up to date").wait_for()
    run = evidence.run(investigation.session, "h003", evidence.FOR, name="a newer run")
    page.locator("#refresh").click()
    page.get_by_text("1 new", exact=True).wait_for()
    assert states(page)[run] == "supports"
    assert page.locator("#details .chips b").inner_text() == "h001"
    assert page.locator("#query").input_value() == "last state"
    investigation.session.ledger.retract(run, "made for a test")
    page.locator("#refresh").click()
    page.get_by_text("up to date").wait_for()
    assert states(page)[run] == "retracted"
    assert page.said == []


def test_a_server_that_is_gone_is_said_so_and_the_page_stays(page):
    page.route("**/*.json", lambda route: route.abort())
    page.locator("#refresh").click()
    page.get_by_text("not refreshed").wait_for()
    assert page.locator("#refresh").is_enabled()
    assert "h001" in states(page)


def test_hostile_names_of_real_runs_stay_text(page, investigation):
    page.locator("#tree [data-id=h003]").click()
    assert page.locator("#details h2").inner_text().startswith("<img src=x onerror=")
    assert "\\u202e" in page.locator("#details h2").inner_text()
    assert page.locator("img").count() == 0
    assert page.title() == "maze: lineage"
