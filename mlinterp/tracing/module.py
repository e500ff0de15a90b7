"""Capturing activations: a LightningModule whose `predict_step` runs one batch with a tap that only reads."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor

from mlinterp.errors import ExperimentError
from mlinterp.progress import Task
from mlinterp.subjects.base import Address, Batch, Outputs, Subject, Tap
from mlinterp.tracing.parts import TraceParts


class TraceModule(pl.LightningModule):
    """Writes one part of a trace for each batch.

    Args:
        subject: whose activations.
        addresses: which evaluations, in order; the forward pass stops after the last one unless predictions are wanted.
        parts: where the parts go; parts already there are skipped.
        predictions: whether to finish the forward pass and record what the model answers.
        edit: makes the tap that edits a batch at evaluations of `edited_sites`; what is recorded is what the model went on with.
        on_nonfinite: `error` names the first NaN or infinity and stops; `drop` leaves such states out and counts them.
    """

    def __init__(
        self,
        subject: Subject,
        addresses: Sequence[Address],
        parts: TraceParts,
        task: Task,
        *,
        predictions: bool,
        on_nonfinite: Literal["error", "drop"] = "error",
        edit: Callable[[Batch], Tap] | None = None,
        edited_sites: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.edit, self.edited_sites = edit, set(edited_sites)
        self.subject, self.addresses, self.parts, self.task = subject, list(addresses), parts, task
        self.predictions, self.on_nonfinite = predictions, on_nonfinite
        self.dropped = 0

    def predict_step(self, batch: Batch, batch_idx: int) -> None:
        """Capture one batch and write its part."""
        if not self.parts.has(batch_idx):
            captured, outputs = self.capture(batch)
            states, rows = self.lay_out(batch, captured, outputs)
            self.parts.write(batch_idx, states, rows)
        self.task.advance(len(batch))

    def capture(self, batch: Batch) -> tuple[Tensor, Outputs | None]:
        """Return the activations `[address, batch, row, d]` (float32, CPU) and the outputs."""
        wanted = {address: index for index, address in enumerate(self.addresses)}
        first = self.addresses[0]
        rows = self.subject.n_prefix + batch.inputs.shape[1]
        captured = torch.empty(len(wanted), len(batch), rows, self.subject.width(first.site), dtype=torch.float32)

        edit = self.edit(batch) if self.edit else None

        def read(address: Address, h: Tensor) -> Tensor:
            h = edit(address, h) if edit else h
            if address in wanted:
                captured[wanted[address]] = h.detach().to("cpu", torch.float32)
            return h

        sites = {address.site for address in self.addresses} | self.edited_sites
        outputs = self.subject.forward(batch, tap=read, sites=sites, until=None if self.predictions else self.addresses[-1])
        return captured, outputs

    def lay_out(self, batch: Batch, captured: Tensor, outputs: Outputs | None) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """Return the part's states `[n, d]`, example by example, and its rows."""
        keep = self.subject.positions(batch, "all")
        every = torch.cat([torch.ones(len(batch), self.subject.n_prefix, dtype=torch.bool), batch.mask.cpu()], dim=1)
        finite = torch.isfinite(captured).all(dim=3)
        if not bool(finite[:, keep].all()):
            self._nonfinite(batch, finite | ~keep)
        norms, residuals = _norms(captured, keep), self._residuals(captured, keep)
        states, rows, offset = [], [], 0
        for b, example in enumerate(batch.ids):
            rows.append({"kind": "example", "example_id": example, **_example(batch, b)})
            for a, address in enumerate(self.addresses):
                kept = keep[b] & finite[a, b]
                row: dict[str, Any] = {"kind": "step", "example_id": example, **address._asdict()}
                count = int(kept.sum())
                row |= {"state_offset": offset, "state_count": count, "norm": norms[a][b], "residual": residuals[a][b]}
                if not torch.equal(kept, every[b]):  # a row without `positions` stands for the prefix and every real position
                    row["positions"] = (kept.nonzero()[:, 0] - self.subject.n_prefix).tolist()
                rows.append(row | self._answer(batch, b, address, outputs))
                states.append(captured[a, b, kept].numpy())
                offset += count
        return np.concatenate(states), rows

    def _residuals(self, captured: Tensor, keep: Tensor) -> list[list[float | None]]:
        """Return mean |h - h_prev| / |h_prev| where h_prev is the same site's evaluation before, None at the first."""
        before: dict[str, int] = {}
        residuals: list[list[float | None]] = []
        for a, address in enumerate(self.addresses):
            if address.site in before:
                previous = captured[before[address.site]]
                ratio = (captured[a] - previous).norm(dim=2) / previous.norm(dim=2).clamp_min(1e-12)
                residuals.append(_masked_means(ratio, keep))
            else:
                residuals.append([None] * keep.shape[0])
            before[address.site] = a
        return residuals

    def _answer(self, batch: Batch, b: int, address: Address, outputs: Outputs | None) -> dict[str, Any]:
        nothing = {"pred": None, "token_acc": None, "exact": None, "q_halt": None, "halted": None}
        if outputs is None:
            return nothing
        if outputs.step_preds is None:
            if address != self.addresses[-1]:
                return nothing
            pred = outputs.logits[b].argmax(dim=-1).cpu()
        else:
            later = [other for other in self.addresses if other.sup_step == address.sup_step][-1]
            if address != later or address.sup_step is None:
                return nothing
            pred = outputs.step_preds[address.sup_step, b].cpu()
        scored = batch.scored[b]
        right = (pred == batch.targets[b])[scored]
        halt = None if outputs.q_halt is None or address.sup_step is None else float(outputs.q_halt[address.sup_step, b])
        return {
            "pred": pred[batch.mask[b]].tolist(),
            "token_acc": float(right.float().mean()) if len(right) else None,
            "exact": bool(right.all()) if len(right) else None,
            "q_halt": halt,
            "halted": None if halt is None else halt > 0,
        }

    def _nonfinite(self, batch: Batch, finite: Tensor) -> None:
        bad = (~finite).nonzero()
        if self.on_nonfinite == "drop":
            self.dropped += len(bad)
            return
        a, b, row = bad[0].tolist()
        address = self.addresses[a]
        steps = "".join(f", {name} {value}" for name, value in address._asdict().items() if name != "site" and value is not None)
        raise ExperimentError(
            f"activation at {address.site}{steps} is NaN or infinite (example {batch.ids[b]}, position {row - self.subject.n_prefix}); "
            "set variables.on_nonfinite to 'drop' to leave such states out"
        )


def _example(batch: Batch, b: int) -> dict[str, Any]:
    fields = {"input": batch.inputs[b].tolist(), "target": batch.targets[b].tolist()}
    return fields if bool(batch.mask[b].all()) else {**fields, "mask": batch.mask[b].int().tolist()}


def _norms(captured: Tensor, keep: Tensor) -> list[list[float | None]]:
    return [_masked_means(h.norm(dim=2), keep) for h in captured]


def _masked_means(values: Tensor, keep: Tensor) -> list[float | None]:
    """Return each example's mean over its kept rows in float64; None where it is not finite."""
    total = torch.where(keep, values.double(), 0.0).sum(dim=1) / keep.sum(dim=1).clamp_min(1)
    return [float(value) if torch.isfinite(value) else None for value in total]
