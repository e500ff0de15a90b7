"""What every subject offers, whatever its architecture.

A subject is a model, its examples and the places where its activations can be read and written. One mechanism serves tracing
and intervening alike: a `Tap` is called at each evaluation of a wanted site with the activation there, and what it returns
takes that activation's place. A tap that returns its argument reads; any other tap writes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from mlinterp.errors import SpecError, unknown
from mlinterp.estimates import PerExample
from mlinterp.io.digests import sha256_json
from mlinterp.io.tensors import tensors_digest
from mlinterp.subjects.grid import Grid
from mlinterp.subjects.unembedding import NoUnembedding, Unembedding

IGNORED = -100
"""Target value of a position that is not scored."""

Split = Literal["train", "validation", "test"]


class Address(NamedTuple):
    """One evaluation inside a forward pass. Feed-forward models have one evaluation a site, so the rest is None."""

    site: str
    sup_step: int | None = None
    cycle: int | None = None
    latent_step: int | None = None


Tap = Callable[[Address, Tensor], Tensor]
"""Called with an address and its activation `[batch, row, d]`; what it returns (same shape and dtype) is used from there on.
Rows are the `n_prefix` prefix positions followed by the input positions."""


@dataclass(frozen=True)
class Batch:
    """Examples that go through the model together."""

    ids: tuple[str, ...]
    inputs: Tensor
    """Token ids, int64 `[batch, pos]`."""
    targets: Tensor
    """Right answer at each position, int64 `[batch, pos]`; `IGNORED` where nothing is scored."""
    mask: Tensor
    """True on real tokens, False on padding, bool `[batch, pos]`."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def scored(self) -> Tensor:
        """True where the prediction counts, bool `[batch, pos]`."""
        return self.targets != IGNORED

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on a device."""
        return Batch(self.ids, self.inputs.to(device), self.targets.to(device), self.mask.to(device))


@dataclass(frozen=True)
class Examples(Batch):
    """A fixed list of examples in a fixed order."""

    def batches(self, size: int) -> Iterator[Batch]:
        """Yield consecutive batches of at most `size` examples."""
        for start in range(0, len(self), size):
            yield self.take(range(start, min(start + size, len(self))))

    def take(self, rows: Sequence[int]) -> Batch:
        """Return the chosen examples, in the order given, as one batch."""
        index = torch.as_tensor(list(rows), dtype=torch.long)
        return Batch(tuple(self.ids[i] for i in index.tolist()), self.inputs[index], self.targets[index], self.mask[index])


@dataclass(frozen=True)
class Outputs:
    """What the model says about a batch."""

    logits: Tensor
    """Final prediction, `[batch, pos, vocab]`."""
    step_preds: Tensor | None = None
    """Recurrent subjects: the predicted token after each supervision step, int64 `[sup_step, batch, pos]`."""
    q_halt: Tensor | None = None
    """Recurrent subjects: the halting logit after each supervision step, `[sup_step, batch]`."""


class Objective(Protocol):
    """How a subject is trained: the loss of step k as a function of (seed, k) and an explicit carry, nothing else."""

    module: torch.nn.Module
    """The parameters being trained."""

    optimizer: Mapping[str, Any]
    """`lr, betas, weight_decay, warmup_steps` and optionally `grad_clip`, `ema`."""

    def loss(self, step: int) -> tuple[Tensor, Mapping[str, float]]:
        """Return the loss of optimizer step `step` and numbers to log. May update the carry."""

    def carry(self) -> dict[str, Tensor]:
        """Return the state that later steps depend on besides weights and optimizer (empty for most models)."""

    def load_carry(self, carry: Mapping[str, Tensor]) -> None:
        """Restore what `carry` returned."""

    def evaluate(self) -> dict[str, float]:
        """Score the model as it stands on held-out examples; higher-level names such as `exact` or `ce_loss`."""

    def scores(self) -> Mapping[str, PerExample]:
        """Return those numbers of `evaluate` that are means over held-out examples, as what each example adds to them.

        None by default: numbers without it have no interval.
        """
        return {}


class Subject(ABC):
    """A model, its examples and its hook points.

    Attributes:
        name: the subject's name in its project.
        kind: `huggingface`, `trm`, `token_set` or `factory`.
        config: everything needed to build it again (JSON values only); part of its digest.
        model: the module whose parameters it is.
        n_prefix: rows at each site that stand before the input positions.
        special_tokens: tokens that stand for no text but for its beginning or end, or for nothing.
        vocab: number of output classes.
        grid: how an example's tokens lie, None for sequences.
        is_set: whether an example's tokens are a set, whose one row is about all of them together.
    """

    name: str
    kind: str
    config: Mapping[str, Any]
    model: torch.nn.Module
    n_prefix: int = 0
    special_tokens: frozenset[int] = frozenset()
    vocab: int
    grid: Grid | None = None
    is_set: bool = False

    @property
    @abstractmethod
    def sites(self) -> tuple[str, ...]:
        """Names of the places that can be read and written, in order of evaluation."""

    @abstractmethod
    def width(self, site: str) -> int:
        """Return d at a site. Raises SpecError (with the nearest name) for a site this subject does not have."""

    @abstractmethod
    def addresses(self, sites: Collection[str]) -> list[Address]:
        """Return every evaluation of the sites in one forward pass, in order."""

    @abstractmethod
    def examples(self, split: Split, n: int, seed: int = 0, **selection: Any) -> Examples:
        """Return `n` examples of a split (fewer where the split is smaller), a pure function of the arguments."""

    @abstractmethod
    def forward(self, batch: Batch, tap: Tap | None = None, sites: Collection[str] = (), until: Address | None = None) -> Outputs | None:
        """Run the model, calling `tap` at every evaluation of `sites`.

        Stops right after `until` and returns None when that address is given. Runs without gradients unless the caller has
        enabled them. Hooks are gone afterwards, also when the tap raises. With a tap that returns its argument the outputs
        are bit-identical to those without one.
        """

    @abstractmethod
    def token_text(self, token: int) -> str:
        """Return a token as people read it."""

    def unembedding(self, site: str, batch: Batch) -> Unembedding | NoUnembedding:
        """Return the direct, linear way from a hook point to the logits, or why there is none; norms are frozen on `batch`."""
        return NoUnembedding(f"a {self.kind} subject does not say how {site} reaches its logits")

    def digest(self) -> str:
        """Return the SHA-256 of the configuration and every weight: equal digests mean equal behaviour."""
        return sha256_json({"config": dict(self.config), "weights": tensors_digest(self.model.state_dict())})

    def objective(self, options: Mapping[str, Any], seed: int) -> Objective:
        """Return how this subject is trained. Raises SpecError where it cannot be."""
        raise SpecError(f"subject '{self.name}' ({self.kind}) cannot be trained", field="subject")

    def positions(self, batch: Batch, selector: str | Sequence[int]) -> Tensor:
        """Return which rows a selector means, bool `[batch, row]`.

        `all` (every real row, prefix included), `tokens` (every real input position), `prefix`, `answer` (scored positions),
        `last` (the last real position), or explicit input positions (negative ones count from the last real one).
        """
        n, length = batch.inputs.shape
        rows = torch.zeros(n, self.n_prefix + length, dtype=torch.bool)
        cells = rows[:, self.n_prefix :]
        first = batch.mask.int().argmax(dim=1)
        last = length - 1 - batch.mask.flip(1).int().argmax(dim=1)
        if selector == "all":
            rows[:, : self.n_prefix] = True
            cells |= batch.mask
        elif selector == "tokens":
            cells |= batch.mask
        elif selector == "prefix":
            rows[:, : self.n_prefix] = True
        elif selector == "answer":
            cells |= batch.scored
        elif selector == "last":
            cells[torch.arange(n), last] = True
        elif isinstance(selector, str):
            raise unknown("positions", selector, ("all", "tokens", "prefix", "answer", "last"), what="position selector")
        else:
            for position in selector:
                at = first + position if position >= 0 else last + 1 + position
                inside = (at >= first) & (at <= last)
                cells[torch.arange(n)[inside], at[inside]] = True
        return rows
