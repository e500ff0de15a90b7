"""Direct logit attribution: terms that sum to the logit on every architecture, heads that are heads, and a case by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import TinySubject
from torch import Tensor, nn
from watched import ARCHITECTURES, language_model, watch, write_texts

from mlinterp.errors import ExperimentError, SpecError
from mlinterp.readouts.logit_attribution import Attribution, Attributor
from mlinterp.subjects.base import Address, Batch, Examples
from mlinterp.subjects.hooked import HookedSubject
from mlinterp.subjects.huggingface import HuggingFaceSubject


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def gpt2(root: Path) -> HuggingFaceSubject:
    return language_model(root, ARCHITECTURES["gpt2"])


def ids(subject: HuggingFaceSubject, text: str) -> Tensor:
    return torch.tensor([subject.texts.tokenizer.encode(text).ids])


def apart(subject: HookedSubject, batch: Batch, wrong: bool = False) -> tuple[Attribution, list[str]]:
    """Return the terms of the target's logit (less another token's) at every scored position."""
    attributor = Attributor(subject)
    answer = batch.targets[batch.scored]
    other = (answer + 1) % subject.vocab if wrong else None
    found = attributor.attribute(batch, batch.scored, answer, other, attributor.towards_all(answer, other))
    return found, [term.name for term in attributor.terms]


@pytest.mark.parametrize("wrong", [False, True])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_terms_sum_to_the_logit_and_to_a_difference_of_logits(root: Path, kind: str, wrong: bool) -> None:
    subject = language_model(root, ARCHITECTURES[kind])
    batch = subject.examples("test", 3).take([0, 1, 2])
    found, names = apart(subject, batch, wrong)
    outputs = subject.forward(batch)
    assert outputs is not None
    cap = ARCHITECTURES[kind].get("final_logit_softcapping")
    logits = outputs.logits[batch.scored].double()
    logits = logits if cap is None else torch.atanh(logits / cap) * cap
    answer, rows = batch.targets[batch.scored], torch.arange(int(batch.scored.sum()))
    expected = logits[rows, answer] - (logits[rows, (answer + 1) % subject.vocab] if wrong else 0.0)
    assert float((found.values.sum(dim=1) - found.logit).abs().max()) < 1e-5 * float(expected.abs().max())
    torch.testing.assert_close(found.logit, expected, rtol=0, atol=1e-4 * float(expected.abs().max()) if cap else 0.0)
    assert sum(name.startswith("blocks.1.head.") for name in names) == 4
    assert {"embedding", "blocks.2.mlp"} < set(names)


def test_terms_still_sum_to_the_logit_in_bfloat16_as_far_as_it_counts(root: Path) -> None:
    subject = language_model(root, ARCHITECTURES["llama"], "bfloat16")
    found, _ = apart(subject, subject.examples("test", 2).take([0, 1]))
    assert float((found.values.sum(dim=1) - found.logit).abs().max()) < 5e-2 * float(found.logit.abs().max())


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3", "gpt_neox parallel"])
def test_what_a_head_contributes_is_what_its_slice_of_the_output_projection_alone_makes_of_it(root: Path, kind: str) -> None:
    """The real projection runs with every other head's input at zero; its output, less the bias, is that head's part of the stream."""
    subject = language_model(root, ARCHITECTURES[kind])
    batch = subject.examples("test", 2).take([0, 1])
    found, names = apart(subject, batch)
    seen: dict[str, Tensor] = {}

    def tap(address: Address, h: Tensor) -> Tensor:
        seen[address.site] = h
        return h

    subject.forward(batch, tap, ["blocks.1.attn_z", "blocks.2.resid_post"])
    projection = subject.model.get_submodule(subject.points["blocks.1.attn_z"].module)
    d_head = seen["blocks.1.attn_z"].shape[-1] // 4
    alone = torch.zeros_like(seen["blocks.1.attn_z"])
    alone[..., 2 * d_head : 3 * d_head] = seen["blocks.1.attn_z"][..., 2 * d_head : 3 * d_head]
    with torch.no_grad():
        added = (projection(alone) - projection(torch.zeros_like(alone)))[batch.scored].double()
    attributor = Attributor(subject)
    direction, _ = attributor._way(seen["blocks.2.resid_post"][batch.scored], attributor.towards(batch.targets[batch.scored], None))
    torch.testing.assert_close(found.values[:, names.index("blocks.1.head.2")], (added * direction).sum(dim=-1), rtol=1e-4, atol=1e-5)


def test_the_norms_scale_is_that_of_the_whole_stream_and_not_of_each_part(gpt2: HuggingFaceSubject) -> None:
    """A norm of each part by itself would give terms that sum to something else."""
    batch = gpt2.examples("test", 2).take([0, 1])
    found, names = apart(gpt2, batch)
    norm, head = gpt2.model.transformer.ln_f, gpt2.model.lm_head
    seen: dict[str, Tensor] = {}
    gpt2.forward(batch, lambda address, h: seen.setdefault(address.site, h), ["blocks.0.resid_pre"])
    with torch.no_grad():
        by_itself = head(norm(seen["blocks.0.resid_pre"]) - norm.bias)[batch.scored]
    answer = batch.targets[batch.scored]
    wrong = by_itself[torch.arange(len(answer)), answer].double()
    assert float((found.values[:, names.index("embedding")] - wrong).abs().min()) > 1e-3


class Additive(nn.Module):
    """stream = E[x] + sum of heads that add a fixed vector for each token; logits = stream W_U: every term can be read off the weights."""

    def __init__(self, heads: int = 2, leak: float = 0.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.tables = nn.ModuleList(nn.Embedding.from_pretrained(torch.randn(5, 6, generator=generator)) for _ in range(1 + heads))
        self.head = nn.Linear(6, 5, bias=False)
        self.post, self.leak = nn.Identity(), leak

    def forward(self, tokens: Tensor) -> Tensor:
        stream = torch.stack([table(tokens) for table in self.tables]).sum(dim=0)
        logits: Tensor = self.head(self.post(stream + self.leak))
        return logits


def additive(leak: float = 0.0) -> HookedSubject:
    inputs = torch.tensor([[0, 1, 2], [3, 4, 0]])
    examples = Examples(("a", "b"), inputs, (inputs + 1) % 5, torch.ones_like(inputs, dtype=torch.bool))
    points: dict[str, Any] = {"blocks.0.resid_pre": ("tables.0", "output"), "blocks.0.resid_post": ("post", "output")}
    points |= {f"blocks.0.head.{head}.out": (f"tables.{head + 1}", "output") for head in range(2)}
    return HookedSubject("added", Additive(leak=leak), {**points, "unembed": ("head", "output")}, examples)


def test_the_terms_of_a_model_by_hand_are_its_weights(tmp_path: Path) -> None:
    subject = additive()
    found, names = apart(subject, subject.examples("test", 2).take([0, 1]))
    assert names == ["embedding", "blocks.0.head.0", "blocks.0.head.1"]
    for row, token in enumerate([0, 1, 2, 3, 4, 0]):
        for column, table in enumerate(subject.model.tables):
            by_hand = table.weight[token].double() @ subject.model.head.weight[(token + 1) % 5].double()
            assert float(found.values[row, column]) == pytest.approx(float(by_hand), rel=1e-12)
    result = watch("direct_logit_attribution", subject, tmp_path, {"positions": "answer", "answer": "target"})
    means = {row["term"]: row["mean"] for row in result.tables["terms"].rows}
    assert means["blocks.0.head.1"] == pytest.approx(float(found.values[:, 2].mean()))


def test_blocks_that_do_more_than_they_declare_are_refused() -> None:
    subject = additive(leak=0.5)
    with pytest.raises(SpecError, match="'added': what its blocks add is not what its residual stream becomes"):
        apart(subject, subject.examples("test", 2).take([0, 1]))


def test_a_model_whose_stream_or_norm_is_not_known_is_refused_by_name() -> None:
    subject = additive()
    batch = subject.examples("test", 2).take([0, 1])
    start = subject.points.pop("blocks.0.resid_pre")
    with pytest.raises(SpecError, match=r"'added' has no hook point blocks\.0\.resid_pre, where its residual stream begins"):
        Attributor(subject)
    subject.points |= {"blocks.0.resid_pre": start, "final_norm": subject.points["blocks.0.resid_post"]}
    with pytest.raises(SpecError, match="'added': its Identity is neither LayerNorm nor RMSNorm"):
        apart(subject, batch)


def test_a_subject_that_is_not_known_is_refused_by_name(root: Path) -> None:
    with pytest.raises(SpecError, match=r"'tiny' \(factory\)"):
        Attributor(TinySubject())
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 16}
    with pytest.raises(SpecError, match="it is not known how bert reads its residual stream out"):
        Attributor(language_model(root, {"model_type": "bert", **sizes}))


def test_padding_changes_no_term(gpt2: HuggingFaceSubject, tmp_path: Path) -> None:
    short, long = {"text": "f(1"}, {"text": "call_1 = f(1, [g("}
    alone = watch("direct_logit_attribution", gpt2, tmp_path, {"prompts": [short]})
    beside = watch("direct_logit_attribution", gpt2, tmp_path, {"prompts": [short, long]})
    first, second = (result.tables["logits"].rows[0] for result in (alone, beside))
    assert first["answer"] == second["answer"]
    assert first["sum_of_terms"] == pytest.approx(second["sum_of_terms"], abs=1e-5)


def test_the_experiment_stands_every_term_beside_all_answers_and_says_that_it_only_observes(
    gpt2: HuggingFaceSubject, tmp_path: Path
) -> None:
    result = watch("direct_logit_attribution", gpt2, tmp_path, {"examples": {"split": "test", "n": 12}, "of": "logit_diff"})
    assert result.mode == "observational"
    assert result.metrics["dla/completeness_error"] < 1e-5
    terms = result.tables["terms"].rows
    assert len(terms) == 1 + 3 * (4 + 1 + 1) + 1  # GPT-2 has biases of its attention and its final norm, and none of its unembedding
    assert sum(row["mean"] for row in terms) == pytest.approx(result.metrics["dla/logit"], rel=1e-5)
    assert len(result.tables["heads"].rows) == 12
    for row in terms:
        estimate = result.estimates[f"attribution/{row['term']}"]
        assert estimate.null == "the same terms towards the answers of all positions, in their mean"
        assert estimate.low is not None
        assert estimate.low <= row["mean"] <= estimate.high
        assert row["beyond_control"] == pytest.approx(row["mean"] - row["control"])
        assert row["p"] <= row["p_adj"] <= 1
    whole = {row["term"]: row["mean"] for row in result.tables["components"].rows}
    layer = [row["mean"] for row in terms if row["layer"] == 1 and row["kind"] in ("head", "attention_bias")]
    assert whole["blocks.1.attention"] == pytest.approx(sum(layer))
    assert sum(whole.values()) == pytest.approx(result.metrics["dla/logit"], rel=1e-5)


def test_answers_come_from_prompts_and_a_wrong_token_is_taken_away(gpt2: HuggingFaceSubject, tmp_path: Path) -> None:
    prompts = [{"text": "f(1, [2", "answer": "]", "wrong": ")"}, {"text": "g(f(1", "answer": ")", "wrong": "]"}]
    result = watch("direct_logit_attribution", gpt2, tmp_path, {"prompts": prompts, "of": "logit_diff"})
    assert [(row["answer"], row["wrong"]) for row in result.tables["logits"].rows] == [("]", ")"), (")", "]")]
    models_own = watch("direct_logit_attribution", gpt2, tmp_path, {"prompts": prompts, "answer": "model"})
    assert {row["wrong"] for row in models_own.tables["logits"].rows} == {None}


def test_where_the_model_itself_says_the_wrong_token_its_logit_is_not_taken_from_itself(gpt2: HuggingFaceSubject, tmp_path: Path) -> None:
    prompts = [{"text": text} for text in ("f(1", "g(2, [", "call_1 = f(1, [g(", "f(0", "call_2 = f(", "[g(1")]
    with torch.no_grad():
        own = [int(watched.logits[0, -1].argmax()) for watched in (gpt2.model(input_ids=ids(gpt2, each["text"])) for each in prompts)]
    asked = [{**prompt, "wrong": token} for prompt, token in zip(prompts, own, strict=True)]
    rows = watch("direct_logit_attribution", gpt2, tmp_path, {"prompts": asked, "of": "logit_diff"}).tables["logits"].rows
    assert [row["answer"] for row in rows] == [gpt2.token_text(token) for token in own]
    assert all(row["wrong"] is not None and row["logit"] > 0 for row in rows)


def test_a_logit_difference_without_a_wrong_token_is_against_the_likeliest_other(gpt2: HuggingFaceSubject, tmp_path: Path) -> None:
    result = watch("direct_logit_attribution", gpt2, tmp_path, {"examples": {"n": 5}, "of": "logit_diff", "answer": "model"})
    examples = gpt2.examples("test", 5)
    with torch.no_grad():
        best = gpt2.model(input_ids=examples.inputs).logits[:, -1].topk(2, dim=-1)
    for row, tokens, logits in zip(result.tables["logits"].rows, best.indices.tolist(), best.values.tolist(), strict=True):
        assert [row["answer"], row["wrong"]] == [gpt2.token_text(token) for token in tokens]
        assert row["logit"] == pytest.approx(logits[0] - logits[1], abs=1e-4)


def test_results_do_not_depend_on_the_batch_size_but_for_rounding(gpt2: HuggingFaceSubject, tmp_path: Path) -> None:
    found = [watch("direct_logit_attribution", gpt2, tmp_path, {"examples": {"n": 7}, "batch_size": size}) for size in (2, 7)]
    one, other = ([row["mean"] for row in result.tables["terms"].rows] for result in found)
    np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("wrong", [False, True])
def test_the_control_is_the_mean_over_every_answer_that_some_row_has(gpt2: HuggingFaceSubject, wrong: bool) -> None:
    batch, attributor = gpt2.examples("test", 2).take([0, 1]), Attributor(gpt2)
    answer = batch.targets[batch.scored]
    other = (answer + 1) % gpt2.vocab if wrong else None
    found = attributor.attribute(batch, batch.scored, answer, other, attributor.towards_all(answer, other))
    for_each = []
    for row in range(len(answer)):
        alike = answer[row].expand(len(answer)), None if other is None else other[row].expand(len(answer))
        for_each.append(attributor.attribute(batch, batch.scored, *alike, attributor.towards_all(*alike)).values)
    torch.testing.assert_close(found.beside, torch.stack(for_each).mean(dim=0))


def test_a_part_that_always_says_the_same_does_not_pass_for_one_that_knows_the_answer(root: Path, tmp_path: Path) -> None:
    """Where one answer is three times as common, whatever prefers it writes more towards the right answers than towards others."""
    p, rng = [], np.random.default_rng(0)
    for seed in range(4):
        subject = language_model(root, {**ARCHITECTURES["gpt2"], "initializer_range": 0.3}, scale=None, init_seed=seed)
        prompts = [{"text": rng.integers(20, 250, 6).tolist(), "answer": 30 if row % 4 else 40} for row in range(40)]
        p += [row["p"] for row in watch("direct_logit_attribution", subject, tmp_path, {"prompts": prompts}).tables["terms"].rows]
    assert np.mean(np.array(p) < 0.05) < 0.1


def test_where_all_answers_are_alike_there_is_no_control_rather_than_zero(gpt2: HuggingFaceSubject, tmp_path: Path) -> None:
    result = watch(
        "direct_logit_attribution", gpt2, tmp_path, {"prompts": [{"text": "f(1", "answer": ")"}, {"text": "g(2", "answer": ")"}]}
    )
    assert {row["control"] for row in result.tables["terms"].rows} == {None}
    assert all(row["p"] is None and row["beyond_control"] is None for row in result.tables["terms"].rows)


def test_a_single_example_has_no_interval_and_no_p_value_and_few_are_said_to_be_few(gpt2: HuggingFaceSubject, tmp_path: Path) -> None:
    for kind in ("direct_logit_attribution", "logit_lens"):
        one = watch(kind, gpt2, tmp_path, {"examples": {"n": 1}, "positions": "tokens"})
        assert one.diagnostics.warnings == [
            "1 example: nothing has an interval or a p value, and what is found may be about this one alone"
        ]
        assert all(each.p is None for each in one.estimates.values())
        few = watch(kind, gpt2, tmp_path, {"examples": {"n": 5}})
        assert few.diagnostics.warnings == ["5 examples: intervals and p values are coarse"]


def test_positions_without_a_target_are_refused_where_targets_are_asked_for(gpt2: HuggingFaceSubject, tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="none of the 3 examples has a target at these positions"):
        watch("direct_logit_attribution", gpt2, tmp_path, {"examples": {"n": 3}, "positions": "last", "answer": "target"})
