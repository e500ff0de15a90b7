"""The experiment: known gates, what it warns of and refuses, its tables and numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from prompts import CAUSAL, random_pairs, transformer
from torch import Tensor, nn

from mlinterp.errors import ExperimentError, SpecError
from mlinterp.experiments.base import Context
from mlinterp.experiments.localisation.activation_patching import EXPERIMENT
from mlinterp.experiments.localisation.activation_patching_measure import Joint
from mlinterp.experiments.localisation.activation_patching_report import hides
from mlinterp.patching.effects import CellEffect
from mlinterp.reports.plots import draw_all
from mlinterp.result import ExperimentResult
from mlinterp.spec import Spec
from mlinterp.stats import Interval
from mlinterp.subjects.base import IGNORED, Examples, Subject
from mlinterp.subjects.hooked import HookedSubject
from mlinterp.subjects.huggingface import HuggingFaceSubject

GATES = {"or": lambda a, b: a + b - a * b, "and": lambda a, b: a * b, "sum": lambda a, b: (a + b) / 2}


class Gate(nn.Module):
    """Two heads each read whether the first token is 1; the logit of class 0 at the last position is a gate of the two."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.heads, self.kind = nn.Identity(), kind

    def forward(self, tokens: Tensor) -> Tensor:
        z = self.heads((tokens[:, :1, None] == 1).float().expand(-1, tokens.shape[1], 2).clone())
        out = torch.zeros(*tokens.shape, 2)
        out[:, :, 0] = GATES[self.kind](z[:, :, 0], z[:, :, 1])
        return out


def gate(kind: str) -> HookedSubject:
    tokens = torch.tensor([[1, 2, 3]])
    examples = Examples(("one",), tokens, torch.full_like(tokens, IGNORED), torch.ones_like(tokens, dtype=torch.bool))
    return HookedSubject(kind, Gate(kind), {"blocks.0.attn_z": ("heads", "output")}, examples, config={"n_heads": 2})


def gate_pairs(n: int = 6) -> list[dict[str, Any]]:
    return [{"clean": [1, at, 3], "corrupted": [0, at, 3], "answer": 0, "wrong": 1} for at in range(2, 2 + n)]


def patch(subject: Subject, root: Path | None = None, seed: int = 0, **variables: Any) -> ExperimentResult:
    """Check and run the experiment as a spec would."""
    spec = Spec.model_validate(
        {"type": "activation_patching", "subject": "toy", "seed": seed, "variables": {"n_bootstrap": 200, **variables}}
    )
    typed = EXPERIMENT.Variables.model_validate(spec.variables)
    assert EXPERIMENT.check is not None
    EXPERIMENT.check(spec, typed, ())
    return EXPERIMENT.run(Context(spec, typed, root or Path(), lambda: subject, root=root))


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> HuggingFaceSubject:
    return transformer(tmp_path_factory.mktemp("project"), CAUSAL["gpt2"])


@pytest.fixture(scope="module")
def pairs(subject: HuggingFaceSubject) -> list[dict[str, Any]]:
    return [pair.model_dump(exclude_none=True) for pair in random_pairs(subject.vocab, (8,) * 10)]


def heads(result: ExperimentResult) -> list[float]:
    return [row["effect"] for row in result.tables["patches"].rows]


def test_single_patches_of_an_or_gate_show_nothing_and_the_joint_patch_says_so():
    result = patch(gate("or"), pairs=gate_pairs(), component="attn_head", direction="noise", untrained=False)
    assert heads(result) == [0.0, 0.0]
    joint = {row["places"]: row for row in result.tables["joint"].rows}
    assert joint["all"]["effect"] == 1.0
    assert joint["all"]["sum_of_singles"] == 0.0
    (warning,) = [text for text in result.diagnostics.warnings if "places of all" in text]
    assert warning.startswith("the 2 places of all together have an effect of 1; one by one they add up to 0")
    assert warning.endswith("they stand in for each other (an OR), and single patches hide it")
    assert result.metrics["joint_effect/layer0"] == 1.0


@pytest.mark.parametrize(("kind", "direction", "single"), [("and", "noise", 1.0), ("or", "denoise", 1.0), ("sum", "noise", 0.5)])
def test_gates_whose_parts_show_alone_are_not_warned_of(kind, direction, single):
    result = patch(gate(kind), pairs=gate_pairs(), component="attn_head", direction=direction, untrained=False)
    assert heads(result) == [single, single]
    assert not any("together have an effect" in text for text in result.diagnostics.warnings)


