"""Running a model as its latents and errors: any node can be ablated, and everything after it follows.

    h = decode(f) + e      f = encode(h): the latents,  e: the error, what they do not explain

At every hook point the activation of the run at hand is taken apart so; ablated nodes get what stands in their place, the others keep what
they are in that run, and the model goes on with

    h' = h + sum over ablated latents j of (f°_j - f_j) · direction_j  +  (e° - e, where the error is ablated)

so that a run with nothing ablated is the model's own, to the bit. What stands in the place of a node (°) is its value in the run on
the corrupted prompt, at the same position (`resample`); zero (`zero`: of the latents and of the error, which leaves the decoder's bias); or
its mean over all tokens of the corrupted prompts of the pairs that choose (`mean`). Padding is never edited.

A batch that does not fit in memory is split in two, until it does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from mlinterp.circuits.latent_nodes import Nodes, Place
from mlinterp.halving import halved
from mlinterp.patching.answers import answers_only, at_answers, measured, tokens_asked
from mlinterp.patching.components import Ablation
from mlinterp.patching.metrics import Metric
from mlinterp.patching.replay import anatomy
from mlinterp.patching.stand_ins import patched_positions
from mlinterp.sae.model import SAE
from mlinterp.subjects.base import Address, Tap
from mlinterp.subjects.hooked import HookedSubject
from mlinterp.subjects.pairs import Pairs, answer_columns

Item = TypeVar("Item")
Found = TypeVar("Found")
At = Callable[[int, Tensor], Tensor]
"""Called with the number of a hook point and the activation there; what it returns takes that activation's place."""


class Code(NamedTuple):
    """An activation as latents and error; also a difference of two."""

    latents: Tensor
    """`[row, pos, latent]`."""
    error: Tensor
    """`[row, pos, d]`."""

    def less(self, other: Code) -> Code:
        """Return the difference from another."""
        return Code(self.latents - other.latents, self.error - other.error)


