"""The page of latents: one interactive file with a card for each, in the manner of Neuronpedia and SAEDashboard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import count, groupby
from typing import Any

from mlinterp.io.text import scrub, visible
from mlinterp.reports.latent_card import Card, Context, Dashboard, Text
from mlinterp.reports.sealed_page import Frame

SCRIPTS = ("dom", "latents/data", "latents/tokens", "latents/charts", "latents/card", "latents/list", "latents/page")
"""In the order in which they are joined to one script."""

DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
"""Of the numbers that packed tokens are written in."""

PACKED_FROM = 2
"""Added to a packed token's number, since places without a token have negative ones."""

LONGEST_TOKEN = 200
"""Characters of a token that are shown."""

_KEPT = {"\n", "\t", "\r"}
"""Control characters that the page draws itself, as signs."""


def latent_html(dashboard: Dashboard) -> str:
    """Return the page of a dashboard."""
    return _frame().fill(f"{_plain(dashboard.title)}: latents", latent_data(dashboard))


def latent_policy() -> str:
    """Return the page's content security policy."""
    return _frame().policy()


def latent_data(dashboard: Dashboard) -> dict[str, Any]:
    """Return what the page draws, as JSON: every text visible and without secrets, tokens as places in the vocabulary.

    Contexts are most of the page, so activations have four digits, and the tokens of a text stand packed in one string.
    """
    order = sorted(dashboard.vocabulary)
    number = {token: place for place, token in enumerate(order)}
    digits = next(width for width in count(1) if len(DIGITS) ** width >= len(order) + PACKED_FROM)

    def numbered(token: int) -> int:
        return number.get(token, token)

    def packed(tokens: Sequence[int]) -> str:
        return "".join(_code(numbered(token) + PACKED_FROM, digits) for token in tokens)

    return {
        "title": _plain(dashboard.title),
        "facts": [[_plain(name), _plain(value)] for name, value in dashboard.facts],
        "rows": dashboard.n_rows,
        "examples": dashboard.n_examples,
        "evaluations": [_plain(name) for name in dashboard.evaluations],
        "grid": dashboard.grid,
        "tokensAre": dashboard.tokens_are,
        "sets": dashboard.sets,
        "logits": _plain(dashboard.logits),
        "hasLogits": dashboard.has_logits,
        "vocabulary": [token_text(dashboard.vocabulary[token]) for token in order],
        "digits": digits,
        "texts": [_text(text, packed) for text in dashboard.texts],
        "cards": [_card(card, numbered) for card in dashboard.cards],
    }


def token_text(token: str) -> str:
    r"""Return a token as the page keeps it: what cannot be seen as an escape, save for line breaks and tabs; the end of a long one cut.

    >>> token_text("a\n\u202e\x00")
    'a\n\\u202e\\x00'
    """
    clean = scrub(token)
    cut = clean[:LONGEST_TOKEN]
    text = "".join(char if char in _KEPT else visible(char) for char in cut)
    return text if len(clean) <= LONGEST_TOKEN else f"{text}… ({len(clean)} characters)"


def _text(text: Text, packed: Callable[[Sequence[int]], str]) -> dict[str, Any]:
    more = {} if text.answers is None else {"answers": packed(text.answers)}
    place = {"start": text.start, "before": text.before, "after": text.after}
    return {"name": _plain(text.name), **place, "tokens": packed(text.tokens), **more}


@cache
def _code(number: int, digits: int) -> str:
    """Return a number in base 64, most significant digit first.

    >>> _code(65, 3)
    'ABB'
    """
    return "".join(DIGITS[number >> 6 * place & 63] for place in reversed(range(digits)))


def _card(card: Card, numbered: Callable[[int], int]) -> dict[str, Any]:
    def effects(entries: Sequence[tuple[int, float]]) -> list[list[float]]:
        return [[numbered(token), _short(effect)] for token, effect in entries]

    return {
        "id": card.latent,
        "n": card.n_active,
        "examples": card.n_examples,
        "density": card.density,
        "interval": card.interval,
        "mean": None if card.mean_act is None else _short(card.mean_act),
        "max": _short(card.max_act),
        "width": card.bin_width,
        "histogram": list(card.histogram),
        "top": [_context(context) for context in card.top],
        "bands": [
            [band.low, band.high, _short(band.least), _short(band.most), [_context(context) for context in band.contexts]]
            for band in card.bands
        ],
        "tokens": [[numbered(share.token), _short(share.share), _short(share.of_all)] for share in card.tokens],
        "evaluations": [_short(share) for share in card.by_evaluation],
        "raises": effects(card.raises),
        "lowers": effects(card.lowers),
        "nearest": [[other.latent, _short(other.value)] for other in card.nearest],
        "together": [[other.latent, _short(other.value), _short(other.share or 0.0)] for other in card.co_active],
    }


def _context(context: Context) -> list[Any]:
    """Return a context by place: text, evaluation, position, positions and activations, and runs that were not read, where there are."""
    positions, acts = [place for place, _ in context.acts], [_short(act) for _, act in context.acts]
    unread = _runs(context.unread)
    return [context.text, context.evaluation, context.position, positions, acts, *([unread] if unread else [])]


def _runs(places: Sequence[int]) -> list[list[int]]:
    """Return ascending numbers as runs.

    >>> _runs([1, 2, 3, 7])
    [[1, 3], [7, 7]]
    """
    groups = [[place for _, place in group] for _, group in groupby(enumerate(places), key=lambda pair: pair[1] - pair[0])]
    return [[group[0], group[-1]] for group in groups]


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _plain(text: str) -> str:
    return visible(scrub(" ".join(text.split())))


@cache
def _frame() -> Frame:
    return Frame.read("latents/page", ["latents/page"], SCRIPTS)
