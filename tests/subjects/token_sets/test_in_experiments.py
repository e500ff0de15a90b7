"""The stages that know nothing of token sets, run on one: trained, traced, an SAE from the trace and from a stream, looked at, edited."""

from __future__ import annotations

import json
from typing import Any

import pytest
import token_sets

import mlinterp
from mlinterp.execution.summary import RunSummary

SAE = {
    "site": "pooled",
    "activation": "topk",
    "k": 4,
    "d_sae": 32,
    "steps": 40,
    "batch_size": 64,
    "checkpoint_every": 20,
    "positions": "all",
}
STEPS: list[dict[str, Any]] = [
    {"name": "fit", "type": "subject_fit", "variables": {"steps": 60, "eval_every": 30, "options": {"batch_size": 64, "lr": 0.01}}},
    {"name": "trace", "type": "trace", "variables": {"sites": ["pooled"], "examples": {"split": "train", "n": 200}, "batch_size": 64}},
    {"name": "sae", "type": "sae_fit", "inputs": {"trace": "@trace"}, "variables": SAE},
    {
        "name": "streamed",
        "type": "sae_fit",
        "variables": {**SAE, "stream": {"split": "train", "n_examples": 200, "batch_size": 32, "buffer_rows": 128}},
    },
    {"name": "latents", "type": "latent_dashboard", "inputs": {"sae": "@sae", "trace": "@trace"}, "variables": {"latents": "top:5"}},
    {
        "name": "edit",
        "type": "intervene",
        "inputs": {"sae": "@sae", "trace": "@trace"},
        "variables": {
            "examples": {"split": "test", "n": 60},
            "n_bootstrap": 100,
            "interventions": [
                {"policy": "ablate_features", "features": "top:2", "at": {"site": "pooled"}},
                {"policy": "patch_states", "at": {"site": "pooled"}},
            ],
        },
    },
]


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> dict[str, RunSummary]:
    project = token_sets.make(tmp_path_factory.mktemp("study"))
    steps = [step if step["name"] == "fit" else {**step, "inputs": {"subject": "@fit", **step.get("inputs", {})}} for step in STEPS]
    (project / "study.yaml").write_text(json.dumps({"type": "study", "subject": "learned", "steps": steps}))
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("MLINTERP_THREADS", "1")
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"):
            monkeypatch.delenv(name, raising=False)
        summary = mlinterp.run_spec(project / "study.yaml")
    assert summary.status == "FINISHED"
    return {str(child.label): child for child in summary.children}


def table(run: RunSummary, name: str) -> list[dict[str, Any]]:
    assert run.result is not None
    return run.result.tables[name].rows


def test_a_fit_scores_contexts_with_an_interval(done):
    accuracy = done["fit"].result.estimates["subject/accuracy"]
    assert (accuracy.n, accuracy.interval) == (80, "Wilson score")
    assert accuracy.low <= accuracy.value <= accuracy.high
    assert accuracy.value > 0.9


def test_a_trace_and_a_stream_of_it_fit_saes_on_one_row_a_context(done):
    assert done["trace"].result.metrics["trace/n_states"] == 200
    assert done["sae"].result.metrics["sae/fvu"] < 0.5
    assert done["streamed"].result.metrics["stream/rows"] > 100
    assert done["streamed"].result.metrics["sae/fvu"] < 0.5


def test_a_latents_contexts_are_shown_whole_with_their_group(done):
    shown = [row["context_1"] for row in table(done["sae"], "latents") if row["context_1"]]
    assert all(text.startswith(("«<weapon ", "«<no weapon>»")) for text in shown)
    assert any("power_3" in text for text in shown)
    assert not any("<padding>" in text for text in shown)


def test_a_dashboard_tells_the_outputs_that_a_latent_raises_by_their_names(done):
    assert {row["raises"] for row in table(done["latents"], "latents")} <= set(token_sets.Fighters().outputs)
    assert {row["token"] for row in table(done["latents"], "logits")} <= set(token_sets.Fighters().outputs)


def test_edits_of_latents_and_states_are_measured_beside_an_identity_that_moves_nothing(done):
    assert done["edit"].status == "FINISHED"
    assert done["edit"].result.mode == "interventional"
    assert {"top/effect", "top/control_effect"} <= set(done["edit"].result.metrics)
