"""How fast SAE latents are patched one by one, beside a loop of full forward passes with a hook that encodes and decodes.

    python benchmarks/latent_patching.py                   GPT-2's shape, an SAE of 6144 latents at block 6: 1 minute on one core
    python benchmarks/latent_patching.py --layers 3 --at 1 --d-model 64 --heads 4 --vocab 500 --width 512 --k 8

Random GPT-2, random TopK SAE, and pairs of random prompts that differ in the first token, so that every position may matter. Each latent
of the corrupted run takes, at all positions, what it says of the clean run, and the logit difference at the last token is read:

- every: each latent of the SAE in each of `--prompts` pairs;
- some: 512 latents, drawn by seed, in four times as many pairs.

Ours is timed whole, with both runs that it records. The loop (and TransformerLens's hooks and nnsight's tracing, where they are installed)
is timed on `--sample` patches, half of them of latents that move at all, and its time is scaled up; values must equal ours to 1e-4. The
exit code is 1 where they do not, or the aim is missed at full size.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import patching

if TYPE_CHECKING:
    import torch

    from mlinterp.sae.model import SAE
    from mlinterp.subjects.huggingface import HuggingFaceSubject
    from mlinterp.subjects.pairs import Pairs

AIM = 150.0
"""Of every latent at full size, against the hook loop."""
TOLERANCE = 1e-4
SOME = 512


class Timed(NamedTuple):
    """One contestant: seconds for all patches, the metric of those it ran by (pair, latent), and how many moved at all."""

    seconds: float
    values: dict[tuple[int, int], float]
    moving: int = 0


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"layers": 12, "d-model": 768, "heads": 12, "vocab": 50257, "tokens": 15, "prompts": 4, "width": 6144, "k": 32, "at": 6}
    for name, default in {**sizes, "sample": 60, "threads": 1, "rounds": 1, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--init", type=float, default=0.05, help="standard deviation of the random weights")
    parser.add_argument("--sets", nargs="+", choices=("every", "some"), default=["every", "some"])
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu on a busy machine")
    return parser.parse_args(given)


def pairs_of(subject: HuggingFaceSubject, n: int, asked: argparse.Namespace) -> Pairs:
    """Return pairs of random prompts that differ in the first token."""
    import torch

    from mlinterp.subjects.pairs import tokenise
    from mlinterp.subjects.pairs_declared import PromptPair

    generator = torch.Generator().manual_seed(asked.seed)
    found = []
    for _ in range(n):
        clean = torch.randint(3, asked.vocab, (asked.tokens,), generator=generator).tolist()
        found.append(PromptPair(clean=clean, corrupted=[3 + (clean[0] + 5) % (asked.vocab - 3), *clean[1:]], answer=1, wrong=2))
    return tokenise(found, subject)


def sae_of(asked: argparse.Namespace) -> SAE:
    """Return a random TopK SAE that reads the stream before a block."""
    from mlinterp.sae.config import SAEConfig
    from mlinterp.sae.kinds import build

    config = SAEConfig(
        d_in=asked.d_model, d_sae=asked.width, activation="topk", k=asked.k, site=f"blocks.{asked.at}.resid_pre", seed=asked.seed
    )
    return build(config).requires_grad_(False)


def ours(subject: HuggingFaceSubject, sae: SAE, pairs: Pairs, latents: list[int], asked: argparse.Namespace) -> Timed:
    """Time every latent in every pair, both runs included."""
    from mlinterp.patching.latents import LatentPatcher
    from mlinterp.patching.metrics import MetricRegistry
    from mlinterp.patching.patcher import Edit, Patch
    from mlinterp.patching.places import place_of

    now, where = patching.clock(asked), place_of(subject, sae.config.site, "sae_latent")
    everything = [(pair, latent) for pair in range(len(pairs)) for latent in latents]
    started = now()
    patcher = LatentPatcher(sae, subject, pairs, where, MetricRegistry().get("logit_diff"))
    values = patcher.metrics([Patch(pair, (Edit(asked.at, None, latent),)) for pair, latent in everything])
    seconds = now() - started
    if not patcher.replayed:
        raise SystemExit("the model was not replayed")
    moving = int(sum(value != patcher.m_base[pair] for (pair, _), value in zip(everything, values, strict=True)))
    return Timed(seconds, dict(zip(everything, values.tolist(), strict=True)), moving)


class Editor:
    """The definition: encode, put the clean run's activation of one latent in place, decode, and add the error."""

    def __init__(self, sae: SAE, clean: torch.Tensor) -> None:
        self.sae, self.clean = sae, sae.encode(clean)

    def __call__(self, h: torch.Tensor, pair: int, latent: int) -> torch.Tensor:
        acts = self.sae.encode(h)
        error = h - self.sae.decode(acts)
        acts[..., latent] = self.clean[pair, :, latent]
        return self.sae.decode(acts) + error


def timed(some: list[tuple[int, int]], n: int, run: Callable[[int, int], float], asked: argparse.Namespace) -> Timed:
    """Time some patches, and scale up to `n`."""
    import torch

    now = patching.clock(asked)
    with torch.no_grad():
        run(*some[0])
        started = now()
        values = {place: run(*place) for place in some}
        return Timed((now() - started) / len(some) * n, values)


