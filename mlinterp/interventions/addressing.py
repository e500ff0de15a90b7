"""From what a spec says about a place (`At`) to the evaluations of a subject's forward pass, and back to a short label."""

from __future__ import annotations

from collections.abc import Sequence

from mlinterp.errors import SpecError
from mlinterp.interventions.declared import At
from mlinterp.subjects.base import Address, Subject

_AXES = (("sup_steps", "sup_step", "s"), ("cycles", "cycle", "c"), ("latent_steps", "latent_step", "i"))


def resolve_addresses(subject: Subject, at: At, site: str, field: str = "at") -> tuple[Address, ...]:
    """Return the evaluations of `site` that `at` means, in order of evaluation.

    Raises SpecError, naming what exists, for a number on an axis that has no such evaluation and for a combination of numbers
    that no evaluation has.
    """
    subject.width(site)
    existing = subject.addresses([site])
    kept = existing
    for plural, axis, _ in _AXES:
        wanted = getattr(at, plural)
        if wanted is not None:
            known = sorted({getattr(address, axis) for address in existing} - {None})
            chosen = _from_either_end(wanted, known, f"{field}.{plural}", site)
            kept = [address for address in kept if getattr(address, axis) in chosen]
    if not kept:
        raise SpecError(
            f"no evaluation of {site} has all of these numbers together", field=field, allowed=f"there are: {_listed(existing)}"
        )
    return tuple(kept)


def _from_either_end(wanted: Sequence[int], known: list[int], field: str, site: str) -> set[int]:
    chosen = {number if number >= 0 else len(known) + number for number in wanted}
    if not known:
        raise SpecError(f"{site} is not evaluated along this axis", field=field, allowed="leave it out")
    if not chosen <= set(known):
        raise SpecError(
            f"{list(wanted)} selects evaluations of {site} that do not exist", field=field, allowed=f"allowed: {known[0]} to {known[-1]}"
        )
    return chosen


def _listed(addresses: Sequence[Address]) -> str:
    shown = ", ".join(label([address], addresses) for address in addresses[:12])
    return shown + (", …" if len(addresses) > 12 else "")


def label(addresses: Sequence[Address], existing: Sequence[Address]) -> str:
    """Return a short name of some evaluations of one site among all of them, such as `z_L(s2,c0,i1)`; `*` means every number.

    >>> label([Address("blocks.0.resid_post")], [Address("blocks.0.resid_post")])
    'blocks.0.resid_post'
    """
    parts = []
    for _, axis, letter in _AXES:
        known = {getattr(address, axis) for address in existing} - {None}
        if known:
            used = {getattr(address, axis) for address in addresses} - {None}
            whole = used == known and len(known) > 1
            parts.append(letter + ("*" if whole else "+".join(map(str, sorted(used)))))
    site = addresses[0].site
    return f"{site}({','.join(parts)})" if parts else site
