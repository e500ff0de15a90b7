"""Senders and receivers of a path, by name (no torch here: specs are validated without it).

A sender writes to the residual stream: `embedding`, `blocks.N.head.H` or `blocks.N.mlp`. A receiver reads it: the query, key or value
of a head, `blocks.N.head.H.q` (or `.k`, `.v`), `blocks.N.mlp`, or `logits`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import NamedTuple

from mlinterp.errors import SpecError, nearest, unknown
from mlinterp.subjects.stream_readers import LETTERS

_SENDER = re.compile(r"(embedding)|blocks\.(\d+)\.(?:head\.(\d+)|mlp)")
_RECEIVER = re.compile(r"(logits)|blocks\.(\d+)\.(?:head\.(\d+)\.([qkv])|mlp)")


class Sender(NamedTuple):
    """What writes to the stream: the embedding (no layer), a head, or an MLP (no head)."""

    layer: int | None = None
    head: int | None = None

    @property
    def name(self) -> str:
        """The name in a spec."""
        if self.layer is None:
            return "embedding"
        return f"blocks.{self.layer}.mlp" if self.head is None else f"blocks.{self.layer}.head.{self.head}"

    @property
    def short(self) -> str:
        """The name in tables and on axes: `embed`, `L0.h1`, `L0.mlp`."""
        return "embed" if self.layer is None else f"L{self.layer}." + ("mlp" if self.head is None else f"h{self.head}")


class Receiver(NamedTuple):
    """What reads the stream: the logits (no layer), the query, key or value of a head, or an MLP (no head)."""

    layer: int | None = None
    head: int | None = None
    letter: str | None = None

    @property
    def name(self) -> str:
        """The name in a spec."""
        if self.layer is None:
            return "logits"
        return f"blocks.{self.layer}.mlp" if self.head is None else f"blocks.{self.layer}.head.{self.head}.{self.letter}"

    @property
    def short(self) -> str:
        """The name in tables and on axes: `logits`, `L1.h0.k`, `L1.mlp`."""
        return self.name if self.layer is None else f"L{self.layer}." + ("mlp" if self.head is None else f"h{self.head}.{self.letter}")


def sender(name: str, field: str = "variables.senders") -> Sender:
    """Return the sender of that name. Raises SpecError, with the nearest form of a name."""
    found = _SENDER.fullmatch(name)
    if found is None:
        numbers = [*re.findall(r"\d+", name), "0", "0"]
        forms = ("embedding", f"blocks.{numbers[0]}.head.{numbers[1]}", f"blocks.{numbers[0]}.mlp")
        raise _refused("sender", name, field, "embedding, blocks.N.head.H or blocks.N.mlp", forms)
    return Sender() if found[1] else Sender(int(found[2]), None if found[3] is None else int(found[3]))


def receiver(name: str, field: str = "variables.receivers") -> Receiver:
    """Return the receiver of that name. Raises SpecError, with the nearest form of a name."""
    found = _RECEIVER.fullmatch(name)
    if found is None:
        numbers = [*re.findall(r"\d+", name), "0", "0"]
        heads = [f"blocks.{numbers[0]}.head.{numbers[1]}.{letter}" for letter in LETTERS]
        raise _refused(
            "receiver", name, field, "blocks.N.head.H.q (or .k, .v), blocks.N.mlp or logits", ["logits", *heads, f"blocks.{numbers[0]}.mlp"]
        )
    return Receiver() if found[1] else Receiver(int(found[2]), None if found[3] is None else int(found[3]), found[4])


def require(names: Iterable[str], known: Collection[str], field: str, what: str) -> None:
    """Raise SpecError, with the nearest name, for a sender or receiver that a model does not have."""
    for name in names:
        if name not in known:
            raise unknown(field, name, known, what=what)


def _refused(what: str, name: str, field: str, allowed: str, forms: Collection[str]) -> SpecError:
    return SpecError(f"unknown {what} '{name}'", field=field, allowed=f"allowed: {allowed}", nearest=nearest(name, forms))
