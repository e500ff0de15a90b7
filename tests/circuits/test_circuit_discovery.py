"""The experiment type: what it finds in hand-built networks, what it says of it, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bars import Bars
from gates import Gate, both, either, gates, weighted
from prompts import BERT, CAUSAL, random_pairs, transformer
from watched import watch

from mlinterp.errors import ExperimentError, SpecError
from mlinterp.experiments import catalog
from mlinterp.experiments.base import Context, Experiment
from mlinterp.reports.plots import draw
from mlinterp.result import ExperimentResult
from mlinterp.spec import Spec
from mlinterp.subjects.base import Subject

AND: tuple[Gate, ...] = ((weighted({0: 1.0}), 3), (weighted({1: 1.0}), 4), (both(3, 4), 5))
OR: tuple[Gate, ...] = (*AND[:2], (either(3, 4), 5))
PATH = {"embed -> L0.mlp", "embed -> L1.mlp", "L0.mlp -> L2.mlp", "L1.mlp -> L2.mlp", "L2.mlp -> logits"}


def bits(*prompts: tuple[int, int]) -> list[dict[str, Any]]:
    return [{"clean": [clean], "corrupted": [corrupted], "answer": 1, "wrong": 0} for clean, corrupted in prompts]


PAIRS = bits((7, 0), (3, 4), (7, 4), (3, 0), (7, 0), (3, 0))


def run(subject: Subject, folder: Path, seed: int = 0, **variables: Any) -> ExperimentResult:
    folder.mkdir(parents=True, exist_ok=True)
    return watch("circuit_discovery", subject, folder, {"pairs": PAIRS, "n_bootstrap": 200, **variables}, seed=seed)


def edges(folder: Path) -> set[str]:
    circuit = json.loads((folder / "circuit.json").read_text())
    return {f"{edge['from']} -> {edge['to']}" for edge in circuit["edges"]}


def refused(**variables: Any) -> str:
    spec = Spec(type="circuit_discovery", subject="toy", variables={"pairs": PAIRS, **variables})
    experiment: Experiment = catalog.find("circuit_discovery")
    assert experiment.check is not None
    try:
        experiment.check(spec, catalog.typed_variables(spec), ())
    except SpecError as error:
        return str(error)
    return "nothing is refused"


@pytest.mark.parametrize("method", ["acdc", "eap_ig"])
def test_the_known_circuit_is_found_and_written_down(tmp_path, method):
    result = run(gates(*AND, out=5), tmp_path, method=method)
    assert edges(tmp_path) == PATH
    circuit = json.loads((tmp_path / "circuit.json").read_text())
    assert {name: circuit[name] for name in ("method", "ablation", "threshold", "faithfulness")} == {
        "method": method,
        "ablation": "resample",
        "threshold": 0.01,
        "faithfulness": 1.0,
    }
    assert circuit["nodes"] == ["embed", "L0.mlp", "L1.mlp", "L2.mlp"]
    assert result.files == ["circuit.json"]
    assert {row["edge"] for row in result.tables["edges"].rows if row["in_circuit"]} == PATH
    assert {row["exact"] for row in result.tables["edges"].rows if row["edge"] in PATH} == {1.0}
    assert {row["exact"] for row in result.tables["edges"].rows if row["edge"] not in PATH} == {0.0}
    metrics = result.metrics
    assert (metrics["circuit/faithfulness"], metrics["circuit/completeness"], metrics["circuit/minimality"]) == (1.0, 1.0, 1.0)
    assert metrics["circuit/n_edges"] == 5
    assert result.mode == "interventional"


def test_what_a_node_does_stands_beside_as_many_random_edges(tmp_path):
    result = run(gates(*AND, (weighted({2: 1.0}), 6), out=5), tmp_path, method="acdc")
    nodes = {row["node"]: row for row in result.tables["nodes"].rows}
    assert {name: row["effect"] for name, row in nodes.items()} == {"embed": 1, "L0.mlp": 1, "L1.mlp": 1, "L2.mlp": 1, "L3.mlp": 0}
    assert all(row["adjusted"] == pytest.approx(row["effect"] - row["null"]) for row in nodes.values())
    assert [row["node"] for row in result.tables["placed_nodes"].rows] == ["L0.mlp", "L1.mlp", "L2.mlp", "L3.mlp"]


def test_the_headline_is_what_random_circuits_of_the_size_do_not_restore(tmp_path):
    result = run(gates(*AND, out=5), tmp_path, method="acdc")
    own, null, adjusted = (result.estimates[f"circuit/{name}faithfulness"] for name in ("", "null_", "adjusted_"))
    assert adjusted.value == pytest.approx(own.value - null.value)
    assert own.null_value == null.value < 0.5
    assert own.null == "random circuits of as many edges (5 draws)"
    assert adjusted.low is not None
    assert adjusted.low > 0
    assert own.n == 3


def test_the_pairs_that_judge_did_not_choose(tmp_path):
    # Only the first bit matters to half of the pairs' prompts, only the second to the others.
    result = run(gates(*AND, out=5), tmp_path, held_out=0.34)
    assert (result.metrics["pairs/choosing"], result.metrics["pairs/held_out"]) == (4, 2)
    assert {estimate.n for name, estimate in result.estimates.items() if name != "baseline"} == {2}


def test_the_curve_ends_at_the_whole_graph_which_is_exactly_faithful(tmp_path):
    result = run(gates(*AND, out=5), tmp_path, sizes=[10, 1, 500])
    rows = result.tables["curve"].rows
    assert [row["n_edges"] for row in rows] == [1, 10]
    assert (rows[0]["faithfulness"], rows[1]["faithfulness"], rows[1]["completeness"]) == (0.0, 1.0, 1.0)
    assert rows[1]["adjusted_faithfulness"] == 0.0


def test_edges_that_hide_each_other_are_warned_of(tmp_path):
    result = run(gates(*OR, out=5), tmp_path / "or", method="acdc", pairs=bits((7, 0), (3, 0), (7, 4), (3, 4)))
    (warning,) = [text for text in result.diagnostics.warnings if "stand in for each other" in text]
    assert warning.startswith("the 3 edges into L2.mlp cut together carry 1 of the gap, one by one they add up to 0 (largest 0)")
    result = run(gates(*AND, out=5), tmp_path / "and", method="acdc")
    assert not [text for text in result.diagnostics.warnings if "stand in for each other" in text]


@pytest.mark.parametrize("ablation", ["resample", "zero", "mean"])
def test_the_ablation_is_said_in_the_result(tmp_path, ablation):
    result = run(gates(*AND, out=5), tmp_path, ablation=ablation, method="acdc")
    words = {"resample": "the corrupted run's write", "zero": "nothing", "mean": "the mean write"}[ablation]
    assert all(words in str(result.tables[name].description) for name in ("edges", "nodes", "curve"))
    assert json.loads((tmp_path / "circuit.json").read_text())["ablation"] == ablation
    assert {row["ablation"] for row in result.tables["curve"].rows} == {ablation}
    assert result.tables["curve"].rows[-1]["faithfulness"] == 1.0


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return transformer(tmp_path_factory.mktemp("project"), {**CAUSAL["gpt2"], "n_layer": 2})


def text_pairs(subject: Subject, n: int = 4) -> list[dict[str, Any]]:
    return [pair.model_dump() for pair in random_pairs(subject.vocab, (6,) * n)]


def test_a_run_is_a_function_of_its_seed(subject, tmp_path):
    given = {"pairs": text_pairs(subject), "ig_steps": 3}
    first, again, other = (run(subject, tmp_path / name, seed, **given) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert first == again
    assert (tmp_path / "a" / "circuit.json").read_bytes() == (tmp_path / "b" / "circuit.json").read_bytes()
    assert first.tables["curve"].rows != other.tables["curve"].rows


def test_integrated_gradients_say_how_complete_they_are_and_how_well_they_agree_with_cuts(subject, tmp_path):
    coarse, fine = (run(subject, tmp_path / str(steps), pairs=text_pairs(subject), ig_steps=steps) for steps in (2, 200))
    assert fine.metrics["scores/completeness"] == pytest.approx(1, abs=0.03)
    assert any("raise ig_steps above 2" in text for text in coarse.diagnostics.warnings)
    assert -1 <= fine.metrics["scores/correlation_with_exact"] <= 1
    assert fine.metrics["scores/largest_miss"] > 0


@pytest.mark.parametrize(
    ("method", "searched"),
    [
        ("eap_ig", ["gradients"]),
        ("acdc", ["edges"]),
    ],
)
def test_every_long_part_of_the_work_has_a_bar_that_ends_where_it_said(tmp_path, method, searched):
    spec = Spec(type="circuit_discovery", subject="gates", variables={"pairs": PAIRS, "method": method, "batch_size": 4})
    bars, experiment = Bars(), catalog.find("circuit_discovery")
    experiment.run(Context(spec, catalog.typed_variables(spec), tmp_path, lambda: gates(*OR, out=5), reporter=bars))
    assert list(bars.asked) == [*searched, "circuits of each size", "circuits and random ones", "cuts", "edges that may hide each other"]
    assert dict(bars.told) == pytest.approx(bars.asked)


def test_held_out_pairs_that_also_choose_are_warned_of(tmp_path):
    said = run(gates(*AND, out=5), tmp_path / "again", pairs=bits((7, 0), (7, 0))).diagnostics.warnings
    assert "1 of 1 held-out pairs are among those that choose the circuit, word for word: they judge it by nothing new" in said
    new = run(gates(*AND, out=5), tmp_path / "new", pairs=bits((7, 0), (3, 4))).diagnostics.warnings
    assert not [text for text in new if "word for word" in text]


def test_a_gap_that_may_be_none_is_warned_of(subject, tmp_path):
    said = run(subject, tmp_path / "random", pairs=text_pairs(subject), ig_steps=2).diagnostics.warnings
    (warning,) = [text for text in said if "shares of it mean little" in text]
    assert warning.startswith("the mean gap in logit_diff between the clean run and the one with everything cut is ")
    plain = run(gates(*AND, out=5), tmp_path / "and").diagnostics.warnings
    assert not [text for text in plain if "shares of it mean little" in text]


def test_a_behaviour_that_no_edge_carries_has_no_circuit(tmp_path):
    with pytest.raises(ExperimentError, match="the clean run and the one with every edge cut have the same mean logit_diff"):
        run(gates(*AND, out=6), tmp_path, ablation="zero")


def test_the_drawn_circuit_is_the_found_one_node_by_node_in_the_order_of_a_forward_pass(subject, tmp_path):
    result = run(subject, tmp_path / "llama", pairs=text_pairs(subject), ig_steps=3)
    drawn = {(row["from"], row["to"]): row["score"] for row in result.tables["drawn_edges"].rows}
    listed = [edge for edge in result.tables["edges"].rows if edge["in_circuit"]]
    assert 0 < len(drawn) <= 30
    assert max(map(abs, drawn.values())) == pytest.approx(max(abs(edge["score"]) for edge in listed))
    rows = run(gates(*AND, out=5), tmp_path / "and").tables["drawn_edges"].rows
    assert [(row["from"], row["to"]) for row in rows] == [
        ("embed", "mlp 0"),
        ("embed", "mlp 1"),
        ("mlp 0", "mlp 2"),
        ("mlp 1", "mlp 2"),
        ("mlp 2", "logits"),
    ]


def test_every_figure_can_be_drawn(subject, tmp_path):
    result = run(subject, tmp_path, pairs=text_pairs(subject), ig_steps=3)
    assert [figure.name for figure in result.figures] == ["circuit", "faithfulness", "completeness", "minimality", "nodes"]
    for figure in result.figures:
        assert draw(figure, result.tables[figure.table])


def test_a_gradient_that_vanishes_in_the_clean_run_is_refused_where_it_would_be_all_there_is(subject, tmp_path):
    assert "the gradient of kl is zero in the clean run" in refused(method="eap", metric="kl")
    result = run(subject, tmp_path, pairs=text_pairs(subject), method="eap_ig", metric="kl", ig_steps=4)
    assert result.metrics["circuit/n_edges"] > 0


def run_by(folder: Path, metric: str, method: str) -> ExperimentResult:
    """Run on an AND gate, judged by a project's own metric `own` of the logits x and the answer."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "m.py").write_text(f"def own(x, clean, answer, wrong):\n    return {metric}\n")
    spec = Spec(type="circuit_discovery", subject="gates", variables={"pairs": PAIRS, "metric": "m.py:own", "method": method})
    experiment = catalog.find("circuit_discovery")
    return experiment.run(Context(spec, catalog.typed_variables(spec), folder, lambda: gates(*AND, out=5), root=folder))


