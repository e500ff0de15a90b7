"""Whatever bytes a spec or a project file holds, `validate` ends within a second: with success, or exit code 2 and one short line."""

from __future__ import annotations

import contextlib
import io
import json
import time
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mlinterp.cli import main
from mlinterp.experiments import catalog
from mlinterp.io.specfile import MAX_BYTES
from mlinterp.io.text import visible
from mlinterp.project import find_project
from mlinterp.scaffold import new_spec

PROJECT = b"""\
name: small
subjects:
  trm4: {kind: trm, task: {name: sudoku4}}
  lm:
    kind: huggingface
    source: {config: {model_type: gpt2, n_layer: 1, n_embd: 8, n_head: 1}}
    data: {kind: text, root: "python:stdlib", context: 16, tokenizer: {train_bpe: {vocab_size: 300}}}
"""
TOML = b"""\
type = "trace"
subject = "trm4"
seed = 3
[variables]
sites = ["z_L"]
examples.n = 8
[matrix]
seed = [1, 2]
batch_size = [4, 8]
"""
SWEEP = b"""\
type: trace
subject: trm4
variables: {sites: [z_L], examples: {n: 8}}
matrix:
  seed: [0, 1]
  examples.n: [4, 8]
  subject: [trm4, lm]
"""
STUDY = b"""\
type: study
subject: trm4
steps:
  - {name: fit, type: subject_fit, variables: {steps: 10}}
  - name: trace
    type: trace
    inputs: {subject: "@fit"}
    variables: {sites: [z_L]}
    matrix: {seed: [0, 1]}
"""
TRAPS = [
    b"9" * 5000,
    b"2024-13-45",
    b"2024-02-30",
    b"0b_",
    b"0x_",
    b"1e-3",
    b"1e999",
    b"017",
    b"12:30:45",
    b"no",
    b".nan",
    b"-.inf",
    b"~",
    b"<<: {a: 1}",
    b"&a [*a, *a]",
    b"*a",
    b"!!python/name:os.system",
    b"!!binary x",
    b"!!set {a, b}",
    b"? a",
    b"---\n",
    b"...\n",
    b"%YAML 1.1\n",
    b"[" * 3000,
    b"{a: " * 3000,
    b"- " * 3000,
    b'"\\ud800"',
    b"\xed\xa0\x80",
    b"\xff\xfe",
    b"\x00",
    b"\x1b[31m",
    "\u202e\u2066\u200b\u2028".encode(),
    "\U0001f600é".encode(),
    b"true",
    b"null",
    b"{}",
    b"[]",
    b"''",
    b"|",
    b">-\n",
    b"\t",
    b"\r",
    b": ",
    b"# ",
    b", ",
    b"@x",
    b"latest",
    b"models:/../../x@y",
    b"-1",
    b"18446744073709551616",
    b"1.0",
    b"type: study",
    b"steps: [{name: a, type: trace}]",
    b"matrix: {seed: [0, 1]}",
    b"inputs: {subject: '@x'}",
    b"a.b.c",
    b"..",
    b"/etc/passwd",
    b"x" * 10_000,
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hostile") / "projects" / "small"
    root.mkdir(parents=True)
    (root / "project.yaml").write_bytes(PROJECT)
    return root


@cache
def seeds(folder: Path) -> list[tuple[str, bytes]]:
    """Valid specs of every type in every format."""
    project = find_project(folder)
    texts = [new_spec(name, project).encode() for name in [*catalog.experiments(), "study"]]
    data = json.dumps({"type": "trace", "subject": "trm4", "variables": {"sites": ["z_L"]}, "matrix": {"seed": [1, 2]}}, indent=1)
    return [*(("yaml", text) for text in texts), ("yaml", SWEEP), ("yaml", STUDY), ("json", data.encode()), ("toml", TOML)]


def validate(path: Path) -> tuple[int, str, str, float]:
    """Return (exit code, stdout, stderr, CPU seconds) of `mlinterp validate PATH`."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    started, code = time.process_time(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(["validate", str(path)])
        except SystemExit as stop:
            code = int(stop.code or 0)
        out.flush(), err.flush()
    seconds = time.process_time() - started
    return code, *(stream.buffer.getvalue().decode() for stream in (out, err)), seconds  # type: ignore[attr-defined]


PATHOLOGICAL = 5.0
"""CPU seconds that no file of the allowed size may take, also on a slow machine; a quiet one needs less than one."""


def holds(path: Path) -> int:
    code, out, err, seconds = validate(path)
    assert code in {0, 2}, err
    line = out if code == 0 else err
    assert (err if code == 0 else out) == ""
    assert line.endswith("\n")
    assert line.count("\n") == 1
    assert visible(line[:-1]) == line[:-1]
    assert len(line[:-1]) <= 300
    assert code == 0 or line.startswith("mlinterp: ")
    assert seconds < PATHOLOGICAL
    return code


def test_the_seeds_of_the_mutations_are_valid_but_for_a_domain_that_the_project_lacks(folder: Path) -> None:
    about_token_sets = [experiment.check_domain is not None for experiment in catalog.experiments().values()]
    for index, (suffix, text) in enumerate(seeds(folder)):
        path = folder / f"seed{index}.{suffix}"
        path.write_bytes(text)
        assert holds(path) == (2 if index < len(about_token_sets) and about_token_sets[index] else 0)


@st.composite
def mutations(draw: st.DrawFn) -> tuple[int, list[tuple[str, float, bytes]]]:
    """A seed's index and edits: what to do, where (a share of the length), and with which bytes."""
    edit = st.tuples(
        st.sampled_from(["insert", "replace", "delete", "truncate", "double", "value", "line"]),
        st.floats(0, 1),
        st.sampled_from(TRAPS) | st.binary(min_size=1, max_size=4),
    )
    return draw(st.integers(0, 1000)), draw(st.lists(edit, min_size=1, max_size=4))


def mutated(text: bytes, edits: list[tuple[str, float, bytes]]) -> bytes:
    for action, share, new in edits:
        at = int(share * len(text))
        if action == "insert":
            text = text[:at] + new + text[at:]
        elif action == "replace":
            text = text[:at] + new + text[at + len(new) :]
        elif action == "delete":
            text = text[:at] + text[at + len(new) :]
        elif action == "truncate":
            text = text[:at]
        elif action == "double":
            text = text[:at] + text[at // 2 :]
        else:
            lines = text.split(b"\n")
            row = min(int(share * len(lines)), len(lines) - 1)
            key, colon, _ = lines[row].partition(b": ")
            lines[row] = new if action == "line" or not colon else key + colon + new
            text = b"\n".join(lines)
    return text


def attack(folder: Path, case: tuple[int, list[tuple[str, float, bytes]]]) -> None:
    found = seeds(folder)
    suffix, text = found[case[0] % len(found)]
    path = folder / f"fuzz.{suffix}"
    path.write_bytes(mutated(text, case[1]))
    holds(path)


quiet = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=200, **quiet)  # type: ignore[arg-type]
@given(case=mutations())
@example(case=(3, [("truncate", 0.0, b"x")]))
def test_mutated_specs_end_in_one_line(folder: Path, case: tuple[int, list[tuple[str, float, bytes]]]) -> None:
    attack(folder, case)


@pytest.mark.slow
@settings(max_examples=20_000, **quiet)  # type: ignore[arg-type]
@given(case=mutations())
def test_very_many_mutated_specs_end_in_one_line(folder: Path, case: tuple[int, list[tuple[str, float, bytes]]]) -> None:
    attack(folder, case)


@settings(max_examples=80, **quiet)  # type: ignore[arg-type]
@given(suffix=st.sampled_from(["yaml", "json", "toml"]), text=st.binary(max_size=200))
def test_random_bytes_end_in_one_line(folder: Path, suffix: str, text: bytes) -> None:
    path = folder / f"random.{suffix}"
    path.write_bytes(text)
    assert holds(path) == 2


@settings(max_examples=80, **quiet)  # type: ignore[arg-type]
@given(edits=mutations())
def test_mutated_project_files_end_in_one_line(folder: Path, edits: tuple[int, list[tuple[str, float, bytes]]]) -> None:
    root = folder.parent / "other"
    root.mkdir(exist_ok=True)
    (root / "project.yaml").write_bytes(mutated(PROJECT, edits[1]))
    (root / "spec.yaml").write_bytes(SWEEP)
    holds(root / "spec.yaml")


@pytest.mark.parametrize("trap", TRAPS, ids=[ascii(trap[:20]) for trap in TRAPS])
def test_every_trap_as_a_value_a_key_and_a_line_ends_in_one_line(folder: Path, trap: bytes) -> None:
    templates = [
        b"type: trace\nseed: %s\n",
        b"type: %s\n",
        b"type: trace\n%s: 1\n",
        b"%s\ntype: trace\n",
        b"type: trace\nsubject: trm4\nvariables: {sites: [%s]}\n",
    ]
    for template in templates:
        (folder / "trap.yaml").write_bytes(template.replace(b"%s", trap))
        holds(folder / "trap.yaml")
    (folder / "trap.json").write_bytes(b'{"type": "trace", "seed": %s}'.replace(b"%s", trap))
    holds(folder / "trap.json")
    (folder / "trap.toml").write_bytes(b'type = "trace"\nseed = %s\n'.replace(b"%s", trap))
    holds(folder / "trap.toml")


FULL = MAX_BYTES - 400
LARGE = {
    "a long list.yaml": b"type: trace\nsubject: trm4\nvariables:\n  sites: [" + b"1," * (FULL // 2) + b"]\n",
    "a long block list.yaml": b"type: trace\nsubject: trm4\nvariables:\n  sites:\n" + b"  - z\n" * (FULL // 6),
    "many keys.yaml": b"type: trace\n" + b"".join(b"k%d: 1\n" % i for i in range(FULL // 10)),
    "many variables.yaml": b"type: trace\nsubject: trm4\nvariables:\n" + b"".join(b" k%d: 1\n" % i for i in range(FULL // 11)),
    "many empty blocks.yaml": b"type: trace\nvariables: {x: [" + b"{}," * (FULL // 3) + b"]}\n",
    "a long string.yaml": b"type: trace\ndescription: " + b"x" * FULL,
    "a wide sweep.yaml": b"type: trace\nsubject: trm4\nvariables: {sites: [z_L]}\nmatrix:\n"
    + b"".join(b" %s: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]\n" % key for key in (b"seed", b"examples.seed", b"examples.n")),
    "a sweep too wide.yaml": b"type: trace\nmatrix:\n" + b"".join(b" k%d: [%s]\n" % (i, b"1," * 10_000) for i in range(8)),
    "a sweep over a large block.yaml": b"type: trace\nsubject: trm4\nvariables: {sites: [z_L], examples: {options: {x: ["
    + b"1," * (FULL // 2 - 3000)
    + b"]}}}\nmatrix: {seed: ["
    + b",".join(b"%d" % i for i in range(1000))
    + b"]}\n",
    "a study of sweeps.yaml": b"type: study\nsubject: trm4\nsteps:\n"
    + b"".join(
        b"- {name: s%d, type: trace, variables: {sites: [z_L]}, matrix: {seed: [%s]}}\n" % (i, b",".join(b"%d" % j for j in range(900)))
        for i in range(60)
    ),
    "many expectations.yaml": b"type: trace\nexpect:\n" + b"- {metric: a, op: x, value: 1}\n" * (FULL // 31),
    "a long list.json": b'{"type": "trace", "subject": "trm4", "variables": {"sites": [' + b"1," * (FULL // 2) + b"1]}}",
    "many escapes.json": b'{"type": "' + b"\\u0041" * (FULL // 6) + b'"}',
    "deep.json": b"[" * FULL,
    "a long key.toml": b"a." * (FULL // 2) + b"a = 1",
    "many tables.toml": b"".join(b"[a%d]\n" % i for i in range(FULL // 9)),
    "many arrays of tables.toml": b"[[a]]\n" * (FULL // 6),
    "dotted keys.toml": b"".join(b"x%d.a.a.a.a.a = 1\n" % i for i in range(FULL // 22)),
    "blank lines of spaces.toml": (b" " * 999 + b"\n") * (FULL // 1000),
    "a long bare key.toml": b"a" * FULL,
    "quotes.toml": b'"' * FULL,
    "brackets.toml": b"a = " + b"[" * FULL,
    "a long list.toml": b'type = "trace"\nvariables.sites = [' + b"1," * (FULL // 2) + b"]",
}


@pytest.mark.parametrize("name", LARGE)
def test_the_largest_files_end_soon(folder: Path, name: str) -> None:
    (folder / name).write_bytes(LARGE[name])
    assert len(LARGE[name]) > 100_000 or "wide" in name
    holds(folder / name)
