"""The modular addition project: its pairs, its Fourier parts against oracles, a network built by hand, and one that has grokked."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from mlinterp.determinism import settle
from mlinterp.errors import SpecError
from mlinterp.estimates import means
from mlinterp.io.pyfile import load_function
from mlinterp.io.tensors import tensors_digest
from mlinterp.progress import Silent
from mlinterp.project import read_project
from mlinterp.subjects.base import IGNORED
from mlinterp.subjects.fit import SubjectFit
from mlinterp.trainer import fit

ROOT = Path(__file__).parents[2] / "projects" / "modular_addition"
P = 53
DRAWS = ("draw.0", "draw.1", "draw.2")


def function(named):
    return load_function(ROOT, named, "test")


@pytest.fixture
def adder():
    return read_project(ROOT / "project.yaml").load_subject("adder")


def wave(frequency, p=P, shift=0.3):
    return torch.cos(2 * torch.pi * frequency * torch.arange(p) / p + shift)


@pytest.fixture
def planted(adder):
    """An adder whose embedding is a constant, two strong frequencies (7 and 20) and two weak ones (3 and 11), on a direction each."""
    with torch.no_grad():
        table = adder.model.embedding.W_E
        table.zero_()
        table[:, 63] = 5.0
        for direction, (frequency, size) in enumerate(((7, 1.0), (20, 0.8), (3, 0.1), (11, 0.1))):
            table[:P, direction] = size * wave(frequency)
    return adder


def test_half_of_all_pairs_are_learned_the_others_held_out_and_the_sum_is_said_at_the_end(adder):
    splits = {split: adder.examples(split, 10_000) for split in ("train", "validation", "test")}
    assert [len(found) for found in splits.values()] == [1404, 1405, P * P]
    assert not set(splits["train"].ids) & set(splits["validation"].ids)
    assert {*splits["train"].ids, *splits["validation"].ids} == set(splits["test"].ids)
    for found in splits.values():
        a, b, equals = found.inputs.T
        assert torch.equal(found.targets[:, 2], (a + b) % P)
        assert (equals == P).all()
        assert (found.targets[:, :2] == IGNORED).all()


def test_which_pairs_are_learned_is_the_same_whoever_loads_them(adder):
    again = read_project(ROOT / "project.yaml").load_subject("adder")
    again.objective({}, 5)
    assert again.examples("train", 10_000).ids == adder.examples("train", 10_000).ids


def test_the_fourier_basis_is_orthonormal_and_free_of_the_constant():
    basis = function("model.py:fourier_basis")(P).flatten(0, 1)
    assert basis.shape == (P - 1, P)
    torch.testing.assert_close(basis @ basis.T, torch.eye(P - 1), atol=1e-5, rtol=0)
    torch.testing.assert_close(basis.sum(dim=1), torch.zeros(P - 1), atol=1e-5, rtol=0)


def test_power_is_that_of_the_fast_fourier_transform(adder):
    table = adder.model.embedding.W_E[:P].numpy()
    spectrum = (np.abs(np.fft.rfft(table, axis=0))[1:] ** 2).sum(axis=1)
    np.testing.assert_allclose(adder.model.embedding.power().numpy(), spectrum / spectrum.sum(), rtol=1e-4)


def test_a_part_is_that_of_the_fast_fourier_transform_and_taking_it_twice_takes_it_once(adder):
    embedding = adder.model.embedding
    chosen = torch.arange(26) % 3 == 0
    spectrum = np.fft.rfft(embedding.W_E[:P].numpy(), axis=0)
    spectrum[~np.concatenate([[False], chosen.numpy()])] = 0
    part = embedding.part(chosen)
    np.testing.assert_allclose(part[:P].numpy(), np.fft.irfft(spectrum, P, axis=0), atol=1e-6)
    assert not part[P].any()  # the token = has no frequency
    embedding.W_E.copy_(part)
    torch.testing.assert_close(embedding.part(chosen), part, atol=1e-6, rtol=0)
    assert embedding.part(~chosen).abs().max() < 1e-6


def test_the_parts_and_the_constant_are_the_whole(adder):
    embedding = adder.model.embedding
    groups = embedding.groups()
    rest = embedding.W_E - embedding.part(groups["keys"]) - embedding.part(groups["others"])
    torch.testing.assert_close(rest[:P], embedding.W_E[:P].mean(dim=0, keepdim=True).expand(P, -1), atol=1e-6, rtol=0)
    assert torch.equal(rest[P], embedding.W_E[P])


def test_keys_are_the_strong_frequencies_and_draws_as_many_of_the_others(planted):
    groups = planted.model.embedding.groups()
    assert (groups["keys"].nonzero()[:, 0] + 1).tolist() == [7, 20]
    assert torch.equal(groups["others"], ~groups["keys"])
    assert [int(groups[draw].sum()) for draw in DRAWS] == [2, 2, 2]
    assert not any((groups[draw] & groups["keys"]).any() for draw in DRAWS)
    assert function("fourier.py:keys")(planted).keys() == {7, 20}


def seen(subject, *zeroed):
    """Token embeddings as the block reads them with some sites zeroed, `[p, d_model]`."""
    batch, kept = subject.examples("test", 10_000).take(range(0, P * P, P)), {}

    def tap(address, h):
        if address.site == "embed":
            kept["embed"] = h
            return h
        return torch.zeros_like(h)

    subject.forward(batch, tap, ["embed", *zeroed])
    return kept["embed"][:, 0]


def test_each_site_is_its_frequencies_alone(planted):
    table = planted.model.embedding.W_E[:P]
    torch.testing.assert_close(seen(planted), table, atol=1e-5, rtol=0)
    strong, constant = torch.zeros_like(table), torch.zeros_like(table)
    strong[:, :2], constant[:, 63] = table[:, :2], table[:, 63]
    torch.testing.assert_close(seen(planted, "embed.others"), strong + constant, atol=1e-5, rtol=0)
    torch.testing.assert_close(seen(planted, "embed.keys"), table - strong, atol=1e-5, rtol=0)
    torch.testing.assert_close(seen(planted, "embed.keys", "embed.others"), constant, atol=1e-5, rtol=0)
    groups = planted.model.embedding.groups()
    for draw in DRAWS:
        expected = table.clone()
        expected[:, [direction for direction, frequency in ((2, 3), (3, 11)) if groups[draw][frequency - 1]]] = 0
        torch.testing.assert_close(seen(planted, f"embed.{draw}"), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("row", ["only keys", "without keys", "without draw 0", "without draw 2"])
def test_zeroing_frequencies_of_the_weights_is_zeroing_their_site(planted, row):
    site = {"only keys": "embed.others", "without keys": "embed.keys"}.get(row, f"embed.{row.removeprefix('without ').replace(' ', '.')}")
    batch = planted.examples("test", 200)
    zeroed = function("fourier.py:zeroings")(planted.model.embedding)[row]
    loss, right = function("fourier.py:answers")(planted.model, batch, zeroed)
    logits = planted.forward(batch, lambda _, h: torch.zeros_like(h), [site]).logits[:, 2]
    np.testing.assert_allclose(loss, cross_entropy(logits, batch.targets[:, 2], reduction="none").numpy(), atol=1e-4)
    assert right.tolist() == (logits.argmax(dim=1) == batch.targets[:, 2]).double().tolist()


@pytest.fixture
def by_construction(adder):
    """A network that adds by four frequencies and cannot read the others, which its embedding has too.

    Heads look everywhere alike, so for each key w what they write to dims 8-15 is proportional to cos wa + cos wb, sin wa + sin wb: the
    vector 2 cos(w(a - b)/2) at the angle w(a + b)/2. Neurons at 64 angles turn each of these into
    |cos(w(a - b)/2)| cos and sin w(a + b), in dims 16-23; and the logit of c is their sum over keys of products with cos wc, sin wc.
    """
    model, keys = adder.model, (3, 8, 14, 23)
    numbers = torch.arange(P)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for index, key in enumerate(keys):
            angle = 2 * torch.pi * key * numbers / P
            both = slice(2 * index, 2 * index + 2)
            model.embedding.W_E[:P, both] = torch.stack([angle.cos(), angle.sin()], dim=1)
            turn = 2 * torch.pi * torch.arange(64) / 64
            neurons = slice(64 * index, 64 * index + 64)
            model.W_in[8 + 2 * index : 10 + 2 * index, neurons] = torch.stack([turn.cos(), turn.sin()])
            model.W_out[neurons, 16 + 2 * index : 18 + 2 * index] = torch.stack([(2 * turn).cos(), (2 * turn).sin()], dim=1)
            model.W_U[16 + 2 * index : 18 + 2 * index] = 10 * torch.stack([angle.cos(), angle.sin()])
        for direction, frequency in enumerate((1, 5, 11, 17, 20, 26)):
            model.embedding.W_E[:P, 30 + direction] = 0.2 * wave(frequency)
        model.embedding.W_E[:, 40] = 3.0
        model.W_V[0, :8, :8] = model.W_O[0, :8, 8:16] = torch.eye(8)
    return adder


def test_on_a_network_built_by_hand_the_keys_alone_add_every_pair_and_without_them_it_guesses(by_construction):
    assert function("fourier.py:keys")(by_construction).keys() == {3, 8, 14, 23}
    found = function("fourier.py:measure")(by_construction)
    for row in ("nothing", "only keys", "without draw 0", "without draw 1", "without draw 2"):
        assert found[row].right.estimate == 1.0
    assert found["only keys"].loss == pytest.approx(found["nothing"].loss, abs=1e-6)
    assert found["without keys"].loss == pytest.approx(math.log(P), abs=1e-4)
    assert found["without keys"].right.estimate < 0.05


def test_on_a_network_built_by_hand_another_pairs_keys_bring_its_sum_and_its_other_frequencies_nothing(by_construction):
    batch = by_construction.examples("test", 10_000)
    other = batch.take(np.random.default_rng(0).permutation(P * P).tolist())

    def said(site):
        there = {}
        by_construction.forward(other, lambda at, h: there.setdefault(at.site, h), [site])
        return by_construction.forward(batch, lambda at, _: there[at.site], [site]).logits[:, 2].argmax(dim=1)

    assert torch.equal(said("embed.keys"), other.targets[:, 2])
    for site in ("embed.others", *(f"embed.{draw}" for draw in DRAWS)):
        assert torch.equal(said(site), batch.targets[:, 2])


def test_a_tap_that_returns_its_argument_at_every_site_changes_no_bit(adder):
    batch = adder.examples("test", 16).take(range(16))
    assert torch.equal(adder.forward(batch).logits, adder.forward(batch, lambda _, h: h, adder.sites).logits)
    assert len(adder.sites) == 6


def by_hand(weights, tokens):
    """The same network written once more: whole sequences, head by head, under a causal mask; logits at = `[batch, p]`."""
    stream = weights["embedding.W_E"][tokens] + weights["W_pos"]
    added = []
    for head in range(4):
        q, k, v = (stream @ weights[name][head] for name in ("W_Q", "W_K", "W_V"))
        scores = q @ k.transpose(1, 2) / 4 + torch.full((3, 3), float("-inf")).triu(1)
        added.append(scores.softmax(dim=-1) @ v @ weights["W_O"][head])
    stream = stream + sum(added)
    stream = stream + (stream @ weights["W_in"] + weights["b_in"]).relu() @ weights["W_out"] + weights["b_out"]
    return (stream @ weights["W_U"])[:, 2]


def test_the_fit_is_that_of_a_plain_loop_of_adamw_without_clipping(adder, tmp_path):
    adder.model.double()
    adder.objective({}, 3)
    weights = {name: value.detach().clone().requires_grad_() for name, value in adder.model.named_parameters()}
    batch, losses = adder.splits["train"], []
    adam = torch.optim.AdamW(weights.values(), lr=1e-3, betas=(0.9, 0.98), weight_decay=1.0)
    for step in range(12):
        adam.param_groups[0]["lr"] = 1e-3 * min(1, (step + 1) / 10)
        loss = cross_entropy(by_hand(weights, batch.inputs).double(), batch.targets[:, 2])
        losses.append(loss.item())
        adam.zero_grad()
        loss.backward()
        adam.step()
    fitted(tmp_path, adder, 12, seed=3)
    for name, value in adder.model.named_parameters():
        torch.testing.assert_close(value, weights[name].detach(), atol=1e-9, rtol=0, msg=name)
    assert losses[-1] < losses[0]


def fitted(folder, subject, steps, seed=0, dies_at=None):
    objective = subject.objective({}, seed)
    if dies_at is not None:
        whole = objective.loss

        def loss(step):
            if step == dies_at:
                raise KeyboardInterrupt
            return whole(step)

        objective.loss = loss
    module = SubjectFit(subject, objective, steps, eval_every=10)
    fit(module, folder, Silent(), checkpoint_every=10)
    module.finish()
    return module


def test_a_fit_that_was_killed_goes_on_to_the_same_bits(tmp_path):
    project = read_project(ROOT / "project.yaml")
    settle(0)
    whole = fitted(tmp_path / "whole", project.load_subject("adder"), 30)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fitted(tmp_path / "killed", project.load_subject("adder"), 30, dies_at=17)
    resumed = fitted(tmp_path / "killed", project.load_subject("adder"), 30)
    assert tensors_digest(whole.tensors()) == tensors_digest(resumed.tensors())
    assert {"n_keys", "key_power", "ce_loss", "token_acc_train"} < set(whole.history[-1])


def test_every_step_is_all_training_pairs_and_another_seed_other_weights(adder):
    objective = adder.objective({}, 0)
    assert objective.batch(0).ids == objective.batch(7).ids == adder.splits["train"].ids
    drawn = adder.digest()
    adder.objective({}, 1)
    assert adder.digest() != drawn


def test_options_are_refused():
    with pytest.raises(SpecError, match="unknown option 'p'"):
        function("subject.py:build")("x", {"p": 7}, ROOT)


def test_scores_along_the_way_are_those_of_the_table_and_random_draws_their_mean(adder):
    objective = adder.objective({}, 0)
    found = function("fourier.py:measure")(adder)
    scores = objective.evaluate()
    assert scores["token_acc_only_keys"] == pytest.approx(found["only keys"].right.estimate)
    assert scores["ce_loss_without_keys"] == pytest.approx(found["without keys"].loss)
    assert scores["ce_loss_without_random"] == pytest.approx(np.mean([found[f"without draw {number}"].loss for number in range(3)]))
    assert scores["ce_loss_train"] == pytest.approx(objective.loss(0)[0].item(), rel=1e-6)
    assert scores["n_keys"] == len(function("fourier.py:keys")(adder))
    intervals = means(objective.scores(), 0)
    assert intervals.keys() == scores.keys() - {"n_keys", "key_power"}
    assert {name: intervals[name].n for name in ("ce_loss", "ce_loss_train", "ce_loss_only_keys")} == {
        "ce_loss": 1405,
        "ce_loss_train": 1404,
        "ce_loss_only_keys": P * P,
    }


@pytest.fixture(scope="module")
def measured():
    def of(seed, weight_decay):
        settle(seed, threads=1)
        return function("fourier.py:measure")(function("fourier.py:trained")(ROOT, seed, weight_decay))

    return of


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_with_weight_decay_the_keys_alone_add_every_pair_and_without_them_nothing_does(measured, seed):
    found = measured(seed, 1.0)
    assert found["nothing"].right.estimate == 1.0
    assert found["only keys"].right.estimate > 0.99
    assert found["without keys"].loss > math.log(P)
    assert min(found[f"without draw {number}"].right.estimate for number in range(3)) > 0.99


@pytest.mark.slow
def test_without_weight_decay_the_keys_alone_do_not(measured):
    found = measured(0, 0.0)
    assert found["only keys"].right.estimate < 0.6
    assert found["without keys"].loss > math.log(P)  # what a test of necessity alone would have taken for the same
