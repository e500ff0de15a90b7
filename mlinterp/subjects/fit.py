"""Training a subject: one optimizer step after another, resumable to the bit.

The subject says what is learned (`Objective`); this module owns how: AdamW, linear warm-up, gradient clipping, an exponential
moving average of the weights, held-out scores along the way. Weights on disk are one safetensors file beside the configuration
that they belong to.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlinterp.errors import VerificationError
from mlinterp.io.atomic import write_json
from mlinterp.io.tensors import load_tensors, save_tensors
from mlinterp.subjects.base import Objective, Subject
from mlinterp.trainer import ResumableModule

CHUNK = 10
"""Optimizer steps between two reports."""
WEIGHTS, CONFIG = "subject/weights.safetensors", "subject/config.json"


class SubjectFit(ResumableModule):
    """Trains `objective.module` for `total_steps` steps.

    `asked` is what the objective was made from (its options, its seed): a checkpoint made from anything else is refused.

    `objective.optimizer` holds `lr, betas, weight_decay, warmup_steps` and optionally `grad_clip` and `ema` (the decay of the
    averaged weights, which are the ones scored and kept).

    Attributes:
        history: held-out scores by step, `{"step": k, "exact": …}`, at every multiple of `eval_every` and at the end.
    """

    stage = "subject_fit"

    def __init__(
        self, subject: Subject, objective: Objective, total_steps: int, eval_every: int, asked: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.asked = dict(asked or {})
        self.subject, self.objective, self.total_steps, self.eval_every = subject, objective, total_steps, eval_every
        self.options: Mapping[str, Any] = objective.optimizer
        self.network = objective.module
        self.adam = torch.optim.AdamW(
            [parameter for _, parameter in self._trained()],
            lr=self.options["lr"],
            betas=tuple(self.options["betas"]),
            weight_decay=self.options["weight_decay"],
        )
        self.average = {name: parameter.detach().clone() for name, parameter in self._trained()} if self.options.get("ema") else {}
        self.history: list[dict[str, float]] = []

    def _trained(self) -> list[tuple[str, torch.nn.Parameter]]:
        return [(name, parameter) for name, parameter in self.network.named_parameters() if parameter.requires_grad]

    def fingerprint(self) -> Mapping[str, Any]:
        """Return what a checkpoint must agree on."""
        return {"config": dict(self.subject.config), "optimizer": dict(self.options), "steps": self.total_steps, **self.asked}

    def on_train_start(self) -> None:
        """Put moments and the average where the parameters are."""
        super().on_train_start()
        self.average = {name: self.average[name].to(parameter) for name, parameter in self._trained() if self.average}

    def inner_step(self, step: int) -> Mapping[str, float | Tensor]:
        """Take optimizer step `step`."""
        self.network.train()
        for group in self.adam.param_groups:
            group["lr"] = self.options["lr"] * min(1.0, (step + 1) / max(1, self.options["warmup_steps"]))
        loss, numbers = self.objective.loss(step)
        self.adam.zero_grad(set_to_none=True)
        loss.backward()
        if self.options.get("grad_clip"):
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.options["grad_clip"])
        self.adam.step()
        with torch.no_grad():
            for name, parameter in self._trained() if self.average else ():
                self.average[name].lerp_(parameter, 1 - self.options["ema"])
        if (step + 1) % self.eval_every == 0 or step + 1 == self.total_steps:
            self.history.append({"step": step + 1, **self._score()})
        return {"loss": loss.detach(), **numbers, **self._fresh_scores(step)}

    def _fresh_scores(self, step: int) -> dict[str, float]:
        """Return the newest held-out scores where the step being reported is the first to carry them."""
        if not self.history or self.history[-1]["step"] <= step + 1 - CHUNK:
            return {}
        return {f"held_out_{name}": value for name, value in self.history[-1].items() if name != "step"}

    def _score(self) -> dict[str, float]:
        raw = {name: parameter.detach().clone() for name, parameter in self._trained()}
        self._put(self.average or raw)
        try:
            with torch.no_grad():
                return dict(self.objective.evaluate())
        finally:
            self._put(raw)

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self._trained():
            parameter.copy_(values[name])

    def finish(self) -> None:
        """Leave the averaged weights (where there is an average) in the subject, frozen."""
        if self.average:
            self._put(self.average)
        self.network.eval().requires_grad_(requires_grad=False)

    def tensors(self) -> dict[str, Tensor]:
        """Return weights, moments, average, carry and history."""
        state: dict[str, Tensor] = {f"weight.{name}": parameter for name, parameter in self._trained()}
        state |= {f"average.{name}": value for name, value in self.average.items()}
        state |= {f"carry.{name}": value for name, value in self.objective.carry().items()}
        for name, parameter in self._trained():
            state |= {f"adam.{key}.{name}": value for key, value in self.adam.state[parameter].items()}
        text = json.dumps(self.history).encode()
        state["history"] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        return state

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `tensors` returned."""

        def under(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

        self._put(under("weight."))
        self.average = under("average.")
        self.objective.load_carry(under("carry."))
        for name, parameter in self._trained():
            moments = {key: tensors[f"adam.{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq") if f"adam.{key}.{name}" in tensors}
            if moments:  # a parameter that no loss has reached yet has none
                self.adam.state[parameter] = moments
        self.history = json.loads(bytes(tensors["history"].tolist()).decode())


def save_subject(subject: Subject, folder: Path) -> list[str]:
    """Write a subject's weights and configuration below `folder` and return the files' names."""
    save_tensors(folder / WEIGHTS, subject.model.state_dict(), {"digest": subject.digest()})
    write_json(
        folder / CONFIG, {"schema": "mlinterp.subject.v1", "kind": subject.kind, "config": dict(subject.config), "sha256": subject.digest()}
    )
    return [WEIGHTS, f"{WEIGHTS}.sha256", CONFIG]


def load_weights(subject: Subject, folder: Path) -> Subject:
    """Give a subject the weights that lie below `folder`. Raises VerificationError where they belong to another configuration."""
    try:
        stored = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError) as error:
        raise VerificationError(f"{folder / CONFIG}: missing or damaged") from error
    own = dict(subject.config)
    if stored["config"] != own:
        differing = sorted(key for key in {*stored["config"], *own} if stored["config"].get(key) != own.get(key))
        raise VerificationError(
            f"{folder / CONFIG}: these weights belong to another configuration of '{subject.name}' (differs in {', '.join(differing)})"
        )
    tensors, _ = load_tensors(folder / WEIGHTS)
    subject.model.load_state_dict(tensors, strict=True)
    if subject.digest() != stored["sha256"]:
        raise VerificationError(f"{folder / WEIGHTS}: weights do not have the digest that {CONFIG} states")
    return subject
