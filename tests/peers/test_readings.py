"""Direct logit attribution, the logit lens and head scores beside TransformerLens's, on the same weights.

It lives in the environment that `test_architectures.py` beside this file says how to set up (SAELens brings it), and without it these tests
are skipped. Its final norm is folded into the unembedding, which changes no logit and is what its own attribution assumes.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from watched import ARCHITECTURES, language_model, watch, write_texts

from mlinterp.readouts.head_scores import draw
from mlinterp.readouts.logit_attribution import Attributor
from mlinterp.readouts.reading import readout_of, states_of
from mlinterp.subjects.huggingface import HuggingFaceSubject

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformer_lens = pytest.importorskip("transformer_lens")
    from transformer_lens.pretrained.weight_conversions.gpt2 import convert_gpt2_weights

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> HuggingFaceSubject:
    return language_model(write_texts(tmp_path_factory.mktemp("project")), ARCHITECTURES["gpt2"])


@pytest.fixture(scope="module")
def peer(gpt2: HuggingFaceSubject) -> Any:
    shape = {"n_layers": 3, "d_model": 16, "n_heads": 4, "d_head": 4, "d_mlp": 64, "n_ctx": 32, "d_vocab": gpt2.vocab}
    config = transformer_lens.HookedTransformerConfig(**shape, act_fn="gelu_new", normalization_type="LN", device="cpu")
    model = transformer_lens.HookedTransformer(config)
    weights = convert_gpt2_weights(gpt2.model, config)
    folded = {"fold_ln": True, "center_writing_weights": False, "center_unembed": False, "fold_value_biases": False}
    model.load_and_process_state_dict(weights, **folded)
    return model


def test_what_every_head_writes_towards_a_token_is_the_same(gpt2: HuggingFaceSubject, peer: Any) -> None:
    batch = gpt2.examples("test", 3).take([0, 1, 2])
    attributor = Attributor(gpt2)
    answer = batch.targets[batch.scored]
    found = attributor.attribute(batch, batch.scored, answer, None, attributor.towards(answer, None))
    mine = {(term.layer, term.head): found.values[:, at] for at, term in enumerate(attributor.terms) if term.kind == "head"}
    with torch.no_grad():
        logits, cache = peer.run_with_cache(batch.inputs)
        heads = cache.apply_ln_to_stack(cache.stack_head_results(layer=-1), layer=-1)
        towards = torch.einsum("hbpd,bpd->hbp", heads, peer.W_U.T[batch.targets.clamp_min(0)])[:, batch.scored]
    outputs = gpt2.forward(batch)
    assert outputs is not None
    torch.testing.assert_close(outputs.logits, logits, rtol=1e-4, atol=1e-4)
    for index, contribution in enumerate(towards):
        torch.testing.assert_close(mine[divmod(index, 4)].float(), contribution, rtol=1e-4, atol=1e-5)


def test_every_layer_is_read_out_the_same(gpt2: HuggingFaceSubject, peer: Any) -> None:
    batch, readout = gpt2.examples("test", 3).take([0, 1, 2]), readout_of(gpt2)
    states, _ = states_of(gpt2, batch, readout.sites)
    with torch.no_grad():
        _, cache = peer.run_with_cache(batch.inputs)
        stack = [cache["resid_pre", 0], *(cache["resid_post", layer] for layer in range(3))]
        for site, theirs in zip(readout.sites, stack, strict=True):
            torch.testing.assert_close(readout.logits(states[site]), peer.unembed(peer.ln_final(theirs)), rtol=1e-3, atol=1e-3)


def test_heads_have_the_same_scores(gpt2: HuggingFaceSubject, peer: Any, tmp_path: Path) -> None:
    result = watch("head_detectors", gpt2, tmp_path, {"n_sequences": 4, "length": 6})
    tokens = [token for token in range(280) if token not in gpt2.special_tokens]
    _, cache = peer.run_with_cache(draw(tokens, [], 4, 6, 2, seed=0).inputs)
    for row in result.tables["induction"].rows:
        pattern = cache["pattern", row["layer"]][:, row["head"]]
        theirs = pattern.diagonal(offset=-5, dim1=1, dim2=2)[:, 1:]  # the first of this diagonal is the end of the first period
        np.testing.assert_allclose(row["score"], float(theirs.mean()), rtol=1e-4)
