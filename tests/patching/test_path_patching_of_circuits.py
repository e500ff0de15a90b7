"""Paths that are the edges of a circuit that was found before: which they are, what they carry, and which circuits are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gates import both, gates, weighted
from prompts import CAUSAL, random_pairs, transformer
from watched import watch

from mlinterp.errors import SpecError
from mlinterp.reports.plot_data import grid_of
from mlinterp.reports.plots import draw_all
from mlinterp.result import ExperimentResult
from mlinterp.subjects.hooked import HookedSubject

FRESH = ((7, 4), (3, 0))


def subject(weight: float = 1.0) -> HookedSubject:
    """Bits 0 and 1 are read by two MLPs, whose AND the third writes to the logit; bit 2 leads nowhere."""
    return gates((weighted({0: weight}), 3), (weighted({1: 1.0}), 4), (both(3, 4), 5), (weighted({2: 1.0}), 6), out=5)


def bits(*prompts: tuple[int, int]) -> list[dict[str, Any]]:
    return [{"clean": [clean], "corrupted": [corrupted], "answer": 1, "wrong": 0} for clean, corrupted in prompts]


@pytest.fixture
def circuit(tmp_path: Path) -> Path:
    folder = tmp_path / "circuit"
    folder.mkdir()
    pairs = bits((7, 0), (3, 4), (7, 0), (3, 4))
    watch("circuit_discovery", subject(), folder, {"pairs": pairs, "n_bootstrap": 100, "method": "acdc"})
    return folder


def paths(of: HookedSubject, circuit: Path, folder: Path, pairs: list[dict[str, Any]], **asked: Any) -> ExperimentResult:
    variables = {"pairs": pairs, "n_bootstrap": 100, "controls": 2, "direction": "noise", **asked}
    return watch("path_patching", of, folder, variables, {"circuit": circuit})


def test_the_paths_are_the_circuits_edges_and_no_others_in_the_order_of_a_forward_pass(circuit, tmp_path):
    result = paths(subject(), circuit, tmp_path, bits(*FRESH))
    rows = {row["path"]: row["effect"] for row in result.tables["paths"].rows}
    assert list(rows) == [
        "embedding → blocks.0.mlp",
        "embedding → blocks.1.mlp",
        "blocks.0.mlp → blocks.2.mlp",
        "blocks.1.mlp → blocks.2.mlp",
        "blocks.2.mlp → logits",
    ]
    assert "effect_by_receiver" in draw_all(result)


def test_each_edge_of_an_and_carries_all_of_it_by_itself(circuit, tmp_path):
    found = paths(subject(), circuit, tmp_path, bits((7, 4), (3, 0)))
    assert [row["effect"] for row in found.tables["paths"].rows] == [1.0] * 5


def test_what_a_spec_names_stands_before_what_the_circuit_has(circuit, tmp_path):
    found = paths(subject(), circuit, tmp_path, bits(*FRESH), senders=["blocks.0.mlp", "blocks.3.mlp"])
    assert [row["path"] for row in found.tables["paths"].rows] == [
        "blocks.0.mlp → blocks.1.mlp",
        "blocks.0.mlp → blocks.2.mlp",
        "blocks.0.mlp → logits",
        "blocks.3.mlp → logits",
    ]
    found = paths(subject(), circuit, tmp_path, bits(*FRESH), receivers=["blocks.2.mlp"])
    assert [row["path"] for row in found.tables["paths"].rows] == [
        f"{sender} → blocks.2.mlp" for sender in ("embedding", "blocks.0.mlp", "blocks.1.mlp")
    ]


def test_pairs_that_chose_the_circuit_are_counted_in_a_warning(circuit, tmp_path):
    chosen = paths(subject(), circuit, tmp_path, bits((7, 0), (3, 4), (7, 4)))
    assert [text for text in chosen.diagnostics.warnings if "have chosen the circuit" in text]
    fresh = paths(subject(), circuit, tmp_path, bits(*FRESH))
    assert not [text for text in fresh.diagnostics.warnings if "have chosen the circuit" in text]


def test_heads_that_share_keys_are_one_receiver_and_untrained_stands_beside(tmp_path):
    llama = transformer(tmp_path, {**CAUSAL["llama"], "num_hidden_layers": 2})
    pairs = [pair.model_dump(exclude_none=True) for pair in random_pairs(llama.vocab, (6,) * 6)]
    folder = tmp_path / "circuit"
    folder.mkdir()
    watch("circuit_discovery", llama, folder, {"pairs": pairs[:4], "n_bootstrap": 100, "ig_steps": 2, "sizes": [1, 60]})
    found = paths(llama, folder, tmp_path, pairs[4:])
    rows = found.tables["paths"].rows
    edges = json.loads((folder / "circuit.json").read_text())["edges"]
    assert len(rows) == len(edges) > 10
    assert {row["receiver"] for row in rows if row["receiver"].endswith((".k", ".v"))} <= {
        f"L{n}.h{h}.{x}" for n in (0, 1) for h in ("0-1", "2-3") for x in "kv"
    }
    assert all(isinstance(row["untrained"], float) for row in rows)
    shown = grid_of(next(figure for figure in found.figures if figure.name == "effect_by_receiver"), found.tables["grid"])
    assert shown.columns[-1] == "logits"
    layers = [int(name[1]) for name in shown.columns[:-1]]
    assert layers == sorted(layers)
    assert np.isfinite(shown.values).sum() == len(rows)
    assert any(name.startswith("adjusted/") and ".h0-1.k" in name for name in found.metrics) or not any(".k" in str(edge) for edge in edges)


def changed(circuit: Path, **fields: Any) -> Path:
    file = circuit / "circuit.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))
    return circuit


def test_a_circuit_of_other_weights_is_refused_with_both_digests(circuit, tmp_path):
    with pytest.raises(
        SpecError, match=r"inputs\.circuit: the circuit is of subject \w{12}, 'gates' as given here is \w{12}; give the weights"
    ):
        paths(subject(), changed(circuit, subject_sha256="0" * 64), tmp_path, bits(*FRESH))


def test_a_circuit_of_another_kind_or_without_edges_is_refused(circuit, tmp_path):
    with pytest.raises(SpecError, match=r"inputs\.circuit: the circuit has no edge"):
        paths(subject(), changed(circuit, edges=[]), tmp_path, bits(*FRESH))
    with pytest.raises(SpecError, match=r"inputs\.circuit: holds a mlinterp\.feature_circuit\.v1; a mlinterp\.circuit\.v1"):
        paths(subject(), changed(circuit, schema="mlinterp.feature_circuit.v1"), tmp_path, bits(*FRESH))


def test_of_a_large_circuit_the_edges_of_the_largest_scores_are_patched_and_it_is_said(circuit, tmp_path):
    edges = json.loads((circuit / "circuit.json").read_text())["edges"]
    found = paths(subject(), changed(circuit, edges=edges * 100), tmp_path, bits(*FRESH))
    assert "the circuit has 500 edges: the 200 with the largest scores are patched" in found.diagnostics.warnings
    assert len(found.tables["paths"].rows) == 5
