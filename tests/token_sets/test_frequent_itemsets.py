"""`frequent_itemsets`: the worked case, brute force over Python sets, Fisher's test against SciPy's, and stated outcomes."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from mlinterp.errors import ExperimentError
from mlinterp.experiments.token_sets.frequent_itemsets import ItemsetVariables
from mlinterp.experiments.token_sets.frequent_itemsets_measure import effect_table, measure
from mlinterp.reports.plots import draw_all
from mlinterp.result import ExperimentResult
from mlinterp.token_sets import itemsets
from mlinterp.token_sets.itemsets import Bits, enrichment_p, frequent, lift_interval
from tests.support.token_lab import BUILDS, flat, observed_lab

ABC = flat("a", "b", "c")
P5 = list(zip(range(10, 0, -1), ["abc", "ab", "ab", "ac", "bc", "a", "ab", "c", "b", "ac"], strict=True))


def variables(**given: object) -> ItemsetVariables:
    return ItemsetVariables.model_validate({"min_support": 0.5, "max_size": 3, "high_activation_pct": 20.0, "levels": "all", **given})


def brief(result: ExperimentResult) -> dict[str, tuple[object, ...]]:
    return {
        row["tokens"]: (row["support_high"], row["support_baseline"], row["lift"], row["count"]) for row in result.tables["itemsets"].rows
    }


def test_the_worked_case_has_its_four_sets() -> None:
    result = measure(observed_lab(P5, ABC), variables())
    assert brief(result) == {
        "a + b + c": (0.5, 0.0, None, 1),
        "a + b": (1.0, 0.25, 4.0, 2),
        "b + c": (0.5, 0.125, 4.0, 1),
        "a + c": (0.5, 0.25, 2.0, 1),
    }
    assert [row["lift_is_infinite"] for row in result.tables["itemsets"].rows] == [True, False, False, False]
    custom = result.aggregates.custom
    assert (custom["n_itemsets"], custom["max_lift"], custom["n_infinite_lift"]) == (4, 4.0, 1)
    assert custom["avg_lift"] == pytest.approx(10 / 3)
    assert result.diagnostics.n_contexts_tested == 2
    assert result.estimates["aggregates/max_lift"].null_value == 1.0
    assert ExperimentResult.model_validate_json(result.model_dump_json(by_alias=True)) == result


def brute(held: np.ndarray, least: int, max_size: int) -> Counter[tuple[int, ...]]:
    counted: Counter[tuple[int, ...]] = Counter()
    for row in held:
        items = np.flatnonzero(row).tolist()
        for size in range(2, max_size + 1):
            counted.update(itertools.combinations(items, size))
    return Counter({items: n for items, n in counted.items() if n >= least})


@pytest.mark.parametrize(("density", "least"), [(0.1, 1), (0.3, 4), (0.5, 20)])
def test_mining_finds_what_nested_loops_find(density: float, least: int) -> None:
    held = np.random.default_rng(3).random((130, 11)) < density
    mined = {
        tuple(items): n for found in frequent(Bits.of(held), least, 4) for items, n in zip(found.sets.tolist(), found.count, strict=True)
    }
    assert mined == brute(held, least, 4)


def test_counts_elsewhere_and_p_values_are_those_of_loops_and_of_scipy() -> None:
    rng = np.random.default_rng(0)
    contexts = [{name for name in "abcdefg" if rng.random() < 0.5} | {"a"} for _ in range(80)]
    ranks = rng.permutation(80)
    result = measure(observed_lab(zip(ranks + 1.0, contexts, strict=True), flat(*"abcdefg")), variables(min_support=0.2))
    high = [context for rank, context in zip(ranks, contexts, strict=True) if rank >= 64]
    rows = result.tables["itemsets"].rows
    assert len(rows) == result.aggregates.custom["n_itemsets"] > 20
    for row in rows:
        wanted = set(row["tokens"].split(" + "))
        count, everywhere = sum(wanted <= context for context in high), sum(wanted <= context for context in contexts)
        assert (row["count"], row["count_baseline"]) == (count, everywhere - count)
        as_many, frequent_at_all = (
            stats.fisher_exact([[k, 16 - k], [everywhere - k, 64 - everywhere + k]], alternative="greater").pvalue for k in (count, 3)
        )
        assert row["p"] == pytest.approx(as_many / frequent_at_all)
    assert [row["p_adj"] for row in rows] == pytest.approx(stats.false_discovery_control([row["p"] for row in rows]).tolist())


def test_fishers_test_holds_where_counts_are_large() -> None:
    count, others = np.array([0, 40, 400, 5000]), np.array([10, 300, 3000, 100])
    found = enrichment_p(count, 5000, others, 45_000)
    wanted = stats.hypergeom.sf(count - 1, 50_000, count + others, 5000)
    assert found == pytest.approx(wanted, rel=1e-6, abs=1e-300)
    given = enrichment_p(count[1:], 5000, others[1:], 45_000, least=40)
    assert given == pytest.approx(wanted[1:] / stats.hypergeom.sf(39, 50_000, (count + others)[1:], 5000), rel=1e-6, abs=1e-300)
    assert enrichment_p(np.array([5000]), 5000, np.array([0]), 45_000, least=4990) == pytest.approx(0.0)  # no 0 / 0


def test_sets_that_chance_made_frequent_do_not_look_enriched() -> None:
    names, low, above, found = [f"t{at}" for at in range(14)], [], [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        contexts = [[name for name in names if rng.random() < 0.25] for _ in range(300)]
        asked = variables(min_support=0.05, high_activation_pct=10.0, top_k=10_000)
        rows = measure(observed_lab(zip(rng.random(300), contexts, strict=True), flat(*names)), asked).tables["itemsets"].rows
        low += [row["p"] < 0.05 for row in rows]
        above += [row["low"] > 1.0 for row in rows if row["low"] is not None]
        found.append(min(row["p_adj"] for row in rows) < 0.05)
    assert len(low) > 2000
    assert np.mean(low) < 0.06
    assert np.mean(above) < 0.04
    assert sum(found) <= 3


def test_an_even_lift_has_an_interval_around_one_and_one_that_the_baseline_lacks_has_none() -> None:
    even = lift_interval(10, 100, 20, 200)
    assert even.low < even.estimate == 1.0 < even.high
    assert even.low * even.high == pytest.approx(1.0)
    assert lift_interval(3, 10, 0, 20).estimate == np.inf
    assert np.isnan(lift_interval(3, 10, 0, 20).low)


RUNGS = [
    (9.0, ["special_charge_up_3", "special_charge_up_6", "comeback"]),
    (8.0, ["special_charge_up_3", "special_charge_up_6", "comeback"]),
    *((value, ["special_charge_up_3"]) for value in (3.0, 2.0, 1.0)),
    *((value, ["comeback"]) for value in (0.5, 0.4, 0.3, 0.2, 0.1)),
]


def test_a_thermometer_counts_as_its_highest_token_unless_all_are_asked_for() -> None:
    assert set(brief(measure(observed_lab(RUNGS, BUILDS), variables(levels="highest")))) == {"special_charge_up_6 + comeback"}
    everything = brief(measure(observed_lab(RUNGS, BUILDS), variables(levels="all")))
    assert "special_charge_up_3 + special_charge_up_6" in everything
    collapsed = brief(measure(observed_lab(RUNGS, BUILDS), variables(collapse_families=True)))
    assert collapsed == {"special_charge_up + comeback": (1.0, 0.0, None, 2)}


@pytest.mark.parametrize("condition", ["comeback", "special_charge_up_6", "special_charge_up"])
def test_a_condition_keeps_the_contexts_with_it_and_leaves_it_out_of_the_sets(condition: str) -> None:
    rows = [*RUNGS, (7.0, ["special_charge_up_6", "ninja_squid", "comeback"]), (0.05, ["special_charge_up_6", "comeback", "ninja_squid"])]
    result = measure(observed_lab(rows, BUILDS), variables(condition_on=condition, high_activation_pct=30.0, min_support=0.01))
    sets = [set(tokens.split(" + ")) for tokens in brief(result)]
    assert sets
    assert all(condition not in tokens for tokens in sets)
    if condition == "special_charge_up":
        assert sets == [{"comeback", "ninja_squid"}]
        assert brief(result)["comeback + ninja_squid"] == (1 / 3, 1.0, 1 / 3, 1)  # the baseline's others hold nothing beside it


def test_the_middle_band_leaves_out_the_lowest_contexts() -> None:
    result = measure(observed_lab(P5, ABC), variables(baseline="band"))
    assert brief(result)["a + b"] == (1.0, 0.2, 5.0, 2)  # those of activation 3 to 7: c, ab, a, bc, ac


def test_support_that_rounds_to_no_context_still_asks_for_one() -> None:
    result = measure(observed_lab(P5, ABC), variables(min_support=0.01))
    assert all(row["count"] >= 1 for row in result.tables["itemsets"].rows)


def test_what_cannot_be_answered_is_said() -> None:
    with pytest.raises(ExperimentError, match="same activation"):
        measure(observed_lab([(1.0, ["a"]), (1.0, ["b"])], ABC), variables())
    with pytest.raises(ExperimentError, match="none of the contexts with the highest activations holds a token beside c"):
        measure(observed_lab([(2.0, ["a", "b"]), (1.0, ["b"])], ABC), variables(condition_on="c"))
    silent = measure(observed_lab([(1.0, ["a", "b"]), *[(0.0, ["a"])] * 9], ABC), variables())
    assert any("1 of the 2 contexts with the highest activations are silent" in text for text in silent.diagnostics.warnings)


def test_too_many_candidates_are_refused_before_they_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(itemsets, "MOST_CANDIDATES", 100)
    with pytest.raises(ExperimentError, match="more than 100 sets of 3 items could be frequent"):
        frequent(Bits.of(np.ones((4, 30), dtype=bool)), 1, 3)


def test_a_set_too_rare_everywhere_gives_an_empty_table() -> None:
    result = measure(observed_lab([(value, [name]) for value, name in zip(range(10), "abcabcabca", strict=True)], ABC), variables())
    assert result.tables["itemsets"].rows == []
    assert result.aggregates.custom["max_lift"] is None
    assert draw_all(result)["top_itemsets"].startswith(b"\x89PNG")


def test_the_largest_lift_is_judged_as_chosen_from_all() -> None:
    rows = [(float(value), ["a", "b"] if value % 3 == 0 or value > 94 else ["a", "c"]) for value in range(100)]
    result = measure(observed_lab(rows, ABC), variables(high_activation_pct=10.0, min_support=0.05))
    judged = result.estimates["aggregates/max_lift"]
    table = {row["tokens"]: row for row in result.tables["itemsets"].rows}
    assert judged.value == table["a + b"]["lift"]
    assert judged.low < table["a + b"]["low"]


def test_its_effect_table_holds_differences_of_shares_of_the_most_common_sets() -> None:
    lab = observed_lab(P5, ABC)
    table = effect_table(lab, variables(min_support=0.1, max_size=2))
    assert dict(zip(table.labels, table.values, strict=True)) == {"a + b": 1.0 - 0.25, "a + c": 0.5 - 0.25, "b + c": 0.5 - 0.125}
    shuffled = table.shuffled(np.random.default_rng(0))
    assert shuffled.shape == (3,)
    assert np.isfinite(shuffled).all()
    assert effect_table(lab, variables(min_support=0.1, max_size=2, top_k=1)).labels == ("a + b",)
