"""Tables of contexts: sets of tokens as rows of one matrix, and nothing lost on the way."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from token_sets import Fighters

from mlinterp.errors import SpecError
from mlinterp.subjects.token_sets.table import NO_GROUP, ContextTable, TokenContext

PACKAGE = Fighters()
VOCABULARY = PACKAGE.vocabulary
CONTEXTS = st.lists(
    st.tuples(st.frozensets(st.sampled_from(VOCABULARY.tokens)), st.sampled_from([None, *PACKAGE.group_keys])), min_size=1, max_size=12
)


def table_of(*contexts) -> ContextTable:
    return ContextTable.of(VOCABULARY, PACKAGE.group_keys, contexts)


@given(CONTEXTS)
@settings(max_examples=60, deadline=None)
def test_a_context_comes_back_as_it_was_put_in(contexts):
    table = table_of(*contexts)
    assert [table.context(row) for row in range(len(table))] == [TokenContext(*context) for context in contexts]


@given(CONTEXTS)
@settings(max_examples=60, deadline=None)
def test_two_contexts_have_equal_words_exactly_if_they_are_equal(contexts):
    words = table_of(*contexts).words
    for i, one in enumerate(contexts):
        for j, other in enumerate(contexts):
            assert (one == other) == bool((words[i] == words[j]).all())


def test_a_group_that_there_is_not_is_refused_with_the_nearest():
    with pytest.raises(SpecError, match="unknown group 'bwo'; allowed: bow, sling, axe; did you mean 'bow'"):
        table_of((("shield",), "bwo"))


def test_special_tokens_are_never_part_of_a_context():
    assert table_of(({"<null>", "shield"}, "axe"), ({"<pad>"}, None)).context(0) == TokenContext(frozenset({"shield"}), "axe")


def test_an_unknown_token_is_refused_with_the_nearest():
    with pytest.raises(SpecError, match=r"unknown token 'powr_6'; .*did you mean 'power_6'\?"):
        table_of(({"powr_6"}, None))


def test_a_familys_level_is_its_highest_token_whichever_lower_ones_are_missing():
    table = table_of(({"power_3", "power_12", "shield"}, None), ({"power_6", "speed_5"}, None), ((), None))
    assert table.levels.tolist() == [[3, 0, 1], [2, 3, 0], [0, 0, 0]]
    assert [table.rungs(name).tolist() for name in ("power", "speed", "shield")] == [[12, 6, 0], [0, 5, 0], [1, 0, 0]]
    assert table.take(slice(0, 0)).levels.shape == (0, 3)


def test_a_context_is_shown_by_families_at_their_rungs():
    table = table_of(({"power_3", "power_6", "shield"}, "bow"), ((), None), (["speed_2"], None))
    assert [table.shown(row) for row in range(3)] == ["power_6 + shield @ bow", "(empty)", "speed_2"]


def test_tables_are_taken_apart_and_stacked_again():
    table = PACKAGE.contexts("test")
    parts = [table.take(slice(0, 50)), table.take(np.arange(50, 100)), table.take(np.arange(len(table)) >= 100)]
    again = ContextTable.stack(parts)
    np.testing.assert_array_equal(again.words, table.words)
    assert table.group[0] == NO_GROUP
    assert not table.incidence[0].any()


def test_taken_contexts_have_the_same_levels_whether_or_not_they_were_known_before():
    table, rows = PACKAGE.contexts("test"), np.array([7, 7, 0, 30])
    fresh = table.take(rows).levels
    assert table.levels[rows].tolist() == fresh.tolist() == table.take(rows).levels.tolist()
