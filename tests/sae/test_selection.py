import numpy as np
import pandas as pd
import pytest

from mlinterp.errors import ExperimentError, SpecError
from mlinterp.sae.contexts import Contexts
from mlinterp.sae.selection import choose_rows, evenly, split_by_example
from mlinterp.subjects.base import Address


@pytest.fixture
def meta():
    """Three examples, two supervision steps; z_L has two latent steps, z_H none; one prefix row and three tokens."""
    rows = [
        {"example_id": f"e{e}", "sup_step": s, "cycle": 0, "latent_step": step, "site": site, "position": p}
        for e in range(3)
        for s in range(2)
        for site, step in (("z_L", 0), ("z_L", 1), ("z_H", -1))
        for p in range(-1, 3)
    ]
    frame = pd.DataFrame(rows)
    frame.insert(0, "row", np.arange(len(frame)))
    frame["is_prefix"] = frame["position"] < 0
    frame["token_in"] = np.where(frame["is_prefix"], -1, 10 * frame["example_id"].str[1:].astype(int) + frame["position"])
    frame["token_true"] = np.where(frame["position"] == 2, 5, -1)
    return frame.astype({"example_id": "category", "site": "category"})


def test_rows_are_chosen_by_site_step_and_position(meta):
    rows = choose_rows(meta, site="z_L", sup_steps=[-1], latent_steps=[1])
    assert rows.addresses == (Address("z_L", 1, 0, 1),)
    picked = meta.iloc[rows.index]
    assert set(picked["site"]) == {"z_L"}
    assert set(picked["sup_step"]) == {1}
    assert set(picked["latent_step"]) == {1}
    assert picked["position"].tolist() == [0, 1, 2] * 3
    assert len(choose_rows(meta, site="z_L", positions="all").index) == 3 * 2 * 2 * 4
    assert set(meta.iloc[choose_rows(meta, site="z_L", positions="answer").index]["position"]) == {2}


def test_addresses_hold_none_where_a_site_has_no_latent_steps(meta):
    assert choose_rows(meta, site="z_H").addresses == (Address("z_H", 0, 0, None), Address("z_H", 1, 0, None))


def test_an_only_site_need_not_be_named_and_several_must(meta):
    assert choose_rows(meta[meta["site"] == "z_H"]).site == "z_H"
    with pytest.raises(SpecError, match=r"several sites.*z_L, z_H"):
        choose_rows(meta)
    with pytest.raises(SpecError, match=r"unknown site of this trace 'zH'; allowed: z_L, z_H; did you mean 'z_H'"):
        choose_rows(meta, site="zH")


def test_steps_that_the_trace_lacks_are_named(meta):
    with pytest.raises(SpecError, match=r"variables.sup_steps: \[2\] not at this site; it has sup_step 0, 1"):
        choose_rows(meta, site="z_L", sup_steps=[0, 2])
    with pytest.raises(SpecError, match="no latent_step at this site"):
        choose_rows(meta, site="z_H", latent_steps=[0])


def test_a_filter_that_leaves_nothing_is_an_error(meta):
    with pytest.raises(ExperimentError, match="no row of the trace is left at z_L"):
        choose_rows(meta.assign(token_true=-1), site="z_L", positions="answer")


def test_the_split_never_cuts_through_an_example(meta):
    chosen = choose_rows(meta, site="z_L").meta
    split = split_by_example(chosen, 0.34, seed=0)
    sides = [set(meta.iloc[rows]["example_id"]) for rows in split]
    assert not sides[0] & sides[1]
    assert [len(side) for side in sides] == [2, 1]
    assert sorted([*split.train, *split.validation]) == chosen["row"].tolist()


def test_the_split_depends_on_the_seed_and_on_nothing_else(meta):
    many = pd.concat(
        [meta.assign(example_id=[f"{name}-{i}" for name in meta["example_id"]], row=meta["row"] + i * len(meta)) for i in range(10)]
    )
    one, same, other = (set(split_by_example(frame, 0.2, seed).validation) for frame, seed in ((many, 0), (many[::-1], 0), (many, 1)))
    assert one == same != other


def test_one_example_cannot_be_split(meta):
    with pytest.raises(ExperimentError, match="one example only"):
        split_by_example(meta[meta["example_id"] == "e1"], 0.2, 0)


def test_evenly_spaced_rows_never_exceed_the_limit():
    for n, limit in ((10, 3), (10, 10), (10, 100), (7, 2)):
        assert 0 < len(evenly(np.arange(n), limit)) <= limit


EXAMPLES = {f"e{e}": {"input": [10 * e, 10 * e + 1, 10 * e + 2]} for e in range(3)}


def test_a_context_marks_the_rows_own_token(meta):
    contexts = Contexts(meta, EXAMPLES, lambda token: f"t{token}")
    row = int(meta.query("example_id == 'e2' and position == 1")["row"].iloc[0])
    assert contexts.text(row) == "t20 «t21» t22"
    assert contexts.text(row - 2) == "«prefix -1» t20 t21 t22"


def test_a_context_shows_real_tokens_that_have_no_row_of_their_own(meta):
    only = meta[meta["position"] == 0].reset_index(drop=True)
    padded = {name: {"input": [*row["input"], 7], "mask": [1, 1, 1, 0]} for name, row in EXAMPLES.items()}
    assert Contexts(only, padded).text(0) == "«0» 1 2"


def test_a_place_that_returns_at_several_steps_is_shown_once(meta):
    contexts = Contexts(meta, EXAMPLES)
    first, second = (meta.query(where)["row"] for where in ("example_id == 'e0' and position == 0", "example_id == 'e1' and position == 2"))
    rows = [*first, -1, *second]
    assert contexts.distinct(rows, 5) == ["«0» 1 2", "10 11 «12»"]
    assert contexts.distinct(rows, 1) == ["«0» 1 2"]
