"""Head detectors: exactly 1 and 0 on heads written by hand, loops over positions elsewhere, and nothing changed afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import TinySubject
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from watched import ARCHITECTURES, language_model, watch, write_texts

from mlinterp.errors import SpecError
from mlinterp.readouts.attention_patterns import attention_of, shuffled_weights, sliding_windows
from mlinterp.readouts.head_scores import KINDS, draw, score
from mlinterp.result import ExperimentResult
from mlinterp.subjects.base import Batch, Examples
from mlinterp.subjects.hooked import HookedSubject

FEW = {"n_sequences": 4, "length": 6}
VOCAB, PERIOD = 12, 6
SURE = 200.0
"""A score beside which every other key's weight is exactly zero in float32."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("project"))


class Head(nn.Module):
    """Attends by stream^T qk stream, causally, and copies stream @ ov."""

    def __init__(self, qk: Tensor, ov: Tensor) -> None:
        super().__init__()
        self.qk, self.ov, self.pattern = nn.Parameter(qk), nn.Parameter(ov), nn.Identity()

    def forward(self, stream: Tensor) -> Tensor:
        scores = stream @ self.qk @ stream.transpose(1, 2)
        future = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
        mixed: Tensor = self.pattern(scores.masked_fill(future, -torch.inf).softmax(dim=-1)) @ (stream @ self.ov)
        return mixed


class Written(nn.Module):
    """Two layers of heads by hand. The stream holds the token, the position, and the token before, each one-hot."""

    def __init__(self) -> None:
        super().__init__()
        positions = 2 * PERIOD
        self.token, self.position, self.before = (slice(0, VOCAB), slice(VOCAB, VOCAB + positions), slice(-VOCAB, None))
        self.d = 2 * VOCAB + positions

        def matrix(query: slice, key: slice, values: Tensor) -> Tensor:
            whole = torch.zeros(self.d, self.d)
            whole[query, key] = values
            return SURE * whole

        same_token, nothing = matrix(self.token, self.token, torch.eye(VOCAB)), torch.zeros(self.d, self.d)
        same_position = matrix(self.position, self.position, torch.eye(positions))
        copy = torch.zeros(self.d, self.d)
        copy[self.token, self.before] = torch.eye(VOCAB)
        first = torch.zeros(positions, positions)
        first[:, 0] = 1
        previous = Head(matrix(self.position, self.position, torch.eye(positions).roll(-1, dims=1).tril()), copy)
        current, to_first = Head(same_position, nothing), Head(matrix(self.position, self.position, first), nothing)
        nowhere = matrix(self.token, slice(VOCAB, VOCAB + 1), torch.ones(VOCAB, 1))  # the first token has none before it
        induction = Head(matrix(self.token, self.before, torch.eye(VOCAB)) - nowhere, nothing)
        duplicate = Head(same_token - same_position, nothing)
        self.layers = nn.ModuleList([nn.ModuleList([previous, current]), nn.ModuleList([induction, duplicate, to_first])])

    def forward(self, tokens: Tensor) -> Tensor:
        stream = torch.zeros(*tokens.shape, self.d)
        stream[..., self.token] = torch.eye(VOCAB)[tokens]
        stream[..., self.position] = torch.eye(2 * PERIOD)[: tokens.shape[1]]
        for layer in self.layers:
            stream = stream + torch.stack([head(stream) for head in layer]).sum(dim=0)
        return stream[..., self.token]


def written() -> HookedSubject:
    inputs = torch.arange(2 * PERIOD)[None] % VOCAB
    examples = Examples(("a",), inputs, inputs, torch.ones_like(inputs, dtype=torch.bool))
    model = Written()
    sites = {
        f"blocks.{layer}.head.{head}.pattern": (f"layers.{layer}.{head}.pattern", "output")
        for layer, heads in enumerate(model.layers)
        for head in range(len(heads))
    }
    return HookedSubject("written", model, sites, examples)  # type: ignore[arg-type]