class LatentMachine:
    """Both prompts of every pair, and what becomes of the clean run when nodes are ablated.

    Attributes:
        nodes: every latent and error.
        m_clean: the metric with nothing ablated, float64 `[pair]`.
        m_empty: the metric with every node ablated.
        m_corrupted: the metric of the run on the corrupted prompt.
        edited_at: where ablated nodes are edited, bool `[pair, pos, 1]`.
        clean: the activations of the clean runs, one `[pair, pos, d]` for each hook point.

    Args:
        subject: the model.
        pairs: the prompts; both of a pair have as many tokens.
        saes: an SAE for each hook point, without gradients.
        metric: what is read at the answer position. Raises SpecError for a pair that lacks a token it needs.
        ablation: what stands in the place of an ablated node.
        reference: the pairs whose corrupted prompts `mean` is over; all where None.
        batch_size: runs a batch.
    """

    def __init__(
        self,
        subject: HookedSubject,
        pairs: Pairs,
        saes: Mapping[str, SAE],
        metric: Metric,
        ablation: Ablation = "resample",
        reference: Sequence[int] | None = None,
        batch_size: int = 64,
    ) -> None:
        self.subject, self.pairs, self.metric, self.ablation, self.batch_size = subject, pairs, metric, ablation, batch_size
        self.device = next(subject.model.parameters()).device
        self.tokens = tokens_asked(pairs, metric, self.device)
        self.sites = [address.site for address in subject.addresses(list(saes))]
        self.saes = [saes[site].to(self.device) for site in self.sites]
        self.directions = [sae.directions(range(sae.config.d_sae)) for sae in self.saes]
        self.nodes = Nodes(tuple(Place(site, sae.config.d_sae) for site, sae in zip(self.sites, self.saes, strict=True)))
        self._columns = answer_columns(pairs.clean)
        parts = anatomy(subject)
        self._head = parts.head if parts is not None and set(self.sites) <= set(subject.points) else None
        self.edited_at = patched_positions(subject, pairs, ablation).to(self.device)[..., None]
        with torch.no_grad():
            self.clean, self._clean_logits = self._record(corrupted=False)
            corrupted, corrupted_logits = self._record(corrupted=True)
            self._stand_in = self._in_place(corrupted, list(range(len(pairs)) if reference is None else reference))
        everyone = list(range(len(pairs)))
        self.m_clean, self.m_corrupted = (self._plain(self.measured(logits, everyone)) for logits in (self._clean_logits, corrupted_logits))
        self.m_empty = self._metrics(self.nodes.none[None], everyone)[0]

    def code(self, place: int, h: Tensor) -> Code:
        """Take an activation apart into latents and error, in the SAE's own precision at least."""
        sae = self.saes[place]
        h = h.to(sae.dtype)
        latents = sae.encode(h)
        return Code(latents, h - sae.decode(latents))

    def steps(self, place: int, rows: Sequence[int]) -> Code:
        """Return every node of some pairs' clean runs less what stands in its place; zero on padding."""
        own = self.code(place, self.clean[place][list(rows)])
        latents, error = own.less(self._instead(place, rows))
        there = self.edited_at[list(rows)]
        return Code(torch.where(there, latents, 0), torch.where(there, error, 0))

    def added(self, place: int, change: Code) -> Tensor:
        """Return what a change of nodes adds to an activation, `[row, pos, d]`."""
        return change.latents @ self.directions[place] + change.error

    def without(self, place: int, h: Tensor, rows: Sequence[int], kept: Tensor) -> Tensor:
        """Return activations with some nodes ablated; `kept` says which are not, bool `[row, node of the hook point]`."""
        if bool(kept.all()):
            return h
        change = self._instead(place, rows).less(self.code(place, h))
        there = self.edited_at[list(rows)]
        latents = torch.where(there & ~kept[:, None, :-1], change.latents, 0)
        error = torch.where(there & ~kept[:, None, -1:], change.error, 0)
        return (h + self.added(place, Code(latents, error))).to(h.dtype)

    def on_the_way(self, place: int, rows: Sequence[int], share: float) -> Tensor:
        """Return the activations of a hook point on the straight way from all of its nodes ablated (0) to the clean run (1)."""
        whole = self.clean[place][list(rows)]
        with torch.no_grad():
            start = self.without(place, whole, rows, torch.zeros(1, len(self.directions[place]) + 1, dtype=torch.bool, device=self.device))
            return start + share * (whole - start)

    def metrics(self, circuits: np.ndarray, rows: Sequence[int]) -> np.ndarray:
        """Return the metric of some pairs where all nodes but those of circuits `[circuit, node]` are ablated, float64 `[circuit, row]`.

        All nodes are the clean run and none the run with everything ablated, to the bit.
        """
        found = np.empty((len(circuits), len(rows)))
        is_all, is_none = circuits.all(axis=1), ~circuits.any(axis=1)
        found[is_all], found[is_none] = self.m_clean[list(rows)], self.m_empty[list(rows)]
        others = ~(is_all | is_none)
        if others.any():
            found[others] = self._metrics(circuits[others], rows)
        return found

    def run(self, rows: Sequence[int], at: At, until: int | None = None, *, corrupted: bool = False) -> Tensor | None:
        """Run prompts with edits and return their logits at the answer positions; None where the run stops after hook point `until`."""
        examples, number = self.pairs.corrupted if corrupted else self.pairs.clean, {site: n for n, site in enumerate(self.sites)}
        tap: Tap = lambda address, h: at(number[address.site], h)  # noqa: E731
        columns = self._columns[list(rows)]
        with answers_only(self._head, columns):
            stop = None if until is None else Address(self.sites[until])
            outputs = self.subject.forward(examples.take(list(rows)).to(self.device), tap, self.sites, stop)
        return None if outputs is None else at_answers(outputs.logits, columns)

    def measured(self, logits: Tensor, rows: Sequence[int]) -> Tensor:
        """Return the metric of each row, `[row]`."""
        return measured(self.metric, logits, self._clean_logits[list(rows)], self.tokens[list(rows)])

    def falls(self, rows: Sequence[int], at: Callable[[Sequence[int]], At]) -> np.ndarray:
        """Return by how much the metric falls when clean runs are edited, float64 `[row]`; `at` makes the edit of some pairs."""
        with torch.no_grad():
            values = np.concatenate(list(self.batched(rows, lambda some: self._edited(some, at(some)))))
        return np.asarray(self.m_clean[list(rows)] - values)

    def batched(self, items: Sequence[Item], run: Callable[[Sequence[Item]], Found]) -> Iterator[Found]:
        """Yield what `run` makes of batches of runs, in order."""
        for at in range(0, len(items), self.batch_size):
            yield from halved(items[at : at + self.batch_size], run, f"run of {self.edited_at.shape[1]} tokens")

    def _metrics(self, circuits: np.ndarray, rows: Sequence[int]) -> np.ndarray:
        jobs = [(number, row) for number in range(len(circuits)) for row in rows]

        def run(some: Sequence[tuple[int, int]]) -> np.ndarray:
            numbers, these = zip(*some, strict=True)
            kept = torch.from_numpy(circuits[list(numbers)]).to(self.device)
            return self._edited(these, lambda place, h: self.without(place, h, these, kept[:, self.nodes.at(place)]))

        with torch.no_grad():
            return np.concatenate(list(self.batched(jobs, run))).reshape(len(circuits), len(rows))

    def _edited(self, rows: Sequence[int], at: At) -> np.ndarray:
        """Return the metric of edited clean runs, `[row]`: where nothing was changed that of the clean run, to the bit."""
        changed = torch.zeros(len(rows), dtype=torch.bool, device=self.device)

        def note(place: int, h: Tensor) -> Tensor:
            edited = at(place, h)
            changed.logical_or_((edited != h).flatten(1).any(dim=1))
            return edited

        logits = self.run(rows, note)
        assert logits is not None
        values = self._plain(self.measured(logits, rows))
        return np.where(changed.cpu().numpy(), values, self.m_clean[list(rows)])

    def _record(self, *, corrupted: bool) -> tuple[list[Tensor], Tensor]:
        """Return the activations of plain runs at every hook point, and their logits at the answer positions."""
        seen: list[list[Tensor]] = [[] for _ in self.sites]

        def run(some: Sequence[int]) -> Tensor:
            kept: dict[int, Tensor] = {}

            def keep(place: int, h: Tensor) -> Tensor:
                kept[place] = h.clone()
                return h

            logits = self.run(some, keep, corrupted=corrupted)
            assert logits is not None
            for place, states in enumerate(seen):
                states.append(kept[place])
            return logits

        logits = torch.cat(list(self.batched(range(len(self.pairs)), run)))
        return [torch.cat(states) for states in seen], logits

    def _in_place(self, corrupted: list[Tensor], reference: list[int]) -> list[Tensor] | list[Code]:
        """Return the corrupted runs' activations, or what stands in a node's place in every pair, `[1, 1, latent]` and `[1, 1, d]`."""
        if self.ablation == "resample":
            return corrupted
        found, real = [], self.pairs.corrupted.mask.to(self.device)
        for place, states in enumerate(corrupted):
            total, n = Code(torch.zeros(()), torch.zeros(())), 0
            for row in reference:
                code = self.code(place, states[row][real[row]][None])
                total = Code(*(sum_ + part.sum(dim=1, keepdim=True) for sum_, part in zip(total, code, strict=True)))
                n += int(real[row].sum())
            share = 0.0 if self.ablation == "zero" else 1 / n
            found.append(Code(total.latents * share, total.error * share))
        return found

    def _instead(self, place: int, rows: Sequence[int]) -> Code:
        stand_in = self._stand_in[place]
        return stand_in if isinstance(stand_in, Code) else self.code(place, stand_in[list(rows)])

    @staticmethod
    def _plain(values: Tensor) -> np.ndarray:
        return np.asarray(values.detach().double().cpu().numpy())
