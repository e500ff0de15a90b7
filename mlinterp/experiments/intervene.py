"""`intervene`: edit activations during the forward pass and measure what becomes of the answer, beside controls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from mlinterp.errors import ExperimentError, SpecError
from mlinterp.experiments.base import Context, Experiment, Variables
from mlinterp.experiments.trace import ExampleChoice
from mlinterp.interventions.declared import InterventionBlock, Metric
from mlinterp.result import ExperimentResult

if TYPE_CHECKING:
    from mlinterp.interventions.plan import Plan
    from mlinterp.sae.model import SAE
    from mlinterp.subjects.base import Examples, Subject


class InterveneVariables(Variables):
    """What is edited, where, and how its effect is measured."""

    interventions: list[InterventionBlock] = Field(min_length=1, max_length=256, description="what is done, each block at one place")
    examples: ExampleChoice = Field(ExampleChoice(), description="which examples are run")
    score: str = Field(
        "answer",
        max_length=64,
        description="positions that outcomes are about: answer (every scored one), or a narrower selector such as blank",
    )
    outcome: Metric = Field("margin", description="the outcome that effects, controls and ranks are about")
    controls: int = Field(5, ge=2, le=50, description="draws of each random control")
    train_examples: int = Field(
        256, ge=1, le=1_000_000, description="examples of the train split from which densities, means and quantiles of latents come"
    )
    n_bootstrap: int = Field(2000, ge=100, le=100_000, description="resamples of each interval")
    batch_size: int = Field(
        32, ge=1, le=4096, description="examples a forward pass; part of the result, since batch size changes float32 numbers"
    )

    @model_validator(mode="after")
    def _consistent(self) -> InterveneVariables:
        names = [block.name or f"{block.policy}_{index}" for index, block in enumerate(self.interventions)]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise ValueError(f"two interventions are named '{twice}'")
        if self.outcome == "agreement" and not all(block.patches and block.source != "self" for block in self.interventions):
            raise ValueError("outcome agreement is about patching from other examples: use it with patch_features or patch_states alone")
        return self


def run(context: Context) -> ExperimentResult:
    """Plan every edit and control, run them batch by batch, compare, and write `report.json` and the diffs."""
    from mlinterp.interventions.batch import BatchRunner
    from mlinterp.interventions.evaluator import Evaluator, Recorded
    from mlinterp.interventions.module import BatchFiles, InterventionModule, RowBatches
    from mlinterp.interventions.report import build_report, write_diffs
    from mlinterp.interventions.tables import fill_result
    from mlinterp.io.atomic import write_json
    from mlinterp.sae.files.provenance import require_subject
    from mlinterp.trainer import predict

    variables: InterveneVariables = context.variables
    sae = _sae(context)
    subject = context.load_subject()
    if sae is not None:
        require_subject(context.inputs["sae"].path, subject, "inputs.sae")
    examples = _scored_examples(subject, variables)
    plan = _plan(context, subject, sae, examples)

    batches = RowBatches(len(examples), variables.batch_size)
    files = BatchFiles(context.workdir / "outcomes", _fingerprint(context, subject, examples))
    with context.reporter.task("interventions", len(batches) * (len(plan.arms) + 1)) as task:
        predict(InterventionModule(BatchRunner(subject, sae, examples, plan), files, task), batches)

    recorded = Recorded(files.read(len(batches)), (examples.targets != _ignored()).numpy(), examples.mask.numpy())
    evaluator = Evaluator(variables.outcome, variables.n_bootstrap, context.seed)
    effects = evaluator.effects(plan, recorded)
    digests = {f"{role}_sha256": context.inputs[role].digest if role in context.inputs else None for role in ("trace", "sae")}
    report = build_report(
        plan,
        recorded,
        evaluator,
        effects,
        run_id=context.spec.sha256()[:16],
        seed=context.seed,
        inputs={**digests, "model_sha256": subject.digest()},
    )
    write_json(context.workdir / "report.json", report)
    result = ExperimentResult(mode="interventional", files=["report.json", *write_diffs(context.workdir, plan, recorded, examples)])
    if not effects:
        result.success, result.error_message = False, f"no intervention changed any activation: {report['warnings'][0]}"
    return fill_result(result, report)


def _sae(context: Context) -> SAE | None:
    """Return the SAE that the spec gives, refusing policies that need one where there is none."""
    variables: InterveneVariables = context.variables
    if "sae" in context.inputs:
        from mlinterp.sae.files.checkpoint import load_sae

        return load_sae(context.inputs["sae"].path)
    needing = next((index for index, block in enumerate(variables.interventions) if block.needs_sae), None)
    if needing is not None:
        policy = variables.interventions[needing].policy
        raise SpecError(
            f"{policy} edits latents, and the spec has no sae among its inputs",
            field=f"variables.interventions[{needing}].policy",
            allowed="add inputs.sae, or use patch_states, which needs none",
        )
    return None


def _scored_examples(subject: Subject, variables: InterveneVariables) -> Examples:
    """Return the examples with targets only where outcomes are measured, without those that have none left."""
    import torch

    from mlinterp.subjects.base import Examples

    choice = variables.examples
    found = subject.examples(choice.split, choice.n, choice.seed, **choice.options)
    everything = found.take(range(len(found)))
    chosen = subject.positions(everything, variables.score)[:, subject.n_prefix :]
    targets = torch.where(chosen, found.targets, _ignored())
    rows = (targets != _ignored()).any(dim=1).nonzero()[:, 0].tolist()
    if not rows:
        raise ExperimentError(f"none of the {len(found)} examples of split {choice.split} has a scored position (score: {variables.score})")
    kept = Examples(found.ids, found.inputs, targets, found.mask).take(rows)
    return Examples(kept.ids, kept.inputs, kept.targets, kept.mask)


def _ignored() -> int:
    from mlinterp.subjects.base import IGNORED

    return IGNORED


def _plan(context: Context, subject: Subject, sae: SAE | None, examples: Examples) -> Plan:
    from mlinterp.interventions.plan import Planner
    from mlinterp.interventions.statistics import LatentMeter

    variables: InterveneVariables = context.variables
    latent_blocks = any(block.needs_sae for block in variables.interventions)
    on_examples = on_train = None
    if sae is not None and latent_blocks:
        choice = variables.examples
        train = subject.examples("train", variables.train_examples, choice.seed, **choice.options)
        on_examples = LatentMeter(subject, sae, examples, variables.batch_size)
        on_train = LatentMeter(subject, sae, train, variables.batch_size)
    planner = Planner(
        subject,
        examples,
        on_examples=on_examples,
        on_train=on_train,
        sae_config=None if sae is None else sae.config,
        controls=variables.controls,
        seed=context.seed,
    )
    plan = planner.plan(variables.interventions, context.spec.feature_id)
    if len(examples) < 20:
        plan.warnings.append(f"{len(examples)} examples: intervals and p values are coarse")
    return plan


def _fingerprint(context: Context, subject: Subject, examples: Examples) -> str:
    """Return the digest of what outcomes of a batch depend on."""
    from mlinterp.io.digests import sha256_json

    return sha256_json(
        {
            "variables": context.variables.model_dump(mode="json"),
            "feature_id": context.spec.feature_id,
            "seed": context.seed,
            "subject": subject.digest(),
            "sae": context.inputs["sae"].digest if "sae" in context.inputs else None,
            "examples": list(examples.ids),
        }
    )


_EXAMPLE: dict[str, Any] = {
    "subject": "NAME",
    "inputs": {"sae": "latest"},
    "variables": {
        "examples": {"split": "test", "n": 256},
        "interventions": [
            {"policy": "ablate_features", "features": "top:10"},
            {"policy": "patch_features", "features": "top:10", "each": False, "source": "shuffled"},
        ],
        "controls": 5,
    },
}

EXPERIMENT = Experiment(
    type="intervene",
    summary="Ablate, clamp, patch or steer latents and activations, and measure the effect on the answer beside controls.",
    Variables=InterveneVariables,
    run=run,
    modes=("interventional",),
    inputs={"sae": False, "trace": False, "subject": False},
    example=_EXAMPLE,
    headlines=("top/control_effect", "top/effect", "top/adjusted_effect"),
    ranking=("interventions", "adjusted_effect"),
)
