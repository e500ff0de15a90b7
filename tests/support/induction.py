"""An attention-only transformer whose weights are written by hand: a previous-token head, and an induction head that keys on it."""

from __future__ import annotations

from pathlib import Path

import torch
from prompts import transformer
from torch import Tensor

from mlinterp.subjects.huggingface import HuggingFaceSubject
from mlinterp.subjects.pairs_declared import PromptPair

N_TOKENS, N_POSITIONS, SHARP = 8, 16, 1000.0
D = 4 * 8
"""The stream's parts: token, position, token before, token that the induction head says; eight numbers each."""
TOKEN, POSITION, BEFORE, SAID = (slice(8 * part, 8 * (part + 1)) for part in range(4))
CLEAN, CORRUPTED = [5, 0, 1, 6, 2, 3, 0], [5, 2, 1, 6, 0, 3, 0]
"""0 was followed by 1; in the corrupted prompt, whose 0 and 2 change places, by 3."""


def induction(root: Path) -> HuggingFaceSubject:
    """Return it as a GPT-2 of two blocks with two heads each, whose MLPs add nothing. Head 1 of both blocks adds nothing either."""
    fields = {"model_type": "gpt2", "n_embd": D, "n_layer": 2, "n_head": 2, "n_positions": N_POSITIONS, "n_inner": 4}
    subject = transformer(root, {**fields, "vocab_size": 270})
    model, eye = subject.model.transformer, torch.eye(8)
    for parameter in subject.model.parameters():
        parameter.zero_()
    for norm in (model.ln_f, *(norm for block in model.h for norm in (block.ln_1, block.ln_2))):
        norm.weight.fill_(1.0)
    model.wte.weight[:N_TOKENS, TOKEN] = eye
    model.wpe.weight[:8, POSITION] = eye
    _head(model.h[0], reads=(POSITION, POSITION, TOKEN), writes=BEFORE, key=eye.roll(1, dims=1))
    _head(model.h[1], reads=(TOKEN, BEFORE, TOKEN), writes=SAID, key=eye)
    untied = torch.nn.Linear(D, model.wte.num_embeddings, bias=False).requires_grad_(False)
    untied.weight.zero_()
    untied.weight[:N_TOKENS, SAID] = eye
    subject.model.lm_head = untied
    return subject


def _head(block: torch.nn.Module, reads: tuple[slice, slice, slice], writes: slice, key: Tensor) -> None:
    """Let head 0 of a block look where the key's code is its query's, and copy what it reads there."""
    weight, eye = block.attn.c_attn.weight, torch.eye(8)
    for place, (part, code) in enumerate(zip(reads, (SHARP * eye, key, eye), strict=True)):
        weight[part, place * D : place * D + 8] = code
    block.attn.c_proj.weight[:8, writes] = eye


def induction_pairs() -> list[PromptPair]:
    """Return pairs whose answer the induction head alone can know."""
    return [PromptPair(clean=CLEAN, corrupted=CORRUPTED, answer=1, wrong=3)]
