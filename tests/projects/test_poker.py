"""The poker project: its rules, its deals, its constraint and its hand-built network, each against an oracle of its own."""

import importlib.util
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from mlinterp.errors import SpecError
from mlinterp.experiments.base import Context
from mlinterp.experiments.catalog import find, typed_variables
from mlinterp.project import read_project
from mlinterp.spec import Spec
from mlinterp.subjects.token_sets import edits
from mlinterp.subjects.token_sets.table import NO_GROUP, ContextTable

ROOT = Path(__file__).parents[2] / "projects" / "poker"
GAMES = {"high": "five_card_draw", "deuce_to_seven": "kansas_city", "ace_to_five": "razz"}


def module_of(name):
    spec = importlib.util.spec_from_file_location(f"poker_{name}", ROOT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hands = module_of("hands")


@pytest.fixture(scope="module")
def package():
    return hands.build({}, ROOT)


def counts_of(cards):
    """Counts of ranks and suits of cards such as "7h Kd"; "7" and "h" alone are a rank or a suit that was seen by itself."""
    ranks, suits = np.zeros(13, dtype=int), np.zeros(4, dtype=int)
    for card in cards.split():
        for mark in card:
            (ranks if mark in hands.RANKS else suits)[(hands.RANKS if mark in hands.RANKS else hands.SUITS).index(mark)] += 1
    return ranks, suits


def context_of(package, cards, ranking="high"):
    ranks, suits = counts_of(cards)
    return package.table(ranks[None], suits[None], np.array([package.group_keys.index(GAMES[ranking])]))


@pytest.mark.parametrize(
    ("cards", "high", "deuce_to_seven", "ace_to_five"),
    [
        ("", "high_card", "high_card", "high_card"),
        ("7h 7d", "pair", "pair", "pair"),
        ("7 7 Kd h h", "pair", "pair", "pair"),
        ("7h 7d 9c 9s Ad", "two_pair", "two_pair", "two_pair"),
        ("7h 7d 7c 9s", "trips", "trips", "trips"),
        ("7h 7d 7c 9s 9d", "full_house", "full_house", "full_house"),
        ("7h 7d 7c 7s 9d", "quads", "quads", "quads"),
        ("Th Jd Qc Ks Ad", "straight", "straight", "high_card"),
        ("Ah 2d 3c 4s 5d", "straight", "high_card", "high_card"),
        ("2h 3d 4c 5s 6d", "straight", "straight", "high_card"),
        ("Qh Kd Ac 2s 3d", "high_card", "high_card", "high_card"),
        ("h h h h h 9", "flush", "flush", "high_card"),
        ("h h h h 9", "high_card", "high_card", "high_card"),
        ("Ah 2h 3h 4h 5h", "straight_flush", "flush", "high_card"),
        ("9h Th Jh Qh Kh", "straight_flush", "straight_flush", "high_card"),
    ],
)
def test_a_hand_is_called_what_each_game_calls_it(package, cards, high, deuce_to_seven, ace_to_five):
    expected = {"high": high, "deuce_to_seven": deuce_to_seven, "ace_to_five": ace_to_five}
    found = {ranking: hands.CLASSES[package.classes(context_of(package, cards, ranking))[0]] for ranking in GAMES}
    assert found == expected


def every_hand_of(cards):
    """Counts of ranks and suits of every five of the first `cards` cards of a deck, int8 `[n, 13]` and `[n, 4]`."""
    chosen = np.array(list(combinations(range(cards), 5)), dtype=np.int8)
    ranks = sum((chosen[:, [card]] // 4 == np.arange(13)).astype(np.int8) for card in range(5))
    suits = sum((chosen[:, [card]] % 4 == np.arange(4)).astype(np.int8) for card in range(5))
    return ranks, suits


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranking", "straight_flushes", "flushes", "straights"),
    [("high", 40, 5108, 10200), ("deuce_to_seven", 36, 5112, 9180), ("ace_to_five", 0, 0, 0)],
)
def test_all_2598960_hands_are_counted_as_the_known_table_counts_them(ranking, straight_flushes, flushes, straights):
    ranks, suits = every_hand_of(52)
    counts = np.zeros(9, dtype=int)
    for rows in np.array_split(np.arange(len(ranks)), 20):
        counts += np.bincount(hands.seen_class(ranks[rows], suits[rows], np.full(len(rows), ranking)), minlength=9)
    named = straight_flushes + flushes + straights
    expected = {
        "pair": 1098240,
        "two_pair": 123552,
        "trips": 54912,
        "straight": straights,
        "flush": flushes,
        "full_house": 3744,
        "quads": 624,
    }
    expected |= {"straight_flush": straight_flushes, "high_card": 1302540 + 40 + 5108 + 10200 - named}
    assert dict(zip(hands.CLASSES, counts.tolist(), strict=True)) == expected
    assert counts.sum() == 2598960


def test_the_deck_allows_just_what_some_hand_of_it_shows():
    """A hand that shows five ranks or fewer needs no sixth, so the hands of five ranks decide every count over five ranks."""
    shown = np.unique(np.concatenate(every_hand_of(20), axis=1)[:, [0, 1, 2, 3, 4, 13, 14, 15, 16]], axis=0)
    grids = [np.stack(np.meshgrid(*[np.arange(6)] * n, indexing="ij"), axis=-1).reshape(-1, n) for n in (5, 4)]
    ranks, suits = (grid[(grid.sum(axis=1) <= 6) & (np.diff(grid, axis=1) <= 0).all(axis=1)] for grid in grids)
    pairs = np.array([[*a, *b] for a in ranks[ranks[:, 0] <= 4] for b in suits])
    expected = np.array([(shown >= pair).all(axis=1).any() for pair in pairs])
    padded = np.pad(pairs[:, :5], ((0, 0), (0, 8)))
    assert expected.any()
    assert not expected.all()
    np.testing.assert_array_equal(hands.impossible(padded, pairs[:, 5:]), ~expected)


def test_a_context_that_breaks_the_deck_is_explained(package):
    table = context_of(package, "7h 7 h h h h")
    constraint = package.constraint("deck")
    assert constraint.check(table).tolist() == [True]
    assert "rank_7_2" in constraint.explain(table.context(0))


def test_every_class_is_dealt_alike_and_each_of_its_hands_alike():
    rng = np.random.default_rng(0)
    ranks, suits = hands.deal(90_000, rng)
    marks = [hands._counts(marks, np.ones(marks.shape, dtype=bool), kinds) for marks, kinds in ((ranks, 13), (suits, 4))]
    classes = hands.seen_class(*marks, np.full(len(ranks), "high"))
    np.testing.assert_allclose(np.bincount(classes, minlength=9), 10_000, atol=4 * np.sqrt(90_000 / 9 * 8 / 9))
    assert all(len(set(hand)) == 5 for hand in (ranks * 4 + suits).tolist())
    straight_flushes, seen = np.unique(np.sort((ranks * 4 + suits)[classes == 8], axis=1), axis=0, return_counts=True)
    assert len(straight_flushes) == 40
    np.testing.assert_allclose(seen, seen.sum() / 40, atol=4.5 * np.sqrt(seen.sum() / 40))
    quads, seen = np.unique(np.sort((ranks * 4 + suits)[classes == 7], axis=1), axis=0, return_counts=True)
    assert len(quads) == 624
    assert ((seen - seen.mean()) ** 2 / seen.mean()).sum() < 624 + 4 * np.sqrt(2 * 624)


def test_contexts_are_the_same_each_time_keep_to_the_deck_and_show_every_class(package):
    again = hands.build({}, ROOT)
    for split, n in hands.SIZES.items():
        table = package.contexts(split)
        assert len(table) == n
        np.testing.assert_array_equal(table.words, again.contexts(split).words)
        assert not any(constraint.check(table).any() for constraint in package.constraints())
        assert np.bincount(package.targets(split), minlength=9).min() > 0.03 * n
        assert not table.incidence.any(axis=1).all()


def test_the_dealing_says_nothing_and_the_ranking_only_of_straights_and_flushes(package):
    table = package.contexts("test")
    named = {game: package.classes(edits.swap_group(table, game)) for game in package.group_keys}
    for ranking in GAMES:
        same = [game for game, held in package.groups.items() if held["ranking"] == ranking]
        assert all((named[game] == named[same[0]]).all() for game in same)
    changed = named["five_card_draw"] != named["razz"]
    assert set(named["five_card_draw"][changed]) == {hands.CLASSES.index(name) for name in ("straight", "flush", "straight_flush")}
    assert set(named["razz"][changed]) == {hands.CLASSES.index("high_card")}


def edited(package, n, seed):
    """Contexts of the test split after three random edits each, those alone that the deck allows."""
    rng = np.random.default_rng(seed)
    table = package.contexts("test").take(rng.integers(6000, size=n))
    for _ in range(3):
        changed = [table, edits.swap_group(table, package.group_keys[rng.integers(6)])]
        for number in rng.choice(len(package.vocabulary), size=6, replace=False):
            token = package.vocabulary.tokens[number]
            changed += [edits.add_token(table, token), edits.remove_token(table, token)]
        choice = rng.integers(len(changed), size=n)
        rows = [np.flatnonzero(choice == number) for number in range(len(changed))]
        table = ContextTable.stack([part.take(at) for part, at in zip(changed, rows, strict=True)])
    return table.take(~package.constraint("deck").check(table))


def test_the_hand_built_network_keeps_the_rules_exactly_on_contexts_and_on_edited_ones(package):
    network = module_of("rules").network(package)
    for table in (package.contexts("test"), edited(package, 6000, seed=0), edited(package, 6000, seed=1)):
        assert len(table) > 1500
        bag = torch.from_numpy(package.encode(table))
        expected = np.stack(list(package.concepts(table).values()), axis=1)
        np.testing.assert_array_equal(network.rules(bag).numpy(), expected)
        probabilities = network(bag).softmax(dim=1).detach().numpy()
        np.testing.assert_allclose(probabilities, expected, atol=1e-7)


def test_a_context_without_a_game_is_read_as_high(package):
    table = context_of(package, "Ah 2d 3c 4s 5d", "ace_to_five")
    nameless = ContextTable(table.vocabulary, table.groups, table.incidence, np.array([NO_GROUP]))
    assert hands.CLASSES[package.classes(nameless)[0]] == "straight"


def test_the_package_refuses_options():
    with pytest.raises(SpecError, match="no option 'n'"):
        hands.build({"n": 3}, ROOT)


@pytest.fixture(scope="module")
def truth():
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.syspath_prepend(str(ROOT))  # truth.py imports hands.py, as it does as a script
        return module_of("truth").Truth()


def test_the_printed_truths_are_what_the_rules_say_by_hand(truth):
    assert [(rung, effect) for rung, _, effect in truth.sweep("quads", "rank_7")] == [(1, 0.0), (2, 0.0), (3, 0.0), (4, 1.0)]
    assert set(truth.interaction("pair", "rank_7_2", "rank_K_2")) == {-2.0}
    assert set(truth.interaction("two_pair", "rank_7_2", "rank_K_2")) == {1.0}
    assert set(truth.interaction("full_house", "rank_7_2", "rank_K_3")) == {1.0}
    assert truth.games("flush", "suit_h_5")["razz"] == 0.0


@pytest.fixture(scope="module")
def rules():
    return read_project(ROOT / "project.yaml").load_subject("rules")


def ask(rules, tmp_path, kind, **variables):
    spec = Spec.model_validate({"type": kind, "subject": "rules", "variables": variables})
    return find(kind).run(Context(spec, typed_variables(spec), tmp_path, lambda: rules))


@pytest.mark.parametrize("mode", ["interventional", "observational"])
@pytest.mark.parametrize(("concept", "family"), [("pair", "rank_7"), ("trips", "rank_A"), ("straight", "rank_5"), ("flush", "suit_h")])
def test_a_sweep_over_every_context_finds_what_the_rules_say_of_each_rung(rules, truth, tmp_path, concept, family, mode):
    found = ask(rules, tmp_path, "family_1d_sweep", feature=concept, family=family, mode=mode, n_contexts=6000, controls=0)
    measured = [(row["rung"], row["n"], row["mean_delta"]) for row in found.tables["rung_deltas"].rows]
    expected = truth.sweep(concept, family) if mode == "interventional" else truth.seen(concept, family)
    assert measured == [(rung, n, pytest.approx(effect, abs=1e-12)) for rung, n, effect in expected]


@pytest.mark.parametrize(("concept", "expected"), [("pair", -2.0), ("two_pair", 1.0), ("flush", 0.0)])
def test_a_pair_and_a_pair_interact_as_the_rules_say_in_every_context(rules, tmp_path, concept, expected):
    tokens = ["rank_7_2", "rank_K_2"]
    found = ask(rules, tmp_path, "pairwise_interactions", feature=concept, candidate_tokens=tokens, n_contexts=2000, controls=0)
    (row,) = found.tables["pair_interactions"].rows
    assert (row["interaction"], row["std_error"]) == (expected, 0.0)
    assert row["n"] > 100


def test_the_smallest_core_of_a_flush_is_one_suit_and_of_a_pair_one_rank(rules, tmp_path):
    expected = {"flush": [f"suit_{suit}_5" for suit in hands.SUITS], "pair": [f"rank_{rank}_2" for rank in hands.RANKS]}
    for concept, cores in expected.items():
        found = ask(rules, tmp_path, "minimal_cores", feature=concept, max_examples=300)
        assert {row["minimal_tokens"] for row in found.tables["minimal_cores"].rows} == set(cores)