def test_single_denoising_patches_of_an_and_gate_hide_it_too():
    result = patch(gate("and"), pairs=gate_pairs(), component="attn_head", untrained=False)
    assert heads(result) == [0.0, 0.0]
    assert any("add up to 0 (largest 0): they need each other (an AND)" in text for text in result.diagnostics.warnings)


@pytest.mark.parametrize(
    ("together", "null", "singles", "hidden"),
    [
        (1.0, 0.0, 0.2, True),
        (-1.0, 0.0, -0.2, True),
        (1.0, 0.0, 0.6, False),
        (0.3, -0.5, 0.3, False),  # all of it shows one by one, however harmful random directions are
        (0.3, 0.3, 0.0, False),  # random directions together do as much
        (0.05, 0.0, 0.0, False),
    ],
)
def test_places_hide_what_they_do_together_where_it_is_more_than_they_add_up_to_and_than_random_directions(together, null, singles, hidden):
    effect, beyond = (Interval(value, value, value) for value in (together, together - null))
    measured = CellEffect(6, together, effect, Interval(null, null, null), beyond, 1.0, 1.0)
    assert hides(Joint("all", (0, 1), measured, singles, singles)) == hidden


def test_the_default_component_moves_and_the_last_layer_restores_everything(subject, pairs):
    default = patch(subject, pairs=pairs, metric="l2")
    assert EXPERIMENT.Variables.model_validate({"pairs": pairs}).component == "resid_pre"
    assert any(row["effect"] not in (0.0, None) for row in default.tables["patches"].rows)
    last = patch(subject, pairs=pairs, metric="l2", component="resid_post", layers=[-1], positions="answer")
    assert [(row["layer"], row["effect"]) for row in last.tables["patches"].rows] == [(2, 1.0)]


def test_every_place_stands_beside_its_nulls_with_an_interval_over_pairs(subject, pairs):
    result = patch(subject, pairs=pairs, metric="l2", component="attn_head", positions="each", heads=[0, 3])
    assert result.mode == "interventional"
    rows = result.tables["patches"].rows
    assert len(rows) == 3 * 8 * 2
    assert {row["head"] for row in rows} == {0, 3}
    for row in rows:
        assert row["n"] == 10
        assert row["adjusted"] == pytest.approx(row["effect"] - row["null"])
        assert row["adjusted_low"] <= row["adjusted"] <= row["adjusted_high"]
        assert row["p_adj"] >= row["p"]
        assert row["untrained"] is not None
        others = [each["effect"] for each in rows if (each["layer"], each["head"]) == (row["layer"], row["head"]) and each is not row]
        assert row["elsewhere"] == pytest.approx(np.mean(others))
    top = max(rows, key=lambda row: abs(row["adjusted"]))
    assert result.metrics["top/adjusted_effect"] == top["adjusted"]
    assert result.metrics[f"effect/{top['place']}"] == top["effect"]
    for name in ("top/adjusted_effect", f"adjusted/{top['place']}", "baseline/gap"):
        estimate = result.estimates[name]
        assert (estimate.n, estimate.unit) == (10, "pair")
        assert estimate.low < estimate.value < estimate.high
    assert "random directions (3 draws)" in str(result.estimates["top/adjusted_effect"].null)
    assert result.estimates["baseline/clean"].mode == "observational"
    assert all(name in result.numbers() for name in result.estimates)


def test_the_same_seed_gives_the_same_numbers_and_another_other_nulls(subject, pairs):
    one, again, other = (patch(subject, pairs=pairs, metric="l2", layers=[1], seed=seed).model_dump_json() for seed in (0, 0, 1))
    assert one == again
    first, second = (json.loads(text)["tables"]["patches"]["rows"] for text in (one, other))
    assert [row["effect"] for row in first] == [row["effect"] for row in second]
    assert [row["null"] for row in first] != [row["null"] for row in second]


