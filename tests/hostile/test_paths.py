"""Declared paths stay below their root, whatever they are made of."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlinterp.errors import UnsafeError
from mlinterp.io.paths import resolve_inside, safe_name

ESCAPES = [
    "",
    "..",
    "../x",
    "../../etc/passwd",
    "a/../../x",
    "a/..",
    "./../x",
    "a/./../../x",
    "/etc/passwd",
    "//etc/passwd",
    "///etc/passwd",
    "/",
    "..\\x",
    "..\\..\\windows\\win.ini",
    "a\\b",
    "\\\\server\\share",
    "\\\\?\\C:\\x",
    "C:\\x",
    "C:/x",
    "c:x",
    "%2e%2e/x",
    "%2e%2e%2fx",
    "%252e%252e%252fx",
    "%25252e%25252e/x",
    "..%2fx",
    "..%5cx",
    "..%c0%af",
    "a%00b",
    "~",
    "~/x",
    "~root/x",
    "a/~",
    "file:///etc/passwd",
    "http://host/x",
    "https://host/x",
    "s3://bucket/x",
    "runs:/abc/x",
    "models:/x@y",
    "dbfs:/x",
    "data:text/plain,x",
    "javascript:alert(1)",
    "a\x00b",
    "\x00",
    "a\nb",
    "a\rb",
    "a\tb",
    "a\x1b[31m",
    "a\u202eb",
    "a\u200bb",
    "a\u2028b",
    "a\x7fb",
    "a\x85b",
    "a\ud800b",
    "a" * 5000,
    "a/" * 3000 + "b",
    "link_out",
    "link_out/secret",
    "link_file",
    "link_abs/secret",
    "inner/link_up/secret",
    "inner/link_up/../secret",
    "chain",
    "loop",
    "loop/x",
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_text("canary")
    root = tmp_path / "root"
    (root / "inner" / "deep").mkdir(parents=True)
    (root / "inner" / "file.txt").write_text("inside")
    (root / "link_out").symlink_to("..")
    (root / "link_file").symlink_to("../secret")
    (root / "link_abs").symlink_to(tmp_path)
    (root / "inner" / "link_up").symlink_to("../..")
    (root / "chain").symlink_to("link_file")
    (root / "loop").symlink_to("loop")
    (root / "link_in").symlink_to("inner/file.txt")
    return root


@pytest.mark.parametrize("path", ESCAPES, ids=[ascii(path)[:30] for path in ESCAPES])
def test_paths_that_leave_the_root_are_refused(root: Path, path: str) -> None:
    with pytest.raises(UnsafeError) as caught:
        resolve_inside(root, path)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("path", ["inner/file.txt", "inner//file.txt", "./inner/file.txt", "link_in"])
def test_paths_inside_are_resolved(root: Path, path: str) -> None:
    found = resolve_inside(root, path)
    assert found == root / "inner" / "file.txt"
    assert found.read_text() == "inside"


@pytest.mark.parametrize("path", ["new.txt", "new/deeper/file.bin", "a..b", "...", "inner/.hidden", "é/日本", "a b", "a=b,c", "-rf"])
def test_paths_that_do_not_exist_yet_are_allowed(root: Path, path: str) -> None:
    assert resolve_inside(root, path) == root / path


def test_the_root_itself_may_be_a_link(root: Path) -> None:
    link = root.parent / "link_to_root"
    link.symlink_to(root)
    assert resolve_inside(link, "inner/file.txt") == root / "inner" / "file.txt"


@given(st.text(st.sampled_from("./\\~%:ab\x00 linkoutsecr_"), max_size=30))
def test_no_text_leads_out(tmp_path_factory: pytest.TempPathFactory, path: str) -> None:
    root = tmp_path_factory.getbasetemp().resolve() / "fuzz"
    root.mkdir(exist_ok=True)
    if not (root / "link_out").is_symlink():
        (root / "link_out").symlink_to("..")
    try:
        found = resolve_inside(root, path)
    except UnsafeError:
        return
    assert found.is_relative_to(root)


@pytest.mark.parametrize("name", ["a", "trace.jsonl", "sae-4_k.safetensors", "x" * 64, ".hidden", "a..b"])
def test_safe_names_are_returned(name: str) -> None:
    assert safe_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "...", "a/b", "A", "a b", "é", "x" * 65, "a\n", "\x00", "a\\b", "~", "%41", "a:b", "＿"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(UnsafeError):
        safe_name(name)
