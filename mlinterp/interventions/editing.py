"""One intervention as a tap, for whoever runs the model: a trace of the edited model, a demonstration."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from mlinterp.errors import SpecError
from mlinterp.interventions.addressing import resolve_addresses
from mlinterp.interventions.declared import InterventionBlock
from mlinterp.interventions.plan import policy_of
from mlinterp.interventions.policies import EditContext, LatentCode, Tally
from mlinterp.subjects.base import Address, Batch, Subject, Tap


def editor_of(subject: Subject, sae: LatentCode, site: str, block: InterventionBlock) -> tuple[tuple[Address, ...], Callable[[Batch], Tap]]:
    """Return the addresses that a block edits, and how a batch is edited there.

    Only what needs neither a source nor statistics of the latents: named latents, set to zero, to a value, or to a multiple of
    their own activation. Raises SpecError for anything else.
    """
    plain = block.policy == "ablate_features" and block.baseline == "zero"
    if not (plain or (block.policy == "clamp_features" and block.quantile is None)):
        raise SpecError(
            f"{block.policy} needs a source or statistics, which a trace has not",
            field="variables.intervention",
            allowed="ablate_features to zero, or clamp_features to a value or a scale",
        )
    if not isinstance(block.features, list):
        raise SpecError("names no latents", field="variables.intervention.features", allowed="a list of latents")
    addresses = resolve_addresses(subject, block.at, block.at.site or site, "variables.intervention.at")
    policy = policy_of(block, tuple(block.features), dict.fromkeys(block.features, block.value or 0.0))
    wanted = frozenset(addresses)

    def editor(batch: Batch) -> Tap:
        selected = subject.positions(batch, block.at.positions or "all")
        context = EditContext(selected, Tally.of(len(batch)))

        def edit(address: Address, h: Tensor) -> Tensor:
            return policy.apply(address, h, sae, context) if address in wanted else h

        return edit

    return addresses, editor
