"""`sae_fit`: fit sparse autoencoders on a trace, or on what a model streams, and say what they are worth beside dictionaries that learned
nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from mlinterp.errors import SpecError
from mlinterp.experiments.base import Context, Experiment, Variables
from mlinterp.frozen import Frozen
from mlinterp.result import ExperimentResult
from mlinterp.sae.config import OWN_FIELDS, Architecture, FitConfig, Kind, SAEConfig, refuse_foreign
from mlinterp.spec import Spec

if TYPE_CHECKING:
    from mlinterp.sae.selection import Steps

DEFAULTS: dict[str, Any] = {"k": 32, "l1": 3.0, "l0_penalty": "step", "target_l0": 32.0, "l0_coefficient": 0.1, "bandwidth": 0.1}
"""Sparsity settings of an activation where the spec leaves them out; what is not here stays out."""
TANH_SCALE = 4.0
"""c of jumprelu's tanh penalty, from Circuits Updates - January 2025 (transformer-circuits.pub/2025/january-update)."""
NO_TARGET_COEFFICIENT = 3e-3
"""jumprelu without a target: an active latent costs this share of the variance. Where FVU falls like 0.2 √(32 / L0), L0 settles at 32."""
MOST_SAES = 64
"""SAEs of one run: each has its weights and Adam's moments in memory."""


class BehaviourCheck(Frozen):
    """Whether and on which examples the reconstruction takes the activation's place in the model."""

    substitution: bool = Field(True, description="measure behaviour with the reconstruction in place (needs a subject)")
    n_examples: int = Field(64, ge=1, le=1_000_000, description="how many examples (fewer where the split is smaller)")
    split: Literal["train", "validation", "test"] = Field("validation", description="split they come from")
    options: dict[str, Any] = Field({}, description="further choices of this kind of subject, such as score_next for text")
    batch_size: int = Field(32, ge=1, le=4096, description="examples a forward pass")


class StreamChoice(Frozen):
    """Rows made as the fit goes, through a shuffling buffer, instead of a stored trace."""

    split: Literal["train", "validation", "test"] = Field("train", description="split the examples come from")
    n_examples: int = Field(
        10_000, ge=2, le=100_000_000, description="how many (fewer where the split is smaller); they come by again in each epoch"
    )
    seed: int = Field(0, ge=0, description="seed of their choice")
    options: dict[str, Any] = Field({}, description="further choices of this kind of subject, such as score_next for text")
    batch_size: int = Field(32, ge=1, le=4096, description="examples a forward pass; part of what is computed, as float32 depends on it")
    buffer_rows: int = Field(65_536, ge=2, le=2**31, description="rows held in memory for each hook point: the bound on the buffer")
    mix: float = Field(0.5, ge=0, lt=1, description="share of each refill that waits for the next, so that refills mix")
    sample_rows: int = Field(
        16_384,
        ge=2,
        le=2**31,
        description="rows of a hook point, at most, traced to files to judge and to scale by, half of them of held-out examples",
    )


