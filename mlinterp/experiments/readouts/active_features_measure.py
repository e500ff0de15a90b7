"""What `active_features` reads: each prompt's active latents with their largest activation and the token where it is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mlinterp.errors import ExperimentError, SpecError
from mlinterp.experiments.base import Context
from mlinterp.experiments.readouts.active_features import ActiveFeaturesVariables
from mlinterp.experiments.readouts.readings import read
from mlinterp.sae.files.checkpoint import load_sae
from mlinterp.sae.files.provenance import require_subject
from mlinterp.sae.model import SAE
from mlinterp.sae.selection import cells
from mlinterp.subjects.base import Address, Examples, Subject
from mlinterp.subjects.pairs import tokenise
from mlinterp.subjects.pairs_declared import read_pairs


@dataclass(frozen=True)
class Active:
    """Which latents are active in which prompts: one entry for each prompt and latent that is active in it.

    Attributes:
        prompt: number of the prompt, int64 `[entry]`, ascending.
        latent: number of the latent, int64 `[entry]`.
        largest: its largest activation over the prompt's tokens, float64 `[entry]`.
        column: the column of the token where that is, int64 `[entry]`; the first of several.
        n_tokens: tokens that were read of each prompt, int64 `[prompt]`.
        n_active: active latents summed over those tokens, int64 `[prompt]`.
    """

    prompt: np.ndarray
    latent: np.ndarray
    largest: np.ndarray
    column: np.ndarray
    n_tokens: np.ndarray
    n_active: np.ndarray

    def of(self, latents: np.ndarray) -> np.ndarray:
        """Return the largest activation of some latents in each prompt, float64 `[prompt, latent]`; 0 where one is not active."""
        found = np.zeros((len(self.n_tokens), len(latents)))
        place = {int(latent): at for at, latent in enumerate(latents)}
        for prompt, latent, largest in zip(self.prompt.tolist(), self.latent.tolist(), self.largest.tolist(), strict=True):
            if latent in place:
                found[prompt, place[latent]] = largest
        return found


@dataclass(frozen=True)
class Seen:
    """Latents on prompts, and on the corrupted ones where there are pairs."""

    subject: Subject
    site: str
    d_sae: int
    examples: Examples
    own: Active
    control: Active | None


def measure(context: Context) -> Seen:
    """Read the prompts. Refuses an SAE of other weights, one that reads several hook points, and latents that it does not have."""
    variables: ActiveFeaturesVariables = context.variables
    folder = context.inputs["sae"].path
    sae, subject = load_sae(folder), context.load_subject()
    require_subject(folder, subject, "inputs.sae")
    address = _address(sae, subject)
    beyond = next((latent for latent in variables.latents or () if latent >= sae.config.d_sae), None)
    if beyond is not None:
        raise SpecError(f"the SAE has no latent {beyond}", field="variables.latents", allowed=f"0 to {sae.config.d_sae - 1}")
    examples = read(subject, variables, context.root).examples
    corrupted = None
    if variables.pairs is not None:
        corrupted = tokenise(read_pairs(variables.pairs, context.root), subject, "start").corrupted
    with context.reporter.task("prompts", len(examples) * (1 + (corrupted is not None))) as task:
        found = []
        for each in (examples, corrupted):
            if each is not None:
                found.append(active(sae, subject, address, each, variables.batch_size))
                task.advance(len(each))
    if not found[0].n_tokens.any():
        raise ExperimentError("the prompts hold no token but special ones")
    return Seen(subject, address.site, sae.config.d_sae, examples, found[0], found[1] if corrupted is not None else None)


def _address(sae: SAE, subject: Subject) -> Address:
    config = sae.config
    if config.kind == "crosscoder":
        raise SpecError("a crosscoder reads several hook points", field="inputs.sae", allowed="an SAE or a transcoder")
    if not config.site:
        raise SpecError("the SAE does not say which hook point it reads", field="inputs.sae", allowed="one that was fitted here")
    addresses, width = subject.addresses([config.site]), subject.width(config.site)
    if len(addresses) != 1:
        problem = f"{config.site} is evaluated {len(addresses)} times in a forward pass of '{subject.name}'"
        raise SpecError(problem, field="inputs.sae", allowed="an SAE of a hook point that is passed once")
    if width != config.d_in:
        raise SpecError(f"the SAE reads {config.d_in} numbers, {config.site} of '{subject.name}' holds {width}", field="inputs.sae")
    return addresses[0]


@torch.no_grad()
def active(sae: SAE, subject: Subject, address: Address, examples: Examples, batch_size: int) -> Active:
    """Return which latents are active in which examples; special tokens and padding do not count."""
    parts: list[tuple[np.ndarray, ...]] = []
    n_tokens, n_active = [], []
    for start, batch in zip(range(0, len(examples), batch_size), examples.batches(batch_size), strict=True):
        taken: list[Tensor] = []

        def look(_address: Address, h: Tensor, taken: list[Tensor] = taken) -> Tensor:
            taken.append(h)
            return h

        subject.forward(batch, look, [address.site], until=address)
        chosen = cells(subject, batch, "tokens", subject.special_tokens)
        for row, rows in enumerate(chosen):
            codes = sae.encode(taken[0][row][rows].cpu())
            n_tokens.append(len(codes))
            n_active.append(int((codes > 0).sum()))
            if not len(codes):
                continue
            largest, token = codes.max(dim=0)
            latents = (largest > 0).nonzero()[:, 0]
            columns = rows.nonzero()[:, 0][token[latents]] - subject.n_prefix
            number = np.full(len(latents), start + row)
            parts.append((number, latents.numpy(), largest[latents].double().numpy(), columns.numpy()))
    if not parts:
        nothing = np.zeros(0, dtype=np.int64)
        return Active(nothing, nothing, np.zeros(0), nothing, np.array(n_tokens), np.array(n_active))
    prompt, latent, largest_of, column = (np.concatenate(entries) for entries in zip(*parts, strict=True))
    return Active(prompt, latent, largest_of, column, np.array(n_tokens), np.array(n_active))
