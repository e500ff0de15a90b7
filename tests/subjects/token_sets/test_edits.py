"""Edits of contexts: whatever a context holds, an edit touches what it names and leaves its family as the encoding wants it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from token_sets import FAMILIES, Fighters

from mlinterp.errors import SpecError
from mlinterp.subjects.token_sets import edits
from mlinterp.subjects.token_sets.table import NO_GROUP, ContextTable

PACKAGE = Fighters()
VOCABULARY = PACKAGE.vocabulary
EVERY_RUNG = [(family.name, None if family.is_binary else rung) for family in FAMILIES for rung in family.levels]
TABLES = arrays.arrays(bool, st.tuples(st.integers(1, 8), st.just(len(VOCABULARY)))).map(
    lambda incidence: ContextTable(VOCABULARY, PACKAGE.group_keys, incidence, np.arange(len(incidence)) % 4 - 1)
)
"""Any sets at all, also ones that no domain would allow."""

properties = settings(max_examples=40, deadline=None)


def same(one: ContextTable, other: ContextTable) -> bool:
    return np.array_equal(one.words, other.words)


def others(table: ContextTable, family: str) -> np.ndarray:
    return np.delete(table.incidence, VOCABULARY.span(family), axis=1)


@given(TABLES, st.sampled_from(EVERY_RUNG))
@properties
def test_setting_a_rung_gives_it_once_and_for_all_and_touches_no_other_family(table, place):
    family, rung = place
    once = edits.set_rung(table, family, rung)
    assert same(edits.set_rung(once, family, rung), once)
    assert set(once.rungs(family).tolist()) == {rung or 1}
    np.testing.assert_array_equal(others(once, family), others(table, family))
    np.testing.assert_array_equal(once.group, table.group)


@given(TABLES, st.sampled_from(EVERY_RUNG))
@properties
def test_a_rung_is_written_as_the_family_is_encoded(table, place):
    family, rung = place
    held = edits.set_rung(table, family, rung).incidence[:, VOCABULARY.span(family)]
    levels = VOCABULARY.family(family).levels
    expected = [level <= (rung or 1) if family == "power" else level == (rung or 1) for level in levels]
    assert (held == expected).all()


@given(TABLES, st.sampled_from(VOCABULARY.tokens))
@properties
def test_stripping_after_adding_is_stripping(table, token):
    family, _ = VOCABULARY.parse(token)
    assert same(edits.strip_family(edits.add_token(table, token), family), edits.strip_family(table, family))
    assert not edits.strip_family(table, family).rungs(family).any()


@given(TABLES, st.sampled_from(VOCABULARY.tokens))
@properties
def test_an_added_token_is_there_and_its_one_hot_family_never_holds_two(table, token):
    added = edits.add_token(table, token)
    assert added.incidence[:, VOCABULARY.number(token)].all()
    assert (added.incidence[:, VOCABULARY.span("speed")].sum(axis=1) <= 1).all() or not token.startswith("speed")


@given(TABLES, st.sampled_from(VOCABULARY.tokens))
@properties
def test_a_token_that_was_removed_leaves_its_family_at_what_is_below_it(table, token):
    family, _ = VOCABULARY.parse(token)
    number, first = VOCABULARY.number(token), VOCABULARY.span(family).start
    removed = edits.remove_token(table, token)
    assert not removed.incidence[:, number].any()
    np.testing.assert_array_equal(others(removed, family), others(table, family))
    if family == "power":
        below = table.with_incidence(np.where(np.arange(len(VOCABULARY)) < number, table.incidence, False))
        np.testing.assert_array_equal(removed.rungs(family), below.rungs(family))
        assert (removed.levels[:, 0] <= number - first).all()


@given(TABLES, st.sampled_from(PACKAGE.group_keys))
@properties
def test_swapping_the_group_changes_nothing_else(table, group):
    swapped = edits.swap_group(table, group)
    assert {swapped.context(row).group for row in range(len(swapped))} == {group}
    np.testing.assert_array_equal(swapped.incidence, table.incidence)


def test_edits_by_hand():
    table = ContextTable.of(VOCABULARY, PACKAGE.group_keys, [({"power_3", "power_6", "power_12", "speed_1"}, "axe"), ((), None)])
    shown = {
        "remove power_6": edits.remove_token(table, "power_6"),
        "remove power_3": edits.remove_token(table, "power_3"),
        "add speed_5": edits.add_token(table, "speed_5"),
        "set power 6": edits.set_rung(table, "power", 6),
        "add shield": edits.add_token(table, "shield"),
        "bow": edits.swap_group(table, "bow"),
    }
    assert {name: [found.shown(row) for row in range(2)] for name, found in shown.items()} == {
        "remove power_6": ["power_3 + speed_1 @ axe", "(empty)"],
        "remove power_3": ["speed_1 @ axe", "(empty)"],
        "add speed_5": ["power_12 + speed_5 @ axe", "speed_5"],
        "set power 6": ["power_6 + speed_1 @ axe", "power_6"],
        "add shield": ["power_12 + speed_1 + shield @ axe", "shield"],
        "bow": ["power_12 + speed_1 @ bow", "(empty) @ bow"],
    }
    assert table.shown(0) == "power_12 + speed_1 @ axe"
    assert table.group.tolist() == [2, NO_GROUP]


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda table: edits.set_rung(table, "power", 4), "4 is no rung of 'power'; its rungs: 3, 6, 12"),
        (lambda table: edits.set_rung(table, "pwoer", 3), "did you mean 'power'"),
        (lambda table: edits.strip_family(table, "sheild"), "did you mean 'shield'"),
        (lambda table: edits.add_token(table, "speed_3"), "unknown token 'speed_3'"),
        (lambda table: edits.remove_token(table, "powr_6"), "did you mean 'power_6'"),
    ],
)
def test_an_edit_of_what_is_not_there_is_refused(edit, words):
    with pytest.raises(SpecError, match=words):
        edit(PACKAGE.contexts("test"))
