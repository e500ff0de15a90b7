"""The three-command face for recurrent models: `trminterp trace`, `trminterp sae fit`, `trminterp intervene`, in that order.

Everything lands in one run folder under fixed names, and each command is recorded as an MLflow run below the folder's own.
"""

from __future__ import annotations

import shutil
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from mlinterp.command_line import run_app, supervise
from mlinterp.errors import SpecError
from mlinterp.io.atomic import write_text
from mlinterp.io.specfile import read_document
from mlinterp.progress import Silent
from mlinterp.project import parse_spec
from mlinterp.run_folder import RunFolder
from mlinterp.terminal import TerminalReporter, show_summary

app = typer.Typer(
    name="trminterp",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Trace a recurrent model, fit a sparse autoencoder on its states, and intervene on them.",
    epilog="In order: trminterp trace --run-dir out --model builtin:sudoku4; trminterp sae fit --run-dir out; "
    "trminterp intervene --run-dir out --policy ablate_features --features top:8",
)
sae_app = typer.Typer(no_args_is_help=True, help="Sparse autoencoders.")
app.add_typer(sae_app, name="sae")


class Granularity(StrEnum):
    """Which evaluations are traced."""

    sup = "sup"
    cycle = "cycle"
    latent = "latent"


class Activation(StrEnum):
    """Architectures, in the names of `sae.pt`."""

    relu = "relu"
    topk = "topk"
    batchtopk = "batchtopk"
    jumprelu = "jumprelu"


class Policy(StrEnum):
    """The three policies."""

    ablate_features = "ablate_features"
    clamp_features = "clamp_features"
    patch_features = "patch_features"


class Mode(StrEnum):
    """How an edit is applied."""

    delta = "delta"
    reconstruct = "reconstruct"


