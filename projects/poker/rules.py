"""A network that nobody trained: the rules of poker, built by hand from sums and ReLUs.

Its neurons are features whose effects are known exactly: each of the nine at the site `rules` is 1 where the hand is of its class and 0
elsewhere. The logits are a linear map of them. Every number inside is a small whole number, so float32 holds it exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mlinterp.subjects.token_sets.package import DataPackage

CONFIDENCE = 20.0
"""Logit of the class that it is; the others have 0, so that the probability of being wrong is below 1e-7."""


class Classes(nn.Module):
    """From a bag of tokens to the class, as nine neurons.

    A family's token is there or not, and those of a thermometer below it with it. So "at least k seen" is its k-th token, and the rest is
    counting: `relu(x - m + 1)` of a whole number x is positive from m on, and `min(x, 1)` is `1 - relu(1 - x)`.
    """

    def __init__(self, package: DataPackage) -> None:
        super().__init__()
        vocabulary, ranking = package.vocabulary, package.attribute_of("ranking")
        ranks, suits = vocabulary.families[:13], vocabulary.families[13:]
        self.twice, self.thrice, self.all_four = (
            [vocabulary.number(vocabulary.token(rank.name, count)) for rank in ranks] for count in (2, 3, 4)
        )
        once = [vocabulary.number(vocabulary.token(rank.name, 1)) for rank in ranks]
        self.runs = [[once[(low + step) % 13] for step in range(5)] for low in range(-1, 9)]
        self.five = [vocabulary.number(vocabulary.token(suit.name, 5)) for suit in suits]
        first = len(vocabulary) + len(vocabulary.special)
        self.ace_high = [first + number for number in range(len(ranking)) if ranking[number] == "deuce_to_seven"]
        self.nameless = [first + number for number in range(len(ranking)) if ranking[number] == "ace_to_five"]

    def forward(self, bag: Tensor) -> Tensor:
        """Return the nine indicators, `[n, 9]`, of bags `[n, columns]`."""

        def how_many(columns: list[int]) -> Tensor:
            return bag[:, columns].sum(dim=1)

        ace_high, nameless = how_many(self.ace_high), how_many(self.nameless)
        runs = torch.relu(bag[:, self.runs].sum(dim=2) - 4)
        runs = torch.cat([torch.relu(runs[:, :1] - ace_high[:, None]), runs[:, 1:]], dim=1)
        straight = torch.relu(runs.sum(dim=1) - nameless)
        flush = torch.relu(how_many(self.five) - nameless)
        both = torch.relu(straight + flush - 1)

        twice, thrice, quads = how_many(self.twice), how_many(self.thrice), how_many(self.all_four)
        two_ranks = torch.relu(twice - 1)
        full_house = torch.relu(thrice + two_ranks - 1)
        trips = thrice - full_house - quads
        two_pair = two_ranks - full_house
        pair = twice - 2 * two_ranks - trips - quads
        made = [pair, two_pair, trips, straight - both, flush - both, full_house, quads, both]
        return torch.stack([1 - sum(made), *made], dim=1)


class Rules(nn.Module):
    """The classes, and logits that say which it is."""

    def __init__(self, package: DataPackage) -> None:
        super().__init__()
        self.rules = Classes(package)
        self.logits = nn.Linear(len(package.outputs), len(package.outputs), bias=False)
        with torch.no_grad():
            self.logits.weight.copy_(CONFIDENCE * torch.eye(len(package.outputs)))

    def forward(self, bag: Tensor) -> Tensor:
        """Return logits `[n, n_outputs]`."""
        logits: Tensor = self.logits(self.rules(bag))
        return logits


def network(package: DataPackage) -> nn.Module:
    """Return the network for the poker package."""
    return Rules(package)
