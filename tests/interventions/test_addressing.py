"""From what a spec says about a place to evaluations, and the refusals on the way."""

from __future__ import annotations

import pytest

from mlinterp.errors import SpecError
from mlinterp.interventions.addressing import label, resolve_addresses
from mlinterp.interventions.declared import At
from mlinterp.subjects.base import Address, Subject
from mlinterp.subjects.trm import TRMSubject
from mlinterp.subjects.trm_config import TRMConfig


@pytest.fixture(name="subject", scope="module")
def _subject() -> Subject:
    model = {"d_model": 8, "n_layers": 1, "H_cycles": 2, "L_cycles": 3, "n_sup": 4}
    config = {"kind": "trm", "task": {"name": "sudoku4", "n_train": 8, "n_test": 8}, "model": model}
    return TRMSubject("trm", TRMConfig.model_validate(config))


def test_left_out_axes_mean_every_evaluation_of_the_site(subject: Subject) -> None:
    assert len(resolve_addresses(subject, At(), "z_L")) == 4 * 2 * 3
    assert len(resolve_addresses(subject, At(), "z_H")) == 4 * 2


def test_negative_numbers_count_from_the_end(subject: Subject) -> None:
    found = resolve_addresses(subject, At(sup_steps=[-1, 0], cycles=[-2], latent_steps=[-1]), "z_L")
    assert found == (Address("z_L", 0, 0, 2), Address("z_L", 3, 0, 2))


def test_numbers_that_do_not_exist_are_refused_with_those_that_do(subject: Subject) -> None:
    with pytest.raises(SpecError, match=r"at\.cycles: \[2\] selects evaluations of z_L that do not exist; allowed: 0 to 1"):
        resolve_addresses(subject, At(cycles=[2]), "z_L")
    with pytest.raises(SpecError, match=r"\[-5\] selects"):
        resolve_addresses(subject, At(sup_steps=[-5]), "z_L")
    with pytest.raises(SpecError, match="latent_steps: z_H is not evaluated along this axis"):
        resolve_addresses(subject, At(latent_steps=[0]), "z_H")
    with pytest.raises(SpecError, match="z_L"):
        resolve_addresses(subject, At(), "z_l")


def test_labels_name_the_numbers_and_star_whole_axes(subject: Subject) -> None:
    everything = subject.addresses(["z_L"])
    assert label(resolve_addresses(subject, At(cycles=[0], latent_steps=[1, 2]), "z_L"), everything) == "z_L(s*,c0,i1+2)"
    assert label(resolve_addresses(subject, At(sup_steps=[2], cycles=[-1]), "z_H"), subject.addresses(["z_H"])) == "z_H(s2,c1)"
