"""Centred attention in whole models: programs, parameters, decoding, refusals."""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odeformer import (
    LM,
    DepthConfig,
    LMConfig,
    TextConfig,
    TransformerField,
    ViTConfig,
    flops,
    make_model,
    solvers,
)
from odeformer.models.decoding import advance, init_cache, predict
from odeformer.models.registry import example_inputs
from odeformer.ode.precision import programs_inside
from odeformer.transformer.attention import Attention
from odeformer.transformer.centring import visible_means

BASE = dict(width=16, heads=2, mlp=32)
SHARED = DepthConfig(layers=2, share=2)
PACKED = jnp.asarray(np.array([[1, 1, 2, 2, 2, 1, 0, 0], [3, 3, 3, 1, 1, 1, 1, 0]]))
WORDS = jnp.asarray(np.random.default_rng(0).integers(0, 7, (2, 8)))


def config_of(kind, **changes):
    values = {"depth": DepthConfig(layers=2), **BASE, **changes}
    if kind == "vit":
        return ViTConfig(image_size=8, patch_size=4, channels=1, **values)
    return (LMConfig if kind == "lm" else TextConfig)(7, 8, **values)


def inputs_of(kind):
    if kind == "vit":
        return (jax.random.normal(jax.random.key(0), (2, 8, 8, 1)),)
    return (WORDS, PACKED) if kind == "lm" else (WORDS, PACKED != 0)


@functools.cache
def variables_of(kind, **changes):
    model = make_model(config_of(kind, **changes))
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs_of(kind))
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(1)
    return jax.tree.unflatten(tree, [0.3 * rng.standard_normal(x.shape, "f4") for x in leaves])


def primitives(function, *args):
    """How often each primitive stands in a program, those of inner programs too."""
    counts = collections.Counter()

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            counts[equation.primitive.name] += 1
            for inner in programs_inside(equation.params):
                walk(getattr(inner, "jaxpr", inner))

    walk(jax.make_jaxpr(function)(*args).jaxpr)
    return counts


@pytest.mark.parametrize("kind", ["vit", "lm", "text"])
@pytest.mark.parametrize("fused", [False, True])
def test_uncentred_is_the_program_without_it(kind, fused, monkeypatch):
    """What centre adds is the means, their product, their difference and its casts: 0 has none."""
    inputs, variables = inputs_of(kind), variables_of(kind)
    plain, zero, one = (
        primitives(make_model(config_of(kind, fused=fused, **changes)).apply, variables, *inputs)
        for changes in ({}, dict(centre=0.0), dict(centre=1.0))
    )
    assert zero == plain

    batch, tokens = (2, 5) if kind == "vit" else (2, 8)
    v = jnp.zeros((batch, tokens, 2, 8))
    segments = None if kind == "vit" else PACKED
    added = lambda v: v - 1.0 * visible_means(v, segments, kind == "lm")
    assert one - plain == primitives(added, v) and not plain - one
    assert {"vit": "reduce_sum", "lm": "sort", "text": "sort"}[kind] in one - plain

    monkeypatch.setattr("odeformer.transformer.attention.visible_means", pytest.fail)
    jax.eval_shape(make_model(config_of(kind, fused=fused)).apply, variables, *inputs)


