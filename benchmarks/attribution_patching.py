"""How many forward passes attribution patching costs: all layers and positions of GPT-2's shape from two forward and one backward pass.

    python benchmarks/attribution_patching.py         12 layers, 15 tokens, residual stream: half a minute on one core
    python benchmarks/attribution_patching.py --layers 3 --d-model 64 --heads 4 --vocab 500

A forward pass is the whole model on one prompt, as `transformers` runs it. Rounds take turns. The exit code is 1 where the aim is missed
at full size.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

from patching import pairs_of, subject_of

AIM = 2.6
"""Forward passes, at full size."""


def arguments() -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"layers": 12, "d-model": 768, "heads": 12, "vocab": 50257, "tokens": 15, "threads": 1, "rounds": 7, "seed": 0}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--init", type=float, default=0.05, help="standard deviation of the random weights")
    parser.add_argument("--component", default="resid_pre", help="what is patched")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu on a busy machine")
    return parser.parse_args()


def main() -> int:
    """Time both in turns, print the median ratio, and say whether the aim is met."""
    asked = arguments()
    import torch

    from mlinterp.patching.attribution import slopes
    from mlinterp.patching.metrics import MetricRegistry
    from mlinterp.patching.places import places

    torch.set_num_threads(asked.threads)
    now = time.process_time if asked.clock == "cpu" else time.perf_counter
    subject = subject_of(asked)
    pairs, where, metric = pairs_of(subject, asked), places(subject, asked.component), MetricRegistry().get("logit_diff")
    passes, sweeps = [], []
    for _ in range(asked.rounds + 1):
        started = now()
        with torch.no_grad():
            subject.forward(pairs.corrupted)
        between = now()
        slopes(subject, pairs, where, metric)
        passes.append(between - started)
        sweeps.append(now() - between)
    one, whole = (statistics.median(times[1:]) for times in (passes, sweeps))
    ratio, full_size = whole / one, (asked.layers, asked.d_model, asked.tokens) == (12, 768, 15)
    verdict = f" (aim {AIM:g}: {'met' if ratio <= AIM else 'MISSED'})" if full_size else ""
    size = f"{asked.component} of {asked.layers} layers at {asked.tokens} positions"
    print(f"{size}: {whole:.3f} s of {asked.clock} time, {ratio:.2f} forward passes{verdict}")
    return int(full_size and ratio > AIM)


if __name__ == "__main__":
    sys.exit(main())
