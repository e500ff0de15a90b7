"""`subject_fit`: train a subject of the project, so that lineage starts at the model."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from mlinterp.experiments.base import Context, Experiment, Variables
from mlinterp.result import ExperimentResult, Figure


class SubjectFitVariables(Variables):
    """How long a subject is trained, and how."""

    steps: int = Field(ge=1, le=10_000_000, description="optimizer steps")
    options: dict[str, Any] = Field(
        {}, description="settings of this kind of subject's objective, such as lr, batch_size, warmup_steps, ema"
    )
    eval_every: int = Field(100, ge=1, description="steps between two scores on held-out examples")
    checkpoint_every: int = Field(100, ge=1, description="steps between two checkpoints that a killed run resumes from")


def run(context: Context) -> ExperimentResult:
    """Train from the newest checkpoint (or from scratch), keep the weights, report the learning curve."""
    from mlinterp.estimates import means, record
    from mlinterp.subjects.fit import CHUNK, SubjectFit, save_subject
    from mlinterp.trainer import fit

    variables: SubjectFitVariables = context.variables
    subject = context.load_subject()
    objective = subject.objective(variables.options, context.seed)
    asked = {"options": variables.options, "seed": context.seed}
    module = SubjectFit(subject, objective, variables.steps, variables.eval_every, asked)
    fit(module, context.workdir / "checkpoints", context.reporter, chunk=CHUNK, checkpoint_every=variables.checkpoint_every)
    module.finish()
    result = ExperimentResult(files=save_subject(subject, context.workdir), model_file="subject")
    final = {name: value for name, value in module.history[-1].items() if name != "step"}
    result.metrics = {f"subject/{name}": float(value) for name, value in final.items()}
    result.metrics["subject/n_parameters"] = float(sum(parameter.numel() for parameter in subject.model.parameters()))
    result.add_table("learning_curve", module.history, description="Scores on held-out examples during training.")
    for name, shown in _panels(final).items():
        result.figures.append(
            Figure(
                name=f"learning_curve_{name}",
                table="learning_curve",
                kind="line",
                x="step",
                y=shown,
                title=f"Scored while {subject.name} learns: {name}",
                x_label="optimizer step",
                y_label=name,
            )
        )
    record(result, {f"subject/{name}": estimate for name, estimate in means(objective.scores(), context.seed).items()})
    return result


def _panels(final: dict[str, float]) -> dict[str, list[str]]:
    """Group the curve's columns by scale: shares of right answers in one panel, cross-entropies in one, each other number in its own."""
    shares = [name for name in final if name.startswith(("exact", "token_acc", "q_halt_acc", "accuracy"))]
    losses = [name for name in final if name.startswith("ce_loss")]
    panels = {name: some for name, some in (("accuracy", shares), ("ce_loss", losses)) if some}
    return panels | {name: [name] for name in final if name not in (*shares, *losses, "perplexity")}


EXPERIMENT = Experiment(
    type="subject_fit",
    summary="Train a subject of the project and log it, so that lineage starts at the model.",
    Variables=SubjectFitVariables,
    run=run,
    inputs={},
    produces="subject",
    headlines=("subject/ce_loss", "subject/accuracy", "subject/token_acc", "subject/exact"),
    example={"subject": "NAME", "variables": {"steps": 1000}},
)
