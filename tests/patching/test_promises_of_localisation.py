"""What causal localisation promises, as a list: what is asked as a user asks it runs here, the rest names the tests that prove it."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import token_sets
import torch
from prompts import BERT, random_pairs, transformer
from torch import Tensor, nn
from watched import ARCHITECTURES, language_model, watch, write_texts

from mlinterp.errors import EnvironmentFault, SpecError
from mlinterp.experiments.catalog import experiments
from mlinterp.project import find_project
from mlinterp.result import ExperimentResult
from mlinterp.subjects.base import Subject
from mlinterp.subjects.huggingface import HuggingFaceSubject
from mlinterp.subjects.trm import TRMSubject
from mlinterp.subjects.trm_config import TRMConfig

TESTS = Path(__file__).resolve().parent.parent
ON_PAIRS = ("activation_patching", "attribution_patching", "path_patching", "circuit_discovery")
READINGS = ("direct_logit_attribution", "logit_lens", "head_detectors")


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> HuggingFaceSubject:
    return language_model(write_texts(tmp_path_factory.mktemp("project")), ARCHITECTURES["llama"])


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> HuggingFaceSubject:
    return transformer(tmp_path_factory.mktemp("project"), BERT)


def asked(kind: str, subject: HuggingFaceSubject, folder: Path, **variables: Any) -> ExperimentResult:
    """Run a type on three pairs that differ at two positions, everything else as it is where a spec leaves it out."""
    if kind in ON_PAIRS:
        pairs = [pair.model_dump(exclude_none=True) for pair in random_pairs(subject.vocab, (7,) * 6)]
        variables = {"pairs": pairs, "n_bootstrap": 100, **variables}
    if kind in ON_PAIRS[:3]:
        variables = {"untrained": False, "controls": 2, **variables}
    return watch(kind, subject, folder, variables)


# The defaults do what they are named after.


def test_the_default_of_activation_and_of_attribution_patching_moves_the_answer(subject: HuggingFaceSubject, tmp_path: Path) -> None:
    for kind in ("activation_patching", "attribution_patching"):
        rows = asked(kind, subject, tmp_path).tables["patches"].rows
        differ = {"p2", "p4"}
        moved = {row["place"].split(".")[1] for row in rows if row["layer"] == 0 and row["effect"] != 0.0}
        assert moved == differ, kind
        assert all(any(row["effect"] for row in rows if row["layer"] == layer) for layer in range(3))


def test_the_whole_stream_after_the_last_layer_is_an_effect_of_exactly_one(subject: HuggingFaceSubject, tmp_path: Path) -> None:
    for metric in ("logit_diff", "prob", "ce_diff", "kl", "l2", "cosine"):
        last = {"component": "resid_post", "layers": [-1], "positions": "answer", "metric": metric}
        assert [row["effect"] for row in asked("activation_patching", subject, tmp_path, **last).tables["patches"].rows] == [1.0]


# Paths have a sender and a receiver.


def test_senders_and_receivers_of_paths_each_make_a_difference_and_are_not_all_one(subject: HuggingFaceSubject, tmp_path: Path) -> None:
    senders, receivers = ["blocks.0.head.0", "blocks.0.head.1", "blocks.1.mlp"], ["blocks.2.head.0.q", "blocks.2.head.0.v", "logits"]
    rows = asked("path_patching", subject, tmp_path, senders=senders, receivers=receivers).tables["paths"].rows
    effects = np.array([row["effect"] for row in rows]).reshape(3, 3)
    assert len(np.unique(effects)) == 9
    for name in ("senders", "receivers"):
        with pytest.raises(SpecError, match=rf"variables\.{name}.*nonsense"):
            asked("path_patching", subject, tmp_path, **{name: ["nonsense"]})


# Estimates are repeatable, and so is everything else.


@pytest.mark.parametrize("kind", ["attribution_patching", "direct_logit_attribution", "logit_lens", "head_detectors"])
def test_the_same_spec_gives_the_same_numbers_to_the_bit(kind: str, subject: HuggingFaceSubject, tmp_path: Path) -> None:
    few: dict[str, Any] = {"n_sequences": 4, "length": 5} if kind == "head_detectors" else {"examples": {"n": 4}}
    few = {} if kind in ON_PAIRS else few
    one, other = (asked(kind, subject, tmp_path, **few).model_dump(mode="json") for _ in range(2))
    assert one == other


# What is said stands beside a control, with an interval, and says whether anything was changed.


@pytest.mark.parametrize("kind", [*ON_PAIRS[:3], *READINGS])
def test_headline_numbers_have_an_interval_and_a_null_and_say_how_they_were_measured(
    kind: str, subject: HuggingFaceSubject, tmp_path: Path
) -> None:
    few: dict[str, Any] = {"n_sequences": 6, "length": 5} if kind == "head_detectors" else {"examples": {"n": 6}}
    result = asked(kind, subject, tmp_path, **({"metric": "l2"} if kind in ON_PAIRS else few))
    told = {name: each for name, each in result.estimates.items() if each.null is not None}
    assert any(each.low is not None and each.high is not None and each.null_value is not None for each in told.values())
    assert result.mode == ("observational" if kind in (*READINGS, "attribution_patching") else "interventional")
    first = next(iter(result.tables.values())).description
    assert first.startswith(("Observational", "Interventional", "Estimate", "Observational, but")), first


# Every outcome is stated, whatever is asked.


@pytest.mark.parametrize("kind", ON_PAIRS)
def test_prompts_of_unequal_length_are_refused_with_both_lengths(kind: str, subject: HuggingFaceSubject, tmp_path: Path) -> None:
    pairs = [{"clean": [3, 4, 5], "corrupted": [3, 4], "answer": 6, "wrong": 7}] * 2
    with pytest.raises(SpecError, match="the prompts have 3 and 2 tokens"):
        asked(kind, subject, tmp_path, pairs=pairs)


@pytest.mark.parametrize("kind", ON_PAIRS)
def test_a_metric_without_its_token_is_refused_by_name(kind: str, subject: HuggingFaceSubject, tmp_path: Path) -> None:
    pairs = [{"clean": [3, 4, 5], "corrupted": [3, 4, 6], "answer": 6, "id": each} for each in "ab"]
    with pytest.raises(SpecError, match=r"logit_diff needs the wrong token, and pair 'a' has none; .*\(kl, l2, cosine\)"):
        asked(kind, subject, tmp_path, pairs=pairs)


@pytest.mark.parametrize("kind", ["activation_patching", "attribution_patching"])
def test_a_module_that_is_never_run_is_refused_by_name_and_never_an_effect_of_zero(
    kind: str, subject: HuggingFaceSubject, tmp_path: Path
) -> None:
    block = subject.model.get_submodule("model.layers.1")
    block.add_module("idle", nn.Linear(16, 16))
    try:
        with pytest.raises(SpecError, match=r"'module:model\.layers\.1\.idle' is not evaluated in a forward pass of 'toy'"):
            asked(kind, subject, tmp_path, component="module:model.layers.1.idle")
    finally:
        del block.idle
    with pytest.raises(SpecError, match=r"'toy' has no module 'model\.layers\.1\.idle'"):
        asked(kind, subject, tmp_path, component="module:model.layers.1.idle")


@pytest.mark.parametrize("kind", [*ON_PAIRS[2:], *READINGS])
def test_a_model_whose_parts_are_not_known_is_refused_by_name(kind: str, bert: HuggingFaceSubject, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"'toy'"):
        asked(kind, bert, tmp_path)


@pytest.fixture(scope="module")
def without_positions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Subject]:
    """A model that reads sets, one row a context, and one that passes its hook points many times."""
    sets = find_project(token_sets.make(tmp_path_factory.mktemp("sets"))).load_subject("learned")
    sizes = {"d_model": 16, "n_layers": 1, "H_cycles": 1, "L_cycles": 1, "n_sup": 1}
    config = {"kind": "trm", "task": {"name": "sudoku4", "n_train": 8, "n_test": 8}, "model": sizes}
    return {"token_set": sets, "trm": TRMSubject("trm", TRMConfig.model_validate(config))}


@pytest.mark.parametrize("kind", ON_PAIRS)
@pytest.mark.parametrize(("name", "place"), [("token_set", "module:blocks.0"), ("trm", "module:model")])
def test_a_model_whose_activations_are_of_no_single_position_is_refused_by_name(
    kind: str, name: str, place: str, without_positions: dict[str, Subject], tmp_path: Path
) -> None:
    pairs = [{"clean": [1, 2, at], "corrupted": [1, 3, at]} for at in (4, 5)]
    where = {"component": place} if kind in ON_PAIRS[:2] else {}
    subject = without_positions[name]
    with pytest.raises(SpecError, match=f"subject: '{subject.name}' is a {name} subject; one whose hook points .* for each token"):
        watch(kind, subject, tmp_path, {"pairs": pairs, "metric": "l2", **where})


@pytest.mark.parametrize("kind", ["path_patching", *READINGS])
def test_a_batch_that_does_not_fit_in_memory_is_halved_and_goes_on(kind: str, subject: HuggingFaceSubject, tmp_path: Path) -> None:
    few: dict[str, Any] = {"n_sequences": 8, "length": 5} if kind == "head_detectors" else {"examples": {"n": 8}}
    few = {"senders": ["embedding", "blocks.0.mlp"], "receivers": ["blocks.1.mlp"]} if kind == "path_patching" else few
    whole = asked(kind, subject, tmp_path, **few)
    rows: list[int] = []

    def full(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        rows.append(len(args[0]))
        if rows[-1] > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")

    handle = subject.model.get_submodule("model.layers.2.mlp").register_forward_pre_hook(full)
    try:
        limit = 3
        halved = asked(kind, subject, tmp_path, **few)
        assert max(rows) > limit
        limit = 0
        with pytest.raises(EnvironmentFault, match=r"fits? in memory"):
            asked(kind, subject, tmp_path, **few)
    finally:
        handle.remove()
    assert list(halved.metrics) == list(whole.metrics)
    np.testing.assert_allclose(list(halved.metrics.values()), list(whole.metrics.values()), atol=1e-3)


# Nothing is left behind.


@pytest.mark.parametrize("kind", [*ON_PAIRS, *READINGS])
def test_no_hook_stays_after_a_run_nor_after_one_that_failed_halfway(kind: str, subject: HuggingFaceSubject, tmp_path: Path) -> None:
    few: dict[str, Any] = {"n_sequences": 4, "length": 5} if kind == "head_detectors" else {"examples": {"n": 4}}
    few = {} if kind in ON_PAIRS else few

    def hooks() -> int:
        return sum(len(each._forward_hooks) + len(each._forward_pre_hooks) + len(each._backward_hooks) for each in subject.model.modules())

    before, digest, calls = hooks(), subject.digest(), 0

    def broken(_module: nn.Module, _args: tuple[Tensor, ...]) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise ZeroDivisionError

    handle = subject.model.get_submodule("model.layers.1.mlp").register_forward_pre_hook(broken)
    try:
        with pytest.raises(ZeroDivisionError):
            asked(kind, subject, tmp_path, batch_size=1, **few)
    finally:
        handle.remove()
    assert (hooks(), subject.digest()) == (before, digest)
    with torch.no_grad():
        inputs = torch.arange(3, 9)[None]
        untouched = subject.model(input_ids=inputs).logits
        asked(kind, subject, tmp_path, **few)
        assert torch.equal(subject.model(input_ids=inputs).logits, untouched)
    assert (hooks(), subject.digest()) == (before, digest)


PROVEN: dict[str, tuple[str, ...]] = {
    "the patched runs are the ones a plain hook loop makes, for every component and architecture": (
        "patching/test_patching.py::test_patches_equal_a_plain_hook_loop_over_the_whole_model",
        "patching/test_patching.py::test_every_metric_in_both_directions_equals_the_plain_loop",
        "patching/test_patching_recorded.py::test_every_patch_equals_the_value_that_transformer_lens_recorded",
    ),
    "an identity patch changes exactly nothing": (
        "patching/test_patching.py::test_an_identity_patch_changes_exactly_nothing",
        "patching/test_path_patching.py::test_a_path_between_equal_prompts_changes_nothing_exactly",
        "interventions/test_intervene.py::test_a_subject_that_does_not_agree_with_itself_is_caught_by_the_identity_control",
    ),
    "a path's effect is that of its sender on its receiver alone": (
        "patching/test_path_patching.py::test_a_hand_written_induction_circuit_has_path_effects_of_one_and_zero",
        "patching/test_path_patching.py::test_paths_equal_plain_hooks_on_the_projections_of_the_whole_model",
        "patching/test_path_patching.py::test_the_path_to_every_reader_is_the_whole_effect_of_patching_the_sender",
        "patching/test_path_patching.py::test_a_nonsense_sender_or_receiver_is_refused_with_the_nearest_name",
    ),
    "ablating or patching a latent moves what the model says, and one that is silent exactly nothing": (
        "patching/test_patch_latents.py::test_patches_equal_a_plain_loop_of_hooks_that_encode_and_decode",
        "patching/test_patch_latents.py::test_zero_ablation_of_a_latent_that_is_not_active_changes_exactly_nothing",
        "interventions/test_policies.py::test_ablating_keeps_the_error_term_and_removes_exactly_the_latents_share",
    ),
    "attribution patching follows true gradients, in one backward pass": (
        "patching/test_attribution_patching.py::test_attribution_equals_activation_patching_in_a_linear_network",
        "patching/test_attribution_patching.py::test_slopes_are_finite_differences_of_the_whole_model_in_float64",
        "patching/test_attribution_patching.py::test_integrated_gradients_add_up_to_what_patching_a_whole_layer_does",
        "patching/test_attribution_patching.py::test_two_forward_passes_and_one_backward_pass_give_every_place",
    ),
    "the terms of a logit sum to it, head by head": (
        "readouts/test_direct_logit_attribution.py::test_terms_sum_to_the_logit_and_to_a_difference_of_logits",
        "readouts/test_direct_logit_attribution.py::test_the_norms_scale_is_that_of_the_whole_stream_and_not_of_each_part",
    ),
    "heads are what enters the output projection, not slices of what leaves it": (
        "patching/test_patching.py::test_all_heads_together_are_the_output_of_attention_also_where_they_share_keys_and_values",
        "readouts/test_direct_logit_attribution.py::"
        "test_what_a_head_contributes_is_what_its_slice_of_the_output_projection_alone_makes_of_it",
    ),
    "edges are tested one by one, and none has the effect of its node": (
        "circuits/test_search.py::test_edges_of_one_node_have_effects_of_their_own",
        "circuits/test_search.py::test_acdc_is_the_plain_greedy_loop_over_edges",
        "circuits/test_machine.py::test_cutting_all_edges_of_a_head_or_mlp_is_patching_what_it_writes",
    ),
    "a workflow's record holds every step and what was concluded, and its steps measure something": (
        "workflows/test_workflows.py::test_the_json_of_a_workflow_holds_every_step_whole_and_the_narrative",
        "workflows/test_workflows.py::test_features_that_matter_have_an_effect_under_the_default_metric_and_are_told",
        "workflows/test_workflows.py::test_every_head_of_every_layer_is_patched_and_ranked",
    ),
    "parallel parts that hide each other are warned of": (
        "patching/test_activation_patching.py::test_single_patches_of_an_or_gate_show_nothing_and_the_joint_patch_says_so",
        "circuits/test_search.py::test_edges_into_an_or_gate_do_nothing_alone_and_are_reported_together",
    ),
    "an SAE that latents are patched through has k active latents, its own threshold, and never saw padding": (
        "sae/test_architectures.py::test_topk_never_has_more_than_k_active_and_none_negative",
        "sae/test_architectures.py::test_batchtopk_shares_its_budget_over_the_batch_and_learns_the_threshold_that_gives_it",
        "sae/test_kinds.py::test_a_row_is_encoded_and_reconstructed_alone_whatever_else_is_in_the_batch",
        "sae/test_streaming.py::test_padding_and_special_tokens_are_in_no_row",
    ),
    "a finding rests on several pairs of equal length, beside controls, with intervals": (
        "subjects/test_pairs.py::test_prompts_of_unequal_length_are_refused_with_both_lists_of_tokens",
        "subjects/test_pairs.py::test_aligned_prompts_share_the_positions_that_both_have",
        "patching/test_activation_patching.py::test_every_place_stands_beside_its_nulls_with_an_interval_over_pairs",
        "patching/test_activation_patching.py::test_a_single_pair_is_said_to_have_no_interval",
    ),
    "intervals and p values mean what they say": (
        "patching/test_patch_effects.py::test_intervals_over_few_and_over_many_pairs_cover_as_often_as_they_say",
        "patching/test_patch_effects.py::test_changes_of_the_null_s_size_are_not_significant_and_large_ones_are",
        "readouts/test_head_detectors.py::test_heads_that_have_learned_nothing_are_no_more_often_significant_than_the_level_says",
    ),
    "each metric has one definition, and what is undefined is none": (
        "patching/test_metrics.py::test_each_metric_is_its_formula",
        "patching/test_metrics.py::test_nothing_over_nothing_is_undefined_and_never_zero",
        "patching/test_metrics.py::test_a_project_adds_its_own_as_a_function_of_a_file",
    ),
    "a model that there are no names for is patched by module path": (
        "subjects/test_hook_points.py::test_other_architectures_are_hooked_by_module_path_and_take_padding_on_the_right",
        "patching/test_patching.py::test_a_model_that_has_no_names_for_its_parts_is_told_to_name_modules",
    ),
    "an unknown component is refused with the nearest name": (
        "patching/test_activation_patching.py::test_what_does_not_exist_is_refused_by_name",
        "patching/test_attribution_patching_experiment.py::test_an_unknown_component_is_refused_with_the_nearest_name",
    ),
    "a hook point that never fires, and an edit that is never applied, are failures": (
        "subjects/test_hooked.py::test_a_hook_point_that_runs_twice_or_never_or_holds_no_activation_is_refused",
        "interventions/test_intervene.py::test_a_policy_that_was_never_applied_is_a_named_failure_without_numbers",
    ),
    "a batch that does not fit in memory is split and goes on": (
        "patching/test_patching.py::test_a_batch_that_does_not_fit_in_memory_is_split_and_goes_on",
        "patching/test_attribution_patching.py::test_a_batch_that_does_not_fit_in_memory_is_halved",
        "readouts/test_tuned_lens.py::test_a_batch_that_does_not_fit_in_memory_is_refused_with_its_size",
        "circuits/test_machine.py::test_a_batch_that_does_not_fit_in_memory_is_split_until_it_does",
    ),
    "padding on either side changes no number": (
        "subjects/test_hook_points.py::test_left_padding_right_padding_and_none_agree_on_real_tokens",
        "patching/test_patching.py::test_padding_on_either_side_changes_no_number",
        "patching/test_path_patching.py::test_neither_padding_nor_the_batch_changes_a_path",
        "readouts/test_logit_lens.py::test_padding_changes_nothing_at_real_tokens",
        "readouts/test_direct_logit_attribution.py::test_padding_changes_no_term",
        "readouts/test_head_detectors.py::test_padding_on_the_left_changes_no_pattern_of_the_real_tokens",
    ),
    "logits with hooks are logits without, and hooks are gone after an exception": (
        "subjects/test_hook_points.py::test_resid_post_is_hidden_states_and_tracing_leaves_the_logits_alone_bit_for_bit",
        "subjects/test_huggingface.py::test_hooks_are_gone_afterwards_also_when_the_tap_raises",
        "patching/test_patching.py::test_an_error_that_is_not_about_memory_passes_through_and_no_hook_stays",
    ),
    "the size of a batch changes no number": (
        "patching/test_patching.py::test_the_size_of_batches_changes_no_number",
        "readouts/test_direct_logit_attribution.py::test_results_do_not_depend_on_the_batch_size_but_for_rounding",
    ),
}
"""What is promised, and the tests that would fail if it were not kept."""


@pytest.mark.parametrize("promise", PROVEN)
def test_every_promise_names_tests_that_exist(promise: str) -> None:
    for test in PROVEN[promise]:
        file, _, name = test.partition("::")
        tree = ast.parse((TESTS / file).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, test


def test_every_type_of_localisation_is_in_the_catalog() -> None:
    assert {*ON_PAIRS, *READINGS, "tuned_lens"} <= set(experiments())
