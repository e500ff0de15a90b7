"""Driving interventions over batches, and keeping what they did so that a killed stage goes on where it stopped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor

from mlinterp.errors import VerificationError
from mlinterp.interventions.batch import BatchRunner
from mlinterp.io.tensors import digest_file, load_tensors, save_tensors
from mlinterp.progress import Task


class BatchFiles:
    """One file of outcomes for each finished batch, each whole or absent.

    `fingerprint` says what they are outcomes of; files of another stage in the same folder are refused.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.folder, self.fingerprint = folder, fingerprint

    def _path(self, index: int) -> Path:
        return self.folder / f"batch-{index:05d}.safetensors"

    def has(self, index: int) -> bool:
        """Whether a batch is done. A damaged file is as good as none. Raises VerificationError for another stage's file."""
        if not self._path(index).is_file():
            return False
        try:
            _, meta = load_tensors(self._path(index))
        except VerificationError:
            return False
        if meta["fingerprint"] != self.fingerprint:
            raise VerificationError(
                f"{self.folder}: holds outcomes of other interventions (their settings or inputs differ); remove the folder to start over"
            )
        return True

    def write(self, index: int, outcomes: dict[str, Tensor]) -> None:
        """Write a batch's outcomes, durably."""
        digest_file(self._path(index)).unlink(missing_ok=True)
        save_tensors(self._path(index), outcomes, {"fingerprint": self.fingerprint})

    def read(self, count: int) -> dict[str, np.ndarray]:
        """Return batches 0..count-1 joined along the examples (axis 1). Raises VerificationError where one is damaged."""
        batches = [load_tensors(self._path(index))[0] for index in range(count)]
        return {name: torch.cat([batch[name] for batch in batches], dim=1).numpy() for name in batches[0]}


class InterventionModule(pl.LightningModule):
    """Runs a plan over batches of example numbers, writing each batch's outcomes before the next begins.

    The subject and the SAE stay outside Lightning's view on purpose: the subject decides on its own device.
    """

    def __init__(self, runner: BatchRunner, files: BatchFiles, task: Task) -> None:
        super().__init__()
        self.runner, self.files, self.task = runner, files, task

    def transfer_batch_to_device(self, batch: Sequence[int], device: torch.device, dataloader_idx: int) -> Sequence[int]:
        """Leave example numbers as they are."""
        return batch

    def predict_step(self, rows: Sequence[int], batch_idx: int) -> None:
        """Run every arm on the examples `rows`, or skip them where that is done."""
        if self.files.has(batch_idx):
            self.task.advance(len(self.runner.plan.arms) + 1, "done before")
            return
        self.files.write(batch_idx, self.runner.run(rows, self.task.advance))


class RowBatches:
    """Consecutive ranges of `size` example numbers, for a Trainer."""

    def __init__(self, n: int, size: int) -> None:
        self.ranges = [range(start, min(start + size, n)) for start in range(0, n, size)]

    def __len__(self) -> int:
        return len(self.ranges)

    def __iter__(self) -> Iterator[range]:
        return iter(self.ranges)
