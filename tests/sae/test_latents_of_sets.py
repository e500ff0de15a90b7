"""The page of latents of a subject whose examples are sets: a row is about a whole context, so its tokens are shown and counted whole."""

from __future__ import annotations

import numpy as np
import pytest
import token_sets
import torch

from mlinterp.progress import Silent
from mlinterp.project import find_project
from mlinterp.reports.latent_page import latent_data
from mlinterp.sae.config import SAEConfig
from mlinterp.sae.kinds import build
from mlinterp.sae.latents.dashboard import Amounts, make_dashboard
from mlinterp.sae.latents.reading import read_by
from mlinterp.tracing.capture import capture
from mlinterp.tracing.dataset import TraceDataset

SPEED, NEVER = 2, 4
"""Neurons of the planted network, each the latent of its number."""


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    subject = find_project(token_sets.make(folder / "workspace")).load_subject("planted")
    settings = {"batch_size": 64, "predictions": False, "on_nonfinite": "error", "shard_bytes": 2**30, "inline": False}
    header = {"run_id": "r", "seed": 0}
    capture(subject, subject.examples("test", 120), subject.addresses(["pooled"]), folder, Silent(), header=header, **settings)
    trace = TraceDataset.load(folder)
    sae = build(SAEConfig(d_in=5, d_sae=5, activation="relu-l1", l1=0.0, site="pooled")).requires_grad_(False)
    sae.W_enc.copy_(torch.eye(5))
    sae.W_dec.copy_(torch.eye(5))
    reading = read_by(sae.config, trace, positions="all")
    page, _, _ = make_dashboard(sae, reading, trace, [SPEED, NEVER], subject, amounts=Amounts(top=4, tokens=20))
    return subject, page


def test_every_token_of_a_context_stands_for_its_activation(shown):
    subject, page = shown
    for context in page.cards[0].top:
        text = page.texts[context.text]
        table = subject.contexts("test").take(np.array([int(text.name.rpartition("-")[2])]))
        real = [token for token in text.tokens if token >= 0]
        assert context.acts == tuple((position, 3.0) for position in range(len(real)))
        assert context.unread == ()
        assert {page.vocabulary[token] for token in real[1:]} == table.context(0).tokens
        assert "speed_5" in table.context(0).tokens


def test_shares_are_of_active_contexts_that_hold_a_token_beside_all_contexts(shown):
    subject, page = shown
    table = subject.contexts("test")
    active = table.levels[:, 1] > 0
    found = {page.vocabulary[share.token]: (share.share, share.of_all) for share in page.cards[0].tokens}
    for token in ("speed_1", "power_6", "shield"):
        held = table.incidence[:, table.vocabulary.number(token)]
        assert found[token] == pytest.approx((held[active].mean(), held.mean())), token
    assert found["<weapon axe>"] == pytest.approx(((table.group == 2)[active].mean(), (table.group == 2).mean()))
    assert "<padding>" not in found


def test_a_latent_that_never_fires_holds_nothing(shown):
    _, page = shown
    assert (page.cards[1].tokens, page.cards[1].top) == ((), ())


def test_the_page_is_told_that_its_texts_are_sets(shown):
    _, page = shown
    assert latent_data(page)["sets"] is True
