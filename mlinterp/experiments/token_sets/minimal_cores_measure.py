"""The arithmetic of `minimal_cores`, in both modes."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np

from mlinterp.errors import ExperimentError
from mlinterp.estimates import bounds, record
from mlinterp.experiments.token_sets.minimal_cores import MinimalCoreVariables
from mlinterp.experiments.token_sets.minimal_cores_search import ROUNDING, Core, Search
from mlinterp.result import ExperimentResult, Figure
from mlinterp.stats import wilson_interval
from mlinterp.subjects.token_sets import edits
from mlinterp.subjects.token_sets.table import ContextTable
from mlinterp.subjects.token_sets.vocabulary import Vocabulary
from mlinterp.token_sets.effects import mean_effect
from mlinterp.token_sets.itemsets import enrichment_p
from mlinterp.token_sets.lab import Lab
from mlinterp.token_sets.telling import adjust, judge

CORE_SHARE = 0.5
"""A token that at least this share of the most active contexts hold is a core token, where contexts are only observed."""
LARGEST_COMMON = 6
"""Tokens of the largest cores that are compared whole; the pairs and triples within larger ones are."""
_TRANSFER = ("transfer_retention", "transfer_control")
_LISTED = {"common": 20, "tokens": 50, "families": 20}


def measure(lab: Lab, variables: MinimalCoreVariables) -> ExperimentResult:
    """Return the result: `minimal_cores` and what they share, or `token_frequency` where contexts are only observed."""
    return _observe(lab, variables) if variables.mode == "observational" else _intervene(lab, variables)


def _intervene(lab: Lab, variables: MinimalCoreVariables) -> ExperimentResult:
    """Reduce each of the most active contexts to a core."""
    table = _most_active(lab, variables)
    vocabulary = lab.vocabulary
    clamped = np.isin([family.name for family in vocabulary.families], variables.clamp_families)
    search = Search(lab, table, clamped, variables.retention_threshold, variables.controls)
    cores = search.cores()
    transferred, random = search.transferred(cores)
    _warn(lab, cores, variables)
    result = lab.result("interventional", search.whole)
    rows = [_core_row(table, core, search.whole[core.row]) for core in cores]
    for row, *kept in zip(rows, transferred.tolist(), random.tolist(), strict=True):
        row |= {name: None if np.isnan(share) else share for name, share in zip(_TRANSFER, kept, strict=True)}
    about = (
        f"The smallest part of each context that keeps {variables.retention_threshold:.3g} of its activation, after an exhaustive search; "
        "after a greedy one an irreducible part, of which there may be a smaller. irreducible: no single token can go, which was tried. "
        "Of several of one size the one that keeps most is shown, so it lies above control_retention, the mean of subsets of its size, "
        "by choice too. empty_retention: what is left with the clamped families alone. transfer_retention: what this context keeps where "
        "only the families of another row's core are left (the next that it contains, else the next), which were not chosen by what the "
        "latent does here; transfer_control: what random parts of that size keep."
    )
    result.add_table("minimal_cores", rows, description=about)
    common = _common(vocabulary, table, cores, clamped)
    columns = ["tokens", "size", "count", "share", "low", "high", "n_whole"]
    about = f"Cores of up to {LARGEST_COMMON} tokens, and pairs and triples within cores, that at least two cores have in common."
    result.add_table("common_cores", common, columns, description=about)
    about = "Of the contexts that hold a family, the share whose core it is part of (Wilson's interval)."
    result.add_table("core_families", _families(vocabulary, table, cores, clamped), description=about)
    _sum_up(result, cores, rows, common)
    _judge_retention(result, cores, transferred - random, random)
    result.figures.append(
        _bars("core_families", ["share"], f"Families in the cores of latent {lab.latent} (interventional)", "share of its contexts")
    )
    return result


def _most_active(lab: Lab, variables: MinimalCoreVariables) -> ContextTable:
    """Return the distinct contexts of highest activation, without the excluded families, all above zero."""
    order = np.argsort(-lab.rows.post, kind="stable")
    order = order[lab.rows.post[order] > 0]
    if not len(order):
        raise ExperimentError(f"latent {lab.latent} is silent in all {len(lab.rows)} contexts: there is nothing to keep")
    table = lab.rows.table.take(order)
    for family in variables.exclude_families:
        table = edits.strip_family(table, family)
    _, first = np.unique(table.words, axis=0, return_index=True)
    table = table.take(np.sort(first)[: variables.max_examples])
    if variables.exclude_families:
        table = table.take(lab.admit(table))
        active = lab.activations(table).post > 0
        if not active.all():
            without = ", ".join(variables.exclude_families)
            lab.warn(f"{int((~active).sum())} of {len(active)} contexts are silent without {without}, and have no core")
        if not active.any():
            raise ExperimentError(f"latent {lab.latent} is silent wherever {', '.join(variables.exclude_families)} is taken out")
        table = table.take(active)
    return table


def _warn(lab: Lab, cores: list[Core], variables: MinimalCoreVariables) -> None:
    greedy = sum(core.search == "greedy" for core in cores)
    if greedy:
        lab.warn(f"{greedy} of {len(cores)} contexts were too large to try every subset: their cores are irreducible, perhaps not smallest")
    idle = sum(core.empty_retention is not None and core.empty_retention >= variables.retention_threshold - ROUNDING for core in cores)
    if idle:
        what = "with the clamped families alone" if variables.clamp_families else "without any token"
        lab.warn(f"in {idle} of {len(cores)} contexts enough of the activation is left {what}: nothing in them is needed")


def _tokens(vocabulary: Vocabulary, levels: np.ndarray, kept: np.ndarray) -> list[str]:
    """Return the families that are kept, each as the token of its level."""
    held = zip(vocabulary.families, levels.tolist(), kept.tolist(), strict=True)
    return [family.tokens[level - 1] for family, level, stays in held if stays and level]


def _joined(tokens: list[str]) -> str:
    return " + ".join(tokens) or "(empty)"


def _core_row(table: ContextTable, core: Core, whole: float) -> dict[str, Any]:
    levels, vocabulary = table.levels[core.row], table.vocabulary
    original, minimal = (_tokens(vocabulary, levels, kept) for kept in (levels > 0, core.kept))
    group = int(table.group[core.row])
    row: dict[str, Any] = {"original_tokens": _joined(original), "minimal_tokens": _joined(minimal)}
    row |= {"group": table.groups[group] if group >= 0 else None, "original_activation": float(whole)}
    row |= {"minimal_activation": float(core.activation.post[0]), "retention_ratio": core.retention}
    row |= {"size": len(minimal), "original_size": len(original), "search": core.search, "irreducible": core.irreducible}
    row |= {"control_retention": core.control, "empty_retention": core.empty_retention, "n_alike": core.n_alike}
    return row | {"minimal_pre": float(core.activation.pre[0])}


def _common(vocabulary: Vocabulary, table: ContextTable, cores: list[Core], clamped: np.ndarray) -> list[dict[str, Any]]:
    counted: Counter[tuple[str, ...]] = Counter()
    whole: Counter[tuple[str, ...]] = Counter()
    for core in cores:
        tokens = tuple(_tokens(vocabulary, table.levels[core.row], core.kept & ~clamped))
        parts = {part for size in (2, 3) for part in itertools.combinations(tokens, size)}
        if 1 <= len(tokens) <= LARGEST_COMMON:
            whole[tokens] += 1
            parts.add(tokens)
        counted.update(parts)
    kept = sorted(((tokens, n) for tokens, n in counted.items() if n >= 2), key=lambda item: (-item[1], -len(item[0]), item[0]))
    return [
        {"tokens": _joined(list(tokens)), "size": len(tokens), "count": n, **_share(n, len(cores)), "n_whole": whole[tokens]}
        for tokens, n in kept[: _LISTED["common"]]
    ]


def _share(count: int, n: int, name: str = "share") -> dict[str, float | None]:
    interval = wilson_interval(count, n)
    return {name: interval.estimate, **bounds(interval)}


def _families(vocabulary: Vocabulary, table: ContextTable, cores: list[Core], clamped: np.ndarray) -> list[dict[str, Any]]:
    at = [core.row for core in cores]
    there, kept = table.levels[at] > 0, np.stack([core.kept for core in cores])
    rows: list[dict[str, Any]] = []
    for number in np.flatnonzero(there.any(axis=0) & ~clamped).tolist():
        n, within = int(there[:, number].sum()), int(kept[:, number].sum())
        rows.append({"family": vocabulary.families[number].name, "n_contexts": n, "n_cores": within, **_share(within, n)})
    return sorted(rows, key=lambda row: (-row["share"], -row["n_contexts"]))


def _sum_up(result: ExperimentResult, cores: list[Core], rows: list[dict[str, Any]], common: list[dict[str, Any]]) -> None:
    """Fill in how large cores are and how much they keep."""
    sizes, retention = (
        mean_effect(np.array([float(row["size"]) for row in rows])),
        mean_effect(np.array([core.retention for core in cores])),
    )
    aggregates = result.aggregates
    aggregates.n_samples = aggregates.n_conditions = len(cores)
    wholes = [row for row in common if row["n_whole"]]
    top = max(wholes, key=lambda row: row["n_whole"]) if wholes else None
    aggregates.custom |= {
        "n_cores": len(cores),
        "n_greedy": sum(core.search == "greedy" for core in cores),
        "n_irreducible": sum(core.irreducible for core in cores),
        "mean_core_size": sizes.value,
        "mean_retention": retention.value,
        "top_core": top["tokens"] if top else rows[0]["minimal_tokens"],
        "top_core_count": top["n_whole"] if top else 1,
    }
    size = sizes.estimate("context")
    assert size is not None
    record(result, {"aggregates/mean_core_size": size})


def _judge_retention(result: ExperimentResult, cores: list[Core], beyond: np.ndarray, random: np.ndarray) -> None:
    """Record what cores keep, with the p value of what others' cores keep beyond random parts.

    A core was chosen for keeping much, so that it keeps more than random parts of its own context is no finding.
    """
    retention = mean_effect(np.array([core.retention for core in cores]))
    known = np.isfinite(beyond)
    if not known.any():
        alone = retention.estimate("context")
        assert alone is not None
        record(result, {"aggregates/mean_retention": alone})
        return
    transfer, control = mean_effect(beyond[known]), float(random[known].mean())
    result.metrics |= {"effect/control_retention": control, "effect/adjusted_retention": transfer.value or 0.0}
    null = "random parts as large as another context's core"
    judge(result, "aggregates/mean_retention", retention, null, control, beyond=transfer)
    judge(result, "effect/adjusted_retention", transfer, null)


def _observe(lab: Lab, variables: MinimalCoreVariables) -> ExperimentResult:
    """Count tokens and families in the most active contexts, and in the others."""
    lab.require_variation(lab.rows)
    vocabulary, table = lab.vocabulary, lab.rows.table
    order = np.argsort(-lab.rows.post, kind="stable")
    n = min(variables.max_examples, len(order))
    excluded = np.isin([family.name for family in vocabulary.families], variables.exclude_families)
    tokens = _frequencies(vocabulary.tokens, table.incidence, order, n, excluded[vocabulary.family_of], "token")
    families = _frequencies([family.name for family in vocabulary.families], table.levels > 0, order, n, excluded, "family")
    for row in tokens:
        row["is_core"] = row["frequency"] >= CORE_SHARE
    lab.warn("what is frequent where a latent is active need not be what activates it: mode interventional takes tokens away and looks")
    silent = int((lab.rows.post[order[:n]] <= 0).sum())
    if silent:
        lab.warn(f"{silent} of the {n} contexts with the highest activations are silent: max_examples is too large")
    if len(lab.rows) == n:
        lab.warn(f"max_examples takes all {n} contexts: there are no others to compare with")
    result = lab.result("observational", lab.rows.post[order[:n]])
    about = (
        f"How many of the {n} contexts with the highest activations hold a token (Wilson's interval), and what share of the others does. "
        "p: Fisher's exact test (one-sided) of being no more frequent than among these. Correlational: nothing was taken away."
    )
    result.add_table("token_frequency", tokens[: _LISTED["tokens"]], description=about)
    about = "The same for families. A context counts once, however many rungs of a family it holds."
    result.add_table("family_frequency", families[: _LISTED["families"]], description=about)
    custom = result.aggregates.custom
    custom |= {"n_core_tokens": sum(row["is_core"] for row in tokens)}
    custom |= {"top_token": tokens[0]["token"] if tokens else None, "top_token_freq": tokens[0]["frequency"] if tokens else None}
    result.aggregates.n_samples = n
    title = f"Families where latent {lab.latent} is most active (observational)"
    compared = ["frequency", "frequency_others"] if len(lab.rows) > n else ["frequency"]
    result.figures.append(_bars("family_frequency", compared, title, "share of the contexts"))
    return result


def _frequencies(
    names: tuple[str, ...] | list[str], held: np.ndarray, order: np.ndarray, n: int, excluded: np.ndarray, what: str
) -> list[dict[str, Any]]:
    """Return how often each name is held in the first n contexts of an order, the most frequent first, and in the rest."""
    count, others = held[order[:n]].sum(axis=0), held[order[n:]].sum(axis=0)
    rest = len(order) - n
    p = enrichment_p(count, n, others, rest) if rest else np.full(len(names), np.nan)
    rows = [
        {
            what: names[at],
            "count": int(count[at]),
            **_share(int(count[at]), n, "frequency"),
            "frequency_others": int(others[at]) / rest if rest else None,
            "p": float(p[at]) if rest else None,
        }
        for at in np.flatnonzero((count + others > 0) & ~excluded).tolist()
    ]
    adjust(rows)
    return sorted((row for row in rows if row["count"]), key=lambda row: -row["count"])


def _bars(table: str, columns: list[str], title: str, y_label: str) -> Figure:
    return Figure(name=table, table=table, kind="bar", x="family", y=columns, low="low", high="high", title=title, y_label=y_label)
