"""Any `nn.Module` as a subject: named hook points, read and written through forward hooks that never outlive the call.

A project's own factory needs no more than a model, its hook points and examples:

    HookedSubject("toy", model, {"hidden": ("encoder.0", "output")}, examples={"train": train, "test": test})

Besides the named points, the output of any module is the site `module:PATH`. A forward pass that nobody needs to its end is left
by an exception raised in the last hook and caught by the same call.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mlinterp.determinism import numpy_stream
from mlinterp.errors import SpecError, nearest, unknown
from mlinterp.subjects.base import Address, Batch, Examples, Outputs, Split, Subject, Tap
from mlinterp.subjects.hook_points import HookPoint, Side

RAW = "module:"
"""Prefix of a site that is a module path."""


class _Stop(Exception):  # noqa: N818 - a signal, not an error
    """Raised right after the last wanted evaluation; caught by the call that installed the hook."""


class Visit:
    """What happens when an activation passes: check it, hand it to the tap, stop where this was the last one wanted.

    A subclass says how a module's value is seen as an activation `[batch, pos, d]` where it is not one.
    """

    allowed = "it must be a tensor [batch, pos, d]"

    def __init__(self, site: str, shape: torch.Size, tap: Tap | None, stop: _Stop | None) -> None:
        self.site, self.shape, self.tap, self.stop = site, shape, tap, stop

    def __call__(self, value: Any) -> Tensor:
        """Return what takes the value's place: itself, unless the tap edited it."""
        if not isinstance(value, Tensor) or not self.fits(value):
            found = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise SpecError(f"hook point '{self.site}' holds {found}", field="hook_point", allowed=self.allowed)
        seen = self.seen(value)
        edited = seen if self.tap is None else self.tap(Address(self.site), seen)
        assert edited.shape == seen.shape, f"a tap changed the shape at {self.site}: {list(seen.shape)} to {list(edited.shape)}"
        assert edited.dtype == seen.dtype, f"a tap changed the dtype at {self.site}: {seen.dtype} to {edited.dtype}"
        if self.stop is not None:
            raise self.stop
        return value if edited is seen else self.taken(edited)

    def fits(self, value: Tensor) -> bool:
        """Whether a module's value is an activation."""
        return value.ndim == 3 and value.shape[:2] == self.shape

    def seen(self, value: Tensor) -> Tensor:
        """Return a module's value as an activation `[batch, pos, d]`."""
        return value

    def taken(self, edited: Tensor) -> Tensor:
        """Return an edited activation as the module's value."""
        return edited


