"""What a flow does to its states: the states along depth, and how alike their tokens are."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odeformer import DepthConfig, LMConfig, ODEStack, TextConfig, ViTConfig, make_model
from odeformer.analysis import similarity, trajectory
from odeformer.transformer.field import transformer_field
from odeformer.transformer.state import Context
from tests.helpers.trees import noisy

SIZES = dict(width=16, heads=2, mlp=32)
DEPTH = DepthConfig(layers=4, share=2, solver="midpoint")
WORDS = jnp.asarray(np.random.default_rng(0).integers(0, 7, (2, 8)))


def test_similarity_of_every_pair_by_hand():
    rng = np.random.default_rng(0)
    states = rng.standard_normal((3, 2, 5, 4)).astype("f4")
    mask = np.array([[1, 1, 1, 1, 1], [0, 1, 1, 0, 1]], bool)
    found = similarity(states, mask)
    for t, b in np.ndindex(3, 2):
        y = states[t, b, mask[b]].astype(float)
        unit = y / np.linalg.norm(y, axis=-1, keepdims=True)
        cosine = np.mean([unit[i] @ unit[j] for i, j in np.ndindex(len(y), len(y)) if i != j])
        deviation = np.linalg.norm(y - y.mean(0)) / np.linalg.norm(y)
        np.testing.assert_allclose(found.cosine[t, b], cosine, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found.deviation[t, b], deviation, rtol=1e-5)


def test_similarity_at_its_ends():
    same, opposite = np.full((4, 3), 2.0, "f4"), np.array([[1, 2], [-1, -2]], "f4")
    np.testing.assert_allclose(similarity(same), (1, 0), atol=1e-6)
    np.testing.assert_allclose(similarity(opposite), (-1, 1), atol=1e-6)
    np.testing.assert_array_equal(similarity(0 * same), (0, 0))
    assert similarity(jnp.ones((2, 3), jnp.bfloat16)).cosine.dtype == jnp.float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.ones(3, "f4"),), r"floating dtype; float32\[3\] was given"),
        ((np.ones((2, 3), "i4"),), r"floating dtype; int32\[2, 3\] was given"),
        ((np.ones((1, 3), "f4"),), "hold 1 tokens"),
        ((np.ones((2, 3), "f4"), np.ones(3, bool)), r"bool \[..., 2\].*bool\[3\] was given"),
        ((np.ones((2, 3), "f4"), np.ones(2, "i4")), r"int32\[2\] was given"),
        ((np.ones((2, 3), "f4"), np.ones((4, 2), bool)), r"bool\[4, 2\] was given"),
    ],
)
def test_similarity_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        similarity(*arguments)


def test_states_at_the_layers_between_two_nodes():
    """Weights that are linear between nodes two layers apart have nodes at every layer, too."""
    depth = DepthConfig(layers=4, basis="hat", coefficients=3, solver="midpoint")
    model = make_model(TextConfig(7, 8, depth=depth, **SIZES))
    variables = noisy(model.init(jax.random.key(0), WORDS))
    by_group, by_layer = jax.jit(
        lambda v: tuple(trajectory(model, v, WORDS, layers=n) for n in (False, True))
    )(variables)
    assert by_group.shape == (3, 2, 8, 16) and by_layer.shape == (5, 2, 8, 16)
    np.testing.assert_allclose(by_layer[::2], by_group, rtol=1e-4, atol=1e-5)

    fine = dataclasses.replace(depth, coefficients=9)
    with pytest.raises(ValueError, match="8 elements of basis 'hat' are parts of the layers=4"):
        model = make_model(dataclasses.replace(model.config, depth=fine))
        trajectory(model, variables, WORDS, layers=True)


def test_states_at_the_ends_of_groups_and_layers():
    """The stack by itself, of one layer after the other, from the embedded tokens."""
    config = LMConfig(7, 8, depth=DEPTH, time="additive", **SIZES)
    model = make_model(config)
    variables = noisy(model.init(jax.random.key(0), WORDS))
    stack = ODEStack(DEPTH, transformer_field(config))

    @jax.jit
    def find(variables):
        by_group, by_layer = (trajectory(model, variables, WORDS, layers=n) for n in (False, True))
        positions = jnp.arange(8)[None].repeat(2, 0)
        y = model.apply(variables, WORDS, positions, method="embed")
        layout = model.apply(variables, positions, method="rotation")
        theta = {"params": variables["params"]["depth"]}
        solution = stack.apply(theta, y, False, Context(None, layout))
        return by_group, by_layer, y, solution.y1

    by_group, by_layer, y0, y1 = find(variables)
    assert by_group.shape == (3, 2, 8, 16) and by_layer.shape == (5, 2, 8, 16)
    np.testing.assert_array_equal(by_group[0], y0)
    np.testing.assert_array_equal(by_group[-1], y1)
    np.testing.assert_allclose(by_layer[::2], by_group, rtol=1e-4, atol=1e-5)
    assert np.abs(np.diff(by_layer, axis=0)).max((1, 2, 3)).min() > 1e-2


def test_every_model_has_states():
    vit = ViTConfig(image_size=8, patch_size=4, channels=1, depth=DEPTH, **SIZES)
    text = TextConfig(7, 8, depth=DEPTH, **SIZES)
    images = jnp.ones((2, 8, 8, 1))
    for config, inputs, tokens in ((vit, (images,), 5), (text, (WORDS, WORDS > 2), 8)):
        model = make_model(config)
        variables = jax.eval_shape(model.init, jax.random.key(0), *inputs)
        for layers, times in ((False, 3), (True, 5)):
            find = lambda v, m=model, i=inputs, n=layers: trajectory(m, v, *i, layers=n)
            assert jax.eval_shape(find, variables).shape == (times, 2, tokens, 16)


def test_states_are_kept_where_they_are_asked_for():
    model = make_model(ViTConfig(image_size=8, patch_size=4, channels=1, depth=DEPTH, **SIZES))
    images = jnp.ones((2, 8, 8, 1))
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    assert set(variables) == {"params"}
    _, counts = jax.eval_shape(lambda v: model.apply(v, images, mutable=["ode"]), variables)
    assert set(counts) == {"ode"}


def test_trajectory_refuses():
    config = LMConfig(7, 8, depth=dataclasses.replace(DEPTH, steps=3), **SIZES)
    with pytest.raises(ValueError, match="steps=3 do not end at each of the share=2 layers"):
        trajectory(make_model(config), {}, WORDS, layers=True)
    with pytest.raises(ValueError, match="layers is True or False; 3 was given"):
        trajectory(make_model(config), {}, WORDS, layers=3)
    with pytest.raises(ValueError, match="trajectory takes a ViT or LM or TextClassifier"):
        trajectory(config, {}, WORDS)
