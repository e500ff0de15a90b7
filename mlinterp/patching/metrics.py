"""Metrics of causal localisation: one definition each, of what the model says at the answer position.

A metric turns the logits x of a run into one number m(x) a prompt pair, which is larger the more the run is like the clean one. What a
patch does is measured alike for all of them. From the run that is patched (base) to the run that the patch is taken from (source):

    change        m(patched) - m(base)
    patch effect  (m(patched) - m(base)) / (m(source) - m(base)),     0: as if nothing were patched, 1: as if everything were

The effect over several pairs is the ratio of the two sums, so that a pair whose runs hardly differ cannot dominate it. Where numerator
and denominator vanish it is undefined (None), never zero.

Metrics import no torch: they are given tensors. A project's own is a function of the same form, named `FILE.py:FUNCTION`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from mlinterp.errors import SpecError, unknown
from mlinterp.io.pyfile import call, load_function

if TYPE_CHECKING:
    from torch import Tensor

Token = Literal["answer", "wrong"]
Measure = Callable[["Tensor", "Tensor", "Tensor", "Tensor"], "Tensor"]
"""m(x, clean, answer, wrong): logits of a run and of the clean run `[pair, vocab]`, float32, and the two tokens, int64 `[pair]`, to a
number for each pair `[pair]`, NaN where it is undefined."""

NEGLIGIBLE = 1e-6
"""A gap between the two runs, relative to the larger of 1 and |m|, that float32 cannot tell from none."""


class Metric(NamedTuple):
    """One definition.

    Attributes:
        name: what a spec calls it.
        measure: the number, larger the more the run is like the clean one.
        description: the definition in a line.
        unit: of m and of a change.
        needs: which tokens every pair must have.
        version: raised when the definition changes.
        named_only: whether it reads no logits but those of the tokens it needs; it is then given these alone, `[pair, 2]`.
    """

    name: str
    measure: Measure
    description: str
    unit: str
    needs: tuple[Token, ...] = ()
    version: int = 1
    named_only: bool = False

    def require(self, missing: Mapping[Token, str | None]) -> None:
        """Refuse, with SpecError, a pair that lacks a token; `missing` names for each token the first pair without, if any."""
        for token in self.needs:
            if (pair := missing.get(token)) is not None:
                allowed = f"give every pair its `{token}`, or use a metric that needs none ({', '.join(_TOKENLESS)})"
                raise SpecError(
                    f"{self.name} needs the {token} token, and pair '{pair}' has none", field="variables.pairs", allowed=allowed
                )


def _logit(x: Tensor, tokens: Tensor) -> Tensor:
    return x.gather(1, tokens[:, None])[:, 0]


def logit_diff(x: Tensor, _clean: Tensor, answer: Tensor, wrong: Tensor) -> Tensor:
    """Return x[answer] - x[wrong]."""
    return _logit(x, answer) - _logit(x, wrong)


def prob(x: Tensor, _clean: Tensor, answer: Tensor, _wrong: Tensor) -> Tensor:
    """Return softmax(x)[answer]."""
    return _logit(x.softmax(dim=1), answer)


def ce_diff(x: Tensor, _clean: Tensor, answer: Tensor, _wrong: Tensor) -> Tensor:
    """Return log softmax(x)[answer]: minus the cross-entropy, so that a change is how much the cross-entropy falls."""
    return _logit(x.log_softmax(dim=1), answer)


def kl(x: Tensor, clean: Tensor, _answer: Tensor, _wrong: Tensor) -> Tensor:
    """Return -KL(softmax(clean) ‖ softmax(x)); 0 for the clean run."""
    reference = clean.log_softmax(dim=1)
    return -(reference.exp() * (reference - x.log_softmax(dim=1))).sum(dim=1)


def l2(x: Tensor, clean: Tensor, _answer: Tensor, _wrong: Tensor) -> Tensor:
    """Return -‖clean - x‖; 0 for the clean run, so that a patch effect is 1 - ‖clean - patched‖ / ‖clean - corrupted‖."""
    return -(clean - x).norm(dim=1)


def cosine(x: Tensor, clean: Tensor, _answer: Tensor, _wrong: Tensor) -> Tensor:
    """Return the cosine of x and the clean run's logits; undefined for logits that are all zero."""
    return (x * clean).sum(dim=1) / (x.norm(dim=1) * clean.norm(dim=1))


