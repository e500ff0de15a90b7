"""The lineage page in a real browser, as a file: what a reader sees and can do."""

from __future__ import annotations

import re

import lineages
import pytest

from mlinterp.reports.lineage_graph import Edge, Lineage, Node
from mlinterp.reports.lineage_page import lineage_html

SERVER = "http://127.0.0.1:5000"


@pytest.fixture
def show(tab, tmp_path):
    def opened(lineage, fragment=""):
        path = tmp_path / "lineage.html"
        path.write_text(lineage_html(lineage, SERVER), encoding="utf-8")
        tab.goto(path.as_uri() + fragment)
        assert tab.said == []
        tab.wait_for_selector("html[data-ready]")
        return tab

    yield opened
    assert tab.said == []
    assert all(address.startswith(("file:", "data:")) for address in tab.asked)


def shown(tab, which=".node"):
    return set(tab.locator(f"#canvas {which}").evaluate_all("cards => cards.map(card => card.dataset.id)"))


def tree(tab):
    return tab.locator("#tree [role=treeitem]").evaluate_all("items => items.map(item => [item.dataset.id, item.ariaLevel])")


def closure(lineage, start):
    """Everything above and below a node: the page's own answer is compared with this."""
    found = {start}
    for source, target in (("source", "target"), ("target", "source")):
        reached, new = {start}, {start}
        while new:
            new = {getattr(edge, target) for edge in lineage.edges if getattr(edge, source) in new} - reached
            reached |= new
        found |= reached
    return found


def contained(lineage):
    return {edge.target for edge in lineage.edges if edge.kind == "contains"}


def scale(tab):
    return tab.locator("#canvas > g").evaluate("stage => stage.getCTM().a")


def test_every_node_is_drawn_and_every_hypothesis_in_the_tree_below_its_parent(show):
    lineage = lineages.lineage(30)
    tab = show(lineage)
    assert shown(tab) == {node.id for node in lineage.nodes}
    assert tab.locator("#canvas .edge").count() == len(lineage.edges)
    assert tree(tab) == [["h001", "1"], ["h002", "2"], ["h003", "1"]]
    assert tab.locator("#project").inner_text() == "Lineage of trm_sudoku"
    assert tab.locator("#project a").get_attribute("href") == f"{SERVER}/{lineage.link}"
    assert tab.locator("#counts").inner_text().startswith("3 hypotheses · 20 runs · 2 SAEs")


def test_three_nodes_stand_from_left_to_right_and_in_view(show):
    tab = show(lineages.lineage(3))
    places = {kind: tab.locator(f".kind-{kind}").bounding_box() for kind in ("sae", "run", "hypothesis")}
    assert places["sae"]["x"] < places["run"]["x"] < places["hypothesis"]["x"]
    assert len({round(place["y"] + place["height"] / 2) for place in places.values()}) == 1
    for place in places.values():
        assert 330 < place["x"] < 1440 - place["width"]
    assert tab.locator(".kind-hypothesis text.sure").text_content() == "86 %"


def test_an_empty_project_says_what_to_do(show):
    tab = show(lineages.lineage(0))
    assert "mlinterp run SPEC" in tab.locator("#empty").inner_text()
    assert "mlinterp hypothesis add" in tab.locator("#tree").inner_text()
    assert shown(tab) == set()


def test_three_hundred_nodes_start_collapsed_legible_and_with_the_first_hypothesis_in_view(show):
    lineage = lineages.lineage(300)
    tab = show(lineage)
    assert shown(tab) == {node.id for node in lineage.nodes} - contained(lineage)
    first = tab.locator(".node[data-id=h001]").bounding_box()
    assert 330 < first["x"] < 1440 - first["width"]
    assert 90 < first["y"] < 900 - first["height"]
    assert 12 * scale(tab) >= 7.5
    assert tab.evaluate("performance.now()") < 8000  # half a second on a quiet machine