def scores(result: ExperimentResult, kind: str) -> dict[tuple[int, int], Any]:
    return {(row["layer"], row["head"]): row["score"] for row in result.tables[kind].rows}


def test_heads_written_by_hand_score_exactly_one_and_others_exactly_zero(tmp_path: Path) -> None:
    result = watch("head_detectors", written(), tmp_path, {"n_sequences": 8})
    assert scores(result, "induction") == {(0, 0): 0.0, (0, 1): 0.0, (1, 0): 1.0, (1, 1): 0.0, (1, 2): 0.0}
    duplicate = scores(result, "duplicate_token")
    assert duplicate.pop((1, 2)) == pytest.approx(1 / PERIOD)  # the first token is the copy of the first that comes again
    assert duplicate == {(0, 0): 0.0, (0, 1): 0.0, (1, 0): 0.0, (1, 1): 1.0}
    assert scores(result, "previous_token")[0, 0] == 1.0
    assert scores(result, "previous_token")[0, 1] == 0.0
    assert scores(result, "current_token")[0, 1] == 1.0
    assert scores(result, "first_token")[1, 2] == 1.0
    found = {row["kind"]: (row["layer"], row["head"]) for row in result.tables["detected"].rows}
    assert found == {
        "induction": (1, 0),
        "previous_token": (0, 0),
        "duplicate_token": (1, 1),
        "first_token": (1, 2),
        "current_token": (0, 1),
    }
    assert result.metrics["induction/largest"] == 1.0
    assert result.mode == "observational"


def test_an_induction_head_is_none_where_tokens_do_not_repeat(tmp_path: Path) -> None:
    result = watch("head_detectors", written(), tmp_path, {"n_sequences": 16})
    row = next(row for row in result.tables["induction"].rows if row["score"] == 1.0)
    assert row["unrepeated"] < 0.4
    assert row["shuffled_weights"] < 0.4
    assert row["beyond_control"] == pytest.approx(1 - row["unrepeated"])
    estimate = result.estimates["induction/blocks.1.head.0"]
    assert estimate.null == "the same head on tokens that do not repeat"
    assert (estimate.unit, estimate.n) == ("sequence", 16)


@pytest.mark.parametrize("prefix", [0, 1])
def test_scores_are_means_over_positions_by_hand(prefix: int) -> None:
    period, length = 4, 12 + prefix
    pattern = torch.rand(2, 3, length, length, generator=torch.Generator().manual_seed(0)).tril()
    for kind in KINDS:
        start = period if kind in ("induction", "duplicate_token") else 1
        by_hand = []
        for i in range(start, 12):
            key = {
                "induction": prefix + i - period + 1,
                "previous_token": prefix + i - 1,
                "duplicate_token": prefix + i - period,
                "first_token": 0,
                "current_token": prefix + i,
            }[kind]
            by_hand.append(pattern[:, :, prefix + i, key])
        torch.testing.assert_close(score(kind, pattern, prefix, period), torch.stack(by_hand).mean(dim=0))


