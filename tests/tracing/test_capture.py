import json

import numpy as np
import pytest
import torch
from tiny import TinySubject

from mlinterp.errors import ExperimentError, SpecError, VerificationError
from mlinterp.progress import Silent
from mlinterp.tracing.capture import capture
from mlinterp.tracing.dataset import TraceDataset
from mlinterp.tracing.selection import select_addresses

SETTINGS = {"batch_size": 4, "predictions": True, "on_nonfinite": "error", "shard_bytes": 2**30, "inline": False}


def trace(folder, subject=None, sites=("z_a", "z_b"), n=10, selection=None, **settings):
    subject = subject or TinySubject()
    examples = subject.examples("test", n, **(selection or {}))
    addresses = select_addresses(subject, sites, "latent")
    return capture(subject, examples, addresses, folder, Silent(), header={"run_id": "r", "seed": 0}, **{**SETTINGS, **settings})


def test_states_are_the_activations_in_the_order_that_the_meta_says(tmp_path):
    trace(tmp_path)
    dataset = TraceDataset.load(tmp_path)
    subject = TinySubject()
    expected = torch.cat([torch.ones(10, 1, 4), subject.model.E[subject.examples("test", 10).inputs]], dim=1).detach().numpy()
    first = dataset.meta.query("site == 'z_a' and sup_step == 0")
    got = dataset.rows(first["row"].to_numpy()).reshape(10, 6, 4)
    np.testing.assert_array_equal(got, expected)
    assert first["position"].tolist()[:6] == [-1, 0, 1, 2, 3, 4]
    assert first["token_in"].tolist()[1:6] == subject.examples("test", 10).inputs[0].tolist()
    assert (first["is_prefix"] == (first["position"] < 0)).all()


def test_answers_are_read_out_after_each_supervision_step(tmp_path):
    trace(tmp_path)
    steps = TraceDataset.load(tmp_path).steps
    subject = TinySubject()
    batch = subject.examples("test", 10).take(range(10))
    outputs = subject.forward(batch)
    answered = steps[steps["exact"].notna()]
    assert len(answered) == 20
    assert set(answered["site"]) == {"z_b"}
    last = answered[answered["sup_step"] == 1]
    expected = (outputs.step_preds[1] == batch.targets).double().mean(dim=1)
    np.testing.assert_allclose(last["token_acc"].astype(float), expected)


def test_norm_and_residual_are_means_over_rows(tmp_path):
    trace(tmp_path, n=3)
    dataset = TraceDataset.load(tmp_path)
    before, after = (dataset.meta.query(f"site == 'z_b' and sup_step == {s} and example_id == 'test-1'")["row"] for s in (0, 1))
    h0, h1 = dataset.rows(before).astype(np.float64), dataset.rows(after).astype(np.float64)
    row = dataset.steps.query("site == 'z_b' and sup_step == 1 and example_id == 'test-1'").iloc[0]
    assert row["norm"] == pytest.approx(np.linalg.norm(h1, axis=1).mean(), rel=1e-6)
    assert row["residual"] == pytest.approx((np.linalg.norm(h1 - h0, axis=1) / np.linalg.norm(h0, axis=1)).mean(), rel=1e-6)


def test_padding_is_not_traced(tmp_path):
    trace(tmp_path, selection={"ragged": True})
    meta = TraceDataset.load(tmp_path).meta
    assert meta.query("example_id == 'test-1' and site == 'z_a' and sup_step == 0")["position"].tolist() == [-1, 0, 1, 2]
    assert meta.query("example_id == 'test-0' and site == 'z_a' and sup_step == 0")["position"].tolist() == [-1, 0, 1, 2, 3, 4]


def test_without_predictions_the_forward_pass_stops_after_the_last_hook(tmp_path):
    subject = TinySubject()
    examples = subject.examples("test", 4)
    addresses = select_addresses(subject, ["z_a"], "latent", [0])
    capture(subject, examples, addresses, tmp_path, Silent(), header={}, **{**SETTINGS, "predictions": False})
    assert subject.evaluations == 1
    assert TraceDataset.load(tmp_path).steps["pred"].isna().all()


