"""Resumable fits: a subject trained in one go and one killed along the way end with the same bits."""

import pytest
import torch
from tiny import TinySubject

from mlinterp.determinism import torch_stream
from mlinterp.errors import VerificationError
from mlinterp.io.tensors import load_tensors, save_tensors, tensors_digest
from mlinterp.progress import Silent
from mlinterp.subjects.fit import SubjectFit, load_weights, save_subject
from mlinterp.trainer import fit


class _Regression:
    """Learn a fixed linear map; the carry is a running sum that enters the loss."""

    def __init__(self, subject, seed=0, ema=0.9, lr=1e-2):
        self.module, self.seed = subject.model, seed
        self.optimizer = {"lr": lr, "betas": [0.9, 0.95], "weight_decay": 0.1, "warmup_steps": 5, "ema": ema, "grad_clip": 1.0}
        self.total = torch.zeros(4)
        self.dies_at = None

    def loss(self, step):
        if step == self.dies_at:
            raise KeyboardInterrupt
        x = torch.randn(8, 4, generator=torch_stream(self.seed, "batch", step))
        self.total = 0.9 * self.total + x.mean(0)
        loss = ((x @ self.module.W - x.flip(1) + 0.01 * self.total) ** 2).mean()
        return loss, {"size": float(len(x))}

    def carry(self):
        return {"total": self.total}

    def load_carry(self, carry):
        self.total = carry["total"]

    def evaluate(self):
        return {"error": float(((self.module.W - torch.eye(4).flip(1)) ** 2).sum())}


def _fitted(folder, *, dies_at=(), steps=60, **options):
    for death in (*dies_at, None):
        subject = TinySubject()
        objective = _Regression(subject, **options)
        objective.dies_at = death
        module = SubjectFit(subject, objective, steps, eval_every=20)
        try:
            fit(module, folder, Silent(), chunk=10, checkpoint_every=20)
        except (KeyboardInterrupt, SystemExit):
            assert death is not None
            continue
        module.finish()
        return subject, module
    raise AssertionError("the fit never finished")


def test_a_fit_that_was_killed_twice_ends_with_the_bits_of_one_that_was_not(tmp_path):
    whole, one = _fitted(tmp_path / "whole")
    killed, two = _fitted(tmp_path / "killed", dies_at=(27, 43))
    assert tensors_digest(whole.model.state_dict()) == tensors_digest(killed.model.state_dict())
    assert tensors_digest(one.tensors()) == tensors_digest(two.tensors())
    assert [row["step"] for row in two.history] == [20, 40, 60]


def test_another_seed_gives_other_weights(tmp_path):
    a, _ = _fitted(tmp_path / "a")
    b, _ = _fitted(tmp_path / "b", seed=1)
    assert tensors_digest(a.model.state_dict()) != tensors_digest(b.model.state_dict())


def test_the_fit_learns_and_keeps_the_averaged_weights(tmp_path):
    subject, module = _fitted(tmp_path, steps=400)
    assert module.history[-1]["error"] < 0.2 * module.history[0]["error"]
    assert torch.equal(subject.model.W, module.average["W"])


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    _fitted(tmp_path, steps=40)
    with pytest.raises(VerificationError, match="belongs to another fit"):
        _fitted(tmp_path, steps=60)


def test_a_damaged_newest_checkpoint_falls_back_on_the_one_before(tmp_path):
    whole, _ = _fitted(tmp_path / "whole")
    with pytest.raises(AssertionError):
        _fitted_once_dying(tmp_path / "hurt", 47)
    newest = sorted((tmp_path / "hurt").glob("*.safetensors"))[-1]
    newest.write_bytes(newest.read_bytes()[:-1])
    again, _ = _fitted(tmp_path / "hurt")
    assert tensors_digest(whole.model.state_dict()) == tensors_digest(again.model.state_dict())


def _fitted_once_dying(folder, step):
    subject = TinySubject()
    objective = _Regression(subject)
    objective.dies_at = step
    try:
        fit(SubjectFit(subject, objective, 60, eval_every=20), folder, Silent(), chunk=10, checkpoint_every=20)
    except (KeyboardInterrupt, SystemExit):
        raise AssertionError("died as asked") from None


def test_weights_round_trip_with_their_digest(tmp_path):
    subject, _ = _fitted(tmp_path / "fit")
    save_subject(subject, tmp_path)
    assert load_weights(TinySubject(), tmp_path).digest() == subject.digest()


def test_weights_of_another_configuration_are_refused_by_the_key_that_differs(tmp_path):
    save_subject(TinySubject(), tmp_path)
    with pytest.raises(VerificationError, match="differs in d"):
        load_weights(TinySubject(d=8), tmp_path)


def test_every_flipped_bit_in_a_tensor_file_is_noticed(tmp_path):
    path = save_tensors(tmp_path / "t.safetensors", {"a": torch.arange(10.0)}, {"x": 1})
    assert load_tensors(path)[1] == {"x": 1}
    data = path.read_bytes()
    for position in range(0, len(data), 3):
        hurt = bytearray(data)
        hurt[position] ^= 4
        path.write_bytes(hurt)
        with pytest.raises(VerificationError, match=r"t\.safetensors"):
            load_tensors(path)


def test_moments_and_the_average_are_kept_as_the_parameters_are_when_training_starts(tmp_path):
    subject = TinySubject()
    module = SubjectFit(subject, _Regression(subject), 20, eval_every=20)
    fit(module, tmp_path, Silent())
    module.network.double()  # as a move to another device does, this leaves the optimizer's state behind
    module.on_train_start()
    moments = module.adam.state[module.network.W]
    assert {name: value.dtype for name, value in moments.items() if name != "step"} == dict.fromkeys(
        ("exp_avg", "exp_avg_sq"), torch.float64
    )
    assert moments["step"] == 20
    assert module.average["W"].dtype == torch.float64
