"""Every metric against its formula, worked by hand, and the registry."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import mlinterp
from mlinterp.errors import ExperimentError, SpecError
from mlinterp.patching.effects import gaps_of, patch_effect
from mlinterp.patching.metrics import BUILT_IN, MetricRegistry

CLEAN = torch.tensor([[math.log(4.0), 0.0, 0.0]])
RUN = torch.tensor([[0.0, math.log(2.0), 0.0]])
ANSWER, WRONG = torch.tensor([0]), torch.tensor([1])
BY_HAND = {
    "logit_diff": -math.log(2.0),
    "prob": 1 / 4,
    "ce_diff": math.log(1 / 4),
    "kl": -(2 / 3 * math.log((2 / 3) / (1 / 4)) + 1 / 6 * math.log((1 / 6) / (1 / 2)) + 1 / 6 * math.log((1 / 6) / (1 / 4))),
    "l2": -math.hypot(math.log(4.0), math.log(2.0)),
    "cosine": 0.0,
}


@pytest.mark.parametrize("name", BY_HAND)
def test_each_metric_is_its_formula(name):
    measured = MetricRegistry().get(name).measure(RUN, CLEAN, ANSWER, WRONG)
    assert measured.shape == (1,)
    assert float(measured) == pytest.approx(BY_HAND[name], abs=1e-6)


def test_the_clean_run_is_the_best_there_is():
    ideal = {"kl": 0.0, "l2": 0.0, "cosine": 1.0}
    for name, best in ideal.items():
        assert float(MetricRegistry().get(name).measure(CLEAN, CLEAN, ANSWER, WRONG)) == pytest.approx(best, abs=1e-6)


def test_a_patch_effect_is_zero_for_the_base_run_one_for_the_source_run_and_the_formulas_of_l2_and_cosine_in_between():
    base, patched = RUN, torch.tensor([[0.5, 0.5, 0.0]])
    for metric in BUILT_IN:
        m = [float(metric.measure(x, CLEAN, ANSWER, WRONG)) for x in (base, CLEAN, patched)]
        assert patch_effect(np.array([0.0]), np.array([m[1] - m[0]])) == 0.0
        assert patch_effect(np.array([m[1] - m[0]]), np.array([m[1] - m[0]])) == 1.0
        effect = patch_effect(np.array([m[2] - m[0]]), np.array([m[1] - m[0]]))
        if metric.name == "l2":
            assert effect == pytest.approx(1 - float((CLEAN - patched).norm() / (CLEAN - base).norm()), abs=1e-6)
        if metric.name == "cosine":
            cosine = torch.nn.functional.cosine_similarity
            expected = (cosine(CLEAN, patched) - cosine(CLEAN, base)) / (1 - cosine(CLEAN, base))
            assert effect == pytest.approx(float(expected), abs=1e-6)


def test_nothing_over_nothing_is_undefined_and_never_zero():
    assert patch_effect(np.array([0.0, 0.0]), np.array([0.0, 0.0])) is None
    assert patch_effect(np.array([np.nan]), np.array([1.0])) is None
    assert math.isnan(float(MetricRegistry().get("cosine").measure(torch.zeros(1, 3), CLEAN, ANSWER, WRONG)))


def test_runs_that_do_not_differ_are_refused_since_nothing_can_be_restored():
    with pytest.raises(ExperimentError, match=r"the same mean kl \(-0\.5\): there is nothing that a patch could carry"):
        gaps_of(np.array([-0.5]), np.array([-0.5]), "kl")
    with pytest.raises(ExperimentError, match="cosine is undefined for a prompt that nobody patched"):
        gaps_of(np.array([np.nan]), np.array([1.0]), "cosine")


def test_a_metric_that_needs_no_token_takes_pairs_without():
    for metric in BUILT_IN:
        missing = {"answer": "third", "wrong": None}
        if "answer" in metric.needs:
            with pytest.raises(SpecError, match=f"{metric.name} needs the answer token, and pair 'third' has none"):
                metric.require(missing)
        else:
            metric.require(missing)


def test_the_registry_registers_finds_and_lists():
    registry = mlinterp.MetricRegistry()
    added = registry.register("first", lambda x, clean, answer, wrong: x[:, 0], "the first logit")
    assert registry.get("first") is added
    assert [each["name"] for each in registry.list()] == ["logit_diff", "prob", "ce_diff", "kl", "l2", "cosine", "first"]
    assert registry.list()[-1] == {"name": "first", "description": "the first logit", "needs": "", "version": "1"}
    assert "first" not in [each["name"] for each in mlinterp.MetricRegistry().list()]
    with pytest.raises(SpecError, match="there is a metric 'kl' already; another name"):
        registry.register("kl", added.measure)
    with pytest.raises(SpecError, match="'a b' is no name of a metric"):
        registry.register("a b", added.measure)
    with pytest.raises(SpecError, match=r"unknown metric 'logit_dif'.*did you mean 'logit_diff'"):
        registry.get("logit_dif")


def test_a_project_adds_its_own_as_a_function_of_a_file(tmp_path: Path):
    (tmp_path / "mine.py").write_text(
        '''def odds(x, clean, answer, wrong):
    """Log odds of the answer."""
    p = x.softmax(dim=1).gather(1, answer[:, None])[:, 0]
    return (p / (1 - p)).log()


odds.needs = ("answer",)
odds.version = 3


def wide(x, clean, answer, wrong):
    return x


def broken(x, clean, answer, wrong):
    return x[99]


def endless(x, clean, answer, wrong):
    return 1 / (x[:, 0] - x[:, 0])


def strange(x, clean, answer, wrong):
    return x[:, 0]


strange.needs = ("anwser",)
'''
    )
    registry = MetricRegistry(tmp_path)
    metric = registry.get("mine.py:odds")
    assert (metric.needs, metric.version, metric.description) == (("answer",), 3, "Log odds of the answer.")
    assert float(metric.measure(CLEAN, CLEAN, ANSWER, WRONG)) == pytest.approx(math.log(2.0), abs=1e-6)
    for name, message in (
        ("mine.py:wide", r"mine\.py:wide returned \[1, 3\]; a tensor \[1\]"),
        ("mine.py:broken", r"mine\.py:broken raised IndexError at mine\.py:16"),
        ("mine.py:endless", r"mine\.py:endless returned NaN or infinity for 1 of 1 runs; a finite number for each"),
    ):
        with pytest.raises(SpecError, match=message):
            registry.get(name).measure(CLEAN, CLEAN, ANSWER, WRONG)
    with pytest.raises(SpecError, match=r"unknown token in mine.py:strange.needs 'anwser'.*did you mean 'answer'"):
        registry.get("mine.py:strange")
    with pytest.raises(SpecError, match=r"unknown function of mine\.py 'od'"):
        registry.get("mine.py:od")
    with pytest.raises(SpecError, match="there is no project here"):
        MetricRegistry().get("mine.py:odds")


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ("own.needs = 'answer'", r"mine\.py:own\.needs is 'answer'; a tuple of tokens: answer, wrong"),
        ("own.version = 'second'", r"mine\.py:own\.version is 'second'; a whole number from 1"),
        ("own.version = 0", r"mine\.py:own\.version is 0"),
        ("own = 5", r"unknown function of mine\.py 'own'"),
        ("own = (", r"mine\.py:\d+: .*never closed"),
    ],
)
def test_a_metric_of_a_project_that_says_nonsense_of_itself_is_refused_on_one_line(tmp_path: Path, about: str, message: str):
    (tmp_path / "mine.py").write_text(f'def own(x, clean, answer, wrong):\n    """ """\n    return x[:, 0]\n\n\n{about}\n')
    with pytest.raises(SpecError, match=message) as refused:
        MetricRegistry(tmp_path).get("mine.py:own")
    assert "\n" not in str(refused.value)
    (tmp_path / "mine.py").write_text('def own(x, clean, answer, wrong):\n    """ """\n    return x[:, 0]\n')
    assert MetricRegistry(tmp_path).get("mine.py:own").description == "mine.py:own"


def test_metrics_are_known_without_torch():
    program = "import sys, mlinterp; mlinterp.MetricRegistry().list(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
