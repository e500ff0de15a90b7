"""The splatoon project: its builds, their exact posterior, and the hand-built network whose truth is a closed form."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mlinterp.io.pyfile import load_function
from mlinterp.project import find_project, load_spec
from mlinterp.subjects.token_sets import edits
from mlinterp.subjects.token_sets.table import NO_GROUP, ContextTable
from mlinterp.subjects.token_sets.vocabulary import Family, Vocabulary
from mlinterp.validation import check

ROOT = Path(__file__).parents[2] / "projects" / "splatoon"
GeneratingModel = load_function(ROOT, "builds.py:GeneratingModel", "test")
trait, effect, evidence = (load_function(ROOT, f"truth.py:{name}", "test") for name in ("trait", "effect", "evidence"))


@pytest.fixture(scope="module")
def builds() -> Any:
    return load_function(ROOT, "package.py:build", "test")({}, ROOT)


@pytest.fixture(scope="module")
def subject() -> Any:
    return find_project(ROOT).load_subject("planted")


def contexts(builds: Any, *listed: tuple[set[str], str | None]) -> ContextTable:
    return ContextTable.of(builds.vocabulary, builds.group_keys, listed)


def worn(builds: Any, **rungs: int | None) -> set[str]:
    """The tokens of a context whose families stand at these rungs."""
    table = contexts(builds, (set(), None))
    for family, rung in rungs.items():
        table = edits.set_rung(table, family, rung)
    return set(table.context(0).tokens)


# -- a domain small enough to write out every build of it ---------------------------------------------------------------------

SMALL = Vocabulary(
    (Family("a", rungs=(3, 6)), Family("b", rungs=(3, 6)), Family("c", "", "binary"), Family("d", "", "binary"), Family("e", "", "binary"))
)
SMALL_SLOTS = (("c", "d"), ("e",))
SMALL_GROUPS = {"x": {"special": "s"}, "y": {"special": "t"}}
SMALL_PLANTED: Mapping[str, Any] = {
    "budget": 12,
    "main_only": 5,
    "contexts": {"train": 40_000},
    "hidden": [{"share": 0.7, "rate": 0.3}, {"share": 0.3, "rate": 0.8}],
    "amounts": {"little": [0.7, 0.2, 0.1], "much": [0.1, 0.3, 0.6]},
    "main_only_odds": {"c": 0.3, "others": 0.2},
    "archetypes": {
        "p": {
            "log_odds": 0.5,
            "specials": {"s": 1.0},
            "amounts": {"a": "much", "others": "little"},
            "together": {"family": "a", "rung": 6, "ability": "c", "odds": 0.7},
        },
        "q": {"log_odds": 0.0, "weapons": {"y": 0.5}, "amounts": {"b": "much", "others": "little"}, "main_only": {"e": 0.6}},
    },
}


def every_build() -> Iterator[tuple[str, float, set[str]]]:
    """Every build of the small domain with its probability given the archetype, before the budget."""
    amounts, levels = SMALL_PLANTED["amounts"], {0: set(), 1: {3}, 2: {3, 6}}
    for z, (a, b), head, shoes in itertools.product("pq", itertools.product(range(3), repeat=2), ("", "c", "d"), ("", "e")):
        kind = SMALL_PLANTED["archetypes"][z]
        p = amounts[kind["amounts"].get("a", "little")][a] * amounts[kind["amounts"].get("b", "little")][b]
        c, e = (0.7 if z == "p" and a == 2 else 0.3), (0.6 if z == "q" else 0.2)
        p *= {"": 1 - c - 0.2, "c": c, "d": 0.2}[head] * {"": 1 - e, "e": e}[shoes]
        cost = 3 * (a + b) + 5 * (bool(head) + bool(shoes))
        if cost <= SMALL_PLANTED["budget"]:
            tokens = {f"a_{rung}" for rung in levels[a]} | {f"b_{rung}" for rung in levels[b]} | {head, shoes} - {""}
            yield z, p, tokens


def joint_by_hand() -> dict[tuple[frozenset[str], str], np.ndarray]:
    """P(context, z | group) of the small domain, by adding up every build and every way to hide tokens of it."""
    listed = list(every_build())
    fits = {z: sum(p for kind, p, _ in listed if kind == z) for z in "pq"}
    odds = {"x": np.exp([1.5, 0.0]), "y": np.exp([0.5, 0.5])}
    joint: dict[tuple[frozenset[str], str], np.ndarray] = {}
    for z, p, tokens in listed:
        for n in range(len(tokens) + 1):
            for seen in itertools.combinations(sorted(tokens), n):
                left = sum(s["share"] * (1 - s["rate"]) ** n * s["rate"] ** (len(tokens) - n) for s in SMALL_PLANTED["hidden"])
                for group, weight in odds.items():
                    at = joint.setdefault((frozenset(seen), group), np.zeros(2))
                    at["pq".index(z)] += (weight / weight.sum())["pq".index(z)] * p / fits[z] * left
    return joint


def test_the_posterior_is_what_adding_up_every_build_gives() -> None:
    model = GeneratingModel(SMALL_PLANTED, SMALL, SMALL_SLOTS, SMALL_GROUPS)
    joint = joint_by_hand()
    table = ContextTable.of(SMALL, tuple(SMALL_GROUPS), joint)
    expected = np.array([both / both.sum() for both in joint.values()])
    np.testing.assert_allclose(model.posterior(table), expected, rtol=0, atol=1e-12)


def test_contexts_are_drawn_as_often_as_the_model_says() -> None:
    model = GeneratingModel(SMALL_PLANTED, SMALL, SMALL_SLOTS, SMALL_GROUPS)
    table, _ = model.draw("train")
    joint = joint_by_hand()
    n = len(table)
    distinct, counts = np.unique(table.words, axis=0, return_counts=True)
    listed = ContextTable.of(SMALL, tuple(SMALL_GROUPS), joint)
    found = {tuple(words): count for words, count in zip(distinct.tolist(), counts.tolist(), strict=True)}
    expected = n * np.array([both.sum() / 2 for both in joint.values()])
    observed = np.array([found.pop(tuple(words), 0) for words in listed.words.tolist()])
    assert not found, "a context was drawn that the model does not have"
    assert np.abs((observed - expected) / np.sqrt(expected)).max() < 4.5
    chi2 = ((observed - expected) ** 2 / expected)[expected > 5]
    assert abs(chi2.sum() - len(chi2)) < 4 * np.sqrt(2 * len(chi2))


def test_a_context_that_no_build_leaves_has_no_posterior() -> None:
    model = GeneratingModel(SMALL_PLANTED, SMALL, SMALL_SLOTS, SMALL_GROUPS)
    table = ContextTable.of(SMALL, ("x", "y"), [({"c", "d"}, "x"), ({"a_6", "b_6", "c"}, "x"), ({"a_6"}, None)])
    found = model.posterior(table)
    assert np.isnan(found[:2]).all()
    assert found[2].sum() == pytest.approx(1)


# -- the domain ----------------------------------------------------------------------------------------------------------------


def test_the_domain_has_26_families_and_40_weapons_whose_kits_can_be_told_apart(builds: Any) -> None:
    families = builds.vocabulary.families
    assert (len(families), sum(family.is_binary for family in families), len(builds.vocabulary)) == (26, 12, 14 * 9 + 12)
    assert len(builds.groups) == 40
    for name in ("sub", "special", "class"):
        assert set(np.unique(builds.attribute_of(name).astype(str), return_counts=True)[1]) == {5}
    assert len({(kit["class"], kit["special"]) for kit in builds.groups.values()}) == 40


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_builds_fit_their_slots_and_budget_and_what_is_asked_for_is_hidden(builds: Any, split: str) -> None:
    table, targets = builds.contexts(split), builds.targets(split)
    assert len(table) == len(targets) == builds.planted["builds"]["contexts"][split]
    for name in ("one_rung_per_family", "valid_gear_combinations", "max_ap_budget"):
        assert not builds.constraint(name).check(table).any()
    hidden = np.flatnonzero(targets < len(builds.vocabulary))
    assert not table.incidence[hidden, targets[hidden]].any()
    assert 0.02 < (~table.incidence.any(axis=1)).mean() < 0.2, "some contexts are empty"


def test_splits_are_the_same_each_time_and_differ_from_each_other(builds: Any) -> None:
    again = load_function(ROOT, "package.py:build", "test")({}, ROOT)
    np.testing.assert_array_equal(again.contexts("test").words, builds.contexts("test").words)
    np.testing.assert_array_equal(again.targets("test"), builds.targets("test"))
    assert not np.array_equal(builds.contexts("test").words[:4000], builds.contexts("validation").words)


def test_the_probabilities_of_the_archetypes_are_calibrated_in_the_weapons(builds: Any) -> None:
    table = builds.contexts("validation")
    known = builds.concepts(table)
    np.testing.assert_allclose(np.sum(list(known.values()), axis=0), 1.0, atol=1e-12)
    prior = builds.model.weapon_odds[table.group]
    for number, values in enumerate(known.values()):
        spread = values.std() / np.sqrt(len(values))
        assert abs(values.mean() - prior[:, number].mean()) < 4 * spread


def test_constraints_say_what_is_wrong(builds: Any) -> None:
    both = contexts(builds, ({"comeback", "tenacity"}, "Slosher"), ({"comeback", "ninja_squid"}, "Slosher"))
    gear = builds.constraint("valid_gear_combinations")
    assert gear.check(both).tolist() == [True, False]
    assert gear.explain(both.context(0)) == "head holds comeback and tenacity"

    dear = contexts(builds, (worn(builds, run_speed_up=51, comeback=None), "Slosher"), (worn(builds, run_speed_up=57), None))
    budget = builds.constraint("max_ap_budget")
    assert budget.check(dear).tolist() == [True, False]
    assert budget.explain(dear.context(0)) == "61 ability points, above 57"


def test_a_token_that_was_never_seen_with_a_weapons_class_is_out_of_distribution(builds: Any) -> None:
    never = contexts(builds, (worn(builds, sub_resistance_up=57), "Slosher"), (worn(builds, sub_resistance_up=3), "Slosher"))
    seen = builds.constraint("avoid_ood_token_combinations")
    assert seen.check(never).tolist() == [True, False]
    assert seen.explain(never.context(0)).endswith("sub_resistance_up_57 never seen with a slosher")
    assert not seen.check(builds.contexts("train")).any()


# -- the hand-built network and its truth --------------------------------------------------------------------------------------


def test_a_trait_is_what_the_plan_says(builds: Any) -> None:
    spam = worn(builds, special_charge_up=12, comeback=None)
    table = contexts(builds, (spam, None), (spam, "Slosher"), ({"special_charge_up_12"}, None), ({"comeback"}, "Slosher"), (set(), None))
    slosher = 2.0 + 0.5  # of its own, and for Tenta Missiles
    assert evidence(builds, table, "special_spam").tolist() == [1.75, 1.75 + slosher, 0.25, slosher - 0.75, -0.75]
    assert trait(builds, table, "special_spam").tolist() == [1.75, 1.75 + slosher, 0.25, slosher - 0.75, 0.0]


def test_the_network_computes_the_planted_traits_exactly(builds: Any, subject: Any) -> None:
    observed = builds.contexts("test")
    rng = np.random.default_rng(0)
    random = ContextTable(
        builds.vocabulary, builds.group_keys, rng.random((2000, len(builds.vocabulary))) < 0.2, rng.integers(NO_GROUP, 40, 2000)
    )
    for table in (observed, random):
        found = {site: subject.activations(table, site) for site in ("evidence", "traits")}
        for number, name in enumerate(builds.planted["traits"]):
            np.testing.assert_array_equal(found["evidence"][:, number], evidence(builds, table, name))
            np.testing.assert_array_equal(found["traits"][:, number], trait(builds, table, name))


def test_an_ability_that_goes_with_an_archetype_has_no_effect_unless_it_was_planted(builds: Any) -> None:
    table = builds.contexts("test")
    acts, with_it = trait(builds, table, "special_spam"), table.rungs("special_power_up") >= 6
    gap = acts[with_it].mean() - acts[~with_it].mean()
    assert gap > 0.2
    assert not effect(builds, "special_spam", [(1, edits.set_rung(table, "special_power_up", 12)), (-1, table)]).any()


def test_comeback_acts_only_where_special_charge_up_has_reached_its_rung(builds: Any) -> None:
    for rung, expected in ((3, 0.0), (6, 0.0), (12, 1.5), (29, 1.5)):
        at = edits.set_rung(contexts(builds, (set(), "Slosher")), "special_charge_up", rung)
        assert effect(builds, "special_spam", [(1, edits.add_token(at, "comeback")), (-1, at)]).tolist() == [expected]


def test_the_ways_out_of_the_traits_are_those_of_the_plan(builds: Any, subject: Any) -> None:
    names, weights = subject.output_weights("traits")
    by_name = dict(zip(names, weights, strict=True))
    assert by_name["special_charge_up_29"].tolist() == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert by_name["ninja_squid"].tolist() == [0.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    assert not by_name["haunt"].any()
    assert torch.equal(torch.from_numpy(weights), subject.model.readout.weight)


@pytest.mark.parametrize("path", sorted(ROOT.glob("study*.yaml")) + sorted(ROOT.glob("specs/*")), ids=lambda path: path.name)
def test_the_specs_are_valid(path: Path) -> None:

    check(load_spec(path), find_project(path))
