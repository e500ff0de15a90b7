"""The benchmark of patching, small: everybody's values are the same numbers."""

from argparse import Namespace

import patching as benchmark
import pytest

SMALL = Namespace(layers=2, d_model=16, heads=2, vocab=300, tokens=6, seed=0, clock="cpu", init=0.3)


@pytest.mark.parametrize("component", benchmark.COMPONENTS)
def test_the_hook_loop_that_is_timed_gives_the_values_of_the_engine(component):
    subject = benchmark.subject_of(SMALL)
    pairs = benchmark.pairs_of(subject, SMALL)
    places = benchmark.grid(component, SMALL)
    engine, loop = benchmark.ours(subject, pairs, component, SMALL), benchmark.hook_loop(subject, pairs, component, places, SMALL)
    assert engine.values == pytest.approx(loop.values, abs=1e-5)
    assert len(engine.values) == len(places) == {"attn_head": 4, "attn_head_by_pos": 24}.get(component, 12)
    assert len(set(engine.values.values())) > 2
