"""Reading declared files: three formats, one meaning, line numbers, and every trap refused with its place."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mlinterp.errors import SpecError
from mlinterp.io.digests import sha256_bytes
from mlinterp.io.specfile import MAX_BYTES, Document, parse_value, read_document

SPEC = {"type": "trace", "subject": "trm4", "variables": {"k": 4, "lr": 0.001, "sites": ["z_L", "z_H"], "deep": {"on": True}}}


def write(tmp_path: Path, name: str, text: str | bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refusal(tmp_path: Path, name: str, text: str | bytes) -> SpecError:
    with pytest.raises(SpecError) as caught:
        read_document(write(tmp_path, name, text))
    assert caught.value.file == str(tmp_path / name)
    return caught.value


YAML_TEXT = """\
# a comment
type: trace
subject: trm4
variables:
  k: 4
  lr: 1e-3
  sites:
    - z_L
    - z_H
  deep: {on: true}
"""
JSON_TEXT = """\
{
 "type": "trace",
 "subject": "trm4",
 "variables": {
  "k": 4, "lr": 1e-3,
  "sites": ["z_L",
 "z_H"],
  "deep": {"on": true}
 }
}
"""
TOML_TEXT = """\
type = "trace"
subject = "trm4"
[variables]
k = 4
lr = 1e-3
sites = ["z_L", "z_H"]
deep.on = true
"""


@pytest.mark.parametrize(("name", "text"), [("a.yaml", YAML_TEXT), ("a.yml", YAML_TEXT), ("a.json", JSON_TEXT), ("a.toml", TOML_TEXT)])
def test_the_three_formats_mean_the_same(tmp_path: Path, name: str, text: str) -> None:
    document = read_document(write(tmp_path, name, text))
    assert document.data == SPEC
    assert document.text == text.encode()
    assert document.sha256 == sha256_bytes(text.encode())


@pytest.mark.parametrize(
    ("name", "text", "lines"),
    [
        ("a.yaml", YAML_TEXT, {"type": 2, "variables": 4, "variables.lr": 6, "variables.sites.1": 9, "variables.deep.on": 10}),
        ("a.json", JSON_TEXT, {"type": 2, "variables": 4, "variables.lr": 5, "variables.sites.1": 7, "variables.deep.on": 8}),
        ("a.toml", TOML_TEXT, {"type": 1, "variables": 3, "variables.lr": 5, "variables.sites.1": 6, "variables.deep.on": 7}),
    ],
)
def test_every_field_knows_its_line(tmp_path: Path, name: str, text: str, lines: dict[str, int]) -> None:
    document = read_document(write(tmp_path, name, text))
    assert {field: document.line(field) for field in lines} == lines


def test_a_field_that_the_file_lacks_is_placed_at_the_block_around_it(tmp_path: Path) -> None:
    document = read_document(write(tmp_path, "a.yaml", YAML_TEXT))
    assert document.line("variables.deep.missing") == 10
    assert document.line("nowhere") is None
    placed = document.place(SpecError("is wrong", field="variables.k"))
    assert str(placed) == f"{tmp_path / 'a.yaml'}:5: variables.k: is wrong"


def test_arrays_of_toml_tables_keep_their_lines(tmp_path: Path) -> None:
    text = 'type = "study"\n[[steps]]\nname = "a"\n[[steps]]\nname = "b"\n[steps.variables]\nk = 1\n'
    document = read_document(write(tmp_path, "a.toml", text))
    assert document.data["steps"] == [{"name": "a"}, {"name": "b", "variables": {"k": 1}}]
    assert [document.line(field) for field in ("steps", "steps.0.name", "steps.1.name", "steps.1.variables.k")] == [2, 3, 5, 7]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 100000.0),
        (".5", 0.5),
        ("-2.", -2.0),
        ("0", 0),
        ("+7", 7),
        ("0x1F", 31),
        ("0o17", 15),
        ("no", "no"),
        ("Yes", "Yes"),
        ("on", "on"),
        ("12:30:45", "12:30:45"),
        ("2024-13-45", "2024-13-45"),
        ("2024-01-02", "2024-01-02"),
        ("0b_", "0b_"),
        ("0b1", "0b1"),
        ("1_000", "1_000"),
        ("=", "="),
        ("nan", "nan"),
        ("~", None),
        ("", None),
        ("TRUE", True),
        ("'1'", "1"),
        ('"\\u00e9"', "é"),
        ("|\n  two\n  lines\n", "two\nlines\n"),
    ],
)
def test_plain_scalars_follow_the_yaml_1_2_core_schema(text: str, value: object) -> None:
    found = parse_value(text)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "key 'a' is given twice"),
        ("a: {b: 1, b: 2}\n", 1, "a.b: key 'b' is given twice"),
        ("a: &x 1\nb: *x\n", 1, "anchors and aliases"),
        ("a: 1\nb: *x\n", 2, "anchors and aliases"),
        ("a: !!python/object/apply:os.system [id]\n", 1, "tags"),
        ("a: !x 1\n", 1, "tags"),
        ("%TAG ! tag:x,2000:\n---\na: 1\n", 1, "tags"),
        ("a:\n  <<: {b: 1}\n", 2, "merge keys"),
        ("a: 1\n---\nb: 2\n", 2, "second document"),
        ("a: 017\n", 1, "leading zero"),
        ("a: .nan\n", 1, "not finite"),
        ("a: -.Inf\n", 1, "not finite"),
        ("a: 1e400\n", 1, "not finite"),
        (f"a: {'9' * 5000}\n", 1, "64 bits"),
        (f"a: {2**63}\n", 1, "64 bits"),
        ("1: a\n", 1, "the key 1 is no text"),
        ("null: a\n", 1, "the key null is no text"),
        ("true: a\n", 1, "the key true is no text"),
        ("? [a]\n: 1\n", 1, "cannot be a key"),
        ("a: [1\n", 2, "not valid YAML"),
        ("\ta: 1\n", 1, "not valid YAML"),
        ('a: "\\ud800"\n', 1, "not valid YAML"),
        ("", 1, "is empty"),
        ("- a\n", 1, "holds a list at its top level"),
        ("just text\n", 1, "holds text at its top level"),
        ("a: " + "[" * 3000, 1, "nested deeper than 32 levels"),
        ("".join("  " * depth + "a:\n" for depth in range(40)), 33, "nested deeper than 32 levels"),
    ],
)
def test_traps_of_yaml_are_refused_with_their_line(tmp_path: Path, text: str, line: int, words: str) -> None:
    error = refusal(tmp_path, "a.yaml", text)
    assert words in str(error)
    assert error.line == line


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ('{"a": 1,\n "a": 2}', 2, "key 'a' is given twice"),
        ('{"a": NaN}', 1, "not finite"),
        ('{"a":\n -Infinity}', 2, "not finite"),
        ('{"a": 1e999}', 1, "not finite"),
        ('{"a": "\\ud800"}', 1, "surrogate"),
        ('{"\\ud800": 1}', 1, "surrogate"),
        ('{"a": 1,}', 1, "not valid JSON"),
        ('{"a": 1}\n{"b": 2}', 2, "not valid JSON"),
        ('{"a": ' + "9" * 5000 + "}", 1, "64 bits"),
        ('{"a": ' + "[" * 40 + "]" * 40 + "}", 1, "nested deeper"),
        ("[" * 200_000, None, "nested deeper"),
        ("[]", 1, "holds a list"),
    ],
)
def test_traps_of_json_are_refused_with_their_line(tmp_path: Path, text: str, line: int | None, words: str) -> None:
    error = refusal(tmp_path, "a.json", text)
    assert words in str(error)
    assert error.line == line


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a = 1\na = 2\n", 2, "not valid TOML"),
        ("a = 2024-01-02\n", 1, "a date is no value"),
        ("b = 1\na = nan\n", 2, "not finite"),
        (f"a = {'9' * 5000}\n", None, "cannot be read (ValueError)"),
        (f"b = 1\na = {2**64}\n", 2, "64 bits"),
        ("a." * 100_000 + "a = 1\n", 1, "more than 6 parts"),
        ("a = " + "[" * 100_000, None, "nested deeper"),
    ],
)
def test_traps_of_toml_are_refused(tmp_path: Path, text: str, line: int | None, words: str) -> None:
    error = refusal(tmp_path, "a.toml", text)
    assert words in str(error)
    assert error.line == line


def test_a_surrogate_pair_of_json_is_one_character(tmp_path: Path) -> None:
    assert read_document(write(tmp_path, "a.json", '{"a": "\\ud83d\\ude00"}')).data == {"a": "\U0001f600"}


def test_files_that_are_no_small_utf8_text_are_refused(tmp_path: Path) -> None:
    assert "is larger than 256 KiB" in str(refusal(tmp_path, "a.yaml", b"a: " + b"x" * MAX_BYTES))
    error = refusal(tmp_path, "a.yaml", b"a: 1\nb: \xff\n")
    assert (error.line, "is not UTF-8" in str(error)) == (2, True)
    assert "is no format" in str(refusal(tmp_path, "a.yamll", "a: 1"))
    assert refusal(tmp_path, "a.yamll", "a: 1").nearest == ".yaml"
    with pytest.raises(SpecError, match="No such file"):
        read_document(tmp_path / "missing.yaml")
    with pytest.raises(SpecError, match="not a regular file"):
        read_document(_fifo(tmp_path / "pipe.yaml"))
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(SpecError, match="not a regular file"):
        read_document(tmp_path / "folder.yaml")


def _fifo(path: Path) -> Path:
    os.mkfifo(path)
    return path


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    for name, text in (("a.yaml", "a: 1\n"), ("a.json", '{"a": 1}'), ("a.toml", "a = 1\n")):
        assert read_document(write(tmp_path, name, b"\xef\xbb\xbf" + text.encode())).data == {"a": 1}


_text = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12)
_scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | _text
_values = st.recursive(_scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_text, inner, max_size=4), max_leaves=12)


@given(data=st.dictionaries(_text, _values, max_size=4))
def test_what_json_can_say_is_read_back_from_json_and_yaml(tmp_path_factory: pytest.TempPathFactory, data: dict[str, object]) -> None:
    folder = tmp_path_factory.mktemp("round")
    assert read_document(write(folder, "a.json", json.dumps(data))).data == data
    assert read_document(write(folder, "b.json", json.dumps(data, ensure_ascii=False, indent=1))).data == data
    quoted = yaml.dump(data, default_style='"', allow_unicode=True, Dumper=_EverythingQuoted)
    assert read_document(write(folder, "a.yaml", quoted)).data == _as_text(data)


class _EverythingQuoted(yaml.SafeDumper):
    """Writes each scalar as quoted text, so that no tag is needed."""

    def ignore_aliases(self, data: object) -> bool:
        return True

    def represent_data(self, data: object) -> yaml.Node:
        return super().represent_data(data if isinstance(data, dict | list | str) else str(data))


def _as_text(value: object) -> object:
    if isinstance(value, dict):
        return {key: _as_text(item) for key, item in value.items()}
    return [_as_text(item) for item in value] if isinstance(value, list) else value if isinstance(value, str) else str(value)


def test_lines_point_at_the_key_itself(tmp_path: Path) -> None:
    lines = [f"key{index}: {index}" for index in range(50)]
    document: Document = read_document(write(tmp_path, "a.yaml", "\n".join(lines)))
    assert all(lines[number - 1].startswith(f"{path[0]}:") for path, number in document.lines.items())
