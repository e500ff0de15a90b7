"""Running every arm of a plan on one batch of examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mlinterp.errors import ExperimentError
from mlinterp.interventions.outcomes import Answer, outcome_values, read_answer
from mlinterp.interventions.plan import SELF, Arm, Plan
from mlinterp.interventions.policies import EditContext, LatentCode, Tally
from mlinterp.subjects.base import Address, Batch, Examples, Outputs, Subject, Tap


class Skip:
    """Leaves out what an edit cannot touch: a recurrent subject begins at the supervision step of the first edit.

    Used where the subject offers `states(batch)`, the states before each supervision step, and `forward(..., start=)`, whose
    outputs from there on are bit-identical to those of a whole pass.
    """

    def __init__(self, subject: Any, before: Sequence[Any], baseline: Outputs) -> None:
        self.subject, self.before, self.baseline = subject, before, baseline

    @classmethod
    def over(cls, subject: Subject, batch: Batch, baseline: Outputs) -> Skip | None:
        """Return how to skip, or None for a subject that always runs whole."""
        states = getattr(subject, "states", None)
        return None if states is None else cls(subject, states(batch), baseline)

    def forward(self, batch: Batch, tap: Tap, first: Address) -> Outputs:
        """Return the outputs of a pass whose first edit is at `first`."""
        step = first.sup_step or 0
        tail: Outputs = self.subject.forward(batch, tap=tap, sites={first.site}, start=(step, *self.before[step]))
        whole = self.baseline
        assert tail.step_preds is not None
        assert tail.q_halt is not None
        assert whole.step_preds is not None
        assert whole.q_halt is not None
        step_preds = torch.cat([whole.step_preds[:step], tail.step_preds])
        return Outputs(tail.logits, step_preds, torch.cat([whole.q_halt[:step], tail.q_halt]))


class BatchRunner:
    """Runs the baseline, then each arm, on a batch. Nothing here depends on which batches were run before."""

    def __init__(self, subject: Subject, sae: LatentCode | None, examples: Examples, plan: Plan) -> None:
        self.subject, self.sae, self.examples, self.plan = subject, sae, examples, plan
        self.identities = plan.identities()
        self.by_source: dict[str | None, list[int]] = {}
        for index, arm in enumerate(plan.arms):
            self.by_source.setdefault(arm.source, []).append(index)

    def run(self, rows: Sequence[int], advance: Callable[[], None]) -> dict[str, Tensor]:
        """Return what every arm did to the examples `rows`; index 0 of `arm + 1` axes is the baseline.

        `values`: float64 `[arm + 1, batch, VALUES]`. `preds`: int32 `[arm + 1, batch, pos]`. `q_halt`: the last halting logit,
        float64 `[arm + 1, batch]`, NaN without one. `changed`: scored tokens that differ from the baseline's after each
        supervision step, int32 `[arm, batch, sup_step]`. `tally`: float64 `[arm, batch, 4]` in the order of `Tally`.
        """
        batch = self.examples.take(rows)
        own = self._needed(self.by_source.get(SELF, []))
        states: dict[Address, Tensor] = {}
        outputs = self._forward(batch, _reader(own, states), own)
        baseline = read_answer(batch, outputs)
        n_arms, n_steps = len(self.plan.arms), len(baseline.step_preds)
        found = {
            "values": torch.empty(n_arms + 1, *outcome_values(batch, outputs, baseline, baseline).shape, dtype=torch.float64),
            "preds": torch.empty(n_arms + 1, *baseline.preds.shape, dtype=torch.int32),
            "q_halt": torch.empty(n_arms + 1, len(batch), dtype=torch.float64),
            "changed": torch.empty(n_arms, len(batch), n_steps, dtype=torch.int32),
            "tally": torch.empty(n_arms, len(batch), 4, dtype=torch.float64),
        }
        self._note(found, 0, batch, outputs, baseline, baseline)
        advance()
        skip = Skip.over(self.subject, batch, outputs)
        for source, indices in self.by_source.items():
            sources, real = states, batch.mask
            if source not in (None, SELF):
                sources, real = self._source_states(batch, rows, source, indices)
            for index in indices:
                self._run_arm(found, index, batch, baseline, sources, real, skip)
                advance()
            states = states if source != SELF else {}
        return found

    def _run_arm(
        self,
        found: dict[str, Tensor],
        index: int,
        batch: Batch,
        baseline: Answer,
        sources: Mapping[Address, Tensor],
        real: Tensor,
        skip: Skip | None,
    ) -> None:
        arm = self.plan.arms[index]
        selected = self.subject.positions(batch, arm.place.positions)
        prefix = torch.ones(len(batch), self.subject.n_prefix, dtype=torch.bool)
        tally = Tally.of(len(batch))
        context = EditContext(selected & torch.cat([prefix, real], dim=1), tally, sources)
        editor, first = self._editor(arm, context), arm.place.addresses[0]
        outputs = skip.forward(batch, editor, first) if skip else self._forward(batch, editor, [first])
        answer = read_answer(batch, outputs)
        self._note(found, index + 1, batch, outputs, answer, baseline)
        found["tally"][index] = torch.stack([tally.selected, tally.edited, tally.active, tally.relative], dim=1)
        if index in self.identities and not torch.equal(answer.logits, baseline.logits):
            moved = float((answer.logits.double() - baseline.logits.double()).abs().max())
            raise ExperimentError(
                f"the identity control at {arm.place.addresses[0].site} moved the logits by {moved:.3g}: "
                f"two forward passes of '{self.subject.name}' do not agree, so no effect can be measured"
            )

    def _editor(self, arm: Arm, context: EditContext) -> Tap:
        wanted = frozenset(arm.place.addresses)

        def edit(address: Address, h: Tensor) -> Tensor:
            if address not in wanted:
                return h
            return arm.policy.apply(address, h, None if self.sae is None else self.sae.to(h.device), context)

        return edit

    def _needed(self, indices: Sequence[int]) -> list[Address]:
        """Return the evaluations whose source states these arms patch in, in order of evaluation."""
        wanted = {address for index in indices if self.plan.arms[index].policy.patches for address in self.plan.arms[index].place.addresses}
        return [address for address in self.subject.addresses({address.site for address in wanted}) if address in wanted] if wanted else []

    def _source_states(
        self, batch: Batch, rows: Sequence[int], source: str, indices: Sequence[int]
    ) -> tuple[dict[Address, Tensor], Tensor]:
        """Return the source examples' states and which of their positions are real."""
        partners = self.examples.take([int(self.plan.sources[source][row]) for row in rows])
        if not bool((batch.mask.int().argmax(dim=1) == partners.mask.int().argmax(dim=1)).all()):
            raise ExperimentError(
                "a source example begins at another position than the example it would be patched into: patch examples of equal length"
            )
        needed, states = self._needed(indices), dict[Address, Tensor]()
        self.subject.forward(partners, tap=_reader(needed, states), sites={address.site for address in needed}, until=needed[-1])
        return states, partners.mask

    def _forward(self, batch: Batch, tap: Tap, addresses: Sequence[Address]) -> Outputs:
        outputs = self.subject.forward(batch, tap=tap, sites={address.site for address in addresses})
        assert outputs is not None
        return outputs

    @staticmethod
    def _note(found: dict[str, Tensor], index: int, batch: Batch, outputs: Outputs, answer: Answer, baseline: Answer) -> None:
        found["values"][index] = outcome_values(batch, outputs, answer, baseline)
        found["preds"][index] = answer.preds
        found["q_halt"][index] = float("nan") if outputs.q_halt is None else outputs.q_halt[-1].double().cpu()
        if index:
            changed = (answer.step_preds != baseline.step_preds) & batch.scored
            found["changed"][index - 1] = changed.sum(dim=2).T


def _reader(addresses: Sequence[Address], states: dict[Address, Tensor]) -> Tap:
    wanted = frozenset(addresses)

    def read(address: Address, h: Tensor) -> Tensor:
        if address in wanted:
            states[address] = h.detach().clone()
        return h

    return read
