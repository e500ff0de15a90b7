"""The one place that builds a Lightning Trainer, and the one way a fit survives being killed.

Lightning drives the loop; it owns neither our run (no logger of its own) nor our persistence. A fit is a `ResumableModule`:
its whole state is named tensors, its data are a pure function of the step, and one Lightning `training_step` runs a chunk of
inner steps, so that the loop's overhead is paid once a chunk. `fit` writes a checkpoint after each `checkpoint_every` steps and,
called again on the same folder, goes on from the newest one to the same bits.

On several devices Lightning starts one process for each; the module itself shares out its data and averages its gradients, for
they do not come from `backward`. What the first process reports comes back to this one, which alone knows of runs and terminals. They
end together: whatever stops this process or one of the others stops them all.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.multiprocessing.spawn import ProcessRaisedException

from mlinterp import errors
from mlinterp.io.digests import sha256_json
from mlinterp.io.tensors import digest_file, load_tensors, save_tensors
from mlinterp.progress import Reporter, Task


class Chunk(NamedTuple):
    """Inner steps `start` to `stop - 1`."""

    start: int
    stop: int


class ResumableModule(pl.LightningModule, ABC):
    """A fit whose state is `tensors()` and whose step k depends on (state, k) only.

    Attributes:
        stage: prefix of its step metrics and name of its bar, such as `sae_fit`.
        total_steps: how many inner steps there are.
        step: how many are done.
    """

    stage: str
    total_steps: int

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.step = 0

    @abstractmethod
    def fingerprint(self) -> Mapping[str, Any]:
        """Return what must be equal for a checkpoint to fit (JSON values)."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return the whole training state by name: weights, optimizer moments, counters."""

    @abstractmethod
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over a state that `tensors` returned."""

    @abstractmethod
    def inner_step(self, step: int) -> Mapping[str, float | Tensor]:
        """Do optimizer step `step` and return numbers to log. Scalars may stay tensors: only the last step of a chunk is read."""

    def configure_optimizers(self) -> None:
        """Leave optimizers to `inner_step`."""

    def on_train_start(self) -> None:
        """Put optimizers' moments where their parameters are by now: a checkpoint is read before anything moves to a device."""
        for each in vars(self).values():
            if isinstance(each, torch.optim.Optimizer):
                each.load_state_dict(each.state_dict())

    def training_step(self, chunk: Chunk) -> None:
        """Run the inner steps of one chunk. Raises ExperimentError where a loss is no number any more."""
        latest: Mapping[str, float | Tensor] = {}
        for step in range(*chunk):
            latest = self.inner_step(step)
            self.step = step + 1
        self.latest = {name: float(value) for name, value in latest.items()}
        for name, value in self.latest.items():
            if name.rpartition("/")[2] == "loss" and not math.isfinite(value):
                told = f"{self.stage}/{name} is {value} after step {self.step}"
                raise errors.ExperimentError(f"{told}: the fit diverged; a smaller lr may hold it")


class _Chunks:
    """The inner steps still to do, in chunks that end on every multiple of `size`."""

    def __init__(self, start: int, stop: int, size: int) -> None:
        self.start, self.stop, self.size = start, stop, size
        self.lows = range(start - start % size, stop, size)

    def __len__(self) -> int:
        return len(self.lows)

    def __iter__(self) -> Iterator[Chunk]:
        return (Chunk(max(self.start, low), min(low + self.size, self.stop)) for low in self.lows)


class _Report(pl.Callback):
    def __init__(self, reporter: Reporter, task: Task) -> None:
        self.reporter, self.task = reporter, task

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, chunk: Chunk, batch_idx: int) -> None:
        assert isinstance(module, ResumableModule)
        self.reporter.metrics({f"{module.stage}/{name}": value for name, value in module.latest.items()}, step=module.step)
        note = "  ".join(f"{name} {value:.4g}" for name, value in list(module.latest.items())[:3])
        self.task.advance(chunk.stop - chunk.start, note)


class _Checkpoint(pl.Callback):
    def __init__(self, folder: Path, every: int, reporter: Reporter) -> None:
        self.folder, self.every, self.reporter = folder, every, reporter
        self.saved: list[Path] = []

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, chunk: Chunk, batch_idx: int) -> None:
        assert isinstance(module, ResumableModule)
        if (module.step % self.every and module.step != module.total_steps) or not trainer.is_global_zero:
            return
        self.reporter.flush()
        meta = {"step": module.step, "fingerprint": sha256_json(module.fingerprint())}
        self.saved.append(save_tensors(self.folder / f"step-{module.step:09d}.safetensors", module.tensors(), meta))
        while len(self.saved) > 2:
            oldest = self.saved.pop(0)
            oldest.unlink(missing_ok=True)
            digest_file(oldest).unlink(missing_ok=True)


SAID_ELSEWHERE = (
    r".*does not have many workers.*",
    r".*configure_optimizers` returned `None`.*",
    r".*isinstance\(treespec, LeafSpec\).*",
    r".*predict returned None.*",
    r".*in eval mode at the start of training.*",
)
"""Lightning's warnings about what this module does on purpose."""


def _say_less() -> None:
    """Keep Lightning from telling what is told elsewhere, or meant."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in SAID_ELSEWHERE:
        warnings.filterwarnings("ignore", message=message)


class _Processes(DDPStrategy):
    """Lightning's processes and process group, around a module that averages its own gradients."""

    def __init__(self) -> None:
        super().__init__(start_method="spawn")

    def setup_environment(self) -> None:
        """Join the group; a new process has yet to be told what to say."""
        _say_less()
        super().setup_environment()

    def configure_ddp(self) -> None:
        """Leave the module unwrapped: there is no backward pass to hook into."""


