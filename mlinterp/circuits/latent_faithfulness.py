"""How good circuits of latents are: what they restore, what is left without them, and what as many random latents restore.

For a set C of latents, with the error nodes E of all hook points, and sums over prompt pairs:

    F(S)             =  sum of (m(S) - m(none))  /  sum of (m(all) - m(none))     S: nodes kept; 0: nothing, 1: all of the behaviour
    faithfulness     =  F(C and E) with the errors in the circuit,  F(C) with them outside
    completeness     =  1 - F(all nodes that are not in that circuit)             1: nothing is left when the circuit is cut

With the errors outside, everything that the SAEs do not explain is ablated too: the difference is what the latents cannot say. The null
is random latents, as many at each hook point, of those that differ between the runs at all, with the errors in the same place. The pairs
must not be those that chose the circuit (Marks et al. 2024; Wang et al. 2022).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from mlinterp.circuits.latent_machine import LatentMachine
from mlinterp.patching.effects import CellEffect, cell_effects


class Judged(NamedTuple):
    """One set of latents on some pairs."""

    n_latents: int
    errors_in: bool
    """Whether the error nodes are in the circuit."""
    faithfulness: CellEffect | None
    """Beside random latents; None where undefined."""
    completeness: CellEffect | None
    """Beside that of the same random latents."""


def judge(
    machine: LatentMachine,
    circuits: Sequence[np.ndarray],
    rows: Sequence[int],
    pool: np.ndarray,
    draws: int,
    n_bootstrap: int,
    seed: int,
    done: Callable[[], None] = lambda: None,
) -> list[Judged]:
    """Judge sets of latents, each with the errors in the circuit and then outside, on pairs that did not choose them.

    Args:
        machine: the model.
        circuits: the latents of each, bool `[node]`.
        rows: the pairs.
        pool: the latents that random circuits are drawn from, bool `[node]`.
        draws: random circuits of each size.
        n_bootstrap: resamples of each interval.
        seed: of random circuits and resampling.
        done: told after the circuits, and after each draw.
    """
    errors = machine.nodes.is_error
    m_all, m_none = machine.m_clean[list(rows)], machine.m_empty[list(rows)]
    gaps = m_all - m_none

    def both(latents: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return what circuits restore, and what is lost without them, `[pair, circuit]`: in pairs, errors in and errors outside."""
        kept = np.stack([each | part for each in latents for part in (errors, machine.nodes.none)])
        found = (machine.metrics(kept, rows) - m_none).T, (m_all - machine.metrics(~kept, rows)).T
        done()
        return found

    restored, lost = both(circuits)
    chance = [both([machine.nodes.like(each, pool, seed, draw) for each in circuits]) for draw in range(draws)]
    faithful = cell_effects(restored, np.stack([one for one, _ in chance]), gaps, n_bootstrap, seed)
    complete = cell_effects(lost, np.stack([other for _, other in chance]), gaps, n_bootstrap, seed)
    return [Judged(int(circuits[at // 2].sum()), at % 2 == 0, *each) for at, each in enumerate(zip(faithful, complete, strict=True))]
