"""The experiment from spec to files: refusals, outcomes recomputed from the files, resume, recurrent subjects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from planted import CAUSE, DECOY, SILENT, SITE, context, intervene, planted_sae, planted_subject
from tiny import TinySubject
from torch import Tensor

from mlinterp.errors import ExperimentError, SpecError, VerificationError
from mlinterp.experiments.intervene import EXPERIMENT
from mlinterp.interventions.batch import BatchRunner
from mlinterp.io.manifest import content_digest
from mlinterp.io.schemas import schema
from mlinterp.sae.config import SAEConfig
from mlinterp.sae.model import SAE
from mlinterp.subjects.base import Address, Batch, Outputs, Subject
from mlinterp.subjects.trm import TRMSubject
from mlinterp.subjects.trm_config import TRMConfig

ABLATE = {"policy": "ablate_features", "features": [CAUSE, DECOY]}
STATES = {"policy": "patch_states", "at": {"site": SITE}}


def report_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "work" / "report.json").read_text())  # type: ignore[no-any-return]


def trm(**model: int) -> TRMSubject:
    """A recurrent subject that nobody trained, with weights that are not zero anywhere."""
    sizes = {"d_model": 16, "n_layers": 1, "H_cycles": 2, "L_cycles": 2, "n_sup": 3, **model}
    config = {"kind": "trm", "task": {"name": "sudoku4", "n_train": 40, "n_test": 30}, "model": sizes, "seed": 3}
    subject = TRMSubject("trm", TRMConfig.model_validate(config))
    generator = torch.Generator().manual_seed(0)
    for parameter in subject.model.parameters():
        parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return subject


# ---- refusals


def test_latents_without_an_sae_are_refused_before_the_subject_is_loaded(tmp_path: Path) -> None:
    given = context(planted_subject(), {"interventions": [STATES, ABLATE]}, tmp_path)
    object.__setattr__(given, "load_subject", lambda: pytest.fail("the subject was loaded"))
    with pytest.raises(SpecError, match=r"interventions\[1\]\.policy: ablate_features edits latents, and the spec has no sae"):
        EXPERIMENT.run(given)


@pytest.mark.parametrize(
    ("block", "sae", "message"),
    [
        (ABLATE, {"site": "elsewhere"}, "module|hook point 'elsewhere'"),
        ({**ABLATE, "at": {"site": SITE}}, {"site": "other"}, "the SAE was fitted on other, not on hidden"),
        (ABLATE, {"d_in": 5, "latents": 4}, "hidden is 16 wide, the SAE 5"),
        ({**ABLATE, "features": [12]}, {}, "latent 12 does not exist; this SAE has latents 0-11"),
        ({"policy": "ablate_features"}, {}, "names no latent"),
        ({**ABLATE, "at": {"cycles": [0]}}, {}, "cycles: hidden is not evaluated along this axis"),
        ({**ABLATE, "at": {"positions": "anser"}}, {}, "did you mean 'answer'"),
        ({"policy": "patch_features", "features": [1], "source": "ex-7x"}, {}, "unknown source example 'ex-7x'.*did you mean 'ex-7'"),
    ],
)
def test_a_place_latent_or_source_that_does_not_exist_is_refused(
    block: dict[str, Any], sae: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match=message):
        intervene(planted_subject(), {"interventions": [block]}, tmp_path, planted_sae(**sae))


def test_a_state_patch_that_names_no_site_is_refused_with_the_sites(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"at\.site: no site is named; allowed: hidden"):
        intervene(planted_subject(), {"interventions": [{"policy": "patch_states"}]}, tmp_path)


def test_an_amount_that_a_silent_latent_does_not_have_is_refused(tmp_path: Path) -> None:
    block = {"policy": "steer", "features": [SILENT], "strength": 2.0}
    with pytest.raises(ExperimentError, match="latent 11 never fires on the train sample"):
        intervene(planted_subject(), {"interventions": [block]}, tmp_path, planted_sae())


# ---- results


def test_a_policy_that_was_never_applied_is_a_named_failure_without_numbers(tmp_path: Path) -> None:
    result = intervene(planted_subject(), {"interventions": [{**ABLATE, "features": [SILENT]}]}, tmp_path, planted_sae())
    assert not result.success
    assert "latents [11] are inactive in all 240 rows" in (result.error_message or "")
    assert not any(name.startswith("effect/") for name in result.metrics)
    row = result.tables["interventions"].rows[0]
    assert row["n_edits"] == 0
    assert row["delta_margin"] is None
    assert report_of(tmp_path)["top_causal_features"] == []


def test_the_files_fit_their_schemas_and_the_outcomes_can_be_recomputed_from_them(tmp_path: Path) -> None:
    subject = planted_subject()
    blocks = [ABLATE, {"policy": "patch_features", "features": [CAUSE], "each": False, "name": "patch", "source": "ex-3"}, STATES]
    result = intervene(subject, {"interventions": blocks}, tmp_path, planted_sae())
    report = report_of(tmp_path)
    jsonschema.validate(report, schema("report"))
    examples = subject.examples("test", 60)
    targets = dict(zip(examples.ids, examples.targets.tolist(), strict=True))
    assert result.files == ["report.json", *(f"interventions/{item['id']}.json" for item in report["interventions"])]
    for item in report["interventions"]:
        diff = json.loads((tmp_path / "work" / "interventions" / f"{item['id']}.json").read_text())
        jsonschema.validate(diff, schema("intervention"))
        rows = diff["examples"]
        exact = [row["new_pred"] == targets[row["example_id"]] for row in rows]
        before = [row["baseline_pred"] == targets[row["example_id"]] for row in rows]
        assert item["outcome"]["exact"] == pytest.approx(np.mean(exact))
        assert item["delta"]["exact"] == pytest.approx(np.mean(exact) - np.mean(before))
        assert item["flips"]["right_to_wrong"] == sum(b and not now for b, now in zip(before, exact, strict=True))
        assert item["flips"]["changed_tokens"] == sum(len(row["changed_positions"]) for row in rows)
    assert report["inputs"]["model_sha256"] == subject.digest()


def test_every_kind_of_control_stands_beside_an_intervention(tmp_path: Path) -> None:
    blocks = [{"policy": "patch_features", "features": [CAUSE], "name": "p"}, {**STATES, "name": "s"}]
    intervene(planted_subject(), {"interventions": blocks, "controls": 2}, tmp_path, planted_sae())
    kinds: dict[str, list[str]] = {"p-l0": [], "s": []}
    for entry in report_of(tmp_path)["controls"]:
        for name in entry["of"]:
            kinds[name].append(entry["kind"])
    drawn = ["random_direction"] * 2 + ["shuffled_source"] * 2
    assert sorted(kinds["p-l0"]) == sorted(
        ["identity", "reconstruct_only", "random_feature", "random_feature", *["matched_frequency"] * 2, *drawn]
    )
    assert sorted(kinds["s"]) == sorted(["identity", *drawn])


def test_top_k_takes_the_latents_with_the_largest_mean_activation_and_feature_id_stands_in(tmp_path: Path) -> None:
    subject, sae = planted_subject(), planted_sae()
    mean = subject.model.hidden.weight[:, :12].mean(dim=0)
    blocks = {"interventions": [{"policy": "ablate_features", "features": "top:3"}], "controls": 2}
    report = intervene(subject, blocks, tmp_path / "top", sae)
    assert {row["features"] for row in report.tables["interventions"].rows} == {str(i) for i in mean.topk(3).indices.tolist()}
    single = intervene(subject, {"interventions": [{"policy": "ablate_features"}], "controls": 2}, tmp_path / "one", sae, feature_id=CAUSE)
    assert [row["features"] for row in single.tables["interventions"].rows] == ["0"]


def test_quantile_mean_and_strength_use_the_statistics_of_the_train_split(tmp_path: Path) -> None:
    subject, sae = planted_subject(), planted_sae()
    column = subject.model.hidden.weight[:, CAUSE].double()
    active, right = column[column > 0], torch.where(column > 0.9, 1.0, -1.0)  # any sign works: targets are the untouched answers
    evidence = 4 * torch.tanh(column - 1) + subject.model.hidden.weight[:, 15].double()
    right = evidence.sign()
    expected = {
        "q": torch.full_like(column, float(active.quantile(0.3))),
        "m": torch.full_like(column, float(column.mean())),
        "s": column + 2 * active.mean(),
    }
    blocks = [
        {"policy": "clamp_features", "features": [CAUSE], "quantile": 0.3, "each": False, "name": "q"},
        {"policy": "ablate_features", "features": [CAUSE], "baseline": "mean", "each": False, "name": "m"},
        {"policy": "steer", "features": [CAUSE], "strength": 2.0, "each": False, "name": "s"},
    ]
    metrics = intervene(subject, {"interventions": blocks, "controls": 2}, tmp_path, sae).metrics
    for name, new in expected.items():
        change = right * (4 * torch.tanh(new - 1) - 4 * torch.tanh(column - 1))
        assert metrics[f"effect/{name}"] == pytest.approx(float(change.mean()), rel=1e-4)


def test_outcomes_may_be_about_a_part_of_the_positions(tmp_path: Path) -> None:
    whole = intervene(planted_subject(), {"interventions": [STATES]}, tmp_path / "a")
    last = intervene(planted_subject(), {"interventions": [STATES], "score": "last"}, tmp_path / "b")
    assert last.tables["flips"].rows[0]["changed_tokens"] < whole.tables["flips"].rows[0]["changed_tokens"]


# ---- determinism and resume


def test_two_runs_write_the_same_report_and_another_seed_another(tmp_path: Path) -> None:
    variables = {"interventions": [ABLATE, STATES], "controls": 2}
    digests = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        intervene(planted_subject(), variables, tmp_path / name, planted_sae(), seed=seed)
        digests.append(content_digest(tmp_path / name / "work" / "report.json"))
    assert digests[0] == digests[1] != digests[2]


def test_a_stage_that_is_killed_goes_on_with_the_same_results_and_skips_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = {"interventions": [ABLATE, STATES], "controls": 2, "batch_size": 16}
    intervene(planted_subject(), variables, tmp_path / "whole", planted_sae())
    ran: list[int] = []
    run = BatchRunner.run

    def dies_in_the_third(self: BatchRunner, rows: range, advance: Any) -> dict[str, Tensor]:
        if len(ran) == 2:
            raise KeyboardInterrupt
        ran.append(rows[0])
        return run(self, rows, advance)

    monkeypatch.setattr(BatchRunner, "run", dies_in_the_third)
    with pytest.raises(BaseException):  # noqa: B017, PT011 - whatever the trainer makes of an interrupt
        intervene(planted_subject(), variables, tmp_path / "killed", planted_sae())
    outcomes = tmp_path / "killed" / "work" / "outcomes"
    assert [path.name for path in sorted(outcomes.glob("*.safetensors"))] == ["batch-00000.safetensors", "batch-00001.safetensors"]
    (outcomes / "batch-00001.safetensors").write_bytes(b"damaged")

    def again(self: BatchRunner, rows: range, advance: Any) -> dict[str, Tensor]:
        ran.append(rows[0])
        return run(self, rows, advance)

    monkeypatch.setattr(BatchRunner, "run", again)
    intervene(planted_subject(), variables, tmp_path / "killed", planted_sae())
    assert ran == [0, 16, 16, 32, 48]
    for name in ("report.json", "interventions/ablate_features_0-l0.json"):
        assert (tmp_path / "killed" / "work" / name).read_bytes() == (tmp_path / "whole" / "work" / name).read_bytes()


def test_outcomes_of_other_interventions_in_the_folder_are_refused(tmp_path: Path) -> None:
    intervene(planted_subject(), {"interventions": [STATES]}, tmp_path)
    with pytest.raises(VerificationError, match="holds outcomes of other interventions"):
        intervene(planted_subject(), {"interventions": [STATES], "controls": 3}, tmp_path)


def test_the_batch_size_does_not_change_what_is_found(tmp_path: Path) -> None:
    found = []
    for size in (7, 60):
        result = intervene(
            planted_subject(), {"interventions": [ABLATE, STATES], "controls": 2, "batch_size": size}, tmp_path / str(size), planted_sae()
        )
        found.append(result.metrics)
    assert found[0] == pytest.approx(found[1], rel=1e-5)


class Restless(TinySubject):
    """A subject whose forward pass never gives the same logits twice."""

    def forward(self, *args: Any, **kwargs: Any) -> Outputs | None:
        outputs = super().forward(*args, **kwargs)
        self.calls = getattr(self, "calls", 0) + 1
        return None if outputs is None else Outputs(outputs.logits + 0.01 * self.calls, outputs.step_preds, outputs.q_halt)


def test_a_subject_that_does_not_agree_with_itself_is_caught_by_the_identity_control(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="identity control at z_a moved the logits"):
        intervene(Restless(), {"interventions": [{"policy": "patch_states", "at": {"site": "z_a"}}], "examples": {"n": 8}}, tmp_path)


class RightPadded(TinySubject):
    """Half of the examples are shorter."""

    def examples(self, split: str, n: int, seed: int = 0, **selection: Any) -> Any:
        return super().examples(split, n, seed, ragged=True)


def test_padding_is_neither_edited_nor_patched_from(tmp_path: Path) -> None:
    subject, seen = RightPadded(), []
    forward = subject.forward

    def watched(batch: Batch, tap: Any = None, sites: Any = (), until: Any = None) -> Outputs | None:
        def look(address: Address, h: Tensor) -> Tensor:
            edited = tap(address, h)
            seen.append(((edited != h).any(-1)[:, 1:] & ~batch.mask).any().item())
            return edited

        return forward(batch, look if tap else None, sites, until)

    subject.forward = watched  # type: ignore[method-assign]
    intervene(subject, {"interventions": [{"policy": "patch_states", "at": {"site": "z_a"}}], "examples": {"n": 10}}, tmp_path)
    assert seen
    assert not any(seen)


# ---- recurrent subjects


def test_skipping_the_steps_before_an_edit_changes_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = [
        {"policy": "patch_states", "at": {"site": "z_L", "sup_steps": [step], "cycles": [-1], "latent_steps": [-1]}} for step in range(3)
    ]
    variables = {"interventions": blocks, "examples": {"n": 16}, "batch_size": 8, "controls": 2}
    skipped = intervene(trm(), variables, tmp_path / "skip")
    monkeypatch.setattr("mlinterp.interventions.batch.Skip.over", classmethod(lambda cls, subject, batch, baseline: None))
    whole = intervene(trm(), variables, tmp_path / "whole")
    assert skipped.metrics == whole.metrics
    assert report_of(tmp_path / "skip") == report_of(tmp_path / "whole")


def test_a_sweep_over_addresses_has_a_table_of_own_accuracy_agreement_and_chance(tmp_path: Path) -> None:
    places = [{"site": "z_L", "cycles": [0], "latent_steps": [0]}, {"site": "z_H", "cycles": [-1]}]
    blocks = [{"policy": "patch_states", "at": {**place, "sup_steps": [-1]}} for place in places]
    result = intervene(trm(), {"interventions": blocks, "examples": {"n": 20}, "score": "blank", "controls": 2}, tmp_path)
    rows = result.tables["addresses"].rows
    assert [row["at"] for row in rows] == ["z_L(s2,c0,i0)", "z_H(s2,c1)"]
    assert rows[1]["agreement"] == 1.0  # the last state of all is the answer
    assert rows[0]["chance"] == rows[1]["chance"] < 1.0
    assert {"agreement_by_address", "effect_by_address", "flips_by_step"} <= {figure.name for figure in result.figures}
    steps = [row["changed_tokens"] for row in result.tables["flips_by_step"].rows if row["id"] == "patch_states_1"]
    assert steps[:2] == [0, 0]
    assert steps[2] > 0
    assert report_of(tmp_path)["baseline"]["mean_halt_step"] is not None


class Deaf(TinySubject):
    """What stands in z_a at the last step is read by nobody."""

    def forward(self, batch: Batch, tap: Any = None, sites: Any = (), until: Any = None) -> Outputs | None:
        return super().forward(batch, (lambda address, h: (tap(address, h), h)[1]) if tap else None, sites, until)


def test_a_place_where_no_edit_reaches_the_answer_is_named(tmp_path: Path) -> None:
    result = intervene(Deaf(), {"interventions": [{"policy": "patch_states", "at": {"site": "z_a"}}], "examples": {"n": 8}}, tmp_path)
    assert any("edits at z_a(s*) reached no answer" in warning for warning in result.diagnostics.warnings)


def test_latents_of_a_recurrent_state_are_edited_at_single_evaluations(tmp_path: Path) -> None:
    subject: Subject = trm()
    sae = SAE(SAEConfig(d_in=16, d_sae=24, activation="topk", k=4, site="z_L")).requires_grad_(False)
    block = {"policy": "clamp_features", "features": "top:3", "scale": 4.0, "at": {"sup_steps": [-1], "cycles": [-1], "latent_steps": [-1]}}
    result = intervene(subject, {"interventions": [block], "examples": {"n": 12}, "controls": 2, "train_examples": 16}, tmp_path, sae)
    assert result.success
    rows = result.tables["interventions"].rows
    assert len(rows) == 3
    assert all(0 < row["n_edits"] <= 12 * 17 and row["edit_norm"] > 0 for row in rows)