def test_a_click_on_a_hypothesis_tells_its_facts_links_to_its_page_and_brings_out_its_lineage(show):
    lineage = lineages.lineage(30)
    node = next(node for node in lineage.nodes if node.id == "h003")
    tab = show(lineage)
    tab.locator(".node[data-id=h003] .body").click()
    panel = tab.locator("#details")
    assert panel.locator("h2 a").get_attribute("href") == f"{SERVER}/{node.link}"
    assert panel.locator("h2").inner_text() == node.title
    assert "an effect no larger than its random-latent control's" in panel.inner_text()
    assert panel.locator(".related").first.locator("li").count() == sum(e.target == "h003" and e.kind == "evidence" for e in lineage.edges)
    assert shown(tab, ".node.lit") == closure(lineage, "h003")
    assert tab.locator("#tree [aria-selected=true]").get_attribute("data-id") == "h003"
    assert tab.url.endswith("#h003")
    tab.keyboard.press("Escape")
    assert panel.is_hidden()
    assert shown(tab, ".node.lit") == set()


@pytest.mark.parametrize("size", [30, 300])
def test_focus_shows_the_lineage_of_a_run_and_hides_the_rest(show, size):
    lineage = lineages.lineage(size)
    run = next(edge.source for edge in lineage.edges if edge.target == "h001" and edge.source not in contained(lineage))
    tab = show(lineage, f"#{run}")
    assert tab.locator("#details h2").inner_text() == next(node.title for node in lineage.nodes if node.id == run)
    tab.locator("#focus").click()
    assert shown(tab) == closure(lineage, run)
    tab.keyboard.press("f")
    assert shown(tab) == {node.id for node in lineage.nodes} - (contained(lineage) if size > 60 else set())
    assert tab.locator("#details").is_visible()


def test_a_double_click_goes_to_the_page_in_mlflow(show):
    lineage = lineages.lineage(3)
    tab = show(lineage)
    tab.route(f"{SERVER}/**", lambda route: route.fulfill(body="MLflow"))
    tab.locator(".kind-run .body").dblclick()
    tab.wait_for_url(f"{SERVER}/{lineage.nodes[2].link}")
    tab.asked.clear()


def test_a_study_opens_on_a_click_where_it_stands_and_closes_again(show):
    lineage = lineages.lineage(300)
    study = next(edge.source for edge in lineage.edges if edge.kind == "contains")
    inside = {edge.target for edge in lineage.edges if edge.kind == "contains" and edge.source == study}
    tab = show(lineage, f"#{study}")
    card = tab.locator(f".node[data-id='{study}']")
    before = card.bounding_box()
    assert not inside & shown(tab)
    card.locator(".body").click()
    assert inside <= shown(tab)
    after = card.bounding_box()
    assert abs(after["x"] - before["x"]) < 3
    assert abs(after["y"] - before["y"]) < 3
    assert card.get_attribute("aria-expanded") == "true"
    card.locator(".toggle").click()
    assert not inside & shown(tab)
    tab.locator("#groups").click()
    assert shown(tab) == {node.id for node in lineage.nodes}


def test_what_a_study_holds_is_found_through_it_while_it_is_closed(show):
    lineage = lineages.lineage(300)
    edge = next(edge for edge in lineage.edges if edge.kind == "contains")
    tab = show(lineage, f"#{edge.target}")
    assert shown(tab, ".node.selected") == {edge.source}
    assert tab.locator("#details h2").inner_text() == next(node.title for node in lineage.nodes if node.id == edge.target)


def test_the_tree_is_walked_and_opened_by_keyboard(show):
    tab = show(lineages.lineage(30))
    tab.locator("#tree [data-id=h001]").focus()
    tab.keyboard.press("ArrowLeft")
    assert tree(tab) == [["h001", "1"], ["h003", "1"]]
    assert tab.locator("#tree [data-id=h001]").get_attribute("aria-expanded") == "false"
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowDown")
    tab.keyboard.press("Enter")
    assert tab.locator("#tree [aria-selected=true]").get_attribute("data-id") == "h002"
    assert tab.evaluate("document.activeElement.dataset.id") == "h002"
    tab.keyboard.press("ArrowLeft")
    assert tab.evaluate("document.activeElement.dataset.id") == "h001"
    tab.keyboard.press("End")
    assert tab.evaluate("document.activeElement.dataset.id") == "h003"


