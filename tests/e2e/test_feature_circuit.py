"""A feature circuit as the last step of a study that fits its SAEs: lineage, file, tables and figures in MLflow."""

from __future__ import annotations

import json
from pathlib import Path

import workbench
import yaml
from prompts import CAUSAL
from watched import write_texts

import mlinterp
from mlinterp.tracking.store import open_store

PROJECT = {
    "name": "features",
    "subjects": {
        "toy": {
            "kind": "huggingface",
            "source": {"config": {"initializer_range": 0.3, **CAUSAL["gpt2"], "n_layer": 2}},
            "data": {"kind": "text", "root": "text", "context": 12, "validation": 0.2, "tokenizer": {"train_bpe": {"vocab_size": 270}}},
        }
    },
}
SITES = {"low": "blocks.0.resid_post", "high": "blocks.1.resid_post"}
FIT = {"activation": "topk", "k": 4, "d_sae": 32, "steps": 40, "batch_size": 64}


def test_saes_of_two_hook_points_of_a_study_make_a_feature_circuit(tmp_path: Path) -> None:
    root = tmp_path / "features"
    root.mkdir()
    write_texts(root)
    (root / "project.yaml").write_text(yaml.safe_dump(PROJECT))
    pairs = [{"clean": [9, 20 + i, 7, 9], "corrupted": [9, 40 + i, 7, 9], "answer": 20 + i, "wrong": 40 + i} for i in range(6)]
    variables = {"pairs": pairs, "ig_steps": 4, "top": 5, "sizes": [2, 10], "n_bootstrap": 200, "exact": 4}
    steps = [
        {"name": "trace", "type": "trace", "variables": {"sites": list(SITES.values()), "examples": {"split": "train", "n": 40}}},
        *(
            {"name": name, "type": "sae_fit", "inputs": {"trace": "@trace"}, "variables": {"site": site, **FIT}}
            for name, site in SITES.items()
        ),
        {"name": "circuit", "type": "feature_circuit", "inputs": {"sae": "@high", "sae_b": "@low"}, "variables": variables},
    ]
    summary = mlinterp.run_spec(workbench.write(root / "study.yaml", {"type": "study", "subject": "toy", "steps": steps}))
    assert summary.status == "FINISHED"
    store, child = open_store(root), summary.children[-1]
    run = store.client.get_run(child.run_id)
    artifacts = Path(run.info.artifact_uri)
    circuit = json.loads((artifacts / "circuit.json").read_text())
    # In the order of the model, whatever the order of the inputs.
    assert [(each["input"], each["site"]) for each in circuit["saes"]] == [("sae_b", SITES["low"]), ("sae", SITES["high"])]
    assert run.data.metrics["circuit/n_latents"] == len(circuit["nodes"]) == 5
    assert run.data.metrics["circuit/n_edges"] == len(circuit["edges"])
    pictures = ["circuit.png", "completeness.png", "faithfulness.png", "largest_nodes.png"]
    assert sorted(path.name for path in artifacts.rglob("*.png")) == pictures
    assert {"nodes.json", "edges.json", "curve.json"} <= {path.name for path in artifacts.rglob("*.json")}
