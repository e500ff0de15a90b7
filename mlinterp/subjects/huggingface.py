"""Hugging Face models as subjects: from a local folder, from the hub, or from a configuration with random weights.

Weights are read from safetensors only and no code of a model's own is ever run. A forward pass never draws or keeps anything: no
dropout, no key-value cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from torch import Tensor
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from mlinterp.determinism import derive_seed, numpy_stream
from mlinterp.errors import EnvironmentFault, SpecError, UnsafeError, nearest, unknown
from mlinterp.subjects.base import Batch, Examples, Objective, Split
from mlinterp.subjects.hook_points import LAYOUTS, standard_hook_points
from mlinterp.subjects.hooked import HookedSubject, choose
from mlinterp.subjects.huggingface_config import HuggingFaceConfig, Source
from mlinterp.subjects.lm_objective import LmObjective, LmOptions
from mlinterp.subjects.text import Chosen, Texts, affixes, hide, load_texts, score_only
from mlinterp.subjects.unembedding import NoUnembedding, Unembedding, of_language_model

CACHE = ".mlinterp/cache"
"""Where tokenised text is kept, below the project's folder."""


class HuggingFaceSubject(HookedSubject):
    """A `transformers` language model with its text.

    Attributes:
        texts: its examples and its tokenizer.
        architecture: its `transformers` configuration.
        masked: whether it reads both ways and is asked for hidden tokens, rather than for the next one.
    """

    def __init__(self, name: str, model: Any, texts: Texts, config: Mapping[str, Any]) -> None:
        self.texts = texts
        self.architecture = model.config
        self.masked = _is_masked(model.config)
        self.special_tokens = texts.special_tokens
        super().__init__(
            name,
            model,
            standard_hook_points(model.config),
            texts.splits,
            call=self.logits,
            config=config,
            kind="huggingface",
            vocab=model.config.get_text_config().vocab_size,
        )
        model.register_state_dict_post_hook(_own_storage)

    def logits(self, batch: Batch) -> Tensor:
        """Return the logits `[batch, pos, vocab]`; padding on either side is hidden from the real tokens.

        Positions count from the first real token. Architectures without a table of hook points number them by rules of their
        own, so they take padding on the right only.
        """
        output: Tensor = self.model(**self.arguments(batch)).logits
        return output

    def arguments(self, batch: Batch) -> dict[str, Tensor]:
        """Return what the model is called with, positions counted from the first real token."""
        device = next(self.model.parameters()).device
        mask = batch.mask.to(device)
        where = {}
        if not bool(mask[:, 0].all()):
            if self.architecture.model_type not in LAYOUTS:
                raise SpecError(f"'{self.name}' ({self.architecture.model_type}) takes padding on the right only", field="subject")
            where = {"position_ids": (mask.cumsum(dim=1) - 1).clamp_min(0)}
        return {"input_ids": batch.inputs.to(device), "attention_mask": mask.long(), **where}

    def examples(self, split: Split, n: int, seed: int = 0, **selection: Any) -> Examples:
        """Return `n` contexts of a split, chosen by the seed.

        `score_next` (a list of strings) scores only positions whose next token reads as one of them, leaving surrounding space
        aside, and chooses among contexts that hold one.
        """
        if split not in self.texts.splits:
            raise unknown("split", split, self.texts.splits, what="split")
        score_next = selection.pop("score_next", None)
        if selection:
            raise unknown("examples", next(iter(selection)), ["score_next"], what="selection")
        found = self.texts.splits[split]
        if score_next is None:
            found = choose(found, n, seed, split)
            return self._hide(found, seed, "examples", split) if self.masked else found
        if self.masked:
            raise SpecError(f"'{self.name}' reads both ways and predicts no next token", field="examples.score_next")
        return choose(score_only(found, self.texts.tokens_of(score_next)), n, seed, split)

    def token_text(self, token: int) -> str:
        """Return a token as text."""
        return self.texts.token_text(token)

    def unembedding(self, site: str, batch: Batch) -> Unembedding | NoUnembedding:
        """Return the way through the final norm and the unembedding, where the hook point is on the residual stream."""
        return of_language_model(self.model, site, batch, self.logits, self.architecture.model_type)

    def objective(self, options: Mapping[str, Any], seed: int) -> Objective:
        """Return the language-model objective; options are those of `LmOptions`."""
        checked = LmOptions.read(options)
        if not self.texts.held_out:
            raise SpecError(
                f"'{self.name}' has prompts, which hold out nothing to score a fit on",
                field="subject",
                allowed="train on `data: {kind: text}`",
            )
        if self.config["dtype"] != "float32":
            raise SpecError(f"'{self.name}' is {self.config['dtype']}", field="subject", allowed="training needs dtype float32")
        for split in ("train", "validation"):
            if not len(self.texts.splits[split]):
                raise SpecError(f"the {split} split of '{self.name}' holds no context", field="subject")
        held_out = self.examples("validation", checked.eval_contexts)
        masking = {"prepare": lambda batch, step: self._hide(batch, seed, "step", step)} if self.masked else {}
        return LmObjective(self.model, self.logits, self.texts.splits["train"], held_out, checked, seed, **masking)

    def _hide(self, chosen: Chosen, seed: int, *stream: str | int) -> Chosen:
        mask = self.texts.mask_token
        if mask is None:
            raise SpecError(f"the tokenizer of '{self.name}' has no mask token", field="subject")
        special = [token for affix in affixes(self.texts.tokenizer) for token in affix]
        return hide(chosen, mask, special, numpy_stream(seed, "hide", *stream))

    def _probe(self) -> Batch:
        return Batch(
            ("probe",), torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, 2, dtype=torch.long), torch.ones(1, 2, dtype=torch.bool)
        )


