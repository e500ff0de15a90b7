"""The type `path_patching`: the circuit that is known, what it refuses, and what stands beside every number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from induction import CLEAN, CORRUPTED, induction
from prompts import CAUSAL, random_pairs, transformer

from mlinterp.errors import SpecError
from mlinterp.experiments.base import Context
from mlinterp.experiments.catalog import typed_variables
from mlinterp.experiments.localisation.path_patching import EXPERIMENT
from mlinterp.reports.plots import draw_all
from mlinterp.result import ExperimentResult
from mlinterp.spec import Spec
from mlinterp.subjects.base import Subject
from mlinterp.subjects.huggingface import HuggingFaceSubject


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> HuggingFaceSubject:
    return transformer(tmp_path_factory.mktemp("project"), CAUSAL["llama"])


@pytest.fixture(scope="module")
def pairs(subject: HuggingFaceSubject) -> list[dict[str, Any]]:
    return [pair.model_dump(exclude_none=True) for pair in random_pairs(subject.vocab, (7,) * 6)]


def run(subject: Subject, **variables: Any) -> ExperimentResult:
    """Check and run the experiment as a spec would."""
    spec = Spec.model_validate({"type": "path_patching", "subject": "toy", "variables": {"n_bootstrap": 200, **variables}})
    typed = typed_variables(spec)
    assert EXPERIMENT.check is not None
    EXPERIMENT.check(spec, typed, ())
    return EXPERIMENT.run(Context(spec, typed, Path(), lambda: subject))


def test_the_key_path_of_an_induction_head_is_told_from_its_query_and_value_paths(tmp_path):
    """Several pairs of prompts that differ in what stands around the two tokens that change places."""
    spare = [(5, 6), (6, 5), (4, 7), (7, 4)]
    pairs = []
    for one, other in spare:
        swap = {5: one, 6: other}
        texts = {name: [swap.get(token, token) for token in tokens] for name, tokens in (("clean", CLEAN), ("corrupted", CORRUPTED))}
        pairs.append({**texts, "answer": 1, "wrong": 3})
    heads = [f"blocks.1.head.0.{letter}" for letter in "qkv"]
    result = run(
        induction(tmp_path), pairs=pairs, senders=["blocks.0.head.0", "blocks.0.head.1", "embedding"], receivers=[*heads, "logits"]
    )
    effects = {(row["sender"], row["receiver"]): row for row in result.tables["paths"].rows}
    assert effects["L0.h0", "L1.h0.k"]["effect"] == pytest.approx(1.0, abs=1e-6)
    assert effects["L0.h0", "L1.h0.k"]["effect_low"] == pytest.approx(1.0, abs=1e-6)
    others = [row["effect"] for path, row in effects.items() if path != ("L0.h0", "L1.h0.k")]
    assert len(others) == 11
    assert others == pytest.approx([0.0] * 11, abs=1e-6)
    assert result.metrics["effect/L0.h0_to_L1.h0.k"] == pytest.approx(1.0, abs=1e-6)
    assert result.tables["largest"].rows[0]["path"] == "blocks.0.head.0 → blocks.1.head.0.k"


def test_every_path_stands_beside_its_nulls_with_an_interval_over_pairs(subject, pairs):
    result = run(subject, pairs=pairs, senders=["embedding", ["blocks.0.head.0", "blocks.0.mlp"]], receivers=["logits", "blocks.1.mlp"])
    assert result.mode == "interventional"
    rows = result.tables["paths"].rows
    assert [(row["sender"], row["receiver"]) for row in rows] == [
        ("embed", "logits"),
        ("embed", "L1.mlp"),
        ("L0.h0 + L0.mlp", "logits"),
        ("L0.h0 + L0.mlp", "L1.mlp"),
    ]
    for row in rows:
        assert row["n"] == 6
        assert row["adjusted"] == pytest.approx(row["effect"] - row["null"])
        assert isinstance(row["untrained"], float)
        assert row["p_adj"] >= row["p"]
    top = result.estimates["top/adjusted_effect"]
    assert top.unit == "pair"
    assert top.null == "norm-matched random directions (3 draws)"
    assert set(draw_all(result)) == {"adjusted_by_receiver", "effect_by_receiver", "largest"}
    assert result.tables["paths"].description is not None
    assert "Interventional" in result.tables["paths"].description


def test_paths_that_begin_at_each_position_are_shown_by_position(subject, pairs):
    result = run(subject, pairs=pairs, senders=["blocks.0.mlp"], receivers=["blocks.2.head.1.v"], positions="each", untrained=False)
    rows = result.tables["paths"].rows
    assert len(rows) == 7
    assert [row["effect"] for row in rows[:2]] == [0.0, 0.0]
    assert {row["path"] for row in rows} == {"blocks.0.mlp → blocks.2.head.1.v"}
    assert {"adjusted_by_position", "effect_by_position"} <= set(draw_all(result))


def test_all_senders_that_a_receiver_can_read_are_tried_where_none_is_named(subject, pairs):
    result = run(subject, pairs=pairs[:2], receivers=["blocks.1.head.2.q"], untrained=False, controls=2)
    assert [row["sender"] for row in result.tables["paths"].rows] == ["embed", *(f"L0.h{head}" for head in range(4)), "L0.mlp"]


def test_the_result_is_a_pure_function_of_the_seed(subject, pairs):
    asked = {"pairs": pairs[:3], "senders": ["blocks.0.mlp"], "receivers": ["logits"], "controls": 2}
    one, again = run(subject, **asked), run(subject, **asked, batch_size=1)
    for name, value in one.metrics.items():
        assert again.metrics[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
    assert np.isfinite(list(one.metrics.values())).all()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"senders": ["nonsense"]}, "variables.senders: unknown sender 'nonsense'; allowed: embedding, blocks.N.head.H or blocks.N.mlp"),
        ({"receivers": ["blocks.1.head.0"]}, "did you mean 'blocks.1.head.0.[qkv]'"),
        (
            {"senders": ["blocks.0.head.9"]},
            "variables.senders: unknown sender 'blocks.0.head.9'; allowed: .*did you mean 'blocks.0.head.[0-3]'",
        ),
        ({"receivers": [["logits", "blocks.7.mlp"]]}, "unknown receiver 'blocks.7.mlp'; .*did you mean 'blocks.[0-2].mlp'"),
        ({"senders": ["blocks.2.mlp"], "receivers": ["blocks.1.mlp"]}, "no receiver reads what blocks.2.mlp writes"),
        ({"senders": ["blocks.1.mlp"], "receivers": ["logits", "blocks.1.mlp"]}, "blocks.1.mlp reads nothing that a sender writes"),
        ({"metric": "logit_dif"}, "unknown metric 'logit_dif'; .*did you mean 'logit_diff'"),
        ({"senders": ["embedding", "embedding"]}, "senders must name each once"),
    ],
)
def test_what_cannot_be_patched_is_refused_by_name(subject, pairs, variables, message):
    with pytest.raises(SpecError, match=message):
        run(subject, pairs=pairs[:1], **variables)
