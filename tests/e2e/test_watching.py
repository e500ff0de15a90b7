"""The types that only watch a model, as steps of a study: tracked, linked to what they rest on, with the figures that they declare."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import workbench
import yaml
from watched import write_texts

import mlinterp
from mlinterp.tracking.store import open_store

PROJECT = {
    "name": "watched",
    "subjects": {
        "gpt": {
            "kind": "huggingface",
            "source": {"config": {"model_type": "gpt2", "n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": 16}},
            "data": {
                "kind": "text",
                "root": "text",
                "context": 12,
                "tokenizer": {"train_bpe": {"vocab_size": 280}},
                "validation": 0.2,
                "test": 0.2,
            },
        }
    },
}
STEPS = [
    {"name": "fit", "type": "subject_fit", "variables": {"steps": 20, "options": {"batch_size": 8}}},
    {"name": "logits", "type": "direct_logit_attribution", "inputs": {"subject": "@fit"}, "variables": {"examples": {"n": 10}}},
    {
        "name": "tuned",
        "type": "tuned_lens",
        "inputs": {"subject": "@fit"},
        "variables": {"steps": 10, "validation_examples": 8, "test_examples": 8},
    },
    {
        "name": "through",
        "type": "logit_lens",
        "inputs": {"subject": "@fit", "tuned_lens": "@tuned"},
        "variables": {"prompts": [{"text": "f(1, [2", "answer": "]"}]},
    },
    {"name": "heads", "type": "head_detectors", "inputs": {"subject": "@fit"}, "variables": {"n_sequences": 8}},
]
FIGURES = {
    "logits": {"heads", "components"},
    "tuned": {"kl", "agreement"},
    "through": {"layers", "kl", "positions", "tokens_1"},
    "heads": {"induction", "previous_token", "duplicate_token", "first_token", "current_token"},
}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("watched")
    folder = root / "projects" / "watched"
    folder.mkdir(parents=True)
    write_texts(folder)
    (folder / "project.yaml").write_text(yaml.safe_dump(PROJECT))
    return workbench.write(folder / "study.yaml", {"type": "study", "subject": "gpt", "steps": STEPS})


def test_a_study_watches_a_model_through_every_lens(study: Path) -> None:
    summary = mlinterp.run_spec(study)
    store = open_store(study.parent.parent.parent)
    runs = {str(child.label): store.client.get_run(child.run_id) for child in summary.children}
    assert {name: run.info.status for name, run in runs.items()} == {step["name"]: "FINISHED" for step in STEPS}
    for name, figures in FIGURES.items():
        folder = Path(runs[name].info.artifact_uri)
        assert {path.stem for path in (folder / "figures").glob("*.png")} >= figures
        assert json.loads((folder / "result.json").read_text())["mode"] == "observational"
        assert (folder / "tables" / "estimates.csv").is_file()
        assert runs["fit"].info.run_id in runs[name].data.tags["mlinterp.upstream"]
    assert runs["tuned"].info.run_id in runs["through"].data.tags["mlinterp.upstream"]
    assert runs["logits"].data.metrics["dla/completeness_error"] < 1e-5
    assert runs["tuned"].data.metrics["lens/n_worse"] == 0
