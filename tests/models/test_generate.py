"""Generation: greedy and drawn text, independence of the batch, ends, limits, refusals."""

import dataclasses
import functools
import importlib
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odeformer import LM, STOPPED, DepthConfig, GenerateOptions, LMConfig, generate, stream
from odeformer.models.decoding import init_cache
from odeformer.models.sampling import sample

MODULE = importlib.import_module("odeformer.models.generate")
BLOCK, VOCABULARY = 32, 7
PROMPTS = [[3, 1, 4, 1, 5], [2], [6, 5, 3]]


@functools.cache
def make():
    """A model and parameters that are zero nowhere."""
    depth = DepthConfig(layers=2, share=2, solver="euler")
    config = LMConfig(VOCABULARY, BLOCK, width=16, heads=2, mlp=32, depth=depth)
    model = LM(config)
    tokens = jnp.zeros((1, BLOCK), int)
    leaves, tree = jax.tree.flatten(jax.eval_shape(model.init, jax.random.key(0), tokens))
    rng = np.random.default_rng(1)
    noise = [0.3 * rng.standard_normal(x.shape, "f4") for x in leaves]
    return model, jax.tree.unflatten(tree, noise)


def texts(prompts=PROMPTS, **options):
    return [text.tolist() for text in generate(*make(), prompts, **options)]


def test_greedy_text_is_the_argmax_of_a_full_pass():
    model, variables = make()
    full = jax.jit(model.apply)
    clear = 0
    for prompt, text in zip(PROMPTS, texts(temperature=0.0), strict=True):
        logits = full(variables, jnp.array([prompt + text]))[0, len(prompt) - 1 : -1]
        best = np.sort(logits)[:, -2:]
        wide = best[:, 1] - best[:, 0] > 1e-3
        np.testing.assert_array_equal(np.argmax(logits, -1)[wide], np.array(text)[wide])
        clear += wide.sum()
    assert clear > 50


def test_the_seed_alone_decides_what_is_drawn():
    assert texts(seed=3) == texts(seed=3) != texts(seed=4)
    first, second, _ = texts([[2], [2], PROMPTS[0]], seed=3)
    assert first != second
    assert len(set(first)) > 2  # the key changes from token to token


def test_other_prompts_change_nothing():
    prompt = PROMPTS[0]
    alone = texts([prompt], seed=5)[0]
    assert alone == texts([prompt, [2], [6]], seed=5)[0]
    assert alone == texts([prompt, [1] * 20, [0]], seed=5)[0]
    assert texts([[2], prompt, [6]], seed=5)[1] == texts([[0] * 9, prompt, [3]], seed=5)[1]


def test_text_goes_up_to_and_with_its_end():
    whole = texts()
    for end in range(VOCABULARY):
        ended = texts(end=end)
        cut = [text[: text.index(end) + 1] if end in text else text for text in whole]
        assert ended == cut
    assert len({len(text) for text in texts(end=whole[0][2])}) > 1


def test_the_block_and_max_new_tokens_bound_the_text():
    assert [len(text) for text in texts()] == [BLOCK - 5, BLOCK - 1, BLOCK - 3]
    assert [len(text) for text in texts(max_new_tokens=28)] == [27, 28, 28]
    assert texts(max_new_tokens=3) == [text[:3] for text in texts()]
    assert [len(text) for text in texts([[1] * (BLOCK - 1), [2] * 30, [3]])] == [1, 2, 31]


def test_stream_marks_those_that_have_stopped():
    steps = np.stack(list(stream(*make(), PROMPTS)))
    assert steps.dtype == np.int32 and steps.shape == (BLOCK - 1, 3)
    np.testing.assert_array_equal((steps == STOPPED).sum(axis=0), [4, 0, 2])
    assert [column[column != STOPPED].tolist() for column in steps.T] == texts()


def test_generate_takes_the_options_and_their_defaults():
    """They stand in its signature, too, where a reader looks for them."""
    _, _, _, *parameters = inspect.signature(generate).parameters.values()
    options = {field.name: field.default for field in dataclasses.fields(GenerateOptions)}
    assert {p.name: p.default for p in parameters} == options


def test_two_programs_serve_calls_of_the_same_shapes():
    """The prefill's width is a power of two, and values of the options are no part of a program."""
    compiled = MODULE._read_and_sample._cache_size
    texts([[1] * 5] * 3, top_k=3, top_p=0.9, max_new_tokens=4)
    before = compiled()
    texts([[2] * 8] * 3, top_k=2, top_p=0.5, temperature=0.0, max_new_tokens=7, seed=1, end=2)
    assert compiled() == before
    texts([[2] * 9] * 3, top_k=2, top_p=0.5)
    assert compiled() == before + 1


def test_a_step_writes_to_the_cache_in_place():
    model = LM(dataclasses.replace(make()[0].config, depth=DepthConfig(layers=8)))
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), int))
    cache, tokens = jax.eval_shape(lambda: (init_cache(model.config, 32), jnp.zeros((32, 1), int)))
    step = MODULE._read_and_sample.lower(
        model, variables, tokens, cache, None, 1, jax.random.key(0), 1.0, None, None
    )
    memory = step.compile().memory_analysis()
    size = 2 * 4 * cache.terms["attention"].k.size
    assert memory.alias_size_in_bytes >= size
    assert memory.temp_size_in_bytes < size / 2  # a layer's part at a time


