"""From a scan to the page of latents: contexts as texts, effects on logits, relations, each put on the card of its latent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from mlinterp.progress import Reporter
from mlinterp.reports.latent_card import Band, Card, Context, Dashboard, Relation, Text, TokenShare
from mlinterp.sae.latents.excerpts import Excerpts
from mlinterp.sae.latents.layout import Layout
from mlinterp.sae.latents.reading import Reading
from mlinterp.sae.latents.relations import co_active, nearest
from mlinterp.sae.latents.scan import Activity, scan
from mlinterp.sae.latents.trails import trails
from mlinterp.sae.model import SAE
from mlinterp.subjects.base import Address, Batch, Subject
from mlinterp.subjects.unembedding import NoUnembedding
from mlinterp.tracing.dataset import TraceDataset

BANDS = 4
"""Equal shares of a latent's active rows, by activation."""

FROZEN_ON = 512
"""Tokens on which a final norm is frozen."""

LATENTS_AT_ONCE = 32
"""Latents whose effects on every logit are held in memory together."""


@dataclass(frozen=True)
class Amounts:
    """How much of each latent is shown.

    Attributes:
        top: examples that activate it most.
        per_band: examples from each quarter of its activations.
        window: tokens to either side of the one that a context is about; a shorter example is shown whole.
        logits: tokens whose logits it raises most, and as many that it lowers.
        related: latents near it, of each kind.
        tokens: tokens that its active rows have most often.
    """

    top: int = 10
    per_band: int = 4
    window: int = 64
    logits: int = 10
    related: int = 5
    tokens: int = 6


Entries = tuple[tuple[int, float], ...]
"""Tokens and what is added to the logit of each."""


@dataclass(frozen=True)
class Effects:
    """Which logits each latent's direction raises and lowers most.

    Attributes:
        about: which approximation this is, or why there is none.
        raises: for each latent the tokens that it raises most, strongest first; None where effects are not defined.
        lowers: those that it lowers most.
    """

    about: str
    raises: list[Entries] | None = None
    lowers: list[Entries] | None = None


