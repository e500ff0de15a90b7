"""What can be patched in a transformer, by name (no torch here: specs are validated without it)."""

from __future__ import annotations

from mlinterp.errors import SpecError, nearest

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


def refuse_unknown(component: str, field: str = "variables.component") -> None:
    """Raise SpecError, with the nearest name, for what is neither a component nor a `module:PATH`."""
    if component not in COMPONENTS and not component.startswith("module:"):
        allowed = f"allowed: {', '.join(COMPONENTS)} or module:PATH"
        raise SpecError(f"unknown component '{component}'", field=field, allowed=allowed, nearest=nearest(component, COMPONENTS))
