"""Ours against torch, transformers and timm, whose numbers tests/data/references.json holds."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odeformer import TransformerField, make_vector_field
from odeformer.interop.positions import antialiased, plain
from odeformer.transformer.field import init_params
from odeformer.transformer.layers import Dropout
from odeformer.transformer.rotary import rotate, rotation
from tests.helpers import references
from train.augment.mixing import mix
from train.config.data import AugmentConfig
from train.config.run import OptimizerConfig
from train.optimizer import make_optimizer, make_schedule, update_ema
from train.tasks.task import cross_entropy

FOUND = json.loads(references.PATH.read_text())


def test_each_recipe_is_stored_and_compared():
    """The reference of each stands in the file, and a test of its name below."""
    names = [recipe.__name__ for recipe in references.RECIPES]
    assert [name for name in FOUND if name != "made_with"] == names
    assert {f"test_{name}" for name in names} <= globals().keys()


def test_rotary():
    given = FOUND["rotary"]
    queries, positions = np.float32(given["queries"]), np.array([given["positions"]])
    found = rotate(queries[None, :, None], rotation(positions, queries.shape[1]))[0, :, 0]
    # The angles of position 300 are rounded to 3e-5 of a turn by either.
    np.testing.assert_allclose(found, given["rotated"], rtol=1e-5, atol=5e-5)
    np.testing.assert_allclose(found[:4], given["rotated"][:4], rtol=1e-5, atol=1e-6)


def test_label_smoothing():
    """Of labels, as texts have them, and of distributions, as mixed images do."""
    given = FOUND["label_smoothing"]
    logits, labels = jnp.asarray(given["logits"]), jnp.asarray(given["labels"])
    for smoothing, losses in given["losses"].items():
        found = cross_entropy(logits, labels, float(smoothing))
        np.testing.assert_allclose(found, losses, rtol=1e-6)
        images = jnp.zeros((len(labels), 1, 1, 1))
        _, targets = mix(AugmentConfig(), jax.random.key(0), images, labels, 4, float(smoothing))
        np.testing.assert_allclose(cross_entropy(logits, targets), losses, rtol=1e-6)


@pytest.mark.parametrize("layers", FOUND["drop_path"]["rates"])
def test_drop_path(layers):
    """The rate that drop-path receives at each layer's time, of both terms."""
    given = FOUND["drop_path"]
    field = TransformerField(width=4, heads=1, mlp=4, drop_path=given["rate"], layers=int(layers))
    y = jnp.ones((1, 2, 4))
    slope = make_vector_field(field, train=True)
    theta = jax.eval_shape(lambda key: init_params(field, key, y), jax.random.key(0))
    theta = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), theta)
    rates = []

    def record(call, args, kwargs, context):
        if isinstance(context.module, Dropout) and context.method_name == "__call__":
            rates.append(float(args[1]))
        return call(*args, **kwargs)

    for layer in range(int(layers)):
        with nn.intercept_methods(record):
            slope(jnp.float32(layer), y, (theta, jnp.float32(0)), jax.random.key(0))
    np.testing.assert_allclose(rates, np.repeat(given["rates"][layers], 2), rtol=1e-6)


@pytest.mark.parametrize("number", range(len(FOUND["mixing"]["cases"])))
def test_mixing(number, monkeypatch):
    """The images and the targets of timm's weight and centre."""
    given, case = FOUND["mixing"], FOUND["mixing"]["cases"][number]
    monkeypatch.setattr(jax.random, "beta", lambda *_: jnp.float32(case["kept"]))
    monkeypatch.setattr(jax.random, "randint", lambda *_: jnp.array(case["centre"]))
    config = AugmentConfig(**{case["kind"]: 1.0})
    images = jnp.asarray(given["images"], jnp.float32)[..., None]
    labels = jnp.asarray(given["labels"])
    mixed, targets = mix(
        config, jax.random.key(0), images, labels, given["classes"], given["smoothing"]
    )
    np.testing.assert_allclose(mixed[..., 0], case["images"], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(targets, case["targets"], rtol=1e-5)


@pytest.mark.parametrize("warmup", FOUND["schedule"]["rates"])
def test_schedule(warmup):
    given = FOUND["schedule"]
    config = OptimizerConfig(learning_rate=given["learning_rate"], warmup_steps=int(warmup))
    found = make_schedule(config, given["train_steps"])(jnp.arange(given["train_steps"]))
    # The cosine's last rates are differences of numbers near 1.
    np.testing.assert_allclose(found, given["rates"][warmup], rtol=1e-5, atol=1e-9)


def test_adamw():
    """Kernels decay and biases do not, the gradient is clipped, the rate follows the schedule."""
    given = FOUND["adamw"]
    config = dict(given["options"])
    steps = config.pop("train_steps")
    optimizer = make_optimizer(OptimizerConfig(**config), steps)
    params = jax.tree.map(jnp.float32, {name: jnp.array(v) for name, v in given["start"].items()})
    state = optimizer.init(params)

    @jax.jit
    def learn(grads, state, params):
        updates, state = optimizer.update(grads, state, params)
        return jax.tree.map(jnp.add, params, updates), state

    for step in range(steps):
        grads = {name: jnp.float32(np.array(g[step])) for name, g in given["gradients"].items()}
        params, state = learn(grads, state, params)
        for name, value in params.items():
            # torch divides by the norm plus 1e-6.
            np.testing.assert_allclose(value, given["after"][name][step], rtol=1e-5, atol=1e-6)


def test_average():
    given = FOUND["average"]
    mean, update = jnp.float32(np.array(given["start"])), jax.jit(update_ema)
    for n, (value, expected) in enumerate(zip(given["weights"], given["means"], strict=True)):
        mean = update(given["decay"], jnp.int32(n), mean, jnp.float32(np.array(value)))
        np.testing.assert_allclose(mean, expected, rtol=1e-5, atol=1e-6)


def test_resampling():
    given = FOUND["resampling"]
    places = np.float32(given["places"])
    for case in given["cases"]:
        for rule, expected in ((plain, case["plain"]), (antialiased, case["smoothed"])):
            found = rule(places, tuple(case["grid"]))
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6)


@pytest.mark.slow
def test_the_references_are_made_again():
    """Where torch, transformers and timm are installed: by `python -m tests.helpers.references`."""
    for package in references.PACKAGES:
        pytest.importorskip(package)
    made = json.loads(json.dumps(references.make()))
    leaves, tree = jax.tree.flatten({k: v for k, v in made.items() if k != "made_with"})
    stored, same = jax.tree.flatten({k: v for k, v in FOUND.items() if k != "made_with"})
    assert tree == same
    for new, old in zip(leaves, stored, strict=True):
        assert new == (old if isinstance(old, str) else pytest.approx(old, rel=1e-6, abs=1e-8))
