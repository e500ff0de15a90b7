"""What the page of latents shows, as plain data: a card for each latent, and the texts that its contexts are cut from.

Tokens are numbers; `Dashboard.vocabulary` says how each is read. Negative numbers are places without a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mlinterp.subjects.grid import Grid

PADDING, PREFIX = -1, -2
"""Places without a token: padding, and rows before the input."""


@dataclass(frozen=True)
class Text:
    """A stretch of one example.

    Attributes:
        name: the example's id.
        start: position of the first token shown; negative on prefix rows.
        tokens: the tokens from there on.
        before: real tokens left out before it.
        after: real tokens left out after it.
        answers: the right answer at each of them, -1 where none is asked for; None where the answer is the next token.
    """

    name: str
    start: int
    tokens: tuple[int, ...]
    before: int = 0
    after: int = 0
    answers: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Context:
    """One latent along one text.

    Attributes:
        text: which of the dashboard's texts.
        evaluation: which of the dashboard's evaluations.
        position: where the activation is that it is shown for.
        acts: (position, activation) wherever it is active.
        unread: positions of the text where the SAE does not read, so that nothing is known of them.
    """

    text: int
    evaluation: int
    position: int
    acts: tuple[tuple[int, float], ...]
    unread: tuple[int, ...] = ()


@dataclass(frozen=True)
class Band:
    """Contexts drawn from one share of a latent's active rows, by activation.

    Attributes:
        low: share of the active rows with a smaller activation.
        high: share with an activation that is no larger.
        least: smallest activation of the band.
        most: largest one.
        contexts: what was drawn.
    """

    low: float
    high: float
    least: float
    most: float
    contexts: tuple[Context, ...]


@dataclass(frozen=True)
class TokenShare:
    """How often a latent's active rows have a token, beside how often all rows do."""

    token: int
    share: float
    of_all: float


@dataclass(frozen=True)
class Relation:
    """Another latent and how close it is; `share` is that of this latent's active rows in which the other is active too."""

    latent: int
    value: float
    share: float | None = None


@dataclass(frozen=True)
class Card:
    """One latent.

    Attributes:
        latent: its number.
        n_active: rows in which it is active.
        n_examples: examples in which it is.
        density: share of rows in which it is active.
        interval: of the density; None where it is undefined.
        mean_act: mean activation over the rows in which it is active; None for one that never is.
        max_act: largest activation; 0 for one that is never active.
        bin_width: of the histogram.
        histogram: rows in each bin (i · width, (i + 1) · width].
        top: the examples that activate it most.
        bands: examples from all over its activations, strongest band first.
        tokens: what its active rows are, most frequent first.
        by_evaluation: share of the rows of each evaluation in which it is active; empty for feed-forward subjects.
        raises: (token, effect) of the logits that its direction raises most.
        lowers: of those that it lowers most.
        nearest: latents whose decoder directions have the largest cosine with its own.
        co_active: latents that are active in the same rows.
    """

    latent: int
    n_active: int
    n_examples: int
    density: float
    interval: tuple[float, float] | None
    mean_act: float | None
    max_act: float
    bin_width: float = 0.0
    histogram: tuple[int, ...] = ()
    top: tuple[Context, ...] = ()
    bands: tuple[Band, ...] = ()
    tokens: tuple[TokenShare, ...] = ()
    by_evaluation: tuple[float, ...] = ()
    raises: tuple[tuple[int, float], ...] = ()
    lowers: tuple[tuple[int, float], ...] = ()
    nearest: tuple[Relation, ...] = ()
    co_active: tuple[Relation, ...] = ()


@dataclass(frozen=True)
class Dashboard:
    """A page of latents.

    Attributes:
        title: what the latents belong to, such as `trm4 · z_H`.
        facts: (name, value) about SAE and trace, shown once.
        cards: the latents.
        texts: what contexts are cut from.
        vocabulary: how each token is read.
        evaluations: names of the evaluations that rows come from, such as `step 7 · cycle 2`; one empty name for feed-forward subjects.
        grid: how tokens lie, None where texts are sequences.
        tokens_are: whether shares of tokens are about the token that goes in or the right `answer`.
        sets: whether texts are sets of tokens, each shown and counted as a whole.
        logits: which approximation the effects on logits are, or why there are none.
        has_logits: whether there are any.
        n_rows: rows looked at.
        n_examples: examples that they come from.
    """

    title: str
    cards: tuple[Card, ...]
    texts: tuple[Text, ...]
    vocabulary: Mapping[int, str]
    evaluations: tuple[str, ...]
    n_rows: int
    n_examples: int
    logits: str
    has_logits: bool
    facts: tuple[tuple[str, str], ...] = field(default=())
    grid: Grid | None = None
    tokens_are: str = "token"
    sets: bool = False
