"""A project with a small random GPT-2 and prompt pairs for it, on which workflows run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import workbench
from prompts import CAUSAL
from watched import write_texts

from mlinterp.workflows import WorkflowResult

SITE = "blocks.0.resid_post"
FAST = {"n_bootstrap": 100, "controls": 2, "untrained": False}
"""Variables that make a step quick."""
PROJECT = {
    "name": "toy",
    "subjects": {
        "gpt": {
            "kind": "huggingface",
            "source": {"config": {"initializer_range": 0.3, **CAUSAL["gpt2"], "n_layer": 2}},
            "data": {"kind": "text", "root": "text", "context": 12, "tokenizer": {"train_bpe": {"vocab_size": 270}}},
        }
    },
}


@dataclass(frozen=True)
class Toy:
    """The project, and what its behavior_localization found."""

    root: Path
    found: WorkflowResult

    @property
    def workspace(self) -> Path:
        """The folder of its store."""
        return self.root.parent.parent


def make(root: Path) -> Path:
    """Write the project and return its folder."""
    root.mkdir(parents=True)
    write_texts(root)
    workbench.write(root / "project.yaml", PROJECT)
    pairs = [{"clean": [9, 20 + i, 7, 9], "corrupted": [9, 40 + i, 7, 9], "answer": 20 + i, "wrong": 40 + i} for i in range(6)]
    (root / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    unequal = [{"clean": [9, 20 + i, 7], "corrupted": [9, 40 + i], "answer": 20 + i, "wrong": 40 + i} for i in range(6)]
    (root / "unequal.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in unequal))
    return root
