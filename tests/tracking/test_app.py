"""Our pages inside a real MLflow server, by plain HTTP. How they look and behave in a browser is tests/ui's."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import sqlite3
from urllib.parse import quote, urlsplit

import evidence
import psutil
import pytest
from ports import free_port

from mlinterp.hypotheses.records import Declaration
from mlinterp.reports.lineage_page import policy
from mlinterp.tracking.server import running
from mlinterp.tracking.store import open_store

ROUTES = ("/mlinterp/lineage", "/mlinterp/lineage/1", "/mlinterp/lineage/1.json")
LINEAGE, DATA = ROUTES[1:]


@pytest.fixture(scope="module")
def session(tmp_path_factory, template):
    """A project, experiment 1, with a hypothesis and one run for it."""
    root = tmp_path_factory.mktemp("served")
    shutil.copyfile(template, root / "mlruns.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        opened = evidence.session(evidence.project(root))
        opened.ledger.add(Declaration(claim="the last state holds the answer"))
        evidence.run(opened, "h001", evidence.FOR)
    assert opened.experiment_id == "1"
    return opened


@pytest.fixture(scope="module")
def server(session):
    port = free_port()
    with running(open_store(session.workspace, f"sqlite:///{session.workspace / 'mlruns.db'}"), port) as process:
        yield process, f"http://127.0.0.1:{port}"


@pytest.fixture
def get(server):
    def answer(path, method="GET", **headers):
        connection = http.client.HTTPConnection(urlsplit(server[1]).netloc, timeout=60)
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        body = response.read().decode()
        connection.close()
        return response.status, response.headers, body

    return answer


def test_the_page_of_a_project_comes_with_its_policy_and_its_lineage(get):
    status, headers, body = get(LINEAGE)
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert headers["content-security-policy"] == f"{policy(live=True)}; frame-ancestors 'self'"
    assert (headers["cache-control"], headers["x-content-type-options"]) == ("no-store", "nosniff")
    data = json.loads(re.search(r'application/json">(.*?)</script>', body, re.DOTALL)[1])
    hypothesis, run = data["nodes"]
    assert (hypothesis["id"], hypothesis["title"], run["state"]) == ("h001", "the last state holds the answer", "supports")
    assert re.fullmatch(r"/#/experiments/1/runs/[0-9a-f]{32}\?workflowType=machine_learning", run["link"])
    assert data["edges"] == [{"source": run["id"], "target": "h001", "kind": "evidence", "label": "supports"}]
    assert (data["live"], data["project"]) == (True, "maze")


def test_each_request_tells_what_is_so_now(get, session):
    first, second = json.loads(get(DATA)[2]), json.loads(get(DATA)[2])
    assert {**first, "generated": ""} == {**second, "generated": ""}
    run = evidence.run(session, "h001", evidence.AGAINST)
    added = [node for node in json.loads(get(DATA)[2])["nodes"] if node["id"] == run]
    assert [node["state"] for node in added] == ["refutes"]
    session.store.client.delete_run(run)
    assert [node["standing"] for node in json.loads(get(DATA)[2])["nodes"] if node["id"] == run] in ([], ["deleted"])


@pytest.mark.parametrize(
    "name", ["99", "x", "1e0", "-1", "1.0", "0x1", "\uff11", "1'--", "<script>", "9" * 18, "9" * 5000, "1\x00", "..", "1;1"]
)
@pytest.mark.parametrize("suffix", ["", ".json"])
def test_what_is_no_project_is_not_found_in_one_plain_sentence(get, name, suffix):
    status, headers, body = get(f"/mlinterp/lineage/{quote(name)}{suffix}")
    assert (status, body) == (404, "There is no such project on this server.\n")
    assert headers["content-type"].startswith("text/plain")


def test_a_deleted_project_is_not_found(get, session):
    gone = session.store.experiment_id("gone")
    assert get(f"/mlinterp/lineage/{gone}")[0] == 200
    session.store.client.delete_experiment(gone)
    assert get(f"/mlinterp/lineage/{gone}")[0] == 404


@pytest.mark.parametrize("path", ["/mlinterp", "/mlinterp/x", "/mlinterp/lineage/1/x", "/mlinterp/lineage/1/../../x", "/mlinterp//lineage"])
def test_nothing_else_answers_there(get, path):
    assert get(path)[0] == 404


@pytest.mark.parametrize("route", ROUTES)
def test_a_page_is_for_reading_only_and_from_this_machine_only(get, route):
    assert {get(route, method)[0] for method in ("POST", "PUT", "DELETE", "PATCH")} == {405}
    status, _, body = get(route, Host="evil.example")
    assert (status, "Invalid Host header" in body) == (403, True)
    assert "access-control-allow-origin" not in get(route, Origin="https://evil.example")[1]


def test_mlflow_answers_as_before(get):
    assert get("/health")[::2] == (200, "OK")
    assert "<title>MLflow</title>" in get("/")[2]
    assert json.loads(get("/api/2.0/mlflow/experiments/get?experiment_id=1")[2])["experiment"]["name"] == "maze"


def test_the_list_of_projects_is_skipped_where_there_is_one_and_names_them_where_there_are_several(get, session):
    status, headers, _ = get(ROUTES[0])
    assert (status, urlsplit(headers["location"]).path) == (302, LINEAGE)
    other = session.store.experiment_id("<b>other</b>")
    session.store.client.create_run(other, tags={"mlinterp.type": "trace"})
    status, headers, body = get(ROUTES[0])
    assert status == 200
    assert "frame-ancestors 'self'" in headers["content-security-policy"]
    assert f'<a href="/mlinterp/lineage/{other}">&lt;b&gt;other&lt;/b&gt;</a>' in body
    assert f'<a href="{LINEAGE}">maze</a>' in body
    session.store.client.delete_experiment(other)
    session.store.client.delete_experiment("1")
    assert "No project has a run or a hypothesis yet." in get(ROUTES[0])[2]
    session.store.client.restore_experiment("1")


def test_a_store_that_fails_is_named_in_one_plain_sentence(get, session):
    with sqlite3.connect(session.workspace / "mlruns.db") as database:
        database.execute("ALTER TABLE runs RENAME TO runs_away")
    try:
        status, headers, body = get(LINEAGE)
    finally:
        with sqlite3.connect(session.workspace / "mlruns.db") as database:
            database.execute("ALTER TABLE runs_away RENAME TO runs")
        database.close()
    assert (status, headers["content-type"]) == (503, "text/plain; charset=utf-8")
    assert body.startswith(f"tracking store sqlite:///{session.workspace / 'mlruns.db'}: ")
    assert len(body.splitlines()) == 1
    assert get(LINEAGE)[0] == 200


def test_no_process_of_the_server_loads_torch(get, server):
    assert get(LINEAGE)[0] == 200
    started = psutil.Process(server[0].pid)
    loaded = {region.path for process in [started, *started.children(recursive=True)] for region in process.memory_maps()}
    assert any("sqlite" in path for path in loaded)
    assert not [path for path in loaded if "torch" in path]
