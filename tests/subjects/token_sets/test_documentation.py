"""The page about token-set subjects is true: its package and its project make a subject."""

from __future__ import annotations

import re
from pathlib import Path

from mlinterp.project import find_project

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "token_set_subjects.md").read_text()


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)
    assert found is not None
    return found[1]


def test_the_package_and_the_project_on_the_page_make_a_subject(tmp_path):
    (tmp_path / "package.py").write_text(block("python"))
    (tmp_path / "project.yaml").write_text(block("yaml"))
    subject = find_project(tmp_path).load_subject("shopper")
    assert subject.sites == ("embed", "block_0", "block_1", "pooled")
    assert subject.activations(subject.contexts("test"), "pooled").shape == (200, 64)
    assert subject.objective({}, 0).evaluate()["ce_loss"] > 0
    assert 0 < subject.package.constraint("dry_corner").check(subject.contexts("test")).sum() < 200
