"""Workflows as studies: each step whole, the same runs as the study's file gives, subsets, refusals, and what happens when a step fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from workflow_toy import FAST, Toy

import mlinterp
from mlinterp.cli import main
from mlinterp.errors import SpecError
from mlinterp.project import load_spec
from mlinterp.scaffold import study_text
from mlinterp.tracking.store import open_store
from mlinterp.workflows import WORKFLOWS, build


def test_the_json_of_a_workflow_holds_every_step_whole_and_the_narrative(toy: Toy) -> None:
    found = json.loads(toy.found.to_json())
    assert set(found) == {"result_type", "data", "metadata", "summary"}
    assert [step["name"] for step in found["data"]["steps"]] == ["dla", "patch_mlp", "patch_attn", "patch_heads"]
    for (_, held), step in zip(toy.found.steps, found["data"]["steps"], strict=True):
        assert step["result_type"] == held.result_type
        assert set(step["data"]["tables"]) == set(held.result.tables)
        assert step["data"]["metrics"] == dict(held.metrics)
        assert step["metadata"]["run_id"] == held.run_id
    assert found["data"]["narrative"] == toy.found.narrative
    assert found["metadata"]["run_id"] == toy.found.run_id


def test_a_workflow_is_a_study_of_mlflow_whose_report_tells_the_narrative(toy: Toy) -> None:
    client = open_store(toy.workspace).client
    parent = client.get_run(toy.found.run_id)
    assert parent.data.tags["mlinterp.kind"] == "study"
    assert {client.get_run(step.run_id).data.tags["mlflow.parentRunId"] for _, step in toy.found.steps} == {toy.found.run_id}
    report = (Path(parent.info.artifact_uri) / "report.md").read_text()
    assert "## What the steps say" in report
    assert "patch_heads (interventional): " in report
    assert "## What the steps say" in toy.found.to_markdown()


def test_every_head_of_every_layer_is_patched_and_ranked(toy: Toy) -> None:
    heads = toy.found.get_step("patch_heads")
    assert set(zip(heads.tables["patches"]["layer"], heads.tables["patches"]["head"], strict=True)) == {
        (layer, head) for layer in range(2) for head in range(4)
    }
    ranked = toy.found.top_components(2)
    assert [row["step"] for row in ranked] == [name for name, _ in toy.found.steps for _ in range(2)]
    assert all(narrated in toy.found.narrative for narrated in ("dla (observational)", "patch_attn (interventional)", "random"))


def test_the_same_workflow_again_and_the_file_that_it_writes_are_the_same_run(toy: Toy) -> None:
    again = mlinterp.workflows.behavior_localization("gpt", "pairs.jsonl", variables=FAST, top_k=3, project=toy.root)
    assert (again.run_id, again.study.run.reused) == (toy.found.run_id, True)
    assert again.narrative == toy.found.narrative
    assert [(name, step.result) for name, step in again.steps] == [(name, step.result) for name, step in toy.found.steps]
    study = build("behavior-localization", "gpt", pairs="pairs.jsonl", variables=FAST, top_k=3)
    file = toy.root / "written.yaml"
    file.write_text(study_text(study))
    assert load_spec(file).spec.sha256() == study.sha256()
    assert mlinterp.run_spec(file).run_id == toy.found.run_id


def test_a_subset_runs_alone_in_the_workflows_order_and_takes_steps_that_ran_before(toy: Toy) -> None:
    some = mlinterp.workflows.behavior_localization(
        "gpt", "pairs.jsonl", variables=FAST, top_k=3, steps=["patch_attn", "dla"], project=toy.root
    )
    assert [name for name, _ in some.steps] == ["dla", "patch_attn"]
    assert some.get_step("dla").run_id == toy.found.get_step("dla").run_id
    reused = mlinterp.workflows.behavior_localization(
        "gpt", "pairs.jsonl", variables=FAST, top_k=3, steps=["patch_attn", "dla"], project=toy.root
    )
    assert [step.run_id for _, step in reused.steps] == [step.run_id for _, step in some.steps]
    assert reused.get_step("dla").metrics == some.get_step("dla").metrics


def test_the_stream_after_the_last_block_restores_everything_at_the_last_position_and_nothing_before(toy: Toy) -> None:
    found = mlinterp.workflows.circuit_discovery(
        "gpt", "pairs.jsonl", metric="l2", steps=["activation", "attribution"], variables=FAST, project=toy.root
    )
    rows = found.get_step("activation").result.tables["patches"].rows
    last = [row["effect"] for row in rows if row["layer"] == 1]
    assert last == pytest.approx([0, 0, 0, 1], abs=1e-5)
    estimated = found.get_step("attribution").result
    assert estimated.mode == "observational"
    assert any(abs(row["effect"]) > 1e-3 for row in estimated.tables["patches"].rows)
    modes = {row["mode"] for row in found.study.result.tables["narrative"].rows if row["step"] == "attribution"}
    assert modes == {"observational", "interventional"}


def test_features_that_matter_have_an_effect_under_the_default_metric_and_are_told(toy: Toy, sae: str) -> None:
    found = mlinterp.workflows.feature_investigation("gpt", sae, "pairs.jsonl", variables=FAST, project=toy.root)
    assert [name for name, _ in found.steps] == ["active_features", "ablation"]
    active, ablation = (found.get_step(name) for name in ("active_features", "ablation"))
    fired = {row["latent"] for row in active.result.tables["latents"].rows}
    changed = {row["latent"]: row["effect"] for row in ablation.result.tables["patches"].rows if row["effect"]}
    assert changed
    assert set(changed) <= fired
    assert max(map(abs, changed.values())) > 1e-3
    assert "ablation (interventional)" in found.narrative
    chosen = sorted(fired)[:2]
    two = mlinterp.workflows.feature_investigation("gpt", sae, "pairs.jsonl", feature_ids=chosen, variables=FAST, project=toy.root)
    assert sorted(row["latent"] for row in two.get_step("active_features").result.tables["latents"].rows) == chosen


def test_a_failing_step_fails_the_study_and_keeps_what_came_before(toy: Toy) -> None:
    store = open_store(toy.workspace)
    before = {run.info.run_id for run in store.client.search_runs([store.experiment_id("toy")])}
    with pytest.raises(SpecError, match=r"3 and 2 tokens"):
        mlinterp.workflows.behavior_localization("gpt", "unequal.jsonl", steps=["dla", "patch_mlp", "patch_attn"], project=toy.root)
    runs = [run for run in store.client.search_runs([store.experiment_id("toy")]) if run.info.run_id not in before]
    status = {run.data.tags.get("mlinterp.label", "study"): run.info.status for run in runs}
    assert status == {"study": "FAILED", "dla": "FINISHED", "patch_mlp": "FAILED"}


def test_the_figure_of_a_workflow_shows_every_step_and_one_step_its_own(toy: Toy, tmp_path: Path) -> None:
    whole, one = toy.found.plot(), toy.found.plot("patch_attn")
    assert one.png == toy.found.get_step("patch_attn").plot().png
    assert len(whole.png) > len(one.png)
    assert whole.save(tmp_path / "whole.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    with pytest.raises(SpecError, match=r"did you mean 'patch_attn'\?"):
        toy.found.plot("patch_atn")


@pytest.mark.parametrize(
    ("workflow", "given", "message"),
    [
        ("behavior_localization", {"steps": ["patch_head"]}, r"steps: unknown step .*'patch_head'.*did you mean 'patch_heads'\?"),
        ("behavior_localization", {"steps": []}, r"steps: must be a list of at least one step; allowed: dla"),
        ("behavior_localization", {"steps": "dla"}, r"steps: must be a list"),
        ("behavior_localization", {"steps": ["dla", "dla"]}, r"steps: names 'dla' twice"),
        ("behavior_localization", {"top_k": 1}, r"top_k: is 1; a whole number, 2 to 100"),
        ("behavior_localization", {"inputs": {"subjct": "latest"}}, r"inputs: unknown input .*'subjct'.*did you mean 'subject'\?"),
        ("behavior_localization", {"variables": {"algn": "end"}}, r"variables: unknown variable .*'algn'.*did you mean 'align'\?"),
        ("behavior_localization", {"variables": {"component": "mlp_out"}}, r"variables: component is set by the step 'patch_mlp' itself"),
        ("circuit_discovery", {"steps": ["paths"]}, r"steps: 'paths' takes what 'acdc' makes; add 'acdc', or leave 'paths' out"),
        ("feature_investigation", {"sae": "latest", "steps": ["max_examples"]}, r"steps: 'max_examples' needs a trace"),
        ("circuit_discovry", {}, r"workflow: unknown workflow 'circuit_discovry'.*did you mean 'circuit_discovery'\?"),
    ],
)
def test_what_is_wrong_is_refused_in_one_line(workflow: str, given: dict, message: str) -> None:
    with pytest.raises(SpecError, match=message) as refused:
        build(workflow, "gpt", pairs="pairs.jsonl", **given)
    assert "\n" not in str(refused.value)


def test_paths_are_opt_in_and_take_the_circuit_of_acdc() -> None:
    assert [step.name for step in build("circuit_discovery", "gpt", pairs="pairs.jsonl").steps] == ["attribution", "activation", "acdc"]
    study = build("circuit_discovery", "gpt", pairs="pairs.jsonl", steps=["paths", "acdc"], inputs={"subject": "latest"})
    assert [(step.name, step.inputs) for step in study.steps] == [
        ("acdc", {"subject": "latest"}),
        ("paths", {"subject": "latest", "circuit": "@acdc"}),
    ]


def test_latents_stand_beside_enough_random_directions_to_be_told_from_them_unless_others_are_asked_for() -> None:
    asked = {"sae": "latest", "pairs": "pairs.jsonl", "steps": ["ablation"]}
    assert build("feature_investigation", "gpt", **asked).steps[0].variables["controls"] == 10
    assert build("feature_investigation", "gpt", **asked, variables={"controls": 4}).steps[0].variables["controls"] == 4


def test_the_main_figure_of_direct_contributions_shows_every_part_and_not_heads_alone(toy: Toy) -> None:
    dla = toy.found.get_step("dla")
    assert dla.plot().name == "components"
    assert {"embedding", "blocks.1.attention", "blocks.1.mlp"} <= set(dla.tables[dla.result.figures[0].table]["term"])


def test_a_model_before_any_training_is_told_as_that(toy: Toy) -> None:
    warned = "'gpt' has random weights here: without inputs.subject it is the model before any training"
    assert all(warned in step.warnings for _, step in toy.found.steps)


def test_the_paths_that_are_patched_are_the_edges_of_the_circuit(toy: Toy) -> None:
    found = mlinterp.workflows.circuit_discovery(
        "gpt", "pairs.jsonl", metric="l2", threshold=0.1, steps=["acdc", "paths"], variables=FAST, project=toy.root
    )
    kept = [row for row in found.get_step("acdc").result.tables["edges"].rows if row["in_circuit"]]
    assert 0 < len(found.get_step("paths").result.tables["paths"].rows) <= len(kept)
    assert {"acdc (interventional)", "paths (interventional)"} <= {line.partition(":")[0] for line in found.narrative.splitlines()}


def test_the_command_line_writes_lists_and_runs_workflows_in_either_spelling(toy, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(toy.root)
    main(["workflow", "list"])
    listed = capsys.readouterr().out
    assert all(name in listed for name in WORKFLOWS)
    asked = ["--subject", "gpt", "--pairs", "pairs.jsonl", "--top-k", "3", *[f"--variable={name}={value}" for name, value in FAST.items()]]
    asked = [text.replace("=False", "=false") for text in asked]
    folder = toy.root / "kept"
    file = folder / "study.yaml"
    main(["workflow", "behavior-localization", *asked, "--write", str(file)])
    main(["validate", str(file)])
    assert load_spec(file).spec.sha256() == build("behavior_localization", "gpt", pairs="pairs.jsonl", variables=FAST, top_k=3).sha256()
    capsys.readouterr()
    for wrong, message in (
        ([str(file)], "exists already"),
        ([str(tmp_path / "study.yaml")], "lies outside the project that it is about; a file in it, such as study.yaml"),
        ([str(folder / "study.json")], "is no YAML file; a name that ends in .yaml"),
        ([str(folder / "other.yaml"), "--metric", "logit_dif"], "did you mean 'logit_diff'?"),
        ([str(folder / "other.yaml"), "--subject", "gtp"], "did you mean 'gpt'?"),
        ([str(folder / "other.yaml"), "--pairs", "nowhere.jsonl"], "'nowhere.jsonl' does not exist"),
    ):
        with pytest.raises(SystemExit):
            main(["workflow", "behavior_localization", *asked, "--write", *wrong])
        assert message in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["study.yaml"]
    main(["workflow", "behavior_localization", *asked, "--quiet"])
    said = capsys.readouterr().out
    assert toy.found.narrative.splitlines()[0] in said
    assert toy.found.run_id in said
