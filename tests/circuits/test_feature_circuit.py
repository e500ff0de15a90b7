"""The experiment type: what it finds in a hand-built network, what it says of it, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from bars import Bars
from dictionaries import dictionary
from gates import Gate, both, either, gates, weighted
from prompts import CAUSAL, random_pairs, transformer
from sae_kinds import random_sae
from watched import watch

from mlinterp.errors import ExperimentError, SpecError
from mlinterp.execution.inputs import check_roles
from mlinterp.experiments import catalog
from mlinterp.experiments.base import Context, ResolvedInput
from mlinterp.reports.plots import draw
from mlinterp.result import ExperimentResult
from mlinterp.sae.files.checkpoint import save_sae
from mlinterp.sae.model import SAE
from mlinterp.spec import Spec
from mlinterp.subjects.hooked import HookedSubject

BITS = "module:embed"
LAYERS = tuple(f"blocks.{layer}.mlp_out" for layer in range(4))
AND: tuple[Gate, ...] = ((weighted({0: 1.0}), 3), (weighted({1: 1.0}), 4), (both(3, 4), 5), (weighted({2: 1.0}), 6))
OR: tuple[Gate, ...] = (*AND[:2], (either(3, 4), 5), AND[3])
PATH = {
    f"{BITS}/0 -> {LAYERS[0]}/3",
    f"{BITS}/1 -> {LAYERS[1]}/4",
    f"{LAYERS[0]}/3 -> {LAYERS[2]}/5",
    f"{LAYERS[1]}/4 -> {LAYERS[2]}/5",
    f"{LAYERS[2]}/5 -> metric",
}
ROLES = ("sae", "sae_b", "sae_c", "sae_d", "sae_e")


def bits(*prompts: tuple[int, int]) -> list[dict[str, Any]]:
    return [{"clean": [clean], "corrupted": [corrupted], "answer": 1, "wrong": 0} for clean, corrupted in prompts]


PAIRS = bits((7, 0), (3, 4), (7, 4), (3, 0), (7, 0), (3, 0))


def saved(folder: Path, *saes: SAE) -> dict[str, Path]:
    """Save SAEs and return them as inputs."""
    found = {}
    for role, sae in zip(ROLES, saes, strict=False):
        save_sae(sae, folder / role)
        found[role] = folder / role
    return found


def run_gates(folder: Path, made: tuple[Gate, ...] = AND, **variables: Any) -> ExperimentResult:
    """Run on a network of gates, with a latent for each coordinate of what is embedded and of what each gate writes."""
    folder.mkdir(parents=True, exist_ok=True)
    inputs = saved(folder, *(dictionary(site, torch.eye(8)) for site in (BITS, *LAYERS)))
    return run(gates(*made, out=5), folder, inputs, **{"pairs": PAIRS, **variables})


def run(subject: HookedSubject, folder: Path, inputs: Mapping[str, Path], seed: int = 0, **variables: Any) -> ExperimentResult:
    folder.mkdir(parents=True, exist_ok=True)
    return watch("feature_circuit", subject, folder, {"n_bootstrap": 200, "exact": 4, **variables}, inputs, seed)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> HookedSubject:
    return transformer(tmp_path_factory.mktemp("project"), {**CAUSAL["gpt2"], "n_layer": 2})


def sae_at(site: str, d_in: int = 16, **changes: Any) -> SAE:
    return random_sae(d_in=d_in, d_sae=24, dtype=torch.float32, site=site, **changes)


def run_gpt2(gpt2: HookedSubject, folder: Path, seed: int = 0, **variables: Any) -> ExperimentResult:
    folder.mkdir(parents=True, exist_ok=True)
    inputs = saved(folder, sae_at("blocks.0.resid_post"), sae_at("blocks.1.mlp_out", seed=1))
    pairs = [pair.model_dump() for pair in random_pairs(gpt2.vocab, (6, 7, 6, 5))]
    return run(gpt2, folder, inputs, seed, **{"pairs": pairs, "ig_steps": 3, **variables})


# --------------------------------------------------------------------------------------------------------- what it finds
def test_the_known_circuit_is_found_and_written_down(tmp_path):
    result = run_gates(tmp_path)
    circuit = json.loads((tmp_path / "circuit.json").read_text())
    assert {node["name"] for node in circuit["nodes"]} == {f"{BITS}/0", f"{BITS}/1", f"{LAYERS[0]}/3", f"{LAYERS[1]}/4", f"{LAYERS[2]}/5"}
    assert {f"{edge['from']} -> {edge['to']}" for edge in circuit["edges"]} == PATH
    assert circuit["saes"][0] == {"input": "sae", "site": BITS, "latents": 8, "sha256": "digest"}
    assert [each["name"] for each in circuit["errors"]] == [f"{site}/error" for site in (BITS, *LAYERS)]
    assert (circuit["schema"], circuit["ablation"], circuit["threshold"]) == ("mlinterp.feature_circuit.v1", "resample", 0.01)
    assert result.files == ["circuit.json"]
    assert {f"{row['from']} -> {row['to']}" for row in result.tables["edges"].rows if row["in_circuit"]} == PATH
    assert result.mode == "interventional"


def test_the_circuit_is_judged_with_and_without_errors_beside_random_latents(tmp_path):
    result = run_gates(tmp_path)
    # The dictionaries leave nothing unexplained, so that errors carry nothing.
    assert [result.metrics[f"{name}/faithfulness"] for name in ("circuit", "circuit_without_errors", "all_latents")] == [1.0, 1.0, 1.0]
    assert result.metrics["errors/faithfulness"] == 0.0
    assert (result.metrics["circuit/completeness"], result.metrics["circuit/n_latents"]) == (1.0, 5)
    own, null, adjusted = (result.estimates[f"circuit/{name}faithfulness"] for name in ("", "null_", "adjusted_"))
    assert adjusted.value == pytest.approx(own.value - null.value)
    assert own.null == "as many random latents at each hook point (5 draws)"
    assert own.n == 3
    assert (own.low, own.high) == (1.0, 1.0)


def test_every_node_has_its_score_a_null_and_what_ablating_it_does(tmp_path):
    rows = {row["node"]: row for row in run_gates(tmp_path, exact=16).tables["nodes"].rows}
    assert rows[f"{LAYERS[2]}/5"]["exact"] == rows[f"{BITS}/0"]["exact"] == 1.0
    # Half of the way both inputs of the AND move together before it opens.
    assert (rows[f"{LAYERS[2]}/5"]["effect"], rows[f"{BITS}/0"]["effect"]) == (1.0, 0.5)
    assert rows[f"{LAYERS[3]}/6"] | {"exact": 0.0, "score": 0.0, "in_circuit": False} == rows[f"{LAYERS[3]}/6"]
    assert rows[f"{BITS}/error"]["kind"] == "error"
    assert rows[f"{BITS}/error"]["exact"] == 0.0
    assert all(row["adjusted"] == pytest.approx(row["effect"] - row["null"]) for row in rows.values())
    assert len(rows) == 3 + 4 + 5  # the bits, what each gate writes, and the errors: silent latents have no row


def test_edges_have_weights_of_their_own_and_the_largest_are_patched(tmp_path):
    rows = {(row["from"], row["to"]): row for row in run_gates(tmp_path, exact=16).tables["edges"].rows}
    one = rows[f"{BITS}/0", f"{LAYERS[0]}/3"]
    # A bit is half of the way of both bits, and all that its own gate sees.
    assert (one["weight"], one["held_out"], one["exact"]) == pytest.approx((1.0, 1.0, 1.0))
    assert rows[f"{LAYERS[2]}/5", "metric"]["exact"] == 1.0
    assert rows[f"{BITS}/0", f"{LAYERS[1]}/4"]["weight"] == 0.0


def test_what_single_ablations_hide_is_warned_of(tmp_path):
    for method in ("gradient", "integrated"):
        result = run_gates(tmp_path / method, OR, pairs=bits((7, 0), (3, 0), (7, 4), (3, 4)), method=method, exact=16)
        (warning,) = [text for text in result.diagnostics.warnings if "stand in for each other" in text]
        assert warning.startswith(f"the 3 latents of {BITS} ablated together carry 1 of the gap, one by one they add up to 0 (3 measured")
    assert not [text for text in run_gates(tmp_path / "and").diagnostics.warnings if "stand in for each other" in text]


def test_where_most_is_estimated_latents_may_stand_in_for_each_other(tmp_path):
    result = run_gates(tmp_path, OR, pairs=bits((7, 0), (3, 0), (7, 4), (3, 4)), method="gradient", exact=2)
    (warning,) = [text for text in result.diagnostics.warnings if text.startswith(f"the 3 latents of {BITS}")]
    assert "measured, the rest estimated): latents may stand in for each other (an OR)" in warning


def test_held_out_pairs_that_also_choose_are_warned_of(tmp_path):
    said = run_gates(tmp_path / "again", pairs=bits((7, 0), (7, 0))).diagnostics.warnings
    assert "1 of 1 held-out pairs are among those that choose the circuit, word for word: they judge it by nothing new" in said
    new = run_gates(tmp_path / "new", pairs=bits((7, 0), (3, 4))).diagnostics.warnings
    assert not [text for text in new if "word for word" in text]


def test_hook_points_that_most_of_the_behaviour_passes_by_are_warned_of(tmp_path):
    nearly_all, little = (weighted({0: 0.9}), 5), (weighted({1: 0.1}), 5)
    for at, n_said in ((1, 1), (0, 0)):
        folder = tmp_path / str(at)
        folder.mkdir()
        result = run(gates(nearly_all, little, out=5), folder, saved(folder, dictionary(LAYERS[at], torch.eye(8))), pairs=PAIRS)
        assert result.metrics["circuit/faithfulness"] == 1.0
        assert result.metrics["baseline/clean"] - result.metrics["baseline/corrupted"] == pytest.approx(1.0)
        said = [text for text in result.diagnostics.warnings if "passes these hook points by" in text]
        assert len(said) == n_said
    assert result.estimates["baseline/corrupted"].mode == "observational"


def test_hook_points_that_the_behaviour_never_passes_have_no_circuit(tmp_path):
    inputs = saved(tmp_path, dictionary(LAYERS[3], torch.eye(8)))
    with pytest.raises(ExperimentError, match="the clean run and the one with every node ablated have the same mean logit_diff"):
        run(gates(*AND, out=5), tmp_path, inputs, pairs=PAIRS)


def test_a_dictionary_that_explains_nothing_leaves_it_all_to_its_error(tmp_path):
    inputs = saved(tmp_path, dictionary(LAYERS[2], torch.eye(8)[[1, 2, 6]], lift=1.0), dictionary(LAYERS[0], torch.eye(8)[[3]]))
    result = run(gates(*AND, out=5), tmp_path, inputs, pairs=PAIRS)
    rows = {row["node"]: row for row in result.tables["nodes"].rows}
    assert rows[f"{LAYERS[2]}/error"]["exact"] == 1.0
    assert (result.metrics["circuit/faithfulness"], result.metrics["circuit_without_errors/faithfulness"]) == (1.0, 0.0)
    assert any("lies in what the SAEs leave unexplained" in text for text in result.diagnostics.warnings)


def test_the_curve_ends_at_all_latents_which_with_the_errors_are_exactly_faithful(gpt2, tmp_path):
    rows = run_gpt2(gpt2, tmp_path).tables["curve"].rows
    last = max(row["n_latents"] for row in rows)
    kept, ablated = (row for row in rows if row["n_latents"] == last)
    assert (kept["errors"], kept["faithfulness"], kept["adjusted_faithfulness"]) == ("kept", pytest.approx(1.0), pytest.approx(0.0))
    assert ablated["errors"] == "ablated"
    assert [row["n_latents"] for row in rows[:6]] == [1, 1, 2, 2, 5, 5]


def test_top_takes_so_many_latents(gpt2, tmp_path):
    result = run_gpt2(gpt2, tmp_path, top=3, sizes=[2])
    assert result.metrics["circuit/n_latents"] == 3
    assert [row["n_latents"] for row in result.tables["curve"].rows] == [2, 2]
    assert sum(row["in_circuit"] is True for row in result.tables["nodes"].rows) == 3
    tested = [row["p_adj"] is not None for row in result.tables["nodes"].rows]
    assert tested == [row["in_circuit"] is not False for row in result.tables["nodes"].rows]
    tokens = [row["token"] for row in result.tables["nodes"].rows if row["in_circuit"]]
    assert all(token is None or isinstance(token, str) for token in tokens)


def test_without_edges_none_is_measured(gpt2, tmp_path):
    result = run_gpt2(gpt2, tmp_path, edges=False)
    assert "edges" not in result.tables
    assert [figure.name for figure in result.figures] == ["largest_nodes", "faithfulness", "completeness"]
    assert json.loads((tmp_path / "circuit.json").read_text())["edges"] == []


def test_an_empty_circuit_says_so_and_one_held_out_pair_has_no_interval(tmp_path):
    # One dictionary explains nothing of what matters, the other reads what does not matter.
    inputs = saved(tmp_path, dictionary(LAYERS[2], torch.eye(8)[[1]], lift=1.0), dictionary(LAYERS[3], torch.eye(8)[[6]]))
    result = run(gates(*AND, out=5), tmp_path, inputs, pairs=PAIRS[:1] * 2)
    assert result.metrics["circuit/n_latents"] == 0
    assert "the circuit is empty: no latent carries 0.01 of the gap" in result.diagnostics.warnings
    assert "1 held-out pair: nothing has an interval or a p value" in result.diagnostics.warnings
    assert result.estimates["circuit/faithfulness"].low is None
    assert all(draw(figure, result.tables[figure.table]) for figure in result.figures)


@pytest.mark.parametrize("ablation", ["resample", "zero", "mean"])
def test_the_ablation_is_said_in_the_result(tmp_path, ablation):
    result = run_gates(tmp_path, ablation=ablation)
    words = {"resample": "its value in the corrupted run", "zero": "zero (errors too", "mean": "its mean over all tokens"}[ablation]
    assert all(words in str(result.tables[name].description) for name in ("nodes", "curve"))
    assert {row["ablation"] for row in result.tables["curve"].rows} == {ablation}
    assert json.loads((tmp_path / "circuit.json").read_text())["ablation"] == ablation


def test_a_run_is_a_function_of_its_seed(gpt2, tmp_path):
    first, again, other = (run_gpt2(gpt2, tmp_path / name, seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert first == again
    assert (tmp_path / "a" / "circuit.json").read_bytes() == (tmp_path / "b" / "circuit.json").read_bytes()
    assert first.tables["curve"].rows != other.tables["curve"].rows


def test_scores_say_how_well_they_agree_with_ablations_and_how_complete_they_are(gpt2, tmp_path):
    coarse, fine = (run_gpt2(gpt2, tmp_path / str(steps), ig_steps=steps, edges=False).metrics for steps in (2, 50))
    assert fine["nodes/largest_completeness_error"] < 0.02
    assert fine["nodes/largest_completeness_error"] < coarse["nodes/largest_completeness_error"]
    assert -1 <= fine["nodes/correlation_with_exact"] <= 1


@pytest.mark.parametrize("method", ["gradient", "integrated"])
def test_every_long_part_of_the_work_has_a_bar_that_ends_where_it_said(gpt2, tmp_path, method):
    pairs = [pair.model_dump() for pair in random_pairs(gpt2.vocab, (6, 7, 6))]
    variables = {"pairs": pairs, "method": method, "ig_steps": 3, "n_bootstrap": 100, "exact": 2, "sizes": [3], "batch_size": 2}
    spec, bars = Spec(type="feature_circuit", subject="toy", variables=variables), Bars()
    given = saved(tmp_path, sae_at("blocks.0.resid_post"), sae_at("blocks.1.mlp_out", seed=1))
    inputs = {role: ResolvedInput("latest", path, "digest") for role, path in given.items()}
    experiment = catalog.find("feature_circuit")
    experiment.run(Context(spec, catalog.typed_variables(spec), tmp_path, lambda: gpt2, inputs, bars))
    assert list(bars.asked) == ["slopes", "circuits and random ones", "edges", "exact edges"]
    assert dict(bars.told) == pytest.approx(bars.asked)
    assert bars.asked["slopes"] == 3 * (1 if method == "gradient" else 3 * 2)


def test_every_figure_can_be_drawn(gpt2, tmp_path):
    result = run_gpt2(gpt2, tmp_path)
    assert [figure.name for figure in result.figures] == ["circuit", "largest_nodes", "faithfulness", "completeness"]
    for figure in result.figures:
        assert draw(figure, result.tables[figure.table])


# ----------------------------------------------------------------------------------------------------- what it refuses
def refused(inputs: Mapping[str, str] | None = None, **variables: Any) -> str:
    given = {"sae": "latest"} if inputs is None else dict(inputs)
    spec = Spec(type="feature_circuit", subject="toy", inputs=given, variables={"pairs": PAIRS, **variables})
    try:
        check_roles(spec, catalog.find("feature_circuit"))
    except SpecError as error:
        return str(error)
    return "nothing is refused"


def test_what_cannot_be_asked_is_refused_before_anything_runs():
    assert "pairs must be at least 2" in refused(pairs=PAIRS[:1])
    assert "did you mean 'logit_diff'" in refused(metric="logit_dif")
    assert "did you mean 'integrated'" in refused(method="integratd")
    assert "must name each once" in refused(sizes=[3, 3])
    assert "threshold and top both say" in refused(threshold=0.1, top=3)
    assert "the gradient of kl is zero in the clean run" in refused(method="gradient", metric="kl")
    assert refused(method="integrated", metric="kl") == "nothing is refused"
    assert refused(pairs=[{"clean": [7], "corrupted": [0]}] * 2).startswith("variables.pairs: logit_diff needs the answer token")


def test_up_to_eight_saes_are_named_by_letters_and_another_name_is_refused_with_the_nearest():
    assert refused({"sae": "latest", **{f"sae_{letter}": "latest" for letter in "bcdefgh"}}) == "nothing is refused"
    assert "unknown input of feature_circuit 'sae_2'" in refused({"sae": "latest", "sae_2": "latest"})
    assert "did you mean 'sae" in refused({"sae": "latest", "sae_2": "latest"})
    assert refused({}).startswith("inputs.sae: feature_circuit needs a sae")


def test_two_saes_of_one_hook_point_are_refused_by_name(gpt2, tmp_path):
    inputs = saved(tmp_path, sae_at("blocks.0.resid_post"), sae_at("blocks.0.resid_post", seed=1))
    with pytest.raises(SpecError, match=r"inputs\.sae_b: reads blocks\.0\.resid_post, and so does inputs\.sae; one SAE for each"):
        run(gpt2, tmp_path, inputs, pairs=PAIRS)


def test_an_sae_of_other_weights_is_refused_by_name(gpt2, tmp_path):
    inputs = saved(tmp_path, sae_at("blocks.0.resid_post"), sae_at("blocks.1.mlp_out"))
    (inputs["sae_b"] / "sae_metrics.json").write_text(json.dumps({"subject_sha256": "a" * 64}))
    with pytest.raises(SpecError, match=r"inputs\.sae_b: the SAE was fitted on subject aaaaaaaaaaaa"):
        run(gpt2, tmp_path, inputs, pairs=PAIRS)


@pytest.mark.parametrize(
    ("sae", "says"),
    [
        (sae_at("blocks.0.resid_pots"), r"hook point 'blocks\.0\.resid_pots' is not in 'toy'.*did you mean"),
        (sae_at(""), r"inputs\.sae: does not say which hook point it reads"),
        (sae_at("blocks.0.resid_post", 8), r"inputs\.sae: reads 8 numbers, and blocks\.0\.resid_post of 'toy' holds 16"),
        (sae_at("blocks.0.resid_mid", kind="transcoder", d_out=16), r"inputs\.sae: is a transcoder; an SAE, which writes what it reads"),
        (sae_at("", kind="crosscoder", sites=["a", "b"]), r"inputs\.sae: is a crosscoder"),
    ],
    ids=["unknown site", "no site", "other width", "transcoder", "crosscoder"],
)
def test_an_sae_that_does_not_fit_is_refused_by_name(gpt2, tmp_path, sae, says):
    with pytest.raises(SpecError, match=says):
        run(gpt2, tmp_path, saved(tmp_path, sae), pairs=PAIRS)


def test_prompts_of_unequal_length_are_refused_with_both_lengths(gpt2, tmp_path):
    uneven = [{**pair, "clean": [3, 4]} for pair in PAIRS]
    with pytest.raises(SpecError, match=r"pairs\[0\]: the prompts have 2 and 1 tokens; prompts of as many tokens"):
        run(gpt2, tmp_path, saved(tmp_path, sae_at("blocks.0.resid_post")), pairs=uneven)


def test_prompts_between_which_nothing_changes_have_no_circuit(tmp_path):
    with pytest.raises(ExperimentError, match="there is nothing that a patch could carry"):
        run_gates(tmp_path, pairs=bits((4, 0), (4, 0)))
