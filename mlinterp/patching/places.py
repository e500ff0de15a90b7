"""The components of a transformer that can be patched, and which hook point each is at which layer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from mlinterp.errors import SpecError, unknown
from mlinterp.patching.components import COMPONENTS, refuse_unknown
from mlinterp.subjects.hook_points import LAYOUTS
from mlinterp.subjects.hooked import RAW, HookedSubject

_LAYER = re.compile(r"blocks\.(\d+)\.(\w+)")
_ON_STREAM = {"resid_pre": 0, "resid_post": 1}


class Places(NamedTuple):
    """A component of one subject.

    Attributes:
        component: its name, or a site `module:PATH`.
        sites: layer to hook point, in order.
        n_units: heads or neurons at each; None where the whole activation is one.
        on_stream: how many blocks a layer's edit lies above what the block of that number reads (`resid_pre` 0, `resid_post` 1); None for
            an edit inside a block.
        inside: whether every site is known to lie in the block of its layer.
    """

    component: str
    sites: dict[int, str]
    n_units: int | None = None
    on_stream: int | None = None
    inside: bool = True


def places(subject: HookedSubject, component: str, layers: Sequence[int] | None = None, field: str = "variables") -> Places:
    """Return where a component is in a subject, at some layers (negative ones count from the last) or at all.

    Raises SpecError, with the nearest name, for a component or layer that there is not, and for a hook point that a forward pass never
    evaluates, or more than once.
    """
    if component.startswith(RAW):
        if layers is not None:
            raise SpecError(f"{component} is one place", field=f"{field}.layers", allowed="leave layers out")
        try:
            return place_of(subject, component, component)
        except SpecError as error:
            raise SpecError(error.problem, field=f"{field}.component", allowed=error.allowed, nearest=error.nearest) from None
    refuse_unknown(component, f"{field}.component")
    named = {int(found[1]): site for site in subject.points if (found := _LAYER.fullmatch(site)) and found[2] == COMPONENTS[component]}
    if not named:
        known = sorted({name for name, point in COMPONENTS.items() if any(site.endswith(f".{point}") for site in subject.points)})
        allowed = f"it has: {', '.join(known)} or {RAW}PATH" if known else f"name its modules: {RAW}PATH"
        raise SpecError(f"'{subject.name}' has no hook point for {component}", field=f"{field}.component", allowed=allowed)
    chosen = list(named) if layers is None else [layer + len(named) if layer < 0 else layer for layer in layers]
    for layer in chosen:
        if layer not in named:
            raise unknown(f"{field}.layers", str(layer), map(str, named), what=f"layer of '{subject.name}' (it has {len(named)})")
    sites = {layer: named[layer] for layer in sorted(set(chosen))}
    subject.addresses(list(sites.values()))
    return Places(component, sites, _n_units(subject, component, sites), _ON_STREAM.get(component))


def place_of(subject: HookedSubject, site: str, component: str) -> Places:
    """Return a component that is at one hook point, given by name. Raises SpecError for one that is not evaluated exactly once."""
    subject.addresses([site])
    if found := _LAYER.fullmatch(site):
        return Places(component, {int(found[1]): site}, on_stream=_ON_STREAM.get(found[2]))
    layer = _block_of(subject, site.removeprefix(RAW)) if site.startswith(RAW) else None
    return Places(component, {layer or 0: site}, inside=layer is not None)


def _n_units(subject: HookedSubject, component: str, sites: dict[int, str]) -> int | None:
    if component not in ("attn_head", "mlp_neuron"):
        return None
    width = subject.width(next(iter(sites.values())))
    if component == "mlp_neuron":
        return width
    architecture = getattr(subject, "architecture", None)
    n_heads = subject.config.get("n_heads") if architecture is None else architecture.get_text_config().num_attention_heads
    if not isinstance(n_heads, int) or width % n_heads:
        raise SpecError(
            f"'{subject.name}' does not say how many heads it has", field="variables.component", allowed="`n_heads` in the subject's config"
        )
    return n_heads


def _block_of(subject: HookedSubject, path: str) -> int | None:
    """Return the number of the block that a module is in; None outside of blocks and where their place is not known."""
    layout = LAYOUTS.get(getattr(getattr(subject, "architecture", None), "model_type", ""))
    found = re.match(rf"{re.escape(layout.blocks)}\.(\d+)(\.|$)", path) if layout else None
    return int(found[1]) if found else None
