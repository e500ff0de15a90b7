"""The experiment types there are: every module of this package that defines `EXPERIMENT`.

A module named after another, such as `sae_fit_data`, is a part of that one: it declares no type and may import torch.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from pydantic import ValidationError

import mlinterp.experiments as package
from mlinterp.errors import unknown
from mlinterp.experiments.base import Experiment, Variables
from mlinterp.refusals import from_validation
from mlinterp.spec import Spec


@cache
def experiments() -> dict[str, Experiment]:
    """Return every experiment type by its name, in alphabetical order."""
    found = {}
    names = [module.name for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    for name in names:
        if any(name.startswith(f"{other}_") for other in names):
            continue
        experiment = getattr(importlib.import_module(name), "EXPERIMENT", None)
        if experiment is not None:
            found[experiment.type] = experiment
    return dict(sorted(found.items()))


def names() -> set[str]:
    """Return every name of every experiment type, aliases included."""
    return {name for experiment in experiments().values() for name in (experiment.type, *experiment.aliases)}


def find(name: str) -> Experiment:
    """Return the experiment type of that name or alias. Raises SpecError with the nearest name."""
    for experiment in experiments().values():
        if name == experiment.type or name in experiment.aliases:
            return experiment
    raise unknown("type", name, [*experiments(), "study"], what="experiment type")


def typed_variables(spec: Spec) -> Variables:
    """Return a spec's variables in its type's own model. Raises SpecError for the first thing wrong."""
    experiment = find(spec.type)
    try:
        return experiment.Variables.model_validate(spec.variables)
    except ValidationError as error:
        raise from_validation(error, prefix="variables", model=experiment.Variables) from None