class SAEFitVariables(Variables):
    """Which rows, which SAEs, how they are trained and how they are judged."""

    kind: Kind = Field(
        "sae", description="what is read and written: transcoders read site and write target_site, a crosscoder reads sites at once"
    )
    site: str | None = Field(None, max_length=300, description="hook point to read; may be left out where the trace holds one site")
    sites: list[str] | None = Field(
        None, min_length=1, max_length=64, description="several hook points: an SAE on each, fitted together; a crosscoder's parts"
    )
    target_site: str | None = Field(None, max_length=300, description="transcoders: hook point to write")
    target_sites: list[str] | None = Field(None, max_length=64, description="transcoders on several sites: what each writes, in order")
    seeds: list[int] | None = Field(
        None, min_length=1, max_length=64, description="an SAE of each seed, fitted together; the spec's own seed where left out"
    )
    stream: StreamChoice | None = Field(
        None, description="take rows from the subject as the fit goes, through a shuffling buffer, instead of from inputs.trace"
    )
    sup_steps: list[int] | None = Field(
        None, min_length=1, description="only rows of these supervision steps; negative ones count from the end"
    )
    cycles: list[int] | None = Field(None, min_length=1, description="only rows of these cycles; negative ones count from the end")
    latent_steps: list[int] | None = Field(
        None, min_length=1, description="only rows of these latent steps; negative ones count from the end"
    )
    positions: Literal["all", "tokens", "answer"] = Field(
        "tokens", description="rows used: all (prefix included), tokens, or answer (positions that are scored)"
    )
    skip_special: bool = Field(True, description="leave out tokens that stand for no text, such as beginning and end, where they are known")
    val_fraction: float = Field(0.2, gt=0, lt=1, description="share of the examples held out; rows of one example stay together")

    activation: Architecture = Field("topk", description="architecture")
    d_sae: int | None = Field(None, ge=1, le=2**24, description="number of latents; expansion times the width where left out")
    expansion: int | None = Field(
        None, ge=1, le=1024, description="latents for each dimension of the activations; 8 where d_sae is left out too"
    )
    k: int | None = Field(None, ge=1, description="topk kinds: active latents a row (batchtopk, matryoshka: on average); 32 where left out")
    widths: list[int] | None = Field(
        None, min_length=1, max_length=64, description="matryoshka: nested dictionaries, ascending; shares of d_sae where left out"
    )
    l1: float | None = Field(None, ge=0, description="relu-l1, gated: weight of the L1 penalty; 3 where left out")
    l0_penalty: Literal["step", "tanh"] | None = Field(None, description="jumprelu: what counts an active latent; step where left out")
    target_l0: Annotated[float, Field(gt=0)] | Literal["none"] | None = Field(
        None, description="jumprelu: active latents a row that the penalty aims at, or none: fewer is better; 32 where left out"
    )
    l0_coefficient: float | None = Field(
        None,
        ge=0,
        description="jumprelu: weight of (L0 / target_l0 - 1)^2, 0.1 where left out; without a target of L0, 0.003 where left out",
    )
    bandwidth: float | None = Field(None, gt=0, description="jumprelu: width of the window that passes gradients; 0.1 where left out")
    tanh_scale: float | None = Field(None, gt=0, description="jumprelu with tanh: c in tanh(c · act); 4 where left out")
    pre_act_coefficient: float | None = Field(
        None,
        ge=0,
        description="jumprelu: weight of relu(threshold - pre), which revives latents in slower, dense steps; none where left out",
    )
    normalize: bool = Field(True, description="scale inputs to mean squared norm d_in for the fit")

    steps: int | None = Field(None, ge=1, le=100_000_000, description="optimizer steps; 4000 where epochs is left out too")
    epochs: float | None = Field(None, gt=0, le=100_000, description="passes over the training rows, instead of steps")
    batch_size: int = Field(1024, ge=1, le=2**20, description="rows a step")
    lr: float | None = Field(None, gt=0, description="peak learning rate; 2e-4 / sqrt(d_sae / 2^14) where left out (Gao et al. 2024)")
    warmup_steps: int | None = Field(None, ge=0, description="steps of linear warm-up; a twentieth of all where left out")
    decay_fraction: float = Field(0.2, ge=0, le=1, description="last share of the steps, in which the learning rate falls to zero")
    grad_clip: float = Field(1.0, gt=0, description="largest global norm of the gradient")
    dead_after_tokens: int = Field(200_000, ge=1, description="a latent silent for this many rows counts as dead and is revived")
    aux_k: int | None = Field(None, ge=1, description="topk kinds: dead latents that model the residual; half the width where left out")
    aux_coefficient: float = Field(1 / 32, ge=0, description="topk kinds: weight of the dead latents' loss")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="of the encoder product; with bf16 the topk kinds still choose and value latents as fp32 would (on the CPU)"
    )
    devices: int = Field(
        1, ge=1, le=1024, description="accelerators, or processes without one, that share each batch of one SAE; part of what is computed"
    )
    checkpoint_every: int = Field(200, ge=1, description="steps between two checkpoints that a killed fit resumes from")

    evaluate: BehaviourCheck = Field(BehaviourCheck(), description="behaviour with the reconstruction in place")
    controls: bool = Field(True, description="score PCA and a random dictionary of the same sparsity on the same rows")
    random_init: bool = Field(
        False, description="fit the same again on the model with its weights shuffled: what its reconstruction owes to nothing learned"
    )
    control_ks: list[int] = Field([], max_length=32, description="further numbers of components to score PCA with")
    n_top_contexts: int = Field(5, ge=0, le=50, description="contexts shown for each latent")

    @model_validator(mode="after")
    def _consistent(self) -> SAEFitVariables:
        if self.d_sae is not None and self.expansion is not None:
            raise ValueError("d_sae and expansion say the same thing: give one")
        if self.steps is not None and self.epochs is not None:
            raise ValueError("steps and epochs say the same thing: give one")
        if self.batch_size % self.devices:
            raise ValueError(f"batch_size {self.batch_size} cannot be shared equally by {self.devices} devices")
        if any(k < 1 for k in self.control_ks):
            raise ValueError(f"control_ks {self.control_ks} must be positive")
        refuse_foreign(self.activation, self.model_dump())
        if self.k is not None and self.d_sae is not None and self.k > self.d_sae:
            raise ValueError(f"k is {self.k}, above d_sae {self.d_sae}")
        if self.widths is not None and (self.widths[0] < 1 or self.widths != sorted(set(self.widths))):
            raise ValueError(f"widths {self.widths} must rise from at least 1")
        self._consistent_places()
        return self

    def _consistent_places(self) -> None:
        transcodes = self.kind in ("transcoder", "skip-transcoder")
        if self.site is not None and self.sites is not None:
            raise ValueError("site and sites say the same thing: give one")
        if self.target_site is not None and self.target_sites is not None:
            raise ValueError("target_site and target_sites say the same thing: give one")
        targets = self.target_sites if self.sites else [self.target_site] if self.target_site else None
        if transcodes and (targets is None or len(targets) != len(self.sites or [0])):
            raise ValueError(
                f"a {self.kind} writes one hook point for each that it reads: give {'target_sites' if self.sites else 'target_site'}"
            )
        if not transcodes and (self.target_site is not None or self.target_sites is not None):
            raise ValueError(f"{self.kind} writes what it reads: only transcoders have a target")
        for name, chosen in (("sites", self.sites), ("seeds", self.seeds)):
            if chosen is not None and len(set(chosen)) != len(chosen):
                raise ValueError(f"{name} {chosen} name one twice")
        reads = self.sites or [self.site or ""]
        if any(read == written for read, written in zip(reads, targets or [], strict=False)):
            raise ValueError("a transcoder writes another hook point than it reads")
        if any(seed < 0 for seed in self.seeds or ()):
            raise ValueError(f"seeds {self.seeds} must not be negative")
        count = (1 if self.kind == "crosscoder" else len(self.sites or [0])) * len(self.seeds or [0])
        if count > MOST_SAES:
            raise ValueError(f"{count} SAEs in one run, at most {MOST_SAES}")
        if count > 1 and self.devices > 1:
            raise ValueError(f"{count} SAEs are fitted side by side on one device: several devices share one SAE")

    def named_sites(self) -> list[str]:
        """Return every hook point that is named."""
        named = [self.site, *(self.sites or ()), self.target_site, *(self.target_sites or ())]
        return [site for site in named if site is not None]

    @property
    def recurrence(self) -> Steps:
        """Which steps of a recurrence are used."""
        from mlinterp.sae.selection import Steps

        return Steps(self.sup_steps, self.cycles, self.latent_steps)

    def sae_config(
        self, d_in: int, site: str, seed: int, *, d_out: int | None = None, target: str = "", parts: tuple[str, ...] = ()
    ) -> SAEConfig:
        """Return the architecture for activations of a width. Raises SpecError for a k or widths that do not fit its number of latents."""
        d_sae = self.d_sae or d_in // max(1, len(parts)) * (self.expansion or 8)
        own = self._sparsity()
        if own.get("k", 0) > d_sae:
            raise SpecError(f"k is {own['k']}, this SAE has {d_sae} latents", field="variables.k", allowed=f"1-{d_sae}")
        if self.widths is not None and self.widths[-1] != d_sae:
            problem = f"the last of {self.widths} is not the number of latents, {d_sae}"
            raise SpecError(problem, field="variables.widths", allowed=f"ascending, the last is {d_sae}")
        return SAEConfig(
            d_in=d_in,
            d_sae=d_sae,
            activation=self.activation,
            kind=self.kind,
            d_out=d_out,
            normalize=self.normalize,
            site=site,
            target_site=target,
            sites=list(parts),
            sup_steps=self.sup_steps,
            seed=seed,
            **own,
        )

    def _sparsity(self) -> dict[str, Any]:
        """Return the settings that belong to the activation, with defaults where the spec leaves them out."""
        defaults = DEFAULTS | ({"tanh_scale": TANH_SCALE} if self.l0_penalty == "tanh" else {})
        if self.target_l0 == "none":
            defaults |= {"l0_coefficient": NO_TARGET_COEFFICIENT}
        own = {name: defaults.get(name) if (value := getattr(self, name)) is None else value for name in OWN_FIELDS[self.activation]}
        return {name: None if value == "none" else value for name, value in own.items()}

    def fit_config(self, d_sae: int, n_train: int) -> FitConfig:
        """Return the training settings for a number of latents and of training rows."""
        steps = self.steps or (math.ceil(self.epochs * n_train / self.batch_size) if self.epochs else 4000)
        return FitConfig(
            steps=steps,
            batch_size=self.batch_size,
            lr=self.lr or 2e-4 / math.sqrt(d_sae / 2**14),
            warmup_steps=steps // 20 if self.warmup_steps is None else self.warmup_steps,
            decay_fraction=self.decay_fraction,
            grad_clip=self.grad_clip,
            dead_after_tokens=self.dead_after_tokens,
            aux_k=self.aux_k,
            aux_coefficient=self.aux_coefficient,
            precision=self.precision,
        )


