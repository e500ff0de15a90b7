"""Take the README's screenshots from a running MLflow UI: `mlinterp ui`, then `python docs/screenshots.py`.

Needs `pip install playwright` and a Chromium (its path in CHROMIUM, /usr/bin/chromium by default).
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from mlflow import MlflowClient
from playwright.sync_api import Page, sync_playwright

IMAGES = Path(__file__).parent / "images"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
QUERY = "workflowType=machine_learning"


def newest(client: MlflowClient, experiment: str, where: str) -> str:
    """Return the newest finished run of an experiment that fits."""
    runs = client.search_runs([experiment], f"{where} and attributes.status = 'FINISHED'", max_results=1)
    if not runs:
        raise SystemExit(f"no finished run with {where}; run projects/trm_sudoku/study.yaml first")
    return str(runs[0].info.run_id)


def shoot(page: Page, address: str, name: str, *clicks: str) -> None:
    """Open a page, let it settle, click on what is named, and keep a picture of it."""
    page.goto(address)
    page.wait_for_timeout(6000)  # the UI keeps polling, so it is never idle
    for text in ("Close", "Dismiss", "Got it", "Skip"):
        button = page.get_by_role("button", name=text, exact=True)
        if button.count():
            button.first.click()
    for text in clicks:
        page.get_by_text(text, exact=True).first.click()
        page.wait_for_timeout(500)
    page.screenshot(path=IMAGES / f"{name}.png")


def main() -> None:
    """Take every picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:5000")
    parser.add_argument("--project", default="trm_sudoku")
    options = parser.parse_args()
    client = MlflowClient(options.url, options.url)
    experiment = client.get_experiment_by_name(options.project).experiment_id
    study = newest(client, experiment, "tags.`mlinterp.kind` = 'study'")
    where = newest(client, experiment, "tags.`mlinterp.label` = 'where'")
    claim = newest(client, experiment, "tags.`mlinterp.kind` = 'hypothesis' and tags.`mlinterp.status` = 'supported'")
    model = next(found.name for found in client.search_registered_models() if found.name.startswith(options.project))
    runs = f"{options.url}/#/experiments/{experiment}/runs"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"), args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 860})
        shoot(page, f"{runs}?viewStateShareKey=mlinterp-runs&compareRunsMode=TABLE&{QUERY}", "runs")
        shoot(page, f"{runs}?viewStateShareKey=mlinterp-effects&compareRunsMode=CHART&{QUERY}", "effects")
        shoot(page, f"{runs}?viewStateShareKey=mlinterp-saes&compareRunsMode=CHART&{QUERY}", "saes")
        shoot(page, f"{runs}/{study}?{QUERY}", "study")
        shoot(page, f"{runs}/{where}?{QUERY}", "run")
        shoot(page, f"{runs}/{where}/artifacts/tables/addresses.csv?{QUERY}", "table")
        shoot(page, f"{runs}/{where}/artifacts/figures/agreement_by_address.png?{QUERY}", "figure")
        shoot(page, f"{options.url}/#/models/{model}?{QUERY}", "model")
        shoot(page, f"{runs}?viewStateShareKey=mlinterp-confidence&compareRunsMode=CHART&{QUERY}", "confidence")
        sweep = newest(client, experiment, "tags.`mlinterp.kind` = 'sweep'")
        shoot(page, f"{runs}?viewStateShareKey=mlinterp-sweep-{sweep[:12]}&compareRunsMode=CHART&{QUERY}", "sweep")
        shoot(page, f"{runs}?viewStateShareKey=mlinterp-hypotheses&compareRunsMode=TABLE&{QUERY}", "by_hypothesis")
        shoot(page, f"{runs}/{claim}?{QUERY}", "hypothesis", "Show more")
        shoot(page, f"{options.url}/mlinterp/lineage/{experiment}", "lineage", "Collapse studies", "Fit all")
        browser.close()


if __name__ == "__main__":
    main()