def test_a_search_finds_what_a_closed_branch_of_the_tree_holds(show):
    tab = show(lineages.lineage(30))
    tab.locator("#tree [data-id=h001] .twist").click()
    tab.locator("#query").fill("naked")
    assert tree(tab) == [["h001", "1"], ["h002", "2"]]
    tab.locator("#query").fill("")
    assert tree(tab) == [["h001", "1"], ["h003", "1"]]


def test_the_tree_opens_and_closes_by_mouse_without_selecting(show):
    tab = show(lineages.lineage(30))
    tab.locator("#tree [data-id=h001] .twist").click()
    assert tree(tab) == [["h001", "1"], ["h003", "1"]]
    assert tab.locator("#details").is_hidden()


def test_the_graph_is_walked_by_arrow_keys(show):
    lineage = lineages.lineage(3)
    tab = show(lineage)
    assert tab.locator(".node[tabindex='0']").count() == 1
    tab.locator(".node[tabindex='0']").focus()
    for key, kind in (("ArrowLeft", "run"), ("ArrowLeft", "sae"), ("ArrowRight", "run")):
        tab.keyboard.press(key)
        assert f"kind-{kind}" in tab.evaluate("document.activeElement.getAttribute('class')")
    assert tab.evaluate("document.activeElement.ariaLabel") == "run, intervene · trm4 · e95e301f, supports"
    tab.keyboard.press("Enter")
    assert tab.locator("#details h2").inner_text() == "intervene · trm4 · e95e301f"


def test_filters_hide_kinds_verdicts_and_what_does_not_count(show):
    lineage = lineages.lineage(30)
    tab = show(lineage)
    for facet, value, hides in (
        ("kind", "trace", lambda node: node.kind == "trace"),
        ("verdict", "refutes", lambda node: node.kind != "hypothesis" and node.state == "refutes"),
        ("standing", "stale", lambda node: node.standing == "stale"),
        ("status", "testing", lambda node: node.kind == "hypothesis" and node.state == "testing"),
    ):
        hidden = {node.id for node in lineage.nodes if hides(node)}
        label = tab.locator(f"#filters label:has(input[data-facet={facet}][data-value={value}])")
        assert label.locator("small").inner_text() == str(len(hidden))
        box = label.locator("input")
        box.uncheck()
        assert shown(tab) == {node.id for node in lineage.nodes} - hidden
        box.check()
    for box in tab.locator("#filters input[data-facet=kind]").all():
        box.uncheck()
    assert "tick more of the filters" in tab.locator("#empty").inner_text()


def test_search_finds_by_claim_name_and_fact_and_enter_goes_from_one_to_the_next(show):
    lineage = lineages.lineage(300)
    tab = show(lineage)
    tab.keyboard.press("/")
    tab.keyboard.type("NAKED single")
    wanted = [node.id for node in lineage.nodes if "naked single" in node.title]
    assert tab.locator("#found .number").inner_text() == f"{len(wanted)} of 300"
    assert shown(tab, ".node.lit") == set(wanted)
    for expected in (wanted[0], wanted[1]):
        tab.keyboard.press("Enter")
        assert tab.locator("#details .chips b").inner_text() == expected
    tab.keyboard.press("Escape")
    assert tab.locator("#found li").count() == 0
    tab.locator("#query").fill("no such thing")
    assert tab.locator("#found").inner_text() == "Nothing found."
    assert tab.locator("#tree").inner_text() == "No hypothesis fits."


def test_the_graph_is_zoomed_by_wheel_and_buttons_and_moved_by_dragging_without_selecting(show):
    tab = show(lineages.lineage(30))
    canvas = tab.locator("#canvas").bounding_box()
    middle = canvas["x"] + canvas["width"] / 2, canvas["y"] + canvas["height"] / 2
    tab.mouse.move(*middle)
    before = scale(tab)
    tab.mouse.wheel(0, -300)
    tab.wait_for_function(f"document.querySelector('#canvas > g').getCTM().a > {before}")
    tab.locator("#fit-width").click()
    assert scale(tab) == pytest.approx(before)
    tab.locator("#in").click()
    assert scale(tab) == pytest.approx(1.25 * before, rel=1e-3)
    tab.locator("#fit").click()
    card = tab.locator(".node[data-id=h003]")
    start = card.bounding_box()
    tab.mouse.move(start["x"] + 20, start["y"] + 20)
    tab.mouse.down()
    tab.mouse.move(start["x"] - 30, start["y"] + 80, steps=5)
    tab.mouse.up()
    end = card.bounding_box()
    assert (end["x"] - start["x"], end["y"] - start["y"]) == (pytest.approx(-50, abs=2), pytest.approx(60, abs=2))
    assert tab.locator("#details").is_hidden()