class HookedSubject(Subject):
    """A subject whose activations are reached by hooks on modules. Every site is evaluated once in a forward pass.

    Args:
        name: the subject's name in its project.
        model: put into evaluation mode; its parameters are frozen, so a forward pass records gradients only from an activation
            for which a tap asks them.
        sites: name to hook point, or to `(module path, "input" | "output" | "stream")`, or with the element's number as a third
            (see `HookPoint`). The activation is `[batch, pos, d]`.
        examples: the examples of each split; one `Examples` alone stands for every split.
        call: returns the logits `[batch, pos, vocab]` of a batch; `model(batch.inputs)` unless given.
        tokens: how each token is read by people; its number unless given.
        config: what builds the subject again (JSON values).
        vocab: number of output classes; read off the model unless given.
    """

    visit: type[Visit] = Visit

    def __init__(
        self,
        name: str,
        model: nn.Module,
        sites: Mapping[str, HookPoint | tuple[str, Side] | tuple[str, Side, int]],
        examples: Examples | Mapping[Split, Examples],
        *,
        call: Callable[[Batch], Tensor] | None = None,
        tokens: Sequence[str] | None = None,
        config: Mapping[str, Any] | None = None,
        kind: str = "factory",
        vocab: int | None = None,
    ) -> None:
        self.name, self.kind, self.config, self.tokens = name, kind, dict(config or {}), tokens
        self.model = model.eval().requires_grad_(False)
        self.call = call or self.logits
        self.points = {site: HookPoint(*point) for site, point in sites.items()}
        self.splits: Mapping[Split, Examples] = (
            dict.fromkeys(("train", "validation", "test"), examples) if isinstance(examples, Examples) else dict(examples)
        )
        self._surveys: dict[frozenset[str], dict[str, int]] = {}
        if vocab is None:
            with torch.no_grad():
                vocab = self.call(self._probe()).shape[-1]
        self.vocab = vocab

    def logits(self, batch: Batch) -> Tensor:
        """Return the model's logits `[batch, pos, vocab]`."""
        found: Tensor = self.model(batch.inputs)
        return found

    @property
    def sites(self) -> tuple[str, ...]:
        """The named hook points in order of evaluation; every `module:PATH` is a site besides."""
        return tuple(self._survey(self.points))

    def width(self, site: str) -> int:
        """Return d at a site."""
        return self._survey([site])[site]

    def addresses(self, sites: Collection[str]) -> list[Address]:
        """Return the sites' evaluations in order. Raises SpecError for a site that is not evaluated exactly once."""
        return [Address(site) for site in self._survey(sites)]

    def examples(self, split: Split, n: int, seed: int = 0, **selection: Any) -> Examples:
        """Return `n` examples of a split in their own order, chosen by the seed."""
        if selection:
            raise unknown("examples", next(iter(selection)), (), what="selection")
        if split not in self.splits:
            raise unknown("split", split, self.splits, what="split")
        return choose(self.splits[split], n, seed, split)

    def token_text(self, token: int) -> str:
        """Return a token as people read it."""
        return str(token) if self.tokens is None else self.tokens[token]

    def forward(self, batch: Batch, tap: Tap | None = None, sites: Collection[str] = (), until: Address | None = None) -> Outputs | None:
        """Run the model (see `Subject.forward`)."""
        logits = self._run(lambda: self.call(batch), batch.inputs.shape, tap, sites, until)
        return None if logits is None else Outputs(logits)

    def _run(
        self, call: Callable[[], Tensor], shape: torch.Size, tap: Tap | None, sites: Collection[str], until: Address | None
    ) -> Tensor | None:
        """Return what `call` does, with the hooks installed as long; None where it stopped. `shape` is `[batch, pos]`."""
        stop = _Stop()
        wanted = {*(sites if tap else ()), *([until.site] if until else ())}
        self.model.eval()
        visits = {
            site: self.visit(site, shape, tap if site in sites else None, stop if until and until.site == site else None) for site in wanted
        }
        with self._installed(visits):
            try:
                logits = call()
            except _Stop as reached:
                if reached is not stop:
                    raise
                return None
        if until is not None:
            raise SpecError(f"hook point '{until.site}' is not evaluated in a forward pass of '{self.name}'", field="hook_point")
        return logits

    def tapped(self, tap: Tap, sites: Collection[str], shape: tuple[int, int]) -> AbstractContextManager[None]:
        """Call `tap` at the sites as long as the block lasts, whoever runs the model's modules on inputs `[batch, pos]` of that shape."""
        return self._installed({site: self.visit(site, torch.Size(shape), tap, None) for site in sites})

    @contextmanager
    def _installed(self, visits: Mapping[str, Visit]) -> Iterator[None]:
        with ExitStack() as installed:
            for site in sorted(visits, key=self._rank):
                point = self._point(site)
                installed.callback(_install(self.model.get_submodule(point.module), point, visits[site]).remove)
            yield

    def _rank(self, site: str) -> tuple[int, str]:
        """Where a site's hook stands among those of the same module: as declared, never as a set happens to iterate."""
        return (list(self.points).index(site) if site in self.points else len(self.points), site)

    def _point(self, site: str) -> HookPoint:
        if site in self.points:
            return self.points[site]
        if not site.startswith(RAW):
            raise self._no_site(site)
        path, modules = site.removeprefix(RAW), dict(self.model.named_modules())
        if not path or path not in modules:
            near = nearest(path, modules)
            raise SpecError(f"'{self.name}' has no module '{path}'", field="hook_point", nearest=near and RAW + near)
        return HookPoint(path)

    def _no_site(self, site: str) -> SpecError:
        allowed = f"allowed: {', '.join(self.points)} or {RAW}PATH"
        return SpecError(
            f"hook point '{site}' is not in '{self.name}'", field="hook_point", allowed=allowed, nearest=nearest(site, self.points)
        )

    def _survey(self, sites: Collection[str]) -> dict[str, int]:
        """Return d at each site, in order of evaluation, as one forward pass over the smallest input shows them."""
        key = frozenset(sites)
        if key not in self._surveys:
            widths: dict[str, int] = {}

            def look(address: Address, h: Tensor) -> Tensor:
                if address.site in widths:
                    raise SpecError(
                        f"hook point '{address.site}' is evaluated more than once in a forward pass of '{self.name}'", field="hook_point"
                    )
                widths[address.site] = h.shape[-1]
                return h

            with torch.no_grad():
                self.forward(self._probe(), look, key)
            for site in sites:
                if site not in widths:
                    raise SpecError(f"hook point '{site}' is not evaluated in a forward pass of '{self.name}'", field="hook_point")
            self._surveys[key] = widths
        return self._surveys[key]

    def _probe(self) -> Batch:
        return next(iter(self.splits.values())).take([0])


def choose(examples: Examples, n: int, seed: int, split: str) -> Examples:
    """Return `n` of the examples (all, where there are fewer), drawn without replacement by the seed and kept in their order."""
    rows = sorted(numpy_stream(seed, "examples", split).permutation(len(examples))[:n].tolist())
    batch = examples.take(rows)
    return Examples(batch.ids, batch.inputs, batch.targets, batch.mask)


def _install(module: nn.Module, point: HookPoint, visit: Visit) -> torch.utils.hooks.RemovableHandle:
    def after(_module: nn.Module, _args: Any, output: Any) -> Any:
        several = isinstance(output, tuple)
        value = output if not several else output[point.element] if point.element < len(output) else None
        edited = visit(value)
        if edited is value:
            return None
        return (*output[: point.element], edited, *output[point.element + 1 :]) if several else edited

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        values = [*args, *kwargs.values()]
        if point.element >= len(values):
            raise SpecError(f"hook point '{visit.site}': '{point.module}' is called with {len(values)} arguments", field="hook_point")
        value = values[point.element]
        if point.side == "stream":
            # A tap that keeps its argument for a gradient must not see it change; its own copy then stands in the graph.
            edited = visit(value.clone() if getattr(value, "requires_grad", False) else value)
            if edited is not value:
                value.copy_(edited)
            return None
        edited = visit(value)
        if edited is value:
            return None
        values[point.element] = edited
        return tuple(values[: len(args)]), dict(zip(kwargs, values[len(args) :], strict=True))

    if point.side == "output":
        return module.register_forward_hook(after)
    return module.register_forward_pre_hook(before, with_kwargs=True)
