"""Which evaluations of a forward pass a trace holds."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

from mlinterp.errors import SpecError
from mlinterp.subjects.base import Address, Subject

Granularity = Literal["sup", "cycle", "latent"]


def select_addresses(
    subject: Subject, sites: Collection[str], granularity: Granularity, sup_steps: Sequence[int] | None = None
) -> list[Address]:
    """Return the addresses of a trace, in order of evaluation.

    `latent` keeps every evaluation, `cycle` the last one of each cycle, `sup` the last one of each supervision step. Subjects
    without recurrence have one evaluation a site, and all three mean the same.
    """
    everything = subject.addresses(sites)
    last: dict[tuple[object, ...], Address] = {}
    for address in everything:
        group = {
            "latent": tuple(address),
            "cycle": (address.site, address.sup_step, address.cycle),
            "sup": (address.site, address.sup_step),
        }[granularity]
        last[group] = address
    kept = set(last.values())
    if sup_steps is not None:
        steps = sorted({address.sup_step for address in everything if address.sup_step is not None})
        wanted = {step if step >= 0 else len(steps) + step for step in sup_steps}
        if not steps or not wanted <= set(steps):
            range_text = f"this subject has supervision steps {steps[0]}-{steps[-1]}" if steps else "this subject has no supervision steps"
            raise SpecError(f"{list(sup_steps)} selects steps that do not exist", field="variables.sup_steps", allowed=range_text)
        kept = {address for address in kept if address.sup_step in wanted}
    return [address for address in everything if address in kept]
