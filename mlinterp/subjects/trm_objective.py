"""How a Tiny Recursive Model is trained: deep supervision with adaptive halting (arXiv 2510.04871), one supervision step a time.

A batch is a row of slots. Each slot works on one puzzle until it halts; then it takes a new one and starts from the initial states.
Optimizer step k:

1. halted slots take the examples drawn for step k, with z_H and z_L reset (at the start every slot is halted, so whatever states
   are loaded into halted slots are never read);
2. one supervision step, with gradient through its last cycle;
3. loss = (sum over slots of the mean stablemax cross-entropy of the scored cells + 0.5 * sum over slots of the binary cross-entropy
   between the halting logit and "every cell right") / slots;
4. a slot halts after `n_sup` steps, or when its halting logit is positive; with probability `halt_exploration` it must first do a
   random number of steps between 2 and `n_sup`.

Step k depends on the weights, the carry and (seed, k) alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from mlinterp.determinism import numpy_stream, torch_stream
from mlinterp.estimates import PerExample
from mlinterp.subjects.base import IGNORED
from mlinterp.subjects.tasks.base import Task
from mlinterp.subjects.trm_config import TRMFitOptions
from mlinterp.subjects.trm_model import TRM, States

EVALUATION_BATCH = 256


def stablemax_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return -log(s(x_target) / sum s(x)) in float64, `[batch, pos]` (0 where not scored), of logits `[batch, pos, vocab]`.

    s(x) = x + 1 from zero on and 1 / (1 - x) below (arXiv 2501.04697).

    >>> loss = stablemax_cross_entropy(torch.tensor([[[1.0, 0.0, -1.0]]]), torch.tensor([[0]]))
    >>> round(loss.exp().item(), 6)  # (2 + 1 + 0.5) / 2
    1.75
    """
    x = logits.double()
    scores = torch.where(x >= 0, x + 1, 1 / (1 - x.clamp(max=0)))
    scored = targets != IGNORED
    chosen = scores.gather(-1, torch.where(scored, targets, 0).unsqueeze(-1)).squeeze(-1)
    return torch.where(scored, scores.sum(dim=-1).log() - chosen.log(), 0.0)


