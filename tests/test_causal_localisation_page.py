"""The page on causal localisation is true: its spec is valid, its types, metrics and columns exist."""

import re
from pathlib import Path

import pytest
import torch
import yaml

from mlinterp.experiments.catalog import experiments, find, typed_variables
from mlinterp.patching.metrics import BUILT_IN, MetricRegistry
from mlinterp.spec import Spec

DOCS = Path(__file__).resolve().parent.parent / "docs"
TEXT = (DOCS / "causal_localisation.md").read_text()


def section(title):
    return TEXT.split(f"## {title}\n")[1].split("\n## ")[0]


def first_cells(title):
    return [re.findall(r"`(\w+)`", line.split("|")[1]) for line in section(title).splitlines() if line.startswith("| `")]


@pytest.mark.parametrize("block", re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.DOTALL))
def test_its_specs_are_valid(block):
    spec = Spec.model_validate(yaml.safe_load(block))
    find(spec.type).check(spec, typed_variables(spec), set(spec.inputs))


def test_every_type_that_it_recommends_exists():
    named = {name for line in section("Which type answers which question").splitlines() for name in re.findall(r"`(\w+)`", line)}
    assert {"activation_patching", "head_detectors", "circuit_discovery"} <= named
    assert {name for name in named if name.endswith(("_patching", "_discovery", "_circuit", "_attribution", "_lens", "_detectors"))} <= set(
        experiments()
    )


def test_it_has_every_metric_with_what_it_needs():
    rows = {
        line.split("|")[1].strip(" `"): line.split("|")[-2].strip() for line in section("What is measured").splitlines() if "| `" in line
    }
    assert rows == {metric.name: ", ".join(metric.needs) for metric in BUILT_IN}


def test_its_metric_of_a_project_is_one(tmp_path):
    code = re.search(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)[1]
    (tmp_path / "metrics.py").write_text(code)
    metric = MetricRegistry(tmp_path).get("metrics.py:margin")
    assert (metric.description, metric.needs) == ("Logit of the answer less the largest other.", ("answer",))
    logits, answer = torch.tensor([[1.0, 4.0, 2.5]]), torch.tensor([1])
    assert metric.measure(logits, logits, answer, answer).tolist() == [1.5]


def test_its_links_lead_somewhere():
    for link in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (DOCS / link).exists(), link
