"""The generating model of builds, and its exact posterior: what a context says about the archetype that it was made from.

    weapon w ~ uniform;  archetype z ~ P(z | w) = softmax of the planted log odds;
    build x ~ P(x | z): each family's level, each slot's main-only ability (none, or one), independent of the others, given that the build
    fits the budget;  rate q ~ the shares of `hidden`;  each token of x hidden with probability q, independently; what is left is the
    context v;  target: one of the hidden tokens, each alike, or the empty token where none is hidden.

The posterior sums over everything that is not seen: what the families and slots may hold besides, and the rate,

    P(z | v, w)  ∝  P(z | w) / P(fits | z) · Σ_q P(q) Σ_{x fits} P(x, v | z, q),

where the sum over builds is a polynomial in ability points: each family contributes one factor, and the powers up to the budget count.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mlinterp.subjects.token_sets.table import NO_GROUP, ContextTable
from mlinterp.subjects.token_sets.vocabulary import Vocabulary

ROWS = 512
SPLITS = ("train", "validation", "test")


class GeneratingModel:
    """Builds as `planted.yaml` has them.

    Attributes:
        archetypes: their names, in the order of every axis called `z`.
        weapon_odds: P(z | weapon), float64 `[n_weapons, z]`.
        levels: P(level | z) of each ordered family, float64 `[n_ordered, z, n_levels]`; they are the vocabulary's first families.
        odds: P(ability | z) of each slot, below the rung that its `together` names and from it on, float64 `[2, z, n_abilities]` each.
        gated: number of the ordered family whose rung tells which of the two holds.
        gate: that rung for each archetype, float64 `[z]`; infinite where there is none.
        slots: numbers of the tokens that compete for each slot.
    """

    def __init__(self, planted: Mapping[str, Any], vocabulary: Vocabulary, slots: Sequence[Sequence[str]], groups: Mapping[str, Any]):
        self.planted, self.vocabulary, self.groups = planted, vocabulary, tuple(groups)
        listed: Mapping[str, Any] = planted["archetypes"]
        self.archetypes = tuple(listed)
        ordered = [family for family in vocabulary.families if not family.is_binary]
        self.points = np.array([0, *ordered[0].rungs])
        self.n_points = planted["budget"] + 1
        self.starts = vocabulary.starts[: len(ordered)]
        self.slots = [vocabulary.numbers(names) for names in slots]

        log_odds = np.array(
            [
                [
                    z["log_odds"] + z.get("specials", {}).get(held["special"], 0.0) + z.get("weapons", {}).get(name, 0.0)
                    for z in listed.values()
                ]
                for name, held in groups.items()
            ]
        )
        self.weapon_odds = np.exp(log_odds) / np.exp(log_odds).sum(axis=1, keepdims=True)
        amounts = {name: np.array(row, dtype=np.float64) for name, row in planted["amounts"].items()}
        assert all(abs(row.sum() - 1) < 1e-9 for row in amounts.values()), "each row of amounts sums to 1"
        self.levels = np.array(
            [[amounts[z["amounts"].get(family.name, z["amounts"]["others"])] for z in listed.values()] for family in ordered]
        )
        usual = planted["main_only_odds"]
        self.odds = [
            np.array(
                [[[z.get("main_only", {}).get(name, usual.get(name, usual["others"])) for name in names] for z in listed.values()]] * 2
            )
            for names in slots
        ]
        self.gate = np.full(len(listed), np.inf)
        (gating,) = {z["together"]["family"] for z in listed.values() if "together" in z}
        self.gated = vocabulary.family_number(gating)
        for number, z in enumerate(listed.values()):
            if "together" in z:
                self.gate[number] = z["together"]["rung"]
                self.odds[0][1, number, list(slots[0]).index(z["together"]["ability"])] = z["together"]["odds"]
        self.fits = self._probability(np.zeros((1, len(vocabulary)), dtype=bool), 1.0)[0]

    # -- drawing ---------------------------------------------------------------------------------------------------------------

    def draw(self, split: str) -> tuple[ContextTable, np.ndarray]:
        """Return the contexts of a split and their targets (number of a token; the number of tokens: nothing is hidden), int64 `[n]`."""
        n = self.planted["contexts"][split]
        rng = np.random.default_rng([20260, SPLITS.index(split)])
        weapon = rng.integers(0, len(self.groups), n)
        z = (rng.random(n)[:, None] >= self.weapon_odds.cumsum(axis=1)[weapon]).sum(axis=1)
        build = np.zeros((n, len(self.vocabulary)), dtype=bool)
        waiting = np.arange(n)
        while len(waiting):
            drawn, spent = self._builds(z[waiting], rng)
            build[waiting[spent < self.n_points]] = drawn[spent < self.n_points]
            waiting = waiting[spent >= self.n_points]
        shares, rates = (np.array([held[key] for held in self.planted["hidden"]]) for key in ("share", "rate"))
        rate = rates[(rng.random(n)[:, None] >= shares.cumsum()).sum(axis=1)]
        hidden = build & (rng.random(build.shape) < rate[:, None])
        chosen = np.where(hidden, rng.random(build.shape), -1.0)
        target = np.where(hidden.any(axis=1), chosen.argmax(axis=1), len(self.vocabulary))
        return ContextTable(self.vocabulary, self.groups, build & ~hidden, weapon), target

    def _builds(self, z: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return a build for each archetype, whether it fits or not, bool `[n, n_tokens]`, and its ability points, int64 `[n]`."""
        build = np.zeros((len(z), len(self.vocabulary)), dtype=bool)
        spent = np.zeros(len(z), dtype=np.int64)
        level = np.empty((len(z), len(self.levels)), dtype=np.int64)
        for family, odds in enumerate(self.levels):
            level[:, family] = (rng.random(len(z))[:, None] >= odds.cumsum(axis=1)[z]).sum(axis=1).clip(max=len(self.points) - 1)
            tokens = np.arange(len(self.points) - 1)
            build[:, self.starts[family] + tokens] = tokens < level[:, [family]]
            spent += self.points[level[:, family]]
        reached = (self.points[level[:, self.gated]] >= self.gate[z]).astype(np.int64)
        for tokens, odds in zip(self.slots, self.odds, strict=True):
            at = (rng.random(len(z))[:, None] >= odds.cumsum(axis=2)[reached, z]).sum(axis=1)
            holds = np.flatnonzero(at < len(tokens))
            build[holds, tokens[at[holds]]] = True
            spent[holds] += self.planted["main_only"]
        return build, spent

    # -- the posterior ---------------------------------------------------------------------------------------------------------

    def posterior(self, table: ContextTable) -> np.ndarray:
        """Return P(z | context) exactly, float64 `[n, z]`; NaN where no build that fits could have left the context."""
        weapon = np.vstack([self.weapon_odds, self.weapon_odds.mean(axis=0)])[table.group]  # NO_GROUP is -1: any weapon
        assert NO_GROUP == -1
        joint = np.zeros((len(table), len(self.archetypes)))
        for start in range(0, len(table), ROWS):
            rows = slice(start, start + ROWS)
            for held in self.planted["hidden"]:
                joint[rows] += held["share"] * self._probability(table.incidence[rows], held["rate"])
        joint *= weapon / self.fits
        total = joint.sum(axis=1, keepdims=True)
        return np.divide(joint, total, out=np.full_like(joint, np.nan), where=total > 0)

    def _probability(self, seen: np.ndarray, rate: float) -> np.ndarray:
        """Return Σ_{x fits} P(x, v | z, q) for contexts `seen`, bool `[n, n_tokens]`, and the rate q: float64 `[n, z]`."""
        sums = np.zeros((len(seen), len(self.archetypes), self.n_points))
        sums[:, :, 0] = 1.0
        for family in range(len(self.levels)):
            if family != self.gated:
                sums = self._times(sums, self._family(seen, family, rate))
        for slot in range(1, len(self.slots)):
            sums = self._times(sums, self._slot(seen, slot, rate, 0))
        return self._times(sums, self._gated(seen, rate)).sum(axis=2)

    def _times(self, sums: np.ndarray, factor: Iterator[tuple[int, np.ndarray]]) -> np.ndarray:
        """Return polynomials in ability points, `[n, z, n_points]`, times a factor given as its powers and their coefficients `[n, z]`."""
        product = np.zeros_like(sums)
        for power, coefficient in factor:
            if power < self.n_points:
                product[:, :, power:] += coefficient[:, :, None] * sums[:, :, : self.n_points - power]
        return product

    def _family(self, seen: np.ndarray, family: int, rate: float) -> Iterator[tuple[int, np.ndarray]]:
        """Yield, for each level of a family: its points, and P(level, what is seen of the family | z, q), `[n, z]`."""
        tokens = seen[:, self.starts[family] : self.starts[family] + len(self.points) - 1]
        count = tokens.sum(axis=1)
        highest = (tokens * np.arange(1, len(self.points))).max(axis=1)
        for level, points in enumerate(self.points):
            if self.levels[family][:, level].any():
                left = np.where(level >= highest, (1 - rate) ** count * rate ** np.maximum(level - count, 0), 0.0)
                yield int(points), left[:, None] * self.levels[family][:, level]

    def _slot(self, seen: np.ndarray, slot: int, rate: float, reached: int | np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the points of an empty and of a filled slot, each with P(that, what is seen of the slot | z, q), `[n, z]`."""
        odds = self.odds[slot][reached, np.arange(len(self.archetypes))]
        tokens = seen[:, self.slots[slot]]
        count = tokens.sum(axis=1, keepdims=True)
        yield 0, np.where(count == 0, 1 - odds.sum(axis=1), 0.0)
        filled = np.where(count == 0, rate * odds.sum(axis=1), (1 - rate) * (tokens @ odds.T))
        yield self.planted["main_only"], np.where(count > 1, 0.0, filled)

    def _gated(self, seen: np.ndarray, rate: float) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the joint factor of the family that gates a main-only ability and of that ability's slot, which is the first."""
        for points, coefficient in self._family(seen, self.gated, rate):
            for more, held in self._slot(seen, 0, rate, (points >= self.gate).astype(np.int64)):
                yield points + more, coefficient * held
