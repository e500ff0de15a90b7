"""Models of contexts as subjects: one row a context at every site, whatever the number of its tokens.

A batch's token ids are, for each context, that of its group (or of no group) and then those of its tokens, padded. The model reads the
bag of them (`DataPackage.encode`); its sites hold one row `[n, d]` a context. A tap sees that row at every position, as a view, and what
stands at position 0 is taken back; so tracing, SAEs and interventions, which speak of positions, work as on any subject, as long as they
keep to the rows that `positions` returns: position 0 alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from mlinterp.determinism import derive_seed, numpy_stream, torch_stream
from mlinterp.errors import SpecError, nearest, unknown
from mlinterp.io.digests import sha256_json
from mlinterp.io.pyfile import call, load_function
from mlinterp.subjects.base import IGNORED, Address, Batch, Examples, Split
from mlinterp.subjects.hook_points import HookPoint
from mlinterp.subjects.hooked import HookedSubject, Visit
from mlinterp.subjects.tasks.base import read_options
from mlinterp.subjects.token_sets.config import TokenSetConfig, TokenSetFitOptions
from mlinterp.subjects.token_sets.network import TokenSetNetwork, module_of
from mlinterp.subjects.token_sets.objective import TokenSetObjective
from mlinterp.subjects.token_sets.package import DataPackage, load_package
from mlinterp.subjects.token_sets.table import NO_GROUP, ContextTable
from mlinterp.subjects.unembedding import NoUnembedding, Unembedding

_PROBES = 64
"""Contexts on which a way to the logits is held against the model."""

_LINEAR = 1e-4
"""Largest departure from a linear map, as a share of the logits' spread."""


class _RowVisit(Visit):
    """A value `[n, d]`, seen at every position of its context."""

    allowed = "it must be a tensor [n, d], one row a context"

    def fits(self, value: Tensor) -> bool:
        return value.ndim == 2 and len(value) == self.shape[0]

    def seen(self, value: Tensor) -> Tensor:
        return value.unsqueeze(1).expand(-1, self.shape[1], -1)

    def taken(self, edited: Tensor) -> Tensor:
        return edited[:, 0].contiguous()


