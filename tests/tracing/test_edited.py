"""Tracing a model while it is edited: what is recorded is what the model went on with."""

import numpy as np
import pytest
import torch
from tiny import TinySubject

from mlinterp.errors import SpecError
from mlinterp.interventions.declared import InterventionBlock
from mlinterp.interventions.editing import editor_of
from mlinterp.progress import Silent
from mlinterp.sae.config import SAEConfig
from mlinterp.sae.model import SAE
from mlinterp.tracing.capture import capture
from mlinterp.tracing.dataset import TraceDataset


def _sae():
    sae = SAE(SAEConfig(d_in=4, d_sae=4, activation="relu-l1", l1=0.0, site="z_a", seed=0))
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(4))
        sae.W_dec.copy_(torch.eye(4))
        sae.b_enc.zero_()
        sae.b_dec.zero_()
    return sae


def _traced(folder, block=None):
    subject = TinySubject()
    edited, edit = editor_of(subject, _sae(), "z_a", InterventionBlock.model_validate(block)) if block else ((), None)
    capture(
        subject,
        subject.examples("test", 6),
        subject.addresses(["z_a", "z_b"]),
        folder,
        Silent(),
        header={},
        batch_size=4,
        predictions=True,
        on_nonfinite="error",
        shard_bytes=2**30,
        inline=False,
        edit=edit,
        edited_sites={address.site for address in edited},
    )
    trace = TraceDataset.load(folder)
    return {key: trace.rows(rows["row"].to_numpy()) for key, rows in trace.meta.groupby(["site", "sup_step"], observed=True)}


def test_an_ablated_latent_is_gone_from_there_on(tmp_path):
    plain = _traced(tmp_path / "plain")
    edited = _traced(tmp_path / "edited", {"policy": "ablate_features", "features": [2], "at": {"sup_steps": [0]}})
    expected = plain["z_a", 0].copy()
    expected[:, 2] = np.minimum(expected[:, 2], 0)
    np.testing.assert_allclose(edited["z_a", 0], expected, atol=1e-6)
    W = TinySubject().model.W.detach().numpy()
    np.testing.assert_allclose(edited["z_b", 0], np.tanh(expected) @ W, atol=1e-5)
    assert not np.allclose(edited["z_a", 1], plain["z_a", 1])


def test_a_latent_scaled_by_one_leaves_the_trace_as_it_is(tmp_path):
    plain = _traced(tmp_path / "plain")
    edited = _traced(tmp_path / "edited", {"policy": "clamp_features", "features": [0, 3], "scale": 1.0})
    for key, states in plain.items():
        np.testing.assert_array_equal(edited[key], states)


@pytest.mark.parametrize(
    ("block", "says"),
    [
        ({"policy": "patch_features", "features": [1]}, "patch_features needs a source"),
        ({"policy": "clamp_features", "features": [1], "quantile": 0.5}, "clamp_features needs a source or statistics"),
        ({"policy": "ablate_features", "features": "top:2"}, "names no latents"),
        ({"policy": "ablate_features", "features": [1], "at": {"sup_steps": [7]}}, "7"),
    ],
)
def test_what_a_trace_cannot_do_is_refused_by_name(tmp_path, block, says):
    with pytest.raises(SpecError, match=says):
        _traced(tmp_path, block)
