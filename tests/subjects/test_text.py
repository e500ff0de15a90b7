"""Text into splits, tokens and contexts."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, processors

from mlinterp.errors import EnvironmentFault, SpecError, UnsafeError
from mlinterp.subjects.base import IGNORED, Examples
from mlinterp.subjects.huggingface_config import TextData
from mlinterp.subjects.text import Bpe, hide, load_texts, python_stdlib, read_folder, score_only, split_of, train_bpe

PROGRAM = "def f(x):\n    return [x, (x + 1) * {2: 3}[2]]\n\n\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "text" / "deep").mkdir(parents=True)
    for number in range(20):
        (tmp_path / "text" / f"{number}.py").write_text(PROGRAM * 5 + f"# {number} é\n")
    (tmp_path / "text" / "deep" / "inside.py").write_bytes(PROGRAM.encode() * 9 + b"\xff\n")
    (tmp_path / "text" / "note.txt").write_text("no program\n" * 50)
    return tmp_path


def data(**rest: object) -> TextData:
    return TextData.model_validate({"kind": "text", "root": "text", "context": 8, "tokenizer": {"train_bpe": {"vocab_size": 300}}, **rest})


def test_contexts_are_consecutive_pieces_of_their_file(root):
    texts = load_texts(data(), root, None, root / "cache")
    examples = next(split for split in texts.splits.values() if "deep/inside.py:0" in split.ids)
    rows = [row for row, name in enumerate(examples.ids) if name.startswith("deep/inside.py:")]
    assert [examples.ids[row] for row in rows] == [f"deep/inside.py:{k}" for k in range(len(rows))]
    tokens = examples.inputs[rows].flatten().tolist()
    text = (root / "text" / "deep" / "inside.py").read_text(errors="replace")
    assert text.startswith(texts.tokenizer.decode(tokens))
    assert len(texts.tokenizer.encode(text).ids) - len(tokens) < 8
    assert not any("note.txt" in name for split in texts.splits.values() for name in split.ids)


def test_a_file_stays_in_its_split_when_others_come_and_shares_are_as_declared():
    names = [f"package/module_{i}.py" for i in range(4000)]
    splits = [split_of(name, validation=0.1, test=0.2) for name in names]
    assert splits[:10] == [split_of(name, 0.1, 0.2) for name in names[:10]]
    assert splits.count("test") / 4000 == pytest.approx(0.2, abs=0.02)
    assert splits.count("validation") / 4000 == pytest.approx(0.1, abs=0.02)


def test_the_tokenizer_learns_from_training_files_only(root):
    before = load_texts(data(), root, None, root / "cache").tokenizer.to_str()
    held_out = next(path for path in (root / "text").glob("*.py") if split_of(path.name, 0.05, 0.1) != "train")
    held_out.write_text("zebra_quagga = zebra_quagga\n" * 500)
    again = load_texts(data(), root, None, root / "cache")
    assert again.tokenizer.to_str() == before
    assert len(list((root / "cache").glob("*.safetensors"))) == 2


def test_a_tokenizer_trained_in_another_process_is_the_same():
    program = "from mlinterp.subjects.text import *; import sys; print(train_bpe([sys.argv[1]], Bpe(vocab_size=300)).to_str(), end='')"
    done = subprocess.run([sys.executable, "-c", program, PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout == train_bpe([PROGRAM], Bpe(vocab_size=300)).to_str()


def test_byte_level_tokens_spell_any_text_and_isolated_characters_stand_alone():
    tokenizer = train_bpe([PROGRAM * 50], Bpe(vocab_size=320, isolate="()[]{}^-"))
    for text in (PROGRAM, "naïve ☃ \x00\r\n\t", "f(^)[-]"):
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    vocabulary = [token for token in tokenizer.get_vocab() if not token.startswith(("[PAD", "[MASK"))]
    assert all(len(token) == 1 for token in vocabulary if set(token) & set("()[]{}^-"))
    assert any(len(token) > 3 for token in vocabulary)


def test_the_cache_is_used_and_a_damaged_one_is_made_again(root, monkeypatch):
    first = load_texts(data(), root, None, root / "cache")
    file = next((root / "cache").glob("*.safetensors"))
    stamp = file.stat().st_mtime_ns
    second = load_texts(data(), root, None, root / "cache")
    assert file.stat().st_mtime_ns == stamp
    assert torch.equal(first.splits["train"].inputs, second.splits["train"].inputs)
    content = file.read_bytes()
    file.write_bytes(content[:-7])
    third = load_texts(data(), root, None, root / "cache")
    assert third.sha256 == first.sha256
    assert file.read_bytes() == content


def test_a_tokenizers_own_start_and_end_frame_every_context_and_are_not_asked_for(root):
    tokenizer = train_bpe([PROGRAM], Bpe(vocab_size=300))
    tokenizer.post_processor = processors.TemplateProcessing(single="[PAD] $A [MASK]", special_tokens=[("[PAD]", 0), ("[MASK]", 1)])
    texts = load_texts(data(tokenizer="pretrained"), root, tokenizer, root / "cache")
    examples = texts.splits["train"]
    assert {tuple(row) for row in examples.inputs[:, [0, -1]].tolist()} == {(0, 1)}
    assert torch.equal(examples.targets[:, :6], examples.inputs[:, 1:7])
    assert bool((examples.targets[:, 6:] == IGNORED).all())


def test_score_only_keeps_the_examples_that_hold_a_token():
    inputs = torch.tensor([[5, 6, 7], [6, 6, 6], [7, 5, 7]])
    targets = torch.tensor([[6, 7, IGNORED], [6, 6, IGNORED], [5, 7, IGNORED]])
    kept = score_only(Examples(("a", "b", "c"), inputs, targets, inputs > 0), [7])
    assert kept.ids == ("a", "c")
    assert kept.targets.tolist() == [[IGNORED, 7, IGNORED], [IGNORED, 7, IGNORED]]


def test_hide_asks_for_what_it_covers_and_spares_padding_and_special_tokens():
    inputs = torch.arange(2, 202).reshape(2, 100)
    inputs[:, 0] = 1
    mask = torch.ones_like(inputs, dtype=torch.bool)
    mask[0, 50:] = False
    hidden = hide(Examples(("a", "b"), inputs, inputs, mask), 0, [1], np.random.default_rng(0), share=0.5)
    covered = hidden.inputs == 0
    assert torch.equal(covered, hidden.targets != IGNORED)
    assert torch.equal(torch.where(covered, hidden.targets, hidden.inputs), inputs)
    assert not bool(covered[0, 50:].any() or covered[:, 0].any())
    assert 50 < int(covered.sum()) < 100


def test_the_standard_library_is_programs_without_tests():
    documents = python_stdlib()
    names = [document.name for document in documents]
    assert names == sorted(names)
    assert "json/decoder.py" in names
    assert not any({"test", "tests", "site-packages", "encodings"} & set(name.split("/")) for name in names)
    assert len(documents) > 200
    ast.parse(next(document.text for document in documents if document.name == "json/decoder.py"))


def test_links_out_of_the_folder_are_not_followed(root, tmp_path_factory):
    secret = tmp_path_factory.mktemp("elsewhere") / "secret.py"
    secret.write_text("key = 1\n")
    (root / "text" / "link.py").symlink_to(secret)
    assert "link.py" not in [document.name for document in read_folder(root / "text", "*.py")]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"root": "nowhere"}, EnvironmentFault, "nowhere' does not exist"),
        ({"root": "../text"}, UnsafeError, "leaves the project folder"),
        ({"include": "*.rs"}, SpecError, r"matches '\*\.rs'"),
        ({"context": 4096}, SpecError, "no file is as long as one context of 4096"),
    ],
)
def test_text_that_is_not_there_is_named(root, change, error, message):
    with pytest.raises(error, match=message):
        load_texts(data(**change), root, None, root / "cache")


def test_a_context_needs_room_beside_the_special_tokens(root):
    tokenizer: Tokenizer = train_bpe([PROGRAM], Bpe(vocab_size=300))
    tokenizer.post_processor = processors.TemplateProcessing(single="[PAD] $A [MASK]", special_tokens=[("[PAD]", 0), ("[MASK]", 1)])
    with pytest.raises(SpecError, match="context 2 has no room"):
        load_texts(data(tokenizer="pretrained", context=2), root, tokenizer, root / "cache")
