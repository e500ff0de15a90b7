import math

import numpy as np
import pytest
import torch
from tiny import TinySubject

from mlinterp.errors import ExperimentError
from mlinterp.sae.config import SAEConfig
from mlinterp.sae.evaluation.substitution import substitute, writes_of
from mlinterp.sae.kinds import build
from mlinterp.sae.model import SAE
from mlinterp.subjects.base import Address, Examples

ZERO = torch.zeros(4)


def sae_for(subject, perfect):
    d = subject.width("z_b")
    sae = SAE(SAEConfig(d_in=d, d_sae=2 * d, activation="relu-l1"))
    with torch.no_grad():
        sae.W_dec.copy_(torch.cat([torch.eye(d), -torch.eye(d)]))
        sae.W_enc.copy_(sae.W_dec.T * perfect)
    return sae.requires_grad_(False)


@pytest.fixture
def subject():
    return TinySubject()


LAST = [Address("z_b", 1)]


def test_a_perfect_reconstruction_recovers_the_whole_loss(subject):
    done = substitute(subject, subject.examples("test", 20), sae_for(subject, 1), LAST, mean=ZERO)
    assert done.with_sae == done.clean
    assert done.ce_loss_recovered == 1
    assert done.with_sae.kl_div == 0
    assert (done.n_examples, done.n_tokens) == (20, 100)


def test_an_sae_that_returns_zero_is_zero_ablation(subject):
    done = substitute(subject, subject.examples("test", 20), sae_for(subject, 0), LAST, mean=torch.ones(4))
    assert done.with_sae == done.ablated_zero != done.ablated_mean
    assert done.ce_loss_recovered == 0
    assert done.ablated_zero.ce_loss == pytest.approx(math.log(7))


def test_losses_agree_with_the_model_written_out(subject, random_sae):
    examples = subject.examples("test", 20, ragged=True)
    sae = random_sae("topk", d_in=4)
    mean = torch.tensor([0.5, -1.0, 2.0, 0.0])
    done = substitute(subject, examples, sae, LAST, mean=mean, batch_size=7)
    seen = {}
    subject.forward(examples.take(range(20)), tap=lambda address, h: seen.setdefault(address, h), sites=["z_b"])
    h = seen[Address("z_b", 1)][:, 1:]
    scored = examples.targets >= 0
    targets = examples.targets[scored].numpy()
    log_p = {}
    for name, state in {"clean": h, "with_sae": sae(h), "ablated_zero": 0 * h, "ablated_mean": mean.expand_as(h)}.items():
        logits = (state @ subject.model.U).detach().double()[scored].numpy()
        log_p[name] = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        run = getattr(done, name)
        right = log_p[name].argmax(axis=1) == targets
        assert run.ce_loss == pytest.approx(-log_p[name][np.arange(len(targets)), targets].mean(), rel=1e-6)
        assert run.token_acc == right.mean()
        owner = scored.nonzero()[:, 0].numpy()
        assert run.exact == np.mean([right[owner == example].all() for example in range(20)])
        kl = (np.exp(log_p["clean"]) * (log_p["clean"] - log_p[name])).sum(axis=1).mean()
        assert run.kl_div == pytest.approx(kl, rel=1e-5, abs=1e-9)
    lost = done.ablated_zero.ce_loss - done.clean.ce_loss
    assert done.ce_loss_recovered == pytest.approx((done.ablated_zero.ce_loss - done.with_sae.ce_loss) / lost)
    assert done.n_tokens == len(targets)


def test_what_each_example_adds_makes_up_every_number(subject, random_sae):
    examples = subject.examples("test", 20, ragged=True)
    done = substitute(subject, examples, random_sae("topk", d_in=4), LAST, mean=ZERO, batch_size=7)
    assert {name: score.value for name, score in done.per_example.items()} == pytest.approx(done.numbers(), rel=1e-9, abs=1e-12)
    assert {len(score.total) for score in done.per_example.values()} == {20}
    third = Examples(examples.ids[3:4], examples.inputs[3:4], examples.targets[3:4], examples.mask[3:4])
    alone = substitute(subject, third, random_sae("topk", d_in=4), LAST, mean=ZERO)
    loss = done.per_example["ce_loss_with_sae"]
    assert loss.total[3] / loss.weight[3] == pytest.approx(alone.with_sae.ce_loss, rel=1e-6)


def test_only_the_given_evaluations_and_rows_are_replaced(subject):
    touched = []

    class Spy(TinySubject):
        def _visit(self, address, h, tap, sites):
            out = super()._visit(address, h, tap, sites)
            if not torch.equal(out, h):
                touched.append((address, (out != h).any(dim=2).any(dim=0).tolist()))
            return out

    spy = Spy()
    substitute(spy, spy.examples("test", 4), sae_for(subject, 0), [Address("z_a", 0)], mean=ZERO, positions="tokens")
    assert {address for address, _ in touched} == {Address("z_a", 0)}
    assert all(rows == [False, True, True, True, True, True] for _, rows in touched)


def test_rows_of_special_tokens_are_left_as_they_are(subject):
    examples = subject.examples("test", 20)
    everything = substitute(subject, examples, sae_for(subject, 0), LAST, mean=ZERO, special=range(7))
    assert everything.with_sae == everything.clean
    some = substitute(subject, examples, sae_for(subject, 0), LAST, mean=ZERO, special={3})
    plain = substitute(subject, examples, sae_for(subject, 0), LAST, mean=ZERO)
    share = (examples.inputs == 3).double().mean()
    where = examples.inputs.flatten() == 3
    assert 0 < share < 1
    assert some.with_sae.kl_div < plain.with_sae.kl_div
    assert where.any()