def test_the_same_trace_twice_is_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        trace(tmp_path / name)
    for file in ("trace.jsonl", "states.npy"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_shards_read_back_as_the_one_file_does(tmp_path):
    trace(tmp_path / "whole")
    files = trace(tmp_path / "shards", shard_bytes=1).files
    assert files == ["trace.jsonl", "states-00000.npy", "states-00001.npy", "states-00002.npy"]
    whole, shards = (TraceDataset.load(tmp_path / name) for name in ("whole", "shards"))
    order = np.random.default_rng(0).permutation(len(whole))
    np.testing.assert_array_equal(whole.rows(order), shards.rows(order))
    np.testing.assert_array_equal(whole.rows(slice(3, 200)), shards.rows(slice(3, 200)))
    np.testing.assert_array_equal(whole.rows(order > 100), shards.rows(order > 100))


def test_inline_states_read_back_as_the_file_does(tmp_path):
    trace(tmp_path / "file")
    assert trace(tmp_path / "inline", inline=True).files == ["trace.jsonl"]
    np.testing.assert_array_equal(
        TraceDataset.load(tmp_path / "file").rows(slice(None)), TraceDataset.load(tmp_path / "inline").rows(slice(None))
    )


class _Killed(BaseException):
    pass


def test_a_killed_trace_goes_on_after_its_last_whole_part(tmp_path, monkeypatch):
    trace(tmp_path / "undisturbed")
    subject = TinySubject()
    calls = iter(range(10))
    forward = subject.forward

    def dies_at_the_third_batch(*args, **kwargs):
        if next(calls) == 2:
            raise _Killed
        return forward(*args, **kwargs)

    monkeypatch.setattr(subject, "forward", dies_at_the_third_batch)
    with pytest.raises(_Killed):
        trace(tmp_path / "killed", subject)
    survivor = TinySubject()
    trace(tmp_path / "killed", survivor)
    assert survivor.evaluations == 4
    for file in ("trace.jsonl", "states.npy"):
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "undisturbed" / file).read_bytes()


def test_parts_of_another_trace_are_refused(tmp_path, monkeypatch):
    subject = TinySubject()
    monkeypatch.setattr("mlinterp.tracing.parts.TraceParts.assemble", lambda *a, **k: [])
    trace(tmp_path, subject)
    with pytest.raises(VerificationError, match="another trace"):
        trace(tmp_path, TinySubject(seed=1))


def test_a_nonfinite_activation_is_named(tmp_path):
    subject = TinySubject()
    with torch.no_grad():
        subject.model.E[3, 0] = float("nan")
    example, position = next(
        (f"test-{b}", p) for b, row in enumerate(subject.examples("test", 10).inputs.tolist()) for p, t in enumerate(row) if t == 3
    )
    with pytest.raises(ExperimentError, match=rf"z_a, sup_step 0 is NaN or infinite \(example {example}, position {position}\)"):
        trace(tmp_path, subject)


def test_dropped_states_leave_the_others_in_place(tmp_path):
    subject = TinySubject()
    with torch.no_grad():
        subject.model.E[3, 0] = float("inf")
    done = trace(tmp_path, subject, on_nonfinite="drop")
    dataset = TraceDataset.load(tmp_path)
    assert done.dropped == 10 * 6 * 4 - len(dataset) > 0
    assert 3 not in set(dataset.meta.query("site == 'z_a'")["token_in"])
    assert np.isfinite(dataset.rows(slice(None))).all()


@pytest.mark.parametrize("file", ["trace.jsonl", "states.npy"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damage_is_refused_by_name(tmp_path, file, damage):
    trace(tmp_path)
    path = tmp_path / file
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    for _ in range(30):
        if damage == "flip":
            hurt = bytearray(data)
            hurt[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
            path.write_bytes(hurt)
        elif damage == "truncate":
            path.write_bytes(data[: rng.integers(len(data))])
        else:
            path.unlink(missing_ok=True)
        with pytest.raises(VerificationError, match=file):
            TraceDataset.load(tmp_path)


def test_an_empty_selection_of_steps_says_what_there_is():
    with pytest.raises(SpecError, match="supervision steps 0-1"):
        select_addresses(TinySubject(), ["z_a"], "latent", [5])


def test_granularity_keeps_the_last_evaluation_of_each_group():
    subject = TinySubject()
    assert select_addresses(subject, ["z_a", "z_b"], "sup", [-1]) == [("z_a", 1, None, None), ("z_b", 1, None, None)]


def test_header_is_one_json_object(tmp_path):
    trace(tmp_path)
    header = json.loads((tmp_path / "trace.jsonl").read_text().splitlines()[0])
    assert header["kind"] == "header"
    assert header["states_file"] == "states.npy"
    assert header["D"] == 4
