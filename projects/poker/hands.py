"""Poker as a data package: what an onlooker has seen of a five-card hand, and which hand that is by the rules.

A context holds how often each rank and each suit has been seen. An onlooker catches marks, not cards: of one card the rank, of
another the suit, of a third both. So the ranks seen and the suits seen need not be of the same cards, and the count of one rank can
be changed alone. The group is the game that is played, since games differ in what they call a straight.

Nothing here is noise: the class of what has been seen is the best hand that is certain, and it follows from the context.

    two sevens and an ace               pair
    five hearts, of whatever ranks      flush (in ace-to-five lowball, where flushes do not exist: high card)
    A 2 3 4 5                           straight (in deuce-to-seven lowball, where the ace is high only: high card)
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from mlinterp.determinism import numpy_stream
from mlinterp.errors import SpecError
from mlinterp.subjects.token_sets.constraints import Constraint, one_rung_per_family
from mlinterp.subjects.token_sets.package import DataPackage, Split
from mlinterp.subjects.token_sets.table import NO_GROUP, ContextTable, TokenContext
from mlinterp.subjects.token_sets.vocabulary import Family, Vocabulary

RANKS = tuple("23456789TJQKA")
SUITS = tuple("cdhs")
HAND = 5
CLASSES = ("high_card", "pair", "two_pair", "trips", "straight", "flush", "full_house", "quads", "straight_flush")

RUNS = np.array([np.roll(np.arange(13) < HAND, start) for start in range(-1, 9)])
"""Ranks of each straight, bool `[10, 13]`: the wheel A 2 3 4 5 first, T J Q K A last."""

GAMES = {
    "five_card_draw": {"ranking": "high", "dealing": "draw"},
    "five_card_stud": {"ranking": "high", "dealing": "stud"},
    "kansas_city": {"ranking": "deuce_to_seven", "dealing": "draw"},
    "deuce_to_seven_razz": {"ranking": "deuce_to_seven", "dealing": "stud"},
    "california": {"ranking": "ace_to_five", "dealing": "draw"},
    "razz": {"ranking": "ace_to_five", "dealing": "stud"},
}
"""Six games that are really played. The ranking decides what a hand is called; how the cards are dealt decides nothing."""

SIZES: Mapping[Split, int] = {"train": 12_000, "validation": 3_000, "test": 6_000}

_KINDS = {"pair": (2, 1, 1, 1), "two_pair": (2, 2, 1), "trips": (3, 1, 1), "full_house": (3, 2), "quads": (4, 1)}
"""How many cards of each rank the hands have that have a rank twice."""

_FIVE_RANKS = np.array(list(combinations(range(13), HAND)))
_IS_RUN = (np.eye(13, dtype=bool)[_FIVE_RANKS].any(axis=1)[:, None] == RUNS).all(axis=2).any(axis=1)
_MIXED_SUITS = np.array([[code >> 2 * card & 3 for card in range(HAND)] for code in range(4**HAND) if code % 341])
"""Suits of five cards that are not all of one suit, `[1020, 5]`: in base 4, the multiples of 11111 (341) have one digit only."""


def build(options: Mapping[str, Any], root: Path) -> Hands:  # noqa: ARG001 - what every package's function is given
    """Return the package. It has no options; raises SpecError for any."""
    if options:
        raise SpecError(f"the poker package has no option '{next(iter(options))}'", field="options", allowed="none")
    return Hands()


def seen_class(ranks: np.ndarray, suits: np.ndarray, ranking: np.ndarray) -> np.ndarray:
    """Return the best hand that is certain from what has been seen.

    Args:
        ranks: how often each rank has been seen, int `[n, 13]`.
        suits: how often each suit has been seen, int `[n, 4]`.
        ranking: `high`, `deuce_to_seven` (A 2 3 4 5 is no straight) or `ace_to_five` (no straights, no flushes), `[n]`.

    Returns:
        Numbers of `CLASSES`, int64 `[n]`.
    """
    runs = (ranks[:, None, :] >= RUNS).all(axis=2)
    runs[ranking == "deuce_to_seven", 0] = False
    named = ranking != "ace_to_five"
    straight, flush = runs.any(axis=1) & named, (suits >= HAND).any(axis=1) & named
    twice, thrice = (ranks >= 2).sum(axis=1), (ranks >= 3).any(axis=1)
    best_first = {
        "straight_flush": straight & flush,
        "quads": (ranks >= 4).any(axis=1),
        "full_house": thrice & (twice == 2),
        "flush": flush,
        "straight": straight,
        "trips": thrice,
        "two_pair": twice == 2,
        "pair": twice == 1,
    }
    found: np.ndarray = np.select(list(best_first.values()), [CLASSES.index(name) for name in best_first], CLASSES.index("high_card"))
    return found


def impossible(ranks: np.ndarray, suits: np.ndarray) -> np.ndarray:
    """Return whether no hand of five different cards shows these ranks (each four times at most) and suits, bool `[n]`.

    Seen ranks and seen suits can be of different cards as long as there are five cards for them; `k` = (ranks seen) + (suits seen) - 5
    cards, if that is more than none, must show both, and no two of them the same rank and suit. That is a flow of `k` from ranks (each as
    often as seen) to suits (each as often as seen) along edges of capacity one. By max-flow min-cut there is one if, and only if, every
    cut lets `k` pass: for t = 0 … 4, the t suits seen least, and of each rank at most one card for each of the other 4 - t suits.
    """
    k = ranks.sum(axis=1) + suits.sum(axis=1) - HAND
    least = np.cumsum(np.pad(np.sort(suits, axis=1), ((0, 0), (1, 0))), axis=1)
    cuts = [least[:, t] + np.minimum(ranks, 4 - t).sum(axis=1) for t in range(5)]
    broken: np.ndarray = np.min(cuts, axis=0) < k
    return broken


def deal(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return n hands as ranks and suits of their cards, int64 `[n, 5]` each.

    Each hand's class is drawn first, all nine alike, and then a hand of that class, all of them alike. An honest deal would have a straight
    flush once in 64,974 hands.
    """
    drawn = rng.integers(len(CLASSES), size=n)
    ranks, suits = np.empty((n, HAND), dtype=np.int64), np.empty((n, HAND), dtype=np.int64)
    for number, name in enumerate(CLASSES):
        rows = np.flatnonzero(drawn == number)
        ranks[rows], suits[rows] = _hands_of(name, len(rows), rng)
    return ranks, suits


