"""The three commands on a plain run folder, on a small recurrent model at hand."""

import json
import shutil

import numpy as np
import pytest
import torch

from mlinterp.io.schemas import schema
from mlinterp.subjects.fit import save_subject
from mlinterp.subjects.trm import build
from mlinterp.subjects.trm_config import TRMConfig
from mlinterp.tracing.dataset import TraceDataset
from mlinterp.tracking.store import open_store
from mlinterp.trminterp import _range, main

MODEL = {
    "kind": "trm",
    "task": {"name": "sudoku4", "n_train": 60, "n_validation": 20, "n_test": 30},
    "model": {"d_model": 16, "H_cycles": 1, "L_cycles": 2, "n_sup": 2},
}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Run all three commands once and return the folder."""
    root = tmp_path_factory.mktemp("trminterp")
    save_subject(build("any", TRMConfig.model_validate(MODEL), root), root / "model")
    out = root / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID"):
            patch.delenv(name, raising=False)
        main(["trace", "--run-dir", str(out), "--model", "model", "--n-examples", "16", "--seed", "3", "--quiet"])
        main(["sae", "fit", "--run-dir", str(out), "--site", "z_H", "--d-sae", "24", "--k", "3", "--epochs", "1", "--seed", "3", "--quiet"])
        places = ["--sup-steps", "-1", "--cycles", "-1"]
        common = ["intervene", "--run-dir", str(out), "--features", "top:2", *places, "--n-examples", "8", "--controls", "2", "--quiet"]
        main([*common, "--policy", "ablate_features", "--out-json", str(root / "copy.json")])
    return out


def test_everything_lands_under_its_fixed_name(study):
    for name in ("trace.jsonl", "states.npy", "sae.pt", "sae_metrics.json", "report.json"):
        assert (study / name).is_file(), name
    assert len(list((study / "interventions").glob("*.json"))) == 2
    assert (study.parent / "copy.json").read_bytes() == (study / "report.json").read_bytes()


def test_the_files_follow_their_schemas(study):
    jsonschema = pytest.importorskip("jsonschema")
    for name, file in {"report": "report.json", "sae_metrics": "sae_metrics.json"}.items():
        jsonschema.validate(json.loads((study / file).read_text()), schema(name))
    for line in (study / "trace.jsonl").read_text().splitlines()[:40]:
        jsonschema.validate(json.loads(line), schema("trace"))


def test_the_trace_reads_back_and_the_sae_opens_as_tensors_only(study):
    trace = TraceDataset.load(study)
    assert len(trace) == 16 * 17 * 2 * 3
    assert np.isfinite(trace.rows(slice(None))).all()
    payload = torch.load(study / "sae.pt", weights_only=True)
    assert payload["format"] == "trminterp.sae.v0"
    assert payload["state_dict"]["W_enc"].shape == (24, 16)


def test_each_command_is_a_run_below_the_folder_s_own(study):
    record = json.loads((study / "run.json").read_text())
    store = open_store(study)
    assert set(record["runs"]) == {"trace", "sae", "intervene"}
    for role, run_id in record["runs"].items():
        run = store.client.get_run(run_id)
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == record["parent"]
        assert run.data.tags["mlinterp.label"] == role
    assert store.client.get_run(record["parent"]).info.status == "FINISHED"


def test_a_trace_of_the_edited_model_says_how_it_was_edited(study, tmp_path, monkeypatch):
    (tmp_path / "edit.json").write_text(
        json.dumps({"policy": "ablate_features", "features": [0, 1], "at": {"sup_steps": [0], "cycles": [0]}})
    )
    out = tmp_path / "out"
    shutil.copytree(study, out)
    monkeypatch.chdir(tmp_path)
    arguments = ["trace", "--run-dir", str(out), "--model", str(study.parent / "model"), "--n-examples", "4", "--sites", "z_H", "--quiet"]
    main([*arguments, "--intervention", str(tmp_path / "edit.json")])
    header = TraceDataset.load(out).header
    assert header["intervention"]["features"] == [0, 1]
    assert TraceDataset.load(study).header["intervention"] is None


def _refused(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    (line,) = capsys.readouterr().err.strip().splitlines()
    return stop.value.code, line


def test_commands_out_of_order_say_which_one_comes_first(tmp_path, capsys):
    expected = f"mlinterp: --run-dir: {tmp_path} holds no subject yet; run `trminterp trace` first"
    assert _refused(capsys, "sae", "fit", "--run-dir", str(tmp_path)) == (2, expected)


def test_an_unknown_built_in_model_is_named_with_the_nearest(tmp_path, capsys):
    code, line = _refused(capsys, "trace", "--run-dir", str(tmp_path / "x"), "--model", "builtin:sudoku5")
    assert code == 2
    assert "unknown built-in model 'sudoku5'" in line
    assert "did you mean 'sudoku" in line


def test_a_folder_of_another_model_is_left_alone(study, capsys):
    code, line = _refused(capsys, "trace", "--run-dir", str(study), "--model", "builtin:sudoku4")
    assert code == 2
    assert "belongs to another model" in line


@pytest.mark.parametrize(("text", "numbers"), [("0-3", [0, 1, 2, 3]), ("-1", [-1]), ("2,5-6,-2", [2, 5, 6, -2]), (None, None)])
def test_ranges(text, numbers):
    assert _range(text) == numbers
