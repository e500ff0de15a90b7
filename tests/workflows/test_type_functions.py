"""Every experiment type as a Python function of its name, and what such a function returns."""

from __future__ import annotations

import inspect
import json
import pydoc
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import workbench
from workflow_toy import FAST, Toy

import mlinterp
from mlinterp.analysis import AnalysisResult
from mlinterp.errors import MlinterpError, SpecError
from mlinterp.experiments import catalog
from mlinterp.subjects.pairs_declared import PromptPair
from mlinterp.tracking.store import open_store
from mlinterp.type_functions import _ENVELOPE

TYPES = sorted(catalog.experiments())


@pytest.mark.parametrize("name", TYPES)
def test_every_type_is_a_function_with_the_signature_of_its_variables(name: str) -> None:
    function, experiment = getattr(mlinterp, name), catalog.find(name)
    parameters = inspect.signature(function).parameters
    assert next(iter(parameters)) == "subject"
    assert set(parameters) == {*experiment.Variables.model_fields, *_ENVELOPE}
    assert all(field in function.__doc__ for field in experiment.Variables.model_fields)
    assert experiment.summary in pydoc.render_doc(function, renderer=pydoc.plaintext)
    assert name in dir(mlinterp)
    required = {field for field, info in experiment.Variables.model_fields.items() if info.is_required()}
    assert {key for key, each in parameters.items() if each.default is inspect.Parameter.empty} == required


def test_no_type_has_the_name_of_a_module_or_a_variable_of_the_envelope() -> None:
    assert not [name for name in catalog.names() if find_spec(f"mlinterp.{name}") is not None]
    for experiment in catalog.experiments().values():
        assert experiment.type not in mlinterp.__all__
        assert not set(experiment.Variables.model_fields) & set(_ENVELOPE)


def test_types_that_look_for_components_rank_what_they_find() -> None:
    assert {
        "activation_patching",
        "path_patching",
        "circuit_discovery",
        "direct_logit_attribution",
        "active_features",
        "feature_circuit",
    } <= {experiment.type for experiment in catalog.experiments().values() if experiment.ranking}