class TokenSetSubject(HookedSubject):
    """A model of contexts, with its domain.

    Token ids, as `token_text` reads them: the outputs, the vocabulary's tokens (the same ids where the outputs are these tokens), the
    groups, no group, padding.

    Attributes:
        package: the domain.
        readout: the site whose neurons are studied where no SAE is given.
    """

    is_set = True
    visit = _RowVisit

    def __init__(
        self, name: str, model: nn.Module, package: DataPackage, sites: Mapping[str, str], readout: str, config: Mapping[str, Any]
    ) -> None:
        self.package, self.readout = package, readout
        self._tables: dict[Split, ContextTable] = {}
        tokens, outputs = package.vocabulary.tokens, tuple(package.outputs)
        shown = list(tokens) if outputs == tokens else [*outputs, *tokens]
        self._first_token = len(shown) - len(tokens)
        self._first_group = len(shown)
        self._no_group = self._first_group + len(package.groups)
        self._padding = self._no_group + 1
        word = package.group_word
        shown += [*(f"<{word} {key}>" for key in package.group_keys), f"<no {word}>", "<padding>"]
        self.special_tokens = frozenset({self._padding})  # a context without a group is a context, so its row counts
        super().__init__(
            name,
            model,
            {site: HookPoint(path) for site, path in sites.items()},
            {},
            call=self.logits,
            tokens=shown,
            config=config,
            kind="token_set",
            vocab=len(outputs),
        )

    def logits(self, batch: Batch) -> Tensor:
        """Return the logits `[batch, pos, vocab]`, the same ones at every position (a view)."""
        return self._of_bag(self.package.encode(self.table_of(batch))).unsqueeze(1).expand(-1, batch.inputs.shape[1], -1)

    def contexts(self, split: Split) -> ContextTable:
        """Return the package's contexts of a split. Raises SpecError where their columns or groups are not the package's, in its order."""
        if split not in get_args(Split):
            raise unknown("split", split, get_args(Split), what="split")
        if split not in self._tables:
            found = self.package.contexts(split)
            if (found.vocabulary, found.groups) != (self.package.vocabulary, self.package.group_keys):
                raise SpecError(
                    f"data package '{self.package.name}' gives {split} contexts of another vocabulary or other groups",
                    field="subject",
                    allowed="build them with its own vocabulary and group_keys, in that order",
                )
            self._tables[split] = found
        return self._tables[split]

    def targets(self, split: Split) -> np.ndarray:
        """Return the package's targets of a split, int64 `[n]`. Raises SpecError where it has none or they do not fit."""
        found, n = np.asarray(self.package.targets(split)), len(self.contexts(split))
        if found.shape != (n,) or not np.issubdtype(found.dtype, np.integer) or not ((found >= 0) & (found < self.vocab)).all():
            problem = f"data package '{self.package.name}' gives {split} targets {found.dtype} {list(found.shape)}"
            raise SpecError(problem, field="subject", allowed=f"expected {n} numbers of outputs, 0 to {self.vocab - 1}")
        return found.astype(np.int64)

    def examples(self, split: Split, n: int, seed: int = 0, **selection: Any) -> Examples:
        """Return `n` contexts of a split in their own order, chosen by the seed; nothing is scored where the package has no targets."""
        if selection:
            raise unknown("examples", next(iter(selection)), (), what="selection")
        table = self.contexts(split)
        rows = np.sort(numpy_stream(seed, "examples", split).permutation(len(table))[:n])
        targets = self.targets(split)[rows] if type(self.package).targets is not DataPackage.targets else None
        batch = self.batch_of(table.take(rows), [f"{self.package.name}-{split}-{row:06d}" for row in rows], targets)
        return Examples(batch.ids, batch.inputs, batch.targets, batch.mask)

    def batch_of(self, table: ContextTable, ids: Sequence[str] | None = None, targets: np.ndarray | None = None) -> Batch:
        """Return contexts as a batch.

        Args:
            table: the contexts.
            ids: their names; their numbers unless given.
            targets: right output of each, int64 `[n]`; nothing is scored unless given.
        """
        counts = table.incidence.sum(axis=1)
        inputs = np.full((len(table), 1 + int(counts.max(initial=0))), self._padding, dtype=np.int64)
        inputs[:, 0] = np.where(table.group == NO_GROUP, self._no_group, self._first_group + table.group)
        rows, numbers = np.nonzero(table.incidence)
        inputs[rows, 1 + np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)] = self._first_token + numbers
        answers = np.full_like(inputs, IGNORED)
        if targets is not None:
            answers[:, 0] = targets
        names = tuple(ids) if ids is not None else tuple(map(str, range(len(table))))
        tokens = torch.from_numpy(inputs)
        return Batch(names, tokens, torch.from_numpy(answers), tokens != self._padding)

    def table_of(self, batch: Batch) -> ContextTable:
        """Return a batch's contexts: what `batch_of` made it from."""
        ids, vocabulary = batch.inputs.cpu().numpy(), self.package.vocabulary
        incidence = np.zeros((len(ids), len(vocabulary)), dtype=bool)
        rows, at = np.nonzero(ids[:, 1:] != self._padding)
        incidence[rows, ids[rows, 1 + at] - self._first_token] = True
        group = np.where(ids[:, 0] == self._no_group, NO_GROUP, ids[:, 0] - self._first_group)
        return ContextTable(vocabulary, self.package.group_keys, incidence, group)

    def activations(self, table: ContextTable, site: str, batch_size: int = 4096) -> np.ndarray:
        """Return the activations of contexts at a site, float32 `[n, d]`, `batch_size` of them in a forward pass that stops there.

        They are what a tap sees in `forward`, bit for bit where the same contexts make up the pass.
        Raises SpecError (with the nearest name) for a site that the network does not have.
        """
        found = np.empty((len(table), self.width(site)), dtype=np.float32)
        with torch.inference_mode():
            for start in range(0, len(table), batch_size):
                rows = slice(start, start + batch_size)
                found[rows] = self._at(site, self.package.encode(table.take(rows))).to("cpu", torch.float32).numpy()
        return found

    def _at(self, site: str, bag: np.ndarray) -> Tensor:
        seen: list[Tensor] = []

        def keep(_address: Address, h: Tensor) -> Tensor:
            seen.append(h[:, 0])
            return h

        self._run(lambda: self._of_bag(bag), torch.Size((len(bag), 1)), keep, [site], Address(site))
        return seen[0]

    def output_weights(self, site: str) -> tuple[Sequence[str], np.ndarray]:
        """Return the names of the outputs and the linear map from a site to their logits, float32 `[n_outputs, d]`.

        The map is the logits' gradient; that they are the map of the site and a constant, whatever the context, is held against the
        model on random contexts with random activations. Raises SpecError where they are not.
        """
        weights = self._weights(site)
        if weights is None:
            raise SpecError(
                f"the way from {site} to the logits of '{self.name}' is not linear",
                field="hook_point",
                allowed="take the site that the last linear layer reads",
            )
        return tuple(self.package.outputs), weights

    def _weights(self, site: str) -> np.ndarray | None:
        """Return the linear map from a site to the logits, None where there is none."""
        probes = self._random_contexts(max(_PROBES, self.vocab))
        scale = 1.0 + float(np.abs(self.activations(probes, site)).max())
        drawn = torch.randn(len(probes), self.width(site), generator=torch_stream(0, "token_set", "drawn"))
        x = (scale * drawn).to(self._device()).requires_grad_(True)
        with torch.enable_grad():
            outputs = self.forward(self.batch_of(probes), lambda _address, h: x.unsqueeze(1).expand_as(h), [site])
            assert outputs is not None
            logits = outputs.logits[:, 0]
            if not logits.requires_grad:
                return None
            (slopes,) = torch.autograd.grad(logits[: self.vocab].diagonal().sum(), x)
        weights, logits = slopes[: self.vocab].float(), logits.detach().float()
        rest = logits - x.detach() @ weights.T
        linear = bool((rest - rest.mean(dim=0)).abs().max() <= _LINEAR * logits.std().clamp_min(1e-6))
        return weights.cpu().numpy() if linear else None

    def _random_contexts(self, n: int) -> ContextTable:
        """Return contexts of random tokens and groups, which need not be any that the domain has."""
        rng, vocabulary = numpy_stream(0, "token_set", "contexts"), self.package.vocabulary
        group = rng.integers(NO_GROUP, len(self.package.groups), n)
        return ContextTable(vocabulary, self.package.group_keys, rng.random((n, len(vocabulary))) < 0.3, group)

    def unembedding(self, site: str, batch: Batch) -> Unembedding | NoUnembedding:
        """Return the linear map from a site to the logits, where there is one."""
        weights = self._weights(site)
        if weights is None:
            return NoUnembedding(f"the way from {site} to the logits of '{self.name}' is not linear")
        about = f"Direct and linear: the logits are one linear map of {site}, so this is exact."
        return Unembedding(torch.from_numpy(weights), 1.0, False, about)

    def positions(self, batch: Batch, selector: str | Sequence[int]) -> Tensor:
        """Return position 0 of every context, whatever the selector: there is one row a context. Raises SpecError for an unknown one."""
        rows = torch.zeros_like(super().positions(batch, selector))
        rows[:, 0] = True
        return rows

    def objective(self, options: Mapping[str, Any], seed: int) -> TokenSetObjective:
        """Return cross-entropy on the package's targets; options are those of `TokenSetFitOptions`."""
        checked = read_options(TokenSetFitOptions, options, prefix="variables.options")
        if not list(self.model.parameters()):
            raise SpecError(f"the network of '{self.name}' has no parameters to train", field="subject")
        train, held_out = ((self.contexts(split), self.targets(split)) for split in ("train", "validation"))
        for split, (table, _) in {"train": train, "validation": held_out}.items():
            if not len(table):
                raise SpecError(f"the {split} split of '{self.name}' holds no context", field="subject")
        kept = numpy_stream(0, "examples", "validation").permutation(len(held_out[0]))[: checked.eval_contexts]
        return TokenSetObjective(self.model, self._of_bag, self.package, train, (held_out[0].take(kept), held_out[1][kept]), checked, seed)

    def _of_bag(self, bag: np.ndarray) -> Tensor:
        """Return the logits `[n, n_outputs]` of encoded contexts."""
        logits: Tensor = self.model(torch.from_numpy(bag).to(self._device()))
        return logits

    def _device(self) -> torch.device:
        return next((tensor.device for tensor in chain(self.model.parameters(), self.model.buffers())), torch.device("cpu"))

    def _probe(self) -> Batch:
        return self.batch_of(ContextTable.of(self.package.vocabulary, self.package.group_keys, [((), None)]))