def _hands_of(name: str, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    if name in _KINDS:
        kind = _KINDS[name]
        ranks = np.repeat(rng.random((n, 13)).argsort(axis=1)[:, : len(kind)], kind, axis=1)
        orders = rng.random((n, len(kind), 4)).argsort(axis=2)
        return ranks, np.concatenate([orders[:, rank, :cards] for rank, cards in enumerate(kind)], axis=1)
    sets = _FIVE_RANKS[(name in ("straight", "straight_flush")) == _IS_RUN]
    ranks = sets[rng.integers(len(sets), size=n)]
    if name in ("flush", "straight_flush"):
        return ranks, np.repeat(rng.integers(4, size=(n, 1)), HAND, axis=1)
    return ranks, _MIXED_SUITS[rng.integers(len(_MIXED_SUITS), size=n)]


def look(ranks: np.ndarray, suits: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return what onlookers see of hands: how often each rank and each suit, int64 `[n, 13]` and `[n, 4]`.

    Every second onlooker sees all. The others see each of the ten marks with a chance of their own, drawn between 0 and 1.
    """
    n = len(ranks)
    chance = np.where(rng.random(n) < 0.5, 1.0, rng.random(n))[:, None, None]
    seen = rng.random((n, 2, HAND)) < chance
    return _counts(ranks, seen[:, 0], len(RANKS)), _counts(suits, seen[:, 1], len(SUITS))


def _counts(marks: np.ndarray, seen: np.ndarray, kinds: int) -> np.ndarray:
    counts: np.ndarray = ((marks[:, :, None] == np.arange(kinds)) & seen[:, :, None]).sum(axis=1)
    return counts


def deck() -> Constraint:
    """Return the constraint that a deck of 52 cards can show what has been seen: at most five ranks and five suits, four cards of a
    rank, no two cards alike (so that no flush has a pair).
    """

    def broken(table: ContextTable) -> np.ndarray:
        return impossible(table.levels[:, : len(RANKS)], table.levels[:, len(RANKS) :])

    def explain(context: TokenContext) -> str:
        return f"no hand of five cards shows {', '.join(sorted(context.tokens))}"

    return Constraint("deck", "Some hand of five cards from a deck of 52 shows what has been seen.", "hard", broken, explain)


class Hands(DataPackage):
    """Contexts, classes and constraints of poker hands as they are seen."""

    name = "poker"
    group_word = "game"
    groups = GAMES
    outputs = CLASSES
    vocabulary = Vocabulary(
        (
            *(Family(f"rank_{rank}", f"R{rank}", rungs=(1, 2, 3, 4)) for rank in RANKS),
            *(Family(f"suit_{suit}", f"S{suit}", rungs=(1, 2, 3, 4, 5)) for suit in SUITS),
        ),
        special=("<nothing>",),
        empty="<nothing>",
    )

    def contexts(self, split: Split) -> ContextTable:
        """Return the contexts of a split."""
        return self._splits[split]

    def targets(self, split: Split) -> np.ndarray:
        """Return the class of each context of a split, int64 `[n]`."""
        return self.classes(self.contexts(split))

    def classes(self, table: ContextTable) -> np.ndarray:
        """Return the class of each context, as numbers of `outputs`, int64 `[n]`. A context without a game is read as `high`."""
        ranking = np.where(table.group == NO_GROUP, "high", self.attribute_of("ranking")[table.group])
        return seen_class(table.levels[:, : len(RANKS)], table.levels[:, len(RANKS) :], ranking)

    def concepts(self, table: ContextTable) -> dict[str, np.ndarray]:
        """Return for each class whether a context is of it, 0 or 1."""
        classes = self.classes(table)
        return {name: (classes == number).astype(np.float64) for number, name in enumerate(CLASSES)}

    def constraints(self) -> tuple[Constraint, ...]:
        """Return what a deck allows."""
        return (one_rung_per_family(), deck())

    def table(self, ranks: np.ndarray, suits: np.ndarray, game: np.ndarray) -> ContextTable:
        """Return counts of ranks and suits, `[n, 13]` and `[n, 4]`, and numbers of games, `[n]`, as contexts."""
        vocabulary = self.vocabulary
        heights = np.arange(len(vocabulary)) - vocabulary.starts[vocabulary.family_of] + 1
        counts = np.concatenate([ranks, suits], axis=1)[:, vocabulary.family_of]
        return ContextTable(vocabulary, self.group_keys, heights <= counts, game.astype(np.int64))

    @cached_property
    def _splits(self) -> dict[Split, ContextTable]:
        made = {}
        for split, n in SIZES.items():
            rng = numpy_stream(0, "poker", split)
            made[split] = self.table(*look(*deal(n, rng), rng), rng.integers(len(GAMES), size=n))
        return made
