"""The text classifier: padding, pooling, adaptive steps that leave padding out, refusals."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odeformer import DepthConfig, TextClassifier, TextConfig, presets
from tests.helpers.trees import noisy, relative_error

SMALL = TextConfig(
    vocabulary=11, block_size=12, width=16, heads=2, mlp=32, classes=3, depth=DepthConfig(layers=2)
)
LENGTHS = np.array([5, 5, 9])  # two of the same, which share their compilation
TOKENS = jax.random.randint(jax.random.key(0), (3, 9), 0, 11)
MASK = jnp.arange(9) < LENGTHS[:, None]


def make(**changes):
    """A model and parameters that are zero nowhere."""
    model = TextClassifier(dataclasses.replace(SMALL, **changes))
    depth = DepthConfig(layers=2, share=model.config.depth.share)
    return model, make_variables(model.config.positions, depth)


@functools.cache
def make_variables(positions, depth):
    """Parameters do not depend on the solver or the pooling."""
    model = TextClassifier(dataclasses.replace(SMALL, positions=positions, depth=depth))
    return noisy(jax.jit(model.init)(jax.random.key(1), TOKENS), 0.3)


def apply(model, variables, *args, mutable=False):
    return jit_apply(model, mutable)(variables, *args)


@functools.cache
def jit_apply(model, mutable):
    return jax.jit(functools.partial(model.apply, mutable=["ode"] if mutable else False))


def alone(model, variables, n):
    """The n-th text's logits, without padding and without the others."""
    return apply(model, variables, TOKENS[n : n + 1, : LENGTHS[n]])[0]


@pytest.mark.parametrize("pool", ["mean", "first"])
@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_a_text_alone_and_padded_in_a_batch(pool, positions):
    depth = DepthConfig(layers=2, solver="strang")
    model, variables = make(pool=pool, positions=positions, depth=depth)
    logits = apply(model, variables, TOKENS, MASK)
    assert logits.shape == (3, 3)
    for n in range(3):
        np.testing.assert_allclose(logits[n], alone(model, variables, n), atol=1e-5)


def test_embeddings_are_scaled_by_the_root_of_the_width():
    """By arXiv 1706.03762, as learned positions are added to them."""
    model, variables = make(positions="learned")
    params = variables["params"]
    expected = 4.0 * params["embedding"]["embedding"][TOKENS]
    expected += params["position_embedding"]["embedding"][: TOKENS.shape[1]]
    positions = jnp.broadcast_to(jnp.arange(TOKENS.shape[1]), TOKENS.shape)
    found = model.apply(variables, TOKENS, positions, method=model.embed)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


ADAPTIVE = DepthConfig(layers=2, share=2, solver="bosh3", rtol=1e-2, per_sample=True)


def test_padding_under_adaptive_steps():
    """Each text takes the steps it takes alone: padding has no part in the error norm."""
    model, variables = make(depth=ADAPTIVE)
    logits, aux = apply(model, variables, TOKENS, MASK, mutable=True)
    counts = []
    for n in range(3):
        tokens = TOKENS[n : n + 1, : LENGTHS[n]]
        single, single_aux = apply(model, variables, tokens, mutable=True)
        np.testing.assert_allclose(logits[n], single[0], atol=1e-5)
        np.testing.assert_array_equal(aux["ode"]["nfe"][:, n], single_aux["ode"]["nfe"][:, 0])
        counts.append(int(single_aux["ode"]["accepted"][0, 0]))
    assert len(set(counts)) > 1  # they do take steps of their own


def test_padding_has_no_part_in_a_shared_error_norm():
    depth = dataclasses.replace(ADAPTIVE, per_sample=False)
    model, variables = make(depth=depth)
    padded = jnp.pad(TOKENS[:1, :5], ((0, 0), (0, 7)))
    logits, aux = apply(model, variables, padded, jnp.arange(12)[None] < 5, mutable=True)
    single, single_aux = apply(model, variables, TOKENS[:1, :5], mutable=True)
    np.testing.assert_allclose(logits, single, atol=1e-5)
    assert aux["ode"]["nfe"].tolist() == single_aux["ode"]["nfe"].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("adjoint", ["checkpoint", "backsolve"])
def test_gradients_under_adaptive_steps_and_padding(adjoint):
    depth = DepthConfig(layers=2, share=2, solver="rk4", steps=256)
    model, variables = make(depth=depth)
    tight = DepthConfig(
        layers=2,
        share=2,
        solver="bosh3",
        rtol=1e-6,
        max_steps=512,
        per_sample=True,
        adjoint=adjoint,
    )
    adaptive, _ = make(depth=tight)

    def gradient(model):
        loss = lambda v: jnp.square(model.apply(v, TOKENS, MASK)).sum()
        return jax.jit(jax.grad(loss))(variables)["params"]["embedding"]["embedding"]

    assert relative_error(gradient(adaptive), gradient(model)) < 1e-3


@pytest.mark.parametrize("pool", ["mean", "first"])
def test_padding_on_the_left(pool):
    """The first token is the first that is seen, wherever it stands."""
    model, variables = make(pool=pool)
    padded = jnp.pad(TOKENS[:1, :5], ((0, 0), (4, 0)))
    logits = apply(model, variables, padded, jnp.arange(9)[None] >= 4)[0]
    np.testing.assert_allclose(logits, alone(model, variables, 0), atol=1e-5)


def test_tokens_see_both_sides():
    model, variables = make()
    changed = apply(model, variables, TOKENS.at[0, 4].set(TOKENS[0, 4] + 1), MASK)
    same = apply(model, variables, TOKENS.at[0, 5].set(TOKENS[0, 5] + 1), MASK)
    logits = apply(model, variables, TOKENS, MASK)
    assert float(jnp.abs(changed - logits)[0].max()) > 1e-4
    np.testing.assert_array_equal(same, logits)


def test_parameter_counts():
    assert presets.TEXT_NAMES == ("text_small",)
    model = TextClassifier(presets.text("text_small"))
    tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 2_578_434


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(pool="token"), "unknown pool 'token'; accepted: mean, first"),
        (dict(classes=0), "classes is a whole number, 1 or more; 0"),
    ],
)
def test_config_refusals(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **changes)


def test_mask_refusals():
    model, variables = make()
    for mask in (MASK[:, :5], MASK.astype(int)):
        with pytest.raises(ValueError, match=r"the mask is bool and of the tokens' shape \[3, 9\]"):
            model.apply(variables, TOKENS, mask)
