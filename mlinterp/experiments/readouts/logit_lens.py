"""`logit_lens`: what every layer's residual stream would answer through the model's own final norm and unembedding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from mlinterp.errors import ExperimentError
from mlinterp.experiments.base import Context, Experiment
from mlinterp.experiments.readouts.readings import Positions, ReadingVariables, read, warnings_of
from mlinterp.result import ExperimentResult

if TYPE_CHECKING:
    from mlinterp.readouts.lens import Reading
    from mlinterp.readouts.reading import Readout
    from mlinterp.subjects.base import Subject


class LogitLensVariables(ReadingVariables):
    """What is read, and how much of it is shown."""

    positions: Positions = Field(
        "tokens", description="where layers are read: tokens (every real one), answer (scored ones), last, or position numbers"
    )
    top_k: int = Field(5, ge=1, le=100, description="likeliest tokens of each layer that are kept")
    shown: int = Field(2, ge=0, le=20, description="examples whose layers are shown token by token")


def run(context: Context) -> ExperimentResult:
    """Read every layer out, compare it with the model's own answer, and tabulate."""
    from mlinterp.experiments.readouts.logit_lens_report import fill
    from mlinterp.readouts.lens import look
    from mlinterp.readouts.reading import readout_of, require_true

    variables: LogitLensVariables = context.variables
    subject = context.load_subject()
    readout = readout_of(subject)
    examples = read(subject, variables, context.root).examples
    require_true(readout, subject, examples.take([0]))
    reading = _reading(context, subject, readout)
    rows, layers = look(subject, readout, reading, examples, variables.positions, variables.top_k, variables.batch_size)
    if not len(rows.example):
        raise ExperimentError(f"none of the {len(examples)} examples has such a position (positions: {variables.positions})")
    result = ExperimentResult(mode="observational")
    result.diagnostics.n_contexts_tested = len(examples)
    result.diagnostics.warnings += warnings_of(len(set(rows.example.tolist())))
    return fill(result, subject, rows, layers, len(examples), variables.shown, context.seed)


def _reading(context: Context, subject: Subject, readout: Readout) -> Reading:
    """Return how a layer is read: as it stands, or through the translators of a tuned lens among the inputs."""
    from mlinterp.readouts.lens import plain
    from mlinterp.readouts.tuned_lens import load, translated

    if "tuned_lens" not in context.inputs:
        return plain(readout)
    return translated(readout, load(context.inputs["tuned_lens"].path, subject, readout))


_EXAMPLE: dict[str, Any] = {"subject": "NAME", "inputs": {"subject": "latest"}, "variables": {"examples": {"split": "test", "n": 64}}}

EXPERIMENT = Experiment(
    type="logit_lens",
    summary="Read every layer's residual stream out at once: its likeliest tokens, the rank of the final one, KL to the final answer.",
    Variables=LogitLensVariables,
    run=run,
    inputs={"subject": False, "tuned_lens": False},
    example=_EXAMPLE,
    headlines=("lens/settled",),
)
