"""Parameters that are frozen, and learning rates by name and by layer: under every optimiser."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from odeformer import ViT, presets
from tests.helpers.tiny import make_tiny
from tests.helpers.trees import noisy
from train.config.border import from_config_dict
from train.config.patterns import matches_any
from train.config.run import OptimizerConfig
from train.config.tables import OPTIMIZERS
from train.data.pipeline import train_batches
from train.data.sources import load_splits
from train.devices.mesh import device_mesh
from train.optimizer import make_optimizer, make_schedule, parameter_name
from train.state import init_state
from train.step import make_train_step
from train.tasks import make_task

LAYERS, STEPS = 6, 10
FROZEN = ("patches", "depth/groups/attention_layer", "**/mlp_norm/scale")


def start() -> Any:
    """The parameters of a model of three groups of two layers each, and their names."""
    depth = dict(layers=LAYERS, share=2)
    config = presets.vit("digits", pool="token", width=32, heads=2, mlp=32, depth=depth)
    images = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
    params = jax.eval_shape(ViT(config).init, jax.random.key(0), images)["params"]
    return noisy(jax.tree.map(lambda x: jnp.zeros(x.shape), params), 1.0)


def by_name(tree) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {parameter_name(path): leaf for path, leaf in leaves}


def options_of(**changes):
    options = dict(learning_rate=0.1, weight_decay=0.3, warmup_steps=2, clip_norm=1.0)
    return OptimizerConfig(**options | changes)


def walk(options, params):
    """The parameters, by name, after three updates by gradients of all sizes; and the state."""
    optimizer = make_optimizer(options, STEPS, LAYERS)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    first = params
    for step in range(3):
        grads = jax.tree.map(lambda x, step=step: jnp.sin((step + 1) * 9 * x), first)
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return by_name(params), state


def one_step(options, params, gradient=lambda x: jnp.sin(9 * x)):
    """The first update, by name, for a gradient that is a function of the parameters."""
    optimizer = make_optimizer(options, STEPS, LAYERS)

    @jax.jit
    def update(params):
        grads = jax.tree.map(gradient, params)
        return optimizer.update(grads, optimizer.init(params), params)[0]

    return by_name(update(params))


def without(tree, patterns, path=()):
    """A tree without the leaves that match."""
    kept = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            if below := without(value, patterns, (*path, key)):
                kept[key] = below
        elif not matches_any("/".join((*path, key)), patterns):
            kept[key] = value
    return kept


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_frozen_parameters_might_as_well_not_be_there(name):
    """Not for the norm that clips, nor for the decay, nor in the state; bit for bit."""
    params = start()
    found, state = walk(options_of(name=name, freeze=FROZEN), params)
    expected, expected_state = walk(options_of(name=name), without(params, FROZEN))
    for key, value in by_name(params).items():
        np.testing.assert_array_equal(found[key], expected.get(key, value), err_msg=key)
    sizes, expected_sizes = (
        [leaf.shape for leaf in jax.tree.leaves(tree)] for tree in (state, expected_state)
    )
    assert sizes == expected_sizes and len(expected) == len(found) - 7


def test_all_of_muons_matrices_may_be_frozen():
    params = start()
    matrices = ("depth/groups/*_layer",)
    found, _ = walk(options_of(name="muon", freeze=matrices), params)
    expected, _ = walk(options_of(name="adamw", freeze=matrices), params)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_factor_scales_the_step_and_the_decay(name):
    """As another learning rate would: after one step, from the same gradient."""
    params = start()

    def step(**changes):
        return one_step(options_of(name=name, warmup_steps=0, **changes), params)

    plain, slow = step(), step(learning_rate=0.02)
    found = step(rate_factors=("**/bias=0.2", "head=0.2", "head/bias=1"))
    for key, value in found.items():
        is_slow = key == "head/kernel" or (key.endswith("bias") and key != "head/bias")
        expected = (slow if is_slow else plain)[key]
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-9, err_msg=key)


def test_the_decay_per_layer_is_that_of_a_loop_over_groups():
    """Three groups end with layers 2, 4 and 6, that is 5, 3 and 1 below the head."""
    params = start()
    options = options_of(name="sgd", b1=0.0, weight_decay=0.0, warmup_steps=0, clip_norm=None)
    options = dataclasses.replace(options, layer_decay=0.7, rate_factors=("head=10",))
    updates = one_step(options, jax.tree.map(jnp.ones_like, params), lambda x: x)
    rate = make_schedule(options, STEPS)(0)
    for key, update in updates.items():
        if "groups" in key:
            for group, below in zip(update, (5, 3, 1), strict=True):
                np.testing.assert_allclose(group, -rate * 0.7**below, rtol=1e-5)
            continue

        top = key.split("/")[0]
        factor = {"norm": 1.0, "head": 10.0}.get(top, 0.7**7)
        np.testing.assert_allclose(update, -rate * factor, rtol=1e-5, err_msg=key)
    assert {"class_token", "positions", "patches/projection/kernel"} <= updates.keys()


def two_steps(mode, accumulate):
    """The states of a run with frozen parameters and an average, and its gradients' norms."""
    cfg = make_tiny()
    cfg.depth.update(layers=1, share=1, solver="euler")
    cfg.data.augment.update(shift_px=0.0, rotate_degrees=0.0, zoom=0.0)
    cfg.model.update(dropout=0.0, drop_path=0.0)
    cfg.optimizer.update(freeze=FROZEN, warmup_steps=0, ema_decay=0.99)
    cfg.parallel.update(mode=mode, accumulate=accumulate)
    config = from_config_dict(cfg)
    data, mesh = load_splits(config)["train"], device_mesh(config.mesh)
    optimizer = make_optimizer(config.optimizer, config.train_steps, 1)
    state = init_state(config, optimizer, mesh)
    state = dataclasses.replace(state, ema=noisy(state.ema, 0.1))
    batch = next(train_batches(data, config.batch_size, 3, config.seed))
    step = make_train_step(config, optimizer, make_task(config, data), mesh)
    states, norms = [jax.device_get(state)], []
    for _ in range(2):
        state, metrics = step(state, batch)
        states.append(jax.device_get(state))
        norms.append(float(metrics["grad_norm"]))
    return states, norms


@pytest.fixture(scope="module")
def stepped():
    return two_steps("shard_map", 2)


@pytest.mark.slow
def test_a_step_leaves_what_is_frozen_and_its_average_bit_for_bit(stepped):
    states, _ = stepped
    for part in ("params", "ema"):
        before, after = (by_name(getattr(states[i], part)) for i in (0, 2))
        for key, value in before.items():
            same = np.array_equal(after[key], value)
            assert same == matches_any(key, FROZEN), (part, key)


@pytest.mark.slow
def test_the_gradient_is_that_of_what_is_trained_however_it_is_taken(stepped):
    states, norms = stepped
    for mode, accumulate in (("jit", 1), ("shard_map", 1), ("jit", 2)):
        other, other_norms = two_steps(mode, accumulate)
        np.testing.assert_allclose(other_norms, norms, rtol=1e-4)
        close = lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5)
        jax.tree.map(close, other[2].params, states[2].params)
