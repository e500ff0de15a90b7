"""Data packages: what a model reads of a context, who belongs to which group, and what a domain allows."""

from __future__ import annotations

import numpy as np
import pytest
from token_sets import Fighters

from mlinterp.errors import SpecError
from mlinterp.subjects.token_sets.constraints import no_group_gating_if_relu_floor, of_each, one_rung_per_family
from mlinterp.subjects.token_sets.package import DataPackage
from mlinterp.subjects.token_sets.table import ContextTable
from mlinterp.subjects.token_sets.vocabulary import Family, Vocabulary

PACKAGE = Fighters()


def table_of(*contexts) -> ContextTable:
    return ContextTable.of(PACKAGE.vocabulary, PACKAGE.group_keys, contexts)


class Bare(DataPackage):
    """No more than a package must have."""

    name = "bare"
    vocabulary = Vocabulary((Family("a", kind="binary"),))

    def contexts(self, split):
        return ContextTable.of(self.vocabulary, (), [((), None), ({"a"}, None)])


def test_a_context_is_encoded_as_its_tokens_then_special_tokens_then_its_group():
    encoded = PACKAGE.encode(table_of(({"power_3", "speed_5"}, "sling"), ((), "bow"), ((), None), ({"shield"}, None)))
    assert encoded.dtype == np.float32
    assert encoded.tolist() == [
        [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0],
    ]


def test_a_package_without_an_empty_token_or_groups_reads_nothing_of_an_empty_context():
    assert Bare().encode(Bare().contexts("test")).tolist() == [[0], [1]]


def test_what_a_package_does_not_say_has_a_stated_default():
    bare = Bare()
    assert bare.outputs == ("a",)
    assert [constraint.id for constraint in bare.constraints()] == ["one_rung_per_family"]
    assert (bare.concepts(bare.contexts("test")), bare.attributes, bare.group_keys) == ({}, (), ())
    with pytest.raises(SpecError, match=r"^subject: data package 'bare' has no targets to train on$"):
        bare.targets("train")


def test_groups_are_found_by_number_and_by_name():
    assert [PACKAGE.group_number(group, "group") for group in (1, "sling")] == [1, 1]
    with pytest.raises(SpecError, match=r"^weapon_filter: there is no weapon number 3; 0 to 2, or its name$"):
        PACKAGE.group_number(3, "weapon_filter")
    with pytest.raises(SpecError, match=r"^group: unknown weapon 'slnig'; .*did you mean 'sling'\?$"):
        PACKAGE.group_number("slnig", "group")


def test_attributes_of_groups_are_found_by_name():
    assert PACKAGE.attributes == ("class", "size")
    assert PACKAGE.attribute_of("class").tolist() == ["ranged", "ranged", "melee"]
    assert PACKAGE.require_attribute("size", "attribute") == "size"
    with pytest.raises(SpecError, match=r"^attribute: unknown attribute of a weapon 'sise'; .*did you mean 'size'\?$"):
        PACKAGE.require_attribute("sise", "attribute")


def test_a_group_without_an_attribute_has_none():
    package = Fighters()
    package.groups = {"bow": {"class": "ranged"}, "fist": {}}
    assert package.attribute_of("class").tolist() == ["ranged", None]


def test_a_one_hot_family_at_two_rungs_breaks_the_rule_and_a_thermometer_never_does():
    rule = one_rung_per_family()
    table = table_of(({"speed_1", "speed_5"}, None), ({"power_3", "power_12", "speed_1"}, None), ((), None))
    assert rule.check(table).tolist() == [True, False, False]
    assert rule.check(table.take(slice(0, 0))).shape == (0,)
    assert "speed_1, speed_5" in rule.explain(table.context(0))
    assert not rule.check(PACKAGE.contexts("train")).any()


def test_a_constraint_that_looks_at_one_context_checks_and_explains_each():
    rule = of_each("no_shield", "No shield.", "hard", lambda context: "it has a shield" if "shield" in context.tokens else None)
    table = table_of(({"shield"}, None), ((), "axe"))
    assert rule.check(table).tolist() == [True, False]
    assert [rule.explain(table.context(row)) for row in range(2)] == ["it has a shield", ""]


def test_a_constraint_on_experiments_is_broken_by_no_context():
    rule = no_group_gating_if_relu_floor()
    assert not rule.check(PACKAGE.contexts("train")).any()
    assert rule.enforcement == "soft"


def test_constraints_are_found_by_their_id():
    assert PACKAGE.constraint("no_fast_axe").check(table_of(({"speed_5"}, "axe"), ({"speed_5"}, "bow"))).tolist() == [True, False]
    with pytest.raises(SpecError, match=r"^constraints: unknown constraint 'one_rung'; .*did you mean 'one_rung_per_family'\?$"):
        PACKAGE.constraint("one_rung")