def hook_loop(subject: HuggingFaceSubject, sae: SAE, pairs: Pairs, some: list[tuple[int, int]], n: int, asked: argparse.Namespace) -> Timed:
    """Time one full forward pass a latent and pair."""
    import torch

    from mlinterp.subjects.base import Address

    seen: dict[str, torch.Tensor] = {}

    def keep(address: Address, h: torch.Tensor) -> torch.Tensor:
        seen[address.site] = h.clone()
        return h

    with torch.no_grad():
        subject.forward(pairs.clean.take(range(len(pairs))), keep, [sae.config.site])
        editor = Editor(sae, seen[sae.config.site])

    def run(pair: int, latent: int) -> float:
        outputs = subject.forward(pairs.corrupted.take([pair]), lambda _, h: editor(h, pair, latent), [sae.config.site])
        assert outputs is not None
        return float(outputs.logits[0, -1, 1] - outputs.logits[0, -1, 2])

    return timed(some, n, run, asked)


def lens_loop(model: Any, sae: SAE, pairs: Pairs, some: list[tuple[int, int]], n: int, asked: argparse.Namespace) -> Timed:
    """Time TransformerLens with a hook, one full forward pass a latent and pair."""
    import torch

    point = f"blocks.{asked.at}.hook_resid_pre"
    with torch.no_grad():
        editor = Editor(sae, model.run_with_cache(pairs.clean.inputs, names_filter=point)[1][point])

    def run(pair: int, latent: int) -> float:
        logits = model.run_with_hooks(pairs.corrupted.inputs[[pair]], fwd_hooks=[(point, lambda h, **_: editor(h, pair, latent))])
        return float(logits[0, -1, 1] - logits[0, -1, 2])

    return timed(some, n, run, asked)


def nnsight_of(subject: HuggingFaceSubject) -> Any:
    """Return nnsight's wrapper of the model, or None where it cannot be imported."""
    try:
        import nnsight
    except ImportError as error:
        print(f"nnsight is left out: {error}")
        return None
    return nnsight.NNsight(subject.model)


def nnsight_loop(model: Any, sae: SAE, pairs: Pairs, some: list[tuple[int, int]], n: int, asked: argparse.Namespace) -> Timed:
    """Time nnsight's tracing, one full forward pass a latent and pair."""
    import nnsight
    import torch

    block = model.transformer.h[asked.at]
    with torch.no_grad():
        with model.trace(pairs.clean.inputs):
            seen = block.input.save()
        editor = Editor(sae, seen.value)

    def run(pair: int, latent: int) -> float:
        with model.trace(pairs.corrupted.inputs[[pair]]):
            block.input = nnsight.apply(editor.__call__, block.input, pair, latent)
            logits = model.lm_head.output[0, -1, 1:3].save()
        return float(logits[0] - logits[1])

    return timed(some, n, run, asked)


def sample_of(values: dict[tuple[int, int], float], asked: argparse.Namespace) -> list[tuple[int, int]]:
    """Return patches to compare on: half of those that change something, and half of all."""
    import numpy as np

    rng = np.random.default_rng(asked.seed)
    usual = {pair: statistics.mode(value for (row, _), value in values.items() if row == pair) for pair in {pair for pair, _ in values}}
    changed, every = [place for place, value in values.items() if value != usual[place[0]]], list(values)
    half = asked.sample // 2
    return [chosen[at] for chosen in (changed, every) for at in rng.permutation(len(chosen))[:half].tolist()]


def main() -> int:
    """Run everybody in turns, print medians and ratios, and say whether values and the aim hold."""
    asked = arguments()
    import numpy as np
    import torch

    torch.set_num_threads(asked.threads)
    subject, sae = patching.subject_of(asked), sae_of(asked)
    lens, sight = patching.transformer_lens(subject, asked), nnsight_of(subject)
    full_size = (asked.layers, asked.d_model, asked.width, asked.at) == (12, 768, 6144, 6)
    failed = False
    for name in asked.sets:
        pairs = pairs_of(subject, asked.prompts * (1 if name == "every" else 4), asked)
        drawn = np.sort(np.random.default_rng(asked.seed).permutation(asked.width)[:SOME]).tolist()
        latents = list(range(asked.width)) if name == "every" else drawn
        mine = [ours(subject, sae, pairs, latents, asked) for _ in range(asked.rounds + 1)][1:]
        median, n, some = statistics.median(each.seconds for each in mine), len(mine[0].values), sample_of(mine[0].values, asked)
        print(
            f"{name}: {len(latents)} latents in {len(pairs)} pairs of {asked.tokens} tokens, {n} patches of which {mine[0].moving} move:",
            end=" ",
        )
        print(f"{median:.2f} s of {asked.clock} time", flush=True)
        others = {"hook loop": lambda: hook_loop(subject, sae, pairs, some, n, asked)}  # noqa: B023 - called before the loop goes on
        if lens is not None:
            others["TransformerLens"] = lambda: lens_loop(lens, sae, pairs, some, n, asked)  # noqa: B023
        if sight is not None:
            others["nnsight"] = lambda: nnsight_loop(sight, sae, pairs, some, n, asked)  # noqa: B023
        for whose, sweep in others.items():
            theirs = [sweep() for _ in range(asked.rounds)]
            ratio = statistics.median(each.seconds for each in theirs) / median
            apart = max(abs(mine[0].values[at] - value) for each in theirs for at, value in each.values.items())
            aim = AIM if full_size and name == "every" and whose == "hook loop" else None
            verdict = "" if aim is None else f" (aim {aim:g}: {'met' if ratio >= aim else 'MISSED'})"
            print(
                f"  {whose:16} {ratio:6.0f} times as long, scaled up from {len(some)}{verdict}; largest difference {apart:.1e}", flush=True
            )
            failed |= apart > TOLERANCE or (aim is not None and ratio < aim)
    return int(failed)


if __name__ == "__main__":
    started = time.perf_counter()
    code = main()
    print(f"{time.perf_counter() - started:.0f} s in all")
    sys.exit(code)
