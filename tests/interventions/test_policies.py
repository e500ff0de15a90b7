"""The algebra of edits, bit for bit where identity is promised."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mlinterp.errors import ExperimentError
from mlinterp.interventions.policies import (
    AblateFeatures,
    ClampFeatures,
    EditContext,
    InterventionPolicy,
    PatchFeatures,
    PatchStates,
    RandomDirection,
    Reconstruct,
    ScaleFeatures,
    Steer,
    Tally,
)
from mlinterp.sae.config import SAEConfig
from mlinterp.sae.model import SAE
from mlinterp.subjects.base import Address

AT = Address("z_L", 0, 1, 2)
LATENTS = (2, 5)


@pytest.fixture(name="sae")
def _sae() -> SAE:
    """An ordinary SAE: directions not orthogonal, biases not zero, inputs scaled."""
    generator = torch.Generator().manual_seed(1)
    sae = SAE(SAEConfig(d_in=6, d_sae=9, activation="relu-l1", l1=0.0)).requires_grad_(False)
    sae.b_enc.copy_(0.3 * torch.randn(9, generator=generator))
    sae.b_dec.copy_(0.3 * torch.randn(6, generator=generator))
    sae.scale.fill_(1.7)
    return sae


@pytest.fixture(name="h")
def _h() -> Tensor:
    return torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(2))


def apply(policy: InterventionPolicy, h: Tensor, sae: SAE, **context: Any) -> tuple[Tensor, Tally]:
    tally = Tally.of(len(h))
    rows = context.pop("rows", torch.ones(h.shape[:2], dtype=torch.bool))
    return policy.apply(AT, h, sae, EditContext(rows, tally, context.pop("sources", {}))), tally


def test_clamping_to_zero_is_ablating_bit_for_bit(sae: SAE, h: Tensor) -> None:
    ablated, _ = apply(AblateFeatures(LATENTS), h, sae)
    clamped, _ = apply(ClampFeatures(LATENTS, (0.0, 0.0)), h, sae)
    assert torch.equal(ablated, clamped)
    assert not torch.equal(ablated, h)


def test_clamping_to_the_own_value_and_patching_from_oneself_change_no_bit(sae: SAE, h: Tensor) -> None:
    for policy in (ScaleFeatures(LATENTS, 1.0), PatchFeatures(LATENTS), PatchStates(), PatchFeatures(LATENTS, renorm="rms")):
        same, tally = apply(policy, h, sae, sources={AT: h.clone()})
        assert torch.equal(same, h)
        assert tally.edited.sum() == 0
        assert tally.selected.tolist() == [4.0, 4.0, 4.0]


def test_ablating_keeps_the_error_term_and_removes_exactly_the_latents_share(sae: SAE, h: Tensor) -> None:
    ablated, _ = apply(AblateFeatures(LATENTS), h, sae)
    wide = {name: tensor.double() for name, tensor in sae.state_dict().items()}
    codes = torch.relu((h.double() * wide["scale"] - wide["b_dec"]) @ wide["W_enc"] + wide["b_enc"])
    expected = h.double() - codes[..., list(LATENTS)] @ wide["W_dec"][list(LATENTS)] / wide["scale"]
    torch.testing.assert_close(ablated.double(), expected, rtol=1e-6, atol=1e-6)


def test_ablating_an_inactive_latent_changes_no_bit_and_counts_no_edit(sae: SAE, h: Tensor) -> None:
    sae.b_enc[2] = -100.0
    same, tally = apply(AblateFeatures((2,)), h, sae)
    assert torch.equal(same, h)
    assert tally.edited.sum() == 0
    assert tally.active.sum() == 0


def test_only_rows_where_a_latent_is_active_change(sae: SAE, h: Tensor) -> None:
    active = sae.encode(h)[..., 2] > 0
    assert 0 < active.sum() < active.numel()
    edited, tally = apply(AblateFeatures((2,)), h, sae)
    assert torch.equal((edited != h).any(dim=-1), active)
    assert tally.edited.tolist() == active.sum(dim=1).tolist()
    assert tally.active.tolist() == active.sum(dim=1).tolist()


def test_rows_that_are_not_selected_stay_bit_identical_even_as_negative_zero(sae: SAE, h: Tensor) -> None:
    h[0, 0, 0] = -0.0
    rows = torch.zeros(3, 4, dtype=torch.bool)
    rows[1, 2] = True
    edited, tally = apply(Steer(LATENTS, (1.0, 1.0)), h, sae, rows=rows)
    assert (edited != h).any(dim=-1).nonzero().tolist() == [[1, 2]]
    assert torch.signbit(edited[0, 0, 0])
    assert tally.selected.tolist() == [0.0, 1.0, 0.0]


def test_steering_adds_amounts_along_directions_whether_active_or_not(sae: SAE, h: Tensor) -> None:
    steered, _ = apply(Steer(LATENTS, (2.0, -0.5)), h, sae)
    added = 2.0 * sae.directions([2])[0] - 0.5 * sae.directions([5])[0]
    torch.testing.assert_close(steered - h, added.expand_as(h), atol=1e-5, rtol=1e-5)


def test_clamping_and_mean_ablation_reach_their_target_code_on_orthogonal_directions() -> None:
    sae = SAE(SAEConfig(d_in=4, d_sae=4, activation="relu-l1", l1=0.0)).requires_grad_(False)
    sae.W_dec.copy_(torch.eye(4))
    sae.W_enc.copy_(torch.eye(4))
    h = torch.tensor([[[1.0, 2.0, 0.0, 4.0]]])
    assert apply(ClampFeatures((1, 2), (7.0, 8.0)), h, sae)[0].tolist() == [[[1.0, 7.0, 8.0, 4.0]]]
    assert apply(AblateFeatures((0, 3), baseline=(0.25, 0.5)), h, sae)[0].tolist() == [[[0.25, 2.0, 0.0, 0.5]]]
    assert apply(ScaleFeatures((1, 2), 3.0), h, sae)[0].tolist() == [[[1.0, 6.0, 0.0, 4.0]]]
    source = torch.tensor([[[9.0, 5.0, 6.0, 9.0]]])
    assert apply(PatchFeatures((1, 2)), h, sae, sources={AT: source})[0].tolist() == [[[1.0, 5.0, 6.0, 4.0]]]
    assert apply(PatchStates(), h, sae, sources={AT: source})[0].tolist() == source.tolist()


def test_mode_reconstruct_replaces_the_activation_by_the_decoded_edited_code(sae: SAE, h: Tensor) -> None:
    codes = sae.encode(h.reshape(-1, 6))
    codes[:, 2] = 0.0
    edited, _ = apply(AblateFeatures((2,), mode="reconstruct"), h, sae)
    torch.testing.assert_close(edited.reshape(-1, 6), sae.decode(codes), rtol=1e-6, atol=1e-6)
    plain, _ = apply(Reconstruct(), h, sae)
    torch.testing.assert_close(plain, sae(h), rtol=1e-6, atol=1e-6)


def test_renorm_gives_edited_rows_their_root_mean_square_back(sae: SAE, h: Tensor) -> None:
    edited, _ = apply(Steer(LATENTS, (3.0, 3.0), renorm="rms"), h, sae)
    torch.testing.assert_close(edited.pow(2).mean(-1), h.pow(2).mean(-1), rtol=1e-5, atol=1e-6)
    plain, _ = apply(Steer(LATENTS, (3.0, 3.0)), h, sae)
    torch.testing.assert_close(torch.cosine_similarity(edited, plain, dim=-1), torch.ones(3, 4), rtol=1e-5, atol=1e-5)


def test_a_random_direction_moves_each_row_as_far_as_the_edit_it_is_the_control_of(sae: SAE, h: Tensor) -> None:
    edit = AblateFeatures(LATENTS)
    moved, tally = apply(RandomDirection(edit, seed=3), h, sae)
    edited, own = apply(edit, h, sae)
    torch.testing.assert_close((moved - h).norm(dim=-1), (edited - h).norm(dim=-1), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(tally.relative, own.relative, rtol=1e-4, atol=1e-6)
    steps = (moved - h)[(edited != h).any(dim=-1)]
    torch.testing.assert_close(torch.cosine_similarity(steps, steps[:1]), torch.ones(len(steps)), rtol=1e-4, atol=1e-4)
    assert not torch.equal(moved, apply(RandomDirection(edit, seed=4), h, sae)[0])


def test_the_tally_holds_the_relative_size_of_the_edit(sae: SAE, h: Tensor) -> None:
    _, tally = apply(PatchStates(), h, sae, sources={AT: 3 * h})
    torch.testing.assert_close(tally.relative / tally.edited, torch.full((3,), 2.0, dtype=torch.float64), rtol=1e-5, atol=1e-5)


def test_an_edit_that_overflows_is_refused_with_its_site(sae: SAE, h: Tensor) -> None:
    with pytest.raises(ExperimentError, match=r"z_L NaN or infinite"):
        apply(Steer(LATENTS, (float("inf"), 0.0)), h, sae)


def test_half_precision_activations_keep_their_dtype_and_their_untouched_rows(sae: SAE, h: Tensor) -> None:
    half = h.bfloat16()
    active = (sae.encode(half.float())[..., 2] > 0).any()
    edited, _ = apply(AblateFeatures((2,)), half, sae)
    assert active
    assert edited.dtype == torch.bfloat16
    assert torch.equal(edited[sae.encode(half.float())[..., 2] == 0], half[sae.encode(half.float())[..., 2] == 0])
