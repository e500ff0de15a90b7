"""Token-set experiments from Python, by the names that mechinterp-runner gave them.

    from mlinterp import ExperimentSpec, get_runner_for_type, load_context

    spec = ExperimentSpec(type="family_1d_sweep", feature_id=18712, model_type="ultra", variables={"family": "special_charge_up"})
    context = load_context(spec.model_type)
    result = get_runner_for_type(spec.type).run(spec, context)
    print(result.get_summary(), result.aggregates.mean_delta)

Such a run is an MLflow run like any other, and its result that of the same spec in a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING

from mlinterp.errors import ExperimentError, SpecError, unknown
from mlinterp.experiments import catalog
from mlinterp.experiments.base import Context, Experiment, Variables
from mlinterp.project import Project, choose_project
from mlinterp.result import ExperimentResult
from mlinterp.spec import Spec

if TYPE_CHECKING:
    import numpy as np

    from mlinterp.subjects.token_sets.package import DataPackage
    from mlinterp.subjects.token_sets.table import ContextTable
    from mlinterp.subjects.token_sets.vocabulary import Family
    from mlinterp.token_sets.feature import LatentReader


class ExperimentType(StrEnum):
    """The experiment types on token-set subjects."""

    FAMILY_1D_SWEEP = "family_1d_sweep"
    FAMILY_2D_HEATMAP = "family_2d_heatmap"
    FREQUENT_ITEMSETS = "frequent_itemsets"
    MINIMAL_CORES = "minimal_cores"
    PAIRWISE_INTERACTIONS = "pairwise_interactions"
    CONDITIONAL_INTERACTIONS = "conditional_interactions"
    WITHIN_FAMILY_INTERFERENCE = "within_family_interference"
    SPLIT_HALF = "split_half"
    SHUFFLE_NULL = "shuffle_null"
    WEAPON_SWEEP = "weapon_sweep"
    WEAPON_GROUP_ANALYSIS = "weapon_group_analysis"
    KIT_SWEEP = "kit_sweep"
    TOKEN_INFLUENCE_SWEEP = "token_influence_sweep"  # noqa: S105 - no password
    BINARY_PRESENCE_EFFECT = "binary_presence_effect"
    CORE_COVERAGE_ANALYSIS = "core_coverage_analysis"
    DECODER_OUTPUT_ANALYSIS = "decoder_output_analysis"


class ExperimentSpec(Spec):
    """A Spec with what programs ask of one."""

    @property
    def model_type(self) -> str | None:
        """The subject, as specs of mechinterp-runner call it."""
        return self.subject

    def to_filename(self) -> str:
        """Return a file name for the spec; without an id it is named by the beginning of its digest."""
        return f"{self.id or self.sha256()[:12]}__f{self.feature_id}__{self.type.replace('_', '-')}.json"

    def get_typed_variables(self) -> Variables:
        """Return its variables in its type's own model. Raises SpecError for the first thing wrong."""
        return catalog.typed_variables(self)