def test_importing_and_listing_import_nothing_heavy_and_an_unknown_name_is_no_attribute() -> None:
    heavy = ("torch", "mlflow", "lightning", "pandas", "numba", "scipy")
    code = f"""
import sys, mlinterp
assert "pydantic" not in sys.modules
mlinterp.activation_patching, mlinterp.dla
listed = set(dir(mlinterp))
assert "activation_patching" in listed and "workflows" in listed and "run_spec" in listed and "find_spec" not in listed
mlinterp.workflows.behavior_localization
assert not [name for name in {heavy} if name in sys.modules], [name for name in {heavy} if name in sys.modules]
assert not hasattr(mlinterp, "activation_patchin") and not hasattr(mlinterp, "_ipython_display_")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def patch(toy: Toy, **changes: object) -> AnalysisResult:
    given = {"pairs": "pairs.jsonl", "component": "attn_out", "positions": "all", "metric": "logit_diff", "joint": 3, **FAST}
    return mlinterp.activation_patching("gpt", **{"project": toy.root, **given, **changes})


def test_a_function_asks_what_a_spec_asks_and_the_same_question_is_the_same_run(toy: Toy) -> None:
    found = patch(toy)
    assert found.run_id == toy.found.get_step("patch_attn").run_id
    variables = {"pairs": "pairs.jsonl", "component": "attn_out", "positions": "all", "metric": "logit_diff", "joint": 3, **FAST}
    file = workbench.write(toy.root / "alone.yaml", {"type": "activation_patching", "subject": "gpt", "variables": variables})
    assert mlinterp.run_spec(file).run_id == found.run_id


def test_pairs_may_be_models_and_tuples_and_fields_of_the_envelope_reach_the_run(toy: Toy) -> None:
    pairs = tuple(PromptPair(clean=[9, 20 + i, 7], corrupted=[9, 40 + i, 7], answer=20 + i, wrong=40 + i) for i in range(2))
    expect = [{"metric": "top/effect", "op": ">", "value": 0.5}]
    found = patch(toy, pairs=pairs, layers=(1,), positions=[2], seed=3, expect=expect)
    assert found.result.seed == 3
    assert found.run.verdict in {"supports", "refutes", "inconclusive"}
    assert found.tables["patches"]["place"].tolist() == ["L1.p2"]
    assert found.to_dict()["metadata"]["verdict"] == found.run.verdict


def test_a_result_has_its_numbers_tables_figures_and_report(toy: Toy, tmp_path: Path) -> None:
    found = patch(toy)
    held = json.loads(found.to_json())
    assert set(held) == {"result_type", "data", "metadata", "summary"}
    assert held["result_type"] == "activation_patching"
    assert held["data"]["tables"]["patches"]["rows"] == found.result.tables["patches"].rows
    assert held["metadata"]["run_id"] == found.run_id
    assert held["metadata"]["seed"] == 0
    assert found.metrics["top/effect"] == held["data"]["metrics"]["top/effect"]
    assert found.estimates["top/effect"].null is not None
    assert found.aggregates.n_samples == 6
    assert any("6 prompt pairs" in text for text in found.warnings)
    assert found.run_id[:12] in found.summary()
    assert found.link.endswith(f"runs/{found.run_id}?workflowType=machine_learning")
    assert found.to_markdown().startswith("# activation_patching")
    artifacts = Path(open_store(toy.workspace).client.get_run(found.run_id).info.artifact_uri)
    figure = found.plot()
    assert figure.png == figure._repr_png_() == (artifacts / "figures" / f"{figure.name}.png").read_bytes()
    assert figure.save(tmp_path / "figure.png").is_file()
    with pytest.raises(SpecError, match=r"plot: unknown figure 'larget'.*did you mean 'largest'\?"):
        found.plot("larget")


def test_top_components_are_the_rows_with_the_largest_effect_beyond_the_null_by_size(toy: Toy) -> None:
    heads = toy.found.get_step("patch_heads")
    rows = heads.result.tables["patches"].rows
    expected = sorted(rows, key=lambda row: -abs(row["adjusted"]))[:3]
    assert heads.top_components(3) == expected
    assert len(heads.top_components(100)) == len(rows)
    lens = mlinterp.logit_lens("gpt", pairs="pairs.jsonl", project=toy.root)
    with pytest.raises(SpecError, match=r"top_components: logit_lens ranks nothing; types that do: activation_patching, "):
        lens.top_components()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"componnet": "mlp_out"}, r"activation_patching\(\): unknown keyword 'componnet'; .*did you mean 'component'\?"),
        ({"component": "mlp_ot"}, r"unknown .*'mlp_ot'.*did you mean 'mlp_out'\?"),
        ({"direction": "denois"}, r"variables.direction: unknown value 'denois'.*did you mean 'denoise'\?"),
        ({"pairs": None}, r"variables.pairs: is missing"),
        ({"pairs": object()}, r"'object' is no type that a spec holds"),
        ({"inputs": {"sbject": "latest"}}, r"inputs.sbject: unknown input of activation_patching 'sbject'"),
        ({"project": "nowhere"}, r"--project: unknown project 'nowhere'"),
    ],
)
def test_what_is_wrong_is_refused_in_one_line_before_anything_runs(toy: Toy, given: dict, message: str) -> None:
    store = open_store(toy.workspace)
    before = len(store.client.search_runs([store.experiment_id("toy")]))
    with pytest.raises(SpecError, match=message) as refused:
        patch(toy, **given)
    assert "\n" not in str(refused.value)
    assert len(store.client.search_runs([store.experiment_id("toy")])) == before


def test_a_run_that_fails_raises_its_own_error(toy: Toy) -> None:
    with pytest.raises(MlinterpError, match="the prompts have 3 and 2 tokens"):
        patch(toy, pairs="unequal.jsonl")
