"""The workflows there are: their steps, and the study that each builds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mlinterp.errors import SpecError, unknown
from mlinterp.spec import Spec
from mlinterp.workflows.building import Part, Shared, study_of

MOST_TOGETHER = 100
LATENT_CONTROLS = 10
"""Random directions for each latent: all pairs share a draw, and of fewer draws no latent among many can be told from them."""


@dataclass(frozen=True)
class Workflow:
    """A workflow.

    Attributes:
        name: its name, in Python and on the command line.
        summary: what it asks, in one line.
        steps: the names of its steps, in order.
        study: builds the study, from what all workflows take and its own keywords.
    """

    name: str
    summary: str
    steps: tuple[str, ...]
    study: Callable[..., Spec]


def build(workflow: str, subject: str, **given: Any) -> Spec:
    """Return the study that a workflow would run, from the keywords of its function. Raises SpecError for the first thing wrong."""
    names = ("inputs", "variables", "hypothesis", "expect", "seed")
    shared = Shared(subject, **{name: given.pop(name) for name in names if name in given})
    return find(workflow).study(shared, **given)


def find(name: str) -> Workflow:
    """Return a workflow by its name, with dashes or underscores. Raises SpecError with the nearest name."""
    if name.replace("-", "_") not in WORKFLOWS:
        raise unknown("workflow", name, WORKFLOWS, what="workflow")
    return WORKFLOWS[name.replace("-", "_")]


def _behavior(shared: Shared, pairs: Any, metric: str = "logit_diff", steps: Sequence[str] | None = None, top_k: int = 5) -> Spec:
    patched = {"pairs": pairs, "metric": metric, "joint": _top(top_k)}
    parts = [
        Part("dla", "direct_logit_attribution", {"pairs": pairs, "of": "logit_diff" if metric == "logit_diff" else "logit"}),
        Part("patch_mlp", "activation_patching", {**patched, "component": "mlp_out", "positions": "all"}),
        Part("patch_attn", "activation_patching", {**patched, "component": "attn_out", "positions": "all"}),
        Part("patch_heads", "activation_patching", {**patched, "component": "attn_head", "positions": "all"}),
    ]
    about = (
        "Which parts carry a behaviour: what each writes straight towards the answer (dla, observational), then what the outputs of each "
        "layer's MLP and attention, and of every single head in every layer, restore of the clean run (interventional)."
    )
    return study_of("behavior_localization", about, parts, steps, shared)


def _circuit(shared: Shared, pairs: Any, metric: str = "logit_diff", threshold: float = 0.01, steps: Sequence[str] | None = None) -> Spec:
    asked = {"pairs": pairs, "metric": metric}
    parts = [
        Part("attribution", "attribution_patching", {**asked, "component": "resid_post"}),
        Part("activation", "activation_patching", {**asked, "component": "resid_post"}),
        Part("acdc", "circuit_discovery", {**asked, "method": "acdc", "threshold": threshold}),
        Part("paths", "path_patching", asked, {"circuit": "@acdc"}, by_default=False),
    ]
    about = (
        "Which circuit carries a behaviour: where along the residual stream it lies, estimated from gradients (attribution) and patched "
        "exactly (activation); the edges that carry it, judged on pairs that did not choose them (acdc); what its paths carry (paths)."
    )
    return study_of("circuit_discovery", about, parts, steps, shared)


def _feature(
    shared: Shared,
    sae: str,
    pairs: Any,
    feature_ids: Sequence[int] | None = None,
    trace: str | None = None,
    top_k: int = 10,
    steps: Sequence[str] | None = None,
    metric: str = "logit_diff",
) -> Spec:
    named: dict[str, Any] = {} if feature_ids is None else {"latents": list(feature_ids)}
    removed = {"pairs": pairs, "metric": metric, "component": "sae_latent", "direction": "noise", "ablation": "zero", "joint": _top(top_k)}
    shown = named or {"latents": f"top:{_top(top_k)}", "by": "max_act"}
    about = (
        "What latents of an SAE do on given prompts: which fire and where, beside the corrupted prompts (active_features, observational); "
        "what the answer loses when each is set to zero and the SAE's error is kept (ablation, interventional); where else they fire "
        "(max_examples)."
    )
    parts = [
        Part("active_features", "active_features", {"pairs": pairs, **named}, {"sae": sae}),
        Part("ablation", "activation_patching", {**removed, **named}, {"sae": sae}, usual={"controls": LATENT_CONTROLS}),
        Part(
            "max_examples",
            "latent_dashboard",
            shown,
            {"sae": sae, "trace": trace or "latest"},
            missing=None if trace is not None else "a trace (trace=…)",
        ),
    ]
    return study_of("feature_investigation", about, parts, steps, shared)


def _top(top_k: int) -> int:
    """Return how many of the largest places are patched together. Raises SpecError for a number out of bounds."""
    if not isinstance(top_k, int) or isinstance(top_k, bool) or not 2 <= top_k <= MOST_TOGETHER:
        raise SpecError(f"is {top_k!r}", field="top_k", allowed=f"a whole number, 2 to {MOST_TOGETHER}")
    return top_k


WORKFLOWS: dict[str, Workflow] = {
    each.name: each
    for each in (
        Workflow(
            "behavior_localization",
            "Which layers, MLPs and heads carry what tells clean prompts from corrupted ones.",
            ("dla", "patch_mlp", "patch_attn", "patch_heads"),
            _behavior,
        ),
        Workflow(
            "circuit_discovery",
            "Which edges between heads and MLPs carry it, from a scan of the stream to a circuit that is judged on other prompts.",
            ("attribution", "activation", "acdc", "paths"),
            _circuit,
        ),
        Workflow(
            "feature_investigation",
            "Which latents of an SAE fire on prompts, what the answer loses without each, and where else they fire.",
            ("active_features", "ablation", "max_examples"),
            _feature,
        ),
    )
}