RunDir = Annotated[Path, typer.Option("--run-dir", "--out-dir", metavar="DIR", help="The run folder.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of every random draw of this stage.")]
Again = Annotated[bool, typer.Option("--again", help="Compute even what an earlier run already answered.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]


def _copy_option(*names: str, what: str) -> Any:
    return typer.Option(*names, metavar="FILE", help=f"Also write {what} there.")


@app.command("trace", short_help="Trace the model's states into trace.jsonl and states.npy.")
def trace_command(
    run_dir: RunDir,
    model: Annotated[
        str,
        typer.Option(
            "--model", metavar="MODEL", help="builtin:sudoku4, builtin:sudoku6 (trained on first use), or a folder with subject/."
        ),
    ],
    task: Annotated[str | None, typer.Option("--task", help="Refuse a model of another task.")] = None,
    n_examples: Annotated[int, typer.Option("--n-examples", min=1, help="How many examples.")] = 200,
    split: Annotated[str, typer.Option("--split", help="train, validation or test.")] = "test",
    sites: Annotated[str, typer.Option("--sites", help="z_L, z_H or both, with a comma.")] = "z_L,z_H",
    granularity: Annotated[
        Granularity, typer.Option("--granularity", help="Every evaluation, the last of each cycle, or of each step.")
    ] = Granularity.latent,
    seed: Seed = 0,
    no_states: Annotated[
        bool, typer.Option("--no-states", help="Write no states.npy: each row carries its states (small traces only).")
    ] = False,
    intervention: Annotated[
        Path | None,
        typer.Option(
            "--intervention", metavar="FILE", help="Trace while the model is edited as this file says (JSON or YAML; needs an SAE)."
        ),
    ] = None,
    summary_json: Annotated[Path | None, _copy_option("--summary-json", what="the stage's result")] = None,
    again: Again = False,
    quiet: Quiet = False,
) -> None:
    """Trace the model's states into trace.jsonl and states.npy.

    For example:

      trminterp trace --run-dir out --model builtin:sudoku4 --n-examples 100 --sites z_L,z_H
    """
    folder = RunFolder(run_dir)
    fit = folder.declare(model)
    declared = folder.project.subject_config("model")["task"]["name"]
    if task is not None and task != declared:
        raise SpecError(f"the model's task is {declared}, not '{task}'", field="--task")
    variables: dict[str, Any] = {
        "sites": [site.strip() for site in sites.split(",") if site.strip()],
        "examples": {"split": split, "n": n_examples, "seed": seed},
        "granularity": granularity.value,
        "states_file": not no_states,
    }
    if intervention is not None:
        variables["intervention"] = read_document(intervention).data
    spec = parse_spec({"type": "trace", "subject": "model", "seed": seed, "variables": variables})

    def work() -> None:
        reporter = Silent() if quiet else TerminalReporter()
        if fit is not None:
            training = parse_spec({"type": "subject_fit", "subject": "model", "variables": fit})
            show_summary(folder.execute("subject", training, {}, reporter, again=False))
        needed = ["subject"] if intervention is None else ["subject", "sae"]
        summary = folder.execute("trace", spec, folder.inputs(needed), reporter, again=again)
        show_summary(summary)
        if summary_json is not None and summary.result is not None:
            write_text(summary_json, summary.result.model_dump_json(by_alias=True, indent=2))

    supervise(work, folder.project.workspace)


@sae_app.command("fit", short_help="Fit an SAE on the trace: sae.pt and sae_metrics.json.")
def sae_fit_command(
    run_dir: RunDir,
    site: Annotated[str, typer.Option("--site", help="z_L or z_H.")] = "z_L",
    d_sae: Annotated[int | None, typer.Option("--d-sae", min=1, help="Number of latents; 8 times the width where left out.")] = None,
    activation: Annotated[Activation, typer.Option("--activation", help="Architecture.")] = Activation.topk,
    k: Annotated[int | None, typer.Option("--k", min=1, help="topk, batchtopk: active latents a row.")] = None,
    l1: Annotated[float | None, typer.Option("--l1", min=0, help="relu: weight of the L1 penalty.")] = None,
    epochs: Annotated[float | None, typer.Option("--epochs", min=0, help="Passes over the training rows.")] = None,
    lr: Annotated[float | None, typer.Option("--lr", min=0, help="Peak learning rate.")] = None,
    val_fraction: Annotated[float, typer.Option("--val-fraction", min=0, max=1, help="Share of examples held out.")] = 0.2,
    seed: Seed = 0,
    save_model_json: Annotated[Path | None, _copy_option("--save-model-json", what="sae_metrics.json")] = None,
    again: Again = False,
    quiet: Quiet = False,
) -> None:
    """Fit a sparse autoencoder on the trace.

    For example:

      trminterp sae fit --run-dir out --site z_H --d-sae 128 --k 6
    """
    folder = RunFolder(run_dir)
    given = {"d_sae": d_sae, "k": k, "l1": l1, "epochs": epochs, "lr": lr}
    variables = {
        "site": site,
        "activation": {"relu": "relu-l1"}.get(activation.value, activation.value),
        "val_fraction": val_fraction,
        **{name: value for name, value in given.items() if value is not None},
    }
    spec = parse_spec({"type": "sae_fit", "subject": "model", "seed": seed, "variables": variables})
    _stage(folder, "sae", spec, ["subject", "trace"], "sae_metrics.json", save_model_json, again, quiet)


@app.command("intervene", short_help="Edit latents and compare: report.json and one diff an intervention.")
def intervene_command(
    run_dir: RunDir,
    policy: Annotated[Policy, typer.Option("--policy", help="What is done to the latents.")],
    features: Annotated[str, typer.Option("--features", help="Latents, such as 1,2 or top:8.")] = "top:8",
    value: Annotated[float | None, typer.Option("--value", help="clamp_features: to this value.")] = None,
    quantile: Annotated[
        float | None,
        typer.Option("--quantile", min=0, max=1, help="clamp_features: to this quantile of the latent's positive activations."),
    ] = None,
    source: Annotated[str | None, typer.Option("--source", help="patch_features: shuffled, self, or an example's id.")] = None,
    site: Annotated[str | None, typer.Option("--site", help="Where; the SAE's own site where left out.")] = None,
    sup_steps: Annotated[str | None, typer.Option("--sup-steps", help="Supervision steps, such as 2 or 0-15 or -1.")] = None,
    cycles: Annotated[str | None, typer.Option("--cycles", help="Cycles inside a supervision step.")] = None,
    latent_steps: Annotated[str | None, typer.Option("--latent-steps", help="Latent steps inside a cycle.")] = None,
    positions: Annotated[str, typer.Option("--positions", help="all, answer or blank.")] = "all",
    together: Annotated[bool, typer.Option("--together", help="Edit all latents at once instead of one after another.")] = False,
    mode: Annotated[Mode, typer.Option("--mode", help="Add the change, or replace the state by the reconstruction.")] = Mode.delta,
    n_examples: Annotated[int, typer.Option("--n-examples", min=1, help="How many examples.")] = 200,
    controls: Annotated[int, typer.Option("--controls", min=2, help="Draws of each random control.")] = 5,
    seed: Seed = 0,
    out_json: Annotated[Path | None, _copy_option("--out-json", what="report.json")] = None,
    again: Again = False,
    quiet: Quiet = False,
) -> None:
    """Edit latents during the forward pass and compare with the untouched model, beside controls.

    For example:

      trminterp intervene --run-dir out --policy patch_features --features top:8 --sup-steps -1 --cycles -1
    """
    folder = RunFolder(run_dir)
    places = {"site": site, "sup_steps": _range(sup_steps), "cycles": _range(cycles), "latent_steps": _range(latent_steps)}
    own = {"value": value, "quantile": quantile, "source": source}
    block = {
        "policy": policy.value,
        "features": features if features.startswith("top:") else _range(features),
        "each": not together,
        "mode": mode.value,
        "at": {"positions": positions, **{name: place for name, place in places.items() if place is not None}},
        **{name: setting for name, setting in own.items() if setting is not None},
    }
    variables = {"interventions": [block], "controls": controls, "examples": {"split": "test", "n": n_examples}, "score": "blank"}
    spec = parse_spec({"type": "intervene", "subject": "model", "seed": seed, "variables": variables})
    _stage(folder, "intervene", spec, ["subject", "trace", "sae"], "report.json", out_json, again, quiet)


def _stage(folder: RunFolder, role: str, spec: Any, needs: list[str], shown: str, copy_to: Path | None, again: bool, quiet: bool) -> None:
    from mlinterp.experiments.catalog import typed_variables

    typed_variables(spec)
    given = folder.inputs(needs)

    def work() -> None:
        show_summary(folder.execute(role, spec, given, Silent() if quiet else TerminalReporter(), again=again))
        _copy(folder, shown, copy_to)

    supervise(work, folder.project.workspace)


def _copy(folder: RunFolder, name: str, target: Path | None) -> None:
    if target is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder.folder / name, target)


def _range(text: str | None) -> list[int] | None:
    """Return `1,2`, `0-3`, `-1` or a mixture as numbers.

    >>> _range("0-2,5,-1")
    [0, 1, 2, 5, -1]
    """
    if text is None:
        return None
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-") if not part.strip().startswith("-") else (part.strip(), "", "")
        try:
            numbers += range(int(first), int(last) + 1) if dash else [int(first)]
        except ValueError:
            raise SpecError(f"'{part}' is no number and no range", allowed="such as 2, 0-15 or -1") from None
    return numbers


def main(argv: list[str] | None = None) -> None:
    """Run a command line; returns on success and raises SystemExit with the exit code otherwise."""
    run_app(app, "trminterp", argv)


if __name__ == "__main__":
    main()
