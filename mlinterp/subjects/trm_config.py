"""What a recurrent subject is, declared: a Tiny Recursive Model and the puzzle task it works on."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Literal

from pydantic import Field, field_validator, model_validator

from mlinterp.subjects.tasks import TaskChoice
from mlinterp.subjects.tasks.base import Frozen


class TRMModelConfig(Frozen):
    """Sizes and recursion of the model (names follow the official code of arXiv 2510.04871)."""

    d_model: int = Field(64, ge=8, le=2048, description="width of every state")
    n_layers: int = Field(2, ge=1, le=16, description="blocks in the one module that updates both states")
    H_cycles: int = Field(3, ge=1, le=16, description="updates of z_H in a supervision step; all but the last run without gradient in training")
    L_cycles: int = Field(3, ge=1, le=16, description="updates of z_L before each update of z_H")
    n_sup: int = Field(8, ge=1, le=64, description="supervision steps; evaluation always runs all of them")
    mixer: Literal["mlp_t", "attention"] = Field("mlp_t", description="how positions exchange information; `mlp_t` learns small grids far faster")
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
    weights: str | None = Field(None, max_length=300, description="safetensors file of trained weights, relative to the project; null: initial weights")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of the initial weights")

    @field_validator("weights")
    @classmethod
    def _inside(cls, weights: str | None) -> str | None:
        if weights is not None and (PurePosixPath(weights).is_absolute() or ".." in PurePosixPath(weights).parts or not weights.strip()):
            raise ValueError("weights is a path inside the project, without '..'")
        return weights
