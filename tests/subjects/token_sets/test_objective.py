"""How a token-set subject is trained: the loss by hand, every context once an epoch, and a killed fit ends with the same bits."""

from __future__ import annotations

import numpy as np
import pytest
import token_sets
import torch
from torch import nn

from mlinterp.errors import SpecError, VerificationError
from mlinterp.io.tensors import tensors_digest
from mlinterp.progress import Silent
from mlinterp.project import find_project
from mlinterp.subjects.fit import SubjectFit, load_weights, save_subject
from mlinterp.subjects.token_sets.subject import TokenSetSubject
from mlinterp.trainer import fit

OPTIONS = {"batch_size": 64, "lr": 1e-2, "warmup_steps": 5}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return find_project(token_sets.make(tmp_path_factory.mktemp("objective")))


@pytest.fixture
def subject(project) -> TokenSetSubject:
    found = project.load_subject("learned")
    assert isinstance(found, TokenSetSubject)
    return found


def log_probs(subject: TokenSetSubject, table) -> np.ndarray:
    logits = subject.forward(subject.batch_of(table)).logits[:, 0].detach().double().numpy()
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def test_the_loss_is_the_mean_negative_log_probability_of_the_targets(subject):
    objective = subject.objective(OPTIONS, 0)
    loss, _ = objective.loss(3)
    rows = objective.rows(3)
    expected = -log_probs(subject, subject.contexts("train").take(rows))[np.arange(64), subject.targets("train")[rows]].mean()
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert loss.requires_grad


def test_the_contexts_of_a_step_follow_from_seed_and_step_and_an_epoch_takes_none_twice(subject):
    one, same, other = (subject.objective({"batch_size": 50}, seed) for seed in (0, 0, 1))
    steps = [one.rows(step) for step in range(8)]
    assert sorted(np.concatenate(steps[:4]).tolist()) == list(range(200))
    assert sorted(np.concatenate(steps[4:]).tolist()) == list(range(200))
    assert [same.rows(step).tolist() for step in reversed(range(8))] == [rows.tolist() for rows in reversed(steps)]
    assert not np.array_equal(other.rows(0), steps[0])
    assert len(subject.objective({"batch_size": 10_000}, 0).rows(1)) == 200


def test_scores_are_means_over_held_out_contexts(subject):
    objective = subject.objective({}, 0)
    scores = objective.scores()
    table, targets = subject.contexts("validation"), subject.targets("validation")
    found = log_probs(subject, table)
    assert scores["ce_loss"].value == pytest.approx(-found[np.arange(80), targets].mean(), rel=1e-5)
    assert scores["accuracy"].value == pytest.approx((found.argmax(axis=1) == targets).mean())
    assert (len(scores["accuracy"].total), scores["accuracy"].is_share) == (80, True)
    assert objective.evaluate() == {name: score.value for name, score in scores.items()}
    few = subject.objective({"eval_contexts": 10}, 0).scores()["ce_loss"]
    assert np.isin(few.total.round(5), scores["ce_loss"].total.round(5)).all()
    assert len(few.total) == 10


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batchsize": 3}, r"^variables\.options: unknown option 'batchsize'; did you mean 'batch_size'\?$"),
        ({"lr": -1.0}, r"^variables\.options\.lr: .*, not -1\.0$"),
        ({"betas": [0.9, 1.0]}, "each of betas is at least 0 and below 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(subject, options, words):
    with pytest.raises(SpecError, match=words):
        subject.objective(options, 0)


def test_a_split_without_contexts_and_a_network_without_parameters_cannot_be_trained():
    subject = TokenSetSubject("own", nn.Flatten(), token_sets.Fighters(), {"logits": ""}, "logits", {})
    with pytest.raises(SpecError, match="the network of 'own' has no parameters to train"):
        subject.objective({}, 0)

    class Untold(token_sets.Fighters):
        def contexts(self, split):
            return super().contexts(split).take(slice(0, 0 if split == "validation" else None))

    empty = TokenSetSubject("own", nn.Linear(12, 4), Untold(), {"logits": ""}, "logits", {})
    with pytest.raises(SpecError, match="the validation split of 'own' holds no context"):
        empty.objective({}, 0)


def test_dropout_in_a_projects_own_network_stays_off_while_it_learns():
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(12, 4))
    objective = TokenSetSubject("own", model, token_sets.Fighters(), {"logits": ""}, "logits", {}).objective({}, 0)
    model.train()
    assert objective.loss(0)[0].item() == objective.loss(0)[0].item()


def trained(project, folder, dies_at=(), steps=60):
    for death in (*dies_at, None):
        subject = project.load_subject("learned")
        objective = subject.objective({**OPTIONS, "ema": 0.9, "grad_clip": 1.0}, 0)
        plain = objective.loss

        def loss(step, plain=plain, death=death):
            if step == death:
                raise KeyboardInterrupt
            return plain(step)

        objective.loss = loss
        module = SubjectFit(subject, objective, steps, eval_every=20)
        try:
            fit(module, folder, Silent(), chunk=10, checkpoint_every=20)
        except (KeyboardInterrupt, SystemExit):
            assert death is not None
            continue
        module.finish()
        return subject, module
    raise AssertionError("the fit never finished")


def test_a_killed_fit_learns_the_rule_with_the_bits_of_one_that_was_not(project, tmp_path):
    whole, one = trained(project, tmp_path / "whole")
    killed, two = trained(project, tmp_path / "killed", dies_at=(33, 47))
    assert whole.digest() == killed.digest()
    assert tensors_digest(one.tensors()) == tensors_digest(two.tensors())
    assert one.history[-1]["ce_loss"] < 0.7 * one.history[0]["ce_loss"]
    assert one.history[-1]["accuracy"] > 0.9
    assert not any(parameter.requires_grad for parameter in whole.model.parameters())


def test_weights_come_back_from_disk_and_only_for_the_columns_they_were_fitted_on(project, subject, tmp_path):
    with torch.no_grad():
        subject.model.embed.weight.add_(1.0)
    save_subject(subject, tmp_path)
    assert load_weights(project.load_subject("learned"), tmp_path).digest() == subject.digest()
    other = find_project(token_sets.make(tmp_path / "other", learned={**token_sets.LEARNED, "options": {"grouped": False}}))
    with pytest.raises(VerificationError, match="differs in columns_sha256, options"):
        load_weights(other.load_subject("learned"), tmp_path)
