"""The token-set subject: one row a context, readable and writable as on any subject, and its fast path equal to a forward pass."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import token_sets
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import nn
from torch.nn.functional import gelu, layer_norm

from mlinterp.errors import SpecError
from mlinterp.project import find_project
from mlinterp.subjects.base import IGNORED, Address
from mlinterp.subjects.token_sets.subject import TokenSetSubject
from mlinterp.subjects.token_sets.table import ContextTable
from mlinterp.subjects.unembedding import NoUnembedding, Unembedding

PACKAGE = token_sets.Fighters()


def subject_of(name: str, tmp_path_factory: pytest.TempPathFactory) -> TokenSetSubject:
    subject = find_project(token_sets.make(tmp_path_factory.mktemp(name))).load_subject(name)
    assert isinstance(subject, TokenSetSubject)
    return subject


@pytest.fixture(scope="module")
def learned(tmp_path_factory) -> TokenSetSubject:
    return subject_of("learned", tmp_path_factory)


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> TokenSetSubject:
    return subject_of("planted", tmp_path_factory)


def custom(model: nn.Module, **sites: str) -> TokenSetSubject:
    return TokenSetSubject("own", model, PACKAGE, sites, next(iter(sites)), {})


def table_of(*contexts) -> ContextTable:
    return ContextTable.of(PACKAGE.vocabulary, PACKAGE.group_keys, contexts)


def seen(subject: TokenSetSubject, batch, sites) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    subject.forward(batch, lambda address, h: found.setdefault(address.site, h), sites)
    return found


# Batches


def test_a_batch_holds_the_group_then_the_tokens_and_is_padded(planted):
    batch = planted.batch_of(table_of(({"power_3", "shield"}, "axe"), ((), None)), ["a", "b"], np.array([2, 0]))
    texts = [[planted.token_text(token) for token in row] for row in batch.inputs.tolist()]
    assert texts == [["<weapon axe>", "power_3", "shield"], ["<no weapon>", "<padding>", "<padding>"]]
    assert batch.mask.tolist() == [[True, True, True], [True, False, False]]
    assert batch.targets.tolist() == [[2, IGNORED, IGNORED], [0, IGNORED, IGNORED]]
    assert [planted.token_text(output) for output in range(planted.vocab)] == ["weak", "strong", "guarded", "berserk"]


def test_outputs_that_are_the_vocabularys_tokens_share_their_ids():
    class Completing(token_sets.Fighters):
        outputs = PACKAGE.vocabulary.tokens

    subject = TokenSetSubject("own", nn.Linear(12, 7), Completing(), {"logits": ""}, "logits", {})
    assert subject.batch_of(table_of(({"power_6"}, None))).inputs[0, 1] == subject.package.vocabulary.number("power_6")
    assert subject.token_text(1) == "power_6"


@given(arrays.arrays(bool, st.tuples(st.integers(0, 6), st.just(len(PACKAGE.vocabulary)))), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_a_batch_holds_all_of_its_contexts(incidence, shift):
    subject = custom(nn.Linear(12, 4), logits="")
    table = ContextTable(PACKAGE.vocabulary, PACKAGE.group_keys, incidence, (np.arange(len(incidence)) + shift) % 4 - 1)
    np.testing.assert_array_equal(subject.table_of(subject.batch_of(table)).words, table.words)


def test_only_padding_stands_for_nothing_so_contexts_without_a_group_are_used(planted):
    assert [planted.token_text(token) for token in planted.special_tokens] == ["<padding>"]


# Examples


def test_examples_are_contexts_of_a_split_with_their_targets(planted):
    examples = planted.examples("validation", 30, seed=1)
    rows = [int(name.rpartition("-")[2]) for name in examples.ids]
    assert examples.ids[0].startswith("fighters-validation-0000")
    assert rows == sorted(rows)
    np.testing.assert_array_equal(planted.table_of(examples).words, PACKAGE.contexts("validation").take(np.array(rows)).words)
    assert examples.targets[:, 0].tolist() == PACKAGE.targets("validation")[rows].tolist()
    assert (examples.targets[:, 1:] == IGNORED).all()
    assert examples.ids == planted.examples("validation", 30, seed=1).ids != planted.examples("validation", 30, seed=2).ids
    assert len(planted.examples("validation", 10**6)) == 80


def test_contexts_whose_groups_stand_in_another_order_are_refused():
    class Sorted(token_sets.Fighters):
        def contexts(self, split):
            return ContextTable.of(self.vocabulary, sorted(self.groups), [(("shield",), "axe")])

    subject = TokenSetSubject("own", nn.Linear(12, 4), Sorted(), {"all": ""}, "all", {})
    with pytest.raises(SpecError, match="gives test contexts of another vocabulary or other groups; build them with its own"):
        subject.contexts("test")


def test_contexts_without_targets_are_examples_that_are_not_scored_and_cannot_be_trained_on():
    class Unanswered(token_sets.Fighters):
        targets = token_sets.DataPackage.targets

    subject = TokenSetSubject("own", nn.Linear(12, 4), Unanswered(), {"logits": ""}, "logits", {})
    assert not subject.examples("test", 5).scored.any()
    with pytest.raises(SpecError, match="'fighters' has no targets to train on"):
        subject.objective({}, 0)


@pytest.mark.parametrize("wrong", [np.full(120, 4), np.full(120, -1), np.zeros(119, dtype=int), np.zeros(120)])
def test_targets_that_are_no_numbers_of_outputs_are_refused(wrong):
    class Off(token_sets.Fighters):
        def targets(self, split):
            return wrong

    subject = TokenSetSubject("own", nn.Linear(12, 4), Off(), {"logits": ""}, "logits", {})
    with pytest.raises(SpecError, match=r"gives test targets .*; expected 120 numbers of outputs, 0 to 3"):
        subject.examples("test", 5)


def test_a_split_or_selection_that_there_is_not_is_refused(planted):
    with pytest.raises(SpecError, match=r"unknown split 'tset'; .*did you mean 'test'"):
        planted.examples("tset", 3)
    with pytest.raises(SpecError, match="unknown selection 'score_next'"):
        planted.examples("test", 3, score_next=["a"])


# Forward passes


def test_neurons_of_the_planted_network_are_what_was_planted(planted):
    table = PACKAGE.contexts("test")
    power, shield = table.incidence[:, 0:3], table.incidence[:, 6]
    ranged = np.isin(table.group, [0, 1])
    expected = np.stack(
        [
            np.maximum(power.sum(axis=1) - 1, 0),
            2 * (shield & power[:, 1]),
            table.levels[:, 1],
            ranged,
            np.zeros(len(table)),
        ],
        axis=1,
    )
    np.testing.assert_array_equal(planted.activations(table, "pooled"), expected)


def test_the_built_in_network_computes_what_it_says(learned):
    table, model = PACKAGE.contexts("test"), learned.model
    weights = model.state_dict()
    h = torch.from_numpy(PACKAGE.encode(table)) @ weights["embed.weight"].T + weights["embed.bias"]
    np.testing.assert_allclose(learned.activations(table, "embed"), h, atol=1e-5)
    read = layer_norm(h, (16,), weights["blocks.0.norm.weight"], weights["blocks.0.norm.bias"])
    inner = gelu(read @ weights["blocks.0.up.weight"].T + weights["blocks.0.up.bias"])
    h = h + inner @ weights["blocks.0.down.weight"].T + weights["blocks.0.down.bias"]
    np.testing.assert_allclose(learned.activations(table, "block_0"), h, atol=1e-5)
    np.testing.assert_array_equal(learned.activations(table, "pooled"), learned.activations(table, "block_0"))
    logits = learned.forward(learned.batch_of(table)).logits[:, 0]
    np.testing.assert_allclose(logits, h @ weights["unembed.weight"].T + weights["unembed.bias"], atol=1e-5)


def test_sites_are_evaluated_once_each_in_order(learned, planted):
    assert learned.sites == ("embed", "block_0", "pooled")
    assert learned.addresses(["pooled", "embed"]) == [Address("embed"), Address("pooled")]
    assert [learned.width(site) for site in learned.sites] == [16, 16, 16]
    assert (planted.sites, planted.width("pooled"), planted.vocab) == (("pooled",), 5, 4)


def test_a_tap_sees_the_row_of_a_context_at_each_of_its_positions(learned):
    batch = learned.examples("test", 9).take(range(9))
    for site, h in seen(learned, batch, learned.sites).items():
        assert h.shape == (*batch.inputs.shape, 16), site
        assert (h == h[:, :1]).all()


@pytest.mark.parametrize("name", ["learned", "planted"])
@pytest.mark.parametrize("tap", [lambda _, h: h, lambda _, h: h.clone(), lambda _, h: h.contiguous()])
def test_a_tap_that_changes_nothing_leaves_the_outputs_bit_identical(name, tap, request):
    subject = request.getfixturevalue(name)
    batch = subject.examples("test", 50).take(range(50))
    assert torch.equal(subject.forward(batch, tap, subject.sites).logits, subject.forward(batch).logits)


def test_what_stands_at_the_first_position_is_what_the_model_goes_on_with(planted):
    batch = planted.examples("test", 6).take(range(6))

    def edit(_, h):
        edited = h.clone()
        edited[:, 0, 2] = 7.0
        edited[:, 1:] = float("nan")
        return edited

    h = torch.from_numpy(planted.activations(planted.table_of(batch), "pooled"))
    h[:, 2] = 7.0
    logits = planted.forward(batch, edit, ["pooled"]).logits
    assert logits.shape == (*batch.inputs.shape, 4)
    assert torch.equal(logits[:, 0], planted.model.head(h))
    assert (logits == logits[:, :1]).all()


def test_a_pass_stops_at_the_last_site_that_is_wanted(learned):
    batch, reached = learned.examples("test", 3).take(range(3)), []
    with_hook = learned.model.unembed.register_forward_hook(lambda *_: reached.append(1))
    try:
        assert learned.forward(batch, lambda _, h: h, ["embed"], until=Address("embed")) is None
        learned.activations(PACKAGE.contexts("test"), "pooled")
    finally:
        with_hook.remove()
    assert not reached


def test_hooks_are_gone_afterwards_also_when_the_tap_raises(learned):
    def broken(address, h):
        raise KeyError(address.site)

    batch = learned.examples("test", 3).take(range(3))
    with pytest.raises(KeyError):
        learned.forward(batch, broken, ["pooled"])
    learned.activations(PACKAGE.contexts("test"), "pooled")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in learned.model.modules())


def test_any_module_with_one_row_a_context_is_a_site_and_others_are_refused(learned):
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head = nn.Unflatten(1, (3, 4)), nn.Linear(12, 4)

        def forward(self, bag):
            return self.head(self.inner(bag).flatten(1))

    assert learned.width("module:blocks.0.up") == 32
    with pytest.raises(SpecError, match=r"hook point 'inner' holds a tensor of shape \[1, 3, 4\]; it must be a tensor \[n, d\]"):
        custom(Wide(), inner="inner").width("inner")


def test_an_unknown_site_is_refused_with_the_nearest(learned):
    for ask in (
        lambda: learned.width("poled"),
        lambda: learned.activations(PACKAGE.contexts("test"), "poled"),
        lambda: learned.output_weights("poled"),
    ):
        with pytest.raises(SpecError, match=r"hook point 'poled' is not in 'learned'; .*did you mean 'pooled'\?"):
            ask()


# The fast path


def test_activations_are_those_of_a_forward_pass_bit_for_bit_on_the_same_contexts(learned):
    table = PACKAGE.contexts("test")
    for site, h in seen(learned, learned.batch_of(table), learned.sites).items():
        np.testing.assert_array_equal(learned.activations(table, site), h[:, 0])


def test_activations_do_not_depend_on_how_contexts_are_batched(learned):
    table = PACKAGE.contexts("train")
    whole = learned.activations(table, "pooled")
    assert (whole.dtype, whole.shape) == (np.float32, (200, 16))
    for size in (1, 7, 200, 4096):
        np.testing.assert_allclose(learned.activations(table, "pooled", batch_size=size), whole, atol=1e-5)


def test_no_contexts_have_no_activations(learned):
    assert learned.activations(PACKAGE.contexts("test").take(slice(0, 0)), "pooled").shape == (0, 16)


# Positions


@pytest.mark.parametrize("selector", ["all", "tokens", "answer", "last", "prefix", [0], [3, -1]])
def test_every_selector_means_the_one_row_of_a_context(planted, selector):
    rows = planted.positions(planted.examples("test", 7).take(range(7)), selector)
    assert rows[:, 0].all()
    assert not rows[:, 1:].any()


def test_an_unknown_selector_is_refused(planted):
    with pytest.raises(SpecError, match=r"unknown position selector 'tokns'; .*did you mean 'tokens'"):
        planted.positions(planted.examples("test", 2).take(range(2)), "tokns")


# The way to the logits


def test_the_built_in_networks_logits_are_exactly_linear_in_what_it_pools(learned):
    names, weights = learned.output_weights("pooled")
    assert names == PACKAGE.outputs
    np.testing.assert_array_equal(weights, learned.model.unembed.weight.numpy())


def test_a_planted_networks_way_to_its_logits_is_its_last_layer(planted):
    np.testing.assert_array_equal(planted.output_weights("pooled")[1], planted.model.head.weight.numpy())


def test_a_way_through_two_linear_layers_is_their_product():
    model = nn.Sequential(nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 5), nn.Linear(5, 4))
    subject = custom(model, hidden="1")
    product = model[3].weight @ model[2].weight
    np.testing.assert_allclose(subject.output_weights("hidden")[1], product.detach(), atol=1e-6)


class Around(nn.Module):
    """Adds to the logits what the context says besides the site."""

    def __init__(self):
        super().__init__()
        self.site, self.head, self.skip = nn.Linear(12, 6), nn.Linear(6, 4), nn.Linear(12, 4)

    def forward(self, bag):
        return self.head(self.site(bag)) + self.skip(bag)


class Unread(Around):
    """Evaluates a site that the logits do not depend on."""

    def forward(self, bag):
        self.site(bag)
        return self.skip(bag)


@pytest.mark.parametrize(
    ("model", "site"),
    [
        (nn.Sequential(nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 4)), "0"),
        (nn.Sequential(nn.Linear(12, 6), nn.Linear(6, 4), nn.Softmax(dim=1)), "0"),
        (Around(), "site"),
        (Unread(), "site"),
    ],
)
def test_a_way_that_is_not_linear_or_not_the_only_one_is_refused(model, site):
    subject = custom(model, here=site)
    with pytest.raises(SpecError, match=r"^hook_point: the way from here to the logits of 'own' is not linear; "):
        subject.output_weights("here")
    answer = subject.unembedding("here", subject.examples("test", 4).take(range(4)))
    assert answer == NoUnembedding("the way from here to the logits of 'own' is not linear")


def test_the_direct_effect_of_a_direction_is_what_writing_it_does_to_the_logits(learned):
    batch = learned.examples("test", 20).take(range(20))
    way = learned.unembedding("pooled", batch)
    assert isinstance(way, Unembedding)
    direction = torch.randn(16, generator=torch.Generator().manual_seed(0))
    moved = learned.forward(batch, lambda _, h: h + direction, ["pooled"]).logits[:, 0] - learned.forward(batch).logits[:, 0]
    expected = moved - moved.mean(dim=1, keepdim=True)
    torch.testing.assert_close(way.effects(direction[None]).expand(20, -1), expected, atol=1e-5, rtol=0)


# Identity


def test_weights_start_from_the_declared_seed_alone(tmp_path: Path):
    seeded = {**token_sets.LEARNED, "seed": 1}
    drawn = {**token_sets.PLANTED, "network": {"factory": "drawn.py:network"}, "sites": {"pooled": "0"}}
    project = token_sets.make(tmp_path, seeded=seeded, drawn=drawn, redrawn={**drawn, "seed": 1})
    (project / "drawn.py").write_text("from torch import nn\n\ndef network(package):\n    return nn.Sequential(nn.Linear(12, 4))\n")
    found = find_project(project)
    digests = {}
    for name in ("learned", "seeded", "drawn", "redrawn"):
        torch.manual_seed(len(digests))
        digests[name] = found.load_subject(name).digest()
        torch.manual_seed(99)
        assert found.load_subject(name).digest() == digests[name]
    assert len(set(digests.values())) == 4


def test_a_subject_is_its_network_and_columns_and_not_what_is_studied_of_it(learned, planted, tmp_path):
    plain = {**token_sets.PLANTED, "options": {"grouped": False}}
    project = token_sets.make(tmp_path, looked_at={**token_sets.LEARNED, "readout": "embed", "inputs": {"sae": "latest"}}, plain=plain)
    other = find_project(project).load_subject("looked_at")
    assert (other.readout, learned.readout) == ("embed", "pooled")
    assert other.config == learned.config
    assert other.digest() == learned.digest()
    assert learned.config["network"] == {"d": 16, "hidden": 32, "layers": 1}
    assert planted.config["network"] == {"factory": "package.py:network"}
    ungrouped = find_project(project).load_subject("plain")
    assert ungrouped.config["columns_sha256"] != planted.config["columns_sha256"]
    assert ungrouped.examples("test", 4).inputs[:, 0].tolist() == [11] * 4
