"""How a project declares a subject whose input is a set of tokens. Reading it needs no torch.

kind: token_set
package: "package.py:build"
network: {d: 64, hidden: 256, layers: 2}
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator

from mlinterp.errors import nearest
from mlinterp.frozen import Frozen
from mlinterp.io.pyfile import FunctionName

POOLED = "pooled"
"""The built-in network's last site, which its logits are linear in."""

Site = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]{0,63}$")]


class NetworkConfig(Frozen):
    """The built-in network's sizes, or the project's own network."""

    d: int = Field(64, ge=1, le=16_384, description="width of the stream")
    hidden: int = Field(256, ge=1, le=65_536, description="width of each block's hidden layer")
    layers: int = Field(2, ge=1, le=64, description="residual blocks")
    factory: FunctionName | None = Field(
        None, description="instead: file inside the project and function in it, (package) -> nn.Module, which maps a bag to logits"
    )

    @model_validator(mode="after")
    def _one(self) -> NetworkConfig:
        sizes = sorted(self.model_fields_set - {"factory"})
        if self.factory is not None and sizes:
            raise ValueError(f"a network of the project's own has no {' and '.join(sizes)}: give factory, or sizes of the built-in network")
        return self

    @property
    def sites(self) -> tuple[str, ...]:
        """The built-in network's sites, in order of evaluation."""
        return ("embed", *(f"block_{number}" for number in range(self.layers)), POOLED)


class TokenSetConfig(Frozen):
    """A subject of kind `token_set`."""

    kind: Literal["token_set"] = "token_set"
    package: FunctionName = Field(
        description="file inside the project and function in it, (options, root) -> DataPackage, such as package.py:build"
    )
    options: dict[str, Any] = Field({}, description="passed to that function as they are")
    network: NetworkConfig = Field(NetworkConfig(), description="sizes of the built-in network, or a factory")
    sites: dict[Site, str] = Field({}, description="with a factory: site to the path of the module whose output [n, d] it is")
    readout: str = Field(POOLED, description="the site whose neurons are studied where no SAE is given")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of the initial weights")
    inputs: dict[Literal["subject", "sae"], str] = Field(
        {}, description="what specs about token sets take where they name none themselves, such as sae: latest"
    )

    @model_validator(mode="after")
    def _sites_fit(self) -> TokenSetConfig:
        own = self.network.factory is None
        if own and self.sites:
            raise ValueError(f"the built-in network names its own sites ({', '.join(self.network.sites)}): leave sites out")
        if not own and not self.sites:
            raise ValueError("sites must name at least one place in a network of the project's own, such as {pooled: trunk}")
        names = self.network.sites if own else tuple(self.sites)
        if self.readout not in names:
            close = nearest(self.readout, names)
            hint = f"; did you mean '{close}'?" if close else ""
            raise ValueError(f"readout '{self.readout}' is no site of the network, which has {', '.join(names)}{hint}")
        return self

    def identity(self) -> dict[str, Any]:
        """Return what the weights depend on, as JSON values: neither what is studied nor what specs take by default."""
        found = self.model_dump(mode="json", exclude={"inputs", "readout"})
        factory = found["network"].pop("factory")
        return found if factory is None else {**found, "network": {"factory": factory}}


class TokenSetFitOptions(Frozen):
    """How such a subject is trained; the number of steps belongs to the fit."""

    batch_size: int = Field(256, ge=1, le=65_536, description="contexts a step")
    lr: float = Field(3e-3, gt=0, le=1, description="learning rate after warm-up")
    betas: tuple[float, float] = Field((0.9, 0.95), strict=False, description="decay rates of AdamW's moments")
    weight_decay: float = Field(0.01, ge=0, le=10, description="AdamW's decoupled weight decay")
    warmup_steps: int = Field(50, ge=0, le=100_000, description="steps over which the learning rate rises from zero")
    grad_clip: float | None = Field(None, gt=0, description="largest norm of a step's gradient; null: none")
    ema: float | None = Field(None, gt=0, lt=1, description="decay of the averaged weights, which are then scored and kept; null: none")
    eval_contexts: int = Field(4096, ge=1, description="most validation contexts in a score")

    @field_validator("betas")
    @classmethod
    def _decays(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError("each of betas is at least 0 and below 1")
        return betas
