"""Reading a residual stream out: the model's own logits, to the bit, or a refusal by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import TinySubject
from torch import Tensor, nn
from watched import ARCHITECTURES, language_model, write_texts

from mlinterp.errors import SpecError
from mlinterp.readouts.prompts import Prompt, asked
from mlinterp.readouts.reading import readout_of, require_true, states_of
from mlinterp.subjects.base import Examples
from mlinterp.subjects.hooked import HookedSubject


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("project"))


class Linear(nn.Module):
    """Embeds and unembeds, with one block that adds a matrix product between."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.mlp, self.norm, self.head = nn.Embedding(7, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 7)
        self.start, self.end, self.factor = nn.Identity(), nn.Identity(), factor

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.start(self.embed(tokens))
        logits: Tensor = self.head(self.norm(self.end(x + self.mlp(x))))
        return self.factor * logits


POINTS = {
    "blocks.0.resid_pre": ("start", "output"),
    "blocks.0.mlp_out": ("mlp", "output"),
    "blocks.0.resid_post": ("end", "output"),
    "final_norm": ("norm", "output"),
    "unembed": ("head", "output"),
}


def factory(factor: float = 1.0, without: tuple[str, ...] = ()) -> HookedSubject:
    inputs = torch.arange(12).reshape(3, 4) % 7
    examples = Examples(("a", "b", "c"), inputs, (inputs + 1) % 7, torch.ones_like(inputs, dtype=torch.bool))
    points = {name: point for name, point in POINTS.items() if name not in without}
    return HookedSubject("own", Linear(factor), points, examples)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_last_layer_gives_the_models_own_logits_to_the_bit(root: Path, kind: str) -> None:
    subject = language_model(root, ARCHITECTURES[kind])
    readout = readout_of(subject)
    states, logits = states_of(subject, subject.examples("test", 3).take([0, 1, 2]), readout.sites)
    assert readout.names == ("embedding", "blocks.0", "blocks.1", "blocks.2")
    assert torch.equal(readout.logits(states[readout.sites[-1]]), logits)
    assert not torch.allclose(readout.logits(states[readout.sites[-2]]), logits)


def test_a_project_declares_its_own_final_norm_and_unembedding() -> None:
    subject = factory()
    readout = readout_of(subject)
    batch = subject.examples("test", 3).take([0, 1, 2])
    states, logits = states_of(subject, batch, readout.sites)
    assert readout.names == ("embedding", "blocks.0")
    assert torch.equal(readout.logits(states["blocks.0.resid_post"]), logits)


def test_a_model_whose_logits_are_more_than_its_readout_is_refused() -> None:
    subject = factory(factor=2.0)
    with pytest.raises(SpecError, match="'own': the final norm and the unembedding alone do not give its logits"):
        require_true(readout_of(subject), subject, subject.examples("test", 2).take([0, 1]))


@pytest.mark.parametrize("missing", ["unembed", "blocks.0.resid_post"])
def test_a_model_that_does_not_say_how_it_reads_out_is_refused_by_name(missing: str) -> None:
    with pytest.raises(SpecError, match=r"'own' \(factory\) does not say how its residual stream becomes logits.*blocks\.N\.resid_post"):
        readout_of(factory(without=(missing,)))
    with pytest.raises(SpecError, match=r"'tiny' \(factory\)"):
        readout_of(TinySubject())


@pytest.mark.parametrize("kind", ["opt", "bert"])
def test_an_architecture_that_is_not_known_is_refused_by_name(root: Path, kind: str) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 16}
    own = {"ffn_dim": 16, "word_embed_proj_dim": 16} if kind == "opt" else {"intermediate_size": 16}
    subject = language_model(root, {"model_type": kind, **sizes, **own}, scale=None)
    with pytest.raises(SpecError, match=f"'toy': it is not known how {kind} reads its residual stream out; known: gpt2, llama"):
        readout_of(subject)


def test_prompts_are_padded_on_the_right_and_end_in_their_answers(root: Path) -> None:
    subject = language_model(root, ARCHITECTURES["gpt2"])
    found = asked(subject, [Prompt(text="call_1 = f(", answer="1", wrong="["), Prompt(text="f(1")])
    examples, lengths = found.examples, found.examples.mask.sum(dim=1)
    assert lengths[0] > lengths[1]
    assert "".join(subject.token_text(int(token)) for token in examples.inputs[0]) == "call_1 = f("
    assert subject.token_text(int(examples.targets[0, -1])) == "1"
    assert subject.token_text(int(found.wrong[0, -1])) == "["
    assert bool((found.wrong[1] == -100).all())
    assert int(examples.targets[1, lengths[1] - 1]) == -100
    assert torch.equal(examples.targets[1, : lengths[1] - 1], examples.inputs[1, 1 : lengths[1]])


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (Prompt(text="f(", answer="call_1 = f("), r"variables\.prompts\[0\]\.answer: 'call_1 = f\(' is \d+ tokens: \['call'"),
        (Prompt(text=[3, 999]), r"variables\.prompts\[0\]\.text: 'toy' has no token 999; 0 to 279"),
        (Prompt(text="f(", wrong=""), r"prompts\[0\]\.wrong: '' is 0 tokens"),
        (Prompt(text="f(", answer=")", wrong=")"), r"prompts\[0\]: answer and wrong are the same token"),
    ],
)
def test_a_prompt_that_cannot_be_read_is_refused_by_number(root: Path, prompt: Prompt, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        asked(language_model(root, ARCHITECTURES["gpt2"]), [prompt])


def test_a_model_without_a_tokenizer_takes_token_ids() -> None:
    assert asked(factory(), [Prompt(text=[1, 2, 3], answer=4)]).examples.targets.tolist() == [[2, 3, 4]]
    with pytest.raises(SpecError, match=r"'own' \(factory\) has no tokenizer; token ids"):
        asked(factory(), [Prompt(text="1 2")])