class _Relay:
    """A Reporter and a Task for the first of several processes: what they are told goes through a pipe to the one that started them."""

    def __init__(self) -> None:
        self._here, self._there = multiprocessing.Pipe()

    def __getstate__(self) -> dict[str, Any]:
        """Return the state that goes to another process."""
        return {"_there": self._there}

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        self._tell("metrics", dict(values), step)

    def advance(self, amount: float = 1, note: str = "") -> None:
        self._tell("advance", amount, note)

    def flush(self) -> None:
        self._tell("flush")

    def task(self, description: str, total: float) -> Any:
        raise NotImplementedError("the bar is open already, in the process that listens")

    def _tell(self, *said: Any) -> None:
        if dist.get_rank() == 0:
            self._there.send(said)
            self._there.recv()

    def _heard(self) -> Iterator[Any]:
        """Yield what is said, until nobody is left to speak."""
        with suppress(EOFError, OSError):
            while True:
                yield self._here.recv()
                self._here.send(None)

    @contextmanager
    def passing_on(self, reporter: Reporter, task: Task) -> Iterator[None]:
        """Pass on what is said until the block ends. What listens may fail: then the process that speaks does, and so does the block."""
        means: dict[str, Callable[..., None]] = {"metrics": reporter.metrics, "advance": task.advance, "flush": reporter.flush}
        failures: list[Exception] = []

        def listen() -> None:
            try:
                for name, *said in self._heard():
                    means[name](*said)
            except Exception as error:  # noqa: BLE001 - raised again below, in the thread that waits
                failures.append(error)
            finally:
                self._here.close()

        listener = Thread(target=listen, name="relay")
        listener.start()
        try:
            yield
        finally:
            self._there.close()
            listener.join()
            if failures:
                raise failures[0]


@contextmanager
def _ending_together() -> Iterator[None]:
    """End the processes that the block started where the block is left by an exception; raise theirs as this process would have.

    Lightning leaves them running, and Python would wait for them at exit. They have nothing to tidy up: files are written atomically.
    """
    others = multiprocessing.active_children()
    try:
        yield
    except BaseException as error:
        for process in multiprocessing.active_children():
            if process not in others:
                process.kill()
                process.join()
        if isinstance(error, ProcessRaisedException):
            last = str(error).strip().splitlines()[-1]
            if expected := re.fullmatch(r"mlinterp\.errors\.(\w+): (.+)", last):
                raise getattr(errors, expected[1])(expected[2]) from error
        raise


@contextmanager
def _driving(callbacks: list[pl.Callback], devices: int = 1) -> Iterator[pl.Trainer]:
    """Yield a Trainer that drives and does nothing else: no logger, no checkpoints, no bars, no summary of its own.

    Raises EnvironmentFault where there are not so many devices, or processes cannot be started, as in a notebook.
    """
    with warnings.catch_warnings():
        _say_less()
        try:
            trainer = pl.Trainer(
                accelerator="auto",
                devices=devices,
                strategy=_Processes() if devices > 1 else "auto",
                use_distributed_sampler=False,
                max_epochs=1,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                num_sanity_val_steps=0,
                callbacks=callbacks,
            )
        except MisconfigurationException as error:
            raise errors.EnvironmentFault(f"{devices} devices cannot be used here: {' '.join(str(error).split())}") from error
        yield trainer


def fit(module: ResumableModule, folder: Path, reporter: Reporter, chunk: int = 10, checkpoint_every: int = 200, devices: int = 1) -> None:
    """Train a module to its last step, from the newest checkpoint in `folder` where there is one, on as many devices as asked for.

    `checkpoint_every` is rounded to a multiple of `chunk`. Raises VerificationError for a damaged checkpoint with no older one
    to fall back on, and for one that another fit wrote; ExperimentError where the fit diverges; EnvironmentFault
    where there are not so many devices.
    """
    every = max(chunk, checkpoint_every - checkpoint_every % chunk)
    checkpoint = _Checkpoint(folder, every, reporter)
    checkpoint.saved = sorted(folder.glob("step-*.safetensors"))
    _resume(module, checkpoint.saved)
    with reporter.task(module.stage, module.total_steps) as task:
        task.advance(module.step)
        if module.step >= module.total_steps:
            return
        chunks = _Chunks(module.step, module.total_steps, chunk)
        if devices == 1:
            with _driving([_Report(reporter, task), checkpoint]) as trainer:
                trainer.fit(module, train_dataloaders=chunks)
            return
        relay = _Relay()
        checkpoint.reporter = relay
        with relay.passing_on(reporter, task), _ending_together(), _driving([_Report(relay, relay), checkpoint], devices) as trainer:
            trainer.fit(module, train_dataloaders=chunks)
        module.step = module.total_steps


def _resume(module: ResumableModule, saved: list[Path]) -> None:
    while saved:
        try:
            tensors, meta = load_tensors(saved[-1])
        except errors.VerificationError:
            if len(saved) == 1:
                raise
            saved.pop().unlink()
            continue
        if meta["fingerprint"] != sha256_json(module.fingerprint()):
            raise errors.VerificationError(
                f"{saved[-1]}: belongs to another fit (its settings, data or code differ); remove the folder to start over"
            )
        module.restore(tensors)
        module.step = int(meta["step"])
        return


def predict(module: pl.LightningModule, batches: Any) -> None:
    """Drive a module's `predict_step` over batches; what it computes it keeps itself."""
    with _driving([]) as trainer, torch.no_grad():
        trainer.predict(module, dataloaders=batches, return_predictions=False)
