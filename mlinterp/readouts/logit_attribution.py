"""Direct logit attribution: a logit as the sum of what every head, MLP and bias writes towards it.

The final residual stream is the embedding plus what every block adds, and the unembedding is linear. Only the final norm is not: it
divides by the size of the stream. With that size frozen at what it is at each position (Elhage et al. 2021, "A mathematical framework
for transformer circuits"),

    logit[t] = sum over c of (gain · centre(c) / size) · W_U[t]  +  norm's bias · W_U[t]  +  b_U[t]

holds exactly, where c runs over the embedding, each head's slice of the attention's output times that slice of the output projection,
the projection's bias, and each MLP. A norm on a branch (Gemma 2 and 3) is frozen in the same way. Sums are made in float64. Gemma 2 caps
its logits: taken apart is the logit before.

Nothing is edited: the numbers say what is written towards a token, not what the model would do without it. They are observational.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mlinterp.errors import SpecError
from mlinterp.readouts.reading import TOLERANCE, Readout, readout_of, require_finite, states_of
from mlinterp.subjects.base import Batch, Subject
from mlinterp.subjects.hooked import HookedSubject
from mlinterp.subjects.huggingface import HuggingFaceSubject
from mlinterp.subjects.stream_readers import READERS
from mlinterp.subjects.unembedding import Norm, norm_of


class Term(NamedTuple):
    """One part of a logit.

    `kind` is embedding, head, attention (a whole layer's, where heads are not declared), attention_bias, mlp, norm_bias or
    unembedding_bias.
    """

    kind: str
    layer: int | None = None
    head: int | None = None

    @property
    def name(self) -> str:
        """The term's name, such as `blocks.3.head.5`."""
        if self.layer is None:
            return self.kind
        return f"blocks.{self.layer}.{'head.' if self.kind == 'head' else self.kind}{'' if self.head is None else self.head}"


class Towards(NamedTuple):
    """What a stream is read for: a token's column of the unembedding, less another's, or a mean of such; float64."""

    weight: Tensor
    """`[row, d]`, or `[1, d]` where it is the same for every row."""
    bias: Tensor
    """`[row]` or `[1]`; 0 where the unembedding has none."""


class Attribution(NamedTuple):
    """Terms of one logit (or of a difference of two) at each chosen position (row), float64."""

    values: Tensor
    """What each term adds, `[row, term]`."""
    logit: Tensor
    """What the model itself says, before any cap, `[row]`."""
    beside: Tensor
    """What the same terms add towards something else, `[row, term]`."""


@dataclass(frozen=True)
class _Attention:
    """How one layer's heads reach the residual stream: z `[..., heads * d_head]` times `weight [heads, d_head, d]`, plus a bias, normed."""

    weight: Tensor
    bias: Tensor | None
    norm: nn.Module | None


class Attributor:
    """Takes the logits of one subject apart. Raises SpecError, naming the subject, where it is not known how its stream adds up.

    A project's own model declares `blocks.0.resid_pre`, and of each block `attn_out` (or of each head `blocks.N.head.H.out`, what it
    adds to the stream) and `mlp_out`, as far as it has them, beside what a readout needs.
    """

    def __init__(self, subject: Subject) -> None:
        self.readout: Readout = readout_of(subject)
        assert isinstance(subject, HookedSubject), "what has a readout has hook points"
        self.subject = subject
        points = subject.points
        if "blocks.0.resid_pre" not in points:
            raise SpecError(f"'{subject.name}' has no hook point blocks.0.resid_pre, where its residual stream begins", field="subject")
        self.attention = _attention(subject) if isinstance(subject, HuggingFaceSubject) else {}
        self.layers = 1 + max(int(site.split(".")[1]) for site in points if site.startswith("blocks."))
        self.terms = self._terms(points)
        self.sites = [site for site in points if _adds(site, self.attention, points)]

    def _terms(self, points: Collection[str]) -> tuple[Term, ...]:
        terms = [Term("embedding")]
        for layer in range(self.layers):
            if layer in self.attention:
                terms += [Term("head", layer, head) for head in range(len(self.attention[layer].weight))]
                if self._has_bias(layer):
                    terms.append(Term("attention_bias", layer))
            elif heads := _heads(layer, points):
                terms += [Term("head", layer, head) for head in heads]
            elif f"blocks.{layer}.attn_out" in points:
                terms.append(Term("attention", layer))
            if f"blocks.{layer}.mlp_out" in points:
                terms.append(Term("mlp", layer))
        after = {"norm_bias": self.readout.norm, "unembedding_bias": self.readout.head}
        return (*terms, *(Term(kind) for kind, module in after.items() if _bias(module) is not None))

    def _has_bias(self, layer: int) -> bool:
        how = self.attention[layer]
        return how.bias is not None or _bias(how.norm) is not None

    @torch.no_grad()
    def attribute(self, batch: Batch, chosen: Tensor, answer: Tensor, wrong: Tensor | None, beside: Towards) -> Attribution:
        """Return the terms of each row's logit of `answer` (int64 `[row]`), less those of `wrong` where it is given.

        `chosen` says which positions are rows, bool `[batch, pos]`; `beside` is what the terms are read for as well. Raises SpecError
        where the terms do not add up to the stream.
        """
        last = self.readout.sites[-1]
        states, logits = states_of(self.subject, batch, {*self.sites, last})
        require_finite(self.subject, logits[chosen])
        at = {site: state[chosen].double() for site, state in states.items()}
        ways = [self._way(states[last][chosen], towards) for towards in (self.towards(answer, wrong), beside)]
        total = torch.zeros_like(at[last])
        written: tuple[list[Tensor], list[Tensor]] = ([], [])
        for part in self._parts(at):
            total += part
            for (direction, _), terms in zip(ways, written, strict=True):
                terms.append((part * direction).sum(dim=-1))
        dtype = next(self.subject.model.parameters()).dtype
        error = float((total - at[last]).abs().max() / at[last].abs().max().clamp_min(1e-12))
        if error > TOLERANCE.get(dtype, 1e-4):
            why = f"'{self.subject.name}': what its blocks add is not what its residual stream becomes (off by {error:.2g} of its largest)"
            raise SpecError(why, field="subject", allowed="blocks that add attn_out and mlp_out to the stream and do nothing else to it")
        values, others = (torch.stack(terms + extra, dim=1).cpu() for (_, extra), terms in zip(ways, written, strict=True))
        given = (logits[chosen] if self.readout.cap is None else self.readout.uncapped(states[last][chosen])).double()
        rows = torch.arange(len(answer))
        logit = given[rows, answer] - (0.0 if wrong is None else given[rows, wrong])
        return Attribution(values, logit.cpu(), others)

    def _parts(self, at: dict[str, Tensor]) -> Iterator[Tensor]:
        """Yield what each term of the stream adds to it, `[row, d]` each, in the order of the terms."""
        yield at["blocks.0.resid_pre"]
        for layer in range(self.layers):
            if layer in self.attention:
                yield from self._heads(layer, at[f"blocks.{layer}.attn_z"])
            else:
                yield from (at[site] for site in (f"blocks.{layer}.attn_out", *_outs(layer, at)) if site in at)
            if f"blocks.{layer}.mlp_out" in at:
                yield at[f"blocks.{layer}.mlp_out"]

    def _heads(self, layer: int, z: Tensor) -> list[Tensor]:
        how = self.attention[layer]
        n_heads, d_head, _ = how.weight.shape
        added = torch.einsum("rhd,hdm->hrm", z.unflatten(-1, (n_heads, d_head)), how.weight.double())
        bias = torch.zeros_like(added[0]) if how.bias is None else how.bias.double().expand_as(added[0])
        if how.norm is not None:
            whole = added.sum(dim=0) + bias
            norm = self._known(how.norm, whole)
            gain, size = norm.gain.double(), norm.size(whole)
            added, bias = norm.centre(added) * gain / size, norm.centre(bias) * gain / size + norm.bias
        return [*added, *([bias] if self._has_bias(layer) else [])]

    @torch.no_grad()
    def towards(self, answer: Tensor, wrong: Tensor | None) -> Towards:
        """Return what each row is read for, from its tokens, int64 `[row]`."""
        one = self._columns(answer)
        if wrong is None:
            return one
        other = self._columns(wrong)
        return Towards(one.weight - other.weight, one.bias - other.bias)

    @torch.no_grad()
    def towards_all(self, answer: Tensor, wrong: Tensor | None) -> Towards:
        """Return the mean of what all rows are read for: a term that says the same whatever is asked adds as much towards it."""

        def mean(tokens: Tensor) -> Towards:
            found, counts = tokens.unique(return_counts=True)
            columns = self._columns(found)
            shares = (counts.double() / len(tokens)).to(columns.weight.device)
            return Towards((shares @ columns.weight)[None], (shares @ columns.bias)[None])

        one = mean(answer)
        if wrong is None:
            return one
        other = mean(wrong)
        return Towards(one.weight - other.weight, one.bias - other.bias)

    def _columns(self, tokens: Tensor) -> Towards:
        head: Any = self.readout.head
        weight, bias = head.weight[tokens].double(), _bias(head)
        return Towards(weight, weight.new_zeros(len(tokens)) if bias is None else bias[tokens].double())

    def _way(self, x: Tensor, towards: Towards) -> tuple[Tensor, list[Tensor]]:
        """Return what a row's stream is multiplied by, `[row, d]`, and the terms that do not depend on it, `[row]` each."""
        direction, extra = towards.weight, []
        if self.readout.norm is not None:
            norm = self._known(self.readout.norm, x)
            if _bias(self.readout.norm) is not None:
                extra.append((towards.weight * norm.bias).sum(dim=-1).expand(len(x)))
            # A centred direction sees of a term what it sees of the centred term.
            direction = norm.centre(towards.weight * norm.gain.double()) / norm.size(x.double())
        if _bias(self.readout.head) is not None:
            extra.append(towards.bias.expand(len(x)))
        return direction, extra

    def _known(self, module: nn.Module, x: Tensor) -> Norm:
        dtype = next(self.subject.model.parameters()).dtype
        norm = norm_of(module, x.to(dtype))
        if norm is None:
            raise SpecError(f"'{self.subject.name}': its {type(module).__name__} is neither LayerNorm nor RMSNorm", field="subject")
        return norm


def _attention(subject: HuggingFaceSubject) -> dict[int, _Attention]:
    """Return how each layer's heads reach the stream: the output projection, `[in, out]` in GPT-2's Conv1D and `[out, in]` elsewhere."""
    config, found = subject.architecture.get_text_config(), {}
    for site, point in subject.points.items():
        if not site.endswith(".attn_z"):
            continue
        layer, projection = int(site.split(".")[1]), subject.model.get_submodule(point.module)
        weight: Any = projection.weight
        rows = weight.T if isinstance(projection, nn.Linear) else weight
        readers = READERS.get(subject.architecture.model_type)
        block = subject.points[f"blocks.{layer}.resid_post"].module
        norm = None if readers is None or readers.branch_norm is None else subject.model.get_submodule(f"{block}.{readers.branch_norm}")
        found[layer] = _Attention(rows.unflatten(0, (config.num_attention_heads, -1)), _bias(projection), norm)
    return found


def _bias(module: nn.Module | None) -> Tensor | None:
    found = getattr(module, "bias", None)
    return found if isinstance(found, Tensor) else None


def _heads(layer: int, sites: Collection[str]) -> list[int]:
    return sorted(int(match[1]) for site in sites if (match := re.fullmatch(rf"blocks\.{layer}\.head\.(\d+)\.out", site)))


def _outs(layer: int, sites: Collection[str]) -> list[str]:
    return [f"blocks.{layer}.head.{head}.out" for head in _heads(layer, sites)]


def _adds(site: str, attention: Collection[int], sites: Collection[str]) -> bool:
    """Whether a hook point is one of those whose activations add up to the stream."""
    match = re.fullmatch(r"blocks\.(\d+)\.(attn_z|attn_out|mlp_out|head\.\d+\.out)", site)
    if match is None:
        return site == "blocks.0.resid_pre"
    layer, what = int(match[1]), match[2]
    if what == "attn_z":
        return layer in attention
    return what == "mlp_out" or (layer not in attention and (what != "attn_out" or not _heads(layer, sites)))