def build(name: str, config: HuggingFaceConfig, root: Path) -> HuggingFaceSubject:
    """Build the subject that a project declares; relative paths and the cache are below `root`.

    Raises EnvironmentFault, naming it, for a model or text that is not there, and UnsafeError for weights other than safetensors
    or a model that needs code of its own.
    """
    source, cache = config.source, root / CACHE
    if source.config is not None:
        texts = load_texts(config.data, root, None, cache)
        model = _from_config(source.config, texts.tokenizer.get_vocab_size(), config)
    else:
        place, keywords = _place(source, root)
        model = _from_weights(place, keywords, config.dtype)
        texts = load_texts(config.data, root, _tokenizer(place, keywords), cache)
    architecture = model.config.get_text_config()
    architecture.use_cache = model.config.use_cache = False
    longest, limit = texts.splits["train"].inputs.shape[1], getattr(architecture, "max_position_embeddings", None)
    if limit is not None and longest > limit:
        raise SpecError(f"contexts of {longest} tokens", field="data.context", allowed=f"this model reads at most {limit}")
    return HuggingFaceSubject(name, model, texts, {**config.model_dump(mode="json"), "data_sha256": texts.sha256})


def _own_storage(_module: Any, state: dict[str, Tensor], _prefix: str, _metadata: Any) -> None:
    """Give tied weights a storage each: safetensors refuses one tensor under two names."""
    seen: set[int] = set()
    for name, tensor in state.items():
        if tensor.data_ptr() in seen:
            state[name] = tensor.clone()
        seen.add(tensor.data_ptr())


def _is_masked(config: Any) -> bool:
    return config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)


def _model_class(config: Any) -> Any:
    if getattr(config, "is_encoder_decoder", False):
        raise SpecError(f"'{config.model_type}' has an encoder and a decoder", field="source", allowed="one stack of blocks")
    if _is_masked(config):
        return transformers.AutoModelForMaskedLM
    if config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return transformers.AutoModelForCausalLM
    raise SpecError(f"'{config.model_type}' is no language model", field="source")


def _from_config(fields: Mapping[str, Any], vocab: int, config: HuggingFaceConfig) -> Any:
    given = {"vocab_size": vocab, **fields}
    kind = given.pop("model_type")
    if kind not in transformers.CONFIG_MAPPING:
        raise SpecError(
            f"unknown model_type '{kind}'", field="source.config.model_type", nearest=nearest(kind, transformers.CONFIG_MAPPING.keys())
        )
    known = transformers.CONFIG_MAPPING[kind]()
    names = {*known.to_dict(), *known.attribute_map}
    for field in given:
        if field not in names:
            raise unknown("source.config", field, sorted(names), what=f"{kind} setting")
    if given["vocab_size"] < vocab:
        raise SpecError(f"vocab_size {given['vocab_size']}", field="source.config", allowed=f"the tokenizer has {vocab} tokens")
    ends = {name: None for name in ("bos_token_id", "eos_token_id", "pad_token_id") if name in names}
    architecture = transformers.AutoConfig.for_model(kind, **{**ends, **given})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.init_seed, "weights"))
        model = _model_class(architecture).from_config(architecture, trust_remote_code=False)
    return model.to(getattr(torch, config.dtype))


def _place(source: Source, root: Path) -> tuple[str, dict[str, Any]]:
    if source.hub is not None:
        return source.hub.name, {"revision": source.hub.revision}
    assert source.path is not None
    folder = (root / source.path).resolve()
    if not (folder / "config.json").is_file():
        raise EnvironmentFault(f"model folder '{source.path}' does not exist or holds no config.json")
    if not list(folder.glob("*.safetensors")):
        raise UnsafeError(f"model folder '{source.path}' holds no *.safetensors; other weight files can run code and are not opened")
    return str(folder), {"local_files_only": True}


def _from_weights(place: str, keywords: Mapping[str, Any], dtype: str) -> Any:
    try:
        architecture = transformers.AutoConfig.from_pretrained(place, trust_remote_code=False, **keywords)
        return _model_class(architecture).from_pretrained(
            place, config=architecture, dtype=getattr(torch, dtype), use_safetensors=True, trust_remote_code=False, **keywords
        )
    except OSError as error:
        raise EnvironmentFault(f"model '{place}'{_at(keywords)} is not there and cannot be fetched: {_first_line(error)}") from error
    except ValueError as error:
        if "remote_code" in str(error) or "custom code" in str(error):
            raise UnsafeError(f"model '{place}' needs code of its own, which is never run") from error
        raise EnvironmentFault(f"model '{place}'{_at(keywords)} cannot be read: {_first_line(error)}") from error


def _tokenizer(place: str, keywords: Mapping[str, Any]) -> Tokenizer:
    try:
        loaded = transformers.AutoTokenizer.from_pretrained(place, trust_remote_code=False, **keywords)
    except (OSError, ValueError) as error:
        raise EnvironmentFault(f"tokenizer of '{place}'{_at(keywords)} is not there: {_first_line(error)}") from error
    tokenizer = getattr(loaded, "backend_tokenizer", None)
    if not isinstance(tokenizer, Tokenizer):
        raise EnvironmentFault(f"model '{place}' has no tokenizer.json")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _at(keywords: Mapping[str, Any]) -> str:
    return f" at {keywords['revision'][:12]}" if "revision" in keywords else ""


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
