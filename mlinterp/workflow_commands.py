"""`mlinterp workflow …`: questions that take several experiments, each run as a study or written as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mlinterp.errors import SpecError
from mlinterp.experiment_commands import AgainOption, QuietOption, assignment
from mlinterp.io.atomic import write_text
from mlinterp.io.specfile import parse_value
from mlinterp.patching.metrics import MetricRegistry
from mlinterp.project import Project, as_named, choose_project, project_names
from mlinterp.scaffold import study_text
from mlinterp.spec import Spec
from mlinterp.terminal import show_lines, show_table
from mlinterp.validation import check_spec
from mlinterp.workflows import WORKFLOWS, build

Run = Callable[[Spec, Project, bool, bool], None]
"""Runs (spec, project, again, quiet)."""


class _EitherSpelling(TyperGroup):
    """Finds a subcommand by its name with underscores or with dashes."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return super().get_command(ctx, cmd_name.replace("-", "_"))


def _steps_of(workflow: str) -> Callable[[str], list[str]]:
    """Return what completes `--steps`: the list typed so far, with each step that is not in it."""

    def complete(incomplete: str) -> list[str]:
        done = incomplete.split(",")[:-1]
        return [",".join([*done, step]) for step in WORKFLOWS[workflow].steps if step not in done]

    return complete


def _steps_option(workflow: str) -> Any:
    steps = ", ".join(WORKFLOWS[workflow].steps)
    return typer.Option("--steps", metavar="STEP,STEP…", help=f"Which of {steps}; in any number.", autocompletion=_steps_of(workflow))


SubjectOption = Annotated[str, typer.Option("--subject", help="A subject of the project.")]
PairsOption = Annotated[str, typer.Option("--pairs", metavar="FILE.jsonl", help="Prompt pairs, one a line, in a file of the project.")]
MetricOption = Annotated[
    str,
    typer.Option(
        "--metric",
        help="logit_diff, prob, ce_diff, kl, l2, cosine, or FILE.py:FUNCTION.",
        autocompletion=lambda: [metric.name for metric in MetricRegistry()],
    ),
]
InputOption = Annotated[
    list[str] | None,
    typer.Option("--input", metavar="ROLE=REFERENCE", help="An input of every step that takes it, such as subject=latest."),
]
VariableOption = Annotated[
    list[str] | None,
    typer.Option("--variable", metavar="NAME=VALUE", help="A further variable of every step that has it, such as align=end."),
]
HypothesisOption = Annotated[str | None, typer.Option("--hypothesis", help="The hypothesis that the study is evidence for.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of every random draw.")]
ProjectOption = Annotated[
    str | None,
    typer.Option(
        "--project", "-p", metavar="PROJECT", help="The project's folder, or its name below projects/.", autocompletion=project_names
    ),
]
WriteOption = Annotated[Path | None, typer.Option("--write", metavar="FILE.yaml", help="Write the study there instead of running it.")]


