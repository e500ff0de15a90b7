import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent


def test_conda_yaml_holds_the_pins_of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    conda = yaml.safe_load((ROOT / "conda.yaml").read_text())
    pip = next(entry["pip"] for entry in conda["dependencies"] if isinstance(entry, dict))
    assert sorted(pip) == sorted(project["dependencies"])


def test_the_compromised_lightning_releases_are_excluded():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pin = next(line for line in project["dependencies"] if line.startswith("lightning"))
    assert "!=2.6.2" in pin
    assert "!=2.6.3" in pin