def test_a_metric_without_a_gradient_is_refused_where_a_gradient_is_needed_and_searched_by_acdc(tmp_path):
    step = "(x.argmax(dim=1) == answer).float()"
    for method in ("eap", "eap_ig"):
        with pytest.raises(SpecError, match=r"m\.py:own has no gradient; method: acdc, or a metric made of differentiable steps"):
            run_by(tmp_path / method, step, method)
    assert run_by(tmp_path / "acdc", step, "acdc").metrics["circuit/faithfulness"] == 1.0


def test_a_gradient_that_is_not_finite_is_refused(tmp_path):
    with pytest.raises(ExperimentError, match=r"m\.py:own has no finite gradient"):
        run_by(tmp_path, "x[:, 1] + (0 * x[:, 1]).sqrt()", "eap_ig")


def test_what_cannot_be_asked_is_refused_before_anything_runs():
    assert "pairs must be at least 2" in refused(pairs=PAIRS[:1])
    assert "did you mean 'logit_diff'" in refused(metric="logit_dif")
    assert "did you mean 'eap_ig'" in refused(method="eap_igg")
    assert "must name each once" in refused(sizes=[3, 3])
    nameless = [{"clean": [7], "corrupted": [0]}] * 2
    assert "logit_diff needs the answer token, and pair '0' has none" in refused(pairs=nameless)


def test_prompts_of_unequal_length_are_refused_with_both_lengths(subject, tmp_path):
    uneven = [{**pair, "corrupted": pair["corrupted"][:-1]} for pair in text_pairs(subject)]
    with pytest.raises(SpecError, match=r"the prompts have 6 and 5 tokens; prompts of as many tokens"):
        run(subject, tmp_path, pairs=uneven)


def test_prompts_between_which_nothing_changes_have_no_circuit(tmp_path):
    with pytest.raises(ExperimentError, match="there is nothing that a patch could carry"):
        run(gates(*AND, out=5), tmp_path, pairs=bits((4, 0), (4, 0)))


def test_a_model_without_a_graph_is_refused_by_name(tmp_path):
    bert = transformer(tmp_path, BERT)
    with pytest.raises(SpecError, match=r"'toy' \(bert\) is not known to have a residual stream"):
        run(bert, tmp_path / "run", pairs=text_pairs(bert), metric="l2", method="acdc")
