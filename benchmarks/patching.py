"""How fast exact activation patching is, beside TransformerLens's `patching.get_act_patch_*`, nnsight and a plain loop of hooks.

    python benchmarks/patching.py                     GPT-2's shape, 12 layers, 15 tokens: 1 minute on one core
    python benchmarks/patching.py --layers 3 --d-model 64 --heads 4 --vocab 500 --share 1 --rounds 3

Same weights, one process. Every contestant patches the clean run into the corrupted one, place by place, and reads the logit difference
at the last token. The loops take `--share` of the places, drawn by seed, and their time is scaled up; their values must equal ours to
1e-4; nnsight patches the residual stream alone. benchmarks/README.md says how to set the peers up; one that cannot be imported is left out.
The exit code is 1 where values differ or an aim is missed at full size.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from mlinterp.patching.patcher import Patch
    from mlinterp.subjects.huggingface import HuggingFaceSubject
    from mlinterp.subjects.pairs import Pairs


class Sweep(NamedTuple):
    """What is patched: our component, TransformerLens's function for it, and what a place is counted by."""

    component: str
    function: str
    place: tuple[str, ...] = ("layer", "pos")


COMPONENTS = {name: Sweep(name, f"get_act_patch_{name}") for name in ("resid_pre", "resid_mid", "attn_out", "mlp_out")}
COMPONENTS["attn_head"] = Sweep("attn_head", "get_act_patch_attn_head_out_all_pos", ("layer", "head"))
COMPONENTS["attn_head_by_pos"] = Sweep("attn_head", "get_act_patch_attn_head_out_by_pos", ("layer", "pos", "head"))
"""All that TransformerLens patches and that is a component of ours."""
AIMS = {"TransformerLens": 28.0, "hook loop": 12.0}
"""Of resid_pre at full size."""
TOLERANCE = 1e-4


class Timed(NamedTuple):
    """One contestant's sweep: seconds for all places, and the metric at those it measured."""

    seconds: float
    values: dict[tuple[int, ...], float]


def arguments() -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"layers": 12, "d-model": 768, "heads": 12, "vocab": 50257, "tokens": 15, "threads": 1, "rounds": 1, "seed": 0}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--init", type=float, default=0.05, help="standard deviation of the random weights")
    parser.add_argument("--share", type=float, default=0.1, help="share of the places that the loops are timed on")
    parser.add_argument("--components", nargs="+", choices=COMPONENTS, default=["resid_pre", "attn_head"])
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu on a busy machine")
    parser.add_argument("--json", type=Path, help="write the figures there")
    return parser.parse_args()


def subject_of(asked: argparse.Namespace) -> HuggingFaceSubject:
    """Return GPT-2 of that size with random weights, large enough that patches matter."""
    import torch
    import transformers

    from mlinterp.subjects.huggingface import HuggingFaceSubject
    from mlinterp.subjects.text import Bpe, Texts, train_bpe

    torch.manual_seed(asked.seed)
    config = transformers.GPT2Config(
        n_layer=asked.layers,
        n_embd=asked.d_model,
        n_head=asked.heads,
        vocab_size=asked.vocab,
        n_positions=64,
        initializer_range=asked.init,
        bos_token_id=None,
        eos_token_id=None,
    )
    config.use_cache = False
    texts = Texts(train_bpe(["no text"], Bpe(vocab_size=260)), {}, held_out=False, sha256="")
    return HuggingFaceSubject("gpt2", transformers.GPT2LMHeadModel(config), texts, {})


def pairs_of(subject: HuggingFaceSubject, asked: argparse.Namespace) -> Pairs:
    """Return one pair of random prompts that differ in the first token, so that every place matters."""
    import torch

    from mlinterp.subjects.pairs import tokenise
    from mlinterp.subjects.pairs_declared import PromptPair

    generator = torch.Generator().manual_seed(asked.seed)
    clean = torch.randint(0, asked.vocab, (asked.tokens,), generator=generator).tolist()
    corrupted = [(clean[0] + 1) % asked.vocab, *clean[1:]]
    return tokenise([PromptPair(clean=clean, corrupted=corrupted, answer=1, wrong=2)], subject)


def clock(asked: argparse.Namespace) -> Callable[[], float]:
    """Return the clock."""
    return time.process_time if asked.clock == "cpu" else time.perf_counter


