from __future__ import annotations

import json
import random
import shutil

import numpy as np
import pytest
import torch

from mlinterp.errors import UnsafeError, VerificationError
from mlinterp.io.atomic import write_bytes, write_json, write_text
from mlinterp.io.manifest import content_digest, read_manifest, verify, write_manifest
from mlinterp.io.tensors import save_tensors

FILES = ["trace.jsonl", "states.npy", "sae.safetensors", "sae.pt", "tables/effects.csv", "report.json"]


@pytest.fixture
def folder(tmp_path):
    lines = [{"kind": "header", "run_id": "a" * 32}, *({"kind": "step", "i": i, "norm": i / 7} for i in range(20))]
    write_text(tmp_path / "trace.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    np.save(tmp_path / "states.npy", np.arange(60, dtype=np.float32).reshape(20, 3))
    save_tensors(tmp_path / "sae.safetensors", {"W_enc": torch.arange(12.0).reshape(4, 3), "b_enc": torch.zeros(4)}, {"k": 2})
    torch.save({"W": torch.ones(3)}, tmp_path / "sae.pt")
    write_text(tmp_path / "tables/effects.csv", "id,effect\na,0.5\n")
    write_json(tmp_path / "report.json", {"schema": "x", "seconds": 1.5, "effect": 0.25})
    return tmp_path


def test_an_untouched_folder_verifies(folder):
    manifest = write_manifest(folder, FILES)
    assert manifest == read_manifest(folder)
    assert sorted(manifest["files"]) == sorted(FILES)
    verify(folder, manifest)


def test_every_flipped_bit_is_noticed_and_its_file_named(folder):
    manifest, rng = write_manifest(folder, FILES), random.Random(0)
    for _ in range(300):
        name = rng.choice(FILES)
        path = folder / name
        data = bytearray(path.read_bytes())
        bit = rng.randrange(len(data) * 8)
        data[bit // 8] ^= 1 << bit % 8
        sound = path.read_bytes()
        path.write_bytes(data)
        with pytest.raises(VerificationError, match=f"{name}: altered"):
            verify(folder, manifest)
        path.write_bytes(sound)
    verify(folder, manifest)


def test_every_truncation_is_noticed_and_both_sizes_named(folder):
    manifest, rng = write_manifest(folder, FILES), random.Random(1)
    for _ in range(100):
        name = rng.choice(FILES)
        path = folder / name
        sound = path.read_bytes()
        length = rng.randrange(len(sound))
        path.write_bytes(sound[:length])
        with pytest.raises(VerificationError, match=rf"{name}: truncated: {length} bytes .* {len(sound)}"):
            verify(folder, manifest)
        path.write_bytes(sound)


def test_appended_bytes_zeroed_pages_and_removed_lines_are_noticed(folder):
    manifest = write_manifest(folder, FILES)
    path = folder / "trace.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    sound = b"".join(lines)
    for damaged, word in ((sound + b"\n", "grown"), (b"".join(lines[:7] + lines[8:]), "truncated"), (bytes(len(sound)), "altered")):
        path.write_bytes(damaged)
        with pytest.raises(VerificationError, match=rf"trace\.jsonl: {word}"):
            verify(folder, manifest)


def test_two_files_swapped_are_noticed(folder):
    for name in ("states-00000.npy", "states-00001.npy"):
        np.save(folder / name, np.full((4, 2), int(name[11]), dtype=np.float32))
    manifest = write_manifest(folder, ["states-00000.npy", "states-00001.npy"])
    (folder / "states-00000.npy").rename(folder / "x")
    (folder / "states-00001.npy").rename(folder / "states-00000.npy")
    (folder / "x").rename(folder / "states-00001.npy")
    with pytest.raises(VerificationError, match=r"states-00000\.npy: altered"):
        verify(folder, manifest)


def test_a_missing_file_is_named_first_in_order(folder):
    manifest = write_manifest(folder, FILES)
    (folder / "states.npy").unlink()
    (folder / "trace.jsonl").unlink()
    with pytest.raises(VerificationError, match=r"states\.npy: missing"):
        verify(folder, manifest)


def test_a_folder_in_place_of_a_file_is_missing(folder):
    manifest = write_manifest(folder, FILES)
    (folder / "sae.pt").unlink()
    (folder / "sae.pt").mkdir()
    with pytest.raises(VerificationError, match=r"sae\.pt: missing"):
        verify(folder, manifest)


def test_an_entry_removed_from_the_manifest_is_noticed(folder):
    manifest = write_manifest(folder, FILES)
    for name in FILES:
        fewer = {**manifest, "files": {other: entry for other, entry in manifest["files"].items() if other != name}}
        with pytest.raises(VerificationError, match=r"manifest\.json: altered"):
            verify(folder, fewer)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"schema": "mlinterp.manifest.v2"}', '{"schema": "mlinterp.manifest.v1", "files": []}']
)
def test_a_damaged_manifest_is_refused(folder, text):
    (folder / "manifest.json").write_text(text)
    with pytest.raises(VerificationError, match=r"manifest\.json"):
        read_manifest(folder)


