"""Fits of SAEs killed in the middle, from a stored trace and from a stream: resuming leads to the bits of the undisturbed fit."""

from __future__ import annotations

import random
from typing import Any

import pytest
import workbench
from lab import Lab

SMALL = {"site": "z_L", "k": 4, "d_sae": 32, "steps": 120, "batch_size": 64, "n_top_contexts": 1, "checkpoint_every": 20}
QUICK = {**SMALL, "evaluate": {"substitution": False}, "controls": False}
STREAM = {"split": "train", "n_examples": 120, "batch_size": 4, "buffer_rows": 4000, "sample_rows": 4000}
SPARSITY: dict[str, dict[str, Any]] = {
    "relu-l1": {"k": None, "l1": 1.0},
    "gated": {"k": None, "l1": 1.0},
    "topk": {},
    "batchtopk": {},
    "matryoshka": {"widths": [8, 32]},
    "jumprelu": {"k": None, "target_l0": 4.0},
}
SEVERAL = {"site": None, "sites": ["z_L", "z_H"], "seeds": [0, 1]}
KINDS = {
    "transcoder": {"site": "z_L", "target_site": "z_H", "latent_steps": [-1]},
    "skip-transcoder": {"site": "z_L", "target_site": "z_H", "latent_steps": [-1]},
    "crosscoder": {"site": None, "sites": ["z_L", "z_H"], "latent_steps": [-1]},
}


def stage(lab: Lab, name: str, source: str, changes: dict[str, Any]) -> str:
    """Write a spec of the lab's project that fits SAEs, and return what it is called there."""
    inputs = {role: f"run:{lab.step_runs[role]}" for role in ("subject", "trace")[: 2 if source == "trace" else 1]}
    variables = {**QUICK, **changes, **({"stream": STREAM} if source == "stream" else {})}
    spec = {"type": "sae_fit", "subject": "trm", "inputs": inputs, "variables": variables}
    lab.specs[f"{name}-{source}"] = workbench.write(lab.study.parent / f"{name}-{source}.yaml", spec)
    return f"{name}-{source}"


def killed(lab: Lab, name: str, moments: list[list[float]]) -> None:
    """Kill a stage, and its resumptions, at moments that are shares of its duration, and compare what comes of it each time."""
    for row in moments:
        run_id, _ = lab.disturb(name, row)
        lab.compare(name, run_id)


def test_a_killed_fit_on_a_stored_trace_goes_on_to_the_same_bits(lab):
    killed(lab, stage(lab, "batchtopk", "trace", {"activation": "batchtopk"}), [[0.5]])


@pytest.mark.slow
def test_a_killed_stream_of_several_saes_goes_on_to_the_same_bits(lab):
    killed(lab, stage(lab, "several", "stream", SEVERAL), [[0.45], [0.8]])


@pytest.mark.slow
@pytest.mark.parametrize("source", ["trace", "stream"])
@pytest.mark.parametrize("activation", SPARSITY)
def test_every_architecture_goes_on_wherever_it_is_killed(lab, activation, source):
    draw = random.Random(f"{activation} {source}")
    name = stage(lab, activation, source, {"activation": activation, **SPARSITY[activation]})
    killed(lab, name, [[0.2 + 0.6 * draw.random()] for _ in range(3)] + [[0.3 + 0.4 * draw.random(), 0.3 * draw.random()]])
    lab.tell(name)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["trace", "stream"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_goes_on_wherever_it_is_killed(lab, kind, source):
    draw = random.Random(f"{kind} {source}")
    name = stage(lab, kind, source, {"kind": kind, **KINDS[kind]})
    killed(lab, name, [[0.2 + 0.6 * draw.random()] for _ in range(2)])
    lab.tell(name)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["trace", "stream"])
def test_several_saes_that_die_between_any_two_durable_acts_go_on(lab, source):
    name = stage(lab, "several", source, {**SEVERAL, "steps": 40})
    lab.observe(name)
    acts = lab.server.do("acts", lab.specs[name])
    for number in range(2, acts + 1, 5):
        known = {run.info.run_id for run in lab.runs()}
        job = lab.server.start("run", lab.specs[name], die_at=number)
        assert job.code() in (-9, 0), job.said()
        lab.settle()
        lab.compare(name, lab.finish(name, known))
    lab.tell(name)
