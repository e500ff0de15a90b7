"""The benchmark of latent patching, small: the loop that is timed gives the values of the engine."""

import latent_patching as benchmark
import patching
import pytest

SMALL = "--layers 3 --at 1 --d-model 16 --heads 2 --vocab 300 --tokens 6 --prompts 2 --width 40 --k 4 --init 0.3 --sample 30 --clock cpu"


def test_the_hook_loop_that_is_timed_gives_the_values_of_the_engine():
    asked = benchmark.arguments(SMALL.split())
    subject, sae = patching.subject_of(asked), benchmark.sae_of(asked)
    pairs = benchmark.pairs_of(subject, asked.prompts, asked)
    engine = benchmark.ours(subject, sae, pairs, list(range(asked.width)), asked)
    some = benchmark.sample_of(engine.values, asked)
    loop = benchmark.hook_loop(subject, sae, pairs, some, len(engine.values), asked)
    assert len(engine.values) == 80
    assert 10 < engine.moving < 80
    assert {place: engine.values[place] for place in loop.values} == pytest.approx(loop.values, abs=1e-5)
    assert len(set(loop.values.values())) > 10
