"""Latents of an SAE that a study fits are patched in its next steps, and logged as such."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import workbench
from watched import write_texts

import mlinterp
from mlinterp.errors import SpecError
from mlinterp.tracking.store import open_store


def gpt(n_heads: int) -> dict[str, Any]:
    """Return a small random GPT-2 as a project declares it."""
    config = {"model_type": "gpt2", "n_layer": 2, "n_embd": 16, "n_head": n_heads, "n_positions": 16, "initializer_range": 0.3}
    data = {"kind": "text", "root": "text", "context": 12, "tokenizer": {"train_bpe": {"vocab_size": 270}}}
    return {"kind": "huggingface", "source": {"config": config}, "data": data}


ASKED: dict[str, Any] = {
    "pairs": [{"clean": f"f({n}, [2", "corrupted": f"f({n}) [2", "answer": "]", "wrong": ")"} for n in range(4)],
    "component": "sae_latent",
    "metric": "l2",
    "n_bootstrap": 200,
    "controls": 2,
    "untrained": False,
}
SITE = "blocks.1.resid_pre"
FITTED: dict[str, Any] = {"activation": "topk", "k": 4, "d_sae": 32, "steps": 10, "batch_size": 64, "n_top_contexts": 1, "controls": False}
FITTED["evaluate"] = {"substitution": False}
STEPS = [
    {"name": "trace", "type": "trace", "variables": {"sites": [SITE], "examples": {"split": "train", "n": 40}}},
    {"name": "sae", "type": "sae_fit", "inputs": {"trace": "@trace"}, "variables": {"site": SITE, **FITTED}},
    {"name": "latents", "type": "activation_patching", "inputs": {"sae": "@sae"}, "variables": {**deepcopy(ASKED), "positions": "each"}},
    {
        "name": "ablated",
        "type": "attribution_patching",
        "inputs": {"sae": "@sae"},
        "variables": {**deepcopy(ASKED), "metric": "logit_diff", "direction": "noise", "ablation": "mean"},
    },
]


def test_latents_of_a_fitted_sae_are_patched_in_the_steps_after_it(tmp_path: Path) -> None:
    root = tmp_path / "projects" / "patched"
    root.mkdir(parents=True)
    write_texts(root)
    workbench.write(root / "project.yaml", {"name": "patched", "subjects": {"gpt": gpt(2), "other": gpt(4)}})
    summary = mlinterp.run_spec(workbench.write(root / "study.yaml", {"type": "study", "subject": "gpt", "steps": STEPS}))
    store = open_store(tmp_path)
    runs = {str(child.label): store.client.get_run(child.run_id) for child in summary.children}
    files = {name: {path.name for path in Path(run.info.artifact_uri).rglob("*")} for name, run in runs.items()}
    assert {"latents_by_position.png", "latents.csv", "largest.png", "patches.csv", "pairs.csv", "joint.csv"} <= files["latents"]
    assert {"largest.png", "agreement.png"} <= files["ablated"]
    for name in ("latents", "ablated"):
        numbers = runs[name].data.metrics
        assert numbers["latents/asked"] == 32
        assert 0 < numbers["latents/patched"] <= 32
        assert {"top/adjusted_effect", "joint_effect/all"} <= set(numbers)
    assert runs["ablated"].data.params["spec.variables.ablation"] == "mean"
    sae = f"run:{runs['sae'].info.run_id}"
    foreign = {"type": "activation_patching", "subject": "other", "inputs": {"sae": sae}, "variables": ASKED}
    with pytest.raises(SpecError, match=r"inputs\.sae: the SAE was fitted on subject .*, 'other' as given here is"):
        mlinterp.run_spec(workbench.write(root / "foreign.yaml", foreign))
