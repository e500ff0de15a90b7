"""What the rules say the answers are: the exact effects that the study's experiments should find. `python projects/poker/truth.py`.

The effect of an edit on a class is the class after it minus the class before it, in each context; its mean over every context of the
test split that the deck allows before and after is what an experiment estimates from some of them.
"""

from __future__ import annotations

from pathlib import Path

import hands
import numpy as np

from mlinterp.subjects.token_sets import edits
from mlinterp.subjects.token_sets.table import ContextTable


class Truth:
    """Effects by the rules, on the contexts of the test split."""

    def __init__(self) -> None:
        self.package = hands.build({}, Path(__file__).parent)
        self.contexts = self.package.contexts("test")
        self.deck = self.package.constraint("deck")

    def sweep(self, concept: str, family: str) -> list[tuple[int, int, float]]:
        """Return (rung, contexts, mean effect) of setting a family to each of its rungs, against the same context without it."""
        start, rows = edits.strip_family(self.contexts, family), []
        for rung in self.package.vocabulary.family(family).rungs:
            effect = self._change(concept, [(1, edits.set_rung(start, family, rung)), (-1, start)])
            rows.append((rung, len(effect), float(effect.mean())))
        return rows

    def seen(self, concept: str, family: str) -> list[tuple[int, int, float]]:
        """Return (rung, contexts, difference) of the contexts at each rung of a family from those without it, nothing edited."""
        at, value = self.contexts.rungs(family), self.package.concepts(self.contexts)[concept]
        rungs = self.package.vocabulary.family(family).rungs
        return [(rung, int((at == rung).sum()), float(value[at == rung].mean() - value[at == 0].mean())) for rung in rungs]

    def interaction(self, concept: str, first: str, second: str) -> np.ndarray:
        """Return f(both) - f(first) - f(second) + f(neither) for each context, `[n]`; neither family is there before."""
        start = self.contexts
        for token in (first, second):
            start = edits.strip_family(start, self.package.vocabulary.parse(token)[0])
        one, other = edits.add_token(start, first), edits.add_token(start, second)
        return self._change(concept, [(1, edits.add_token(one, second)), (-1, one), (-1, other), (1, start)])

    def games(self, concept: str, token: str) -> dict[str, float]:
        """Return the share of contexts that are of a class in each game, when each of them holds a token."""
        held = edits.add_token(self.contexts, token)
        held = held.take(~self.deck.check(held))
        read = {game: edits.swap_group(held, game) for game in self.package.group_keys}
        return {game: float(self.package.concepts(table)[concept].mean()) for game, table in read.items()}

    def _change(self, concept: str, terms: list[tuple[int, ContextTable]]) -> np.ndarray:
        allowed = ~np.any([self.deck.check(table) for _, table in terms], axis=0)
        return np.sum([sign * self.package.concepts(table)[concept][allowed] for sign, table in terms], axis=0)


def main() -> None:
    """Print the exact answers."""
    truth = Truth()
    swept = (("pair", "rank_7"), ("trips", "rank_7"), ("quads", "rank_7"), ("straight", "rank_7"), ("flush", "suit_h"))
    for title, rows_of in (("effect of each rung, by the rules", truth.sweep), ("the same of contexts as they are seen", truth.seen)):
        print(title)
        for concept, family in swept:
            cells = "  ".join(f"{rung}: {effect:+.4f} (n {n})" for rung, n, effect in rows_of(concept, family))
            print(f"  {concept:9} {family}   {cells}")
    print("interaction of two tokens, by the rules")
    for first, second in (("rank_7_2", "rank_K_2"), ("rank_7_2", "rank_K_3"), ("rank_7_1", "rank_8_1"), ("suit_h_2", "suit_d_2")):
        found = {concept: truth.interaction(concept, first, second) for concept in ("pair", "two_pair", "full_house", "straight", "flush")}
        cells = "  ".join(f"{concept} {effect.mean():+.4f}" for concept, effect in found.items())
        print(f"  {first} × {second} (n {len(found['pair'])})   {cells}")
    print("share of contexts with five hearts that are a flush, by the rules of each game")
    print("  " + "  ".join(f"{game} {share:.4f}" for game, share in truth.games("flush", "suit_h_5").items()))


if __name__ == "__main__":
    main()
