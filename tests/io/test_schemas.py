from __future__ import annotations

import copy
import json

import pytest
from jsonschema import Draft202012Validator

from mlinterp.errors import SpecError
from mlinterp.io.atomic import write_text
from mlinterp.io.manifest import write_manifest
from mlinterp.io.schemas import SCHEMAS, schema
from mlinterp.result import Aggregates, ExperimentResult, Figure

OUTCOME = {"exact": 0.5, "token_acc": 0.75, "mean_halt_step": 3.0, "q_acc": None, "n": 8}
HEADER = {
    "kind": "header",
    "schema": "trminterp.trace.v0",
    "run_id": "r",
    "seed": 0,
    "model": {"name": "m", "sha256": "0", "config": {}},
    "task": "t",
    "split": "test",
    "sites": ["z_H", "z_L"],
    "D": 8,
    "positions": 4,
    "prefix_positions": 1,
    "n_examples": 2,
    "N_sup": 2,
    "H_cycles": 1,
    "L_cycles": None,
    "states_file": "states.npy",
    "dtype": "float32",
    "intervention": None,
}
EXAMPLE = {"kind": "example", "example_id": "e0", "input": [1, 2], "target": [-100, 2], "mask": [1, 0]}
STEP = {
    "kind": "step",
    "example_id": "e0",
    "sup_step": 0,
    "cycle": 0,
    "latent_step": None,
    "site": "z_H",
    "state_offset": 0,
    "state_count": 5,
    "norm": 1.0,
    "residual": None,
    "pred": [1, 2],
    "token_acc": 0.5,
    "exact": False,
    "q_halt": -1.5,
    "halted": False,
}
END = {"kind": "end", "steps": 1, "states": 5, "sha256": "0" * 64}
SAE_METRICS = {
    "schema": "trminterp.sae_metrics.v0",
    "split_by": "example_id",
    "n_train": 10,
    "n_val": 5,
    "mse": {"train": 0.1, "val": 0.2},
    "fve": {"train": 0.9, "val": 0.8},
    "l0": 4.0,
    "dead_fraction": 0.1,
    "alive": 9,
    "cos_mean": 0.9,
    "recon_substitution": {"exact_baseline": 1.0, "exact_recon": 0.9, "token_baseline": 1.0, "token_recon": 0.95, "kl": 0.01},
    "controls": {"pca_fve_at_k": 0.5, "random_dictionary_fve": 0.1, "random_init_model_fve": None},
    "stability": {"seeds": [0, 1], "mcc_mean": 0.8},
    "features": [{"id": 0, "firing_rate": 0.1, "mean_act": 1.0, "max_act": 2.0, "top_rows": [3]}],
    "seed": 0,
    "seconds": 1.5,
}
REPORT = {
    "schema": "trminterp.report.v0",
    "run_id": "r",
    "seed": 0,
    "inputs": {"trace_sha256": "0" * 64, "sae_sha256": None, "model_sha256": "m"},
    "baseline": OUTCOME,
    "interventions": [
        {
            "id": "i0",
            "policy": "ablate_features",
            "features": [3],
            "sites": ["z_L"],
            "sup_steps": [0],
            "positions": "answer",
            "mode": "delta",
            "renorm": "none",
            "outcome": OUTCOME,
            "delta": {"exact": -0.5},
            "ci95": {"exact": [-0.6, -0.4], "q_acc": None},
            "flips": {"right_to_wrong": 2, "wrong_to_right": 0, "changed_tokens": 7, "per_sup_step": [1, 1]},
            "edit_norm": {"mean_relative": 0.2},
            "active_fraction": 0.5,
            "n_edits": 40,
        }
    ],
    "controls": [{"kind": "random_feature", **OUTCOME}],
    "top_causal_features": [
        {
            "feature": 3,
            "policy": "ablate_features",
            "effect": -0.5,
            "ci95": [-0.6, -0.4],
            "p": 0.01,
            "p_adj": 0.02,
            "specificity": 10.0,
            "control_effect": 0.0,
            "rank": 1,
        }
    ],
    "warnings": [],
}
INTERVENTION = {
    "schema": "trminterp.intervention.v0",
    "id": "i0",
    "examples": [
        {
            "example_id": "e0",
            "baseline_pred": [1],
            "new_pred": [2],
            "changed_positions": [0],
            "first_changed_sup_step": None,
            "q_halt_before": 1.0,
            "q_halt_after": None,
        }
    ],
}
SOUND = {
    "trace": [HEADER, EXAMPLE, STEP, END, {key: value for key, value in EXAMPLE.items() if key != "mask"}],
    "sae_metrics": [SAE_METRICS],
    "report": [REPORT],
    "intervention": [INTERVENTION],
}


