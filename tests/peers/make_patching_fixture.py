"""Record what TransformerLens's `patching.get_act_patch_*` says, for `tests/patching/test_patching_recorded.py`.

    peers/bin/python tests/peers/make_patching_fixture.py     (`test_architectures.py` beside this file says how to set `peers` up)

The weights of a small GPT-2, two prompts and the logit difference under every patch go to one safetensors file.
"""

import sys
from argparse import Namespace
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import save_file

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import patching as benchmark  # noqa: E402

SIZES = Namespace(layers=3, d_model=16, heads=4, vocab=300, tokens=7, seed=0, clock="cpu", init=0.3)


def main() -> None:
    subject = benchmark.subject_of(SIZES)
    pairs, lens = benchmark.pairs_of(subject, SIZES), benchmark.transformer_lens(subject, SIZES)
    tensors = {f"weights.{name}": value.clone() for name, value in subject.model.state_dict().items()}
    tensors |= {"clean": pairs.clean.inputs, "corrupted": pairs.corrupted.inputs}
    for component in benchmark.COMPONENTS:
        places = benchmark.grid(component, SIZES)
        values = benchmark.lens_sweep(lens, pairs, component, places, SIZES).values
        tensors[f"patched.{component}"] = torch.tensor([values[place] for place in places]).view(SIZES.layers, -1)
    versions = {name: version(name) for name in ("transformer-lens", "torch")}
    save_file(tensors, ROOT / "tests" / "interventions" / "transformer_lens_patching.safetensors", versions)


if __name__ == "__main__":
    main()