@pytest.mark.parametrize("kind", ["vit", "lm", "text"])
def test_parameters_do_not_depend_on_the_centre(kind):
    shapes = [
        jax.eval_shape(
            make_model(config_of(kind, centre=centre)).init, jax.random.key(0), *inputs_of(kind)
        )
        for centre in (0.0, 1.0)
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("kind", ["vit", "lm"])
def test_the_fused_sum_is_the_same(kind):
    variables = variables_of(kind)
    models = [
        make_model(config_of(kind, **changes))
        for changes in ({}, dict(centre=1.0), dict(centre=1.0, fused=True))
    ]
    apply = jax.jit(lambda variables, *inputs: [m.apply(variables, *inputs) for m in models])
    plain, centred, fused = apply(variables, *inputs_of(kind))
    np.testing.assert_allclose(fused, centred, rtol=1e-4, atol=1e-5)
    assert np.abs(plain - centred).max() > 1e-3


def test_packed_texts_are_centred_each_alone():
    """Documents that interleave, and padding, give what each gives by itself."""
    lm, classifier = (make_model(config_of(kind, centre=1.0)) for kind in ("lm", "text"))
    segments = np.array([1, 1, 2, 2, 2, 1, 0, 0])
    positions = jnp.asarray([0, 1, 0, 1, 2, 2, 0, 0])[None].repeat(2, 0)
    places = [np.flatnonzero(segments == number) for number in (1, 2)]
    mask = jnp.arange(8)[None].repeat(2, 0) < 6

    @jax.jit
    def apply(variables, text_variables):
        packed = lm.apply(variables, WORDS, jnp.asarray(segments)[None].repeat(2, 0), positions)
        alone = [lm.apply(variables, WORDS[:, place]) for place in places]
        padded = classifier.apply(text_variables, WORDS, mask)
        return packed, alone, padded, classifier.apply(text_variables, WORDS[:, :6])

    packed, alone, padded, shorter = apply(variables_of("lm"), variables_of("text"))
    for place, expected in zip(places, alone, strict=True):
        np.testing.assert_allclose(packed[:, place], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(padded, shorter, rtol=1e-4, atol=1e-5)


BY_DEFAULT = ("lie_trotter", "midpoint")


@pytest.mark.parametrize(
    "solver",
    [
        name if name in BY_DEFAULT else pytest.param(name, marks=pytest.mark.slow)
        for name in solvers.NAMES
    ],
)
def test_decoding_equals_the_whole_pass(solver):
    """In chunks that padding fills up: 5 tokens, then 3 of 4 and 4 of 4, by every solver."""
    depth = DepthConfig(layers=2, share=2, solver=solver)
    config = LMConfig(7, 16, centre=1.0, time="additive", depth=depth, **BASE)
    model = LM(config)
    variables = decoded_variables()
    tokens = jnp.asarray(np.random.default_rng(3).integers(0, 7, (2, 12)))

    @jax.jit
    def both(variables):
        cache, logits = init_cache(config, 2), []
        for begin, width, length in ((0, 5, 5), (5, 4, 3), (8, 4, 4)):
            chunk, lengths = tokens[:, begin : begin + width], jnp.full(2, length)
            y, cache = advance(model, variables, chunk, cache, lengths)
            logits.append(predict(model, variables, y)[:, :length])
        return jnp.concatenate(logits, axis=1), cache, model.apply(variables, tokens)

    decoded, cache, whole = both(variables)
    keys = cache.terms["attention"]
    assert keys.sums.shape == (*keys.k.shape[:4], *keys.k.shape[5:])
    assert float(jnp.abs(whole).max()) > 0.5
    np.testing.assert_allclose(decoded, whole, rtol=0, atol=1e-4)


@functools.cache
def decoded_variables():
    config = LMConfig(7, 16, time="additive", depth=DepthConfig(layers=2, share=2), **BASE)
    shapes = jax.eval_shape(LM(config).init, jax.random.key(0), WORDS)
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(1)
    return jax.tree.unflatten(tree, [0.3 * rng.standard_normal(x.shape, "f4") for x in leaves])


def test_the_cache_of_a_plain_model_has_no_sums():
    config = config_of("lm", dtype="bfloat16")
    assert init_cache(config, 2).terms["attention"].sums is None
    sums = init_cache(dataclasses.replace(config, centre=1.0), 2).terms["attention"].sums
    assert sums.dtype == jnp.float32


@pytest.mark.parametrize(("kind", "fused"), [("vit", True), ("lm", False), ("text", True)])
def test_centring_has_no_matrix_products(kind, fused):
    config = config_of(kind, centre=1.0, depth=DepthConfig(layers=2, adjoint="store"))
    model, inputs = make_model(config), example_inputs(config)
    variables = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    loss = lambda variables, *inputs: jnp.sum(model.apply(variables, *inputs))
    assert flops.count(model.apply, variables, *inputs) == flops.forward(config)
    assert flops.count(jax.grad(loss), variables, *inputs) == flops.training(config)
    plain = dataclasses.replace(config, centre=0.0)
    assert flops.training(config) == flops.training(plain)


def test_no_array_has_the_tokens_twice():
    """In the means and in their gradient, of segments too: memory grows with N, not with N^2."""
    tokens = 64
    v = jnp.zeros((1, tokens, 2, 4))
    for causal in (False, True):
        program = jax.make_jaxpr(
            jax.grad(lambda v, c=causal: visible_means(v, jnp.zeros((1, tokens), int), c).sum())
        )(v)
        assert f"{tokens},{tokens}" not in str(program)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400, 1e39, "1", True, None])
def test_a_centre_that_is_no_finite_number_is_refused(value):
    for make in (
        lambda: config_of("vit", centre=value),
        lambda: config_of("lm", centre=value),
        lambda: config_of("text", centre=value),
        lambda: TransformerField(16, 2, 32, centre=value),
        lambda: Attention(2, 16, centre=value),
    ):
        with pytest.raises(ValueError, match="centre is a finite number of float32; .* was given"):
            make()


def test_strict_modes():
    """What JAX refuses there it refuses while it traces."""
    config = config_of("lm", centre=1.0, dtype="bfloat16")
    classifier = make_model(config_of("text", centre=1.0))
    loss = lambda variables: jnp.sum(classifier.apply(variables, *inputs_of("text")))

    def read(variables):
        lengths = jnp.full(2, 3, jnp.int32)
        return advance(LM(config), variables, WORDS[:, :3], init_cache(config, 2), lengths)

    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        jax.eval_shape(jax.grad(loss), variables_of("text"))
        jax.eval_shape(read, variables_of("lm"))


@pytest.mark.parametrize("solver", solvers.NAMES)
def test_every_solver_takes_it(solver):
    """Traced: one value for each is computed by the slow tests of decoding."""
    config = config_of("text", centre=1.0, depth=DepthConfig(layers=2, share=2, solver=solver))
    model, inputs = make_model(config), inputs_of("text")
    loss = lambda variables: jnp.sum(model.apply(variables, *inputs))
    assert jax.eval_shape(loss, variables_of("text", depth=SHARED)).shape == ()