def grid(component: str, asked: argparse.Namespace) -> list[tuple[int, ...]]:
    """Return every place, such as (layer, position), or (layer, head)."""
    sizes = {"layer": asked.layers, "pos": asked.tokens, "head": asked.heads}
    return list(product(*(range(sizes[name]) for name in COMPONENTS[component].place)))


def ours(subject: HuggingFaceSubject, pairs: Pairs, component: str, asked: argparse.Namespace) -> Timed:
    """Time the whole sweep, both runs included."""
    from mlinterp.patching.metrics import MetricRegistry
    from mlinterp.patching.patcher import Edit, Patch, Patcher
    from mlinterp.patching.places import places

    swept = COMPONENTS[component]
    now, where, all_places = clock(asked), places(subject, swept.component), grid(component, asked)
    started = now()
    patcher = Patcher(subject, pairs, where, MetricRegistry().get("logit_diff"))
    named = [dict(zip(swept.place, at, strict=True)) for at in all_places]
    patches: list[Patch] = [Patch(0, (Edit(at["layer"], at.get("pos"), at.get("head")),)) for at in named]
    values = patcher.metrics(patches)
    seconds = now() - started
    if not patcher.replayed:
        raise SystemExit("the model was not replayed")
    return Timed(seconds, dict(zip(all_places, values.tolist(), strict=True)))


def hook_loop(subject: HuggingFaceSubject, pairs: Pairs, component: str, some: list[tuple[int, ...]], asked: argparse.Namespace) -> Timed:
    """Time one full forward pass a place, with a hook that puts the clean activation in place."""
    import torch

    from mlinterp.patching.places import places
    from mlinterp.subjects.base import Address

    swept = COMPONENTS[component]
    now, where, seen = clock(asked), places(subject, swept.component), dict[str, torch.Tensor]()
    clean, corrupted = pairs.clean.take([0]), pairs.corrupted.take([0])

    def keep(address: Address, h: torch.Tensor) -> torch.Tensor:
        seen[address.site] = h.clone()
        return h

    values = {}
    with torch.no_grad():
        subject.forward(clean, keep, list(where.sites.values()))
        started = now()
        for at in some:
            named = dict(zip(swept.place, at, strict=True))
            column, unit = (slice(None) if named.get(name) is None else named[name] for name in ("pos", "head"))
            units = asked.heads if "head" in named else 1

            def put(
                address: Address, h: torch.Tensor, column: int | slice = column, unit: int | slice = unit, units: int = units
            ) -> torch.Tensor:
                h = h.clone()
                h.unflatten(2, (units, -1))[:, column, unit] = seen[address.site].unflatten(2, (units, -1))[:, column, unit]
                return h

            outputs = subject.forward(corrupted, put, [where.sites[named["layer"]]])
            assert outputs is not None
            values[at] = float(outputs.logits[0, -1, 1] - outputs.logits[0, -1, 2])
        seconds = now() - started
    return Timed(seconds / len(some) * len(grid(component, asked)), values)


def transformer_lens(subject: HuggingFaceSubject, asked: argparse.Namespace) -> Any:
    """Return TransformerLens's model with the same weights, or None where it cannot be imported."""
    try:
        from transformer_lens import HookedTransformer, HookedTransformerConfig
        from transformer_lens.pretrained.weight_conversions.gpt2 import convert_gpt2_weights
    except ImportError as error:
        print(f"TransformerLens is left out: {error}")
        return None
    config = HookedTransformerConfig(
        n_layers=asked.layers,
        d_model=asked.d_model,
        n_ctx=64,
        d_head=asked.d_model // asked.heads,
        n_heads=asked.heads,
        d_mlp=4 * asked.d_model,
        d_vocab=asked.vocab,
        act_fn="gelu_new",
        normalization_type="LN",
        device="cpu",
    )
    model = HookedTransformer(config)
    folded = dict.fromkeys(("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases"), False)
    model.load_and_process_state_dict(convert_gpt2_weights(subject.model, config), **folded)
    return model