BUILT_IN: tuple[Metric, ...] = (
    Metric("logit_diff", logit_diff, "logit[answer] - logit[wrong]", "logits", ("answer", "wrong"), named_only=True),
    Metric("prob", prob, "probability of the answer", "probability", ("answer",)),
    Metric("ce_diff", ce_diff, "log probability of the answer: a change is the fall of its cross-entropy", "nats", ("answer",)),
    Metric("kl", kl, "-KL(clean ‖ run) of the next token's distribution", "nats"),
    Metric("l2", l2, "-‖logits of the clean run - logits‖", "logits"),
    Metric("cosine", cosine, "cosine of the logits with those of the clean run", "cosine"),
)
_TOKENLESS = tuple(metric.name for metric in BUILT_IN if not metric.needs)


class MetricRegistry:
    """The metrics that there are: the built-in ones, a project's own by `FILE.py:FUNCTION`, and what is registered here.

    Args:
        root: the project's folder, below which its own files are looked for.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = root
        self._metrics = {metric.name: metric for metric in BUILT_IN}

    def register(
        self, name: str, measure: Measure, description: str = "", *, unit: str = "", needs: tuple[Token, ...] = (), version: int = 1
    ) -> Metric:
        """Add a metric and return it. Raises SpecError for a name that is taken: a definition is never replaced."""
        if name in self._metrics:
            raise SpecError(f"there is a metric '{name}' already", field="metric", allowed="another name: a definition is never replaced")
        if not name.isidentifier():
            raise SpecError(f"'{name}' is no name of a metric", field="metric", allowed="letters, digits and underscores")
        self._metrics[name] = Metric(name, measure, description, unit, needs, version)
        return self._metrics[name]

    def get(self, name: str, field: str = "variables.metric") -> Metric:
        """Return a metric by name, or a project's own by `FILE.py:FUNCTION`. Raises SpecError with the nearest name."""
        if ".py:" in name:
            return self._own(name, field)
        if name not in self._metrics:
            raise unknown(field, name, self._metrics, what="metric")
        return self._metrics[name]

    def list(self) -> list[dict[str, str]]:
        """Return `name`, `description`, `needs` and `version` of every metric."""
        return [
            {"name": each.name, "description": each.description, "needs": ", ".join(each.needs), "version": str(each.version)}
            for each in self
        ]

    def __iter__(self) -> Iterator[Metric]:
        return iter(self._metrics.values())

    def _own(self, named: str, field: str) -> Metric:
        """Return a function of the project as a metric; its docstring is the definition, its attribute `needs` the tokens."""
        if self.root is None:
            raise SpecError(f"'{named}' is a file of a project, and there is no project here", field=field)
        function = load_function(self.root, named, field)
        needs, version = getattr(function, "needs", ()), getattr(function, "version", 1)
        if not isinstance(needs, tuple | list):
            raise SpecError(f"{named}.needs is {needs!r}", field=field, allowed="a tuple of tokens: answer, wrong")
        if stray := next((token for token in needs if token not in ("answer", "wrong")), None):
            raise unknown(field, str(stray), ("answer", "wrong"), what=f"token in {named}.needs")
        if not isinstance(version, int) or version < 1:
            raise SpecError(f"{named}.version is {version!r}", field=field, allowed="a whole number from 1")

        def measure(x: Tensor, clean: Tensor, answer: Tensor, wrong: Tensor) -> Tensor:
            found = call(function, named, field, x, clean, answer, wrong)
            shape = list(getattr(found, "shape", ()))
            if shape != [len(x)]:
                raise SpecError(f"{named} returned {shape or type(found).__name__}", field=field, allowed=f"a tensor [{len(x)}]")
            found = found.float()
            if n := int((~found.isfinite()).sum()):
                raise SpecError(
                    f"{named} returned NaN or infinity for {n} of {len(x)} runs", field=field, allowed="a finite number for each"
                )
            return found

        about = next(iter((function.__doc__ or "").strip().splitlines()), named)
        return Metric(named, measure, about, "", tuple(needs), version)
