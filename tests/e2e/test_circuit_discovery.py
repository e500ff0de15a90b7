"""A circuit search as a tracked run: its files, tables and figures in MLflow."""

from __future__ import annotations

import json
from pathlib import Path

import workbench
import yaml
from prompts import CAUSAL

import mlinterp
from mlinterp.tracking.store import open_store

PROJECT = {
    "name": "circuits",
    "subjects": {
        "toy": {
            "kind": "huggingface",
            "source": {"config": {"initializer_range": 0.3, **CAUSAL["llama"], "num_hidden_layers": 2}},
            "data": {"kind": "text", "root": "text", "context": 12, "tokenizer": {"train_bpe": {"vocab_size": 270}}},
        }
    },
}


def test_a_circuit_search_is_a_run_whose_circuit_is_a_file_that_path_patching_takes_up(tmp_path: Path) -> None:
    root = tmp_path / "circuits"
    (root / "text").mkdir(parents=True)
    for number in range(6):
        (root / "text" / f"{number}.py").write_text("".join(f"value_{i} = ({i}, [{number}])\n" for i in range(20)))
    (root / "project.yaml").write_text(yaml.safe_dump(PROJECT))
    pairs = [{"clean": [9, 20 + i, 7, 9], "corrupted": [9, 40 + i, 7, 9], "answer": 20 + i, "wrong": 40 + i} for i in range(6)]
    (root / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    variables = {"pairs": "pairs.jsonl", "ig_steps": 4, "sizes": [5, 50, 500], "n_bootstrap": 200, "exact": 4}
    spec = workbench.write(root / "circuit.yaml", {"type": "circuit_discovery", "subject": "toy", "variables": variables})
    summary = mlinterp.run_spec(spec)
    assert summary.status == "FINISHED"
    store = open_store(root)
    run = store.client.get_run(summary.run_id)
    artifacts = Path(run.info.artifact_uri)
    circuit = json.loads((artifacts / "circuit.json").read_text())
    assert (circuit["method"], circuit["ablation"]) == ("eap_ig", "resample")
    assert run.data.metrics["circuit/n_edges"] == len(circuit["edges"]) > 0
    pictures = ["circuit.png", "completeness.png", "faithfulness.png", "minimality.png", "nodes.png"]
    assert sorted(path.name for path in artifacts.rglob("*.png")) == pictures
    assert {"edges.json", "nodes.json", "curve.json"} <= {path.name for path in artifacts.rglob("*.json")}
    asked = {"pairs": "pairs.jsonl", "n_bootstrap": 200, "controls": 2, "untrained": False}
    paths = {"type": "path_patching", "subject": "toy", "inputs": {"circuit": f"run:{summary.run_id}"}, "variables": asked}
    patched = mlinterp.run_spec(workbench.write(root / "paths.yaml", paths))
    rows = json.loads((Path(store.client.get_run(patched.run_id).info.artifact_uri) / "tables" / "paths.json").read_text())["data"]
    assert len(rows) == min(len(circuit["edges"]), 200)
