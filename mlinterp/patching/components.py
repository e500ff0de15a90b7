"""What can be patched in a transformer, by name (no torch here: specs are validated without it)."""

from __future__ import annotations

from typing import Literal

from mlinterp.errors import SpecError, nearest

Ablation = Literal["resample", "zero", "mean"]
"""What stands in the place of an activation: another run's, nothing, or the mean over other runs."""

SAE_LATENT = "sae_latent"
"""The component whose places are the latents of an SAE, at the hook point that it was fitted on."""

COMPONENTS = {
    "resid_pre": "resid_pre",
    "resid_mid": "resid_mid",
    "resid_post": "resid_post",
    "attn_out": "attn_out",
    "mlp_out": "mlp_out",
    "attn_head": "attn_z",
    "mlp_neuron": "mlp_post",
}
"""Each component and its hook point `blocks.N.*`: heads are slices of what the output projection of attention reads (so there are as many
as query heads, also where they share keys and values), neurons coordinates of what the MLP's reads."""


def refuse_unknown(component: str, field: str = "variables.component", more: tuple[str, ...] = ()) -> None:
    """Raise SpecError, with the nearest name, for what is neither a component (or one of `more`) nor a `module:PATH`."""
    known = (*COMPONENTS, *more)
    if component not in known and not component.startswith("module:"):
        allowed = f"allowed: {', '.join(known)} or module:PATH"
        raise SpecError(f"unknown component '{component}'", field=field, allowed=allowed, nearest=nearest(component, known))
