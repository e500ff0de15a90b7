"""Which latents fire on prompts: against a loop over tokens, with padding and special tokens left out, beside the corrupted prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from prompts import CAUSAL, transformer
from sae_kinds import random_sae
from watched import watch

from mlinterp.errors import SpecError
from mlinterp.result import ExperimentResult
from mlinterp.sae.files.checkpoint import load_sae, save_sae
from mlinterp.subjects.base import Address, Batch
from mlinterp.subjects.huggingface import HuggingFaceSubject

SITE = "blocks.1.resid_post"
PAIRS = [
    {"clean": [9, 20 + i, 7, 11][: 4 - i % 2], "corrupted": [9, 40 + i, 7, 11][: 4 - i % 2], "answer": 20 + i, "wrong": 40 + i}
    for i in range(5)
]


@pytest.fixture
def subject(tmp_path: Path) -> HuggingFaceSubject:
    return transformer(tmp_path, CAUSAL["gpt2"])


def sae_at(folder: Path, subject: HuggingFaceSubject, **config: Any) -> Any:
    sae = random_sae(d_in=16, d_sae=40, dtype=torch.float32, site=SITE, **config)
    folder.mkdir(exist_ok=True)
    save_sae(sae, folder)
    return load_sae(folder)


def look(subject: HuggingFaceSubject, folder: Path, **variables: Any) -> ExperimentResult:
    return watch("active_features", subject, folder, {"n_bootstrap": 200, **variables}, {"sae": folder / "sae"})


def codes(subject: HuggingFaceSubject, sae: Any, tokens: list[int]) -> torch.Tensor:
    """Latents of one prompt alone, `[token, latent]`."""
    taken = []

    def tap(_address: Address, h: torch.Tensor) -> torch.Tensor:
        taken.append(h)
        return h

    ids = torch.tensor([tokens])
    subject.forward(Batch(("0",), ids, torch.full_like(ids, -100), torch.ones_like(ids, dtype=torch.bool)), tap, [SITE])
    return sae.encode(taken[0][0])


@pytest.mark.parametrize("activation", ["topk", "jumprelu", "gated"])
def test_every_latent_has_the_maximum_place_and_share_that_a_loop_over_prompts_finds(tmp_path, subject, activation) -> None:
    sae = sae_at(tmp_path / "sae", subject, activation=activation)
    result = look(subject, tmp_path, pairs=PAIRS)
    alone = {side: torch.stack([codes(subject, sae, pair[side]).amax(0) for pair in PAIRS]) for side in ("clean", "corrupted")}
    firing = set((alone["clean"] > 0).any(0).nonzero()[:, 0].tolist())
    rows = {row["latent"]: row for row in result.tables["latents"].rows}
    assert set(rows) == firing
    assert result.metrics["active/n_latents"] == len(firing)
    for latent, row in rows.items():
        clean, corrupted = alone["clean"][:, latent], alone["corrupted"][:, latent]
        assert row["max_act"] == pytest.approx(float(clean.max()), abs=1e-5)
        assert row["share"] == pytest.approx(float((clean > 0).float().mean()))
        assert row["difference"] == pytest.approx(float((clean - corrupted).mean()), abs=1e-5)
        where = codes(subject, sae, PAIRS[int(row["prompt"])]["clean"])
        assert float(where[row["position"], latent]) == pytest.approx(row["max_act"], abs=1e-5)
        assert row["token"] == subject.token_text(PAIRS[int(row["prompt"])]["clean"][row["position"]])
    ordered = [row["max_act"] for row in result.tables["latents"].rows]
    assert ordered == sorted(ordered, reverse=True)
    assert result.mode == "observational"
    assert set(result.estimates) >= {f"{name}/f{result.tables['latents'].rows[0]['latent']}" for name in ("share", "difference")}


def test_special_tokens_fire_nothing(tmp_path, subject) -> None:
    sae = sae_at(tmp_path / "sae", subject, activation="relu-l1")
    special = min(subject.special_tokens)
    result = look(subject, tmp_path, prompts=[{"text": [special, 20, 21]}])
    expected = codes(subject, sae, [special, 20, 21])[1:].amax(0)
    rows = {row["latent"]: row["max_act"] for row in result.tables["latents"].rows}
    assert set(rows) == set((expected > 0).nonzero()[:, 0].tolist())
    assert result.metrics["active/n_tokens"] == 2
    assert all(row["position"] > 0 for row in result.tables["latents"].rows)


def test_numbers_do_not_depend_on_what_shares_a_batch(tmp_path, subject) -> None:
    sae_at(tmp_path / "sae", subject)
    one, many = (look(subject, tmp_path, pairs=PAIRS, batch_size=size).tables["latents"].rows for size in (1, 5))
    assert [row["latent"] for row in one] == [row["latent"] for row in many]
    assert [row["max_act"] for row in one] == pytest.approx([row["max_act"] for row in many], abs=1e-5)


def test_prompts_without_pairs_have_no_control_and_it_says_so(tmp_path, subject) -> None:
    sae_at(tmp_path / "sae", subject)
    result = look(subject, tmp_path, prompts=[{"text": [9, 20]}, {"text": [9, 30, 31]}])
    assert "difference" not in result.tables["latents"].columns
    assert any("no control" in warning for warning in result.diagnostics.warnings)
    assert all(estimate.null is None for estimate in result.estimates.values())


def test_latents_named_are_told_though_they_are_silent_and_an_unknown_one_is_refused(tmp_path, subject) -> None:
    sae_at(tmp_path / "sae", subject, k=1)
    rows = look(subject, tmp_path, pairs=PAIRS, latents=list(range(40))).tables["latents"].rows
    silent = [row for row in rows if row["max_act"] == 0]
    assert silent
    assert all(row["token"] is None and row["share"] == 0 for row in silent)
    with pytest.raises(SpecError, match="the SAE has no latent 40; 0 to 39"):
        look(subject, tmp_path, pairs=PAIRS, latents=[40])


def test_an_sae_of_other_weights_or_of_several_hook_points_is_refused(tmp_path, subject) -> None:
    sae_at(tmp_path / "sae", subject)
    (tmp_path / "sae" / "sae_metrics.json").write_text(json.dumps({"subject_sha256": "0" * 64}))
    with pytest.raises(SpecError, match="fitted on subject 000000000000"):
        look(subject, tmp_path, pairs=PAIRS)
    (tmp_path / "sae" / "sae_metrics.json").unlink()
    save_sae(random_sae("crosscoder", d_in=16, d_sae=40, dtype=torch.float32, sites=[SITE, "blocks.0.resid_post"]), tmp_path / "sae")
    with pytest.raises(SpecError, match="a crosscoder reads several hook points"):
        look(subject, tmp_path, pairs=PAIRS)
