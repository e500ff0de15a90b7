"""Killed at any durable act while a claim is added or a run becomes evidence: nothing is stuck, and the lineage is true afterwards."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import workbench
from forkserver import ForkServer

from mlinterp.hypotheses.ledger import Ledger
from mlinterp.project import find_project
from mlinterp.tracking.store import open_store

EXPECT = [{"metric": "trace/token_acc", "op": ">", "value": 0.0}]
CLAIM = {"claim": "the model knows some of the answer", "level": "correlational"}


class Lab:
    """A workspace with a trained subject, and a server that runs things in it."""

    def __init__(self, root: Path) -> None:
        self.root, self.server = root, ForkServer(root)
        study = workbench.make(root, steps=workbench.STEPS[:1])
        self.folder = study.parent
        workbench.write(self.folder / "hypotheses.yaml", {"h001": CLAIM})
        self.server.do("run", study)
        store = open_store(root)
        self.ledger()  # what the file declares is brought in once, and is no act of a run
        self.subject = store.client.search_runs([store.experiment_id("bench")], "tags.`mlinterp.produces` = 'subject'")[0].info.run_id

    def spec(self, seed: int) -> Path:
        trace = workbench.step("trace", {"subject": self.subject}, examples={"split": "test", "n": 24})
        return workbench.write(self.folder / f"trace{seed}.yaml", {**trace, "seed": seed, "hypothesis": "h001", "expect": EXPECT})

    def ledger(self) -> Ledger:
        return Ledger.open(find_project(self.folder))


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    lab = Lab(tmp_path_factory.mktemp("lab"))
    yield lab
    lab.server.close()


def every(n: int, quick: int):
    """Return 1 to n, all but `quick` of them marked slow."""
    step = max(1, n // quick)
    return [at if at % step == 0 else pytest.param(at, marks=pytest.mark.slow) for at in range(1, n + 1)]


@pytest.mark.parametrize("at", every(16, 4))
def test_a_claim_that_was_being_added_leaves_nothing_open_and_no_id_twice(lab, at):
    before = {one.id for one in lab.ledger().all()}
    job = lab.server.start("claim", lab.folder, f"claim number {at} of the test", die_at=at)
    job.code()
    lab.server.do("reconcile", lab.root)
    made = lab.server.do("claim", lab.folder, f"claim number {at} after that")
    ledger = lab.ledger()
    ids = [one.id for one in ledger.all()]
    assert len(ids) == len(set(ids)) <= len(before) + 2
    assert made in ids
    assert made not in before
    runs = ledger.store.client.search_runs([ledger.experiment_id], max_results=5000)
    assert not [run for run in runs if run.info.status in ("RUNNING", "SCHEDULED")]


@pytest.mark.parametrize("at", every(48, 6))
def test_a_run_that_was_becoming_evidence_is_evidence_once_it_was_resumed(lab, at):
    spec = lab.spec(at)
    last = lab.server.do("acts", lab.spec(1000 + at))
    job = lab.server.start("run", spec, die_at=last - at)
    assert job.code() in (-signal.SIGKILL, 0), job.said()  # the very last acts are not the same in every run
    lab.server.do("reconcile", lab.root)
    ledger = lab.ledger()
    run = ledger.store.client.search_runs(
        [ledger.experiment_id], "tags.`mlinterp.kind` = 'trace'", order_by=["attributes.start_time DESC"]
    )[0]
    if run.info.status != "FINISHED":
        lab.server.do("resume", run.info.run_id, lab.root)
    ledger.stale()
    there = ledger.get("h001")
    mine = [ruling for ruling in there.evaluation.rulings if ruling.evidence.run_id == run.info.run_id]
    assert [ruling.verdict for ruling in mine] == ["supports"]
    assert mine[0].evidence.standing in ("counted", "duplicate")  # every run of this test measures the same
    tags = ledger.store.client.get_run(run.info.run_id).data.tags
    assert (tags["mlinterp.verdict"], tags["mlinterp.standing"]) == ("supports", mine[0].evidence.standing)
    page = ledger.store.client.get_run(there.run_id)
    assert (page.data.tags["mlinterp.status"], page.data.metrics["hypothesis/confidence"]) == ("supported", there.evaluation.confidence)