def check(spec: Spec, variables: SAEFitVariables, roles: Collection[str]) -> None:
    """Refuse a spec that names no rows, or rows twice over. Raises SpecError."""
    if variables.stream is None and "trace" not in roles:
        allowed = "`@step` of a study, `latest`, `run:ID`, or a subject with variables.stream"
        raise SpecError("sae_fit needs a trace", field="inputs.trace", allowed=allowed)
    if variables.stream is not None and {"trace", "trace_b"} & set(roles):
        raise SpecError("rows come from a trace or from a stream", field="variables.stream", allowed="give one of the two")
    if variables.stream is not None and spec.subject is None:
        raise SpecError("a stream comes from a subject", field="subject", allowed="a name from project.yaml")
    if "trace_b" in roles and variables.kind != "crosscoder":
        raise SpecError(f"a {variables.kind} reads one trace", field="inputs.trace_b", allowed="only a crosscoder takes a second trace")
    if variables.kind == "crosscoder" and "trace_b" not in roles and len(variables.sites or ()) < 2:
        raise SpecError("a crosscoder reads several places", field="variables.sites", allowed="two sites or more, or inputs.trace_b")
    if variables.random_init and (spec.subject is None or "trace_b" in roles):
        problem = "shuffles the weights of one subject" + ("" if spec.subject is None else ", and there are two traces")
        raise SpecError(problem, field="variables.random_init", allowed="one trace and its subject, or leave it out")


