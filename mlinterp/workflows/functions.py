"""The workflows as Python functions: each runs its study and returns what every step found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlinterp.subjects.pairs_declared import PromptPair
from mlinterp.type_functions import run_checked
from mlinterp.workflows.catalog import build
from mlinterp.workflows.results import WorkflowResult

if TYPE_CHECKING:
    from mlinterp.progress import Reporter

Pairs = Sequence[PromptPair | Mapping[str, Any]] | Path | str
"""Prompt pairs, or a `.jsonl` file of the project that holds them."""


def behavior_localization(
    subject: str,
    pairs: Pairs,
    metric: str = "logit_diff",
    steps: Sequence[str] | None = None,
    top_k: int = 5,
    *,
    inputs: Mapping[str, str] | None = None,
    variables: Mapping[str, Any] | None = None,
    hypothesis: str | None = None,
    expect: Sequence[Mapping[str, Any]] = (),
    seed: int = 0,
    project: Path | str | None = None,
    again: bool = False,
    reporter: Reporter | None = None,
) -> WorkflowResult:
    """Find which layers, MLPs and heads carry what tells clean prompts from corrupted ones.

    Steps: `dla` (what each part writes straight towards the answer), `patch_mlp` and `patch_attn` (each layer's outputs, at all positions
    at once), `patch_heads` (every head of every layer: heads of layers that were chosen on the same prompts could not be judged there).

    Args:
        subject: a subject of the project.
        pairs: prompt pairs, or a `.jsonl` file of the project that holds them.
        metric: what is measured, as `activation_patching` takes it.
        steps: which steps, in any number; all where left out.
        top_k: how many of the largest places are patched together, and told.
        inputs: references by role, for every step whose type takes the role, such as `{"subject": "latest"}`.
        variables: further variables, for every step whose type has them, such as `{"align": "end"}`.
        hypothesis: the hypothesis that the study is evidence for.
        expect: predictions about numbers of the study, such as `patch_attn/top.adjusted_effect`.
        seed: seed of every random draw.
        project: the project's folder or its name below `projects/`; the one around the working folder where left out.
        again: compute even what earlier runs already answered.
        reporter: who listens to progress.

    Raises:
        SpecError: something is wrong; nothing was run.
        MlinterpError: a step has FAILED, and with it the study.
    """
    own = {"pairs": pairs, "metric": metric, "steps": steps, "top_k": top_k}
    shared = {"inputs": inputs, "variables": variables, "hypothesis": hypothesis, "expect": expect, "seed": seed}
    return _run("behavior_localization", subject, own | shared, project, again, reporter)


def circuit_discovery(
    subject: str,
    pairs: Pairs,
    metric: str = "logit_diff",
    threshold: float = 0.01,
    steps: Sequence[str] | None = None,
    *,
    inputs: Mapping[str, str] | None = None,
    variables: Mapping[str, Any] | None = None,
    hypothesis: str | None = None,
    expect: Sequence[Mapping[str, Any]] = (),
    seed: int = 0,
    project: Path | str | None = None,
    again: bool = False,
    reporter: Reporter | None = None,
) -> WorkflowResult:
    """Find which edges between heads and MLPs carry what tells clean prompts from corrupted ones.

    Steps: `attribution` and `activation` (the residual stream after every block, by position: estimated, then patched), `acdc` (the
    circuit, judged on pairs that did not choose it), and, where named, `paths` (what the paths of that circuit carry).

    Args:
        subject: a subject of the project.
        pairs: prompt pairs, at least two, or a `.jsonl` file of the project that holds them.
        metric: what is measured, as `activation_patching` takes it.
        threshold: share of the gap that an edge must matter to be kept.
        steps: which steps, in any number; attribution, activation and acdc where left out. `paths` takes what `acdc` makes.
        inputs: references by role, for every step whose type takes the role, such as `{"subject": "latest"}`.
        variables: further variables, for every step whose type has them, such as `{"n_bootstrap": 500}`.
        hypothesis: the hypothesis that the study is evidence for.
        expect: predictions about numbers of the study, such as `acdc/circuit.adjusted_faithfulness`.
        seed: seed of every random draw.
        project: the project's folder or its name below `projects/`; the one around the working folder where left out.
        again: compute even what earlier runs already answered.
        reporter: who listens to progress.

    Raises:
        SpecError: something is wrong; nothing was run.
        MlinterpError: a step has FAILED, and with it the study.
    """
    own = {"pairs": pairs, "metric": metric, "threshold": threshold, "steps": steps}
    shared = {"inputs": inputs, "variables": variables, "hypothesis": hypothesis, "expect": expect, "seed": seed}
    return _run("circuit_discovery", subject, own | shared, project, again, reporter)


def feature_investigation(
    subject: str,
    sae: str,
    pairs: Pairs,
    feature_ids: Sequence[int] | None = None,
    trace: str | None = None,
    top_k: int = 10,
    steps: Sequence[str] | None = None,
    *,
    metric: str = "logit_diff",
    inputs: Mapping[str, str] | None = None,
    variables: Mapping[str, Any] | None = None,
    hypothesis: str | None = None,
    expect: Sequence[Mapping[str, Any]] = (),
    seed: int = 0,
    project: Path | str | None = None,
    again: bool = False,
    reporter: Reporter | None = None,
) -> WorkflowResult:
    """Find which latents of an SAE fire on prompts, what the answer loses without each, and where else they fire.

    Steps: `active_features` (what fires on the clean prompts, beside the corrupted ones), `ablation` (each latent's activation set to zero
    in the clean run, the SAE's error kept) and, with a trace, `max_examples` (a page of contexts).

    Args:
        subject: a subject of the project.
        sae: the SAE: `latest`, `run:ID` or `models:/NAME@alias`.
        pairs: prompt pairs, or a `.jsonl` file of the project that holds them.
        feature_ids: the latents in question; all that fire where left out (`max_examples`: the top_k with the largest activation).
        trace: a trace of the SAE's hook point, as an input: `latest` or `run:ID`.
        top_k: how many of the largest latents are removed together, and shown.
        steps: which steps, in any number; all that can be where left out.
        metric: what is measured, as `activation_patching` takes it.
        inputs: references by role, for every step whose type takes the role, such as `{"subject": "latest"}`.
        variables: further variables, for every step whose type has them, such as `{"n_bootstrap": 500}`.
        hypothesis: the hypothesis that the study is evidence for.
        expect: predictions about numbers of the study, such as `ablation/top.adjusted_effect`.
        seed: seed of every random draw.
        project: the project's folder or its name below `projects/`; the one around the working folder where left out.
        again: compute even what earlier runs already answered.
        reporter: who listens to progress.

    Raises:
        SpecError: something is wrong; nothing was run.
        MlinterpError: a step has FAILED, and with it the study.
    """
    own = {"sae": sae, "pairs": pairs, "feature_ids": feature_ids, "trace": trace, "top_k": top_k, "steps": steps, "metric": metric}
    shared = {"inputs": inputs, "variables": variables, "hypothesis": hypothesis, "expect": expect, "seed": seed}
    return _run("feature_investigation", subject, own | shared, project, again, reporter)


def _run(
    workflow: str, subject: str, given: Mapping[str, Any], project: Path | str | None, again: bool, reporter: Reporter | None
) -> WorkflowResult:
    spec = build(workflow, subject, **given)
    return WorkflowResult.of(workflow, run_checked(spec, project=project, again=again, reporter=reporter))
