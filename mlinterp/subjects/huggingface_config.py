"""How a project declares a Hugging Face subject. Reading it needs neither torch nor transformers.

kind: huggingface
source: {config: {model_type: gpt2, n_layer: 4, n_embd: 192, n_head: 3}}
data: {kind: text, root: "python:stdlib", context: 128, tokenizer: {train_bpe: {vocab_size: 1024}}}
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mlinterp.frozen import Frozen

PYTHON_STDLIB = "python:stdlib"
"""A `root` that means the source files of the running interpreter's standard library."""


class Hub(Frozen):
    """A model on the hub, pinned to one commit."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,95}(/[A-Za-z0-9][A-Za-z0-9_.-]{0,95})?$", description="such as openai-community/gpt2"
    )
    revision: str = Field(pattern=r"^[0-9a-f]{40}$", description="the commit, in full: a branch or tag moves")


class Source(Frozen):
    """Where the model comes from: exactly one of the three."""

    path: str | None = Field(
        None, description="local folder with config.json and *.safetensors, relative to the project's folder or absolute"
    )
    hub: Hub | None = Field(None, description="a model on the hub")
    config: dict[str, Any] | None = Field(
        None, description="`model_type` and its transformers configuration: random weights, to be trained"
    )

    @model_validator(mode="after")
    def _one(self) -> Source:
        given = [name for name in ("path", "hub", "config") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of path, hub and config, not {' and '.join(given) or 'none'}")
        if self.config is not None and not isinstance(self.config.get("model_type"), str):
            raise ValueError("config needs `model_type`, such as gpt2 or llama")
        return self


class Bpe(Frozen):
    """A byte-level BPE tokenizer, trained on the training files alone."""

    vocab_size: int = Field(ge=260, le=250_000, description="tokens: 2 special ones, 256 bytes, the rest merges")
    isolate: str = Field("", max_length=64, description="characters that are never part of a longer token, such as ()[]{}")


class TrainedTokenizer(Frozen):
    """A tokenizer trained here."""

    train_bpe: Bpe


class TextData(Frozen):
    """Files of text, cut into contexts of fixed length. A file belongs to one split, by the hash of its name."""

    kind: Literal["text"]
    root: str = Field(description=f"folder relative to the project's, or {PYTHON_STDLIB}")
    include: str = Field("*.py", pattern=r"^[^/\\]+$", description="pattern that a file's name must match, at any depth")
    context: int = Field(128, ge=2, le=1_048_576, description="tokens a context")
    tokenizer: TrainedTokenizer | Literal["pretrained"] = Field("pretrained", description="the model's own, or one trained here")
    validation: float = Field(0.05, ge=0, le=0.5, description="share of files held out to score a fit")
    test: float = Field(0.1, ge=0, le=0.5, description="share of files held out for experiments")


class PromptData(Frozen):
    """A list of texts, one JSON object `{"text": …}` a line, optionally with an `id`. It is the same in every split."""

    kind: Literal["prompts"]
    file: str = Field(description="JSON-lines file relative to the project's folder")


class HuggingFaceConfig(Frozen):
    """A model that `transformers` knows, with its text."""

    kind: Literal["huggingface"] = "huggingface"
    source: Source
    data: Annotated[TextData | PromptData, Field(discriminator="kind")]
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="type of weights and activations")
    init_seed: int = Field(0, ge=0, lt=2**63, description="seed of random weights")

    @model_validator(mode="after")
    def _tokenizer_fits(self) -> HuggingFaceConfig:
        trained = isinstance(self.data, TextData) and self.data.tokenizer != "pretrained"
        if trained and self.source.config is None:
            raise ValueError("a tokenizer trained here fits only a model trained here: use `tokenizer: pretrained` with path or hub")
        if not trained and self.source.config is not None:
            raise ValueError(
                "a model from a config has no tokenizer of its own: use text data with `tokenizer: {train_bpe: {vocab_size: …}}`"
            )
        return self

    @property
    def initial_weights(self) -> bool:
        """Whether it starts with random weights."""
        return self.source.config is not None
