"""Traces and streams of a subject that has one row an example, wherever its tokens stand."""

from __future__ import annotations

import numpy as np
import pytest
import token_sets

from mlinterp.progress import Silent
from mlinterp.project import find_project
from mlinterp.sae.selection import choose_rows
from mlinterp.sae.streaming import ActivationStream, Buffer, Layout
from mlinterp.subjects.base import Examples
from mlinterp.subjects.token_sets.subject import TokenSetSubject
from mlinterp.tracing.capture import capture
from mlinterp.tracing.dataset import TraceDataset


@pytest.fixture(scope="module")
def subject(tmp_path_factory) -> TokenSetSubject:
    found = find_project(token_sets.make(tmp_path_factory.mktemp("traced"))).load_subject("learned")
    assert isinstance(found, TokenSetSubject)
    return found


def traced(subject, examples, folder, **settings) -> TraceDataset:
    given = {"batch_size": 120, "predictions": True, "on_nonfinite": "error", "shard_bytes": 2**30, "inline": False, **settings}
    capture(subject, examples, subject.addresses(["embed", "pooled"]), folder, Silent(), header={"run_id": "r", "seed": 0}, **given)
    return TraceDataset.load(folder)


def test_a_trace_holds_one_row_a_context_and_site(subject, tmp_path):
    trace = traced(subject, subject.examples("test", 120), tmp_path)
    assert len(trace) == 2 * 120
    assert set(trace.meta["position"]) == {0}
    alone = {name for name, row in trace.examples.items() if sum(row.get("mask", [1, 1])) == 1}
    assert {row["example_id"] for row in trace.step_rows if "positions" not in row} == alone
    assert all(row["positions"] == [0] for row in trace.step_rows if "positions" in row)
    for site in ("embed", "pooled"):
        rows = trace.meta.query("site == @site")["row"].to_numpy()
        np.testing.assert_array_equal(trace.rows(rows), subject.activations(subject.contexts("test"), site))


def test_a_trace_says_what_the_model_answered_and_whether_it_was_right(subject, tmp_path):
    examples = subject.examples("test", 40)
    trace = traced(subject, examples, tmp_path)
    told = trace.meta.query("site == 'pooled'")
    logits = subject.forward(examples).logits[:, 0].numpy()
    np.testing.assert_array_equal(told["token_pred"], logits.argmax(axis=1))
    np.testing.assert_array_equal(told["correct"], logits.argmax(axis=1) == examples.targets[:, 0].numpy())


@pytest.mark.parametrize("positions", ["all", "tokens", "answer"])
def test_every_context_is_a_row_to_fit_on_also_one_without_tokens_or_group(subject, tmp_path, positions):
    trace = traced(subject, subject.examples("test", 120), tmp_path)
    rows = choose_rows(trace.meta, site="pooled", positions=positions, special=trace.header["special_tokens"])
    assert len(rows.index) == 120


def test_contexts_that_are_all_empty_are_traced_too(subject, tmp_path):
    batch = subject.batch_of(subject.contexts("test").take(np.zeros(3, dtype=np.int64)))
    trace = traced(subject, Examples(batch.ids, batch.inputs, batch.targets, batch.mask), tmp_path)
    assert trace.meta["position"].tolist() == [0] * 6


@pytest.mark.parametrize("positions", ["all", "tokens"])
def test_a_stream_gives_the_row_of_every_context_once_an_epoch(subject, positions):
    examples = subject.examples("train", 200)
    stream = ActivationStream(
        subject,
        examples,
        [Layout(tuple((address,) for address in subject.addresses(["pooled"])))],
        Buffer(rows=400, mix=0.0, batch_size=50, seed=0),
        positions=positions,
        special=subject.special_tokens,
    )
    (rows, _) = stream.batch(0, 200)[0]
    expected = subject.activations(subject.contexts("train"), "pooled", batch_size=50)
    order, wanted = (np.lexsort(values.round(4).T) for values in (rows, expected))
    np.testing.assert_allclose(rows[order], expected[wanted], atol=1e-4)