def run(context: Context) -> ExperimentResult:
    """Find the rows, fit, save, judge."""
    from mlinterp.estimates import record
    from mlinterp.experiments.sae_fit_control import beside_random_init
    from mlinterp.experiments.sae_fit_data import from_stream, from_traces, sample_files
    from mlinterp.experiments.sae_fit_fitting import fitted, planned
    from mlinterp.experiments.sae_fit_judging import compared, judge, require_examples
    from mlinterp.experiments.sae_fit_report import report, write_metrics
    from mlinterp.sae.files.checkpoint import save_sae

    started = time.monotonic()
    variables: SAEFitVariables = context.variables
    subject = None if context.spec.subject is None else context.load_subject()
    require_examples(context, subject)
    result = ExperimentResult(model_file="sae.safetensors")
    stream = None
    if variables.stream is None:
        materials = from_traces(context, subject)
    else:
        assert subject is not None, "checked before the run"
        materials, stream = from_stream(context, subject)
        result.files += sample_files(context.workdir)

    fits = planned(variables, materials, context.seed)
    saes = fitted(context, fits)
    if stream is not None:
        stream.release()
    judged = compared([judge(context, each, saes[each.name], subject) for each in fits], context.seed)
    if variables.random_init:
        assert subject is not None, "checked before the run"
        judged = beside_random_init(context, subject, judged)
    report(result, judged, subject, context)
    if stream is not None:
        result.metrics |= stream.numbers()
    for number, each in enumerate(judged):
        folders = [context.workdir] if number == 0 else []
        folders += [context.workdir / "saes" / each.name] if len(judged) > 1 else []
        for folder in folders:
            written = [*save_sae(each.sae, folder, trace_sha256=each.material.digest), "sae_metrics.json"]
            write_metrics(folder, each, variables, time.monotonic() - started)
            names = [(folder / name).relative_to(context.workdir).as_posix() for name in written]
            result.files += [name for file in names[:-1] for name in (file, f"{file}.sha256")] + names[-1:]
    record(result, {})
    return result


EXPERIMENT = Experiment(
    type="sae_fit",
    summary="Fit sparse autoencoders on a trace or a stream, and judge them beside PCA, a random dictionary and the model's behaviour.",
    Variables=SAEFitVariables,
    run=run,
    check=check,
    aliases=("train_sae",),
    inputs={"trace": False, "trace_b": False, "subject": False},
    needs_subject=False,
    produces="sae",
    headlines=("sae/l0", "sae/frac_dead", "substitution/ce_loss_recovered", "sae/fvu"),
    frontiers=(("sae/l0", "sae/fvu"), ("sae/l0", "substitution/ce_loss_recovered")),
    example={
        "subject": "NAME",
        "inputs": {"trace": "latest"},
        "variables": {"site": "z_H", "activation": "topk", "expansion": 8, "k": 16, "steps": 2000},
    },
)