def test_a_folder_without_manifest_was_never_completed(tmp_path):
    with pytest.raises(VerificationError, match="never completed"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("name", ["../outside.txt", "/etc/hostname", "a/../../outside.txt", "a\\b", "", "x\0y"])
def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path, name):
    inner = tmp_path / "run"
    inner.mkdir()
    (tmp_path / "outside.txt").write_text("x")
    with pytest.raises(UnsafeError, match="inside its folder"):
        write_manifest(inner, [name])


def test_a_symbolic_link_is_not_followed(tmp_path):
    (tmp_path / "secret").write_text("x")
    inner = tmp_path / "run"
    inner.mkdir()
    write_bytes(inner / "a.txt", b"x")
    manifest = write_manifest(inner, ["a.txt"])
    (inner / "a.txt").unlink()
    (inner / "a.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(UnsafeError, match="symbolic link"):
        verify(inner, manifest)


def test_writing_a_manifest_of_a_missing_file_fails_and_leaves_none(folder):
    with pytest.raises(VerificationError, match=r"gone\.npy: missing"):
        write_manifest(folder, ["report.json", "gone.npy"])
    assert not (folder / "manifest.json").exists()


def test_a_json_file_that_is_no_json_is_refused(folder):
    (folder / "bad.json").write_text("{'a': NaN}")
    with pytest.raises(VerificationError, match=r"bad\.json: not valid json"):
        write_manifest(folder, ["bad.json"])


def test_content_digest_looks_through_volatile_fields_layout_and_container(tmp_path, folder):
    other = tmp_path / "other"
    shutil.copytree(folder, other, ignore=shutil.ignore_patterns("other"))
    (other / "report.json").write_text('{"effect":0.25,"seconds":99,"schema":"x"}')
    save_tensors(other / "sae.safetensors", {"b_enc": torch.zeros(4), "W_enc": torch.arange(12.0).reshape(4, 3)}, {"k": 2})
    for name in ("report.json", "sae.safetensors", "states.npy"):
        assert content_digest(folder / name) == content_digest(other / name)
    (other / "report.json").write_text('{"effect":0.26,"seconds":99,"schema":"x"}')
    assert content_digest(folder / "report.json") != content_digest(other / "report.json")


@pytest.mark.parametrize(
    "tensors",
    [
        {"W": torch.ones(2, 3)},
        {"V": torch.ones(3, 2)},
        {"W": torch.ones(3, 2, dtype=torch.float64)},
        {"W": torch.tensor([[1, 1], [1, 1], [1, 1 + 1e-6]])},
    ],
    ids=["shape", "name", "dtype", "value"],
)
def test_content_digest_of_tensors_sees_name_shape_dtype_and_value(tmp_path, tensors):
    save_tensors(tmp_path / "a.safetensors", {"W": torch.ones(3, 2)})
    save_tensors(tmp_path / "b.safetensors", tensors)
    assert content_digest(tmp_path / "a.safetensors") != content_digest(tmp_path / "b.safetensors")
