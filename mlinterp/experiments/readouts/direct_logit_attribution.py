"""`direct_logit_attribution`: what the embedding, every head, every MLP and every bias writes towards the model's answer."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from mlinterp.errors import ExperimentError
from mlinterp.experiments.base import Context, Experiment
from mlinterp.experiments.readouts.readings import Positions, ReadingVariables, read, warnings_of
from mlinterp.readouts.prompts import Asked
from mlinterp.result import ExperimentResult


class DirectLogitAttributionVariables(ReadingVariables):
    """Whose logit is taken apart, and where."""

    positions: Positions = Field(
        "last", description="where the logit is taken: last, answer (scored positions), tokens (every real one), or position numbers"
    )
    answer: Literal["target", "model"] | None = Field(
        None,
        description="whose logit: target (the prompt's answer, or the token that follows in the text) or model (its own likeliest token); "
        "target where every prompt has an answer, else model",
    )
    of: Literal["logit", "logit_diff"] = Field(
        "logit", description="logit, or logit_diff: less that of the prompt's wrong token, or of the likeliest other token without one"
    )


def run(context: Context) -> ExperimentResult:
    """Find whose logits are meant, take them apart, beside those of all answers, and tabulate."""
    from mlinterp.experiments.readouts.direct_logit_attribution_report import fill
    from mlinterp.experiments.readouts.direct_logit_attribution_rows import chosen_rows, taken_apart
    from mlinterp.readouts.logit_attribution import Attributor
    from mlinterp.readouts.reading import require_true

    variables: DirectLogitAttributionVariables = context.variables
    subject = context.load_subject()
    attributor = Attributor(subject)
    reading = read(subject, variables, context.root)
    require_true(attributor.readout, subject, reading.examples.take([0]))
    rows = chosen_rows(subject, reading, variables.positions, _answer(variables, reading), variables.of, variables.batch_size)
    if not len(rows):
        raise ExperimentError(f"none of the {len(reading.examples)} examples has a target at these positions (positions, answer)")
    found = taken_apart(attributor, reading.examples, rows, variables.batch_size)
    result = ExperimentResult(mode="observational")
    result.diagnostics.n_contexts_tested = len(reading.examples)
    result.diagnostics.warnings += warnings_of(len(set(rows.example.tolist())))
    return fill(result, subject, attributor, reading.examples, rows, found, context.seed)


def _answer(variables: DirectLogitAttributionVariables, reading: Asked) -> Literal["target", "model"]:
    if variables.answer is not None:
        return variables.answer
    if variables.pairs is not None:
        return "target" if bool(reading.examples.scored.any(dim=1).all()) else "model"
    given = variables.prompts is not None and all(prompt.answer is not None for prompt in variables.prompts)
    return "target" if given else "model"


_EXAMPLE: dict[str, Any] = {
    "subject": "NAME",
    "inputs": {"subject": "latest"},
    "variables": {"examples": {"split": "test", "n": 64}, "positions": "last", "of": "logit"},
}

EXPERIMENT = Experiment(
    type="direct_logit_attribution",
    summary="Take a logit apart into what the embedding, every head, every MLP and every bias writes towards it.",
    Variables=DirectLogitAttributionVariables,
    run=run,
    aliases=("dla",),
    inputs={"subject": False},
    example=_EXAMPLE,
    headlines=("dla/logit", "dla/completeness_error"),
    ranking=("terms", "mean"),
)
