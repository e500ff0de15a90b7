"""What an SAE does to behaviour: the subject runs clean, with the reconstruction in place of the activation, and with it ablated.

    ce_loss_recovered = (ce_loss_ablated - ce_loss_with_sae) / (ce_loss_ablated - ce_loss_clean)

Losses are nats a scored position, over log_softmax(logits) in float64. One number hides which of three losses moved, so all three
are returned, and accuracy beside them: where the answer is saturated, losses still move.

A transcoder's reconstruction is computed from what it reads and takes the place of what it writes, later in the same forward pass; the
ablations are of what it writes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from torch import Tensor

from mlinterp.errors import ExperimentError
from mlinterp.estimates import PerExample
from mlinterp.sae.config import SAEConfig
from mlinterp.sae.model import SAE
from mlinterp.sae.pairing import partners
from mlinterp.sae.selection import Positions, cells
from mlinterp.subjects.base import Address, Batch, Examples, Subject

NOTHING_LOST = 1e-9
"""Nats a position below which an ablation cost nothing."""


@dataclass(frozen=True)
class Behaviour:
    """One way of running the subject, scored."""

    ce_loss: float
    """Nats a scored position."""
    token_acc: float
    """Share of scored positions that are right."""
    exact: float
    """Share of examples with every scored position right."""
    kl_div: float
    """KL(clean || this), nats a scored position; 0 for the clean run."""


@dataclass(frozen=True)
class Substitution:
    """Four ways of running the same examples."""

    n_examples: int
    """Examples with at least one scored position."""
    n_tokens: int
    """Scored positions."""
    clean: Behaviour
    with_sae: Behaviour
    ablated_zero: Behaviour
    ablated_mean: Behaviour
    per_example: dict[str, PerExample] = field(repr=False)
    """Every number of `numbers` as what each example adds, in the order of the examples."""

    @property
    def ce_loss_recovered(self) -> float | None:
        """Share of the loss of zero ablation that the SAE wins back; None where ablation costs nothing."""
        return self._recovered(self.ablated_zero)

    @property
    def ce_loss_recovered_mean(self) -> float | None:
        """The same against mean ablation."""
        return self._recovered(self.ablated_mean)

    def numbers(self) -> dict[str, float | None]:
        """Return every number under its name in the field; `ablated` without more is zero ablation."""
        named = {"clean": self.clean, "with_sae": self.with_sae, "ablated": self.ablated_zero, "ablated_mean": self.ablated_mean}
        found: dict[str, float | None] = {f"ce_loss_{name}": run.ce_loss for name, run in named.items()}
        found |= {"ce_loss_recovered": self.ce_loss_recovered, "ce_loss_recovered_mean": self.ce_loss_recovered_mean}
        found |= {f"kl_div_{name}": run.kl_div for name, run in named.items() if name != "clean"}
        found |= {f"token_acc_{name}": run.token_acc for name, run in named.items()}
        return found | {f"exact_{name}": run.exact for name, run in named.items()}

    def table(self) -> list[dict[str, str | float]]:
        """Return one line for each way of running."""
        named = {"clean": self.clean, "with SAE": self.with_sae, "ablated (zero)": self.ablated_zero, "ablated (mean)": self.ablated_mean}
        return [{"run": name, **asdict(run)} for name, run in named.items()]

    def payload(self) -> dict[str, float | None]:
        """Return the block of `sae_metrics.json`: its fixed names, then every number. What is not finite is None."""
        fixed = {
            "exact_baseline": self.clean.exact,
            "exact_recon": self.with_sae.exact,
            "token_baseline": self.clean.token_acc,
            "token_recon": self.with_sae.token_acc,
            "kl": self.with_sae.kl_div,
        }
        return {name: value if value is not None and math.isfinite(value) else None for name, value in {**fixed, **self.numbers()}.items()}

    def _recovered(self, ablated: Behaviour) -> float | None:
        lost = ablated.ce_loss - self.clean.ce_loss
        return (ablated.ce_loss - self.with_sae.ce_loss) / lost if abs(lost) > NOTHING_LOST else None


class _Score:
    """Sums over the scored positions of each example, for one way of running."""

    def __init__(self) -> None:
        self._added: list[Tensor] = []

    def add(self, batch: Batch, logits: Tensor, clean: Tensor) -> None:
        """Add a batch, given its log-probabilities `[batch, pos, vocab]` now and in the clean run."""
        scored = batch.scored
        chance, targets = clean[scored].exp(), batch.targets[scored]
        ce = -logits[scored].gather(1, targets[:, None])[:, 0]
        kl = torch.where(chance > 0, chance * (clean[scored] - logits[scored]), 0).sum(dim=1)
        right = (logits[scored].argmax(dim=-1) == targets).double()
        each = torch.zeros(4, len(scored), dtype=torch.float64)
        each.index_add_(1, scored.nonzero()[:, 0], torch.stack([ce, right, kl, torch.ones_like(ce)]))
        self._added.append(each[:, each[3] > 0])

    def sums(self) -> np.ndarray:
        """Return `ce, right, kl, tokens` of each example that has a scored position, `[4, n]`."""
        return torch.cat(self._added, dim=1).numpy()


def _behaviour(sums: np.ndarray) -> Behaviour:
    ce, right, kl, tokens = sums
    n = float(tokens.sum())
    return Behaviour(float(ce.sum()) / n, float(right.sum()) / n, float((right == tokens).mean()), float(kl.sum()) / n)


def _per_example(sums: dict[str, np.ndarray]) -> dict[str, PerExample]:
    """Return every number of `Substitution.numbers` that is defined as what each example adds."""
    named = dict(zip(("clean", "with_sae", "ablated", "ablated_mean"), sums.values(), strict=True))
    found = {f"ce_loss_{name}": PerExample(ce, tokens) for name, (ce, _, _, tokens) in named.items()}
    for suffix in ("", "_mean"):
        ablated = named[f"ablated{suffix}"][0]
        found[f"ce_loss_recovered{suffix}"] = PerExample(ablated - named["with_sae"][0], ablated - named["clean"][0])
    found |= {f"kl_div_{name}": PerExample(kl, tokens) for name, (_, _, kl, tokens) in named.items() if name != "clean"}
    found |= {f"token_acc_{name}": PerExample(right, tokens, is_share=True) for name, (_, right, _, tokens) in named.items()}
    for name, (_, right, _, tokens) in named.items():
        found[f"exact_{name}"] = PerExample((right == tokens).astype(np.float64), np.ones(len(tokens)), is_share=True)
    return found


def writes_of(
    subject: Subject, config: SAEConfig, reads: Sequence[Address], targets: Sequence[Address] | None = None
) -> dict[Address, Address]:
    """Return which evaluation the reconstruction of each evaluation that an SAE reads takes the place of.

    Args:
        subject: whose evaluations they are.
        config: what kind of SAE.
        reads: the evaluations read.
        targets: a transcoder's evaluations written, one for each read; those that stand beside them at its target site where None.

    Raises ExperimentError where behaviour cannot be measured: a crosscoder, two evaluations that would write to one, and one that is
    written before what would be written is read.
    """
    if config.kind == "crosscoder":
        sites = ", ".join(config.sites)
        raise ExperimentError(f"a crosscoder reads and writes {sites} at once: behaviour with its reconstruction in place is not measured")
    if config.kind == "sae":
        return {address: address for address in reads}
    writes = dict(zip(reads, targets or partners(reads, subject.addresses({config.target_site})), strict=True))
    order = {
        address: place for place, address in enumerate(subject.addresses({address.site for pair in writes.items() for address in pair}))
    }
    taken: dict[Address, Address] = {}
    for read, write in writes.items():
        if write in taken:
            raise ExperimentError(f"what is read at {_named(taken[write])} and at {_named(read)} would both be written at {_named(write)}")
        if order[read] > order[write]:
            raise ExperimentError(f"{_named(write)} comes before {_named(read)}, so it cannot be replaced by what is read there")
        taken[write] = read
    return writes


def _named(address: Address) -> str:
    return ", ".join([address.site, *(f"{name} {step}" for name, step in address._asdict().items() if name != "site" and step is not None)])


Replacement = Callable[[Tensor, Tensor], Tensor]
"""Given what was read and what is there, `[n, d_in]` and `[n, d_out]`, returns what takes its place."""


@torch.no_grad()
def substitute(
    subject: Subject,
    examples: Examples,
    sae: SAE,
    addresses: Sequence[Address],
    *,
    mean: Tensor,
    targets: Sequence[Address] | None = None,
    positions: Positions = "tokens",
    special: Collection[int] = (),
    batch_size: int = 32,
) -> Substitution:
    """Run every example clean, with the SAE, zero-ablated and mean-ablated at the given evaluations and rows.

    Args:
        subject: whose behaviour.
        examples: which examples; positions that are not scored do not count.
        sae: its reconstruction takes the place of what it reconstructs.
        addresses: evaluations that it reads.
        mean: `[d_out]`, what mean ablation puts there.
        targets: evaluations that a transcoder writes, as `writes_of` takes them.
        positions: rows where it does.
        special: tokens at which it does not.
        batch_size: examples a forward pass.

    Raises ExperimentError where there is no example or no position is scored, and where `writes_of` does.
    """
    if not len(examples):
        raise ExperimentError("there are no examples of this split on which to compare behaviour")
    writes = writes_of(subject, sae.config, addresses, targets)
    runs: dict[str, Replacement | None] = {
        "clean": None,
        "with_sae": lambda read, _: sae.to(read.device)(read),
        "ablated_zero": lambda _, there: torch.zeros_like(there),
        "ablated_mean": lambda _, there: mean.to(there).expand_as(there),
    }
    scores = {name: _Score() for name in runs}
    for batch in examples.batches(batch_size):
        rows = cells(subject, batch, positions, special)
        clean: Tensor | None = None
        for name, replacement in runs.items():
            logits = _log_probs(subject, batch, writes, rows, replacement)
            clean = logits if clean is None else clean
            scores[name].add(batch, logits, clean)
    sums = {name: score.sums() for name, score in scores.items()}
    n_examples, n_tokens = sums["clean"].shape[1], int(sums["clean"][3].sum())
    if not n_examples:
        raise ExperimentError("no position of these examples is scored, so there is no loss to compare")
    done = {name: _behaviour(each) for name, each in sums.items()}
    return Substitution(n_examples=n_examples, n_tokens=n_tokens, **done, per_example=_per_example(sums))


def _log_probs(subject: Subject, batch: Batch, writes: Mapping[Address, Address], rows: Tensor, replacement: Replacement | None) -> Tensor:
    """Return log-probabilities `[batch, pos, vocab]`, float64 on the CPU, with the chosen rows replaced."""
    if replacement is None:
        outputs = subject.forward(batch)
        assert outputs is not None
        return torch.log_softmax(outputs.logits.double(), dim=-1).cpu()
    read: dict[Address, Tensor] = {}

    def tap(address: Address, h: Tensor) -> Tensor:
        where = rows.to(h.device)
        if address in writes:
            read[writes[address]] = h[where]
        if address not in read:
            return h
        edited = h.clone()
        edited[where] = replacement(read.pop(address), h[where]).to(h.dtype)
        return edited

    outputs = subject.forward(batch, tap=tap, sites={address.site for pair in writes.items() for address in pair})
    assert outputs is not None
    return torch.log_softmax(outputs.logits.double(), dim=-1).cpu()