def test_a_step_is_dispatched_before_the_last_ones_tokens_are_read(monkeypatch):
    calls, draw = [], MODULE._read_and_sample

    def counted(*args, **kwargs):
        calls.append(1)
        return draw(*args, **kwargs)

    monkeypatch.setattr(MODULE, "_read_and_sample", counted)
    tokens = stream(*make(), PROMPTS, GenerateOptions(max_new_tokens=3))
    counts = [len(calls) for _ in tokens]
    assert counts == [2, 3, 3]  # no step is dispatched whose tokens nobody takes


PROBABILITIES = np.array([0.1, 0.4, 0.05, 0.3, 0.15])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (dict(), PROBABILITIES),
        (dict(temperature=0.5), PROBABILITIES**2 / (PROBABILITIES**2).sum()),
        (dict(temperature=0.0), [0, 1, 0, 0, 0]),
        (dict(temperature=0.0, top_k=3, top_p=0.5), [0, 1, 0, 0, 0]),
        (dict(temperature=1e-37), [0, 1, 0, 0, 0]),
        (dict(top_k=1), [0, 1, 0, 0, 0]),
        (dict(top_k=2), [0, 4 / 7, 0, 3 / 7, 0]),
        (dict(top_k=9), PROBABILITIES),
        (dict(top_p=0.01), [0, 1, 0, 0, 0]),
        (dict(top_p=0.39), [0, 1, 0, 0, 0]),
        (dict(top_p=0.41), [0, 4 / 7, 0, 3 / 7, 0]),
        (dict(top_p=0.71), [0, 8 / 17, 0, 6 / 17, 3 / 17]),
        (dict(top_p=1.0), PROBABILITIES),
        # Among the two best the first has 4 / 7 = 0.571; at temperature 1 / 2 it has 16 / 25.
        (dict(top_k=2, top_p=0.55), [0, 1, 0, 0, 0]),
        (dict(top_k=2, top_p=0.6), [0, 4 / 7, 0, 3 / 7, 0]),
        (dict(top_k=2, top_p=0.6, temperature=0.5), [0, 1, 0, 0, 0]),
    ],
)
def test_what_sample_draws_from(options, expected):
    draws = 20_000
    logits = jnp.broadcast_to(jnp.log(PROBABILITIES) + 300.0, (draws, 5))
    drawn = jax.jit(sample)(jax.random.key(0), logits, **options)
    assert drawn.dtype == jnp.int32
    frequencies = np.bincount(drawn, minlength=5) / draws
    expected = np.array(expected)
    assert np.all(frequencies[expected == 0] == 0)
    deviation = np.sqrt(expected * (1 - expected) / draws)
    assert np.all(np.abs(frequencies - expected) <= 4 * deviation + 1e-9)


def test_equal_logits_leave_k_tokens():
    drawn = jax.jit(sample)(jax.random.key(0), jnp.zeros((20_000, 5)), top_k=2)
    assert set(drawn.tolist()) == {0, 1}


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "no prompts were given: give a list of one or more"),
        ([[1], []], {}, r"prompts\[1\] is empty: a prompt has one token or more"),
        ([1, 2], {}, r"prompts\[0\] is an array of shape \[\]: put a single prompt in a list"),
        ([[1] * 32], {}, r"prompts\[0\] has 32 tokens.*block_size=32 .*last 31 tokens"),
        ([[1] * 40], {}, r"prompts\[0\] has 40 tokens"),
        ([[1, 7]], {}, r"tokens are 0 to 6 \(vocabulary=7\); 1 to 7 were given"),
        ([[1], [-1]], {}, "-1 to -1 were given"),
        ([[0.5]], {}, "tokens are integers"),
        ([[1]], dict(temperature=-0.1), "temperature is 0 or more; -0.1 was given"),
        ([[1]], dict(temperature=float("nan")), "temperature is 0 or more; nan was given"),
        ([[1]], dict(seed=2**40), r"seed is a whole number, 0 to 2\^32 - 1; 1099511627776"),
        ([[1]], dict(top_p="a"), "top_p is greater than 0 and at most 1; 'a' was given"),
        ([[1]], dict(end=2.5), r"end is a token, 0 to 6"),
        ([[1]], dict(top_k=0), "top_k is a whole number, 1 or more; 0 was given"),
        ([[1]], dict(top_p=0.0), "top_p is greater than 0 and at most 1; 0.0 was given"),
        ([[1]], dict(top_p=1.1), "top_p is greater than 0 and at most 1; 1.1 was given"),
        ([[1]], dict(max_new_tokens=0), "max_new_tokens is a whole number, 1 or more; 0"),
        ([[1]], dict(end=7), r"end is a token, 0 to 6 \(vocabulary=7\), or None; 7 was given"),
    ],
)
def test_refusals(prompts, options, message):
    def start(model, variables, prompts, **options):
        """Refuses at the call, not at the first token."""
        stream(model, variables, prompts, GenerateOptions(**options))

    for function in (generate, start):
        with pytest.raises(ValueError, match=message):
            function(*make(), prompts, **options)