def is_valid(name: str, value: object) -> bool:
    return Draft202012Validator(schema(name)).is_valid(value)


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_schema_is_a_valid_schema(name):
    Draft202012Validator.check_schema(schema(name))
    assert schema(name)["$schema"].endswith("2020-12/schema")


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in SOUND.items() for value in values])
def test_a_sound_file_is_accepted_and_one_without_any_of_its_fields_is_not(name, value):
    assert is_valid(name, value)
    optional = {"mask"}
    for field in set(value) - optional:
        assert not is_valid(name, {key: item for key, item in value.items() if key != field}), field


@pytest.mark.parametrize(
    ("name", "path", "wrong"),
    [
        ("trace", (0, "schema"), "trminterp.trace.v1"),
        ("trace", (0, "D"), 0),
        ("trace", (1, "mask"), [True]),
        ("trace", (2, "token_acc"), 1.5),
        ("trace", (2, "sup_step"), -1),
        ("trace", (2, "kind"), "stop"),
        ("trace", (3, "sha256"), "abc"),
        ("sae_metrics", (0, "split_by"), "row"),
        ("sae_metrics", (0, "dead_fraction"), None),
        ("report", (0, "interventions", 0, "policy"), "delete"),
        ("report", (0, "interventions", 0, "ci95", "exact"), [0.1]),
        ("report", (0, "controls", 0, "kind"), "other"),
        ("report", (0, "top_causal_features", 0, "rank"), 0),
        ("intervention", (0, "examples", 0, "new_pred"), None),
    ],
)
def test_a_wrong_value_is_refused(name, path, wrong):
    values = copy.deepcopy(SOUND[name])
    target = values
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = wrong
    assert not is_valid(name, values[path[0]])


def test_the_result_schema_is_that_of_the_model():
    generated = ExperimentResult.model_json_schema(by_alias=True, mode="serialization")
    shipped = schema("result")
    assert {key: value for key, value in shipped.items() if key not in ("$schema", "$id", "title")} == {
        key: value for key, value in generated.items() if key != "title"
    }


def test_a_written_result_fits_its_schema():
    result = ExperimentResult(metrics={"a/b": float("nan"), "a/c": 1.0}, aggregates=Aggregates(custom={"x": [1]}))
    result.add_table("t", [{"x": 1, "y": None}])
    result.figures = [Figure(name="f", table="t", kind="line", x="x", y=["y"])]
    assert is_valid("result", json.loads(result.model_dump_json(by_alias=True))) is False
    result.metrics.pop("a/b")
    assert is_valid("result", json.loads(result.model_dump_json(by_alias=True)))


def test_a_written_manifest_fits_its_schema(tmp_path):
    write_text(tmp_path / "a.txt", "x")
    manifest = write_manifest(tmp_path, ["a.txt"])
    assert is_valid("manifest", manifest)
    assert not is_valid("manifest", {**manifest, "files": {"a.txt": {"sha256": "0" * 64}}})


def test_an_unknown_schema_names_the_nearest():
    with pytest.raises(SpecError, match="did you mean 'trace'"):
        schema("traces")


def test_a_schema_handed_out_can_be_changed_without_harm():
    schema("trace")["oneOf"].clear()
    assert schema("trace")["oneOf"]


@pytest.mark.parametrize("inline", [False, True])
def test_every_line_of_a_trace_that_was_really_captured_fits(tmp_path, inline):
    from tiny import TinySubject

    from mlinterp.progress import Silent
    from mlinterp.tracing.capture import capture
    from mlinterp.tracing.selection import select_addresses

    subject = TinySubject()
    addresses = select_addresses(subject, ("z_a", "z_b"), "latent")
    header = {"run_id": "r", "seed": 0, "task": "sum", "split": "test", "intervention": None}
    settings = {"batch_size": 2, "predictions": True, "on_nonfinite": "error", "shard_bytes": 2**30, "inline": inline}
    capture(subject, subject.examples("test", 3), addresses, tmp_path, Silent(), header=header, **settings)
    check = Draft202012Validator(schema("trace"))
    lines = [json.loads(line) for line in (tmp_path / "trace.jsonl").read_text().splitlines()]
    for row in lines:
        check.validate(row)
    assert [row["kind"] for row in lines][:3] == ["header", "example", "step"]
    assert lines[-1]["kind"] == "end"
