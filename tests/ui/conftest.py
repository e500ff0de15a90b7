"""A real Chromium. Where playwright or a browser is missing, every test here is skipped and says so."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import evidence
import pytest
from ports import free_port

from mlinterp.hypotheses.records import Declaration
from mlinterp.tracking.life import RunLife
from mlinterp.tracking.server import running
from mlinterp.tracking.store import open_store

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
HOSTILE = "<img src=x onerror=\"document.title='pwned'\"></script>\u202e{{7*7}}"
CLAIM = "The last state holds the whole answer"


@pytest.fixture(scope="session")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")
    with playwright.sync_playwright() as started:
        found = next((path for name in BROWSERS if (path := shutil.which(name))), started.chromium.executable_path)
        if not Path(found).exists():
            pytest.skip(
                f"no browser: none of {', '.join(BROWSERS)} on PATH, and playwright has none of its own (playwright install chromium)"
            )
        opened = started.chromium.launch(executable_path=found, args=list(FLAGS))
        yield opened
        opened.close()


@pytest.fixture
def tab(browser):
    """A window whose every console message, error, dialog and request is kept."""
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.set_default_timeout(15_000)
    page.said, page.asked = [], []
    page.on("console", lambda message: page.said.append(_line(message)))
    page.on("pageerror", lambda error: page.said.append(f"error: {error}"))
    page.on("dialog", lambda dialog: (page.said.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda request: page.asked.append(request.url))
    yield page
    page.close()


def _line(message) -> str:
    where = message.location.get("url", "") if "Failed to load" in message.text else ""
    return f"{message.type}: {message.text} {where}".strip()


class Investigation:
    """A project in a store: h001 with its evidence, its child h002, a study, an SAE, and a name that means harm."""

    def __init__(self, root: Path) -> None:
        self.session = evidence.session(evidence.project(root))
        ledger = self.session.ledger
        self.experiment_id = self.session.experiment_id
        ledger.add(Declaration(claim=CLAIM, prediction="agreement above 0.8"))
        with RunLife(self.session.store, self.experiment_id, "sae_fit · maze", self._tags("sae_fit", produces="sae"), root) as life:
            life.recorder.metrics({"sae/l0": 6.0, "substitution/ce_loss_recovered": 0.97, "sae/fvu": 0.02}, 0)
        self.sae = life.run_id
        with RunLife(self.session.store, self.experiment_id, "study · maze", self._tags("study", kind="study"), root) as life:
            self.study = life.run_id
            self.supports = evidence.run(self.session, "h001", evidence.FOR, upstream=[self.sae], parent=self.study, name="where")
            self.refutes = evidence.run(self.session, "h001", evidence.AGAINST, upstream=[self.sae], parent=self.study, name="latents")
        self.child = ledger.supersede("h001", Declaration(claim="The last state holds all but the last digit")).run_id
        ledger.add(Declaration(claim=HOSTILE))
        self.hostile = evidence.run(self.session, "h003", evidence.UNDECIDED, name=HOSTILE)

    def _tags(self, type_: str, kind: str = "run", **more: str) -> dict[str, str]:
        return {"mlinterp.type": type_, "mlinterp.kind": kind, **{f"mlinterp.{name}": value for name, value in more.items()}}


@pytest.fixture(scope="session")
def investigation(tmp_path_factory) -> Iterator[Investigation]:
    root = tmp_path_factory.mktemp("investigation")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"):
            patch.delenv(name, raising=False)
        yield Investigation(root)


@pytest.fixture(scope="session")
def server(investigation) -> Iterator[str]:
    """The address of a real MLflow server with our pages, on the investigation's store."""
    store = open_store(investigation.session.workspace)
    port = free_port()
    with running(store, port):
        yield f"http://127.0.0.1:{port}"