@pytest.mark.parametrize("component", ["resid_pre", "attn_head", "mlp_neuron", "module:transformer.h.1.mlp"])
def test_its_figures_are_heatmaps_that_draw_with_tokens_on_the_axis(subject, pairs, component):
    more = {"neurons": [0, 5, 9], "layers": [0]} if component == "mlp_neuron" else {}
    result = patch(subject, pairs=[*pairs[:1], *pairs[:1]][:1], metric="l2", component=component, untrained=False, **more)
    kinds = {figure.name: figure.kind for figure in result.figures}
    axis = {"attn_head": "head", "mlp_neuron": "neuron"}.get(component, "position")
    assert kinds == {f"adjusted_by_{axis}": "heatmap", f"effect_by_{axis}": "heatmap", "largest": "bar"}
    assert all(data.startswith(b"\x89PNG") for data in draw_all(result).values())
    if axis == "position":
        label = result.tables["patches"].rows[2]["position"]
        tokens = [subject.token_text(pairs[0][name][2]).strip() or "␣" for name in ("clean", "corrupted")]
        assert label == f"2 {'|'.join(tokens)}".strip()


def test_a_single_pair_is_said_to_have_no_interval(subject, pairs):
    result = patch(subject, pairs=pairs[:1], metric="l2", layers=[1], untrained=False)
    assert any(text.startswith("1 prompt pair: nothing has an interval") for text in result.diagnostics.warnings)
    assert {row["adjusted_low"] for row in result.tables["patches"].rows} == {None}
    assert result.estimates["top/adjusted_effect"].p is None


def test_a_gap_that_may_be_none_is_warned_of(subject, pairs):
    warnings = patch(subject, pairs=pairs, layers=[1], untrained=False).diagnostics.warnings
    assert any("which may be none: shares of it mean little" in text for text in warnings)
    assert any("pairs logit_diff does not fall from clean to corrupted" in text for text in warnings)


def test_prompts_that_do_not_differ_are_refused(subject, pairs):
    same = [{**pair, "corrupted": pair["clean"]} for pair in pairs]
    with pytest.raises(ExperimentError, match="nothing that a patch could carry"):
        patch(subject, pairs=same)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"component": "attn_hed"}, "unknown component 'attn_hed'.*did you mean 'attn_head'"),
        ({"metric": "logit_dif"}, "unknown metric 'logit_dif'.*did you mean 'logit_diff'"),
        ({"positions": [2, 40]}, "variables.positions: no pair has a position 40; 0 to 7"),
        ({"component": "attn_head", "heads": [4]}, "unknown head '4'; allowed: 0 to 3"),
        ({"layers": [3]}, "unknown layer of 'toy'"),
        ({"pairs": [{"clean": [1], "corrupted": [2], "answer": 3}]}, "logit_diff needs the wrong token, and pair '0' has none"),
        ({"pairs": [{"clean": [1, 2], "corrupted": [2]}], "metric": "kl"}, "the prompts have 2 and 1 tokens"),
        (
            {"pairs": [{"clean": [1, 2], "corrupted": [2]}], "metric": "kl", "align": "start", "positions": "answer"},
            "end at positions that do not belong together; align: end",
        ),
    ],
)
def test_what_does_not_exist_is_refused_by_name(subject, pairs, variables, message):
    with pytest.raises(SpecError, match=message):
        patch(subject, **{"pairs": pairs, **variables})


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"heads": [1]}, "heads are patched with component: attn_head"),
        ({"layers": [1, 1]}, "must name each once"),
        ({"positions": []}, "must name at least one"),
        ({"controls": 1}, "greater than or equal to 2"),
    ],
)
def test_contradictory_variables_are_refused_before_anything_runs(pairs, variables, message):
    with pytest.raises(ValueError, match=message):
        EXPERIMENT.Variables.model_validate({"pairs": pairs, **variables})


@pytest.mark.parametrize("name", ["pairs.txt", "pairs.json", "pairs"])
def test_a_file_of_pairs_of_another_kind_is_refused_by_its_name_before_anything_runs(subject, tmp_path, name):
    (tmp_path / name).write_text("")
    with pytest.raises(SpecError, match=rf"variables\.pairs: '{name}' is no list of pairs; pairs, or a \.jsonl file of the project"):
        patch(subject, tmp_path, pairs=name)


def test_pairs_and_a_metric_come_from_files_of_the_project(subject, pairs, tmp_path):
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (tmp_path / "metrics.py").write_text("def distance(x, clean, answer, wrong):\n    return -(clean - x).norm(dim=1)\n")
    one = patch(subject, tmp_path, pairs="pairs.jsonl", metric="metrics.py:distance", layers=[1], untrained=False)
    other = patch(subject, pairs=pairs, metric="l2", layers=[1], untrained=False)
    assert heads(one) == heads(other)
