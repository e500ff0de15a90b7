"""A plain module as a subject: the edges of hook points, with sums small enough to write out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mlinterp.errors import SpecError
from mlinterp.subjects.base import Address, Batch, Examples
from mlinterp.subjects.hooked import HookedSubject


class Sum(nn.Module):
    """Embeds, adds a function of the running sum and reads out; calls one part by keyword and returns a pair from another."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.pair, self.out = nn.Embedding(5, 3), Pair(), nn.Linear(3, 5)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        x = self.embed(inputs)
        total, _ = self.pair(1.0, x=x)
        return self.out(x + total)


class Pair(nn.Module):
    def forward(self, scale: float, x: torch.Tensor) -> tuple[torch.Tensor, float]:
        return scale * x.cumsum(dim=1), scale


@pytest.fixture
def plain() -> HookedSubject:
    torch.manual_seed(0)
    inputs = torch.randint(5, (6, 4))
    examples = Examples(tuple("abcdef"), inputs, inputs, torch.ones_like(inputs, dtype=torch.bool))
    sites = {"total": ("pair", "output"), "seen": ("pair", "input", 1), "shared": ("pair", "stream", 1)}
    return HookedSubject("sum", Sum(), sites, examples, tokens=["zero", "one", "two", "three", "four"])


def test_a_plain_module_becomes_a_subject(plain):
    assert plain.sites == ("seen", "shared", "total")
    assert (plain.vocab, plain.width("total"), plain.token_text(2)) == (5, 3, "two")
    assert plain.examples("train", 4, seed=1).ids == plain.examples("train", 4, seed=1).ids
    assert plain.examples("test", 99).ids == tuple("abcdef")
    assert plain.addresses(["module:out", "total"]) == [Address("total"), Address("module:out")]


def test_input_edits_one_reader_and_stream_edits_all(plain):
    batch: Batch = plain.examples("train", 6).take(range(6))
    model = plain.model
    with torch.no_grad():
        x = model.embed(batch.inputs)
        edited = {site: plain.forward(batch, lambda _, h: h + 1.0, [site]).logits for site in ("seen", "shared", "total")}
        assert torch.equal(edited["seen"], model.out(x + (x + 1).cumsum(1)))
        assert torch.equal(edited["shared"], model.out(x + 1 + (x + 1).cumsum(1)))
        assert torch.equal(edited["total"], model.out(x + (x.cumsum(1) + 1)))


def test_a_hook_point_that_runs_twice_or_never_or_holds_no_activation_is_refused():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.twice, self.never = nn.Embedding(5, 3), nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.twice(self.twice(self.embed(inputs)))

    inputs = torch.zeros(1, 2, dtype=torch.long)
    examples = Examples(("a",), inputs, inputs, inputs == 0)
    subject = HookedSubject("odd", Odd(), {"in": ("embed", "input"), "far": ("embed", "input", 3)}, {"test": examples})
    for site, message in {
        "module:twice": "more than once",
        "module:never": "not evaluated",
        "in": r"a tensor of shape \[1, 2\]; it must be",
        "far": "called with 1 arguments",
    }.items():
        with pytest.raises(SpecError, match=message):
            subject.width(site)
    with pytest.raises(SpecError, match="'module:never' is not evaluated"):
        subject.forward(examples.take([0]), until=Address("module:never"))
    with pytest.raises(SpecError, match="unknown split 'train'"):
        subject.examples("train", 1)
