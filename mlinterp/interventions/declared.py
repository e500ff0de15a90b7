"""What a spec says about interventions, as typed blocks (no torch here: specs are validated without it)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from mlinterp.frozen import Frozen

PolicyName = Literal["ablate_features", "clamp_features", "patch_features", "steer", "patch_states"]
Metric = Literal["margin", "log_prob", "kl", "exact", "token_acc", "agreement"]
TopK = Annotated[str, StringConstraints(pattern=r"^top:[1-9][0-9]{0,4}$")]

_OWN_FIELDS: dict[str, tuple[str, ...]] = {
    "ablate_features": ("baseline",),
    "clamp_features": ("value", "quantile", "scale"),
    "patch_features": ("source",),
    "steer": ("strength",),
    "patch_states": ("source",),
}


class At(Frozen):
    """Where a forward pass is edited. A list left out means all; negative numbers count from the end."""

    site: str | None = Field(None, max_length=200, description="hook point; the SAE's own where left out")
    sup_steps: list[int] | None = Field(None, min_length=1, description="recurrent subjects: supervision steps")
    cycles: list[int] | None = Field(None, min_length=1, description="recurrent subjects: cycles within a supervision step")
    latent_steps: list[int] | None = Field(None, min_length=1, description="recurrent subjects: latent steps within a cycle")
    positions: Annotated[str, StringConstraints(max_length=64)] | list[int] | None = Field(
        None,
        description="rows edited: all (prefix included), tokens, prefix, answer (scored), last, blank (puzzles), or position numbers",
    )


class InterventionBlock(Frozen):
    """One policy at one place; with `each`, one intervention for every latent."""

    policy: PolicyName = Field(description="what is done to the activations")
    name: str | None = Field(
        None, pattern=r"^[a-z0-9][a-z0-9_.-]{0,39}$", description="its name in results; policy and number where left out"
    )
    features: list[Annotated[int, Field(ge=0)]] | TopK | None = Field(
        None, description="latents by number, or top:K by mean activation on the examples; the spec's feature_id where left out"
    )
    each: bool = Field(True, description="test every latent alone (true) or all of them jointly (false)")
    baseline: Literal["zero", "mean"] = Field("zero", description="ablate_features: the value put in place")
    value: float | None = Field(None, description="clamp_features: to this value")
    quantile: float | None = Field(
        None, ge=0, le=1, description="clamp_features: to this quantile of the latent's positive train activations"
    )
    scale: float | None = Field(None, description="clamp_features: to this multiple of the latent's own activation")
    strength: float | None = Field(None, description="steer: added, in units of the latent's mean positive train activation")
    source: str | None = Field(
        None,
        max_length=200,
        description="patching: shuffled (another example for each, drawn by seed; the default), self, or an example's id",
    )
    at: At = Field(At(), description="where")
    mode: Literal["delta", "reconstruct"] = Field(
        "delta", description="add the change to the activation, or replace it by the SAE's reconstruction"
    )
    renorm: Literal["none", "rms"] = Field("none", description="rms: give each edited row back the root mean square it had")

    @property
    def needs_sae(self) -> bool:
        """Whether the policy edits latents rather than whole activations."""
        return self.policy != "patch_states"

    @property
    def patches(self) -> bool:
        """Whether the policy takes activations from a source example."""
        return "source" in _OWN_FIELDS[self.policy]

    @model_validator(mode="after")
    def _consistent(self) -> InterventionBlock:
        for field in ("baseline", "value", "quantile", "scale", "strength", "source"):
            if field in self.model_fields_set and getattr(self, field) is not None and field not in _OWN_FIELDS[self.policy]:
                own = ", ".join(_OWN_FIELDS[self.policy])
                raise ValueError(f"{self.policy} has no '{field}' (it has: {own})")
        if self.policy == "clamp_features" and sum(x is not None for x in (self.value, self.quantile, self.scale)) != 1:
            raise ValueError("clamp_features needs exactly one of value, quantile and scale")
        if self.policy == "steer" and self.strength is None:
            raise ValueError("steer needs a strength")
        if not self.needs_sae and (self.features is not None or self.mode != "delta"):
            raise ValueError("patch_states replaces whole activations: it takes neither features nor mode")
        if isinstance(self.features, list) and (not self.features or len(set(self.features)) != len(self.features)):
            raise ValueError(f"features {self.features} must name at least one latent, each once")
        return self
