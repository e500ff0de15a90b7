"""`tuned_lens`: an affine translator for every layer, so that what a layer already knows can be read in the model's last language."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from mlinterp.errors import ExperimentError, SpecError
from mlinterp.experiments.base import Context, Experiment, Variables
from mlinterp.experiments.readouts.readings import warnings_of
from mlinterp.result import ExperimentResult

if TYPE_CHECKING:
    from mlinterp.subjects.base import Examples, Subject


class TunedLensVariables(Variables):
    """How the translators are fitted, and on how much they are judged."""

    steps: int = Field(500, ge=1, le=1_000_000, description="optimizer steps")
    lr: float = Field(1e-3, gt=0, le=10, description="Adam's learning rate at the start; it falls linearly to zero")
    batch_size: int = Field(
        8, ge=1, le=4096, description="examples a step and a forward pass; part of the result, since batch size changes float32 numbers"
    )
    train_examples: int = Field(4096, ge=1, le=10_000_000, description="examples of the train split that are fitted on")
    validation_examples: int = Field(
        64, ge=1, le=1_000_000, description="examples of the validation split that decide whether a translator is kept"
    )
    test_examples: int = Field(64, ge=2, le=1_000_000, description="examples of the test split that the lens is judged by")
    checkpoint_every: int = Field(100, ge=1, description="steps between two checkpoints that a killed run resumes from")


def run(context: Context) -> ExperimentResult:
    """Fit, keep the translators that help on the validation split, judge them on the test split, write the files."""
    from mlinterp.experiments.readouts.tuned_lens_report import fill, mean_kl
    from mlinterp.io.atomic import write_json
    from mlinterp.readouts.reading import readout_of, require_true
    from mlinterp.readouts.tuned_lens import TunedLensFit, save
    from mlinterp.trainer import fit

    variables: TunedLensVariables = context.variables
    subject = context.load_subject()
    readout = readout_of(subject)
    if len(readout.layers) < 2:
        raise SpecError(f"'{subject.name}' declares one state of its residual stream", field="subject", allowed="two or more")
    train, validation, test = _splits(subject, variables)
    require_true(readout, subject, train.take([0]))
    module = TunedLensFit(
        subject, readout, train, steps=variables.steps, lr=variables.lr, batch_size=variables.batch_size, seed=context.seed
    )
    fit(module, context.workdir / "checkpoints", context.reporter, chunk=10, checkpoint_every=variables.checkpoint_every)
    plain, tuned = mean_kl(subject, readout, module.translators, validation, variables.batch_size)
    kept = tuned < plain
    translators = module.translators.keeping(kept)
    result = ExperimentResult(mode="observational", files=save(translators, subject, context.workdir))
    fill(result, subject, readout, translators, test, kept.tolist(), variables.batch_size, context.seed)
    about = {"schema": "mlinterp.tuned_lens_scores.v1", "variables": variables.model_dump(mode="json"), "seed": context.seed}
    write_json(context.workdir / "tuned_lens.json", {**about, "layers": result.tables["layers"].rows})
    result.files.append("tuned_lens.json")
    result.diagnostics.n_contexts_tested = len(test)
    result.diagnostics.warnings += warnings_of(len(test))
    return result


def _splits(subject: Subject, variables: TunedLensVariables) -> tuple[Examples, Examples, Examples]:
    """Return examples of the three splits. Raises ExperimentError for an empty one, SpecError where they are not held out."""
    train = subject.examples("train", variables.train_examples)
    validation = subject.examples("validation", variables.validation_examples)
    test = subject.examples("test", variables.test_examples)
    for name, examples in (("train", train), ("validation", validation), ("test", test)):
        if not len(examples):
            raise ExperimentError(f"the {name} split of '{subject.name}' holds no example")
    shared = {*train.ids} & {*validation.ids, *test.ids}
    if shared:
        raise SpecError(
            f"'{subject.name}' holds out nothing to judge a fit by: '{min(shared)}' is in its train split and in another",
            field="subject",
            allowed="a subject whose splits share no example, such as one with `data: {kind: text}`",
        )
    return train, validation, test


_EXAMPLE: dict[str, Any] = {"subject": "NAME", "inputs": {"subject": "latest"}, "variables": {"steps": 500}}

EXPERIMENT = Experiment(
    type="tuned_lens",
    summary="Fit an affine translator for every layer's residual stream, and judge it beside the logit lens on held-out text.",
    Variables=TunedLensVariables,
    run=run,
    inputs={"subject": False},
    produces="tuned_lens",
    example=_EXAMPLE,
    headlines=("lens/tuned_kl", "lens/logit_lens_kl"),
)