def add_workflow_commands(app: typer.Typer, run: Run) -> None:
    """Add the group to an app; `run` checks and runs a study."""
    group = typer.Typer(cls=_EitherSpelling, help="Questions that take several experiments, each run as a study.", no_args_is_help=False)

    @group.callback(invoke_without_command=True)
    def help_command(context: typer.Context) -> None:
        """Print the help where nothing is asked."""
        if context.invoked_subcommand is None:
            typer.echo(context.get_help())

    @group.command("list", short_help="List the workflows.")
    def list_command() -> None:
        """List the workflows with their steps.

        For example:

          mlinterp workflow list
        """
        show_table(["workflow", "steps", "what it asks"], [(each.name, ", ".join(each.steps), each.summary) for each in WORKFLOWS.values()])

    @group.command("behavior_localization", short_help=WORKFLOWS["behavior_localization"].summary)
    def behavior_command(
        subject: SubjectOption,
        pairs: PairsOption,
        metric: MetricOption = "logit_diff",
        steps: Annotated[str | None, _steps_option("behavior_localization")] = None,
        top_k: Annotated[int, typer.Option("--top-k", help="How many of the largest places are patched together.")] = 5,
        inputs: InputOption = None,
        variables: VariableOption = None,
        hypothesis: HypothesisOption = None,
        seed: SeedOption = 0,
        project: ProjectOption = None,
        write: WriteOption = None,
        again: AgainOption = False,
        quiet: QuietOption = False,
    ) -> None:
        """Find which layers, MLPs and heads carry what tells clean prompts from corrupted ones.

        For example:

          mlinterp workflow behavior_localization --subject gpt --pairs pairs.jsonl

          mlinterp workflow behavior-localization --subject gpt --pairs pairs.jsonl --steps dla,patch_heads --input subject=latest
        """
        given = {"pairs": pairs, "metric": metric, "steps": _listed(steps), "top_k": top_k}
        _ask("behavior_localization", subject, given, _shared(inputs, variables, hypothesis, seed), project, write, again, quiet, run)

    @group.command("circuit_discovery", short_help=WORKFLOWS["circuit_discovery"].summary)
    def circuit_command(
        subject: SubjectOption,
        pairs: PairsOption,
        metric: MetricOption = "logit_diff",
        threshold: Annotated[float, typer.Option("--threshold", help="Share of the gap that an edge must matter to be kept.")] = 0.01,
        steps: Annotated[str | None, _steps_option("circuit_discovery")] = None,
        inputs: InputOption = None,
        variables: VariableOption = None,
        hypothesis: HypothesisOption = None,
        seed: SeedOption = 0,
        project: ProjectOption = None,
        write: WriteOption = None,
        again: AgainOption = False,
        quiet: QuietOption = False,
    ) -> None:
        """Find the circuit that carries what tells clean prompts from corrupted ones; `paths` is a step where it is named.

        For example:

          mlinterp workflow circuit_discovery --subject gpt --pairs pairs.jsonl --threshold 0.02

          mlinterp workflow circuit_discovery --subject gpt --pairs pairs.jsonl --steps acdc,paths --write projects/NAME/study.yaml
        """
        given = {"pairs": pairs, "metric": metric, "threshold": threshold, "steps": _listed(steps)}
        _ask("circuit_discovery", subject, given, _shared(inputs, variables, hypothesis, seed), project, write, again, quiet, run)

    @group.command("feature_investigation", short_help=WORKFLOWS["feature_investigation"].summary)
    def feature_command(
        subject: SubjectOption,
        pairs: PairsOption,
        sae: Annotated[str, typer.Option("--sae", metavar="REFERENCE", help="latest, run:ID or models:/NAME@alias.")],
        trace: Annotated[
            str | None, typer.Option("--trace", metavar="REFERENCE", help="A trace of its hook point: latest or run:ID.")
        ] = None,
        feature_ids: Annotated[str | None, typer.Option("--feature-ids", metavar="N,N…", help="The latents in question.")] = None,
        top_k: Annotated[int, typer.Option("--top-k", help="How many of the largest latents are removed together, and shown.")] = 10,
        steps: Annotated[str | None, _steps_option("feature_investigation")] = None,
        metric: MetricOption = "logit_diff",
        inputs: InputOption = None,
        variables: VariableOption = None,
        hypothesis: HypothesisOption = None,
        seed: SeedOption = 0,
        project: ProjectOption = None,
        write: WriteOption = None,
        again: AgainOption = False,
        quiet: QuietOption = False,
    ) -> None:
        """Find which latents of an SAE fire on prompts, what the answer loses without each, and where else they fire.

        For example:

          mlinterp workflow feature_investigation --subject gpt --sae latest --pairs pairs.jsonl

          mlinterp workflow feature_investigation --subject gpt --sae models:/NAME@champion --pairs pairs.jsonl --feature-ids 12,40
        """
        given: dict[str, Any] = {"sae": sae, "pairs": pairs, "trace": trace, "feature_ids": _numbers(feature_ids), "top_k": top_k}
        given |= {"steps": _listed(steps), "metric": metric}
        _ask("feature_investigation", subject, given, _shared(inputs, variables, hypothesis, seed), project, write, again, quiet, run)

    app.add_typer(group, name="workflow", short_help="Several experiments that answer one question.")


def _ask(
    workflow: str,
    subject: str,
    given: dict[str, Any],
    shared: dict[str, Any],
    project: str | None,
    write: Path | None,
    again: bool,
    quiet: bool,
    run: Run,
) -> None:
    """Build a workflow's study, and write or run it."""
    study, found = build(workflow, subject, **given, **shared), choose_project(project)
    if write is None:
        run(study, found, again, quiet)
        return
    if write.suffix not in {".yaml", ".yml"}:
        raise SpecError(f"'{write}' is no YAML file", field="--write", allowed="a name that ends in .yaml")
    if not write.resolve().is_relative_to(found.root):
        inside = as_named(found.root / write.name)
        raise SpecError(f"'{write}' lies outside the project that it is about", field="--write", allowed=f"a file in it, such as {inside}")
    if write.exists():
        raise SpecError(f"'{write}' exists already", field="--write", allowed="name a new file")
    check_spec(study, found)
    write_text(write, study_text(study))
    show_lines([f"wrote {as_named(write.resolve())}", f"`mlinterp run {as_named(write.resolve())}` runs it"])


def _shared(inputs: Sequence[str] | None, variables: Sequence[str] | None, hypothesis: str | None, seed: int) -> dict[str, Any]:
    assigned = dict(assignment(text, "--variable") for text in variables or [])
    return {
        "inputs": dict(assignment(text, "--input") for text in inputs or []),
        "variables": {name: parse_value(value) for name, value in assigned.items()},
        "hypothesis": hypothesis,
        "seed": seed,
    }


def _listed(text: str | None) -> list[str] | None:
    """Return names with commas between as a list; dashes in them stand for underscores."""
    return None if text is None else [part.strip().replace("-", "_") for part in text.split(",")]


def _numbers(text: str | None) -> list[int] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if wrong := next((part for part in parts if not part.isdecimal()), None):
        raise SpecError(f"'{wrong[:80]}' is no latent", field="--feature-ids", allowed="numbers with commas between, such as 12,40")
    return [int(part) for part in parts]
