"""`activation_patching`: put activations of one prompt's run into another's, place by place, and measure what they carry.

The exact sweep: one patched run for every layer, position, head, neuron or SAE latent and every prompt pair (Vig et al. 2020; Wang et
al. 2022). `ablation: zero` and `mean` damage the clean run without another prompt's help.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from mlinterp.errors import SpecError
from mlinterp.experiments.base import Context, Experiment, Variables
from mlinterp.experiments.localisation.pair_variables import PatchVariables, check_metric
from mlinterp.patching.components import COMPONENTS, SAE_LATENT, Ablation, refuse_unknown
from mlinterp.result import ExperimentResult
from mlinterp.spec import Spec

Number = Annotated[int, Field(ge=0)]


class ActivationPatchingVariables(PatchVariables):
    """Which activations are patched between which prompts, and what is measured."""

    component: Annotated[str, StringConstraints(max_length=200)] = Field(
        "resid_pre",
        description=f"what is patched: {', '.join(COMPONENTS)}, module:PATH, or {SAE_LATENT}: latents of inputs.sae, its error kept",
    )
    ablation: Ablation = Field(
        "resample",
        description="what stands in an activation's place: the other prompt's at its position; with direction: noise also zero, or the "
        "mean over the pairs' other prompts at its position",
    )
    layers: list[int] | None = Field(None, min_length=1, description="blocks, all where left out; negative ones count from the last")
    positions: Literal["each", "all", "answer"] | list[int] | None = Field(
        None,
        description="each: every position by itself; all: all of them in one patch; answer: the last token; or position numbers, each by "
        "itself. Where left out: all for heads, neurons and latents, else each",
    )
    heads: list[Number] | None = Field(None, min_length=1, description="attn_head: which heads, all where left out")
    neurons: list[Number] | None = Field(None, min_length=1, description="mlp_neuron: which neurons, all where left out")
    latents: list[Number] | None = Field(
        None, min_length=1, description=f"{SAE_LATENT}: which latents of the SAE; every one that is active in some run where left out"
    )
    joint: int = Field(5, ge=2, le=100, description="how many of the largest places are patched together, to see what single patches hide")
    batch_size: int = Field(
        256, ge=1, le=65_536, description="patches a batch; one that does not fit in memory is split. It changes the last digits of float32"
    )

    @property
    def swept(self) -> Literal["each", "all", "answer"] | list[int]:
        """The positions, and what they are where left out."""
        if self.positions is not None:
            return self.positions
        return "all" if self.component in ("attn_head", "mlp_neuron", SAE_LATENT) else "each"

    @model_validator(mode="after")
    def _consistent(self) -> ActivationPatchingVariables:
        for name, component in (("heads", "attn_head"), ("neurons", "mlp_neuron"), ("latents", SAE_LATENT)):
            if getattr(self, name) is not None and self.component != component:
                raise ValueError(f"{name} are patched with component: {component}")
        if self.layers is not None and self.component == SAE_LATENT:
            raise ValueError(f"layers are not chosen with component: {SAE_LATENT}: its SAE says where it reads")
        if self.ablation != "resample" and self.direction == "denoise":
            raise ValueError(f"ablation {self.ablation} damages the clean run: it goes with direction: noise")
        for name in ("layers", "heads", "neurons", "latents", "positions"):
            chosen = getattr(self, name)
            if isinstance(chosen, list) and len(set(chosen)) != len(chosen):
                raise ValueError(f"{name} {chosen} must name each once")
        if self.positions == []:
            raise ValueError("positions must name at least one")
        return self


def check(_spec: Spec, variables: Variables, roles: Collection[str]) -> None:
    """Refuse an unknown component or metric by name, latents without an SAE, an SAE without latents, and pairs that lack a token."""
    assert isinstance(variables, ActivationPatchingVariables)
    refuse_unknown(variables.component, more=(SAE_LATENT,))
    latents = variables.component == SAE_LATENT
    if latents and "sae" not in roles:
        raise SpecError(
            f"{SAE_LATENT} needs an SAE", field="inputs.sae", allowed="`@step` of a study, `latest`, `run:ID` or `models:/NAME@alias`"
        )
    if "sae" in roles and not latents:
        problem = f"an SAE is of no use to component: {variables.component}"
        raise SpecError(problem, field="inputs.sae", allowed=f"component: {SAE_LATENT}, or leave it out")
    check_metric(variables.metric, variables.pairs)


def run(context: Context) -> ExperimentResult:
    """Patch every place of the component in every pair, beside its nulls, and report effects with intervals."""
    from mlinterp.experiments.localisation.activation_patching_measure import measure
    from mlinterp.experiments.localisation.activation_patching_report import report

    return report(measure(context), context.variables, context.seed)


_EXAMPLE: dict[str, Any] = {
    "subject": "NAME",
    "variables": {
        "pairs": [
            {
                "clean": "When Mary and John went out, John gave milk to",
                "corrupted": "When Mary and John went out, Mary gave milk to",
                "answer": " Mary",
                "wrong": " John",
            }
        ],
        "component": "resid_pre",
        "metric": "logit_diff",
    },
}

EXPERIMENT = Experiment(
    type="activation_patching",
    summary="Put activations of one prompt's run into another's, place by place, and measure what they carry of the answer.",
    Variables=ActivationPatchingVariables,
    run=run,
    check=check,
    modes=("interventional",),
    inputs={"subject": False, "sae": False},
    example=_EXAMPLE,
    headlines=("top/null_effect", "top/effect", "top/adjusted_effect"),
    ranking=("patches", "adjusted"),
)