@dataclass(frozen=True)
class TokenSetContext:
    """A token-set subject with its domain, and its latents on any context.

    Attributes:
        project: where it is declared, and where its runs go.
        model_type: its name there.
        package: its domain.
    """

    project: Project
    model_type: str
    package: DataPackage

    @property
    def families(self) -> tuple[Family, ...]:
        """The families of tokens."""
        return self.package.vocabulary.families

    @property
    def groups(self) -> Mapping[str, Mapping[str, str]]:
        """Key of each group to its attributes."""
        return self.package.groups

    def token_to_id(self, token: str) -> int:
        """Return a token's number. Raises SpecError with the nearest token."""
        return self.package.vocabulary.number(token, "token")

    def id_to_token(self, number: int) -> str:
        """Return the token of a number. Raises SpecError where there is none."""
        tokens = self.package.vocabulary.tokens
        if not 0 <= number < len(tokens):
            raise SpecError(f"there is no token number {number}", field="token", allowed=f"0 to {len(tokens) - 1}")
        return tokens[number]

    def get_feature_ids(self) -> range:
        """Return the numbers of the latents: of the SAE that specs on the subject take, else of the neurons at its readout."""
        return range(self._reader.n_latents)

    def feature_activation(
        self, contexts: ContextTable | Iterable[tuple[Iterable[str], str | None]], feature_id: int, pre: bool = False
    ) -> np.ndarray:
        """Return a latent on contexts by forward passes, one for each distinct one.

        Args:
            contexts: a table, or pairs of tokens and group (None for none).
            feature_id: the latent.
            pre: its pre-activation instead of its activation.

        Returns:
            One number a context, float64 `[n]`.
        """
        from mlinterp.subjects.token_sets.table import ContextTable

        if not isinstance(contexts, ContextTable):
            contexts = ContextTable.of(self.package.vocabulary, self.package.group_keys, contexts)
        return self._reader.feature_activation(contexts, feature_id, pre)

    @cached_property
    def _reader(self) -> LatentReader:
        from mlinterp import run
        from mlinterp.execution import inputs
        from mlinterp.execution.session import Place, Session
        from mlinterp.progress import Silent
        from mlinterp.token_sets.opening import reader_of

        spec = inputs.with_defaults(Spec(type=ExperimentType.FAMILY_1D_SWEEP, subject=self.model_type), self.project)
        taken = inputs.resolve(spec, Session.open(self.project, Silent()), Place())
        subject = run.load_subject(spec, self.project, taken)
        return reader_of(Context(spec, None, self.project.root, lambda: subject, taken))


@dataclass(frozen=True)
class Runner:
    """Runs specs of one experiment type."""

    experiment: Experiment

    @property
    def name(self) -> str:
        """The type's name."""
        return self.experiment.type

    @property
    def handles_types(self) -> list[str]:
        """The type under all its names."""
        return [self.experiment.type, *self.experiment.aliases]

    def run(self, spec: Spec, context: TokenSetContext) -> ExperimentResult:
        """Run a spec as an MLflow run of the context's project; its subject is the context's where it names none.

        An experiment that cannot answer on what it is given has FAILED in MLflow, and returns a result without success that says why.

        Raises:
            SpecError: something declared is wrong, or the spec is of another type or subject; nothing was run.
            MlinterpError: the run has FAILED for a reason outside the question.
        """
        from mlinterp import run

        if spec.type not in self.handles_types:
            raise SpecError(f"is '{spec.type}'", field="type", allowed=f"this runner runs {self.name}")
        if spec.subject not in (None, context.model_type):
            raise SpecError(f"is '{spec.subject}'", field="subject", allowed=f"the context is of '{context.model_type}'")
        asked = spec.model_copy(update={"subject": context.model_type})
        try:
            result = run.run(asked, project=context.project).result
        except ExperimentError as error:
            return _failed(asked, str(error))
        assert result is not None
        return result


def get_runner_for_type(experiment_type: str) -> Runner:
    """Return what runs a token-set experiment type, given its name or alias. Raises SpecError with the nearest name."""
    known = {name: experiment for experiment in _types() for name in (experiment.type, *experiment.aliases)}
    if experiment_type not in known:
        raise unknown("type", str(experiment_type), known, what="token-set experiment type")
    return Runner(known[experiment_type])


def list_available_runners() -> dict[str, list[str]]:
    """Return each token-set experiment type with all its names."""
    return {experiment.type: Runner(experiment).handles_types for experiment in _types()}


def load_context(name: str) -> TokenSetContext:
    """Return a token-set subject with its domain.

    Args:
        name: the subject's in the project around the working folder, or `PROJECT/SUBJECT`.

    Raises SpecError, with the nearest name, where there is no such project or subject or it is of another kind.
    """
    where, _, subject = name.rpartition("/")
    project = choose_project(where or None)
    return TokenSetContext(project, subject, project.data_package(subject))


def _types() -> list[Experiment]:
    return [experiment for experiment in catalog.experiments().values() if experiment.check_domain is not None]


def _failed(spec: Spec, why: str) -> ExperimentResult:
    return ExperimentResult(
        success=False,
        error_message=why,
        spec_id=spec.id or "",
        spec_sha256=spec.sha256(),
        experiment_type=spec.type,
        subject=spec.subject,
        feature_id=spec.feature_id,
        variables=dict(spec.variables),
        dataset_slice=spec.dataset_slice.model_dump(mode="json"),
        hypothesis=spec.hypothesis,
        seed=spec.seed,
    )