def test_evidence_that_does_not_count_is_dashed_and_arrows_have_the_colour_of_their_verdict(show):
    nodes = (
        Node("h001", "hypothesis", "claim", "testing"),
        Node("a", "run", "a", "supports"),
        Node("b", "run", "b", "refutes", "retracted"),
    )
    edges = (Edge("a", "h001", "evidence", "supports"), Edge("b", "h001", "evidence", "refutes"))
    tab = show(Lineage("p", "1", nodes, edges))
    style = "edge => [getComputedStyle(edge).strokeDasharray, getComputedStyle(edge).stroke]"
    counted, retracted = (tab.locator(f"#canvas .edge.{verdict}").evaluate(style) for verdict in ("supports", "refutes"))
    assert (counted[0], retracted[0]) == ("none", "7px, 5px")
    assert counted[1] != retracted[1]
    assert tab.locator(".node[data-id=b] .title").evaluate("text => getComputedStyle(text).textDecorationLine") == "line-through"
    assert tab.locator("#tree .tally").count() == 1


def test_circles_and_strange_ids_are_drawn_all_the_same(show):
    nodes = tuple(Node(name, "hypothesis", f"claim {name}", "testing") for name in ("__proto__", "constructor", "h 1", "n0"))
    edges = tuple(
        Edge(a, b, "refines") for a, b in (("__proto__", "constructor"), ("constructor", "__proto__"), ("h 1", "h 1"), ("h 1", "n0"))
    )
    tab = show(Lineage("p", "1", nodes, (*edges, Edge("n0", "h 1", "contains"), Edge("h 1", "n0", "contains"))))
    assert shown(tab) == {node.id for node in nodes}
    assert sorted(name for name, _ in tree(tab)) == sorted(node.id for node in nodes)


@pytest.mark.parametrize("fragment", ["", "#h001", "#%E0%A4%A", "#<img src=x onerror=alert(1)>"])
def test_hostile_names_stay_text(show, fragment):
    lineage = lineages.hostile()
    tab = show(lineage, fragment)
    for item in tab.locator("#tree [role=treeitem]").all():
        item.click()
    tab.locator("#query").fill("script")
    assert tab.locator("#found button").count() > 5
    assert tab.title() == f"{lineages.HOSTILE[0]}: lineage"
    assert tab.locator("script").count() == 2
    assert tab.locator("img, iframe, b:has(*), [onerror], [onmouseover]").count() == 0
    addresses = tab.locator("a").evaluate_all("links => links.map(link => link.getAttribute('href'))")
    assert all(re.fullmatch(rf"{SERVER}/#/[\w/?=&%:.~,+-]*", address) for address in addresses)
    assert tab.locator(".node[data-id=h001] .claim").first.text_content().startswith("<script>")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_are_easy_to_tell_from_what_is_behind_them(show, tab, scheme):
    """Contrast ratio of at least 4.5 for text and 3 for lines that mean something (WCAG 2.2, 1.4.3 and 1.4.11)."""
    tab.emulate_media(color_scheme=scheme)
    show(lineages.lineage(3))
    names = ["ink", "muted", "accent", "supports", "refutes", "inconclusive", "testing", "proposed", "superseded", "failed", "killed"]
    read = "names => names.map(name => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim())"
    behind = tab.evaluate(read, ["page", "panel", "raised", "hover"])
    for name, colour in zip(names, tab.evaluate(read, names), strict=True):
        for surface in behind:
            assert contrast(colour, surface) >= 4.5, (name, surface)
    (mark,) = tab.evaluate(read, ["on-state"])
    for name, colour in zip(names[3:], tab.evaluate(read, names[3:]), strict=True):
        assert contrast(mark, colour) >= 3, name


def contrast(one, other):
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour):
    channels = (int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5))
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
