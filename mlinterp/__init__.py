"""mlinterp: mechanistic interpretability as a tracked, reproducible MLOps service.

Every interpretability question is a spec; every spec is an MLflow run; every run is evidence for a hypothesis.

    import mlinterp

    summary = mlinterp.run_spec("projects/trm_sudoku/study.yaml")
    sae = mlinterp.load_sae("models:/trm_sudoku.trm4.z_L@candidate")
    codes = sae.encode(activations)
    found = mlinterp.activation_patching("gpt", pairs="pairs.jsonl")  # every experiment type is a function of its name
    found = mlinterp.workflows.behavior_localization("gpt", "pairs.jsonl")

Importing this package imports nothing heavy; each name below is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlinterp import workflows
    from mlinterp.analysis import AnalysisResult
    from mlinterp.api import (
        add_hypothesis,
        close_hypothesis,
        compare_runs,
        compare_saes,
        evaluate_sae,
        export_state,
        generate_report,
        get_hypothesis,
        get_sae,
        import_state,
        list_hypotheses,
        list_saes,
        load_sae,
        load_subject,
        load_trace,
        promote_sae,
        register_sae,
        reinstate_sae,
        reproduce_run,
        restore_run,
        resume_run,
        retire_sae,
        retract_run,
        rollback_sae,
        run_spec,
        save_report,
        supersede_hypothesis,
        validate_spec,
        verify_run,
    )
    from mlinterp.patching.metrics import MetricRegistry
    from mlinterp.result import ExperimentResult
    from mlinterp.spec import Spec
    from mlinterp.token_set_api import ExperimentSpec, ExperimentType, get_runner_for_type, list_available_runners, load_context

__version__ = "0.1.0"

__all__ = [
    "AnalysisResult",
    "ExperimentResult",
    "ExperimentSpec",
    "ExperimentType",
    "MetricRegistry",
    "Spec",
    "add_hypothesis",
    "close_hypothesis",
    "compare_runs",
    "compare_saes",
    "evaluate_sae",
    "export_state",
    "generate_report",
    "get_hypothesis",
    "get_runner_for_type",
    "get_sae",
    "import_state",
    "list_available_runners",
    "list_hypotheses",
    "list_saes",
    "load_context",
    "load_sae",
    "load_subject",
    "load_trace",
    "promote_sae",
    "register_sae",
    "reinstate_sae",
    "reproduce_run",
    "restore_run",
    "resume_run",
    "retire_sae",
    "retract_run",
    "rollback_sae",
    "run_spec",
    "save_report",
    "supersede_hypothesis",
    "validate_spec",
    "verify_run",
    "workflows",
]

_HOME = {
    "AnalysisResult": "mlinterp.analysis",
    "ExperimentResult": "mlinterp.result",
    "MetricRegistry": "mlinterp.patching.metrics",
    "Spec": "mlinterp.spec",
    **dict.fromkeys(
        ("ExperimentSpec", "ExperimentType", "get_runner_for_type", "list_available_runners", "load_context"), "mlinterp.token_set_api"
    ),
}


def __getattr__(name: str) -> Any:
    if name == "workflows":
        return import_module("mlinterp.workflows")
    if name in __all__:
        return getattr(import_module(_HOME.get(name, "mlinterp.api")), name)
    if not name.startswith("_") and find_spec(f"mlinterp.{name}") is None and name in import_module("mlinterp.experiments.catalog").names():
        return import_module("mlinterp.type_functions").type_function(name)
    raise AttributeError(f"module 'mlinterp' has no attribute '{name}'")


def __dir__() -> list[str]:
    own = (name for name in globals() if name.startswith("__"))
    return sorted({*own, *__all__, *import_module("mlinterp.experiments.catalog").experiments()})