def make_dashboard(
    sae: SAE,
    reading: Reading,
    trace: TraceDataset,
    latents: Sequence[int],
    subject: Subject | None = None,
    *,
    title: str = "",
    facts: Sequence[tuple[str, str]] = (),
    amounts: Amounts | None = None,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> tuple[Dashboard, Activity, Effects]:
    """Gather everything about chosen latents.

    Args:
        sae: whose latents.
        reading: the rows that it reads (`read_by`).
        trace: where they come from.
        latents: which latents, each once.
        subject: says how tokens are read, how they lie and how a direction reaches the logits.
        title: of the page.
        facts: about SAE and trace.
        amounts: how much is shown.
        seed: of what is drawn.
        reporter: hears of the progress.
    """
    amounts, (source, layout) = amounts or Amounts(), reading
    activity = scan(sae, source, layout, latents, n_top=amounts.top, seed=seed, reporter=reporter)
    effects = direct_effects(sae, trace, latents, subject, amounts.logits)
    shown = [_shown(activity, layout, number, amounts) for number in range(len(latents))]
    wanted = [(latent, place) for latent, chosen in zip(latents, shown, strict=True) for place in chosen.places]
    sets = subject is not None and subject.is_set
    excerpts = Excerpts(trace, layout, amounts.window, whole=sets)
    contexts = [excerpts.context(trail) for trail in trails(sae, source, layout, wanted, window=amounts.window, reporter=reporter)]
    near, together = nearest(sae, latents, amounts.related), co_active(activity, amounts.related)
    shares = _SetShares(layout, excerpts, amounts.tokens) if sets else _TokenShares(layout, excerpts.aligned, amounts.tokens)
    cards, at = [], 0
    for number, chosen in enumerate(shown):
        own, at = tuple(contexts[at : at + len(chosen.places)]), at + len(chosen.places)
        card = replace(
            _counted(activity, number),
            top=own[: chosen.n_top],
            bands=_bands(chosen, own),
            tokens=shares.of(activity.sample.of(number)[0]),
            by_evaluation=_by_evaluation(activity, layout, number),
            raises=effects.raises[number] if effects.raises else (),
            lowers=effects.lowers[number] if effects.lowers else (),
            nearest=tuple(Relation(other.latent, other.cosine) for other in near[number]),
            co_active=tuple(Relation(other.latent, other.phi, other.share) for other in together[number]),
        )
        cards.append(card)
    texts = excerpts.texts()
    page = Dashboard(
        title=title,
        facts=tuple(facts),
        cards=tuple(cards),
        texts=texts,
        vocabulary={token: _read(token, subject) for token in _used(cards, texts)},
        evaluations=tuple(evaluation_name(address) for address in layout.addresses),
        n_rows=len(layout),
        n_examples=len(layout.examples),
        logits=effects.about,
        has_logits=effects.raises is not None,
        grid=subject.grid if subject else None,
        tokens_are="answer" if excerpts.aligned else "token",
        sets=sets,
    )
    return page, activity, effects


def direct_effects(sae: SAE, trace: TraceDataset, latents: Sequence[int], subject: Subject | None, n: int = 10) -> Effects:
    """Return what one unit of each latent adds to the logits straight through the unembedding, or why that is not defined.

    The n tokens of each sign are kept; norms are frozen on tokens of the trace.
    """
    if subject is None:
        return Effects("Not defined: no subject is named, and it alone knows its unembedding.")
    if sae.config.kind == "crosscoder":
        return Effects("Not defined: a crosscoder writes to several hook points at once.")
    way = subject.unembedding(sae.config.target_site or sae.config.site, _some_tokens(trace))
    if isinstance(way, NoUnembedding):
        return Effects(f"Not defined: {way.why}.")
    raises, lowers = [], []
    for start in range(0, len(latents), LATENTS_AT_ONCE):
        with torch.no_grad():
            logits = way.effects(sae.directions(latents[start : start + LATENTS_AT_ONCE]).to(way.head.device)).float().cpu().numpy()
        raises += [_largest(own, n) for own in logits]
        lowers += [tuple((token, -effect) for token, effect in _largest(-own, n)) for own in logits]
    return Effects(way.about, raises, lowers)


def _largest(effects: np.ndarray, n: int) -> Entries:
    """Return the n largest of the positive effects `[vocab]`, largest first, of equal ones the lower token."""
    order = np.argsort(-effects, kind="stable")[:n]
    return tuple((int(token), float(effects[token])) for token in order if effects[token] > 0)


def evaluation_name(address: Address) -> str:
    """Return where in a recurrence an evaluation is, such as `step 7 · cycle 2`; empty for feed-forward subjects.

    >>> evaluation_name(Address("z_L", 7, 2, 0)), evaluation_name(Address("blocks.1.resid_post"))
    ('step 7 · cycle 2 · latent step 0', '')
    """
    names = {"step": address.sup_step, "cycle": address.cycle, "latent step": address.latent_step}
    return " · ".join(f"{name} {value}" for name, value in names.items() if value is not None)


@dataclass(frozen=True)
class _Shown:
    """Places of a latent's contexts: first the strongest, then those of each band, with the band's bounds."""

    n_top: int
    bands: list[tuple[float, float, float, float, int]]
    places: list[int]


def _shown(activity: Activity, layout: Layout, number: int, amounts: Amounts) -> _Shown:
    top = [int(place) for place in activity.strongest.places[number] if place >= 0]
    places, values = activity.sample.of(number)
    owner = np.searchsorted(layout.starts, places, side="right")
    taken = set(np.searchsorted(layout.starts, top, side="right").tolist())
    order = np.argsort(values, kind="stable")
    bands, drawn = [], []
    for band in reversed(range(BANDS)):
        part = np.sort(order[len(order) * band // BANDS : len(order) * (band + 1) // BANDS])
        if not len(part):
            continue
        own: list[int] = []
        for at in part:
            if len(own) < amounts.per_band and owner[at] not in taken:
                taken.add(owner[at])
                own.append(int(at))
        own.sort(key=lambda at: -values[at])
        bands.append((band / BANDS, (band + 1) / BANDS, float(values[part].min()), float(values[part].max()), len(own)))
        drawn += [int(places[at]) for at in own]
    return _Shown(len(top), bands, top + drawn)


def _bands(chosen: _Shown, contexts: tuple[Context, ...]) -> tuple[Band, ...]:
    found, at = [], chosen.n_top
    for low, high, least, most, n in chosen.bands:
        found.append(Band(low, high, least, most, contexts[at : at + n]))
        at += n
    return tuple(found)


def _counted(activity: Activity, number: int) -> Card:
    latent, whole, density = activity.latents[number], activity.survey, activity.density[number]
    return Card(
        latent=latent,
        n_active=int(whole.n_active[latent]),
        n_examples=int(activity.n_examples[number]),
        density=density.estimate,
        interval=(density.low, density.high) if np.isfinite([density.low, density.high]).all() else None,
        mean_act=float(whole.mean_act[latent]) if whole.n_active[latent] else None,
        max_act=float(whole.max_act[latent]),
        bin_width=float(activity.histogram.widths()[number]),
        histogram=tuple(int(count) for count in np.trim_zeros(activity.histogram.counts[number], "b")),
    )


def _by_evaluation(activity: Activity, layout: Layout, number: int) -> tuple[float, ...]:
    if len(layout.addresses) < 2:
        return ()
    rows = np.bincount(layout.evaluation, minlength=len(layout.addresses))
    return tuple(float(share) for share in activity.by_evaluation[number] / rows)


class _TokenShares:
    """Which tokens a latent's active rows have, beside all rows."""

    def __init__(self, layout: Layout, aligned: bool, n: int) -> None:
        self.tokens = np.maximum(layout.answer if aligned else layout.token, -1)
        self.n, self.of_all = n, np.bincount(self.tokens + 1) / len(layout)

    def of(self, places: np.ndarray) -> tuple[TokenShare, ...]:
        """Return the most frequent tokens of the rows at some places."""
        if not len(places):
            return ()
        shares = np.bincount(self.tokens[places] + 1) / len(places)
        order = [int(token) for token in np.argsort(-shares, kind="stable")[: self.n] if shares[token] > 0]
        return tuple(TokenShare(token - 1, float(shares[token]), float(self.of_all[token])) for token in order)


class _SetShares:
    """Which tokens the contexts of a latent's active rows hold, beside those of all rows."""

    def __init__(self, layout: Layout, excerpts: Excerpts, n: int) -> None:
        self.held = [excerpts.held(example) for example in range(len(layout.examples))]
        self.owner = np.repeat(np.arange(len(self.held)), np.diff(layout.starts))
        self.n, self.of_all = n, self._shares(np.arange(len(layout)), 0)

    def of(self, places: np.ndarray) -> tuple[TokenShare, ...]:
        """Return the tokens that most of the rows at some places hold."""
        if not len(places):
            return ()
        shares = self._shares(places, len(self.of_all))
        order = [int(token) for token in np.argsort(-shares, kind="stable")[: self.n] if shares[token] > 0]
        return tuple(TokenShare(token, float(shares[token]), float(self.of_all[token])) for token in order)

    def _shares(self, places: np.ndarray, size: int) -> np.ndarray:
        return np.bincount(np.concatenate([self.held[owner] for owner in self.owner[places]]), minlength=size) / len(places)


def _used(cards: Sequence[Card], texts: Sequence[Text]) -> list[int]:
    """Return every token that the page shows."""
    used = {token for text in texts for token in (*text.tokens, *(text.answers or ()))}
    for card in cards:
        used |= {token for token, _ in (*card.raises, *card.lowers)} | {share.token for share in card.tokens}
    return sorted(token for token in used if token >= 0)


def _read(token: int, subject: Subject | None) -> str:
    """Return how a token is read; one that is only a part of a character is told apart by its number."""
    text = str(token) if subject is None else subject.token_text(token)
    return f"{text}‹{token}›" if "\ufffd" in text else text


def _some_tokens(trace: TraceDataset) -> Batch:
    """Return some of the trace's examples as a batch: about as many tokens as a norm needs to be frozen on."""
    rows = list(trace.examples.items())
    rows = rows[: max(1, FROZEN_ON // len(rows[0][1]["input"]))]
    inputs = torch.tensor([row["input"] for _, row in rows])
    mask = torch.tensor([row.get("mask", [1] * len(row["input"])) for _, row in rows], dtype=torch.bool)
    return Batch(tuple(name for name, _ in rows), inputs, torch.tensor([row["target"] for _, row in rows]), mask)
