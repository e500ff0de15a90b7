"""The recurrent subject against loops written out in float64, and its training against the rules written out slot by slot."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from mlinterp.errors import SpecError, UnsafeError, VerificationError
from mlinterp.io.tensors import load_tensors, save_tensors
from mlinterp.subjects.base import Address
from mlinterp.subjects.trm import Start, TRMSubject, build
from mlinterp.subjects.trm_config import TRMConfig, TRMFitOptions, TRMModelConfig
from mlinterp.subjects.trm_model import TRM, inner_width, truncated_normal
from mlinterp.subjects.trm_objective import TRMObjective, stablemax_cross_entropy

TASK = {"name": "sudoku4", "n_train": 50, "n_validation": 30, "n_test": 20}
SIZES = {"d_model": 16, "H_cycles": 2, "L_cycles": 3, "n_sup": 3, "n_heads": 2}


def subject(task: dict[str, Any] | None = None, seed: int = 0, **sizes: Any) -> TRMSubject:
    config = TRMConfig.model_validate({"task": task or TASK, "model": {**SIZES, **sizes}, "seed": seed})
    return build("tiny", config, Path())


def objective(seed: int = 0, sizes: dict[str, Any] | None = None, **options: Any) -> TRMObjective:
    return subject(**(sizes or {})).objective({"batch_size": 6, **options}, seed)


def rough(made: TRMSubject) -> TRMSubject:
    """Give every weight a random value, the zero ones included, so that nothing passes because it is zero."""
    with torch.no_grad():
        for index, parameter in enumerate(made.model.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)) * 0.1)
    return made


def recorded(made: TRMSubject, n: int = 4, **forward: Any) -> tuple[Any, dict[Address, Tensor]]:
    seen: dict[Address, Tensor] = {}

    def tap(address: Address, z: Tensor) -> Tensor:
        seen[address] = z.clone()
        return z

    batch = made.examples("test", n).take(range(n))
    return made.forward(batch, tap, made.sites, **forward), seen


# --- the model -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mixer", ["mlp_t", "attention"])
def test_the_number_of_parameters_follows_the_published_formulas(mixer):
    made = subject(mixer=mixer, d_model=64)
    d, rows, vocab = 64, 17, 5
    mixing = 3 * rows * inner_width(rows, 4) if mixer == "mlp_t" else 4 * d * d
    expected = 2 * (mixing + 3 * d * inner_width(d, 4)) + 2 * vocab * d + (2 * d + 2) + d
    assert sum(parameter.numel() for parameter in made.model.parameters()) == expected
    assert expected == {"mlp_t": 73_314, "attention": 101_186}[mixer]


def test_more_recursion_costs_no_parameters():
    counts = {sum(p.numel() for p in subject(H_cycles=h, L_cycles=n, n_sup=s).model.parameters()) for h, n, s in ((1, 1, 1), (3, 6, 16))}
    assert len(counts) == 1


def test_initial_weights_are_cut_at_two_sigma_and_have_their_standard_deviation():
    draws = truncated_normal((200_000,), 0.5, torch.Generator().manual_seed(0))
    assert draws.std().item() == pytest.approx(0.5, rel=0.01)
    assert draws.mean().item() == pytest.approx(0, abs=0.01)
    assert draws.abs().max().item() == pytest.approx(2 * 0.5 / 0.8796256610342398, rel=0.01)
    model = subject(d_model=64).model
    assert model.L_level.layers[0].mlp.gate_up_proj.weight.std().item() == pytest.approx(1 / 8, rel=0.03)
    assert (math.sqrt(64) * model.embed_tokens.weight).std().item() == pytest.approx(1, rel=0.15)


def test_at_first_the_model_never_halts_and_its_prefix_is_empty():
    made = subject()
    outputs, _ = recorded(made)
    assert (outputs.q_halt == -5).all()
    assert not made.model.prefix.any()
    buffers = dict(made.model.named_buffers())
    assert {"H_init", "L_init"} <= set(buffers)
    assert not {"H_init", "L_init"} & {name for name, _ in made.model.named_parameters()}


def test_initial_weights_are_a_function_of_the_seed():
    assert subject().digest() == subject().digest() != subject(seed=1).digest()


def naive_rms(x: np.ndarray, axis: int) -> np.ndarray:
    return x / np.sqrt((x * x).mean(axis=axis, keepdims=True) + 1e-5)


def naive_swiglu(x: np.ndarray, gate_up: np.ndarray, down: np.ndarray) -> np.ndarray:
    both = gate_up @ x
    gate, up = both[: len(both) // 2], both[len(both) // 2 :]
    return down @ (gate / (1 + np.exp(-gate)) * up)


def naive_attention(h: np.ndarray, qkv: np.ndarray, out: np.ndarray, heads: int) -> np.ndarray:
    rows, d = h.shape
    width = d // heads
    mixed = np.zeros_like(h)
    for head in range(heads):
        weights = [qkv[part * d + head * width : part * d + (head + 1) * width] for part in range(3)]
        q, k, v = (np.stack([weight @ row for row in h]) for weight in weights)
        for position in range(rows):
            for pair in range(width // 2):
                angle = position * 10_000 ** (-2 * pair / width)
                turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
                at = [pair, pair + width // 2]
                q[position, at], k[position, at] = turn @ q[position, at], turn @ k[position, at]
        scores = np.exp(q @ k.T / math.sqrt(width))
        mixed[:, head * width : (head + 1) * width] = scores / scores.sum(axis=1, keepdims=True) @ v
    return mixed @ out.T


def naive_f(z: np.ndarray, weights: dict[str, np.ndarray], heads: int) -> np.ndarray:
    for layer in range(2):
        name = f"L_level.layers.{layer}."
        if name + "self_attn.qkv_proj.weight" in weights:
            mixed = naive_attention(z, weights[name + "self_attn.qkv_proj.weight"], weights[name + "self_attn.o_proj.weight"], heads)
            z = naive_rms(z + mixed, axis=1)
        else:
            up, down = weights[name + "mlp_t.gate_up_proj.weight"], weights[name + "mlp_t.down_proj.weight"]
            z = naive_rms(z + np.stack([naive_swiglu(channel, up, down) for channel in z.T], axis=1), axis=0)
        up, down = weights[name + "mlp.gate_up_proj.weight"], weights[name + "mlp.down_proj.weight"]
        z = naive_rms(z + np.stack([naive_swiglu(row, up, down) for row in z]), axis=1)
    return z


@pytest.mark.parametrize("mixer", ["mlp_t", "attention"])
def test_a_pass_is_the_recursion_written_out_in_loops(mixer):
    made = rough(subject(mixer=mixer, n_prefix=2, n_sup=2))
    made.model.double()
    weights = {name: tensor.numpy() for name, tensor in made.model.state_dict().items()}
    outputs, seen = recorded(made, n=2)
    tokens = made.examples("test", 2).inputs.numpy()
    for example in range(2):
        e = math.sqrt(16) * np.concatenate([weights["prefix"], weights["embed_tokens.weight"][tokens[example]]])
        z_H, z_L = np.tile(weights["H_init"], (18, 1)), np.tile(weights["L_init"], (18, 1))
        for sup_step in range(2):
            for cycle in range(2):
                for latent_step in range(3):
                    z_L = naive_f(z_L + z_H + e, weights, heads=2)
                    np.testing.assert_allclose(seen[Address("z_L", sup_step, cycle, latent_step)][example].numpy(), z_L, atol=1e-5)
                z_H = naive_f(z_H + z_L, weights, heads=2)
                np.testing.assert_allclose(seen[Address("z_H", sup_step, cycle)][example].numpy(), z_H, atol=1e-5)
            logits = z_H[2:] @ weights["lm_head.weight"].T
            assert outputs.step_preds[sup_step, example].tolist() == logits.argmax(axis=1).tolist()
            q = weights["q_head.weight"][0] @ z_H[0] + weights["q_head.bias"][0]
            assert outputs.q_halt[sup_step, example].item() == pytest.approx(q, abs=1e-5)
        np.testing.assert_allclose(outputs.logits[example].numpy(), logits, atol=1e-4)


def test_every_state_has_a_root_mean_square_of_one():
    _, seen = recorded(rough(subject()))
    assert len(seen) == 3 * 2 * (3 + 1)
    for z in seen.values():
        assert z.square().mean(dim=-1).sqrt().sub(1).abs().max().item() < 1e-3


def test_a_training_step_computes_the_evaluated_states_with_a_gradient_through_the_last_cycle_only():
    model = rough(subject()).model.requires_grad_(True)
    tokens = torch.randint(5, (3, 16), generator=torch.Generator().manual_seed(0))

    def last_state(grad_from: int) -> tuple[Tensor, list[Tensor]]:
        e = model.embed(tokens)
        states = model.initial(e)
        for cycle in range(2):
            with torch.set_grad_enabled(cycle >= grad_from):
                states = model._cycle(e, states, cycle, None)
        return states.z_H, list(torch.autograd.grad(states.z_H.sum() + states.z_H[0, 0, 0], model.L_level.parameters()))

    e = model.embed(tokens)
    z_H, z_L = model.training_step(e, model.initial(e))
    assert torch.equal(z_H, model.supervision_step(e, model.initial(e)).z_H)
    assert torch.equal(z_L, model.supervision_step(e, model.initial(e)).z_L)
    gradient = torch.autograd.grad(z_H.sum() + z_H[0, 0, 0], model.L_level.parameters())
    for found, short, full in zip(gradient, last_state(1)[1], last_state(0)[1], strict=True):
        assert torch.equal(found, short)
        assert not torch.allclose(found, full)


# --- the subject ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mixer", ["mlp_t", "attention"])
def test_a_tap_that_returns_its_argument_changes_no_bit(mixer):
    made = rough(subject(mixer=mixer))
    tapped, seen = recorded(made)
    plain = made.forward(made.examples("test", 4).take(range(4)))
    assert torch.equal(tapped.logits, plain.logits)
    assert torch.equal(tapped.step_preds, plain.step_preds)
    assert torch.equal(tapped.q_halt, plain.q_halt)
    assert list(seen) == made.addresses(made.sites)
    assert plain.step_preds.shape == (3, 4, 16)
    assert plain.q_halt.shape == (3, 4)
    assert torch.equal(plain.step_preds[-1], plain.logits.argmax(dim=-1))


def test_only_the_wanted_site_is_tapped_and_addresses_say_when():
    made = subject()
    seen: list[Address] = []
    made.forward(made.examples("test", 2).take([0, 1]), lambda address, z: (seen.append(address), z)[1], ["z_H"])
    assert seen == made.addresses(["z_H"]) == [Address("z_H", s, c, None) for s in range(3) for c in range(2)]
    assert made.addresses(["z_L"])[:4] == [
        Address("z_L", 0, 0, 0),
        Address("z_L", 0, 0, 1),
        Address("z_L", 0, 0, 2),
        Address("z_L", 0, 1, 0),
    ]


def test_the_last_z_h_read_out_is_the_prediction():
    made = rough(subject())
    outputs, seen = recorded(made)
    logits, q_halt = made.read_out(seen[Address("z_H", 2, 1)])
    assert torch.equal(logits, outputs.logits)
    assert torch.equal(q_halt, outputs.q_halt[-1])


@pytest.mark.parametrize("address", [Address("z_L", 1, 1, 2), Address("z_H", 1, 0), Address("z_L", 0, 0, 0)])
def test_what_a_tap_returns_is_used_onward_and_changes_nothing_before(address):
    made = rough(subject())
    batch = made.examples("test", 4).take(range(4))
    seen: dict[Address, Tensor] = {}

    def tap(at: Address, z: Tensor) -> Tensor:
        seen[at] = z.flip(0) if at == address else z
        return seen[at]

    made.forward(batch, tap, made.sites)
    _, plain = recorded(made)
    order = made.addresses(made.sites)
    for at in order[: order.index(address)]:
        assert torch.equal(seen[at], plain[at])
    after = order[order.index(address) + 1]
    assert not torch.equal(seen[after], plain[after])


def test_a_state_written_at_the_last_evaluation_is_what_is_read_out():
    made = rough(subject())
    written = torch.randn(4, 17, 16, generator=torch.Generator().manual_seed(0))
    last = made.addresses(["z_H"])[-1]
    outputs = made.forward(made.examples("test", 4).take(range(4)), lambda at, z: written if at == last else z, ["z_H"])
    assert torch.equal(outputs.logits, made.read_out(written)[0])


@pytest.mark.parametrize("until", [Address("z_L", 1, 0, 1), Address("z_H", 0, 1), Address("z_H", 2, 1)])
def test_a_pass_stops_right_after_until_also_where_that_site_is_not_tapped(until):
    made = subject()
    outputs, seen = recorded(made, until=until)
    assert outputs is None
    order = made.addresses(made.sites)
    assert list(seen) == order[: order.index(until) + 1]
    seen_h: list[Address] = []
    batch = made.examples("test", 2).take([0, 1])
    assert made.forward(batch, lambda at, z: (seen_h.append(at), z)[1], ["z_H"], until=until) is None
    assert seen_h == [at for at in order[: order.index(until) + 1] if at.site == "z_H"]


@pytest.mark.parametrize("mixer", ["mlp_t", "attention"])
def test_a_pass_from_a_later_step_is_bit_identical_to_the_whole_one(mixer):
    made = rough(subject(mixer=mixer))
    whole, seen = recorded(made)
    before = made.states(made.examples("test", 4).take(range(4)))
    assert len(before) == 3
    for sup_step, (z_H, z_L) in enumerate(before):
        part, seen_part = recorded(made, start=Start(sup_step, z_H, z_L))
        assert torch.equal(part.logits, whole.logits)
        assert torch.equal(part.step_preds, whole.step_preds[sup_step:])
        assert torch.equal(part.q_halt, whole.q_halt[sup_step:])
        assert list(seen_part) == [at for at in seen if at.sup_step >= sup_step]
        assert all(torch.equal(seen_part[at], seen[at]) for at in seen_part)


def test_a_pass_starts_from_the_states_it_is_given_also_at_step_zero():
    made = rough(subject())
    batch = made.examples("test", 4).take(range(4))
    z_H, z_L = made.states(batch)[2]
    elsewhere = made.forward(batch, start=Start(0, z_H, z_L))
    assert not torch.equal(elsewhere.q_halt[0], made.forward(batch).q_halt[0])
    assert torch.equal(elsewhere.q_halt[0], made.forward(batch).q_halt[2])


def test_a_pass_builds_no_graph_unless_a_tap_brings_one_in():
    made = rough(subject())
    batch = made.examples("test", 2).take([0, 1])
    assert not made.forward(batch).logits.requires_grad
    edit = torch.zeros(2, 17, 16, requires_grad=True)
    outputs = made.forward(batch, lambda at, z: z + edit if at == Address("z_L", 0, 0, 0) else z, ["z_L"])
    outputs.logits.square().sum().backward()
    assert edit.grad.abs().sum() > 0


def test_names_and_moments_that_do_not_exist_are_refused():
    made = subject()
    batch = made.examples("test", 2).take([0, 1])
    with pytest.raises(SpecError, match="unknown site 'z_h'; allowed: z_L, z_H; did you mean 'z_"):
        made.forward(batch, lambda at, z: z, ["z_h"])
    with pytest.raises(SpecError, match="unknown site"):
        made.width("resid")
    with pytest.raises(SpecError, match="never comes to"):
        made.forward(batch, until=Address("z_H", 3, 0))
    z_H, z_L = made.states(batch)[1]
    with pytest.raises(SpecError, match="from supervision step 1 never comes to"):
        made.forward(batch, until=Address("z_H", 0, 0), start=Start(1, z_H, z_L))
    with pytest.raises(SpecError, match="start at supervision step 3; allowed: 0 to 2"):
        made.forward(batch, start=Start(3, z_H, z_L))
    with pytest.raises(SpecError, match="unknown selection 'contexts'"):
        made.examples("test", 2, contexts=3)


def test_selectors_mean_prefix_cells_and_blanks():
    made = subject(n_prefix=2)
    batch = made.examples("test", 5).take(range(5))
    blank = made.positions(batch, "blank")
    assert not blank[:, :2].any()
    assert torch.equal(blank[:, 2:], batch.inputs == 0)
    assert made.positions(batch, "prefix").sum(dim=1).tolist() == [2] * 5
    assert made.positions(batch, "answer")[:, 2:].all()
    assert made.positions(batch, [0, -1]).nonzero()[:2].tolist() == [[0, 2], [0, 17]]
    with pytest.raises(SpecError, match=r"unknown position selector 'blanks'.*did you mean 'blank'"):
        made.positions(batch, "blanks")
    sort = subject(task={"name": "sort", "n_train": 5, "n_test": 5})
    with pytest.raises(SpecError, match="sort has no blank cells"):
        sort.positions(sort.examples("test", 2).take([0]), "blank")


def test_examples_are_distinct_members_of_their_split_in_an_order_drawn_from_the_seed():
    made = subject()
    first, again, other = made.examples("test", 12), made.examples("test", 12), made.examples("test", 12, seed=1)
    assert first.ids == again.ids != other.ids
    assert torch.equal(first.inputs, again.inputs)
    assert len(set(first.ids)) == 12
    assert len(made.examples("test", 1000)) == 20
    row = int(first.ids[0].rpartition("-")[2])
    assert first.ids[0] == f"sudoku4-test-{row:05d}"
    assert first.inputs[0].tolist() == made.task.examples("test")[0][row].tolist()
    assert first.mask.all()
    assert (first.targets > 0).all()


def test_grids_are_rendered_and_tokens_named():
    made = subject()
    assert made.token_text(0) == "."
    assert made.render(made.examples("test", 1).targets[0]).count("\n") == 4


# --- training ------------------------------------------------------------------------------------------------------------------


def test_stablemax_cross_entropy_is_its_formula_and_ignores_what_is_not_scored():
    logits = torch.tensor([[[2.0, -1.0, 0.0], [0.0, 0.0, 0.0], [5.0, 1.0, 1.0]]], requires_grad=True)
    loss = stablemax_cross_entropy(logits, torch.tensor([[1, 2, -100]]))
    assert loss.dtype == torch.float64
    assert loss[0].tolist() == pytest.approx([-math.log(0.5 / (3 + 0.5 + 1)), math.log(3), 0])
    loss.sum().backward()
    assert logits.grad[0, 2].tolist() == [0, 0, 0]
    assert logits.grad[0, 0].tolist() == pytest.approx([1 / 4.5, 0.25 / 4.5 - 0.25 / 0.5, 1 / 4.5])  # s' = 1 above 0, 1 / (1 - x)^2 below
    extreme = stablemax_cross_entropy(torch.tensor([[[1e30, -1e30]]]), torch.tensor([[1]]))
    assert extreme.item() == pytest.approx(2 * math.log(1e30))


def test_the_loss_is_that_of_the_first_supervision_step_over_the_batch():
    trained = objective()
    rough_weights(trained)
    loss, numbers = trained.loss(0)
    slots = trained.carry()
    e = trained.model.embed(slots["inputs"])
    with torch.no_grad():
        z_H = trained.model.supervision_step(e, trained.model.initial(e)).z_H
        logits, q = trained.model.read_out(z_H)
    assert torch.equal(slots["z_H"], z_H)
    total, exact = 0.0, []
    for slot in range(6):
        x = logits[slot].double().numpy()
        s = np.where(x >= 0, x + 1, 1 / (1 - np.minimum(x, 0)))
        answer = slots["targets"][slot].numpy()
        total += np.mean([-math.log(s[cell, digit] / s[cell].sum()) for cell, digit in enumerate(answer)])
        exact.append(bool((x.argmax(axis=1) == answer).all()))
        p = 1 / (1 + math.exp(-q[slot].item()))
        total += 0.5 * -math.log(p if exact[-1] else 1 - p)
    assert loss.item() == pytest.approx(total / 6, rel=1e-5)
    assert numbers["loss"] == loss.item()
    assert numbers["exact"] == pytest.approx(np.mean(exact))
    assert numbers["sup_steps"] == 1


def rough_weights(trained: TRMObjective) -> None:
    with torch.no_grad():
        for index, parameter in enumerate(trained.model.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)) * 0.1)


def test_states_loaded_into_halted_slots_are_never_read():
    plain, edited = objective(), objective()
    for trained in (plain, edited):
        rough_weights(trained)
    start = edited.carry()
    assert start["halted"].all()
    edited.load_carry({**start, "z_H": torch.full_like(start["z_H"], 7.0), "z_L": torch.full_like(start["z_L"], -7.0)})
    assert plain.loss(0)[0].item() == edited.loss(0)[0].item()
    going = plain.carry()
    assert not going["halted"].any()
    edited.load_carry({**going, "z_H": going["z_H"].flip(0)})
    assert plain.loss(1)[0].item() != edited.loss(1)[0].item()


def test_a_slot_keeps_its_puzzle_and_states_for_n_sup_steps_and_then_takes_a_new_one():
    trained = objective()
    seen = []
    for step in range(4):
        trained.loss(step)
        seen.append(trained.carry())
    assert [slots["steps"].tolist() for slots in seen] == [[1] * 6, [2] * 6, [3] * 6, [1] * 6]
    assert [slots["halted"].all().item() for slots in seen] == [False, False, True, False]
    assert torch.equal(seen[0]["inputs"], seen[2]["inputs"])
    assert not torch.equal(seen[2]["inputs"], seen[3]["inputs"])
    e = trained.model.embed(seen[1]["inputs"])
    from_first = trained.model.supervision_step(e, trained.model.initial(e))
    with torch.no_grad():
        assert torch.equal(seen[1]["z_H"], trained.model.supervision_step(e, from_first).z_H)


@pytest.mark.parametrize(("exploration", "steps"), [(0.0, [1]), (1.0, [2, 3])])
def test_a_sure_slot_halts_at_once_unless_it_explores(exploration, steps):
    trained = objective(halt_exploration=exploration, batch_size=40)
    torch.nn.init.constant_(trained.model.q_head.bias, 5.0)
    halted_at = set()
    for step in range(6):
        trained.loss(step)
        slots = trained.carry()
        halted_at |= set(slots["steps"][slots["halted"]].tolist())
    assert sorted(halted_at) == steps


def test_training_batches_are_a_function_of_seed_and_step():
    first, again, other = objective(), objective(), objective(seed=1)
    assert torch.equal(first._draw(3)[0], again._draw(3)[0])
    assert not torch.equal(first._draw(3)[0], first._draw(4)[0])
    assert not torch.equal(first._draw(3)[0], other._draw(3)[0])
    pool = {row.tobytes() for row in first.task.examples("train")[0]}
    assert all(row.tobytes() in pool for row in first._draw(3)[0].numpy())


def test_augmented_batches_are_new_puzzles_of_the_same_step():
    sizes = {"task": {**TASK, "split_by": "puzzle"}}
    plain, augmented = objective(sizes=sizes), objective(sizes=sizes, augment=True)
    assert torch.equal(plain._draw(3)[0] == 0, augmented._draw(3)[0] == 0)
    assert not torch.equal(plain._draw(3)[0], augmented._draw(3)[0])
    with pytest.raises(SpecError, match="augment: renamed digits turn training solutions into held-out ones"):
        objective(augment=True)


def steps_of(trained: TRMObjective, adam: torch.optim.Optimizer, steps: range) -> list[float]:
    losses = []
    for step in steps:
        loss, _ = trained.loss(step)
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    return losses


def test_training_resumed_from_weights_optimizer_and_carry_is_bit_identical(tmp_path):
    whole = objective(halt_exploration=0.5)
    save_tensors(tmp_path / "untouched.safetensors", whole.carry())
    torch.nn.init.constant_(whole.model.q_head.bias, 0.5)
    adam = torch.optim.AdamW(whole.module.parameters(), lr=1e-2)
    first = steps_of(whole, adam, range(5))
    assert set(whole.carry()["steps"].tolist()) != {1}
    save_tensors(tmp_path / "carry.safetensors", whole.carry())
    weights = {name: tensor.clone() for name, tensor in whole.model.state_dict().items()}
    moments = torch.load(_saved(adam.state_dict(), tmp_path / "adam.pt"), weights_only=True)
    rest = steps_of(whole, adam, range(5, 12))

    resumed = objective(halt_exploration=0.5)
    resumed.model.load_state_dict(weights)
    resumed.load_carry(load_tensors(tmp_path / "carry.safetensors")[0])
    adam = torch.optim.AdamW(resumed.module.parameters(), lr=1e-2)
    adam.load_state_dict(moments)
    assert steps_of(resumed, adam, range(5, 12)) == rest
    assert len({*first, *rest}) == 12
    for one, other in zip(whole.carry().values(), resumed.carry().values(), strict=True):
        assert torch.equal(one, other)


def _saved(state: dict[str, Any], path: Path) -> Path:
    torch.save(state, path)
    return path


def test_evaluation_scores_the_validation_split_as_a_pass_of_the_subject_does():
    made = subject(n_sup=3)
    trained = made.objective({"batch_size": 4}, 0)
    rough_weights(trained)
    with torch.no_grad():
        examples = made.examples("validation", 30)
        outputs = made.forward(examples.take(range(30)))
    right = outputs.step_preds == examples.targets
    exact = right[-1].all(dim=1)
    scores = trained.evaluate()
    assert scores["token_acc"] == pytest.approx(right[-1].float().mean().item())
    assert scores["exact"] == pytest.approx(exact.float().mean().item())
    assert scores["exact_step_1"] == pytest.approx(right[0].all(dim=1).float().mean().item())
    assert scores["q_halt_acc"] == pytest.approx(((outputs.q_halt[-1] > 0) == exact).float().mean().item())
    assert 0 < scores["token_acc"] < 1


def test_exact_and_halting_scores_count_whole_puzzles():
    made = subject(task={"name": "sort", "length": 2, "numbers": 2, "n_train": 2, "n_validation": 1, "n_test": 1}, n_sup=2)
    trained = made.objective({"batch_size": 4}, 0)
    adam = torch.optim.AdamW(trained.module.parameters(), lr=3e-3)
    steps_of(trained, adam, range(60))
    torch.nn.init.constant_(trained.model.q_head.bias, 50.0)
    inputs, targets = made.task.examples("train")
    made.task._drawn["validation"] = (np.repeat(inputs, 2, axis=0), np.concatenate([targets, 1 - targets]))
    scores = trained.evaluate()
    assert (scores["exact"], scores["exact_step_1"], scores["q_halt_acc"]) == (0.5, 0.5, 0.5)
    made.task._drawn["validation"] = (inputs, targets)
    assert set(trained.evaluate().values()) == {1.0}


def test_the_optimizer_settings_are_those_of_the_options():
    assert objective().optimizer == {"lr": 1e-3, "betas": (0.9, 0.95), "weight_decay": 0.1, "warmup_steps": 200, "ema": 0.99}
    assert objective(lr=0.01, betas=[0.5, 0.6]).optimizer["betas"] == (0.5, 0.6)
    assert all(parameter.requires_grad for parameter in objective().module.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 1}, "unknown option 'learning_rate'"),
        ({"warmup": 3}, "unknown option 'warmup'; did you mean 'warmup_steps'"),
        ({"ema": 1.0}, r"variables.options.ema: .*less than 1, not 1.0"),
        ({"betas": [0.9, 1.5]}, "each of betas is at least 0 and below 1"),
        ({"betas": ["0.9", 0.5]}, "valid number"),
    ],
)
def test_wrong_training_options_are_refused(options, message):
    with pytest.raises(SpecError, match=message):
        subject().objective(options, 0)


@pytest.mark.slow
def test_a_small_model_learns_to_solve_4_x_4_puzzles_whose_solutions_it_never_saw():
    task = {"name": "sudoku4", "minimal": True, "n_train": 2000}
    made = subject(task=task, d_model=64, H_cycles=2, L_cycles=2, n_sup=8)
    trained = made.objective({"lr": 2e-3}, 0)
    adam = torch.optim.AdamW(trained.module.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.1)
    steps_of(trained, adam, range(500))
    assert trained.evaluate()["exact"] > 0.9


# --- building ------------------------------------------------------------------------------------------------------------------


def built(root: Path, weights: str, **sizes: Any) -> TRMSubject:
    return build("tiny", TRMConfig.model_validate({"task": TASK, "model": {**SIZES, **sizes}, "weights": weights}), root)


def test_saved_weights_make_the_same_subject_whatever_their_file_is_called(tmp_path):
    trained = rough(subject())
    save_tensors(tmp_path / "kept" / "weights.safetensors", trained.model.state_dict())
    loaded = built(tmp_path, "kept/weights.safetensors")
    assert loaded.digest() == trained.digest() != subject().digest()
    assert torch.equal(recorded(loaded)[0].logits, recorded(trained)[0].logits)


def test_weights_that_do_not_fit_are_refused_by_name(tmp_path):
    state = subject().model.state_dict()
    save_tensors(tmp_path / "good.safetensors", state)
    save_tensors(tmp_path / "named.safetensors", {name.replace("lm_head", "lm_heads"): tensor for name, tensor in state.items()})
    save_tensors(tmp_path / "broken.safetensors", {**state, "prefix": torch.full_like(state["prefix"], math.nan)})
    with pytest.raises(VerificationError, match=r"lacks tensor 'lm_head.weight'; did you mean 'lm_heads.weight'"):
        built(tmp_path, "named.safetensors")
    with pytest.raises(VerificationError, match=r"has shape \[16\], subject 'tiny' needs \[32\]|'prefix' has shape \[1, 16\]"):
        built(tmp_path, "good.safetensors", d_model=32)
    with pytest.raises(VerificationError, match="'prefix' holds numbers that are not finite"):
        built(tmp_path, "broken.safetensors")
    with pytest.raises(VerificationError, match="absent"):
        built(tmp_path, "absent.safetensors")
    with pytest.raises(UnsafeError, match="leaves the project folder"):
        built(tmp_path, "../good.safetensors")


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"task": {"name": "chess"}},
        {"task": {"name": "sudoku4", "length": 3}},
        {"task": TASK, "model": {"d_model": 60, "n_heads": 8, "mixer": "attention"}},
        {"task": TASK, "model": {"n_sup": 0}},
        {"task": TASK, "model": {"d_model": "64"}},
        {"task": TASK, "layers": 2},
    ],
)
def test_wrong_configurations_are_refused(config):
    with pytest.raises(ValidationError):
        TRMConfig.model_validate(config)


def test_a_configuration_is_its_own_json_and_is_read_without_torch():
    made = subject()
    assert TRMConfig.model_validate({**made.config}).model_dump(mode="json", exclude={"weights"}) == made.config
    assert TRMFitOptions.model_validate({}).batch_size == 64
    program = "import sys; from mlinterp.subjects.trm_config import TRMConfig; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_model_can_be_built_beside_any_task_length():
    model = TRM(TRMModelConfig(d_model=8, n_heads=2, mixer="attention"), length=3, vocab=4, generator=torch.Generator().manual_seed(0))
    logits, q_halt = model.read_out(model.embed(torch.zeros(2, 3, dtype=torch.long)))
    assert logits.shape == (2, 3, 4)
    assert q_halt.shape == (2,)
