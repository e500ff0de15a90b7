"""What stands beside an intervention so that its effect means something: other latents, other sources."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

KINDS = ("identity", "reconstruct_only", "random_feature", "matched_frequency", "random_direction", "shuffled_source")
"""Every kind of control.

`identity` edits nothing and must change nothing; `reconstruct_only` replaces activations by their reconstruction with no latent
changed; `random_feature` does the same to as many random latents; `matched_frequency` to the latents nearest in firing density;
`random_direction` moves every row as far, in a random direction; `shuffled_source` patches from other examples.
"""

MATCHED = ("random_feature", "matched_frequency", "random_direction")
"""Controls of equal size: the effect that any such edit has."""


def matched(outcome: str) -> tuple[str, ...]:
    """Return the kinds of controls that an effect on an outcome is compared with; for agreement, patches from other examples too."""
    return (*MATCHED, "shuffled_source") if outcome == "agreement" else MATCHED


def random_latents(
    alive: Sequence[int], excluded: Collection[int], size: int, draws: int, rng: np.random.Generator
) -> list[tuple[int, ...]]:
    """Return up to `draws` sets of `size` alive latents outside `excluded`, no latent twice over all sets."""
    pool = rng.permutation(np.array(sorted(set(alive) - set(excluded)), dtype=np.int64)).tolist()
    return [tuple(sorted(pool[start : start + size])) for start in range(0, len(pool) - size + 1, size)][:draws]


def matched_latents(density: np.ndarray, latents: Sequence[int], excluded: Collection[int], draws: int) -> list[tuple[int, ...]]:
    """Return up to `draws` sets in which each of `latents` has a stand-in of the nearest log density, no latent twice over all sets.

    Only latents that fire at all and are not `excluded` stand in; a tie goes to the lower number.
    """
    free = [i for i in np.flatnonzero(density > 0).tolist() if i not in set(excluded)]
    log = np.log(np.maximum(density, density[density > 0].min(initial=1.0) / 2))
    sets = []
    for _ in range(min(draws, len(free) // len(latents))):
        chosen = []
        for latent in latents:
            nearest = min(free, key=lambda other: abs(log[other] - log[latent]))
            free.remove(nearest)
            chosen.append(nearest)
        sets.append(tuple(sorted(chosen)))
    return sets


def derangement(n: int, rng: np.random.Generator) -> np.ndarray:
    """Return a permutation of `n >= 2` that leaves nothing in place: each example's partner along one random cycle."""
    cycle = rng.permutation(n)
    partner = np.empty(n, dtype=np.int64)
    partner[cycle] = np.roll(cycle, -1)
    return partner
