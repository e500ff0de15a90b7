"""`head_detectors`: which attention heads are induction, previous-token, duplicate-token, first-token or current-token heads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import Field

from mlinterp.errors import SpecError
from mlinterp.experiments.base import Context, Experiment, Variables
from mlinterp.result import ExperimentResult

if TYPE_CHECKING:
    from mlinterp.readouts.attention_patterns import Attention
    from mlinterp.subjects.base import Subject

LENGTH = 50
"""Random tokens before they repeat, where the model has room for as many."""
CONTROL_HEADS = 20
"""Heads with weights in no order that there are at least: as many draws of the whole model as they take."""


class HeadDetectorsVariables(Variables):
    """Which sequences heads are watched on, and when one counts as found."""

    n_sequences: int = Field(64, ge=2, le=100_000, description="random sequences")
    length: int | None = Field(
        None,
        ge=2,
        le=100_000,
        description=f"random tokens before they repeat; {LENGTH} where left out, or as many as the model has room for",
    )
    repeats: int = Field(2, ge=2, le=100, description="how often the tokens come, the first time included")
    threshold: float = Field(0.4, gt=0, lt=1, description="score above which a head counts as found, where it is also beyond its control")
    batch_size: int = Field(
        8, ge=1, le=4096, description="sequences a forward pass; part of the result, since batch size changes float32 numbers"
    )


class _Setting(NamedTuple):
    tokens: list[int]
    prefix: list[int]
    length: int
    layers: list[int]
    left_out: list[str]


def run(context: Context) -> ExperimentResult:
    """Measure every head on repeated tokens, on tokens that do not repeat, and with its weights in no order."""
    from mlinterp.experiments.readouts.head_detectors_report import Measured, fill
    from mlinterp.readouts.attention_patterns import attention_of, shuffled_weights
    from mlinterp.readouts.head_scores import draw, measure

    variables: HeadDetectorsVariables = context.variables
    subject = context.load_subject()
    with attention_of(subject) as attention:
        setting = _setting(subject, variables, _layers(attention, subject))
        given = (setting.tokens, setting.prefix, variables.n_sequences, setting.length, variables.repeats, context.seed)
        repeated = draw(*given)
        own = measure(attention, repeated, setting.layers, variables.batch_size)
        unrepeated = measure(attention, draw(*given, repeat=False), setting.layers, variables.batch_size)
        shuffled = []
        for number in range(-(-CONTROL_HEADS // sum(scores.shape[1] for scores in own["induction"]))):
            with shuffled_weights(subject.model, context.seed, number):
                shuffled.append(measure(attention, repeated, setting.layers, variables.batch_size))
    result = ExperimentResult(mode="observational")
    result.diagnostics.n_contexts_tested = variables.n_sequences
    if setting.left_out:
        result.diagnostics.warnings.append("left out, since they do not see a whole sequence: " + ", ".join(setting.left_out))
    return fill(result, Measured(setting.layers, own, unrepeated, shuffled), variables.threshold, setting.length)


def _layers(attention: Attention, subject: Subject) -> list[int]:
    """Return which layers have patterns, as a short sequence shows them."""
    from mlinterp.halving import halved

    first = subject.examples("train", 1).take([0])
    return sorted(next(halved([first], lambda one: attention.patterns(one[0]), "example")))


def _setting(subject: Subject, variables: HeadDetectorsVariables, layers: list[int]) -> _Setting:
    """Return what there is to draw from, and the layers that can be judged. Raises SpecError where a sequence does not fit."""
    from mlinterp.readouts.attention_patterns import sliding_windows
    from mlinterp.subjects.huggingface import HuggingFaceSubject
    from mlinterp.subjects.text import affixes

    prefix: list[int] = []
    vocab, room = subject.vocab, subject.examples("train", 1).inputs.shape[1]
    if isinstance(subject, HuggingFaceSubject):
        prefix = affixes(subject.texts.tokenizer)[0]
        vocab = min(vocab, subject.texts.tokenizer.get_vocab_size())
        room = getattr(subject.architecture.get_text_config(), "max_position_embeddings", None) or room
    tokens = [token for token in range(vocab) if token not in subject.special_tokens]
    most = min(len(tokens), (room - len(prefix)) // variables.repeats)
    length = variables.length or min(LENGTH, most)
    if length > most or length < 2:
        why = f"{length} different tokens, {variables.repeats} times"
        allowed = f"'{subject.name}' has {len(tokens)} tokens and reads {room} positions: at most {most}"
        raise SpecError(why, field="variables.length", allowed=allowed)
    whole, windows = len(prefix) + length * variables.repeats, sliding_windows(subject)
    narrow = {layer: window for layer, window in windows.items() if window < whole}
    kept = [layer for layer in layers if layer not in narrow]
    left_out = [f"blocks.{layer} (a sliding window of {window} tokens)" for layer, window in narrow.items()]
    if not kept:
        why = f"every layer of '{subject.name}' attends through a sliding window shorter than {whole} tokens"
        raise SpecError(why, field="variables.length", allowed=f"at most {(max(narrow.values()) - len(prefix)) // variables.repeats}")
    return _Setting(tokens, prefix, length, kept, left_out)


_EXAMPLE: dict[str, Any] = {
    "subject": "NAME",
    "inputs": {"subject": "latest"},
    "variables": {"n_sequences": 64, "length": 50, "repeats": 2, "threshold": 0.4},
}

EXPERIMENT = Experiment(
    type="head_detectors",
    summary="Find induction, previous-token and duplicate-token heads by their attention on random tokens that repeat.",
    Variables=HeadDetectorsVariables,
    run=run,
    inputs={"subject": False},
    example=_EXAMPLE,
    headlines=("induction/largest", "previous_token/largest", "duplicate_token/largest"),
    ranking=("detected", "score"),
)
