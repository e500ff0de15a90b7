"""The spec: what it accepts, how steps inherit, what a sweep expands to, and what its digest sees."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mlinterp.errors import SpecError
from mlinterp.refusals import from_validation
from mlinterp.spec import MAX_CELLS, Spec, flatten, slug


def spec(**fields: Any) -> Spec:
    return Spec.model_validate({"type": "trace", **fields})


def refusal(**fields: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        spec(**fields)
    return str(from_validation(caught.value, model=Spec))


SEED_SPEC = {
    "id": "20250607_142531",
    "type": "family_1d_sweep",
    "feature_id": 18712,
    "model_type": "ultra",
    "dataset_slice": {"percentile_min": 10.0, "percentile_max": 90.0, "sample_size": 500, "random_seed": 42},
    "variables": {"family": "special_charge_up", "rungs": [3, 12, 29, 41, 57], "include_absent": True},
    "constraints": ["one_rung_per_family"],
    "outputs": {"aggregates": True, "tables": True, "diagnostics": True, "figures": False},
    "description": "…",
    "parent_hypothesis": "h001",
    "rationale": "…",
    "created_at": "2025-06-07T14:25:31",
}


def test_older_names_of_fields_are_accepted() -> None:
    loaded = Spec.model_validate(SEED_SPEC)
    assert (loaded.subject, loaded.hypothesis, loaded.feature_id) == ("ultra", "h001", 18712)
    renamed = {{"model_type": "subject", "parent_hypothesis": "hypothesis"}.get(key, key): value for key, value in SEED_SPEC.items()}
    assert Spec.model_validate(renamed) == loaded


def test_a_spec_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        spec().seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"sed": 1}, "sed: unknown key 'sed'; allowed: "),
        ({"seed": True}, "seed: true is not an integer; must be >= 0"),
        ({"seed": "0"}, "seed: '0' is not an integer; write it without quotes"),
        ({"seed": -1}, "seed: -1 is out of bounds"),
        ({"feature_id": 1.0}, "feature_id: 1.0 is not an integer"),
        ({"subject": "a b"}, "subject: 'a b' is not allowed; a name is 1 to 64 letters"),
        ({"subject": "a", "model_type": "a"}, "model_type: 'model_type' is another name of a key that is given too"),
        ({"inputs": {"sae": "newest"}}, "inputs.sae: 'newest' is not allowed; an input is @STEP, latest, run:ID"),
        ({"inputs": {"sae": "models:/../x@y"}}, "inputs.sae: 'models:/../x@y' is not allowed"),
        ({"inputs": {"sae": "run:abc"}}, "inputs.sae: 'run:abc' is not allowed"),
        ({"dataset_slice": {"percentile_min": 90, "percentile_max": 10}}, "dataset_slice: percentile_max 10 is below percentile_min 90"),
        ({"dataset_slice": {"percentile_min": float("nan")}}, "dataset_slice.percentile_min: "),
        ({"expect": [{"metric": "a", "op": "=", "value": 1}]}, "expect.0.op: unknown value '='; allowed: >, >=, <, <=, =="),
        ({"matrix": {"k": []}}, "matrix.k is empty"),
        ({"matrix": {"k": 3}}, "matrix.k: 3 is not a list"),
        ({"matrix": {f"k{i}": [1] for i in range(9)}}, "matrix: a block of 9 keys is too long; at most 8 entries"),
        ({"description": "x" * 8001}, "description: 'xxx"),
        ({"steps": [{"name": "a", "type": "b"}]}, "a study has steps and nothing else has"),
        ({"type": "study"}, "a study has steps and nothing else has"),
        ({"type": "study", "steps": [{"name": "a", "type": "b"}], "matrix": {"seed": [1]}}, "a study's variables and matrix"),
        ({"type": "study", "steps": [{"name": "a", "type": "b"}] * 2}, "two steps are named 'a'"),
        ({"type": "study", "steps": [{"name": "a", "type": "b"}] * 65}, "steps: a list of 65 is too long; at most 64"),
        (
            {"type": "study", "steps": [{"name": "a", "type": "b", "inputs": {"sae": "@c"}}, {"name": "c", "type": "d"}]},
            "step 'a' takes sae from '@c', which is no earlier step (none)",
        ),
    ],
)
def test_what_is_wrong_is_refused_in_one_line(fields: dict[str, Any], line: str) -> None:
    assert refusal(**fields).startswith(line)


def test_step_inputs_exist_only_inside_a_study() -> None:
    with pytest.raises(SpecError, match="names a step"):
        spec(inputs={"sae": "@fit"}).require_standalone()


def test_the_digest_is_blind_to_id_and_date_and_sees_everything_else() -> None:
    base = spec(variables={"k": 4})
    assert spec(variables={"k": 4}, id="x", created_at="today").sha256() == base.sha256()
    assert spec(variables={"k": 4}, seed=0, matrix={}).sha256() == base.sha256()
    others = [
        spec(variables={"k": 5}),
        spec(variables={"k": 4}, seed=1),
        spec(variables={"k": 4}, description="d"),
        spec(variables={"k": True}),
    ]
    assert len({base.sha256(), *(other.sha256() for other in others)}) == 5


def test_the_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert spec(variables={"a": 1, "b": {"c": 1, "d": 2}}).sha256() == spec(variables={"b": {"d": 2, "c": 1}, "a": 1}).sha256()


def test_a_step_takes_subject_seed_and_hypothesis_from_its_study() -> None:
    study = spec(
        type="study",
        subject="a",
        seed=7,
        hypothesis="h001",
        steps=[{"name": "x", "type": "t"}, {"name": "y", "type": "t", "model_type": "b", "seed": 0, "feature_id": 3}],
    )
    first, second = (study.step_spec(step) for step in study.steps)
    assert (first.subject, first.seed, first.hypothesis, first.type) == ("a", 7, "h001", "t")
    assert (second.subject, second.seed, second.hypothesis, second.feature_id) == ("b", 0, "h001", 3)
    assert not first.is_study


def test_a_step_keeps_what_is_null_on_purpose() -> None:
    step = {"name": "x", "type": "t", "dataset_slice": {"random_seed": None}, "variables": {"k": None, "inner": {"j": None}}}
    study = spec(type="study", steps=[step])
    own = study.step_spec(study.steps[0])
    assert own.dataset_slice.random_seed is None
    assert own.variables == {"k": None, "inner": {"j": None}}


def test_a_step_may_be_a_sweep() -> None:
    study = spec(type="study", seed=5, steps=[{"name": "x", "type": "t", "matrix": {"k": [1, 2]}}])
    own = study.step_spec(study.steps[0])
    assert own.is_sweep
    assert [(cell, child.variables, child.seed) for cell, child in own.cells()] == [({"k": 1}, {"k": 1}, 5), ({"k": 2}, {"k": 2}, 5)]


def test_cells_are_the_product_of_the_axes_in_order() -> None:
    sweep = spec(subject="a", inputs={"sae": "latest"}, variables={"k": 0, "deep": {"j": 0, "kept": 1}})
    sweep = sweep.model_copy(update={"matrix": {"seed": [1, 2], "subject": ["a", "b"], "variables.deep.j": [3, 4], "new.block": [True]}})
    cells = list(sweep.cells())
    assert len(cells) == 8
    assert [(one.seed, one.subject, one.variables["deep"]["j"]) for _, one in cells] == [
        (seed, subject, j) for seed in (1, 2) for subject in ("a", "b") for j in (3, 4)
    ]
    assert all(one.variables["deep"]["kept"] == 1 and one.variables["new"] == {"block": True} for _, one in cells)
    assert all(not one.is_sweep and one.inputs == {"sae": "latest"} for _, one in cells)
    assert len({one.sha256() for _, one in cells}) == 8


def test_a_cell_may_choose_an_input() -> None:
    sweep = spec(inputs={"sae": "latest"}, matrix={"inputs.sae": ["models:/a@candidate", "models:/a/2"]})
    assert [one.inputs["sae"] for _, one in sweep.cells()] == ["models:/a@candidate", "models:/a/2"]


def test_cells_do_not_share_or_change_the_values_of_the_matrix() -> None:
    sweep = spec(matrix={"a": [{"x": 1}], "a.y": [2, 3]})
    before = sweep.sha256()
    first, second = (one for _, one in sweep.cells())
    assert (first.variables, second.variables) == ({"a": {"x": 1, "y": 2}}, {"a": {"x": 1, "y": 3}})
    assert sweep.matrix == {"a": [{"x": 1}], "a.y": [2, 3]}
    assert sweep.sha256() == before


def test_a_cell_keeps_what_is_null_on_purpose() -> None:
    sweep = spec(dataset_slice={"random_seed": None}, matrix={"k": [None, 1]})
    assert [(one.dataset_slice.random_seed, one.variables) for _, one in sweep.cells()] == [(None, {"k": None}), (None, {"k": 1})]


def test_a_matrix_key_that_runs_through_a_value_is_refused() -> None:
    with pytest.raises(SpecError, match=r"matrix\.k\.j: 'k' is no block"):
        list(spec(variables={"k": 3}, matrix={"k.j": [1]}).cells())


def test_a_cell_that_is_no_spec_is_refused() -> None:
    with pytest.raises(ValidationError):
        list(spec(matrix={"seed": ["one"]}).cells())


def test_the_number_of_cells_is_bounded() -> None:
    assert len(list(spec(matrix={"a": list(range(MAX_CELLS))}).cells())) == MAX_CELLS
    assert refusal(matrix={key: list(range(10)) for key in "abcd"}) == f"the matrix has 10000 cells; at most {MAX_CELLS}"


@given(st.dictionaries(st.sampled_from("abcd"), st.lists(st.integers(), min_size=1, max_size=3), max_size=4))
def test_every_cell_is_distinct_where_the_values_are(matrix: dict[str, list[int]]) -> None:
    matrix = {key: list(dict.fromkeys(values)) for key, values in matrix.items()}
    cells = list(spec(matrix=matrix).cells())
    expected = 1
    for values in matrix.values():
        expected *= len(values)
    assert len({one.sha256() for _, one in cells}) == len(cells) == expected
    assert all(one.variables == cell for cell, one in cells)


def test_subject_names_are_every_subject_there_is() -> None:
    assert spec(subject="a", matrix={"subject": ["b", "c"]}).subject_names() == {"a", "b", "c"}
    assert spec(type="study", subject="a", steps=[{"name": "x", "type": "t", "subject": "b"}]).subject_names() == {"a", "b"}


def test_flatten_and_slug_give_names_for_params_and_files() -> None:
    assert flatten({"a": {"b": {"c": 1}, "d": []}, "e": {}}) == {"a.b.c": 1, "a.d": [], "e": {}}
    assert slug("TopK SAE · z_L / 4") == "topk-sae-z_l-4"
    assert slug("···") == "x"
    assert len(slug("a" * 100)) == 64
