"""The token-set experiment types on the domain of `token_sets`: what each is asked there, and a domain that lacks a family."""

from __future__ import annotations

from typing import Any

from mlinterp.experiments import catalog
from mlinterp.experiments.base import Experiment

SUBJECT, LATENT = "planted", 0
"""The neuron that counts tokens of power."""
SILENT = 4
"""A neuron that is silent whatever comes."""
SWEEP: dict[str, Any] = {"type": "family_1d_sweep", "variables": {"family": "power"}}
VARIABLES: dict[str, dict[str, Any]] = {
    "binary_presence_effect": {"min_samples": 20},
    "conditional_interactions": {"modulator_token": "shield"},
    "family_1d_sweep": {"family": "power"},
    "family_2d_heatmap": {"family_x": "power", "family_y": "speed"},
    "kit_sweep": {"top_k": 15},
    "shuffle_null": {"object": SWEEP, "n_shuffles": 50},
    "split_half": {"object": SWEEP},
    "token_influence_sweep": {"min_samples": 10, "high_percentile": 0.9},
    "within_family_interference": {"family": "power"},
}
"""Variables that a type needs here; any other type is asked with its defaults."""

BARE = """\
from token_sets import Fighters, Planted


class Bare(Fighters):
    def contexts(self, split):
        table = super().contexts(split)
        incidence = table.incidence.copy()
        incidence[:, self.vocabulary.span("speed")] = False
        return table.with_incidence(incidence)


def build(options, root):
    return Bare(options)


def network(package):
    return Planted(package)
"""
"""A package file of fighters without speed."""
BARE_SUBJECT = {
    "kind": "token_set",
    "package": "bare.py:build",
    "network": {"factory": "bare.py:network"},
    "sites": {"pooled": "trunk"},
}


def types() -> list[Experiment]:
    """Return every token-set experiment type that there is."""
    return [experiment for experiment in catalog.experiments().values() if experiment.check_domain is not None]


def asked(experiment: Experiment, mode: str | None = None, **changes: Any) -> dict[str, Any]:
    """Return a spec of a type as plain data, in one of its modes; `changes` are fields of the spec, `variables` added to the type's."""
    variables = {**VARIABLES.get(experiment.type, {}), **changes.pop("variables", {})}
    if mode is not None and "mode" in experiment.Variables.model_fields:
        variables["mode"] = mode
    if mode is not None and "object" in variables:
        variables["object"] = {**SWEEP, "variables": {**SWEEP["variables"], "mode": mode}}
    return {"type": experiment.type, "subject": SUBJECT, "feature_id": LATENT, "variables": variables, **changes}