def build(name: str, config: TokenSetConfig, root: Path) -> TokenSetSubject:
    """Return the subject that a project declares; its files lie below `root`.

    Raises UnsafeError for a file outside `root`, SpecError for a function that is not there or returns something else, and for a
    network that does not map the package's bags to its outputs or lacks a declared site.
    """
    field = f"subjects.{name}"
    package = load_package(name, config, root)
    own = config.network.factory is None
    model = _built_in(package, config) if own else _network(package, config, root, f"{field}.network.factory")
    sites = {site: module_of(site) for site in config.network.sites} if own else config.sites
    modules = dict(model.named_modules())
    for site, path in sites.items():
        if not path or path not in modules:
            raise SpecError(f"the network has no module '{path}'", field=f"{field}.sites.{site}", nearest=nearest(path, modules))
    columns = {
        "tokens": list(package.vocabulary.tokens),
        "special": list(package.vocabulary.special),
        "groups": list(package.group_keys),
        "outputs": list(package.outputs),
    }
    identity = {**config.identity(), "columns_sha256": sha256_json(columns)}
    return TokenSetSubject(name, model, package, sites, config.readout, identity)


def _built_in(package: DataPackage, config: TokenSetConfig) -> nn.Module:
    return TokenSetNetwork(_n_columns(package), len(package.outputs), config.network, torch_stream(config.seed, "token_set", "init"))


def _network(package: DataPackage, config: TokenSetConfig, root: Path, field: str) -> nn.Module:
    """Return the project's own network, its random weights a function of the declared seed."""
    assert config.network.factory is not None
    make = load_function(root, config.network.factory, field)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, "token_set", "init"))
        model = call(make, config.network.factory, field, package)
    if not isinstance(model, nn.Module):
        problem = f"{config.network.factory} returned a {type(model).__name__}"
        raise SpecError(problem, field=field, allowed="expected a torch.nn.Module")
    with torch.no_grad():
        logits = model.eval()(torch.zeros(1, _n_columns(package)))
    wanted = [1, len(package.outputs)]
    if not isinstance(logits, Tensor) or list(logits.shape) != wanted:
        found = f"a tensor {list(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise SpecError(f"the network gives {found} for one context", field=field, allowed=f"expected logits {wanted}")
    return model


def _n_columns(package: DataPackage) -> int:
    nothing = ContextTable.of(package.vocabulary, package.group_keys, [((), None)])
    return int(package.encode(nothing).shape[1])