def lens_sweep(model: Any, pairs: Pairs, component: str, some: list[tuple[int, ...]], asked: argparse.Namespace) -> Timed:
    """Time TransformerLens on some places."""
    import pandas as pd
    import torch
    from transformer_lens import patching

    now = clock(asked)
    with torch.no_grad():
        _, cache = model.run_with_cache(pairs.clean.inputs)
        frame: pd.DataFrame = pd.DataFrame(some, columns=list(COMPONENTS[component].place))
        whole = getattr(patching, COMPONENTS[component].function)
        kept = {name: whole.keywords[name] for name in ("patch_setter", "activation_name")}
        started = now()
        found = whole.func(model, pairs.corrupted.inputs, cache, lambda logits: logits[0, -1, 1] - logits[0, -1, 2], index_df=frame, **kept)
        seconds = now() - started
    return Timed(seconds / len(some) * len(grid(component, asked)), dict(zip(some, found.tolist(), strict=True)))


def nnsight_sweep(subject: HuggingFaceSubject, pairs: Pairs, some: list[tuple[int, ...]], asked: argparse.Namespace) -> Timed:
    """Time nnsight on some places of the residual stream, one traced forward pass each."""
    import torch
    from nnsight import NNsight

    now, values = clock(asked), dict[tuple[int, ...], float]()
    with torch.no_grad():
        model = NNsight(subject.model)
        with model.trace(pairs.clean.inputs):
            clean = [block.input.save() for block in model.transformer.h]
        started = now()
        for layer, column in some:
            with model.trace(pairs.corrupted.inputs):
                model.transformer.h[layer].input[:, column] = clean[layer].value[:, column]
                logits = model.output.logits[0, -1].save()
            values[layer, column] = float(logits.value[1] - logits.value[2])
        seconds = now() - started
    return Timed(seconds / len(some) * len(grid("resid_pre", asked)), values)


def has_nnsight() -> bool:
    """Whether nnsight can be imported; says so where it cannot."""
    try:
        import nnsight  # noqa: F401
    except ImportError as error:
        print(f"nnsight is left out: {error}")
        return False
    return True


def main() -> int:
    """Run everybody in turns, print medians and ratios, and say whether values and aims hold."""
    asked = arguments()
    import numpy as np
    import torch

    torch.set_num_threads(asked.threads)
    subject = subject_of(asked)
    pairs, lens, nnsight = pairs_of(subject, asked), transformer_lens(subject, asked), has_nnsight()
    failed, figures = False, dict[str, Any]()
    full_size = (asked.layers, asked.d_model, asked.tokens) == (12, 768, 15)
    for component in asked.components:
        every = grid(component, asked)
        chosen = np.random.default_rng(asked.seed).permutation(len(every))[: max(1, round(asked.share * len(every)))]
        some = [every[at] for at in sorted(chosen.tolist())]
        others = {"hook loop": lambda: hook_loop(subject, pairs, component, some, asked)}  # noqa: B023 - called before the loop goes on
        if lens is not None:
            others["TransformerLens"] = lambda: lens_sweep(lens, pairs, component, some, asked)  # noqa: B023
        if nnsight and component == "resid_pre":
            others["nnsight"] = lambda: nnsight_sweep(subject, pairs, some, asked)  # noqa: B023
        mine = [ours(subject, pairs, component, asked) for _ in range(asked.rounds + 1)][1:]
        median = statistics.median(timed.seconds for timed in mine)
        print(f"{component}: {len(every)} patches in {median:.2f} s of {asked.clock} time")
        figures[component] = {"patches": len(every), "mlinterp_s": median}
        for name, sweep in others.items():
            theirs = [sweep() for _ in range(asked.rounds)]
            ratio = statistics.median(timed.seconds for timed in theirs) / median
            apart = max(abs(mine[0].values[at] - value) for timed in theirs for at, value in timed.values.items())
            aim = AIMS.get(name) if full_size and component == "resid_pre" else None
            verdict = "" if aim is None else f" (aim {aim:g}: {'met' if ratio >= aim else 'MISSED'})"
            print(f"  {name:16} {ratio:6.1f} times as long on {len(some)} of them{verdict}; largest difference {apart:.1e}")
            failed |= apart > TOLERANCE or (aim is not None and ratio < aim)
            figures[component][name] = {"ratio": ratio, "largest_difference": apart, "timed_on": len(some)}
    if asked.json is not None:
        asked.json.write_text(json.dumps({"asked": {k: str(v) for k, v in vars(asked).items()}, "figures": figures}, indent=1) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