def test_the_batch_size_moves_nothing_but_float_dust(subject, random_sae):
    examples, sae = subject.examples("test", 13), random_sae("relu-l1", d_in=4)
    one, other = (substitute(subject, examples, sae, LAST, mean=ZERO, batch_size=size) for size in (1, 13))
    assert one.numbers() == pytest.approx(other.numbers(), rel=1e-5)


def test_an_ablation_that_costs_nothing_leaves_recovery_undefined(subject):
    with torch.no_grad():
        subject.model.U.zero_()
    done = substitute(subject, subject.examples("test", 5), sae_for(subject, 0), LAST, mean=ZERO)
    assert done.ce_loss_recovered is None
    assert done.payload()["ce_loss_recovered"] is None


def test_no_examples_at_all_are_refused(subject):
    with pytest.raises(ExperimentError, match="there are no examples of this split on which to compare behaviour"):
        substitute(subject, subject.examples("test", 0), sae_for(subject, 1), LAST, mean=ZERO)


def test_examples_without_a_scored_position_are_refused(subject):
    examples = subject.examples("test", 5)
    unscored = Examples(examples.ids, examples.inputs, torch.full_like(examples.targets, -100), examples.mask)
    with pytest.raises(ExperimentError, match="no position of these examples is scored"):
        substitute(subject, unscored, sae_for(subject, 1), LAST, mean=ZERO)


def test_the_sae_follows_the_dtype_of_the_activation(subject):
    done = substitute(subject, subject.examples("test", 5), sae_for(subject, 1).double(), LAST, mean=ZERO.double())
    assert done.ce_loss_recovered == pytest.approx(1, abs=1e-6)


def transcoder(kind="transcoder", site="z_a", target="z_b"):
    sae = build(SAEConfig(d_in=4, d_out=4, d_sae=8, activation="relu-l1", kind=kind, site=site, target_site=target))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        sae.scale.fill_(2.0)
        sae.target_scale.fill_(0.5)
        sae.input_mean.fill_(0.3)
    return sae.requires_grad_(False)


@pytest.mark.parametrize("kind", ["transcoder", "skip-transcoder"])
def test_a_transcoder_reads_one_site_and_writes_another_in_the_same_pass(subject, kind):
    examples, sae = subject.examples("test", 20), transcoder(kind)
    both = [Address("z_a", 0), Address("z_a", 1)]
    done = substitute(subject, examples, sae, both, mean=torch.ones(4), positions="all", batch_size=6)
    E, U = subject.model.E.detach(), subject.model.U.detach()
    first = sae(E[examples.inputs])
    last = sae(E[examples.inputs] + first)
    assert done.with_sae.ce_loss == pytest.approx(_loss(last @ U, examples), rel=1e-5)
    assert done.ablated_zero.ce_loss == pytest.approx(math.log(7))
    assert done.ablated_mean.ce_loss == pytest.approx(_loss(torch.ones(4) @ U.expand(20, 5, -1, -1), examples), rel=1e-5)


def _loss(logits, examples):
    return float(torch.nn.functional.cross_entropy(logits.double().reshape(-1, 7), examples.targets.reshape(-1)))


def test_a_transcoder_writes_only_where_it_reads_and_only_the_chosen_rows(subject):
    found = {}

    class Spy(TinySubject):
        def _visit(self, address, h, tap, sites):
            out = super()._visit(address, h, tap, sites)
            if tap is not None:
                found.setdefault(address, set()).update((out != h).any(dim=2).any(dim=0).nonzero()[:, 0].tolist())
            return out

    spy = Spy()
    substitute(spy, spy.examples("test", 4), transcoder(), [Address("z_a", 0)], mean=ZERO, positions="tokens")
    assert {address: rows for address, rows in found.items() if rows} == {Address("z_b", 0): {1, 2, 3, 4, 5}}


def test_a_site_that_comes_before_what_is_read_cannot_be_replaced(subject):
    backwards = transcoder(site="z_b", target="z_a")
    with pytest.raises(ExperimentError, match="z_a, sup_step 1 comes before z_b, sup_step 1"):
        substitute(subject, subject.examples("test", 4), backwards, [Address("z_b", 1)], mean=ZERO)
    later = writes_of(subject, backwards.config, [Address("z_b", 0)], [Address("z_a", 1)])
    assert later == {Address("z_b", 0): Address("z_a", 1)}


def test_two_evaluations_cannot_be_written_to_one(subject):
    both = [Address("z_a", 0), Address("z_a", 1)]
    with pytest.raises(ExperimentError, match="read at z_a, sup_step 0 and at z_a, sup_step 1 would both be written at z_b, sup_step 1"):
        writes_of(subject, transcoder().config, both, [Address("z_b", 1)] * 2)


def test_a_crosscoder_is_not_measured_and_says_so(subject):
    config = SAEConfig(d_in=8, d_sae=8, activation="relu-l1", kind="crosscoder", site="z_a + z_b", sites=["z_a", "z_b"])
    with pytest.raises(ExperimentError, match=r"a crosscoder reads and writes z_a, z_b at once: .* not measured"):
        writes_of(subject, config, LAST)
