"""The hand-built network: each trait of `planted.yaml` as a neuron, with no training, so that every effect on it is known (`truth.py`).

    bag [n, columns] -> evidence [n, traits] -> relu: traits [n, traits] -> linear: logits [n, outputs]

Of a family the highest rung present counts, so lower tokens that a context misses are filled in before anything is weighed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .package import Builds


class Evidence(nn.Module):
    """The planted sums before the ReLU, `[n, columns]` to `[n, traits]`: a linear map of the filled-in bag and of pairs in it.

    Attributes:
        weight: `[traits, columns]`; of a family's rungs each adds what it has beyond the one below.
        left, right: the columns of each pair that acts together, int64 `[pairs]`.
        together: what the pair adds to each trait, `[traits, pairs]`.
    """

    def __init__(self, package: Builds) -> None:
        super().__init__()
        vocabulary, traits = package.vocabulary, list(package.planted["traits"].values())
        groups_from = len(vocabulary) + len(vocabulary.special)
        weight = torch.zeros(len(traits), groups_from + len(package.groups))
        pairs: list[tuple[int, int, int, float]] = []
        for number, trait in enumerate(traits):
            for family, values in trait.get("rungs", {}).items():
                weight[number, vocabulary.span(family)] = torch.tensor([0.0, *values]).diff()
            for token, value in trait.get("present", {}).items():
                weight[number, vocabulary.number(token)] = value
            for column, (name, kit) in enumerate(package.groups.items(), start=groups_from):
                weight[number, column] = trait.get("specials", {}).get(kit["special"], 0.0) + trait.get("weapons", {}).get(name, 0.0)
            for both in trait.get("together", []):
                rung = vocabulary.number(vocabulary.token(both["family"], both["rung"]))
                pairs.append((number, rung, vocabulary.number(both["ability"]), both["adds"]))
        together = torch.zeros(len(traits), len(pairs))
        for at, (number, _, _, adds) in enumerate(pairs):
            together[number, at] = adds
        self.spans = [vocabulary.span(family.name) for family in vocabulary.families if not family.is_binary]
        self.register_buffer("weight", weight)
        self.register_buffer("left", torch.tensor([left for _, left, _, _ in pairs]))
        self.register_buffer("right", torch.tensor([right for _, _, right, _ in pairs]))
        self.register_buffer("together", together)
        self.register_buffer("offset", torch.tensor([trait["offset"] for trait in traits]))

    def forward(self, bag: Tensor) -> Tensor:
        filled = bag.clone()
        for span in self.spans:
            filled[:, span] = bag[:, span].flip(1).cummax(dim=1).values.flip(1)
        pairs = filled[:, self.left] * filled[:, self.right]
        return filled @ self.weight.T + pairs @ self.together.T - self.offset


class Planted(nn.Module):
    """Bag to logits; the modules `evidence`, `traits` and `readout` are its sites and the way out of them."""

    def __init__(self, package: Builds) -> None:
        super().__init__()
        self.evidence, self.traits = Evidence(package), nn.ReLU()
        self.readout = nn.Linear(len(package.planted["traits"]), len(package.outputs), bias=False)
        nn.init.zeros_(self.readout.weight)
        with torch.no_grad():
            for number, trait in enumerate(package.planted["traits"].values()):
                for family, logits in trait["promotes"].items():
                    self.readout.weight[package.vocabulary.span(family), number] = logits

    def forward(self, bag: Tensor) -> Tensor:
        logits: Tensor = self.readout(self.traits(self.evidence(bag)))
        return logits


def network(package: Builds) -> Planted:
    """Return the network; its weights are the plan's and never trained."""
    return Planted(package).requires_grad_(False)
