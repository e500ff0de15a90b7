"""What a recurrent subject is, declared: a Tiny Recursive Model and the puzzle task it works on."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from mlinterp.frozen import Frozen
from mlinterp.subjects.tasks import TaskChoice


class TRMModelConfig(Frozen):
    """Sizes and recursion of the model (names follow the official code of arXiv 2510.04871)."""

    d_model: int = Field(64, ge=8, le=2048, description="width of every state")
    n_layers: int = Field(2, ge=1, le=16, description="blocks in the one module that updates both states")
    H_cycles: int = Field(
        3, ge=1, le=16, description="updates of z_H in a supervision step; all but the last run without gradient in training"
    )
    L_cycles: int = Field(3, ge=1, le=16, description="updates of z_L before each update of z_H")
    n_sup: int = Field(8, ge=1, le=64, description="supervision steps; evaluation always runs all of them")
    mixer: Literal["mlp_t", "attention"] = Field(
        "mlp_t", description="how positions exchange information; `mlp_t` learns small grids far faster"
    )
    n_heads: int = Field(4, ge=1, le=64, description="attention heads")
    expansion: float = Field(4.0, gt=0, le=16, description="width of the MLPs: inner = expansion * d * 2/3, rounded up to a multiple of 16")
    n_prefix: int = Field(1, ge=1, le=64, description="learned positions before the input; the halting logit is read at the first")

    @model_validator(mode="after")
    def _heads(self) -> TRMModelConfig:
        if self.mixer == "attention" and self.d_model % (2 * self.n_heads):
            raise ValueError(f"d_model {self.d_model} does not divide into {self.n_heads} heads of even width")
        return self


class TRMConfig(Frozen):
    """A subject of kind `trm`."""

    kind: Literal["trm"] = "trm"
    task: TaskChoice = Field(description="the puzzle task: `name` and its options")
    model: TRMModelConfig = Field(TRMModelConfig(), description="sizes and recursion")
    weights: str | None = Field(
        None, max_length=300, description="safetensors file of trained weights, relative to the project; null: initial weights"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="seed of the initial weights")

    @property
    def initial_weights(self) -> bool:
        """Whether it starts with random weights."""
        return self.weights is None


class TRMFitOptions(Frozen):
    """How a recurrent subject is trained; the number of steps belongs to the fit."""

    batch_size: int = Field(64, ge=1, le=4096, description="puzzles worked on side by side")
    lr: float = Field(1e-3, gt=0, le=1, description="learning rate after warm-up")
    betas: tuple[float, float] = Field((0.9, 0.95), strict=False, description="decay rates of AdamW's moments")
    weight_decay: float = Field(0.1, ge=0, le=10, description="AdamW's decoupled weight decay")
    warmup_steps: int = Field(200, ge=0, le=100_000, description="steps over which the learning rate rises from zero")
    ema: float = Field(0.99, ge=0, lt=1, description="decay of the averaged weights; 0 for none")
    halt_exploration: float = Field(0.1, ge=0, le=1, description="share of slots that may not halt before a random step")
    augment: bool = Field(False, description="train on random symmetries of each puzzle (sudoku: digits renamed; maze: turned, mirrored)")

    @field_validator("betas")
    @classmethod
    def _decays(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError("each of betas is at least 0 and below 1")
        return betas
