"""Exact patching beside TransformerLens's `patching.get_act_patch_*` and nnsight, on the same weights: every place, to 1e-4.

It lives in the environment that `test_architectures.py` beside this file says how to set up (SAELens brings TransformerLens,
dictionary-learning nnsight), and without it these tests are skipped. TransformerLens patches keys, queries, values and patterns besides,
which are no components of ours.
"""

from __future__ import annotations

import warnings
from argparse import Namespace
from dataclasses import replace
from typing import Any

import patching as benchmark
import pytest

from mlinterp.patching.metrics import MetricRegistry
from mlinterp.patching.patcher import Edit, Patch, Patcher
from mlinterp.patching.places import places
from mlinterp.subjects.huggingface import HuggingFaceSubject

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformer_lens = pytest.importorskip("transformer_lens")

pytestmark = pytest.mark.filterwarnings("ignore")

SIZES = Namespace(layers=3, d_model=32, heads=4, vocab=400, tokens=9, seed=3, clock="cpu", init=0.3)


@pytest.fixture(scope="module")
def gpt2() -> HuggingFaceSubject:
    return benchmark.subject_of(SIZES)


@pytest.fixture(scope="module")
def lens(gpt2: HuggingFaceSubject) -> Any:
    return benchmark.transformer_lens(gpt2, SIZES)


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("component", benchmark.COMPONENTS)
def test_every_patch_of_every_component_is_the_same_in_both_directions(
    gpt2: HuggingFaceSubject, lens: Any, component: str, direction: Any
) -> None:
    pairs, swept = benchmark.pairs_of(gpt2, SIZES), benchmark.COMPONENTS[component]
    every = benchmark.grid(component, SIZES)
    patcher = Patcher(gpt2, pairs, places(gpt2, swept.component), MetricRegistry().get("logit_diff"), direction)
    assert patcher.replayed
    named = [dict(zip(swept.place, at, strict=True)) for at in every]
    found = patcher.metrics([Patch(0, (Edit(at["layer"], at.get("pos"), at.get("head")),)) for at in named])
    turned = pairs if direction == "denoise" else replace(pairs, clean=pairs.corrupted, corrupted=pairs.clean)
    theirs = benchmark.lens_sweep(lens, turned, component, every, SIZES).values
    assert found.tolist() == pytest.approx(list(theirs.values()), abs=1e-4)
    assert len({round(value, 3) for value in theirs.values()}) > len(every) // 4


def test_every_patch_of_the_residual_stream_is_the_same_as_nnsight_s(gpt2: HuggingFaceSubject) -> None:
    pytest.importorskip("nnsight")
    pairs, every = benchmark.pairs_of(gpt2, SIZES), benchmark.grid("resid_pre", SIZES)
    theirs = benchmark.nnsight_sweep(gpt2, pairs, every, SIZES).values
    assert benchmark.ours(gpt2, pairs, "resid_pre", SIZES).values == pytest.approx(theirs, abs=1e-4)
