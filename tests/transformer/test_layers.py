"""The parts of a transformer: masks, positions, activations, what they refuse."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odeformer.transformer.attention import Attention
from odeformer.transformer.layers import ACTIVATIONS, MLP, Dropout, grid_positions
from odeformer.transformer.norms import layer_norm, param_dtype


def test_drop_path_keeps_the_mean():
    x = jnp.ones((20_000, 1, 2))
    rngs, samples = {"dropout": jax.random.key(0)}, jnp.arange(len(x))
    dropped = Dropout(whole=True).apply({}, x, jnp.float32(0.25), samples, rngs=rngs)
    np.testing.assert_allclose(np.unique(dropped), [0, 4 / 3], rtol=1e-6)
    np.testing.assert_array_equal(dropped[..., 0], dropped[..., 1])
    assert abs(float(dropped.mean()) - 1) < 0.02  # 5 standard deviations


def test_a_mask_follows_from_the_key_and_the_number_of_the_sample():
    x, rngs = jnp.ones((6, 4, 5)), {"dropout": jax.random.key(0)}
    for whole in (False, True):
        layer = Dropout(whole)
        dropped = layer.apply({}, x, 0.5, jnp.arange(6), rngs=rngs)
        some = jnp.array([4, 1, 5])
        np.testing.assert_array_equal(layer.apply({}, x[:3], 0.5, some, rngs=rngs), dropped[some])
        assert len(np.unique(np.asarray(dropped), axis=0)) > 1  # samples differ


def test_grid_positions_code_the_row_and_then_the_column():
    table = grid_positions(2, 3, 8)
    assert table.shape == (6, 8) and table.dtype == np.float32
    waves = np.array([1.0, 1e-4])
    for place, (row, column) in enumerate(np.ndindex(2, 3)):
        angles = row * waves, column * waves
        expected = np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)])
        np.testing.assert_allclose(table[place], expected, rtol=1e-6)


BY_HAND = {
    "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "relu": lambda x: max(x, 0.0),
    "silu": lambda x: x / (1 + math.exp(-x)),
}


def test_activations_by_hand():
    x = np.linspace(-4, 4, 33, dtype=np.float32)
    assert set(ACTIVATIONS) == set(BY_HAND)
    for name, by_hand in BY_HAND.items():
        layer = MLP(33, 33, activation=name)
        one = {"kernel": jnp.eye(33), "bias": jnp.zeros(33)}
        found = layer.apply({"params": {"up": one, "down": one}}, x)
        np.testing.assert_allclose(found, [by_hand(v) for v in x.tolist()], rtol=1e-5, atol=1e-6)


def test_a_norm_adds_its_epsilon_to_the_variance():
    x = np.array([[1.0, -1.0, 3.0, 5.0]], np.float32)
    norm = layer_norm(jnp.float32, epsilon=0.25)
    found = norm.apply({"params": {"scale": jnp.full(4, 2.0), "bias": jnp.ones(4)}}, x)
    np.testing.assert_allclose(found, 1 + 2 * (x - 2) / math.sqrt(5 + 0.25), rtol=1e-6)


def test_float64_without_x64_is_refused():
    with pytest.raises(ValueError, match="jax_enable_x64 is off"):
        param_dtype("float64")
    with jax.enable_x64(True):
        assert param_dtype("float64") == jnp.float64
    assert param_dtype("bfloat16") == jnp.float32


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(heads=3, width=16), "heads=3 does not divide width=16: take heads from 1, 2, 4"),
        (dict(heads=0, width=16), "heads is a whole number, 1 or more; 0"),
        (dict(heads=2, width=16, implementation="flash"), "unknown attention 'flash'"),
        (dict(heads=2, width=16, implementation="cudnn"), "'bfloat16'; 'float32' was given"),
    ],
)
def test_attention_refusals(values, message):
    with pytest.raises(ValueError, match=message):
        Attention(**values)


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="there cuDNN may be")
def test_cudnn_needs_a_gpu():
    attention = Attention(2, 16, jnp.bfloat16, "cudnn")
    with pytest.raises(ValueError, match="'cudnn' runs on NVIDIA GPUs.*take attention 'auto'"):
        attention.init(jax.random.key(0), jnp.ones((1, 3, 16)))
