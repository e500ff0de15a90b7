"""Activation patching against what TransformerLens recorded on the same weights (`tests/peers/make_patching_fixture.py`)."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import patching as benchmark
import pytest
import torch
from safetensors.torch import load_file

FIXTURE = Path(__file__).parent / "transformer_lens_patching.safetensors"
SIZES = Namespace(layers=3, d_model=16, heads=4, vocab=300, tokens=7, seed=0, clock="cpu", init=0.3)


@pytest.mark.parametrize("component", benchmark.COMPONENTS)
def test_every_patch_equals_the_value_that_transformer_lens_recorded(component: str) -> None:
    recorded = load_file(FIXTURE)
    subject = benchmark.subject_of(SIZES)
    subject.model.load_state_dict(
        {name.removeprefix("weights."): value for name, value in recorded.items() if name.startswith("weights.")}, strict=True
    )
    pairs = benchmark.pairs_of(subject, SIZES)
    assert torch.equal(pairs.clean.inputs, recorded["clean"])
    assert torch.equal(pairs.corrupted.inputs, recorded["corrupted"])
    values = benchmark.ours(subject, pairs, component, SIZES).values
    found = torch.tensor([values[place] for place in benchmark.grid(component, SIZES)]).view(SIZES.layers, -1)
    assert found.numel() == {"attn_head": 12, "attn_head_by_pos": 84}.get(component, 21)
    assert torch.allclose(found, recorded[f"patched.{component}"], atol=1e-5)
    assert float(found.std()) > 1e-2