def test_sequences_repeat_different_tokens_and_follow_from_the_seed() -> None:
    tokens = list(range(3, 40))
    found = draw(tokens, [1], 5, 7, 3, seed=0).inputs
    assert found.shape == (5, 22)
    assert bool((found[:, 0] == 1).all())
    parts = found[:, 1:].unflatten(1, (3, 7))
    assert torch.equal(parts[:, 0], parts[:, 1])
    assert torch.equal(parts[:, 0], parts[:, 2])
    assert all(len(set(row)) == 7 and min(row) >= 3 for row in parts[:, 0].tolist())
    assert torch.equal(found, draw(tokens, [1], 5, 7, 3, seed=0).inputs)
    assert not torch.equal(found, draw(tokens, [1], 5, 7, 3, seed=1).inputs)
    fresh = draw(tokens, [1], 5, 7, 3, seed=0, repeat=False).inputs[:, 1:].unflatten(1, (3, 7))
    assert torch.equal(fresh[:, 0], parts[:, 0])
    assert not torch.equal(fresh[:, 1], parts[:, 1])


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_query_head_of_every_architecture_is_scored_by_its_own_attention(root: Path, kind: str, tmp_path: Path) -> None:
    fields = {name: value for name, value in ARCHITECTURES[kind].items() if name != "sliding_window"}
    subject = language_model(root, fields)
    result = watch("head_detectors", subject, tmp_path, {**FEW, "batch_size": 4})
    assert set(scores(result, "induction")) == {(layer, head) for layer in range(3) for head in range(4)}
    tokens = [token for token in range(280) if token not in subject.special_tokens]
    inputs = draw(tokens, [], 4, 6, 2, seed=0).inputs
    subject.model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = subject.model(input_ids=inputs, output_attentions=True).attentions
    by_hand = torch.stack([attentions[1][:, 2, i, i - 5] for i in range(6, 12)]).mean()
    assert scores(result, "induction")[1, 2] == pytest.approx(float(by_hand), rel=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gpt_neox parallel"])
def test_padding_on_the_left_changes_no_pattern_of_the_real_tokens(root: Path, kind: str) -> None:
    subject = language_model(root, ARCHITECTURES[kind])
    inputs, mask = subject.examples("test", 2).inputs[:, :6], torch.ones(2, 6, dtype=torch.bool)
    padded = [torch.cat([torch.zeros(2, 3, dtype=each.dtype), each], dim=1) for each in (inputs, mask)]
    with attention_of(subject) as attention:
        alone = attention.patterns(Batch(("a", "b"), inputs, inputs, mask))
        beside = attention.patterns(Batch(("a", "b"), padded[0], padded[0], padded[1]))
    for layer, pattern in alone.items():
        torch.testing.assert_close(beside[layer][:, :, 3:, 3:], pattern, rtol=0, atol=1e-6)


def test_heads_that_have_learned_nothing_are_no_more_often_significant_than_the_level_says(root: Path, tmp_path: Path) -> None:
    """Heads of random weights differ for good from those of other random weights: a test over sequences alone finds most of them."""
    p, runs = [], 5
    for seed in range(runs):
        fields = {**ARCHITECTURES["gpt2"], "initializer_range": 0.4}
        subject = language_model(root, fields, scale=None, init_seed=seed)
        result = watch("head_detectors", subject, tmp_path, {"n_sequences": 8, "length": 6}, seed=seed)
        p += [row["p"] for kind in KINDS for row in result.tables[kind].rows]
    assert len(p) == runs * len(KINDS) * 12
    assert np.mean(np.array(p) < 0.05) < 0.07


def test_a_model_with_layers_that_are_no_attention_is_refused_rather_than_misnumbered(root: Path, tmp_path: Path) -> None:
    mixed = {"layer_types": ["conv", "full_attention", "conv"], "block_multiple_of": 8}
    subject = language_model(root, {**ARCHITECTURES["llama"], "model_type": "lfm2", **mixed})
    with pytest.raises(SpecError, match="'toy' gives the attention patterns of 1 of its 3 layers; a model whose every layer is attention"):
        watch("head_detectors", subject, tmp_path, FEW)


def test_a_token_that_begins_every_text_begins_every_sequence_and_is_the_first_token(root: Path, tmp_path: Path) -> None:
    subject = language_model(root, ARCHITECTURES["llama"])
    first = subject.texts.tokenizer.id_to_token(0)
    subject.texts.tokenizer.post_processor = TemplateProcessing(single=f"{first} $A", special_tokens=[(first, 0)])
    result = watch("head_detectors", subject, tmp_path, FEW)
    inputs = draw([token for token in range(280) if token not in subject.special_tokens], [0], 4, 6, 2, seed=0).inputs
    subject.model.set_attn_implementation("eager")
    with torch.no_grad():
        pattern = subject.model(input_ids=inputs, output_attentions=True).attentions[1][:, 2]
    by_hand = {
        "induction": torch.stack([pattern[:, i, i - 5] for i in range(7, 13)]),
        "previous_token": torch.stack([pattern[:, i, i - 1] for i in range(2, 13)]),
        "first_token": pattern[:, 2:, 0],
    }
    for kind, values in by_hand.items():
        assert scores(result, kind)[1, 2] == pytest.approx(float(values.mean()), rel=1e-5)


def test_weights_and_the_way_of_computing_attention_are_as_before_afterwards(root: Path, tmp_path: Path) -> None:
    subject = language_model(root, ARCHITECTURES["llama"])
    before, digest = subject.model.config._attn_implementation, subject.digest()
    watch("head_detectors", subject, tmp_path, FEW)
    assert subject.model.config._attn_implementation == before == "sdpa"
    assert subject.digest() == digest

    def fail() -> None:
        with attention_of(subject), shuffled_weights(subject.model, 0):
            assert subject.digest() != digest
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert subject.model.config._attn_implementation == before
    assert subject.digest() == digest


def test_layers_with_a_sliding_window_shorter_than_a_sequence_are_left_out_by_name(root: Path, tmp_path: Path) -> None:
    subject = language_model(root, ARCHITECTURES["gemma2"])
    assert sliding_windows(subject) == {0: 4, 2: 4}
    result = watch("head_detectors", subject, tmp_path, FEW)
    assert {layer for layer, _ in scores(result, "induction")} == {1}
    told = "blocks.0 (a sliding window of 4 tokens), blocks.2 (a sliding window of 4 tokens)"
    assert result.diagnostics.warnings == [f"left out, since they do not see a whole sequence: {told}"]
    whole = watch("head_detectors", language_model(root, {**ARCHITECTURES["gemma2"], "sliding_window": 12}), tmp_path, FEW)
    assert {layer for layer, _ in scores(whole, "induction")} == {0, 1, 2}
    assert whole.diagnostics.warnings == []
    with pytest.raises(SpecError, match="every layer of 'toy' attends through a sliding window shorter than 12 tokens; at most 2"):
        watch("head_detectors", language_model(root, ARCHITECTURES["gemma3_text"]), tmp_path, FEW)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"length": 17}, r"variables\.length: 17 different tokens, 2 times; 'toy' has \d+ tokens and reads 32 positions: at most 16"),
        ({"repeats": 1}, "repeats"),
        ({"threshold": 1.5}, "threshold"),
    ],
)
def test_sequences_that_do_not_fit_are_refused(root: Path, tmp_path: Path, variables: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        watch("head_detectors", language_model(root, ARCHITECTURES["gpt2"]), tmp_path, variables)


def test_a_subject_without_patterns_and_one_that_reads_both_ways_are_refused_by_name(root: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"'tiny' \(factory\) declares no attention patterns; a hook point blocks\.N\.head\.H\.pattern"):
        watch("head_detectors", TinySubject(), tmp_path, FEW)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 16}
    with pytest.raises(SpecError, match="'toy' reads both ways; a model that reads from left to right"):
        watch("head_detectors", language_model(root, {"model_type": "bert", **sizes}), tmp_path, FEW)


def test_the_largest_score_is_valid_for_all_heads_at_once(root: Path, tmp_path: Path) -> None:
    result = watch("head_detectors", language_model(root, ARCHITECTURES["gpt2"]), tmp_path, FEW)
    rows = result.tables["previous_token"].rows
    best = max(rows, key=lambda row: row["score"])
    estimate = result.estimates["previous_token/largest"]
    assert estimate.value == best["score"]
    assert estimate.low is not None
    assert estimate.low < best["low"]
    assert "widened for the largest of 12" in estimate.interval
    assert np.isfinite(list(result.metrics.values())).all()