class TRMObjective:
    """The training of one model on one task; see the module's docstring.

    Attributes:
        module: the model, its weights thawed.
        model: the same, by its own type.
        optimizer: what its optimizer is to be: `lr`, `betas`, `weight_decay`, `warmup_steps`, `ema`.
    """

    def __init__(self, model: TRM, task: Task, options: TRMFitOptions, seed: int) -> None:
        if options.augment:
            task.check_augmentation()
        self.module: nn.Module = model.requires_grad_(True)
        self.model = model
        self.task, self.options, self.seed = task, options, seed
        self.optimizer: Mapping[str, Any] = options.model_dump(include={"lr", "betas", "weight_decay", "warmup_steps", "ema"})
        slots, length = options.batch_size, task.length
        state = torch.zeros(slots, model.config.n_prefix + length, model.config.d_model)
        tokens = torch.zeros(slots, length, dtype=torch.long)
        self._carry: dict[str, Tensor] = {
            "z_H": state,
            "z_L": state.clone(),
            "steps": torch.zeros(slots, dtype=torch.long),
            "halted": torch.ones(slots, dtype=torch.bool),
            "inputs": tokens,
            "targets": tokens.clone(),
        }

    def carry(self) -> dict[str, Tensor]:
        """Return the slots: `z_H`, `z_L` `[slot, row, d]`, `steps` and `halted` `[slot]`, `inputs` and `targets` `[slot, pos]`."""
        return dict(self._carry)

    def load_carry(self, carry: Mapping[str, Tensor]) -> None:
        """Restore what `carry` returned."""
        self._carry = {name: carry[name].clone() for name in self._carry}

    def loss(self, step: int) -> tuple[Tensor, Mapping[str, float]]:
        """Return the loss of optimizer step `step` (float64) and what happened in it; moves the slots on by one supervision step."""
        model = self.model
        slots = {name: tensor.to(model.H_init.device) for name, tensor in self._carry.items()}
        fresh = slots["halted"]
        new_inputs, new_targets = (tokens.to(fresh.device) for tokens in self._draw(step))
        inputs = torch.where(fresh[:, None], new_inputs, slots["inputs"])
        targets = torch.where(fresh[:, None], new_targets, slots["targets"])
        steps = torch.where(fresh, 0, slots["steps"]) + 1
        z_H = torch.where(fresh[:, None, None], model.H_init, slots["z_H"])
        z_L = torch.where(fresh[:, None, None], model.L_init, slots["z_L"])

        states = model.training_step(model.embed(inputs), States(z_H, z_L))
        logits, q_halt = model.read_out(states.z_H)
        scored = targets != IGNORED
        n_scored = scored.sum(dim=1)
        right = (logits.detach().argmax(dim=-1) == targets) & scored
        exact = right.sum(dim=1) == n_scored
        lm_loss = (stablemax_cross_entropy(logits, targets).sum(dim=1) / n_scored).sum() / len(inputs)
        q_loss = binary_cross_entropy_with_logits(q_halt, exact.to(q_halt.dtype), reduction="sum") / len(inputs)
        loss = lm_loss + 0.5 * q_loss

        self._carry = {
            "z_H": states.z_H.detach(),
            "z_L": states.z_L.detach(),
            "steps": steps,
            "halted": self._halted(step, steps, q_halt.detach()),
            "inputs": inputs,
            "targets": targets,
        }
        numbers = {
            "loss": loss.item(),
            "exact": exact.float().mean().item(),
            "token_acc": (right.sum() / n_scored.sum()).item(),
            "lm_loss": lm_loss.item(),
            "q_loss": q_loss.item(),
            "q_halt_acc": ((q_halt > 0) == exact).float().mean().item(),
            "sup_steps": steps.float().mean().item(),
        }
        return loss, numbers

    def _draw(self, step: int) -> tuple[Tensor, Tensor]:
        inputs, targets = self.task.examples("train")
        rows = torch.randint(len(inputs), (self.options.batch_size,), generator=torch_stream(self.seed, "batch", step)).numpy()
        inputs, targets = inputs[rows], targets[rows]
        if self.options.augment:
            inputs, targets = self.task.augment(inputs, targets, numpy_stream(self.seed, "augment", step))
        return torch.from_numpy(inputs), torch.from_numpy(targets)

    def _halted(self, step: int, steps: Tensor, q_halt: Tensor) -> Tensor:
        most = self.model.config.n_sup
        if most == 1:
            return torch.ones_like(steps, dtype=torch.bool)
        generator = torch_stream(self.seed, "halt", step)
        explores = torch.rand(len(steps), generator=generator) < self.options.halt_exploration
        least = torch.where(explores, torch.randint(2, most + 1, (len(steps),), generator=generator), 0).to(steps.device)
        return ((steps >= most) | (q_halt > 0)) & (steps >= least)

    def evaluate(self) -> dict[str, float]:
        """Return the means of `scores`."""
        return {name: score.value for name, score in self.scores().items()}

    @torch.no_grad()
    def scores(self) -> dict[str, PerExample]:
        """Score the model on the whole validation split, example by example.

        `exact` (every cell right after the last supervision step), `exact_step_1` (already after the first), `token_acc` (share of the
        cells), `q_halt_acc` (the sign of the last halting logit says whether the answer is right).
        """
        found: dict[str, list[Tensor]] = {name: [] for name in ("exact", "exact_step_1", "token_acc", "q_halt_acc")}
        all_inputs, all_targets = (torch.from_numpy(tokens) for tokens in self.task.examples("validation"))
        device = self.model.H_init.device
        for inputs, targets in zip(all_inputs.split(EVALUATION_BATCH), all_targets.split(EVALUATION_BATCH), strict=True):
            e, wanted = self.model.embed(inputs.to(device)), targets.to(device)
            states = self.model.initial(e)
            for sup_step in range(self.model.config.n_sup):
                states = self.model.supervision_step(e, states)
                if sup_step == 0:
                    found["exact_step_1"].append(_exact(self.model.read_out(states.z_H)[0], wanted))
            logits, q_halt = self.model.read_out(states.z_H)
            exact, scored = _exact(logits, wanted), wanted != IGNORED
            found["exact"].append(exact)
            found["q_halt_acc"].append((q_halt > 0) == exact)
            found["token_acc"].append(((logits.argmax(dim=-1) == wanted) & scored).sum(dim=1) / scored.sum(dim=1))
        totals = {name: torch.cat(parts).double().cpu().numpy() for name, parts in found.items()}
        return {name: PerExample(total, np.ones(len(total)), is_share=True) for name, total in totals.items()}


def _exact(logits: Tensor, targets: Tensor) -> Tensor:
    return ((logits.argmax(dim=-1) == targets) | (targets == IGNORED)).all(dim=1)
